"""LFAM: a deformable convolution on a skip connection (Ming and Xiao, IEEE Signal Processing Letters 31, 2024, Fig. 2).

A convolution predicts from the skip features where each tap of a second convolution reads the same skip features:

    y(p) = b + sum_k m_k(p) W_k x(p + p_k + offset_k(p)),   offset = Conv(x)

The module starts as the identity: offsets zero, W a Dirac delta, b zero, modulation one. A network that it is put into
therefore computes, bit for bit in float32, what it computed before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunet_godc.ops import deform_conv


@dataclass(frozen=True, kw_only=True)
class LFAMConfig:
    """Options of LFAM.

    Attributes:
        shared: one deformable convolution for all levels of one kernel size (Table II of the paper, "Conv. shared"),
            between 1x1 projections of each level; False gives each level its own.
        guided: offsets follow from skip and decoder features together, as in FaPN (Huang et al. 2021), not from the
            skip alone. Beyond the paper.
        modulation: each tap is also weighted by 2 * sigmoid of a predicted value, as in DCN v2 (Zhu et al. 2019).
            Beyond the paper.
        offset_lr_factor: learning rate of the offset predictors as a multiple of the network's.
        first_level: the finest level that is aligned; 0 is the full resolution, as in the paper.

    Raises:
        ValueError: if a value is out of range.
    """

    shared: bool = False
    guided: bool = False
    modulation: bool = False
    offset_lr_factor: float = 1.0
    first_level: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.offset_lr_factor) and self.offset_lr_factor >= 0):
            raise ValueError(
                f"LFAM: offset_lr_factor is {self.offset_lr_factor}; use a number of at least 0 (0 freezes offsets)."
            )
        if self.first_level < 0:
            raise ValueError(f"LFAM: first_level is {self.first_level}; use 0 (full resolution) or a coarser level.")


class LateralFeatureAlignment(nn.Module):
    """LFAM for one skip connection.

    Args:
        channels: of the skip features, in and out.
        kernel_size: odd, one number per axis, (z, y, x) in 3D. With 1 in z the offsets are in-plane only, two per tap.
        guide_channels: channels of the decoder features that the offsets also follow from; 0 for none.
        modulation: as in `LFAMConfig`.

    Shape:
        - skip: (B, channels, H, W) or (B, channels, D, H, W).
        - guide: (B, guide_channels, ...) on the same grid, if guide_channels > 0.
        - output: as skip.

    Raises:
        ValueError: if a kernel size is even: no tap would lie on the voxel itself.
    """

    def __init__(
        self, channels: int, kernel_size: Sequence[int], guide_channels: int = 0, modulation: bool = False
    ) -> None:
        super().__init__()
        kernel = tuple(kernel_size)
        if any(size % 2 == 0 for size in kernel):
            raise ValueError(f"LFAM: kernel size {list(kernel)} has an even entry; it needs odd ones, such as 3.")
        in_plane = len(kernel) == 3 and kernel[0] == 1
        self.padding = tuple(size // 2 for size in kernel)
        self.taps = math.prod(kernel)
        self.offset_channels = self.taps * (len(kernel) - in_plane)

        predictor = nn.Conv3d if len(kernel) == 3 else nn.Conv2d
        predicted = self.offset_channels + (self.taps if modulation else 0)
        # offsets first, then one value per tap for the modulation
        self.offset = predictor(channels + guide_channels, predicted, kernel, padding=self.padding)  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.empty(channels, channels, *kernel))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weights to those of the identity."""
        nn.init.zeros_(self.offset.weight)
        if self.offset.bias is not None:
            nn.init.zeros_(self.offset.bias)
        nn.init.dirac_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, skip: Tensor, guide: Tensor | None = None) -> Tensor:
        predicted = self.offset(skip if guide is None else torch.cat((skip, guide), dim=1))
        mask = None
        if predicted.shape[1] > self.offset_channels:
            predicted, modulation = predicted.split((self.offset_channels, self.taps), dim=1)
            mask = 2 * torch.sigmoid(modulation)
        return deform_conv(skip, predicted, self.weight, self.bias, padding=self.padding, mask=mask)

    def feature_map_channels(self) -> int:
        """Channels of all feature maps that this module computes."""
        return self.offset.out_channels + len(self.weight)


class SharedFeatureAlignment(nn.Module):
    """LFAM for one skip connection with a deformable convolution that other levels share.

    The levels differ in channels, so the shared module works between a 1x1 projection to its channels and one back:
    y = x + back(shared(to(x))). `back` starts at zero, and so y = x.

    Args:
        channels: of the skip features.
        shared: the module that the levels have in common. It belongs to the parent, not to this module, so that its
            weights stand once in the state dict.
        shared_channels: channels of `shared`.
        dimensions: 2 or 3.
        guide_channels: channels of the decoder features at this level, projected like the skip; 0 for none.
    """

    def __init__(self, channels: int, shared_channels: int, dimensions: int, guide_channels: int = 0) -> None:
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.to_shared = convolution(channels, shared_channels, 1)
        self.guide_to_shared = convolution(guide_channels, shared_channels, 1) if guide_channels else None
        self.from_shared = convolution(shared_channels, channels, 1)
        nn.init.zeros_(self.from_shared.weight)
        if self.from_shared.bias is not None:
            nn.init.zeros_(self.from_shared.bias)

    def forward(self, skip: Tensor, shared: LateralFeatureAlignment, guide: Tensor | None = None) -> Tensor:
        if guide is not None and self.guide_to_shared is not None:
            guide = self.guide_to_shared(guide)
        aligned: Tensor = self.from_shared(shared(self.to_shared(skip), guide))
        return skip + aligned

    def feature_map_channels(self) -> int:
        """Channels of the feature maps that this module computes, without those of the shared one."""
        guide = 0 if self.guide_to_shared is None else self.guide_to_shared.out_channels
        return self.to_shared.out_channels + guide + self.from_shared.out_channels
