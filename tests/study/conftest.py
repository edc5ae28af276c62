"""Studies whose commands are small scripts, and study files in a workspace of nnU-Net's folders."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

DATASET = "Dataset901_Tiny"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue looks at its jobs all the time, as these take no time themselves."""
    monkeypatch.setattr("nnunet_godc.study.local.SECONDS_BETWEEN_LOOKS", 0.02)


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nnU-Net's three, in which there is one raw dataset."""
    for name in ("raw", "preprocessed", "results"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(folder))
    dataset = tmp_path / "raw" / DATASET
    dataset.mkdir()
    (dataset / "dataset.json").write_text(json.dumps({"numTraining": 5, "file_ending": ".nii.gz"}))
    return tmp_path


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a study file with the given text."""

    def write(text: str) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Waits for a condition, half a minute at most: the machine may be busy."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return wait
