"""A study through nnU-Net's own commands on this machine, from planning to the report."""

from __future__ import annotations

import json
import os
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nnunet_godc.study.folder import read_state
from nnunet_godc.study.run import read_study_folder
from tests.end_to_end.tiny_dataset import CASES, DATASET, HELD_OUT, SPLITS, write_dataset

pytestmark = pytest.mark.slow

TRAINER = "nnUNetTrainerGODCStudied"
USERS_TRAINERS = f"""
from nnunet_godc.trainers import nnUNetTrainerGODC
from nnunet_godc.training import ScheduleMixin


class {TRAINER}(ScheduleMixin, nnUNetTrainerGODC):
    epochs = 3
    iterations_per_epoch = 2
    validation_iterations_per_epoch = 1

    def set_hyperparameters(self):
        super().set_hyperparameters()
        self.save_every = 1
"""
STUDY = f"""
datasets: [901]
plans:
  - {{name: nnUNetPlansTiny, from: nnUNetPlans, patch_size: [12, 32, 32], features: 4, stages: 3, batch_size: 2}}
trainers: [{TRAINER}]
folds: [0, 1]
seeds: [5]
predict: {{images: imagesTs, references: labelsTs}}
evaluate: {{metrics: [overlap], resamples: 1000}}
environment: {{nnUNet_n_proc_DA: 0, OMP_NUM_THREADS: 1, OMP_WAIT_POLICY: PASSIVE}}
resources: {{device: cpu, cpus: 1}}
"""
SEEDED = f"{TRAINER}_seed5"
FIRST, SECOND = (f"train.{DATASET}.{SEEDED}.nnUNetPlansTiny.3d_fullres.fold{fold}" for fold in (0, 1))


@pytest.fixture(scope="module")
def workspace(make_workspace: Callable[[str], Any]) -> Any:
    """The tiny dataset with a study file; the study was interrupted in its first training, and then run to its end."""
    workspace = make_workspace(USERS_TRAINERS)
    write_dataset(workspace.raw / DATASET)
    # too few cases for nnU-Net's five folds
    (workspace.preprocessed / DATASET).mkdir()
    (workspace.preprocessed / DATASET / "splits_final.json").write_text(json.dumps(SPLITS))
    (workspace.folder / "tiny.yaml").write_text(STUDY)
    run = ("nnunet-godc", "study", "run", workspace.folder / "tiny.yaml", "--out", workspace.folder / "tiny")
    with workspace.start(*run) as process:
        checkpoint = workspace.model(DATASET, "3d_fullres", SEEDED, "nnUNetPlansTiny") / "fold_0/checkpoint_latest.pth"
        # whole: one that is being written is no zip file yet
        while not zipfile.is_zipfile(checkpoint) and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        workspace.interrupted = process.communicate()[0]
    workspace.after_interruption = read_state(workspace.folder / "tiny", FIRST)
    workspace.shown = workspace.run(*run)
    return workspace


@pytest.fixture
def folder(workspace: Any) -> Path:
    path: Path = workspace.folder / "tiny"
    return path


def test_an_interrupted_study_goes_on_to_its_end(workspace: Any, folder: Path) -> None:
    assert workspace.after_interruption.status == "interrupted", workspace.interrupted
    _, jobs = read_study_folder(folder)
    assert {job.id: read_state(folder, job.id).status for job in jobs} == {job.id: "done" for job in jobs}
    assert [job.kind for job in jobs] == [
        *("plan", "plan", "preprocess", "train", "train", "predict", "evaluate", "evaluate"),
    ]


def test_it_has_trained(workspace: Any, folder: Path) -> None:
    shown = workspace.run("nnunet-godc", "study", "status", folder, "--once")
    assert "3/3" in shown
    assert "nan" not in shown


def test_the_interrupted_training_went_on_from_its_checkpoint(folder: Path) -> None:
    attempts = json.loads((folder / "jobs" / FIRST / "provenance.json").read_text())["attempts"]
    assert [attempt["command"][-1] for attempt in attempts] == ["cpu", "--c"]


def test_a_training_carries_what_made_it(folder: Path) -> None:
    record = json.loads((folder / "jobs" / SECOND / "provenance.json").read_text())
    assert record["seed"] == 5
    assert len(record["plans_sha256"]) == len(record["dataset_fingerprint_sha256"]) == 64
    (attempt,) = record["attempts"]
    assert attempt["versions"]["nnunetv2"].startswith("2.")
    assert attempt["seconds"] > 0


def test_cross_validation_and_held_out_images_are_evaluated(folder: Path) -> None:
    validated = pd.read_csv(folder / "evaluation" / DATASET / "measurements.csv")
    of_cases = validated["case"].notna()  # the others are about trainings: seconds per epoch and the like
    assert set(validated["case"][of_cases]) == set(CASES)
    held_out = pd.read_csv(folder / "evaluation" / f"{DATASET}.held_out" / "measurements.csv")
    assert set(held_out["case"]) == {HELD_OUT}
    assert set(held_out["trainer"]) == {SEEDED}


def test_running_it_again_does_nothing(workspace: Any, folder: Path) -> None:
    shown = workspace.run("nnunet-godc", "study", "run", workspace.folder / "tiny.yaml", "--out", folder)
    assert "started" not in shown
    assert "8 jobs, 8 done" in shown


def test_a_trainer_that_has_changed_is_refused(workspace: Any, folder: Path) -> None:
    module = workspace.users_trainers / "my_trainers.py"
    run = ("nnunet-godc", "study", "run", workspace.folder / "tiny.yaml", "--out", folder)
    before = module.read_text()
    module.write_text(before.replace("epochs = 3", "epochs = 2"))
    shown = workspace.run(*run, succeeds=False)
    assert f"{TRAINER} has changed since it trained {FIRST} and 1 more (my_trainers.{TRAINER})" in shown
    module.write_text(before + "\n\nclass nnUNetTrainerAnother(nnUNetTrainerGODC):\n    pass\n")
    shown = workspace.run(*run)
    assert "8 jobs, 8 done" in shown
    module.write_text(before)


def test_status_and_collect_tell_of_everything(workspace: Any, folder: Path) -> None:
    shown = workspace.run("nnunet-godc", "study", "status", folder, "--once")
    assert "8 done" in shown
    workspace.run("nnunet-godc", "study", "collect", folder)
    page = (folder / "report.md").read_text()
    assert "2 of 2 trainings are done." in page
    assert f"## {DATASET}, held-out images" in page
