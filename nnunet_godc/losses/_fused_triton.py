"""Soft statistics and cross-entropy of logits on NVIDIA GPUs: one Triton kernel forward, one backward.

Every program of the forward pass adds up its tiles in registers and leaves a row of partial sums, which PyTorch adds up
in an order that never changes: results are the same from run to run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from nnunet_godc.kernels import triton as launching
from nnunet_godc.kernels.triton import Launch

LOGITS = (torch.float16, torch.bfloat16, torch.float32)
TARGETS = (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, *LOGITS)
CLASSES = 256  # more would leave a tile too few voxels to be read in whole sectors of memory
TILE = 4096  # logits
TILE_VOXELS = 1024  # at most; with few classes, what is kept per voxel would not fit into the registers
PROGRAMS = 1024  # several for each multiprocessor
WARPS = 4
KERNELS = "nnunet_godc.losses._fused_triton_kernels"


@cache
def why_unusable() -> str | None:
    """None where a GPU runs the kernels, else the reason; a failure of the compiler is warned about once."""
    return launching.why_unusable(_try, "the loss takes the slower operations of PyTorch")


def _try() -> None:
    logits, labels = torch.zeros(1, 2, 1, device="cuda"), torch.zeros(1, 1, 1, device="cuda")
    gradient(sums(logits, labels, False, None), logits, labels, False, None)


def supports(logits: Tensor, target: Tensor) -> bool:
    return (
        logits.is_cuda
        and target.device == logits.device
        and logits.dtype in LOGITS
        and target.dtype in TARGETS
        and logits.shape[1] <= CLASSES
        and 0 < logits.shape[2] < 2**31 - TILE  # voxels are counted by 32 bits
    )


def sums(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    launch = launch_sums(logits, target, regions, ignore_label)
    launch.run()
    partials: Tensor = launch.arguments["partials"]
    return partials.sum(1)


def gradient(grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    launch = launch_gradient(grad_sums, logits, target, regions, ignore_label)
    launch.run()
    grad_logits: Tensor = launch.arguments["grad_logits"]
    return grad_logits


def launch_sums(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Launch:
    """Fills "partials" (B, programs, 3C + 2)."""
    batch, classes, voxels = logits.shape
    constants = _constants(logits, target, regions, ignore_label)
    programs = min(-(-voxels // constants["BLOCK_V"]), max(1, PROGRAMS // batch))
    arguments = {
        **_arguments(logits, target, ignore_label),
        "partials": logits.new_empty(batch, programs, 3 * classes + 2, dtype=torch.float32),
    }
    return Launch(KERNELS, "sum_tiles", (programs, batch), arguments, constants, WARPS)


def launch_gradient(
    grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None
) -> Launch:
    """Fills "grad_logits" (B, C, V)."""
    batch, _, voxels = logits.shape
    constants = _constants(logits, target, regions, ignore_label)
    grad_logits = torch.empty_like(logits)
    arguments = {
        **_arguments(logits, target, ignore_label),
        "grad_sums": grad_sums.contiguous(),
        "grad_logits": grad_logits,
        **dict(zip(("grad_stride_b", "grad_stride_c", "grad_stride_v"), grad_logits.stride(), strict=True)),
    }
    grid = (-(-voxels // constants["BLOCK_V"]), batch)
    return Launch(KERNELS, "differentiate_tile", grid, arguments, constants, WARPS)


def _arguments(logits: Tensor, target: Tensor, ignore_label: int | None) -> dict[str, Any]:
    return {
        "logits": logits,
        **dict(zip(("stride_b", "stride_c", "stride_v"), logits.stride(), strict=True)),
        "target": target.contiguous(),
        "classes": logits.shape[1],
        "voxels": logits.shape[2],
        "ignore_label": ignore_label or 0,
    }


def _constants(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> dict[str, Any]:
    classes = logits.shape[1]
    block = 1 << (classes - 1).bit_length()
    return {
        "REGIONS": regions,
        "IGNORES": target.shape[1] > classes if regions else ignore_label is not None,
        "BLOCK_C": block,
        "BLOCK_V": min(TILE // block, TILE_VOXELS),
    }
