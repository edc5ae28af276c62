"""Operations that PyTorch lacks: an N-dimensional deformable convolution."""

from nnunet_godc.ops.backends import available_backends
from nnunet_godc.ops.deform_conv import deform_conv
from nnunet_godc.ops.export import decompositions, export_onnx

__all__ = ["available_backends", "decompositions", "deform_conv", "export_onnx"]
