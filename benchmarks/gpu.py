"""Everything on a GPU in one command and a given time: the tests for GPUs, then all that is measured there.

Runs from a checkout; nnunet_godc need not be installed. What lacks a package or data is left out and named. On a
machine without a GPU, `--device cpu --tiny --out FOLDER` rehearses it in a few minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
HIPPOCAMPUS = HERE.parents[1] / "shared" / "data" / "hippocampus"


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: for people.
        share: of the time.
        command: after the Python.
        packages: that it needs beside PyTorch.
        data: that it needs.
    """

    name: str
    share: float
    command: list[str]
    packages: tuple[str, ...] = ()
    data: Path | None = None

    def lacks(self) -> str | None:
        """What keeps it from running."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            return f"{' and '.join(missing)} not installed"
        return f"no {self.data}; name the data with --data" if self.data and not self.data.exists() else None


def stages(arguments: argparse.Namespace) -> list[Stage]:
    """In the order of importance."""
    tiny = ["--tiny"] if arguments.tiny else []

    def script(name: str, share: float, *options: str, **needs: object) -> Stage:
        command = [str(HERE / name), "--device", arguments.device, "--out", str(arguments.out), *options]
        return Stage(name, share, command, **needs)  # type: ignore[arg-type]

    def seconds(share: float, comparisons: int) -> list[str]:
        """For each of so many comparisons; as long again for compiling, warming up and slow candidates."""
        return ["--seconds", f"{60 * arguments.minutes * share / comparisons / 2:.1f}"]

    def minutes(share: float) -> list[str]:
        return ["--minutes", f"{arguments.minutes * share:.2f}"]

    in_parallel = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    tests = ["-m", "pytest", "-m", "gpu", "-q", *in_parallel, str(HERE.parent / "tests")]
    smoke = ["--narrow", "--configurations", "3d_fullres", "--trainers", "nnUNetTrainerGODCLFAM", "--iterations", "2"]
    return [
        Stage("tests", 0.25, tests, ("pytest",)),
        script("deform_conv.py", 0.12, *seconds(0.12, 14), *tiny),
        script("loss.py", 0.1, *seconds(0.1, 2), *tiny),
        script("training_step.py", 0.3, *minutes(0.3), *tiny, packages=("dynamic_network_architectures",)),
        script(
            "training_gpu.py",
            0.23,
            *["--data", str(arguments.data), *minutes(0.23)],
            *([*smoke, "--cases", "8"] if arguments.tiny else []),
            packages=("nnunetv2",),
            data=arguments.data,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, ...; cpu together with --tiny")
    parser.add_argument("--minutes", type=float, default=25.0, help="time for all of it, about (default: 25)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the scripts: these are no measurements")
    parser.add_argument("--data", type=Path, default=HIPPOCAMPUS, help="folder of the Decathlon's hippocampus task")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu: add --tiny; what is measured on the CPU, `make bench` measures.")
    failed = []
    for stage in stages(arguments):
        lacking = stage.lacks()
        if lacking is not None:
            print(f"{stage.name}: left out, {lacking}.", flush=True)
            continue
        print(f"{stage.name}:", flush=True)
        # each keeps to its time; this ends one that hangs
        limit = 60 * (2 * stage.share * arguments.minutes + 5)
        try:
            finished = subprocess.run([sys.executable, *stage.command], cwd=HERE.parent, timeout=limit)
        except subprocess.TimeoutExpired:
            failed.append(f"{stage.name} (ended after {limit / 60:.0f} minutes)")
        else:
            if finished.returncode:
                failed.append(stage.name)
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
