"""Puts LFAM on the skip connections of a U-Net: nnU-Net's, MONAI's, or one whose skips are named."""

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
from nnunet_godc.alignment.skips import ADAPTERS, Skip, skips_of
from nnunet_godc.spelling import closest_match


class SkipAlignment(nn.Module):
    """The LFAM modules of one network, by level; level 0 is its finest skip connection.

    Args:
        channels: of the skip features, per level.
        kernel_sizes: per level, one number per axis.
        config: the options.
        guide_channels: of what guides the offsets, per level; None for as many as the skip features have.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        config: LFAMConfig,
        guide_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.channels = tuple(channels)
        guides = self.channels if guide_channels is None else tuple(guide_channels)
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
            guide = guides[level] if config.guided else 0
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


class _AlignArgument:
    """A hook before a module, for the skip features in one of its arguments."""

    def __init__(self, alignment: SkipAlignment, level: int, skip: Skip) -> None:
        self.alignment = alignment
        self.level = level
        self.skip = skip

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        where = self.skip.argument
        if isinstance(where, int) and where < len(args):
            return (*args[:where], self.aligned(args[where]), *args[where + 1 :]), kwargs
        if where in kwargs:
            return args, {**kwargs, where: self.aligned(kwargs[where])}
        raise ValueError(
            f"LFAM: {self.skip.module} is called with {len(args)} arguments by position and with "
            f"{', '.join(kwargs) or 'none'} by name, and its Skip says that the features are argument {where!r}; "
            f"correct it."
        )

    def aligned(self, value: Tensor) -> Tensor:
        return self.skip.aligned(value, self.align)

    def align(self, features: Tensor, guide: Tensor | None) -> Tensor:
        return self.alignment.align(self.level, features, guide if self.alignment.config.guided else None)


class _AlignOutput(_AlignArgument):
    """A hook behind a module that returns the skip features."""

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:  # type: ignore[override]
        return self.aligned(output)


def align_skips(network: nn.Module, config: LFAMConfig | None = None, skips: Sequence[Skip] | None = None) -> nn.Module:
    """Puts LFAM on every skip connection of a U-Net, in place.

    Call it after the network's weights are initialised: nnU-Net's initialisation would overwrite the identity that the
    modules start as. Names of the existing weights stay; the new ones stand under `alignment`, of the network or, with
    nnU-Net's, of its `decoder`.

    Args:
        network: `PlainConvUNet`, `ResidualEncoderUNet`, or any network with nnU-Net's `encoder` and a `UNetDecoder` as
            `decoder`; MONAI's `DynUNet`, `UNet`, `AttentionUnet`, `BasicUNet` and `BasicUNetPlusPlus`;
            segmentation_models_pytorch's `Unet`; or any other, with `skips`. 2D or 3D, on any device.
        config: the options; None takes the paper's.
        skips: where the skip features pass, finest level first; None where the network is one of those above.

    Returns:
        The same network.

    Raises:
        TypeError: if the network is of another kind and `skips` is not given.
        ValueError: if its skips are aligned already, a kernel size is even, the options leave no skip, or `skips` do
            not fit the network.
    """
    config = config if config is not None else LFAMConfig()
    name = type(network).__name__
    if any(isinstance(module, SkipAlignment) for module in network.modules()):
        raise ValueError(f"LFAM: the skips of this {name} are aligned already; align a network once.")
    if skips is None and type(getattr(network, "decoder", None)) is UNetDecoder:
        return _align_decoder(network, config)
    if skips is None and (skips := skips_of(network, config.guided)) is None:
        decoder = type(network.decoder).__name__ if hasattr(network, "decoder") else None
        found = "" if decoder is None else f" with the decoder {decoder}"
        others = ", ".join(map(_short, ADAPTERS))
        raise TypeError(
            f"LFAM does not know where the skip features of {name}{found} pass; use plans whose network is "
            f"PlainConvUNet or ResidualEncoderUNet, one of {others}, or say so with `skips`."
        )
    return _align_named(network, config, skips)


def alignment_of(network: nn.Module) -> SkipAlignment:
    """The LFAM modules of a network that :func:`align_skips` has aligned."""
    return next(module for module in network.modules() if isinstance(module, SkipAlignment))


def _short(class_name: str) -> str:
    package, *_, name = class_name.split(".")
    return f"{'MONAI' if package == 'monai' else package}'s {name}"


def _align_decoder(network: nn.Module, config: LFAMConfig) -> nn.Module:
    encoder: Any = network.encoder
    decoder: Any = network.decoder
    levels = len(encoder.output_channels) - 1  # the bottleneck is no skip
    _check_levels(config, levels)
    if convert_conv_op_to_dim(encoder.conv_op) not in (2, 3):
        raise TypeError(f"LFAM: {encoder.conv_op.__name__} networks cannot be aligned; use a 2D or 3D configuration.")
    kernels = [maybe_convert_scalar_to_list(encoder.conv_op, size) for size in encoder.kernel_sizes[:levels]]
    channels = list(encoder.output_channels[:levels])

    alignment = SkipAlignment(channels, kernels, config)
    # A subclass of the very same object: the stock forward pass, names and pickles stay as they are.
    decoder.__class__ = AlignedUNetDecoder
    decoder.alignment = _like(alignment, decoder)
    if config.guided:
        # a stage's input is the one place where nnU-Net's decoder has both at hand: (upsampled features, skip)
        for level in map(int, alignment.levels):
            wide, stage = channels[level], f"stages.{levels - 1 - level}"
            skip = Skip(
                module=stage,
                channels=wide,
                kernel_size=kernels[level],
                argument=0,
                concatenated_with=wide,
                first=False,
            )
            _hook(decoder, alignment, level, skip)
    return network


def _align_named(network: nn.Module, config: LFAMConfig, skips: Sequence[Skip]) -> nn.Module:
    name = type(network).__name__
    _check_levels(config, len(skips))
    if isinstance(network, nn.Sequential) or hasattr(network, "alignment"):
        reason = "is a Sequential, which runs all that it holds" if isinstance(network, nn.Sequential) else "has one"
        raise ValueError(f"LFAM becomes the network's `alignment`, and {name} {reason}; wrap it in a module.")
    known = dict(network.named_modules())
    for skip in skips:
        if skip.module not in known:
            near = closest_match(skip.module, known)
            raise ValueError(
                f"LFAM: {name} has no module {skip.module!r}{f'; did you mean {near!r}?' if near else '.'}"
            )
        if len(skip.kernel_size) not in (2, 3) or len(skip.kernel_size) != len(skips[0].kernel_size):
            raise ValueError(
                f"LFAM: the kernel size of {skip.module} is {tuple(skip.kernel_size)}; give two numbers for every "
                f"level in 2D, three in 3D."
            )
        if config.guided and not skip.concatenated_with:
            raise ValueError(
                f"LFAM: guided offsets need the decoder's features, and at {skip.module} the skip passes alone; name a "
                f"module that takes both concatenated, or leave `guided` out."
            )
    alignment = SkipAlignment(
        [skip.channels for skip in skips],
        [skip.kernel_size for skip in skips],
        config,
        [skip.concatenated_with for skip in skips],
    )
    network.alignment = _like(alignment, network)
    for level in map(int, alignment.levels):
        _hook(network, alignment, level, skips[level])
    return network


def _check_levels(config: LFAMConfig, levels: int) -> None:
    if config.first_level + (config.finest == "off") >= levels:
        without = " and finest is 'off'" if config.finest == "off" else ""
        raise ValueError(
            f"LFAM: first_level is {config.first_level}{without}, and this network has skips at levels 0 to "
            f"{levels - 1} only."
        )


def _like(alignment: SkipAlignment, module: nn.Module) -> SkipAlignment:
    weight = next(module.parameters())
    return alignment.to(weight.device, weight.dtype)


def _hook(parent: nn.Module, alignment: SkipAlignment, level: int, skip: Skip) -> None:
    module = parent.get_submodule(skip.module)
    if skip.argument is None:
        module.register_forward_hook(_AlignOutput(alignment, level, skip))
    else:
        module.register_forward_pre_hook(_AlignArgument(alignment, level, skip), with_kwargs=True)
