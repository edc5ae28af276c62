"""From the Medical Segmentation Decathlon's hippocampus to a score on held-out cases, by nnU-Net's commands alone."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nnunet_godc.plans import write_shrunken_plans

HIPPOCAMPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "hippocampus"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason=f"there is no data in {HIPPOCAMPUS}"),
]

TRAINING, HELD_OUT = 32, 6
DATASET = "Dataset004_Hippocampus"
PLANS = "nnUNetPlansNarrow"
STOCK = "nnUNetTrainerShort"
OURS = "nnUNetTrainerGODCLFAMShort"

EPOCHS = 6
KILLED_IN = 2  # epochs are counted from 0

# What two cores learn in 240 steps. nnU-Net's own optimiser takes some 300 to find the foreground, its variant with
# Adam takes 40. Mirroring would turn anterior into posterior, and make prediction take eight times as long.
USERS_TRAINERS = f"""
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam

from nnunet_godc.trainers import nnUNetTrainerGODCLFAM
from nnunet_godc.training import ScheduleMixin


class Short(ScheduleMixin, nnUNetTrainerAdam, nnUNetTrainerNoMirroring):
    epochs = {EPOCHS}
    iterations_per_epoch = 40
    validation_iterations_per_epoch = 4

    def initialize(self):
        self.initial_lr = 3e-3
        self.oversample_foreground_percent = 1.0
        self.save_every = 2
        super().initialize()


class {STOCK}(Short, nnUNetTrainer):
    pass


class {OURS}(Short, nnUNetTrainerGODCLFAM):
    pass
"""


def copy_decathlon_task(folder: Path, training: list[str], test: list[str]) -> None:
    """The task with these cases alone, as its archive unpacks."""
    for part, names in (("imagesTr", training), ("labelsTr", training), ("imagesTs", test)):
        (folder / part).mkdir(parents=True)
        for name in names:
            shutil.copy(HIPPOCAMPUS / part.replace("Ts", "Tr") / name, folder / part)
    description = json.loads((HIPPOCAMPUS / "dataset.json").read_text())
    description |= {
        "numTraining": len(training),
        "numTest": len(test),
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in training],
        "test": [f"./imagesTs/{name}" for name in test],
    }
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def workspace(make_workspace: Callable[[str], Any]) -> Any:
    """Hippocampus converted, planned, preprocessed; references of the held-out cases in the folder `held_out`."""
    workspace = make_workspace(USERS_TRAINERS)
    names = sorted(path.name for path in (HIPPOCAMPUS / "imagesTr").glob("hippocampus_*.nii.gz"))
    training, test = names[:TRAINING], names[TRAINING : TRAINING + HELD_OUT]
    copy_decathlon_task(workspace.folder / "Task04_Hippocampus", training, test)
    (workspace.folder / "held_out").mkdir()
    for name in test:
        shutil.copy(HIPPOCAMPUS / "labelsTr" / name, workspace.folder / "held_out")

    workspace.run("nnUNetv2_convert_MSD_dataset", "-i", workspace.folder / "Task04_Hippocampus", "-np", "1")
    workspace.run(
        *("nnUNetv2_plan_and_preprocess", "-d", "4", "--verify_dataset_integrity", "-c", "3d_fullres", "--no_pp"),
        *("-npfp", "1"),
    )
    planned = workspace.preprocessed / DATASET / "nnUNetPlans.json"
    write_shrunken_plans(planned, name=PLANS, patch_size=(24, 40, 24), features=8, stages=3)
    workspace.run("nnUNetv2_preprocess", "-d", "4", "-plans_name", PLANS, "-c", "3d_fullres", "-np", "1")
    return workspace


def score(workspace: Any, trainer: str) -> float:
    """Mean Dice of both labels on the held-out cases."""
    predictions = workspace.predict(
        workspace.raw / DATASET / "imagesTs",
        workspace.folder / f"predicted_{trainer}",
        *("-d", DATASET, "-tr", trainer, "-c", "3d_fullres", "-p", PLANS),
    )
    workspace.run(
        *("nnUNetv2_evaluate_folder", workspace.folder / "held_out", predictions, "-np", "1"),
        *("-djfile", workspace.raw / DATASET / "dataset.json"),
        *("-pfile", workspace.preprocessed / DATASET / f"{PLANS}.json"),
    )
    summary = json.loads((predictions / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == HELD_OUT
    dice: float = summary["foreground_mean"]["Dice"]
    return dice


@dataclass(frozen=True)
class Log:
    """What nnU-Net's training log says of the epochs.

    Attributes:
        started: learning rate by epoch.
        finished: the epochs that came to their end.
    """

    started: dict[int, float]
    finished: list[int]


def read_log(text: str) -> Log:
    started: dict[int, float] = {}
    finished = []
    epoch = -1
    for line in text.splitlines():
        if match := re.search(r": Epoch (\d+)\s*$", line):
            epoch = int(match[1])
        elif match := re.search(r": Current learning rate: (\S+)", line):
            started[epoch] = float(match[1])
        elif ": Epoch time: " in line:
            finished.append(epoch)
    return Log(started, finished)


def logs(folder: Path) -> list[Log]:
    """The logs of a fold, in the order of their writing."""
    return [read_log(path.read_text()) for path in sorted(folder.glob("training_log_*.txt"))]


@pytest.fixture(scope="module")
def killed(workspace: Any) -> Path:
    """The fold's folder after training was killed in the middle of an epoch."""
    command = ["nnUNetv2_train", DATASET, "3d_fullres", "0", "-tr", OURS, "-p", PLANS, "-device", "cpu"]
    with workspace.start(*command) as process:
        shown = ""
        for line in process.stdout:
            shown += line
            if re.search(rf": Epoch {KILLED_IN}\s*$", line):
                break
        else:
            pytest.fail(f"{' '.join(command)} ended before epoch {KILLED_IN}:\n{shown}")
        time.sleep(1)  # an epoch takes many times as long
        process.kill()
        assert process.wait() == -signal.SIGKILL
    folder: Path = workspace.model(DATASET, "3d_fullres", OURS, PLANS) / "fold_0"
    return folder


@pytest.fixture(scope="module")
def continued(workspace: Any, killed: Path) -> Path:
    """The same folder after `--c` has trained to the end; the killed run's state was asserted before."""
    (before,) = logs(killed)
    assert list(before.started) == list(range(KILLED_IN + 1))
    assert before.finished == list(range(KILLED_IN))
    assert (killed / "checkpoint_latest.pth").is_file()
    assert not (killed / "checkpoint_final.pth").exists()
    workspace.train(DATASET, "3d_fullres", 0, OURS, PLANS, "--c")
    return killed


def test_stock_nnunet_learns(workspace: Any) -> None:
    workspace.train(DATASET, "3d_fullres", 0, STOCK, PLANS)
    assert score(workspace, STOCK) > 0.7


def test_godc_and_lfam_learn_although_killed_on_the_way(workspace: Any, continued: Path) -> None:
    assert score(workspace, OURS) > 0.7


def test_a_killed_training_continues_where_its_checkpoint_stands(
    continued: Path, read_checkpoint: Callable[[Path], dict[str, Any]]
) -> None:
    before, after = logs(continued)
    assert list(after.started) == after.finished == list(range(KILLED_IN, EPOCHS))
    assert after.started[KILLED_IN] == before.started[KILLED_IN]
    checkpoint = read_checkpoint(continued / "checkpoint_final.pth")
    assert checkpoint["current_epoch"] == EPOCHS
    assert len(checkpoint["logging"]["train_losses"]) == EPOCHS
    assert not (continued / "checkpoint_latest.pth").exists()
    assert (continued / "validation" / "summary.json").is_file()
