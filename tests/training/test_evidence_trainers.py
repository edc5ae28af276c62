"""The trainers of the evidence studies differ from each other in what their names say, and in nothing else."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_godc import trainers
from nnunet_godc.losses import GODCLoss
from nnunet_godc.trainers import evidence

MakeTrainer = Callable[..., Any]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """These trainers set PyTorch's threads, which the other tests share."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def step(trainer: Any, batch: Callable[..., dict[str, Any]]) -> float:
    trainer.on_train_epoch_start()
    return float(trainer.train_step(batch(trainer))["loss"])


@pytest.mark.parametrize("name", evidence.__all__)
def test_each_trains_on_one_thread_in_one_schedule(
    make_trainer: MakeTrainer, random_batch: Callable[..., dict[str, Any]], name: str
) -> None:
    trainer = make_trainer(getattr(trainers, name), "2d")
    trainer.initialize()
    assert torch.get_num_threads() == 1
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (30, 50, 10)
    *_, mirrored = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert mirrored == (0, 1)
    assert trainer.inference_allowed_mirroring_axes is None
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    assert math.isfinite(step(trainer, random_batch))
    after = trainer.network.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not after[key].equal(before[key]) for key in before)


@pytest.mark.parametrize(
    ("name", "pooled"),
    [
        ("nnUNetTrainerEvidenceSampleDice", False),
        ("nnUNetTrainerEvidenceBatchDice", True),
        ("nnUNetTrainerEvidenceSampleDiceOnly", False),
        ("nnUNetTrainerEvidenceLFAM", True),
    ],
)
@pytest.mark.parametrize("planned", [True, False])
def test_dice_is_pooled_as_the_name_says_whatever_the_plans_say(
    make_trainer: MakeTrainer, name: str, pooled: bool, planned: bool
) -> None:
    trainer = make_trainer(getattr(trainers, name), "2d", batch_dice=planned)
    trainer.initialize()
    assert trainer.loss.loss.dc.batch_dice is pooled
    assert f"batch_dice {pooled}" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("name", ["nnUNetTrainerEvidenceSampleDiceOnly", "nnUNetTrainerEvidenceGODCOnly"])
def test_alone_is_without_cross_entropy(make_trainer: MakeTrainer, name: str) -> None:
    trainer = make_trainer(getattr(trainers, name), "2d")
    trainer.initialize()
    assert trainer.loss.loss.weight_ce == 0
    assert isinstance(trainer.loss.loss.dc, GODCLoss) == ("GODC" in name)


def test_offsets_of_the_control_stay_zero(
    make_trainer: MakeTrainer, random_batch: Callable[..., dict[str, Any]]
) -> None:
    offsets: dict[str, float] = {}
    for name in ("nnUNetTrainerEvidenceLFAM", "nnUNetTrainerEvidenceLFAMFrozen"):
        trainer = make_trainer(getattr(trainers, name), "2d")
        trainer.initialize()
        for _ in range(3):
            step(trainer, random_batch)
        parameters = list(trainer.network.decoder.alignment.offset_parameters())
        offsets[name] = sum(float(parameter.detach().abs().sum()) for parameter in parameters)
    assert offsets["nnUNetTrainerEvidenceLFAMFrozen"] == 0
    assert offsets["nnUNetTrainerEvidenceLFAM"] > 0
