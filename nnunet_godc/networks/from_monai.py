"""MONAI's Attention U-Net and U-Net++, made to start well in nnU-Net's training: few samples in a batch, SGD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LEVELS = 5  # of U-Net++, in MONAI as in its paper


def attention_unet(
    input_channels: int, num_classes: int, widths: Sequence[int], strides: Sequence[Sequence[int]]
) -> nn.Module:
    """MONAI's AttentionUnet with instance normalisation in the place of batch normalisation.

    Batches of two, as nnU-Net has them in 3D, have statistics that are far from those that prediction uses.

    Args:
        input_channels: of the images.
        num_classes: channels of the output.
        widths: number of features of each stage.
        strides: of each stage but the first, one number per axis.
    """
    dimensions = len(strides[0])
    per_level: Any = [tuple(stride) for stride in strides]  # MONAI's annotation knows one number alone
    network = AttentionUnet(dimensions, input_channels, num_classes, widths, per_level)
    norm = nn.InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, norm(child.num_features, affine=True))
    return network


class UNetPlusPlus(BasicUNetPlusPlus):
    """MONAI's BasicUNetPlusPlus with strides of one's own, and outputs as nnU-Net expects them.

    Args:
        input_channels: of the images.
        num_classes: channels of the output.
        widths: number of features of each of the five levels.
        strides: of each level but the first, one number per axis.
        deep_supervision: whether the nodes X(0, 4), X(0, 3), X(0, 2) and X(0, 1) all give an output.

    Shape:
        - input: (B, input_channels, ...); each extent a multiple of the product of its strides.
        - output: (B, num_classes, ...) logits, or a list of four of them, the last node's first. All of them have the
          size of the input.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
    ) -> None:
        dimensions = len(strides[0])
        super().__init__(dimensions, input_channels, num_classes, (*widths, widths[0]), deep_supervision)
        pool: Any = nn.MaxPool3d if dimensions == 3 else nn.MaxPool2d
        up: Any = nn.ConvTranspose3d if dimensions == 3 else nn.ConvTranspose2d
        for level, stride in enumerate(map(tuple, strides)):
            self.get_submodule(f"conv_{level + 1}_0").max_pooling = pool(stride)
            for node in range(1, LEVELS - level):
                upsample: Any = self.get_submodule(f"upcat_{level}_{node}.upsample")
                old = upsample.deconv
                upsample.deconv = up(old.in_channels, old.out_channels, stride, stride)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs: list[Tensor] = super().forward(x)
        return outputs[::-1] if self.deep_supervision else outputs[-1]
