"""Operations that PyTorch lacks: an N-dimensional deformable convolution."""

from nnunet_godc.ops.backends import available_backends
from nnunet_godc.ops.deform_conv import deform_conv

__all__ = ["available_backends", "deform_conv"]
