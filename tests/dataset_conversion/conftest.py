"""Collections converted by the command that users run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nnunet_godc import cli


@dataclass
class Conversion:
    """What ``nnunet-godc convert`` did.

    Attributes:
        status: its exit status.
        out, err: what it printed.
        folder: the dataset's; it exists only if something was converted.
    """

    status: int
    out: str
    err: str
    folder: Path

    @property
    def cases(self) -> dict[str, Any]:
        """The cases of conversion.json, by name."""
        cases: dict[str, Any] = self.json("conversion.json")["cases"]
        return cases

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def image(self, case: str) -> Path:
        return self._path("images", f"{case}_0000")

    def label(self, case: str) -> Path:
        return self._path("labels", case)

    def _path(self, kind: str, stem: str) -> Path:
        found = [path for part in ("Tr", "Ts") for path in (self.folder / f"{kind}{part}").glob(f"{stem}.nii*")]
        assert len(found) == 1, f"{stem}: {found}"
        return found[0]


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs ``nnunet-godc convert WHAT -i SOURCE OPTIONS`` in this process; the dataset goes to ``tmp_path/raw``."""
    raw = tmp_path / "raw"
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)

    def run(what: str, source: Path, *options: str | Path) -> Conversion:
        capsys.readouterr()
        status = cli.main(["convert", what, "-i", str(source), "-np", "0", *map(str, options)])
        printed = capsys.readouterr()
        folders = sorted(raw.glob("Dataset*"), key=lambda folder: folder.stat().st_mtime)
        return Conversion(status, printed.out, printed.err, folders[-1] if folders else raw / "none")

    return run


@pytest.fixture
def run_script() -> Callable[..., str]:
    """Runs a script of dataset_conversion in a process of its own and returns what it printed."""

    def run(name: str, *arguments: str | Path) -> str:
        script = Path(__file__).parents[2] / "dataset_conversion" / f"{name}.py"
        finished = subprocess.run(
            [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run
