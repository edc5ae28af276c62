"""Puts LFAM on the skip connections of nnU-Net's U-Nets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim, maybe_convert_scalar_to_list
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_godc.alignment.lfam import LateralFeatureAlignment, LFAMConfig, ProjectedFeatureAlignment


class SkipAlignment(nn.Module):
    """The LFAM modules of one network, by level; level 0 is the full resolution.

    Args:
        channels: of the skip features, per level.
        kernel_sizes: per level, one number per axis.
        config: the options.
    """

    def __init__(self, channels: Sequence[int], kernel_sizes: Sequence[Sequence[int]], config: LFAMConfig) -> None:
        super().__init__()
        self.config = config
        first = config.first_level + (config.finest == "off")
        self.kernels = {str(level): tuple(kernel) for level, kernel in enumerate(kernel_sizes)}
        if config.finest == "in-plane":
            self.kernels[str(first)] = (*(1,) * (len(kernel_sizes[first]) - 2), *kernel_sizes[first][-2:])
        self.levels = nn.ModuleDict()
        self.inner = nn.ModuleDict()  # by kernel size where levels share, by level where they have fewer channels
        self.inner_of: dict[str, str] = {}
        narrowest = min(channels[first:])
        for level in range(first, len(channels)):
            key, kernel = str(level), self.kernels[str(level)]
            guide = channels[level] if config.guided else 0
            if not (config.shared or config.reduction > 1):
                self.levels[key] = _alignment(channels[level], kernel, guide, config)
                continue
            inner_channels = max(1, (narrowest if config.shared else channels[level]) // config.reduction)
            self.levels[key] = ProjectedFeatureAlignment(channels[level], inner_channels, len(kernel), guide)
            name = "x".join(map(str, kernel)) if config.shared else key
            self.inner_of[key] = name
            if name not in self.inner:
                inner_guide = inner_channels if config.guided else 0
                self.inner[name] = _alignment(inner_channels, kernel, inner_guide, config)

    def align(self, level: int, skip: Tensor, guide: Tensor | None = None) -> Tensor:
        """The aligned skip features of one level; as they are, where the level is left out."""
        key = str(level)
        if key not in self.levels:
            return skip
        inner = (self.inner[self.inner_of[key]],) if key in self.inner_of else ()
        aligned: Tensor
        if self.config.checkpoint and torch.is_grad_enabled():
            aligned = checkpoint(self.levels[key], skip, *inner, guide=guide, use_reentrant=False)
        else:
            aligned = self.levels[key](skip, *inner, guide=guide)
        return aligned

    def feature_map_size(self, level_sizes: Sequence[Sequence[int]]) -> np.int64:
        """Number of elements of all feature maps that alignment computes for one sample.

        Args:
            level_sizes: spatial size of the skip features, per level.
        """
        total = np.int64(0)
        for key, module in self.levels.items():
            modules = [module, self.inner[self.inner_of[key]]] if key in self.inner_of else [module]
            maps = sum(module.feature_map_channels() for module in modules)  # type: ignore[operator]
            total += np.prod([maps, *level_sizes[int(key)]], dtype=np.int64)
        return total

    def offset_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the offset predictors."""
        for module in self.modules():
            if isinstance(module, LateralFeatureAlignment):
                yield from module.offset_parameters()


def _alignment(channels: int, kernel: Sequence[int], guide: int, config: LFAMConfig) -> LateralFeatureAlignment:
    return LateralFeatureAlignment(
        channels, kernel, guide, config.modulation, separable=config.separable, max_offset=config.max_offset
    )


class AlignedUNetDecoder(UNetDecoder):
    """nnU-Net's decoder with aligned skips. Made of an existing decoder by :func:`align_skips`, never constructed."""

    alignment: SkipAlignment

    def forward(self, skips: Sequence[Tensor]) -> Any:
        if not self.alignment.config.guided:
            # the bottleneck, last, is no level of the alignment and comes back as it is
            skips = [self.alignment.align(level, skip) for level, skip in enumerate(skips)]
        return super().forward(skips)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """nnU-Net's count of feature map elements for one sample, with those of the alignment."""
        stock: np.int64 = super().compute_conv_feature_map_size(input_size)
        return stock + self.alignment_feature_map_size(input_size)

    def alignment_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """What the alignment adds to :meth:`compute_conv_feature_map_size`."""
        sizes = []
        size = list(input_size)
        for stride in self.encoder.strides[:-1]:
            size = [extent // step for extent, step in zip(size, stride, strict=True)]
            sizes.append(size)
        return self.alignment.feature_map_size(sizes)


class _GuidedStage:
    """Aligns the skip half of a decoder stage's input by its other half, the upsampled decoder features.

    A hook, because the stage's input is the one place where nnU-Net's decoder has both at hand.
    """

    def __init__(self, alignment: SkipAlignment, level: int) -> None:
        self.alignment = alignment
        self.level = level

    def __call__(self, stage: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        decoded, skip = inputs[0].chunk(2, dim=1)
        return (torch.cat((decoded, self.alignment.align(self.level, skip, guide=decoded)), dim=1),)


def align_skips(network: nn.Module, config: LFAMConfig | None = None) -> nn.Module:
    """Puts LFAM on every skip connection of a U-Net, in place.

    Call it after the network's weights are initialised: nnU-Net's initialisation would overwrite the identity that the
    modules start as. Names of the existing weights stay; the new ones stand under `decoder.alignment`.

    Args:
        network: `PlainConvUNet`, `ResidualEncoderUNet`, or any network with nnU-Net's `encoder` and a `UNetDecoder` as
            `decoder`; 2D or 3D, on any device.
        config: the options; None takes the paper's.

    Returns:
        The same network.

    Raises:
        TypeError: if the network has no such encoder and decoder.
        ValueError: if its skips are aligned already, a kernel size is even, or the options leave no skip.
    """
    config = config if config is not None else LFAMConfig()
    encoder: Any = getattr(network, "encoder", None)
    decoder: Any = getattr(network, "decoder", None)
    if isinstance(decoder, AlignedUNetDecoder):
        raise ValueError(f"LFAM: the skips of this {type(network).__name__} are aligned already; align a network once.")
    if encoder is None or type(decoder) is not UNetDecoder:
        found = "no decoder" if decoder is None else f"the decoder {type(decoder).__name__}"
        raise TypeError(
            f"LFAM: {type(network).__name__} has {found}, and LFAM knows the skips of nnU-Net's UNetDecoder only; use "
            f"plans whose network is PlainConvUNet or ResidualEncoderUNet."
        )
    levels = len(encoder.output_channels) - 1  # the bottleneck is no skip
    if config.first_level + (config.finest == "off") >= levels:
        without = " and finest is 'off'" if config.finest == "off" else ""
        raise ValueError(
            f"LFAM: first_level is {config.first_level}{without}, and this network has skips at levels 0 to "
            f"{levels - 1} only."
        )
    if convert_conv_op_to_dim(encoder.conv_op) not in (2, 3):
        raise TypeError(f"LFAM: {encoder.conv_op.__name__} networks cannot be aligned; use a 2D or 3D configuration.")
    kernels = [maybe_convert_scalar_to_list(encoder.conv_op, size) for size in encoder.kernel_sizes[:levels]]

    like = next(decoder.parameters())
    alignment = SkipAlignment(list(encoder.output_channels[:levels]), kernels, config)
    # A subclass of the very same object: the stock forward pass, names and pickles stay as they are.
    decoder.__class__ = AlignedUNetDecoder
    decoder.alignment = alignment.to(like.device, like.dtype)
    if config.guided:
        for level in map(int, alignment.levels):
            decoder.stages[levels - 1 - level].register_forward_pre_hook(_GuidedStage(alignment, level))
    return network
