"""What `make` says where it cannot set up its environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make_with(python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "pyproject.toml", "setup.py", "nnunet_godc.pth", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--silent", "lint", f"PYTHON={python}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that starts by running the sitecustomize.py beside it, where a test can handicap it."""
    script = tmp_path / "bin" / "python3"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{script.parent}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("handicap", "sentence"),
    [
        (
            "sys.version_info = (3, 9, 18)",
            "is too old: name a Python 3.10 to 3.13, as in 'make test PYTHON=python3.11'.",
        ),
        ("sys.modules['ensurepip'] = None", "cannot make virtual environments: install its venv module"),
    ],
)
def test_unfit_python_is_refused_in_one_sentence(tmp_path: Path, python: Path, handicap: str, sentence: str):
    (python.parent / "sitecustomize.py").write_text(f"import sys; {handicap}\n")
    finished = make_with(python, tmp_path)
    assert finished.returncode != 0
    words = [line for line in finished.stderr.splitlines() if not line.startswith("make")]
    assert len(words) == 1
    assert sentence in words[0]
    assert not (tmp_path / ".venv").exists()


def test_missing_python_is_told_in_one_sentence(tmp_path: Path):
    finished = make_with(tmp_path / "no-such-python", tmp_path)
    assert finished.returncode != 0
    assert f"{tmp_path / 'no-such-python'} is not to be found: install Python 3.10 to 3.13" in finished.stderr
