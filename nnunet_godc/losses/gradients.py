"""Gradient per voxel of an object under a Dice loss: as the theory has it, and as autograd computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class VoxelGradients(NamedTuple):
    """d loss / dP of one voxel, each (B, C); NaN where there is no such voxel."""

    inside: Tensor  # voxels of the object, Y = 1: the same in all of them
    outside: Tensor  # voxels that are not its, Y = 0


def theoretical_gradients(union: Tensor, iou: Tensor, weight: Tensor | float = 1.0) -> VoxelGradients:
    """Of the mean over samples and classes of (1 - Dice) w with a constant weight w:

        d(1 - Dice) / dP_v = -2 [Y_v - IoU (1 - Y_v)] / ((1 + IoU)^2 U)

    (eq. (7) of the paper with the factor 2 that it drops), times w / (B C).

    Args:
        union: U of each sample and class, (B, C), in voxels.
        iou, weight: likewise.
    """
    inside = -2 * weight / ((1 + iou) ** 2 * union * union.numel())
    return VoxelGradients(inside, -iou * inside)


def measured_gradients(
    loss: Callable[[Tensor, Tensor], Tensor], probabilities: Tensor, target: Tensor, mask: Tensor
) -> VoxelGradients:
    """By autograd, means over the voxels of each sample and class.

    Args:
        loss: of probabilities and target.
        probabilities, target: (B, C, ...), the target one-hot or of regions.
        mask: (B, 1, ...), True where a voxel counts.
    """
    leaf = probabilities.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, target), leaf)

    def mean(where: Tensor) -> Tensor:
        axes = tuple(range(2, where.dim()))
        return (gradient * where).sum(axes, dtype=torch.float64) / where.sum(axes)  # 0 / 0 is NaN

    return VoxelGradients(mean((target > 0) & mask), mean((target == 0) & mask))
