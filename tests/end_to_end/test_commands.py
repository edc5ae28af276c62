"""Every command of nnU-Net that handles a trained model, with our trainers, on volumes of a few thousand voxels."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from tests.end_to_end.tiny_dataset import DATASET, HELD_OUT, PLANS, SPLITS, narrow

pytestmark = pytest.mark.slow

RESENC_PLANS = "nnUNetResEncUNetMPlans"
STOCK = "nnUNetTrainerTiny"
OURS = "nnUNetTrainerGODCLFAMTiny"

USERS_TRAINERS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.trainers import nnUNetTrainerGODCLFAM, nnUNetTrainerGODCLFAMGuided, nnUNetTrainerGODCLFAMShared
from nnunet_godc.training import ScheduleMixin


class Tiny(ScheduleMixin):
    epochs = 1
    iterations_per_epoch = 2
    validation_iterations_per_epoch = 1


class nnUNetTrainerTiny(Tiny, nnUNetTrainer):
    pass


class nnUNetTrainerGODCLFAMTiny(Tiny, nnUNetTrainerGODCLFAM):
    pass


class nnUNetTrainerGODCLFAMSharedTiny(Tiny, nnUNetTrainerGODCLFAMShared):
    pass


class nnUNetTrainerGODCLFAMGuidedTiny(Tiny, nnUNetTrainerGODCLFAMGuided):
    pass


class nnUNetTrainerGODCLFAMFrozen(Tiny, nnUNetTrainerGODCLFAM):
    def initialize(self):
        self.initial_lr = 0.0
        super().initialize()
"""


def cross_validate(workspace: Any, configuration: str, trainer: str) -> list[Path]:
    return [workspace.train(DATASET, configuration, fold, trainer, PLANS, "--npz") for fold in (0, 1)]


def options(trainer: str, configuration: str, plans: str = PLANS) -> list[str]:
    return ["-d", DATASET, "-tr", trainer, "-c", configuration, "-p", plans]


def probabilities(folder: Path, case: str = HELD_OUT) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.load(folder / f"{case}.npz") as file:
        values: np.ndarray[Any, np.dtype[np.float32]] = file["probabilities"]
    np.testing.assert_allclose(values.sum(0), 1, atol=1e-3)
    return values


def labels(file: Path) -> np.ndarray[Any, Any]:
    return np.asanyarray(nibabel.load(file).dataobj)


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_training_leaves_a_checkpoint_and_a_scored_validation(workspace: Any, configuration: str) -> None:
    for fold, folder in enumerate(cross_validate(workspace, configuration, OURS)):
        assert (folder / "checkpoint_final.pth").is_file()
        scores = json.loads((folder / "validation" / "summary.json").read_text())["metric_per_case"]
        validated = sorted(Path(score["prediction_file"]).name.removesuffix(".nii.gz") for score in scores)
        assert validated == SPLITS[fold]["val"]
        for case in validated:
            probabilities(folder / "validation", case)
        log = next(folder.glob("training_log_*.txt")).read_text()
        assert "GODC in the place of the Dice term" in log
        assert "LFAM on " in log


def test_validation_alone_repeats_what_training_ended_with(workspace: Any) -> None:
    folder = cross_validate(workspace, "2d", OURS)[1] / "validation"
    before = {case: probabilities(folder, case) for case in SPLITS[1]["val"]}
    shutil.rmtree(folder)
    workspace.run(
        *("nnUNetv2_train", DATASET, "2d", "1", "-tr", OURS, "-p", PLANS, "-device", "cpu", "--val", "--npz"),
    )
    assert (folder / "summary.json").is_file()
    for case, expected in before.items():
        np.testing.assert_allclose(probabilities(folder, case), expected, atol=1e-3)


def test_a_trained_model_is_explained(workspace: Any, tmp_path: Path) -> None:
    model = cross_validate(workspace, "2d", OURS)[0].parent
    workspace.run("nnunet-godc", "explain", model, SPLITS[0]["val"][0], "--out", tmp_path / "inside")
    facts = json.loads((tmp_path / "inside" / "explain.json").read_text())
    assert (facts["trainer"], facts["epochs"], facts["lfam"]) == (OURS, 1, True)
    for name in ("objects", "offsets", "at_zero"):
        assert len((tmp_path / "inside" / f"{name}.csv").read_text().splitlines()) > 2


def test_an_ensemble_averages_what_two_configurations_predict(workspace: Any, images: Path, tmp_path: Path) -> None:
    members = []
    for configuration in ("3d_fullres", "2d"):
        cross_validate(workspace, configuration, OURS)
        members.append(
            workspace.predict(
                images,
                tmp_path / configuration,
                *options(OURS, configuration),
                "--save_probabilities",
                folds=(0, 1),
            )
        )
    workspace.run("nnUNetv2_ensemble", "-i", *members, "-o", tmp_path / "ensemble", "-np", "1")
    mean = np.mean([probabilities(member) for member in members], axis=0)
    # nnU-Net's arrays run from the last axis of the image to its first
    expected = mean.argmax(0).transpose()
    assert (labels(tmp_path / "ensemble" / f"{HELD_OUT}.nii.gz") == expected).mean() > 0.999


def test_the_best_of_two_trainers_is_found(workspace: Any) -> None:
    for trainer in (STOCK, OURS):
        cross_validate(workspace, "3d_fullres", trainer)
    workspace.run(
        *("nnUNetv2_find_best_configuration", DATASET, "-tr", STOCK, OURS, "-c", "3d_fullres", "-f", "0", "1"),
        *("-np", "1"),
    )
    found = json.loads((workspace.results / DATASET / "inference_information.json").read_text())
    names = [f"{trainer}__{PLANS}__3d_fullres" for trainer in (STOCK, OURS)]
    assert set(found["all_results"]) == {*names, f"ensemble___{names[0]}___{names[1]}___0_1"}
    best = found["best_model_or_ensemble"]
    assert best["result_on_crossval_pre_pp"] == max(found["all_results"].values())
    assert {model["trainer"] for model in best["selected_model_or_models"]} <= {STOCK, OURS}


def test_an_exported_model_predicts_the_same_where_it_is_imported(workspace: Any, images: Path, tmp_path: Path) -> None:
    cross_validate(workspace, "3d_fullres", OURS)
    archive = tmp_path / "model.zip"
    workspace.run("nnUNetv2_export_model_to_zip", *options(OURS, "3d_fullres"), "-o", archive, "-f", "0")
    elsewhere = tmp_path / "nnUNet_results"
    elsewhere.mkdir()
    workspace.run("nnUNetv2_install_pretrained_model_from_zip", archive, results=elsewhere)
    here, there = (
        workspace.predict(
            images, tmp_path / name, *options(OURS, "3d_fullres"), "--save_probabilities", results=results
        )
        for name, results in (("here", workspace.results), ("there", elsewhere))
    )
    np.testing.assert_allclose(probabilities(there), probabilities(here), atol=1e-6)
    np.testing.assert_array_equal(labels(there / f"{HELD_OUT}.nii.gz"), labels(here / f"{HELD_OUT}.nii.gz"))


def test_residual_encoder_plans(
    workspace: Any, images: Path, tmp_path: Path, read_checkpoint: Callable[[Path], dict[str, Any]]
) -> None:
    workspace.run("nnUNetv2_plan_experiment", "-d", "901", "-pl", "nnUNetPlannerResEncM")
    narrow(workspace.preprocessed / DATASET / f"{RESENC_PLANS}.json")
    trainer = "nnUNetTrainerGODCLFAMGuidedTiny"
    folder = workspace.train(DATASET, "3d_fullres", 0, trainer, RESENC_PLANS)
    checkpoint = read_checkpoint(folder / "checkpoint_final.pth")
    architecture = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"].endswith("ResidualEncoderUNet")
    assert any(".alignment." in name for name in checkpoint["network_weights"])
    workspace.predict(images, tmp_path / "out", *options(trainer, "3d_fullres", RESENC_PLANS))
    assert labels(tmp_path / "out" / f"{HELD_OUT}.nii.gz").shape == (32, 32, 12)


def test_a_cascade(
    workspace: Any, images: Path, tmp_path: Path, read_checkpoint: Callable[[Path], dict[str, Any]]
) -> None:
    trainer = "nnUNetTrainerGODCLFAMSharedTiny"
    for fold in (0, 1):
        workspace.train(DATASET, "3d_lowres", fold, trainer, PLANS)
    cascade = workspace.train(DATASET, "3d_cascade_fullres", 0, trainer, PLANS)
    weights = read_checkpoint(cascade / "checkpoint_final.pth")["network_weights"]
    first = next(value for name, value in weights.items() if name.endswith("conv.weight"))
    assert first.shape[1] == 1 + 2  # the image, and one map per label of the low resolution
    coarse = workspace.predict(images, tmp_path / "coarse", *options(trainer, "3d_lowres"))
    fine = workspace.predict(
        images, tmp_path / "fine", *options(trainer, "3d_cascade_fullres"), "-prev_stage_predictions", coarse
    )
    assert labels(fine / f"{HELD_OUT}.nii.gz").shape == (32, 32, 12)


class TestWarmStart:
    """Starting LFAM from a model of plain nnU-Net."""

    def test_training_starts_from_the_stock_weights(
        self, workspace: Any, tmp_path: Path, read_checkpoint: Callable[[Path], dict[str, Any]]
    ) -> None:
        trainer = "nnUNetTrainerGODCLFAMFrozen"
        stock = workspace.train(DATASET, "3d_fullres", 0, STOCK, PLANS, "--npz") / "checkpoint_final.pth"
        warm = tmp_path / "warm.pth"
        workspace.run("nnunet-godc", "warm-start", stock, warm, "-tr", trainer)
        # at a learning rate of 0 training ends with the weights that it started from
        folder = workspace.train(DATASET, "3d_fullres", 0, trainer, PLANS, "-pretrained_weights", str(warm))
        weights = read_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
        expected = read_checkpoint(stock)["network_weights"]
        # nnU-Net leaves the last layers out: a pretrained model may have had other labels
        transferred = [name for name in expected if ".seg_layers." not in name]
        assert len(transferred) > 10
        assert all(torch.equal(weights[name], expected[name]) for name in transferred)
        assert any(".alignment." in name for name in weights)

    def test_nnunet_refuses_the_stock_checkpoint_itself(self, workspace: Any) -> None:
        stock = workspace.train(DATASET, "3d_fullres", 0, STOCK, PLANS, "--npz") / "checkpoint_final.pth"
        trainer = "nnUNetTrainerGODCLFAMSharedTiny"
        shown = workspace.run(
            *("nnUNetv2_train", DATASET, "3d_fullres", "0", "-tr", trainer, "-p", PLANS, "-device", "cpu"),
            *("-pretrained_weights", stock),
            succeeds=False,
        )
        assert "is missing in the pretrained model weights" in shown
