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


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"pytorch_training.py", "monai_training.py"}
