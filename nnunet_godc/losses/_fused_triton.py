"""Soft statistics and cross-entropy of logits on NVIDIA GPUs: one Triton kernel forward, one backward.

Every program of the forward pass adds up its tiles in registers and leaves a row of partial sums, which PyTorch adds up
in an order that never changes: results are the same from run to run.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

LOGITS = (torch.float16, torch.bfloat16, torch.float32)
TARGETS = (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, *LOGITS)
CLASSES = 256  # more would leave a tile too few voxels to be read in whole sectors of memory
TILE = 4096  # logits
PROGRAMS = 1024  # several for each multiprocessor


def why_unusable() -> str | None:
    """None where a GPU can run the kernels, else the reason."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if find_spec("triton") is None:
        return "triton is not installed; PyTorch for CUDA brings it along on Linux"
    return None


def supports(logits: Tensor, target: Tensor) -> bool:
    return (
        logits.is_cuda
        and target.device == logits.device
        and logits.dtype in LOGITS
        and target.dtype in TARGETS
        and logits.shape[1] <= CLASSES
        and logits.shape[2] < 2**31 - TILE  # voxels are counted by 32 bits
    )


def sums(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    batch, classes, voxels = logits.shape
    options = _options(logits, target, regions, ignore_label)
    programs = min(-(-voxels // options["BLOCK_V"]), max(1, PROGRAMS // batch))
    partials = logits.new_empty(batch, programs, 3 * classes + 2, dtype=torch.float32)
    with torch.cuda.device_of(logits):
        _kernels().sum_tiles[(programs, batch)](
            logits, *logits.stride(), target.contiguous(), partials, classes, voxels, ignore_label or 0, **options
        )
    return partials.sum(1)


def gradient(grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    batch, classes, voxels = logits.shape
    options = _options(logits, target, regions, ignore_label)
    grad_logits = torch.empty_like(logits)
    with torch.cuda.device_of(logits):
        _kernels().differentiate_tile[(-(-voxels // options["BLOCK_V"]), batch)](
            logits,
            *logits.stride(),
            target.contiguous(),
            grad_sums.contiguous(),
            grad_logits,
            *grad_logits.stride(),
            classes,
            voxels,
            ignore_label or 0,
            **options,
        )
    return grad_logits


def _options(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> dict[str, Any]:
    classes = logits.shape[1]
    block = 1 << (classes - 1).bit_length()
    return {
        "REGIONS": regions,
        "IGNORES": target.shape[1] > classes if regions else ignore_label is not None,
        "BLOCK_C": block,
        "BLOCK_V": TILE // block,
        "num_warps": 4,
    }


@cache
def _kernels() -> ModuleType:
    return import_module("nnunet_godc.losses._fused_triton_kernels")
