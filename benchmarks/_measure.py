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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], object]


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
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch on the CPU (default: 2)")
    _add_out(parser)
    if add_options is None:
        parser.add_argument("--seconds", type=float, default=12.0, help="time per case, all candidates together")
    else:
        add_options(parser)
    arguments = parser.parse_args()
    check_device(parser, arguments.device, "leave the option out for the CPU")
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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")


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


def compare(case: str, candidates: dict[str, Step], device: torch.device, seconds: float) -> list[Measurement]:
    """Times the candidates in turn, round after round, so that whatever disturbs the machine meets all of them.

    There are 5 to 100 rounds, as many as fit into the time, after one round that is not counted and one for memory.
    """
    for step in candidates.values():
        step()
    memory = {name: peak_memory_mib(step, device) for name, step in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    for done in range(100):
        if done >= 5 and time.perf_counter() > end:
            break
        for name, step in candidates.items():
            times[name].append(time_ms(step, device))
    measurements = []
    for name, entries in times.items():
        quartile_1, median, quartile_3 = quartiles(entries)
        measurements.append(Measurement(case, name, median, quartile_1, quartile_3, len(entries), memory[name]))
        print(f"{case}  {name}: {_milliseconds(measurements[-1])} ms, {memory[name]:.1f} MiB", flush=True)
    return measurements


def write_results(name: str, measurements: list[Measurement], arguments: argparse.Namespace, notes: list[str]) -> None:
    """Writes NAME-DEVICE.json and, as a Markdown table, NAME-DEVICE.md."""
    write_report(
        name,
        "Median [quartiles] of interleaved rounds; peak memory beyond inputs and parameters.",
        [
            "| input | candidate | time in ms | memory in MiB |",
            "| --- | --- | --- | --- |",
            *(
                f"| {entry.case} | {entry.candidate} | {_milliseconds(entry)} | {entry.peak_memory_mib:.1f} |"
                for entry in measurements
            ),
        ],
        [asdict(entry) for entry in measurements],
        arguments,
        notes,
    )


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
    device = torch.device(arguments.device)
    environment = {**_environment(device), "load before": arguments.load}
    stem = f"{name}-{suffix or device.type}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment, "notes": notes, "measurements": measurements}
    (arguments.out / f"{stem}.json").write_text(json.dumps(content, indent=2) + "\n")

    lines = [
        introduction,
        "",
        *(f"- {key}: {value}" for key, value in environment.items()),
        *(f"- {note}" for note in notes),
        "",
        *table,
    ]
    (arguments.out / f"{stem}.md").write_text("\n".join(lines) + "\n")
    print(f"Written: {arguments.out / stem}.json and .md")


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


def _environment(device: torch.device) -> dict[str, str]:
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
        return "unknown"
    return described.stdout.strip()
