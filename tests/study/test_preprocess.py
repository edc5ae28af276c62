"""Preprocessing where it is still to be done, and never where a training may read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_godc.study.preprocess import preprocess

DATASET = "Dataset901_Tiny"
CASES = [f"case_{number}" for number in range(6)]


class Replaced(Exception):  # noqa: N818 it is no error that the process becomes another
    """In place of a process that becomes `nnUNetv2_preprocess`."""


@pytest.fixture
def dataset(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The preprocessed folder of a planned dataset of six cases; its plans share one folder of data."""

    def become(command: str, arguments: list[str]) -> None:
        raise Replaced(" ".join(arguments[1:]))

    monkeypatch.setattr("os.execv", become)
    monkeypatch.setattr("nnunet_godc.study.preprocess.find_command", lambda name: f"/bin/{name}")
    description = {"numTraining": 6, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}, "labels": {}}
    raw, folder = nnunet / "raw" / DATASET, nnunet / "preprocessed" / DATASET
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / part).mkdir()
        for case in CASES:
            (raw / part / f"{case}{ending}").touch()
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(description))
    plans: dict[str, Any] = {"configurations": {"3d_fullres": {"data_identifier": "shared", "architecture": {}}}}
    for name in ("nnUNetPlans", "nnUNetResEncUNetMPlans"):
        (folder / f"{name}.json").write_text(json.dumps(plans | {"plans_name": name}))
    return folder


def do_preprocessing(folder: Path, cases: list[str]) -> None:
    (folder / "shared").mkdir(exist_ok=True)
    (folder / "gt_segmentations").mkdir(exist_ok=True)
    for case in cases:
        (folder / "shared" / f"{case}.pkl").touch()
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()


def test_nnunet_preprocesses_what_is_missing(dataset: Path) -> None:
    with pytest.raises(Replaced, match="-d 901 -plans_name nnUNetPlans -c 3d_fullres -np 3 --no_pbar"):
        preprocess(DATASET, "nnUNetPlans", "3d_fullres", 3)


def test_data_that_is_there_is_left_for_other_plans_too(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    do_preprocessing(dataset, CASES)
    preprocess(DATASET, "nnUNetResEncUNetMPlans", "3d_fullres", 3)
    assert "holds all 6 cases already" in capsys.readouterr().out


def test_data_that_breaks_off_is_made_anew(dataset: Path) -> None:
    do_preprocessing(dataset, CASES[:-1])
    with pytest.raises(Replaced):
        preprocess(DATASET, "nnUNetPlans", "3d_fullres", 3)


def test_preprocessed_data_alone_is_enough(dataset: Path, nnunet: Path) -> None:
    do_preprocessing(dataset, CASES)
    (nnunet / "raw" / DATASET).rename(nnunet / "elsewhere")
    preprocess(DATASET, "nnUNetPlans", "3d_fullres", 3)


def test_folds_are_nnunets_own(dataset: Path) -> None:
    do_preprocessing(dataset, CASES)
    preprocess(DATASET, "nnUNetPlans", "3d_fullres", 3)
    assert json.loads((dataset / "splits_final.json").read_text()) == generate_crossval_split(CASES)


def test_folds_that_are_there_stay(dataset: Path) -> None:
    (dataset / "splits_final.json").write_text("[]")
    do_preprocessing(dataset, CASES)
    preprocess(DATASET, "nnUNetPlans", "3d_fullres", 3)
    assert (dataset / "splits_final.json").read_text() == "[]"


def test_a_configuration_that_nnunet_did_not_plan_is_told(dataset: Path) -> None:
    with pytest.raises(SystemExit, match="have no configuration 3d_lowres"):
        preprocess(DATASET, "nnUNetPlans", "3d_lowres", 3)
