"""Soft statistics and cross-entropy of logits in plain PyTorch, so many voxels at a time that temporaries stay small.

Shapes throughout: logits (B, C, V), target (B, K, V), with all voxels of a sample along one axis.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits per chunk: on the CPU half a megabyte of float32, which its cache holds; elsewhere enough to occupy a GPU.
CHUNK = 2**17
CHUNK_ON_DEVICE = 2**24


def why_unusable() -> None:
    """It runs everywhere."""


def supports(logits: Tensor, target: Tensor) -> bool:
    return True


def sums(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    classes = logits.shape[1]
    total = logits.new_zeros(len(logits), 3 * classes + 2, dtype=_sum_dtype(logits))
    for voxels in _chunks(logits):
        part, reference, valid = _chunk(logits, target, voxels, regions, ignore_label)
        if regions:
            probabilities = part.sigmoid()
            cross_entropy = F.binary_cross_entropy_with_logits(part, reference, reduction="none").mul_(valid)
            reference.mul_(valid)
        else:
            log_probabilities = part.log_softmax(1)
            labels = target[:, :, voxels]
            known = (labels >= 0) & (labels < classes)
            cross_entropy = -log_probabilities.gather(1, torch.where(known, labels, 0).long())
            cross_entropy = torch.where(known, cross_entropy, torch.nan).masked_fill_(valid == 0, 0)
            probabilities = log_probabilities.exp_()
        probabilities *= valid
        of_classes = [(probabilities * reference).sum(2), probabilities.sum(2), reference.sum(2)]  # (B, C) each
        total += torch.cat([*of_classes, cross_entropy.sum((1, 2))[:, None], valid.sum(2)], dim=1)
    return total


def gradient(grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    classes = logits.shape[1]
    by_intersection, by_prediction, _, by_cross_entropy, _ = grad_sums[:, :, None].split(
        [classes, classes, classes, 1, 1], dim=1
    )
    grad_logits = torch.empty_like(logits)
    for voxels in _chunks(logits):
        part, reference, valid = _chunk(logits, target, voxels, regions, ignore_label)
        by_probabilities = (by_intersection * reference).add_(by_prediction)  # (B, C, v)
        if regions:
            probabilities = part.sigmoid()
            grad = by_probabilities.mul_(probabilities).mul_(1 - probabilities)
        else:
            probabilities = part.softmax(1)
            by_probabilities -= (by_probabilities * probabilities).sum(1, keepdim=True)
            grad = by_probabilities.mul_(probabilities)
        grad += probabilities.sub_(reference).mul_(by_cross_entropy)
        grad_logits[:, :, voxels] = grad.mul_(valid)
    return grad_logits


def _sum_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _chunks(logits: Tensor) -> Iterator[slice]:
    batch, classes, voxels = logits.shape
    limit = CHUNK if logits.device.type == "cpu" else CHUNK_ON_DEVICE
    step = max(1, limit // (batch * classes))
    return (slice(first, first + step) for first in range(0, voxels, step))


def _chunk(
    logits: Tensor, target: Tensor, voxels: slice, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and reference, (B, C, v), and 1 where a voxel counts, (B, 1, v), of one chunk."""
    classes = logits.shape[1]
    part, target = logits[:, :, voxels].to(_sum_dtype(logits)), target[:, :, voxels]
    if regions:
        valid = (target[:, classes:] != 1).all(1, keepdim=True)  # of no channel or one
        return part, target[:, :classes].to(part.dtype, copy=True), valid.to(part.dtype)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_label is None else target != ignore_label
    counts = (valid & (target >= 0) & (target < classes)).to(part.dtype)
    one_hot = torch.zeros_like(part).scatter_(1, (target * counts).long(), counts)
    return part, one_hot, valid.to(part.dtype)
