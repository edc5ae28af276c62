"""Soft statistics and cross-entropy of logits on the CPU, by compiled loops that need no memory of a patch's size.

Every thread adds up a part of each sample, so that the last digits of the sums depend on how many threads there are.
"""

from __future__ import annotations

from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_godc.kernels import numba as compiling

LOGITS_PER_THREAD = 2**15  # fewer are not worth the hand-over to another thread
TARGETS = (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)

Array = NDArray[Any]


@cache
def why_unusable() -> str | None:
    """None where numba is installed and compiles the loops, else the reason; a failure is warned about once."""
    return compiling.why_unusable(_try, "the loss takes the slower operations of PyTorch")


def _try() -> None:
    logits, labels = torch.zeros(1, 2, 1), torch.zeros(1, 1, 1)
    gradient(sums(logits, labels, False, None), logits, labels, False, None)


def supports(logits: Tensor, target: Tensor) -> bool:
    """Whether the logits are float32 on the CPU, with the voxels of a class side by side."""
    return (
        logits.device.type == target.device.type == "cpu"
        and logits.dtype == torch.float32
        and target.dtype in TARGETS
        and logits.stride()[1:] == (logits.shape[2], 1)
    )


def sums(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    batch, classes, _ = logits.shape
    loop = _kernels().sum_regions if regions else _kernels().sum_labels
    arrays = logits.numpy(), target.contiguous().numpy()
    parts = _parts(logits)
    totals = np.zeros((len(parts), batch, 3 * classes + 2))

    def add_up(part: int) -> None:
        for sample in range(batch):
            of_sample = (array[sample] for array in arrays)
            loop(*of_sample, *_ignored(regions, ignore_label), *parts[part], totals[part, sample])

    compiling.in_threads([partial(add_up, part) for part in range(len(parts))])
    return torch.from_numpy(totals.sum(0)).float()


def gradient(grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    loop = _kernels().differentiate_regions if regions else _kernels().differentiate_labels
    arrays = grad_sums.contiguous().numpy(), logits.numpy(), target.contiguous().numpy()
    grad_logits = torch.empty_like(logits)

    def fill(first: int, last: int) -> None:
        for sample, grad in enumerate(grad_logits.numpy()):
            of_sample = (array[sample] for array in arrays)
            loop(*of_sample, *_ignored(regions, ignore_label), first, last, grad)

    compiling.in_threads([partial(fill, first, last) for first, last in _parts(logits)])
    return grad_logits


def _parts(logits: Tensor) -> list[tuple[int, int]]:
    """The voxels that each thread takes of every sample."""
    count = min(torch.get_num_threads(), logits.numel() // LOGITS_PER_THREAD)
    return compiling.parts(0, logits.shape[2], count)


def _ignored(regions: bool, ignore_label: int | None) -> tuple[Any, ...]:
    return () if regions else (ignore_label is not None, ignore_label or 0)


@cache
def _kernels() -> ModuleType:
    return compiling.load("nnunet_godc.losses._fused_numba_kernels")
