"""`nnunet-godc explain`: the inside of stock, GODC and LFAM models, in 2D and 3D, through nnU-Net's own predictor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nnunet_godc.cli import main
from nnunet_godc.errors import UserError
from nnunet_godc.report.explain import explain
from nnunet_godc.report.inside import Explanation, inside_parts, read_explanation, write_explanation
from tests.cli.test_inspect import Executes
from tests.end_to_end.tiny_dataset import CASES, HELD_OUT
from tests.report.models import REGIONS, write_model, write_raw
from tests.training.conftest import DATASET

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder)
    return folder


@pytest.fixture(autouse=True)
def _folders(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.chdir(tmp_path)


def objects_of(found: Explanation, loss: str) -> pd.DataFrame:
    own = found.objects[found.objects["loss"] == loss]
    return own[own["reference_voxels"] > 0].reset_index(drop=True)


@pytest.mark.parametrize(("configuration", "samples"), [("2d", 32), ("3d_fullres", 32)])
@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerGODC", "nnUNetTrainerGODCLFAM"])
def test_autograd_on_the_models_output_agrees_with_the_theory(
    trainer: str, configuration: str, samples: int, tmp_path: Path
) -> None:
    found = explain(write_model(tmp_path, trainer, configuration), CASES[:2])
    assert len(found.objects) == samples * 2 * 4  # classes, losses
    assert set(found.objects["case"]) == set(CASES[:2])
    for loss in ("Dice", "batch Dice", "GODC", "GODC squared"):
        own = objects_of(found, loss)
        assert len(own) > 20
        np.testing.assert_allclose(own["gradient_inside"], own["theory_inside"], rtol=1e-4)
        np.testing.assert_allclose(own["gradient_outside"], own["theory_outside"], rtol=1e-3)
    godc = objects_of(found, "GODC")
    every = found.objects[found.objects["loss"] == "GODC"]
    np.testing.assert_allclose(every.groupby(["batch", "label"])["weight"].mean(), 1, rtol=1e-5)
    # the definition of "works": in a batch, the gradient per voxel does not depend on the size
    corrected = godc["gradient_inside"] * (1 + godc["iou"]) ** 2
    spread = corrected.groupby([godc["batch"], godc["label"]]).agg(lambda own: own.max() / own.min())
    np.testing.assert_allclose(spread, 1, rtol=1e-4)
    assert found.facts["lfam"] == ("LFAM" in trainer)
    assert len(found.offsets) == (2 if "LFAM" in trainer else 0)
    assert (found.facts["godc"] is None) == (trainer == "nnUNetTrainer")


def test_offsets_of_a_model_with_lfam(tmp_path: Path) -> None:
    cases = [*CASES[:2], HELD_OUT]
    found = explain(write_model(tmp_path, "nnUNetTrainerLFAM", "3d_fullres"), cases)
    assert list(found.offsets["level"]) == [0, 1]
    assert list(found.offsets["spacing_mm"]) == ["1 x 1 x 1", "2 x 2 x 2"]
    assert list(found.offsets["taps"]) == [9, 27]
    assert list(found.offsets["mean_mm"] / found.offsets["mean_voxels"]) == pytest.approx([1, 2])
    assert found.offsets["above_0.5"].between(0.1, 0.99).all()
    assert list(found.at_zero["case"]) == [case for case in cases for _ in range(2)]
    with_label = found.at_zero["case"] != HELD_OUT  # which lies in imagesTs, with its label in labelsTs
    assert found.at_zero.loc[with_label, "dice"].notna().all()
    assert (found.at_zero["agreement"].dropna() < 1).any()
    assert len(found.pictures) == len(cases)
    assert all(picture.startswith(b"\x89PNG") for picture in found.pictures.values())


def test_offsets_that_are_zero_change_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "nnUNetTrainerLFAM", "2d")
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    for name, weight in checkpoint["network_weights"].items():
        if ".offset." in name:
            weight.zero_()
    torch.save(checkpoint, path)
    found = explain(folder, CASES[:1])
    assert (found.offsets["mean_voxels"] == 0).all()
    assert (found.at_zero["dice"] == found.at_zero["dice_at_zero"]).all()
    assert (found.at_zero["agreement"].dropna() == 1).all()


def test_the_dice_is_that_of_nnunets_own_prediction(raw: Path, tmp_path: Path) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = write_model(tmp_path, "nnUNetTrainerLFAM", "3d_fullres")
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    image = raw / DATASET / "imagesTr" / f"{CASES[0]}_0000.nii.gz"
    predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / "predicted")])
    reference = raw / DATASET / "labelsTr" / f"{CASES[0]}.nii.gz"
    told = compute_metrics(str(reference), str(tmp_path / "predicted.nii.gz"), SimpleITKIO(), [1, 2])
    found = explain(folder, [str(image)])
    assert list(found.at_zero["dice"]) == [told["metrics"][label]["Dice"] for label in (1, 2)]


def test_regions_are_objects(tmp_path: Path) -> None:
    found = explain(write_model(tmp_path, "nnUNetTrainerGODC", "3d_fullres", REGIONS), CASES[:1])
    assert set(found.objects["label"]) == {"organ", "lesion"}
    own = objects_of(found, "GODC")
    np.testing.assert_allclose(own["gradient_inside"], own["theory_inside"], rtol=1e-4)
    sizes = own.pivot(index=["batch", "sample"], columns="label", values="reference_voxels").dropna()
    assert (sizes["organ"] > sizes["lesion"]).all()  # which holds the lesion


def test_the_weight_of_the_training_itself(tmp_path: Path) -> None:
    """A trainer with a running mean weighs with the one in its checkpoint."""
    state = {"running_union": torch.tensor([0.5, 0.25]), "batches_seen": torch.tensor(7)}
    folder = write_model(tmp_path, "nnUNetTrainerEvidenceGODCRunning", "2d", godc_state=state)
    own = objects_of(explain(folder, CASES[:1]), "GODC as trained")
    norm = own["label"].map({"organ": 0.5, "lesion": 0.25}) * 16 * 16
    np.testing.assert_allclose(own["weight"], own["union_voxels"] / norm, rtol=1e-5)
    np.testing.assert_allclose(own["gradient_inside"], own["theory_inside"], rtol=1e-4)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = explain(write_model(tmp_path, "nnUNetTrainerGODCLFAM", "2d"), CASES[:3])
    write_explanation(found, tmp_path / "out")
    again = read_explanation(tmp_path / "out")
    assert again.pictures == found.pictures
    for name in ("objects", "offsets", "at_zero"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), rtol=1e-5, check_dtype=False)
    titles = [chart.title for part in inside_parts(again, 0) for chart in part.charts]
    assert titles == [chart.title for part in inside_parts(found, 0) for chart in part.charts]
    assert len(set(titles)) == 4
    (tmp_path / "out" / "objects.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="run nnunet-godc explain again"):
        read_explanation(tmp_path / "out")


def test_the_command_writes_a_page_that_the_report_can_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path, "nnUNetTrainerGODCLFAM", "2d")
    assert main(["explain", str(model / "fold_0" / "checkpoint_final.pth"), CASES[0], "--out", "inside"]) == 0
    assert "open inside/index.html" in capsys.readouterr().out
    written = {path.name for path in Path("inside").iterdir()}
    pages = {"index.html", "plotly.min.js", "figures", "offsets-0.png"}
    assert written == {*pages, "explain.json", "objects.csv", "offsets.csv", "at_zero.csv"}
    page = Path("inside", "index.html").read_text()
    assert 'href="#inside"' in page
    assert 'href="#overview"' not in page
    facts = json.loads(Path("inside", "explain.json").read_text())
    assert (facts["trainer"], facts["fold"], facts["cases"]) == ("nnUNetTrainerGODCLFAM", "0", [CASES[0]])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["explain", *map(str, arguments), "--out", "out"]) == 1
    assert not Path("out").exists()
    return capsys.readouterr().err


def test_what_could_execute_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path, "nnUNetTrainer", "2d", extra=Executes())
    assert "which can execute code" in refused(capsys, model, CASES[0])
    assert not Path("executed").exists()


def test_mistakes_are_told(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path, "nnUNetTrainer", "2d")
    assert f"case tiny_9 is not in {DATASET} in nnUNet_raw" in refused(capsys, model, "tiny_9")
    assert "has no checkpoint" in refused(capsys, tmp_path, CASES[0])
    alone = tmp_path / "alone" / "checkpoint_final.pth"
    alone.parent.mkdir()
    alone.write_bytes((model / "fold_0" / "checkpoint_final.pth").read_bytes())
    assert "plans.json, dataset.json is missing" in refused(capsys, alone, CASES[0])
    cascade = write_model(tmp_path, "nnUNetTrainer", "3d_cascade_fullres")
    assert "second stage of a cascade" in refused(capsys, cascade, CASES[0])
    damaged = tmp_path / "images" / "bad_0000.nii.gz"
    damaged.parent.mkdir()
    damaged.write_bytes(b"nothing")
    assert "there is nothing to explain" in refused(capsys, model, damaged)
    lfam = write_model(tmp_path, "nnUNetTrainerLFAM", "2d")
    assert "case bad: nnU-Net cannot preprocess it" in refused(capsys, lfam, damaged)


def test_a_checkpoint_of_another_network_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path, "nnUNetTrainer", "2d")
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainerLFAM"}, path)
    assert "does not fit the network of nnUNetTrainerLFAM" in refused(capsys, model, CASES[0])
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainerOfSomeoneElse"}, path)
    assert "finds no trainer called nnUNetTrainerOfSomeoneElse" in refused(capsys, model, CASES[0])
