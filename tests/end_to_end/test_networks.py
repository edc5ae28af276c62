"""Every command of nnU-Net that handles a trained model, with networks that are not the plans'."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.end_to_end.tiny_dataset import DATASET, HELD_OUT, PLANS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("monai") is None, reason="MONAI is an extra: pip install 'nnunet-godc[comparison]'"
    ),
]

NETWORKS = ("UNet", "ResUNet", "UNetPlusPlus", "AttentionUNet", "CENet")
USERS_TRAINERS = f"""
from nnunet_godc.trainers import combinations
from nnunet_godc.training import ScheduleMixin


class Tiny(ScheduleMixin):
    epochs = 1
    iterations_per_epoch = 2
    validation_iterations_per_epoch = 1


for network in {NETWORKS}:
    for additions in ("", "GODCLFAM"):
        trainer = getattr(combinations, f"nnUNetTrainer{{network}}{{additions}}")
        name = f"{{trainer.__name__}}Tiny"
        globals()[name] = type(name, (Tiny, trainer), {{"__module__": __name__}})
"""


def options(trainer: str) -> list[str]:
    return ["-d", DATASET, "-tr", trainer, "-c", "2d", "-p", PLANS]


def labels(folder: Path) -> np.ndarray[Any, Any]:
    return np.asanyarray(nibabel.load(folder / f"{HELD_OUT}.nii.gz").dataobj)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_validates_and_predicts(
    workspace: Any, images: Path, tmp_path: Path, network: str
) -> None:
    trainer = f"nnUNetTrainer{network}GODCLFAMTiny"
    folder = workspace.train(DATASET, "2d", 0, trainer, PLANS, "--npz")
    assert json.loads((folder / "validation" / "summary.json").read_text())["metric_per_case"]
    workspace.predict(images, tmp_path, *options(trainer))
    assert labels(tmp_path).shape == (32, 32, 12)


def test_the_best_of_two_networks_is_found(workspace: Any) -> None:
    trainers = ["nnUNetTrainerUNetPlusPlusTiny", "nnUNetTrainerAttentionUNetGODCLFAMTiny"]
    for trainer in trainers:
        for fold in (0, 1):
            workspace.train(DATASET, "2d", fold, trainer, PLANS, "--npz")
    workspace.run(
        *("nnUNetv2_find_best_configuration", DATASET, "-tr", *trainers, "-c", "2d", "-f", "0", "1"), *("-np", "1")
    )
    found = json.loads((workspace.results / DATASET / "inference_information.json").read_text())
    names = [f"{trainer}__{PLANS}__2d" for trainer in trainers]
    assert set(found["all_results"]) == {*names, f"ensemble___{names[0]}___{names[1]}___0_1"}


def test_networks_are_ensembled_exported_and_imported(workspace: Any, images: Path, tmp_path: Path) -> None:
    members = []
    for network in ("CENet", "AttentionUNet"):
        trainer = f"nnUNetTrainer{network}GODCLFAMTiny"
        workspace.train(DATASET, "2d", 0, trainer, PLANS, "--npz")
        members.append(workspace.predict(images, tmp_path / network, *options(trainer), "--save_probabilities"))
    workspace.run("nnUNetv2_ensemble", "-i", *members, "-o", tmp_path / "ensemble", "-np", "1")
    assert labels(tmp_path / "ensemble").shape == (32, 32, 12)

    archive, elsewhere = tmp_path / "model.zip", tmp_path / "nnUNet_results"
    elsewhere.mkdir()
    workspace.run("nnUNetv2_export_model_to_zip", *options(trainer), "-o", archive, "-f", "0")
    workspace.run("nnUNetv2_install_pretrained_model_from_zip", archive, results=elsewhere)
    there = workspace.predict(images, tmp_path / "there", *options(trainer), results=elsewhere)
    np.testing.assert_array_equal(labels(there), labels(members[1]))
