"""The rehearsal of what runs on a GPU: on the CPU, with tiny sizes, where nnU-Net is not installed."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from _measure import COMMIT, Comparison

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# What a machine with a GPU that others look after need not have; it has PyTorch, Triton, numba and pytest.
MISSING = [
    "batchgenerators",
    "batchgeneratorsv2",
    "highdicom",
    "nibabel",
    "nnunetv2",
    "pydantic",
    "pydicom",
    "SimpleITK",
]
BARE_PYTHON = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec


class Hiding:  # not a function: pytest keeps it as an attribute of a class, where a function would become a method
    def __call__(self, name, path=None, target=None):
        return None if name in {missing} else find(name, path, target)


PathFinder.find_spec = Hiding()
"""


@pytest.fixture
def bare_python(tmp_path: Path):
    """Runs a script of the benchmarks where packages are missing; git, too."""

    def run(script: str, *options: str | Path, missing: list[str]) -> subprocess.CompletedProcess[str]:
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(BARE_PYTHON.format(missing=missing))
        environment = {**os.environ, "PYTHONPATH": str(site), COMMIT: "0123456789ab", "GIT_DIR": str(tmp_path)}
        return subprocess.run(
            [sys.executable, BENCHMARKS / script, *options], env=environment, capture_output=True, text=True
        )

    return run


@pytest.mark.slow
def test_everything_runs_and_what_lacks_a_package_is_left_out(bare_python, tmp_path: Path):
    out = tmp_path / "out"
    data = Path(__file__)  # exists
    finished = bare_python(
        "gpu.py", "--device", "cpu", "--tiny", "--minutes", "10", "--data", data, "--out", out, missing=MISSING
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "training_gpu.py: left out, nnunetv2 not installed." in finished.stdout
    assert " skipped" in finished.stdout  # the tests for a GPU were found
    results = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert set(results) == {"deform_conv-cpu", "loss-cpu", "training_step-cpu"}
    for result in results.values():
        assert result["environment"]["commit"] == "0123456789ab"
        assert not [note for note in result["notes"] if note.startswith("failed")]
    assert len(results["loss-cpu"]["measurements"]) == 6
    assert len(results["deform_conv-cpu"]["measurements"]) >= 12
    # on a slow machine time runs out before the last candidates; the first come first
    steps = {entry["name"]: entry for entry in results["training_step-cpu"]["measurements"]}
    for name, deforms in (("stock nnU-Net", False), ("LFAM, all skips", True)):
        entry = steps[name]
        assert entry["step_ms"]
        assert entry["prediction_ms"]
        assert (entry["parts_ms"]["deform_conv, backward"] > 0) == bool(entry["counts"]) == deforms


def test_a_missing_package_is_named_in_one_sentence(bare_python):
    finished = bare_python("training_step.py", missing=["dynamic_network_architectures"])
    assert finished.returncode == 1
    assert finished.stderr == (
        "training_step.py: dynamic_network_architectures is not installed in this Python; install it with pip.\n"
    )


def test_a_candidate_that_fails_costs_no_other_and_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 TiB")

    comparison = Comparison("test", Namespace(device="cpu", out=tmp_path, load="0", tiny=False))
    comparison.measure("first", {"a": lambda: torch.zeros(1), "b": fail, "c": lambda: torch.zeros(1)}, seconds=0)

    def interrupt() -> None:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        comparison.measure("second", {"d": interrupt}, seconds=0)
    written = json.loads((tmp_path / "test-cpu.json").read_text())
    kept = [(entry["case"], entry["candidate"], entry["rounds"]) for entry in written["measurements"]]
    assert kept == [("first", "a", 5), ("first", "c", 5), ("second", "d", 3)]
    assert written["notes"] == ["failed: first, b (RuntimeError: CUDA out of memory.)"]
    assert comparison.finish() == 1
    assert "Tried to allocate 2 TiB" in capsys.readouterr().err
