"""What the benchmarks share: interleaved timing, peak memory, and writing results with where they come from."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], object]

COMMIT = "NNUNET_GODC_COMMIT"  # environment variable that names the commit where the code lies without git
FEWEST_ROUNDS, MOST_ROUNDS = 5, 100
RESULTS = Path(__file__).parent / "results"
TINY = "tiny sizes, to try the script: these are no measurements"


@dataclass(frozen=True)
class Measurement:
    """One candidate on one input; times in milliseconds, memory in MiB above what was allocated before the step."""

    case: str
    candidate: str
    median_ms: float
    quartile_1_ms: float
    quartile_3_ms: float
    rounds: int
    peak_memory_mib: float


def parse_arguments(
    description: str | None, add_options: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, cuda:1, ...")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script: these are no measurements")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch on the CPU (default: 2)")
    _add_out(parser)
    if add_options is None:
        parser.add_argument("--seconds", type=float, default=12.0, help="time per case, all candidates together")
    else:
        add_options(parser)
    arguments = parser.parse_args()
    check_device(parser, arguments.device, "leave the option out for the CPU")
    if arguments.tiny and arguments.out == RESULTS:
        parser.error("--tiny measures nothing: name another folder for what it writes with --out.")
    torch.set_num_threads(arguments.threads)
    # before the benchmark itself puts load on the machine
    arguments.load = load()
    return arguments


def parse_cpu_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Of a benchmark that runs on the CPU alone: its own options and the folder for the results."""
    _add_out(parser)
    arguments = parser.parse_args()
    arguments.device, arguments.load = "cpu", load()
    return arguments


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")


def check_device(parser: argparse.ArgumentParser, device: str, remedy: str) -> None:
    """Ends the program with a sentence if the device is a GPU and there is none."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {device}: PyTorch sees no CUDA device here; {remedy}.")


def load() -> str:
    """Processes that want to run, averaged over the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def forward_backward(function: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Step:
    """A step that runs a function and differentiates the sum of its result by the leaves."""

    def step() -> None:
        torch.autograd.grad(function().sum(), leaves)

    return step


class Comparison:
    """What is measured case by case, written after every round: a run that is cut off keeps what it has.

    Args:
        name: of the results, NAME-DEVICE.json and, as a Markdown table, NAME-DEVICE.md.
        arguments: as `parse_arguments` returns them.
        notes: for the results.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, notes: Sequence[str] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.notes = [*notes, *([TINY] if arguments.tiny else [])]
        self.measurements: list[Measurement] = []
        self.failed: list[str] = []

    def measure(self, case: str, candidates: dict[str, Step], seconds: float) -> None:
        """Times the candidates in turn, round after round, so that whatever disturbs the machine meets all of them.

        There are 5 to 100 rounds, as many as fit into the time, after one round that is not counted and one for memory.
        A candidate that fails, for want of memory say, is left out of the case and named in the results.
        """
        memory = {name: self._warm_up(case, name, step) for name, step in candidates.items()}
        running = {name: step for name, step in candidates.items() if memory[name] is not None}
        times: dict[str, list[float]] = {name: [] for name in running}
        before = list(self.measurements)
        end = time.perf_counter() + seconds
        for done in range(MOST_ROUNDS):
            if done >= FEWEST_ROUNDS and time.perf_counter() > end:
                break
            for name, step in running.items():
                times[name].append(time_ms(step, self.device))
            if done > 0:  # quartiles need two
                self.measurements = before + [
                    _measurement(case, name, entries, memory[name] or 0.0) for name, entries in times.items()
                ]
                self.write()
        for entry in self.measurements[len(before) :]:
            print(f"{case}  {entry.candidate}: {_milliseconds(entry)} ms, {entry.peak_memory_mib:.1f} MiB", flush=True)

    def fail(self, what: str, error: Exception) -> None:
        """Notes a failure, of which the others are measured nevertheless."""
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        self.failed.append(f"failed: {what} ({reason})")
        self.write()

    def write(self) -> None:
        save_report(
            self.name,
            "Median [quartiles] of interleaved rounds; peak memory beyond inputs and parameters.",
            [
                "| input | candidate | time in ms | memory in MiB |",
                "| --- | --- | --- | --- |",
                *(
                    f"| {entry.case} | {entry.candidate} | {_milliseconds(entry)} | {entry.peak_memory_mib:.1f} |"
                    for entry in self.measurements
                ),
            ],
            [asdict(entry) for entry in self.measurements],
            self.arguments,
            [*self.notes, *self.failed],
        )

    def finish(self) -> int:
        """Says where the results are; the exit status."""
        self.write()
        print(f"Written: {self.arguments.out / stem(self.name, self.arguments)}.json and .md")
        return 1 if self.failed else 0

    def _warm_up(self, case: str, name: str, step: Step) -> float | None:
        """Peak memory of a candidate, or None if it cannot run."""
        try:
            step()
            return peak_memory_mib(step, self.device)
        except Exception as error:  # of a compiler, a rival or the GPU's memory
            self.fail(f"{case}, {name}", error)
            return None


def _measurement(case: str, candidate: str, times: Sequence[float], memory: float) -> Measurement:
    quartile_1, median, quartile_3 = quartiles(times)
    return Measurement(case, candidate, median, quartile_1, quartile_3, len(times), memory)


def write_report(
    name: str,
    introduction: str,
    table: list[str],
    measurements: list[dict[str, Any]],
    arguments: argparse.Namespace,
    notes: list[str],
    suffix: str | None = None,
) -> None:
    """Writes the measurements to NAME-DEVICE.json, and the introduction and the table's lines to NAME-DEVICE.md.

    With a suffix, to NAME-SUFFIX: for what is counted and belongs to no device.
    """
    save_report(name, introduction, table, measurements, arguments, notes, suffix)
    print(f"Written: {arguments.out / stem(name, arguments, suffix)}.json and .md")


def save_report(
    name: str,
    introduction: str,
    table: list[str],
    measurements: list[dict[str, Any]],
    arguments: argparse.Namespace,
    notes: list[str],
    suffix: str | None = None,
) -> None:
    """`write_report` for what is not all yet: says nothing."""
    environment = {**_environment(arguments.device), "load before": arguments.load}
    path = arguments.out / stem(name, arguments, suffix)
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment, "notes": notes, "measurements": measurements}
    path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")

    lines = [
        introduction,
        "",
        *(f"- {key}: {value}" for key, value in environment.items()),
        *(f"- {note}" for note in notes),
        "",
        *table,
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def stem(name: str, arguments: argparse.Namespace, suffix: str | None = None) -> str:
    """Of the names of a benchmark's results."""
    return f"{name}-{suffix or torch.device(arguments.device).type}"


def _milliseconds(entry: Measurement) -> str:
    return f"{entry.median_ms:.2f} [{entry.quartile_1_ms:.2f}, {entry.quartile_3_ms:.2f}]"


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return first, median, third


def time_ms(step: Step, device: torch.device) -> float:
    """Time of one call, the device's work included."""
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    return (time.perf_counter() - start) * 1e3


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_mib(step: Step, device: torch.device) -> float:
    """Most memory that one call held at once beyond what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    # PyTorch keeps no peak for the CPU; its profiler lists every allocation, and logs that it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocations = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    allocated = peak = 0
    for event in allocations:
        allocated += event["args"]["Bytes"]
        peak = max(peak, allocated)
    return peak / 2**20


@cache
def _environment(device_name: str) -> dict[str, str]:
    device = torch.device(device_name)
    environment = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        environment["gpu"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    for package in ("torch", "torchvision", "triton", "tvdcn", "nnunetv2", "nnunet-godc"):
        try:
            environment[package] = version(package)
        except PackageNotFoundError:
            environment[package] = "not installed"
    environment["commit"] = _commit()
    return environment


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT, f"unknown: no git here, and {COMMIT} is not set")
    return described.stdout.strip()
