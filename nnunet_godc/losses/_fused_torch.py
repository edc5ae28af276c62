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
        part, reference, counts = _chunk(logits, target, voxels, regions, ignore_label)
        if regions:
            probabilities = part.sigmoid()
            cross_entropy = F.binary_cross_entropy_with_logits(part, reference, reduction="none") * counts
        else:
            log_probabilities = part.log_softmax(1)
            probabilities = log_probabilities.exp()
            cross_entropy = -torch.where(reference == 1, log_probabilities, 0).sum(1, keepdim=True)
            known = reference.sum(1, keepdim=True) == counts
            cross_entropy = torch.where(known, cross_entropy, torch.nan)
        probabilities = probabilities * counts
        reference = reference * counts
        of_classes = [(probabilities * reference).sum(2), probabilities.sum(2), reference.sum(2)]  # (B, C) each
        total += torch.cat([*of_classes, cross_entropy.sum((1, 2))[:, None], counts.sum(2)], dim=1)
    return total


def gradient(grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    classes = logits.shape[1]
    by_intersection, by_prediction, _, by_cross_entropy, _ = grad_sums[:, :, None].split(
        [classes, classes, classes, 1, 1], dim=1
    )
    grad_logits = torch.empty_like(logits)
    for voxels in _chunks(logits):
        part, reference, counts = _chunk(logits, target, voxels, regions, ignore_label)
        probabilities = part.sigmoid() if regions else part.softmax(1)
        by_probabilities = by_intersection * reference + by_prediction  # (B, C, v)
        if regions:
            grad = probabilities * (1 - probabilities) * by_probabilities
        else:
            mean = (by_probabilities * probabilities).sum(1, keepdim=True)
            grad = probabilities * (by_probabilities - mean)
        grad += by_cross_entropy * (probabilities - reference)
        grad_logits[:, :, voxels] = grad * counts
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
    dtype, classes = _sum_dtype(logits), logits.shape[1]
    part, target = logits[:, :, voxels].to(dtype), target[:, :, voxels]
    if regions:
        reference = target[:, :classes].to(dtype)
        ignored = target[:, classes:] == 1  # (B, 0 or 1, v)
        counts = (~ignored).to(dtype) if ignored.shape[1] else torch.ones_like(reference[:, :1])
        return part, reference, counts
    counts = torch.ones_like(part[:, :1]) if ignore_label is None else (target != ignore_label).to(dtype)
    labels = torch.arange(classes, device=target.device)[:, None]
    return part, (target == labels).to(dtype) * counts, counts
