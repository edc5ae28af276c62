"""What a deformable convolution and its backward pass must do, counted, and the least time that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Of one deformable convolution on a GPU, `itemsize` bytes a number; totals, not per sample."""

    gathered_rows: int  # grid points read, each of all channels
    scattered_rows: int  # grid points added to
    gathered_bytes: int  # through the caches
    scattered_bytes: int  # in float32, through the second-level cache
    memory_bytes: int  # at least, through the GPU's memory: every tensor read or written once
    matrix_flops: int
    interpolation_flops: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def roofline_ms(self, bandwidth: float, matrix_rate: float) -> float:
        """Least time at a bandwidth in bytes/s and a matrix rate in FLOP/s, whichever bounds it."""
        return 1e3 * max(self.memory_bytes / bandwidth, self.matrix_flops / matrix_rate)


def _values(counts: Counts) -> list[int]:
    return [getattr(counts, name) for name in Counts.__dataclass_fields__]


def count(
    batch: int, channels: int, size: tuple[int, ...], kernel: tuple[int, ...], displaced: int, itemsize: int = 2
) -> dict[str, Counts]:
    """Counts of the forward and of the backward pass, of a convolution from `channels` to `channels`, stride 1."""
    voxels, taps, points = batch * math.prod(size), math.prod(kernel), 2**displaced
    samples = voxels * taps
    rows = samples * points
    matrix = 2 * samples * channels * channels
    features, offsets, weights = voxels * channels, samples * displaced, taps * channels * channels
    return {
        "forward": Counts(
            gathered_rows=rows,
            scattered_rows=0,
            gathered_bytes=rows * channels * itemsize,
            scattered_bytes=0,
            memory_bytes=(2 * features + offsets + weights) * itemsize,
            matrix_flops=matrix,
            interpolation_flops=2 * rows * channels,
        ),
        # the samples are interpolated again; two products; a product with every grid point's row for the offsets
        "backward": Counts(
            gathered_rows=rows,
            scattered_rows=rows,
            gathered_bytes=rows * channels * itemsize,
            scattered_bytes=rows * channels * 4,
            memory_bytes=(3 * features + 2 * offsets + 2 * weights) * itemsize,
            matrix_flops=2 * matrix,
            interpolation_flops=6 * rows * channels,
        ),
    }
