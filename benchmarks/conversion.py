"""Converting LiTS-sized volumes: against `cp`, and against the usual loop that reads and writes with SimpleITK.

Each case is converted by every candidate in turn, on one core, in this process. MB are of voxels as they lie in memory,
image and label together, whatever the files' sizes; the ratio is taken case by case. With ``--before CHECKOUT``,
another state of this project converts each case, too, in a process of its own that is started once.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK
from _measure import parse_cpu_arguments, write_report

from nnunet_godc.conversion.case import CaseSettings, CaseSource, convert_case
from nnunet_godc.conversion.dataset import PARTS
from nnunet_godc.conversion.geometry import Grid
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion.nifti import nifti_header, write_nifti

RULES = LabelMap(names={1: "liver", 2: "tumour"})
NOISE = 12.0  # Hounsfield units
SETTINGS = CaseSettings(RULES, label_grid="image")


@dataclass(frozen=True)
class Scenario:
    """Source files in one state, and the rivals that one would use there."""

    title: str
    axis_codes: str
    ending: str
    candidates: tuple[str, ...]
    cold: bool = False  # read from the disk, as a collection larger than the memory is


SCENARIOS = (
    Scenario("other orientation, .nii to .nii.gz", "RAS", ".nii", ("ours", "SimpleITK loop", "cp")),
    Scenario("right orientation, .nii", "LPS", ".nii", ("ours, linked", "ours, copied", "cp")),
    Scenario("right orientation, .nii, from disk", "LPS", ".nii", ("ours, linked", "ours, copied", "cp"), cold=True),
    Scenario("right orientation, .nii.gz", "LPS", ".nii.gz", ("ours, linked", "ours, copied", "cp")),
    Scenario(
        "right orientation, .nii.gz, from disk", "LPS", ".nii.gz", ("ours, linked", "ours, copied", "cp"), cold=True
    ),
)


def draw_volume(random: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A body in air with the noise of a scanner, which decides how well it compresses, and a liver with a tumour."""
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    radius = (x[:, None] / 0.8) ** 2 + (y[None, :] / 0.6) ** 2
    plane = np.where(radius < 1, 40.0, -1000.0).astype(np.float32)
    plane[(radius > 0.8) & (radius < 0.9)] = -100
    reconstructed = x[:, None] ** 2 + y[None, :] ** 2 < 1  # scanners leave the corners empty
    image = np.empty(shape, dtype=np.int16, order="F")
    label = np.zeros(shape, dtype=np.uint8, order="F")
    for k in range(shape[2]):
        white = random.standard_normal(shape[:2], dtype=np.float32)
        # Reconstruction correlates neighbours; with it, DEFLATE does as with a real scan: half the size at level 1.
        noise = (white + np.roll(white, 1, 0) + np.roll(white, 1, 1) + np.roll(white, (1, 1), (0, 1))) * (0.5 * NOISE)
        image[:, :, k] = np.where(reconstructed, np.clip(np.rint(plane + noise), -1024, 3071), -1024)
        liver = ((x[:, None] + 0.35) / 0.35) ** 2 + (y[None, :] / 0.45) ** 2 + (z[k] / 0.6) ** 2 < 1
        tumour = ((x[:, None] + 0.35) / 0.1) ** 2 + (y[None, :] / 0.1) ** 2 + (z[k] / 0.15) ** 2 < 1
        label[:, :, k] = np.where(tumour, 2, liver)
    return image, label


def write_sources(folder: Path, cases: int, shape: tuple[int, int, int], scenario: Scenario) -> list[CaseSource]:
    folder.mkdir()
    image, label = draw_volume(np.random.default_rng(0), shape)
    sign = 1.0 if scenario.axis_codes == "LPS" else -1.0
    direction = ((sign, 0.0, 0.0), (0.0, sign, 0.0), (0.0, 0.0, 1.0))
    grid = Grid(shape, (0.75, 0.75, 1.5), (11.0, 22.0, 33.0), direction)
    compression = 1 if scenario.ending.endswith(".gz") else None
    sources = []
    for number in range(cases):
        # Other voxels in every case at little cost: the same patient, moved along the scanner's axis.
        moved = np.roll(image, 7 * number, axis=2), np.roll(label, number, axis=2)
        paths = [folder / f"{part}-{number}{scenario.ending}" for part in ("volume", "segmentation")]
        for path, voxels in zip(paths, moved, strict=True):
            write_nifti(path, voxels, nifti_header(grid, voxels.dtype), compression=compression)
        sources.append(CaseSource(f"case_{number:03d}", paths[0], paths[1]))
    return sources


def ours(source: CaseSource, folder: Path, settings: CaseSettings) -> float:
    """Seconds of the processor, which other programs disturb less than those of the clock."""
    start = time.process_time()
    convert_case(source, settings, source.image.parent, folder)
    return time.process_time() - start


class Checkout:
    """Another state of this project, in a process that converts what it is told to."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._answer() == "ready"

    def convert(self, source: CaseSource, folder: Path, settings: CaseSettings) -> float:
        assert self._process.stdin is not None
        pickle.dump((source, folder, settings), self._process.stdin)
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()


def serve() -> None:
    """Convert as the other end of a `Checkout` says."""
    print("ready", flush=True)
    while True:
        try:
            seconds = ours(*pickle.load(sys.stdin.buffer))
        except EOFError:
            return
        print(seconds, flush=True)


def simpleitk_loop(source: CaseSource, folder: Path) -> None:
    for path, part in ((source.image, "imagesTr"), (source.label, "labelsTr")):
        image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
        SimpleITK.WriteImage(image, str(folder / part / f"{source.name}.nii.gz"))


def cp(source: CaseSource, folder: Path) -> None:
    subprocess.run(["cp", str(source.image), str(source.label), str(folder)], check=True)


def candidate(name: str, ending: str, before: Checkout | None) -> Callable[[CaseSource, Path], float | None]:
    if name == "SimpleITK loop":
        return simpleitk_loop
    if name == "cp":
        return cp
    settings = SETTINGS
    if name.endswith(("linked", "copied")):
        settings = replace(SETTINGS, file_ending=ending, link=name.endswith("linked"))
    convert = before.convert if before and name.startswith("before") else ours
    return lambda source, folder: convert(source, folder, settings)


def time_candidate(
    function: Callable[[CaseSource, Path], float | None], source: CaseSource, work: Path, *, cold: bool
) -> tuple[float, float]:
    """Seconds for one case into an empty folder; its sources lie in the page cache, or do not.

    Returns:
        Of the clock, and of the processor where that is known.
    """
    folder = Path(tempfile.mkdtemp(dir=work))
    for part in PARTS:
        (folder / part).mkdir()
    gc.collect()
    for path in (source.image, source.label):
        assert path is not None
        path.read_bytes()
        if cold:
            forget(path)
    start = time.perf_counter()
    of_processor = function(source, folder)
    elapsed = time.perf_counter() - start
    shutil.rmtree(folder)
    return elapsed, of_processor or 0.0


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(
    scenario: Scenario, sources: list[CaseSource], voxels_mb: float, work: Path, before: Checkout | None
) -> list[dict[str, object]]:
    earlier = [name.replace("ours", "before") for name in scenario.candidates if name.startswith("ours") and before]
    functions = {name: candidate(name, scenario.ending, before) for name in (*scenario.candidates, *earlier)}
    times: dict[str, list[float]] = {name: [] for name in functions}
    processor: dict[str, list[float]] = {name: [] for name in functions}
    for number, source in enumerate(sources):
        names = list(functions)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            function = functions[name]
            elapsed, of_processor = time_candidate(function, source, work, cold=scenario.cold)
            times[name].append(elapsed)
            processor[name].append(of_processor)
    rows = []
    for name, seconds in times.items():
        row: dict[str, object] = {
            "scenario": scenario.title,
            "candidate": name,
            "mb_per_s": quartiles([voxels_mb / s for s in seconds]),
            "seconds": seconds,
        }
        for rival in scenario.candidates:
            if name.startswith("ours") and not rival.startswith("ours"):
                ratios = [theirs / own for theirs, own in zip(times[rival], seconds, strict=True)]
                row[f"times as fast as {rival}"] = quartiles(ratios)
        if name.startswith("ours") and before:
            theirs = processor[name.replace("ours", "before")]
            ratios = [earlier / own for earlier, own in zip(theirs, processor[name], strict=True)]
            row["processor time before, as a multiple"] = quartiles(ratios)
        rows.append(row)
        print({key: value for key, value in row.items() if key != "seconds"}, flush=True)
    return rows


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return median, first, third


def worker_memory(source: CaseSource, settings: CaseSettings, work: Path) -> float:
    """Peak resident memory of a fresh process that converts one case, beyond its imports, in MB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(_peak_memory, (source, settings, work)))


def _peak_memory(source: CaseSource, settings: CaseSettings, work: Path) -> float:
    before = resident("VmRSS")
    time_candidate(lambda source, folder: ours(source, folder, settings), source, work, cold=False)
    return resident("VmHWM") - before


def resident(entry: str) -> float:
    """This process's resident memory in MB: now (VmRSS), or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(entry)).split()[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another state of this project, as a rival")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="folder for some 10 GB of temporary files, default: the system's")
    if "--serve" in sys.argv:
        return serve()
    arguments = parse_cpu_arguments(parser)
    before = Checkout(arguments.before) if arguments.before else None
    i, j, k = arguments.shape
    image_mb = i * j * k * 2 / 1e6
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        work = Path(temporary)
        for scenario in SCENARIOS:
            source = work / f"{scenario.axis_codes}{scenario.ending}"
            if not source.exists():
                sources = write_sources(source, arguments.cases, (i, j, k), scenario)
            measured = measure(scenario, sources, image_mb * 1.5, work, before)
            rows += measured
            settings = replace(SETTINGS, file_ending=".nii.gz" if scenario is SCENARIOS[0] else scenario.ending)
            memory = worker_memory(sources[0], settings, work)
            measured[0]["worker memory in image volumes"] = memory / image_mb
            print(f"{scenario.title}: a worker takes {memory:.0f} MB, {memory / image_mb:.2f} times the image's voxels")
    write_report(
        "conversion",
        f"{arguments.cases} volumes of {i} x {j} x {k} int16 with uint8 labels; median [quartiles] over the cases.",
        [
            "| source | candidate | MB/s | against SimpleITK | against cp | CPU time before | memory of a worker |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *map(table_line, rows),
        ],
        rows,
        arguments,
        ["one core; `ours` hashes every source file and reads every voxel of label and image"],
    )


def table_line(row: dict[str, object]) -> str:
    def cell(key: str, digits: int) -> str:
        if key not in row:
            return ""
        median, first, third = json.loads(json.dumps(row[key]))
        return f"{median:.{digits}f} [{first:.{digits}f}, {third:.{digits}f}]"

    memory = row.get("worker memory in image volumes")
    return (
        f"| {row['scenario']} | {row['candidate']} | {cell('mb_per_s', 0)} "
        f"| {cell('times as fast as SimpleITK loop', 1)} | {cell('times as fast as cp', 2)} "
        f"| {cell('processor time before, as a multiple', 2)} "
        f"| {f'{memory:.2f} image volumes' if memory is not None else ''} |"
    )


if __name__ == "__main__":
    sys.exit(main())
