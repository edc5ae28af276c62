"""Soft overlap statistics of predicted probabilities and their reference, and the Dice coefficient made of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SoftStatistics(NamedTuple):
    """Sums over the valid voxels of each sample and class, each (B, C), float32 (float64 for float64 probabilities)."""

    intersection: Tensor  # sum P * Y, eq. (1) of the paper
    prediction: Tensor  # sum P
    reference: Tensor  # sum Y

    def foreground(self) -> SoftStatistics:
        """Without channel 0; (B, C - 1)."""
        return SoftStatistics(*(entry[:, 1:] for entry in self))


def soft_statistics(
    probabilities: Tensor, target: Tensor, mask: Tensor | None = None, include_background: bool = True
) -> SoftStatistics:
    """Sums probabilities and reference over the voxels of each sample and class.

    Sums are float32 at least: the union of a 128^3 patch exceeds the range of float16.

    Args:
        probabilities: (B, C, ...) in [0, 1].
        target: labels, (B, 1, ...) or (B, ...) of integers in [0, C) in any dtype, or one-hot or regions, (B, C, ...).
        mask: (B, 1, ...), 1 or True where a voxel counts; None if all do.
        include_background: False leaves channel 0 out; the results are then (B, C - 1).

    Returns:
        Gradients flow to the probabilities only.
    """
    axes = tuple(range(2, probabilities.dim()))
    dtype = torch.float64 if probabilities.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        reference = _one_hot(target, probabilities.shape, dtype)  # (B, C, ...)
        if not include_background:
            reference = reference[:, 1:]
        if mask is not None:
            reference = reference * mask
        reference_sum = reference.sum(axes, dtype=dtype)
    if not include_background:
        probabilities = probabilities[:, 1:]
    intersection = (probabilities * reference).sum(axes, dtype=dtype)
    prediction = (probabilities if mask is None else probabilities * mask).sum(axes, dtype=dtype)
    return SoftStatistics(intersection, prediction, reference_sum)


def soft_union(statistics: SoftStatistics) -> Tensor:
    """sum P + Y - P * Y, eq. (1) of the paper; (B, C)."""
    return statistics.prediction + statistics.reference - statistics.intersection


def soft_dice(statistics: SoftStatistics, smooth: float) -> Tensor:
    """Dice coefficient, eq. (2) of the paper: 2 I / (I + U), which is 2 I / (sum P + sum Y); (B, C).

    `smooth` is added to both sides of the fraction, as nnU-Net does: a class absent from prediction and reference has
    Dice 1. With smooth = 0 it has Dice 0.
    """
    numerator = 2 * statistics.intersection + smooth
    return numerator / (statistics.reference + statistics.prediction + smooth).clamp_min(1e-8)


def _one_hot(target: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if target.dim() != len(shape):
        target = target.unsqueeze(1)
    if target.shape == shape:
        return target.detach().to(dtype)
    return torch.zeros(shape, dtype=dtype, device=target.device).scatter_(1, target.long(), 1)
