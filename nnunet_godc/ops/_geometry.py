"""Where the taps of a deformable convolution lie: sizes, and the grid points around each sampling position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Neighbours(NamedTuple):
    """The K = 2 ** displaced_axes grid points around each of M sampling positions."""

    rows: Tensor  # (K, M) int32 or int64, into the (batch * voxels) rows of the channels-last input
    weights: Tensor  # (K, M), of linear interpolation; zero for a point outside the map
    slopes: list[Tensor]  # per displaced axis (K, M), the derivative of the weights by the position


class Arguments(NamedTuple):
    """What one deformable convolution is made of, but for its bias; checked, in the shapes that `deform_conv` takes.

    Without a stride it is 1 along every axis.
    """

    input: Tensor
    offset: Tensor
    weight: Tensor
    mask: Tensor | None
    padding: Sequence[int]
    dilation: Sequence[int]
    offset_groups: int
    stride: Sequence[int] | None = None

    @property
    def taps(self) -> int:
        return math.prod(self.weight.shape[2:])

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute: no sample, or no output channel."""
        return self.input.numel() == 0 or self.weight.numel() == 0

    @property
    def displaced_axes(self) -> int:
        """Offsets move the last so many axes; all of them, or all but the first."""
        return self.offset.shape[1] // (self.offset_groups * self.taps)

    def of_samples(self, part: slice) -> Arguments:
        """Those of some samples of the batch."""
        mask = None if self.mask is None else self.mask[part]
        return self._replace(input=self.input[part], offset=self.offset[part], mask=mask)


@dataclass(frozen=True)
class Geometry:
    """Sizes of one deformable convolution; every tuple runs over the spatial axes, (z, y, x) in 3D."""

    batch: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    offset_groups: int
    displaced_axes: int

    @classmethod
    def of(cls, arguments: Arguments) -> Geometry:
        size, kernel = tuple(arguments.input.shape[2:]), tuple(arguments.weight.shape[2:])
        stride = (1,) * len(size) if arguments.stride is None else tuple(arguments.stride)
        return cls(
            batch=arguments.input.shape[0],
            input_size=size,
            output_size=output_size(size, kernel, stride, arguments.padding, arguments.dilation),
            kernel=kernel,
            stride=stride,
            padding=tuple(arguments.padding),
            dilation=tuple(arguments.dilation),
            offset_groups=arguments.offset_groups,
            displaced_axes=arguments.displaced_axes,
        )

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def voxels_in(self) -> int:
        return math.prod(self.input_size)

    @property
    def voxels_out(self) -> int:
        return math.prod(self.output_size)

    def regular_positions(self, tile: slice, device: torch.device) -> list[Tensor]:
        """Per axis the undisplaced position of every tap, in C order, at the voxels of a tile: (voxels, taps)."""
        voxels = unravel(torch.arange(tile.start, tile.stop, device=device), self.output_size)
        taps = unravel(torch.arange(self.taps, device=device), self.kernel)
        return [
            voxel[:, None] * stride + (tap * step - pad)
            for voxel, tap, stride, step, pad in zip(
                voxels, taps, self.stride, self.dilation, self.padding, strict=True
            )
        ]

    def neighbours(self, tile: slice, offset: Tensor) -> Neighbours:
        """Grid points and interpolation weights of all taps at the output voxels of a tile, for one offset group.

        Args:
            tile: range of flattened output voxels.
            offset: (batch, voxels, taps, displaced_axes) displacements in voxels, float32 or float64.

        Returns:
            Neighbours of the M = batch * voxels * taps positions, in that order.
        """
        fixed_axes = len(self.input_size) - self.displaced_axes
        # int32 indices halve the traffic and take the fast path of embedding_bag
        index_dtype = torch.int32 if self.batch * self.voxels_in < 2**31 else torch.int64
        shape = offset.shape[:3]

        rows = torch.arange(self.batch, device=offset.device).mul_(self.voxels_in)
        rows = rows.view(-1, 1, 1).expand(shape).reshape(1, -1).to(index_dtype)  # (points so far, M)
        factors = []  # per axis the interpolation weights of its 1 or 2 grid points, (1 or 2, M)
        signs = []  # and their derivatives
        for axis, regular in enumerate(self.regular_positions(tile, offset.device)):
            size = self.input_size[axis]
            if axis < fixed_axes:
                low = regular.expand(shape).reshape(1, -1)
                inside = (low >= 0) & (low < size)
                factors.append(inside.to(offset.dtype))
                indices = low
            else:
                # A position more than a voxel outside the map samples zero, so clamping there changes no value and
                # keeps the conversion to integers defined. A NaN stays a NaN in the weights.
                position = (regular + offset[..., axis - fixed_axes]).clamp_(-2, size + 1).view(-1)
                floor = position.floor()
                fraction = position - floor
                corners = torch.stack((floor, floor + 1))  # (2, M)
                present = ((corners >= 0) & (corners < size)).to(offset.dtype)
                factors.append(torch.stack((1 - fraction, fraction)).mul_(present))
                signs.append(torch.stack((-present[0], present[1])))
                indices = corners
            step = indices.to(index_dtype).clamp_(0, size - 1).mul_(math.prod(self.input_size[axis + 1 :]))
            rows = (rows.unsqueeze(1) + step).flatten(0, 1)

        def outer(parts: list[Tensor]) -> Tensor:
            """Products of the factors of each axis, in the order in which `rows` counts the points: (K, M)."""
            product = parts[0]
            for part in parts[1:]:
                product = (product.unsqueeze(1) * part).flatten(0, 1)
            return product

        return Neighbours(
            rows=rows,
            weights=outer(factors),
            slopes=[
                outer([*factors[: fixed_axes + i], sign, *factors[fixed_axes + i + 1 :]])
                for i, sign in enumerate(signs)
            ],
        )


def channel_groups(inputs: int, outputs: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """Input channels and output channels of each group of a convolution, of `inputs` and `outputs` in all."""
    step_in, step_out = inputs // groups, outputs // groups
    for group in range(groups):
        yield slice(group * step_in, (group + 1) * step_in), slice(group * step_out, (group + 1) * step_out)


def output_size(
    input_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Spatial size of a convolution."""
    return tuple(
        (size + 2 * pad - step * (taps - 1) - 1) // apart + 1
        for size, taps, apart, pad, step in zip(input_size, kernel, stride, padding, dilation, strict=True)
    )


def unravel(index: Tensor, size: tuple[int, ...]) -> list[Tensor]:
    """Flat indices as one index per axis, in C order."""
    axes = []
    for extent in reversed(size):
        axes.append(index % extent)
        index = index // extent
    return axes[::-1]
