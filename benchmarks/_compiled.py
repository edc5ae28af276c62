"""What a kernel compiled by Triton consists of, read from its machine code; needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton


@dataclass(frozen=True)
class Resources:
    """Of one program: registers and spilled bytes per thread, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


def resources(kernel: Any) -> Resources:
    """Of Triton's CompiledKernel."""
    usage = _dump(kernel, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump -res-usage printed no resources: {usage!r}")
    registers, stack, local = map(int, found.groups())
    return Resources(registers, stack + local, kernel.metadata.shared)


def instructions(kernel: Any, trips: Sequence[int]) -> dict[str, int]:
    """How often a warp executes each instruction, by its name with all suffixes.

    Args:
        kernel: Triton's CompiledKernel.
        trips: how often the loops are run, the outermost first; those that are run once have been removed.
    """
    code = [
        (int(address, 16), re.sub(r"^@!?U?P\d+ ", "", text))
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", _dump(kernel, "-sass"))
    ]
    loops = []
    for address, text in code:
        target = re.match(r"BRA\b.* 0x([0-9a-f]+)", text)
        # the last instruction of each kernel is a branch to itself
        if target is not None and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    remaining = [trip for trip in trips if trip > 1]
    counts: dict[str, int] = {}
    for address, text in code:
        depth = sum(first <= address <= last for first, last in loops)
        if depth > len(remaining):
            raise ValueError(
                f"{kernel.metadata.name}: loops {depth} deep in the machine code, {len(remaining)} expected"
            )
        times = 1
        for trip in remaining[:depth]:
            times *= trip
        name = text.split()[0]
        counts[name] = counts.get(name, 0) + times
    return counts


def _dump(kernel: Any, option: str) -> str:
    """What the cuobjdump that Triton brings along prints of a kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        run = subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True)
    return run.stdout + run.stderr
