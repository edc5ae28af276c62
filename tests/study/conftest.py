"""Studies whose commands are small scripts, and study files in a workspace of nnU-Net's folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_godc.study.definition import Study, StudyConfig
from nnunet_godc.study.folder import write_jobs, write_json
from nnunet_godc.study.planning import jobs_of
from tests.study.workspace import Workspace, stand_ins_for

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
def study_folder(nnunet: Path) -> Callable[..., Path]:
    """Writes down a study of the one dataset, with further keys of its file, and returns its folder."""

    def write(name: str = "s", **keys: object) -> Path:
        folder = nnunet / "out"
        folder.mkdir()
        definition = StudyConfig.model_validate({"datasets": [901], **keys})
        folders = {name: str(nnunet / name) for name in ("raw", "preprocessed", "results")}
        study = Study(name=name, datasets=[DATASET], definition=definition, **folders)
        write_json(folder / "study.json", study.model_dump(by_alias=True))
        write_jobs(folder, jobs_of(study, folder))
        return folder

    return write


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a command on the search path that prints a text, for what a small cluster does not do."""
    commands = tmp_path / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def pretend(command: str, script: str) -> None:
        (commands / command).write_text(f"#!/bin/sh\n{script}\n")
        (commands / command).chmod(0o755)

    return pretend


@pytest.fixture
def workspace(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    return stand_ins_for(nnunet, monkeypatch)
