"""Plans under a name of their own; preprocessing where it is still to be done, and never where a training may read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_godc.errors import UserError
from nnunet_godc.study.steps import main, preprocess

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
    monkeypatch.setattr("nnunet_godc.study.steps.find_command", lambda name: f"/bin/{name}")
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
    with pytest.raises(UserError, match="have no configuration 3d_lowres"):
        preprocess(DATASET, "nnUNetPlans", "3d_lowres", 3)


SIZES = {"patch_size": [8, 8, 8], "features": 4, "stages": 2}


@pytest.fixture
def plans_file(tmp_path: Path) -> Path:
    """Plans of a U-Net with three stages."""
    network = {
        "n_stages": 3,
        "features_per_stage": [32, 64, 128],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    configuration = {"patch_size": [32, 32, 32], "batch_size": 9, "architecture": {"arch_kwargs": network}}
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}))
    return path


def vary(plans_file: Path, **sizes: Any) -> int:
    return main(["vary", str(plans_file), "Small", json.dumps(SIZES | sizes)])


def test_a_variation_has_its_own_name_and_sizes(plans_file: Path) -> None:
    before = plans_file.read_text()
    assert vary(plans_file) == 0
    varied = json.loads((plans_file.parent / "Small.json").read_text())
    assert varied["plans_name"] == "Small"
    assert varied["configurations"]["3d_fullres"]["patch_size"] == [8, 8, 8]
    assert varied["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8]
    assert plans_file.read_text() == before


def test_making_it_again_changes_nothing(plans_file: Path) -> None:
    assert vary(plans_file) == vary(plans_file) == 0


def test_other_plans_of_that_name_are_not_replaced(plans_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vary(plans_file)
    before = (plans_file.parent / "Small.json").read_text()
    assert vary(plans_file, features=8) == 1
    assert "give the variation another name" in capsys.readouterr().err
    assert (plans_file.parent / "Small.json").read_text() == before


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [({"stages": 4}, "4 stages asked for"), ({"patch_size": [8, 8, 9]}, "must be a multiple of the stride 2")],
)
def test_what_cannot_be_made_is_told(
    plans_file: Path, capsys: pytest.CaptureFixture[str], sizes: dict[str, Any], problem: str
) -> None:
    assert vary(plans_file, **sizes) == 1
    assert problem in capsys.readouterr().err
    assert not (plans_file.parent / "Small.json").exists()


def test_plans_of_another_network_cannot_be_varied(plans_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plans_file.read_text().replace("n_conv_per_stage", "n_blocks_per_stage")
    plans_file.write_text(text)
    assert vary(plans_file) == 1
    assert "only plans of a plain U-Net can be varied" in capsys.readouterr().err


def test_missing_plans_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vary(tmp_path / "nnUNetPlans.json") == 1
    assert "plan the dataset first" in capsys.readouterr().err
