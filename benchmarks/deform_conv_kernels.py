"""The GPU kernels of deform_conv, compiled for Ampere and Hopper and counted; needs no GPU.

Sizes are those of the skips of nnU-Net's 3d_fullres plan for LiTS, as they are and with a quarter of the channels.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from _compiled import instructions, resources
from _counts import count
from _measure import load, write_report

from nnunet_godc.ops._geometry import Arguments
from nnunet_godc.ops._triton_launch import Call, Launch

BATCH = 2
LEVELS = [(32, 128), (64, 64), (128, 32), (256, 16), (320, 8)]  # channels, extent
REDUCTION = 4
KERNEL = (3, 3, 3)
# Per capability: registers of a multiprocessor, bytes of shared memory, warps, programs.
LIMITS = {80: (65536, 164 * 1024, 64, 32), 90: (65536, 228 * 1024, 64, 32)}
HEADINGS = [
    *["level", "target", "kernel", "registers", "spilled bytes", "shared KiB", "warps"],
    *["instructions", "loads", "atomics", "matrix", "barriers", "gathered GB", "scattered GB", "tensors GB", "GFLOP"],
]


@dataclass(frozen=True)
class Counted:
    """One kernel for one level. Instructions are those of warps, per output voxel and tap."""

    level: str
    dtype: str
    capability: int
    kernel: str
    programs: int
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    resident_warps: int
    instructions: float
    loads: float
    atomics: float
    matrix: float
    barriers: float
    gathered_gb: float
    scattered_gb: float
    memory_gb: float
    matrix_gflop: float


def launches(channels: int, extent: int, dtype: torch.dtype) -> Iterator[Launch]:
    """The three launches of a level, on tensors without memory."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    size, taps = (extent,) * 3, math.prod(KERNEL)
    features, offset = empty(BATCH, channels, *size), empty(BATCH, taps * 3, *size)
    call = Call(Arguments(features, offset, empty(channels, channels, *KERNEL), None, [1, 1, 1], [1, 1, 1], 1))
    yield call.forward(empty(channels), features)
    grad_table = torch.empty_like(call.table, dtype=torch.float32)
    yield call.gradient_by_samples(features, grad_table, offset, None, None)
    yield call.gradient_by_weight(features)


def count_kernel(launch: Launch, channels: int, extent: int, dtype: torch.dtype, capability: int) -> Counted:
    compiled = launch.compile(capability)
    used = resources(compiled)
    constants, arguments = launch.constants, launch.arguments
    taps, programs = math.prod(KERNEL), math.prod(launch.grid)
    by_channels = constants["C"] // constants["BLOCK_C"]
    by_outputs = constants["OUT"] // constants["BLOCK_OUT"]
    trips = {
        "forward": [taps, by_channels],
        "gradient_by_samples": [arguments.get("entries", 0), by_channels, by_outputs],
        "gradient_by_weight": [math.ceil(arguments.get("all_tiles", 0) / arguments.get("parts", 1))],
    }[launch.kernel]
    executed = instructions(compiled, trips)
    voxels = BATCH * extent**3

    def each(*names: str) -> float:
        """Instructions of these names, all of them without any, per voxel and tap."""
        number = sum(times for name, times in executed.items() if not names or name.startswith(names))
        return number * programs * launch.warps / (voxels * taps)

    counts = count(BATCH, channels, (extent,) * 3, KERNEL, 3, dtype.itemsize)
    scatters = launch.kernel == "gradient_by_samples"
    # every block of outputs gathers the samples again; channels that pad a row are gathered with it
    padded = constants["C"] / channels
    again = 1 if scatters else by_outputs
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    return Counted(
        level=f"{channels} @ {extent}^3",
        dtype=str(dtype).removeprefix("torch."),
        capability=capability,
        kernel=launch.kernel,
        programs=programs,
        warps=launch.warps,
        registers=used.registers,
        spilled_bytes=used.spilled,
        shared_bytes=used.shared,
        resident_warps=resident_warps(launch.warps, used.registers, used.shared, capability),
        instructions=each(),
        loads=each("LDG"),
        atomics=each("RED", "ATOM"),
        matrix=each("HMMA", "HGMMA"),
        barriers=each("BAR"),
        gathered_gb=counts["forward"].gathered_bytes * padded * again / 1e9,
        scattered_gb=counts["backward"].scattered_bytes * padded / 1e9 if scatters else 0.0,
        memory_gb=sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e9,
        matrix_gflop=counts["forward"].matrix_flops / 1e9,
    )


def resident_warps(warps: int, registers: int, shared: int, capability: int) -> int:
    """Warps that a multiprocessor holds at a time: registers are given out by 8 per thread, 1 KiB of shared is lost."""
    all_registers, all_shared, all_warps, all_programs = LIMITS[capability]
    by_registers = all_registers // (math.ceil(registers / 8) * 8 * 32 * warps)
    return warps * min(by_registers, all_shared // (shared + 1024), all_warps // warps, all_programs)


def row(entry: Counted) -> str:
    values: list[Any] = [
        entry.level,
        f"sm_{entry.capability}",
        entry.kernel,
        entry.registers,
        entry.spilled_bytes,
        f"{entry.shared_bytes / 1024:.0f}",
        entry.resident_warps,
        f"{entry.instructions:.0f}",
        f"{entry.loads:.2f}",
        f"{entry.atomics:.2f}",
        f"{entry.matrix:.2f}",
        f"{entry.barriers:.2f}",
        f"{entry.gathered_gb:.2f}",
        f"{entry.scattered_gb:.2f}",
        f"{entry.memory_gb:.2f}",
        f"{entry.matrix_gflop:.0f}",
    ]
    return f"| {' | '.join(map(str, values))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    arguments = parser.parse_args()
    arguments.load, arguments.device = load(), "cpu"
    levels = [*LEVELS, *((channels // REDUCTION, extent) for channels, extent in LEVELS)]
    counted = []
    for dtype, (channels, extent), capability in itertools.product([torch.float16, torch.bfloat16], levels, [80, 90]):
        for launch in launches(channels, extent, dtype):
            counted.append(count_kernel(launch, channels, extent, dtype, capability))
            print(counted[-1].dtype, row(counted[-1]), flush=True)
    table = []
    for dtype in ("float16", "bfloat16"):
        table += [f"{dtype}:", "", f"| {' | '.join(HEADINGS)} |", "|" + " --- |" * len(HEADINGS)]
        table += [*(row(entry) for entry in counted if entry.dtype == dtype), ""]
    write_report(
        "deform_conv",
        f"Kernels of deform_conv, compiled by triton {version('triton')} and counted in their machine code; nothing "
        f"was run or timed. Batch {BATCH}, kernel {' x '.join(map(str, KERNEL))}, offsets along all axes.",
        table[:-1],
        [asdict(entry) for entry in counted],
        arguments,
        [
            "Per thread: registers, spilled bytes. Per program: shared memory. Warps: that a multiprocessor holds.",
            "Instructions of a warp per output voxel and tap: all; loads from and atomic additions to global memory, "
            "of up to 16 bytes per thread (atomic ones of 4 on sm_80); matrix products; barriers. What stands in a "
            "loop is counted as often as the loop runs.",
            "Gathered: rows read through the caches, 8 per sample. Scattered: rows added to, in float32, in the "
            "second-level cache. Tensors: what a launch reads and writes if each is moved once.",
        ],
        suffix="kernels",
    )


if __name__ == "__main__":
    main()
