"""Speed and size of gzip's compressors and levels on the voxels of a CT: the conversion's default was chosen by it."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _measure import parse_cpu_arguments, write_report
from isal import isal_zlib

from nnunet_godc.conversion.dicom import open_series
from nnunet_godc.conversion.problems import CaseLog
from nnunet_godc.conversion.volumes import open_volume

REAL_CT = Path(__file__).parents[2] / "shared" / "data" / "abdomen_ct" / "dicom_series"
GZIP = 31  # window bits that ask for gzip's format
ROUNDS = 5


def compressors() -> dict[str, Callable[[], object]]:
    """By name, what makes a compressor; zlib-ng where it is installed."""
    found: dict[str, Callable[[], object]] = {}
    for level in range(4):
        found[f"ISA-L, level {level}"] = lambda level=level: isal_zlib.compressobj(level, wbits=GZIP)
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        print("zlib-ng is left out; pip install zlib-ng measures it too")
    else:
        for level in (1, 2, 3, 6):
            found[f"zlib-ng, level {level}"] = lambda level=level: zlib_ng.compressobj(level, zlib_ng.DEFLATED, GZIP)
    for level in (1, 6):
        found[f"zlib, level {level}"] = lambda level=level: zlib.compressobj(level, zlib.DEFLATED, GZIP)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, default=REAL_CT, help="a CT volume or DICOM folder, default: %(default)s")
    arguments = parse_cpu_arguments(parser)
    if not arguments.image.exists():
        sys.exit(f"{arguments.image} does not exist; name a CT with --image")
    source = open_series(arguments.image, CaseLog()) if arguments.image.is_dir() else open_volume(arguments.image)
    voxels = np.asfortranarray(source.read())
    data = voxels.ravel(order="F").tobytes()

    times: dict[str, list[float]] = {name: [] for name in compressors()}
    sizes: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, make in compressors().items():
            start = time.perf_counter()
            compressor = make()
            size = len(compressor.compress(data)) + len(compressor.flush())  # type: ignore[attr-defined]
            times[name].append(time.perf_counter() - start)
            sizes[name] = size / len(data)
    rows = []
    for name, seconds in times.items():
        first, median, third = statistics.quantiles([len(data) / 1e6 / s for s in seconds], n=4, method="inclusive")
        rows.append({"compressor": name, "mb_per_s": (median, first, third), "size": sizes[name]})
    write_report(
        "compression",
        f"A CT of {' x '.join(map(str, voxels.shape))} {voxels.dtype}; median [quartiles] of {ROUNDS} rounds in turn.",
        [
            "| compressor | MB/s | size, of the uncompressed |",
            "| --- | --- | --- |",
            *map(table_line, rows),
        ],
        rows,
        arguments,
        ["one core"],
    )


def table_line(row: dict[str, Any]) -> str:
    median, first, third = row["mb_per_s"]
    return f"| {row['compressor']} | {median:.0f} [{first:.0f}, {third:.0f}] | {row['size']:.3f} |"


if __name__ == "__main__":
    main()
