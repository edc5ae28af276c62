"""Training on several GPUs, with two processes on the CPU in their place; two_processes.py tells what is replaced."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from nnunet_godc.trainers import nnUNetTrainerGODCLFAM
from tests.end_to_end.tiny_dataset import DATASET, HELD_OUT, PLANS, SPLITS

pytestmark = pytest.mark.slow

COMMAND = Path(__file__).with_name("two_processes.py")
CONFIGURATION = "3d_fullres"
TRAINER = "nnUNetTrainerGODCLFAMWatched"
IN_DOUBLE = "nnUNetTrainerGODCLFAMDoubleWatched"
VARIANTS = [f"nnUNetTrainerGODCLFAM{name}Watched" for name in ("Shared", "Guided", "Lite", "Checkpointed")]
RANKS = range(2)
STEPS = 2  # per epoch; that a parameter had no part in a step, DistributedDataParallel tells in the next

USERS_TRAINERS = f"""
import os
import random
from pathlib import Path

import numpy as np
import torch

from nnunet_godc import trainers
from nnunet_godc.alignment import LFAMConfig
from nnunet_godc.training import ScheduleMixin


class Watched(ScheduleMixin):
    '''Writes down, in a file per rank and epoch, what the rank saw and computed.'''

    epochs = int(os.environ.get("EPOCHS", "1"))
    iterations_per_epoch = {STEPS}
    validation_iterations_per_epoch = 2

    def weights(self):
        return {{name: value.clone() for name, value in self.network.module.state_dict().items()}}

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(self.local_rank)
        self.steps, self.validation_steps = [], []

    def train_step(self, batch):
        weights = self.weights()
        result = super().train_step(batch)
        gradients = {{name: value.grad.clone() for name, value in self.network.module.named_parameters()}}
        self.steps.append({{"batch": batch, "weights": weights, "gradients": gradients, "loss": result["loss"]}})
        return result

    def validation_step(self, batch):
        self.validation_steps.append(super().validation_step(batch))
        return self.validation_steps[-1]

    def on_epoch_end(self):
        log = {{name: self.logger.get_value(name, -1) for name in ("train_losses", "dice_per_class_or_region")}}
        seen = {{
            "wrapper": type(self.network).__name__,
            "steps": self.steps,
            "validation_steps": self.validation_steps,
            "weights": self.weights(),
            "log": log,
        }}
        torch.save(seen, Path(self.output_folder) / f"rank{{self.local_rank}}_epoch{{self.current_epoch}}.pt")
        super().on_epoch_end()

    def perform_actual_validation(self, save_probabilities=False):
        # it starts processes, which takes longest here; that of the training that goes on is looked at
        if self.num_epochs > 1:
            super().perform_actual_validation(save_probabilities)


class nnUNetTrainerGODCLFAMWatched(Watched, trainers.nnUNetTrainerGODCLFAM):
    pass


class nnUNetTrainerGODCLFAMDoubleWatched(nnUNetTrainerGODCLFAMWatched):
    '''In single precision the order of a sum may turn an activation's sign, and a leaky ReLU has two slopes.'''

    @classmethod
    def build_network_architecture(cls, plans_manager, *others, **options):
        return super().build_network_architecture(plans_manager, *others, **options).double()

    def train_step(self, batch):
        return super().train_step({{**batch, "data": batch["data"].double()}})

    def validation_step(self, batch):
        return super().validation_step({{**batch, "data": batch["data"].double()}})


class nnUNetTrainerGODCLFAMSharedWatched(Watched, trainers.nnUNetTrainerGODCLFAMShared):
    pass


class nnUNetTrainerGODCLFAMGuidedWatched(Watched, trainers.nnUNetTrainerGODCLFAMGuided):
    pass


class nnUNetTrainerGODCLFAMLiteWatched(Watched, trainers.nnUNetTrainerGODCLFAMLite):
    pass


class nnUNetTrainerGODCLFAMCheckpointedWatched(Watched, trainers.nnUNetTrainerGODCLFAM):
    lfam = LFAMConfig(checkpoint=True)
"""


def train(workspace: Any, trainers: list[str], *options: str) -> None:
    """Trains one after the other on two ranks."""
    workspace.run(
        *(sys.executable, COMMAND, DATASET, CONFIGURATION, "0", "-tr", ",".join(trainers), "-p", PLANS),
        *("-num_gpus", "2", *options),
    )


def fold(workspace: Any, trainer: str) -> Path:
    folder: Path = workspace.model(DATASET, CONFIGURATION, trainer, PLANS) / "fold_0"
    return folder


def seen(workspace: Any, trainer: str, epoch: int) -> list[dict[str, Any]]:
    """What each rank wrote down."""
    files = [fold(workspace, trainer) / f"rank{rank}_epoch{epoch}.pt" for rank in RANKS]
    return [torch.load(file, weights_only=False) for file in files]


@pytest.fixture(scope="module")
def workspace(tiny_workspace: Any) -> Iterator[Any]:
    """All trainers trained for an epoch on two ranks, and the main one continued for another."""
    (tiny_workspace.users_trainers / "watched.py").write_text(USERS_TRAINERS)
    train(tiny_workspace, [TRAINER, IN_DOUBLE, *VARIANTS])
    shutil.copy(fold(tiny_workspace, TRAINER) / "checkpoint_final.pth", tiny_workspace.folder / "first.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPOCHS", "2")
        train(tiny_workspace, [TRAINER], "--c")
    yield tiny_workspace
    (tiny_workspace.users_trainers / "watched.py").unlink()


@pytest.fixture
def one_process(workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer as a training without -num_gpus has it."""
    folders = {"raw": workspace.raw, "preprocessed": workspace.preprocessed, "results": tmp_path}
    for name, folder in folders.items():
        monkeypatch.setenv(f"nnUNet_{name}", str(folder))
    planned = workspace.preprocessed / DATASET
    plans = json.loads((planned / f"{PLANS}.json").read_text()) | {"continue_training": False}
    description = json.loads((planned / "dataset.json").read_text())
    trainer = nnUNetTrainerGODCLFAM(plans, CONFIGURATION, 0, description, torch.device("cpu"))
    trainer.initialize()
    return trainer


def train_step(trainer: Any, weights: dict[str, Tensor], batches: list[dict[str, Any]]) -> tuple[float, Tensor]:
    """Loss of a training step from these weights with these batches as one, and the gradient, as one vector."""
    trainer.network.load_state_dict(weights)
    targets = [torch.cat(resolution) for resolution in zip(*(batch["target"] for batch in batches), strict=True)]
    loss = trainer.train_step({"data": torch.cat([batch["data"] for batch in batches]), "target": targets})["loss"]
    # one process leaves the coarsest output out, which nnU-Net gives a weight of 1e-6 for DistributedDataParallel
    gradients = [
        torch.zeros_like(value) if value.grad is None else value.grad for value in trainer.network.parameters()
    ]
    return float(loss), flat(gradients)


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("trainer", [TRAINER, *VARIANTS])
def test_ranks_split_the_batch_and_keep_the_same_weights(workspace: Any, trainer: str) -> None:
    ranks = seen(workspace, trainer, epoch=0)
    assert all(rank["wrapper"] == "DistributedDataParallel" for rank in ranks)
    assert all(len(rank["steps"]) == STEPS for rank in ranks)
    for steps in zip(*(rank["steps"] for rank in ranks), strict=True):
        data = [step["batch"]["data"] for step in steps]
        assert [len(samples) for samples in data] == [1, 1]
        assert not torch.equal(*data)
        torch.testing.assert_close(*(step["gradients"] for step in steps), rtol=0, atol=0)
    torch.testing.assert_close(*(rank["weights"] for rank in ranks), rtol=0, atol=0)
    aligned = [name for name in ranks[0]["weights"] if ".alignment." in name]
    assert aligned
    assert any(not torch.equal(ranks[0]["weights"][name], ranks[0]["steps"][0]["weights"][name]) for name in aligned)


def test_gradients_are_those_of_one_process_with_the_whole_batch(workspace: Any, one_process: Any) -> None:
    """Each rank holds one sample: without the unions of the others, GODC would be the Dice loss there."""
    one_process.network.double()
    apart = []
    for steps in zip(*(rank["steps"] for rank in seen(workspace, IN_DOUBLE, epoch=0)), strict=True):
        weights, batches = steps[0]["weights"], [step["batch"] for step in steps]
        gradient = flat(steps[0]["gradients"].values())
        loss, whole = train_step(one_process, weights, batches)
        assert np.mean([step["loss"] for step in steps]) == pytest.approx(loss, rel=1e-5)
        assert (gradient - whole).norm() < 1e-5 * whole.norm()
        alone = torch.stack([train_step(one_process, weights, [batch])[1] for batch in batches]).mean(0)
        apart.append((gradient - alone).norm() / whole.norm())
    assert max(apart) > 1e-4


def test_losses_and_pseudo_dice_are_those_of_all_ranks(workspace: Any) -> None:
    for epoch in (0, 1):
        ranks = seen(workspace, TRAINER, epoch)
        losses = [step["loss"] for rank in ranks for step in rank["steps"]]
        counts = {
            name: np.sum([step[f"{name}_hard"] for rank in ranks for step in rank["validation_steps"]], axis=0)
            for name in ("tp", "fp", "fn")
        }
        dice = 2 * counts["tp"] / (2 * counts["tp"] + counts["fp"] + counts["fn"])
        for rank in ranks:
            assert rank["log"]["train_losses"] == pytest.approx(np.mean(losses))
            np.testing.assert_allclose(rank["log"]["dice_per_class_or_region"], dice)


def test_the_log_says_once_what_is_in_effect(workspace: Any) -> None:
    logs = sorted(fold(workspace, TRAINER).glob("training_log_*.txt"))
    assert len(logs) == 2  # of the training and of its continuation; only the first rank writes one
    for log in logs:
        assert log.read_text().count("GODC in the place of the Dice term") == 1
        assert log.read_text().count("LFAM on ") == 1
        assert "GODC is the Dice loss" not in log.read_text()


def test_checkpoints_hold_what_one_process_would_write(
    workspace: Any, one_process: Any, read_checkpoint: Callable[[Path], dict[str, Any]]
) -> None:
    expected = one_process.network.state_dict()
    assert any(".alignment." in name for name in expected)
    for name, epoch in (("first.pth", 0), (fold(workspace, TRAINER) / "checkpoint_final.pth", 1)):
        weights = read_checkpoint(workspace.folder / name)["network_weights"]
        assert weights.keys() == expected.keys()
        torch.testing.assert_close(dict(weights), seen(workspace, TRAINER, epoch)[0]["weights"], rtol=0, atol=0)


def test_training_continues_where_it_ended(workspace: Any) -> None:
    first, second = (seen(workspace, TRAINER, epoch) for epoch in (0, 1))
    for rank in RANKS:
        torch.testing.assert_close(second[rank]["steps"][0]["weights"], first[rank]["weights"], rtol=0, atol=0)
    torch.testing.assert_close(second[0]["weights"], second[1]["weights"], rtol=0, atol=0)


def test_ranks_share_the_validation_cases(workspace: Any) -> None:
    summary = json.loads((fold(workspace, TRAINER) / "validation" / "summary.json").read_text())
    validated = {Path(score["prediction_file"]).name.removesuffix(".nii.gz") for score in summary["metric_per_case"]}
    assert validated == set(SPLITS[0]["val"])


def test_one_process_predicts_with_the_checkpoint(workspace: Any, tmp_path: Path) -> None:
    images = workspace.raw / DATASET / "imagesTs"
    out = workspace.predict(images, tmp_path, "-d", DATASET, "-tr", TRAINER, "-c", CONFIGURATION, "-p", PLANS)
    labels = np.asanyarray(nibabel.load(out / f"{HELD_OUT}.nii.gz").dataobj)
    assert labels.shape == (32, 32, 12)
