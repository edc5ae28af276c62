"""The example scripts run, and what they train learns."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("script", "options", "needs"),
    [
        ("pytorch_training.py", ["--steps", "60"], None),
        ("monai_training.py", ["--epochs", "8", "--cases", "12"], "monai"),
    ],
)
def test_examples_learn(script: str, options: list[str], needs: str | None) -> None:
    if needs is not None:
        pytest.importorskip(needs, reason="an extra: pip install 'nnunet-godc[comparison]'")
    run = subprocess.run([sys.executable, EXAMPLES / script, *options], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    dice = re.search(r"^Dice on .*: (\d\.\d+)$", run.stdout, re.MULTILINE)
    assert dice is not None, run.stdout
    assert float(dice[1]) > 0.7


def test_the_operation_finds_the_vector() -> None:
    run = subprocess.run([sys.executable, EXAMPLES / "deform_conv.py"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    error = re.search(r"^largest error: (\d\.\d+) voxels$", run.stdout, re.MULTILINE)
    assert error is not None, run.stdout
    assert float(error[1]) < 0.02


def test_a_collection_becomes_a_comparison(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "convert_and_evaluate.py", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert "The trained MovedByTwo is" in run.stdout
    assert "lower in Dice" in run.stdout
    assert (tmp_path / "evaluation" / "report.md").is_file()


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "convert_and_evaluate.py",
        "deform_conv.py",
        "monai_training.py",
        "pytorch_training.py",
    }
