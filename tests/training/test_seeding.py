"""Seeds: what a training draws follows from its seed, whoever loads the batches and however often it is interrupted."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_godc.trainers import nnUNetTrainerGODC, seeds
from nnunet_godc.training.seeding import SeededMixin, with_seed

MakeTrainer = Callable[..., Any]


class Loader:
    """Draws from all that nnU-Net's loader and its augmentation draw from."""

    def set_thread_id(self, worker: int) -> None:
        pass

    def __next__(self) -> dict[str, float]:
        return {"data": random.random() + 10 * np.random.uniform() + 100 * float(torch.rand(1))}


def in_this_process() -> Any:
    return SingleThreadedAugmenter(Loader(), None)


def in_workers(number: int) -> Any:
    """As nnU-Net hands it over: started already."""
    loader = NonDetMultiThreadedAugmenter(Loader(), None, number, num_cached=6, wait_time=0.002)
    next(loader)
    return loader


class Loading(nnUNetTrainer):
    """A trainer with the loaders above."""

    make_loader: Callable[[], Any] = in_this_process

    def get_dataloaders(self) -> tuple[Any, Any]:
        make = type(self).make_loader
        return make(), make()


@pytest.fixture
def batches(make_trainer: MakeTrainer) -> Callable[..., list[float]]:
    """The first training or validation batches of a training that begins with this epoch."""

    def draw(
        count: int,
        make_loader: Callable[[], Any] = in_this_process,
        *,
        seed: int = 1,
        epoch: int = 0,
        validation: bool = False,
        between: Callable[[], Any] = lambda: None,
    ) -> list[float]:
        parent = type("nnUNetTrainerLoading", (Loading,), {"make_loader": staticmethod(make_loader)})
        trainer = make_trainer(with_seed(parent, seed, __name__))
        trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 4, 2
        trainer.current_epoch = epoch
        loaders = trainer.get_dataloaders()
        try:
            found = []
            for _ in range(count):
                between()
                found.append(next(loaders[validation])["data"])
            return found
        finally:
            for loader in loaders:
                if isinstance(loader, MultiThreadedAugmenter):
                    loader._finish()

    return draw


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])


def test_initial_weights_follow_from_the_seed(make_trainer: MakeTrainer) -> None:
    first, again, other = (make_trainer(with_seed(nnUNetTrainer, seed, __name__)) for seed in (3, 3, 4))
    for trainer in (first, again, other):
        torch.rand(5)
        trainer.initialize()
    torch.testing.assert_close(weights(first), weights(again), rtol=0, atol=0)
    assert not torch.equal(weights(first), weights(other))
    assert "Seed: 3" in Path(first.log_file).read_text()


def test_batches_follow_from_the_seed(batches: Callable[..., list[float]]) -> None:
    assert batches(5) == batches(5)
    assert not set(batches(5)) & set(batches(5, seed=2))


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_no_batch(batches: Callable[..., list[float]], workers: int) -> None:
    assert batches(8, partial(in_workers, workers)) == batches(8)


def test_batches_do_not_depend_on_what_the_steps_draw(batches: Callable[..., list[float]]) -> None:
    assert batches(5, between=lambda: torch.rand(3)) == batches(5)


def test_a_training_that_goes_on_sees_the_batches_that_were_to_come(batches: Callable[..., list[float]]) -> None:
    # four batches an epoch, two of validation
    assert batches(4, epoch=1) == batches(8)[4:]
    assert batches(2, epoch=1, validation=True) == batches(4, validation=True)[2:]


def test_validation_draws_other_batches(batches: Callable[..., list[float]]) -> None:
    assert not set(batches(4)) & set(batches(4, validation=True))


def test_loading_leaves_the_random_numbers_of_the_steps_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(with_seed(Loading, 1, __name__))
    loader, _ = trainer.get_dataloaders()
    states = []
    for count in (0, 3):
        torch.manual_seed(0)
        np.random.seed(0)
        for _ in range(count):
            next(loader)
        states.append((float(torch.rand(1)), np.random.uniform()))
    assert states[0] == states[1]


def test_a_loader_of_ones_own_is_left_and_the_log_says_so(make_trainer: MakeTrainer) -> None:
    own = Loader()
    parent = type("nnUNetTrainerOwn", (Loading,), {"make_loader": staticmethod(lambda: own)})
    trainer = make_trainer(with_seed(parent, 1, __name__))
    assert trainer.get_dataloaders() == (own, own)
    assert "Batches of Loader are not seeded" in Path(trainer.log_file).read_text()


def test_steps_draw_anew_from_the_seed_in_every_epoch(make_trainer: MakeTrainer) -> None:
    drawn = []
    for epoch in (0, 1, 1):
        trainer = make_trainer(with_seed(nnUNetTrainer, 1, __name__))
        trainer.initialize()
        trainer.current_epoch = epoch
        trainer.logger.local_logger.my_fantastic_logging["lrs"] = [0.01] * epoch
        trainer.on_train_epoch_start()
        drawn.append((float(torch.rand(1)), np.random.uniform(), random.random()))
    assert drawn[1] == drawn[2] != drawn[0]


class TestNames:
    """`..._seed<N>` is a trainer wherever nnU-Net looks for one."""

    @pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainerGODC", "nnUNetTrainerGODCLFAM_50epochs"])
    def test_nnunet_finds_any_trainer_with_a_seed(self, name: str) -> None:
        found = recursive_find_trainer_class_by_name(f"{name}_seed12")
        assert found.__name__ == f"{name}_seed12"
        assert found.seed == 12
        assert issubclass(found, SeededMixin)
        assert found.__mro__[2].__name__ == name
        assert recursive_find_trainer_class_by_name(f"{name}_seed12") is found

    @pytest.mark.parametrize("name", ["nnUNetTrainerOfMine", "OfMine"])
    def test_trainers_of_the_users_own_have_seeds_too(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / f"my_seeded_{name}.py").write_text(
            "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
            f"class {name}(nnUNetTrainer): pass\n"
        )
        monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path), prepend=":")
        assert recursive_find_trainer_class_by_name(f"{name}_seed0").__mro__[2].__name__ == name

    @pytest.mark.parametrize(
        "name", ["nnUNetTrainerGDOC_seed1", "nnUNetTrainer_seed", "nnUNetTrainer_seed01", "A_seed1"]
    )
    def test_what_is_no_trainer_has_no_seed(self, name: str) -> None:
        with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {name}"):
            recursive_find_trainer_class_by_name(name)

    def test_a_misspelt_trainer_is_pointed_out(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(RuntimeError):
            recursive_find_trainer_class_by_name("nnUNetTrainerGOCD_seed5")
        assert "did you mean nnUNetTrainerGODC" in capsys.readouterr().err

    def test_there_is_one_seed(self) -> None:
        assert not hasattr(seeds, "nnUNetTrainerGODC_seed1_seed2")

    def test_other_processes_find_the_class_that_is_sent_to_them(self) -> None:
        seeded = seeds.nnUNetTrainerGODC_seed7
        assert pickle.loads(pickle.dumps(seeded)) is seeded
        assert seeded.__module__ == "nnunet_godc.trainers.seeds"
        assert issubclass(seeded, nnUNetTrainerGODC)
