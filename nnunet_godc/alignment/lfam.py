"""LFAM: a deformable convolution on a skip connection (Ming and Xiao, IEEE Signal Processing Letters 31, 2024, Fig. 2).

A convolution predicts from the skip features where each tap of a second convolution reads the same skip features:

    y(p) = b + sum_k m_k(p) W_k x(p + p_k + offset_k(p)),   offset = Conv(x)

The module starts as the identity: offsets zero, W a Dirac delta, b zero, modulation one. A network that it is put into
therefore computes, bit for bit in float32, what it computed before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_godc.ops import deform_conv

# cuDNN's 16-bit convolutions are fastest for whole multiples of channels, and a kernel of 3 x 3 x 3 has 81 offsets. On
# an H200, 96 channels took 72 % of the time of 81 forward and backward, while 88 saved nothing; few channels would grow
# too much by it.
CHANNEL_MULTIPLE, FEW_CHANNELS = 32, 64

Finest = Literal["full", "in-plane", "off"]


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

    What follows makes LFAM cheaper, beyond the paper:
        finest: what becomes of the finest of these levels, which costs more than all others together: ``"full"``,
            ``"in-plane"`` (a [1, 3, 3] kernel instead of [3, 3, 3], two offsets per tap; the same as full in 2D), or
            ``"off"``.
        reduction: each level works between 1x1 projections to C / reduction channels and back, on a residual; 1 for
            none.
        separable: offsets from a depthwise convolution and a 1x1 one instead of a full convolution.
        max_offset: offsets are bounded to so many voxels, by max_offset * tanh(offset / max_offset); None for no bound.
        checkpoint: compute each LFAM again in the backward pass instead of keeping what it needs for it.

    Raises:
        ValueError: if a value is out of range.
    """

    shared: bool = False
    guided: bool = False
    modulation: bool = False
    offset_lr_factor: float = 1.0
    first_level: int = 0
    finest: Finest = "full"
    reduction: int = 1
    separable: bool = False
    max_offset: float | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.offset_lr_factor) and self.offset_lr_factor >= 0):
            raise ValueError(
                f"LFAM: offset_lr_factor is {self.offset_lr_factor}; use a number of at least 0 (0 freezes offsets)."
            )
        if self.first_level < 0:
            raise ValueError(f"LFAM: first_level is {self.first_level}; use 0 (full resolution) or a coarser level.")
        if self.finest not in get_args(Finest):
            raise ValueError(f"LFAM: finest is {self.finest!r}; use 'full', 'in-plane' or 'off'.")
        if self.reduction < 1:
            raise ValueError(f"LFAM: reduction is {self.reduction}; use 1 (none) or a larger whole number.")
        if self.max_offset is not None and not (math.isfinite(self.max_offset) and self.max_offset > 0):
            raise ValueError(f"LFAM: max_offset is {self.max_offset}; use a number of voxels above 0, or None.")


class LateralFeatureAlignment(nn.Module):
    """LFAM for one skip connection.

    Args:
        channels: of the skip features, in and out.
        kernel_size: odd, one number per axis, (z, y, x) in 3D. With 1 in z the offsets are in-plane only, two per tap.
        guide_channels: channels of the decoder features that the offsets also follow from; 0 for none.
        modulation, separable, max_offset: as in `LFAMConfig`.

    Shape:
        - skip: (B, channels, H, W) or (B, channels, D, H, W).
        - guide: (B, guide_channels, ...) on the same grid, if guide_channels > 0.
        - output: as skip.

    Raises:
        ValueError: if a kernel size is even: no tap would lie on the voxel itself.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Sequence[int],
        guide_channels: int = 0,
        modulation: bool = False,
        *,
        separable: bool = False,
        max_offset: float | None = None,
    ) -> None:
        super().__init__()
        kernel = tuple(kernel_size)
        if any(size % 2 == 0 for size in kernel):
            raise ValueError(f"LFAM: kernel size {list(kernel)} has an even entry; it needs odd ones, such as 3.")
        in_plane = len(kernel) == 3 and kernel[0] == 1
        self.padding = tuple(size // 2 for size in kernel)
        self.taps = math.prod(kernel)
        self.offset_channels = self.taps * (len(kernel) - in_plane)

        self.max_offset = max_offset

        convolution: Any = nn.Conv3d if len(kernel) == 3 else nn.Conv2d
        seen = channels + guide_channels
        predicted = self.offset_channels + (self.taps if modulation else 0)
        # offsets first, then one value per tap for the modulation
        self.depthwise = convolution(seen, seen, kernel, padding=self.padding, groups=seen) if separable else None
        self.offset = convolution(seen, predicted, 1 if separable else kernel, padding=0 if separable else self.padding)
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
        offsets, mask = self.offsets(skip, guide)
        return deform_conv(skip, offsets, self.weight, self.bias, padding=self.padding, mask=mask)

    def offsets(self, skip: Tensor, guide: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Where the taps read, in voxels of the feature map, and what they are weighted by; of inputs as `forward`'s.

        Returns:
            Offsets, (B, taps * axes, ...), tap after tap, each ordered (z, y, x), or (y, x) in the plane; and the
            modulation, (B, taps, ...), or None without.
        """
        seen = skip if guide is None else torch.cat((skip, guide), dim=1)
        predicted = _convolve(self.offset, seen if self.depthwise is None else self.depthwise(seen))
        mask = None
        if predicted.shape[1] > self.offset_channels:
            predicted, modulation = predicted.split((self.offset_channels, self.taps), dim=1)
            mask = 2 * torch.sigmoid(modulation)
        if self.max_offset is not None:
            predicted = self.max_offset * torch.tanh(predicted / self.max_offset)
        return predicted, mask

    def feature_map_channels(self) -> int:
        """Channels of all feature maps that this module computes."""
        depthwise = 0 if self.depthwise is None else self.depthwise.out_channels
        return int(depthwise + self.offset.out_channels + len(self.weight))

    def offset_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the offset predictor."""
        yield from self.offset.parameters()
        if self.depthwise is not None:
            yield from self.depthwise.parameters()


def _convolve(convolution: Any, input: Tensor) -> Tensor:
    """What the convolution computes, with more output channels at first where that is faster."""
    channels = convolution.out_channels
    missing = -channels % CHANNEL_MULTIPLE if channels > FEW_CHANNELS and _wants_whole_multiples(input) else 0
    if not missing:
        output: Tensor = convolution(input)
        return output
    weight = F.pad(convolution.weight, [0, 0] * (input.dim() - 1) + [0, missing])
    bias = None if convolution.bias is None else F.pad(convolution.bias, [0, missing])
    function: Any = F.conv3d if input.dim() == 5 else F.conv2d
    output = function(input, weight, bias, convolution.stride, convolution.padding, convolution.dilation)
    return output[:, :channels]


def _wants_whole_multiples(input: Tensor) -> bool:
    return input.is_cuda and input.dtype in (torch.float16, torch.bfloat16)


class ProjectedFeatureAlignment(nn.Module):
    """LFAM for one skip connection on a residual between 1x1 projections: y = x + back(lfam(to(x))).

    So levels that differ in channels can share one LFAM, and a level can have an LFAM of fewer channels than its own.
    `back` starts at zero, and so y = x.

    Args:
        channels: of the skip features.
        inner_channels: of the LFAM between the projections. It is given to `forward` and belongs to the parent, not to
            this module, so that the weights of a shared one stand once in the state dict.
        dimensions: 2 or 3.
        guide_channels: channels of the decoder features at this level, projected like the skip; 0 for none.
    """

    def __init__(self, channels: int, inner_channels: int, dimensions: int, guide_channels: int = 0) -> None:
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.to_inner = convolution(channels, inner_channels, 1)
        self.guide_to_inner = convolution(guide_channels, inner_channels, 1) if guide_channels else None
        self.from_inner = convolution(inner_channels, channels, 1)
        nn.init.zeros_(self.from_inner.weight)
        if self.from_inner.bias is not None:
            nn.init.zeros_(self.from_inner.bias)

    def forward(self, skip: Tensor, inner: LateralFeatureAlignment, guide: Tensor | None = None) -> Tensor:
        if guide is not None and self.guide_to_inner is not None:
            guide = self.guide_to_inner(guide)
        aligned: Tensor = self.from_inner(inner(self.to_inner(skip), guide))
        return skip + aligned

    def feature_map_channels(self) -> int:
        """Channels of the feature maps that this module computes, without those of the inner LFAM."""
        guide = 0 if self.guide_to_inner is None else self.guide_to_inner.out_channels
        return self.to_inner.out_channels + guide + self.from_inner.out_channels
