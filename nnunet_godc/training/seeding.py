"""A seed for any training: nnU-Net by itself leaves every random number to chance."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc import seeded_names

# What draws random numbers in a training, each from a stream of its own: how much one draws shifts no other.
_NETWORK, _TRAINING_BATCHES, _VALIDATION_BATCHES, _STEPS = range(4)


class SeededMixin(nnUNetTrainer):
    """Draws every random number of a training from its seed: initial weights, batches, dropout and the like.

    The random numbers of a batch follow from its number in the training, those of the steps from the epoch. So batches
    do not depend on how many worker processes load them, and a training that goes on from a checkpoint sees what it
    would have seen without the interruption. Worker processes are asked in turn (`MultiThreadedAugmenter`), where
    nnU-Net takes whichever is ready; one that is late holds up the training until its batch is there.

    Measured on the CPU (hippocampus, 3 epochs of 10 steps, two threads): two runs of one seed, a run with two worker
    processes, and one that was stopped after an epoch and went on with `--c`, ended with the same weights to the last
    bit and the same loss in every epoch.

    Stands first among the bases, since it works around what the trainer itself does. Loaders of another kind than
    nnU-Net's own are left as they are, and the training log says so.

    Attributes:
        seed: at least 0.
    """

    seed: ClassVar[int]

    def initialize(self) -> None:
        _seed_all(self.seed, _NETWORK)
        super().initialize()
        if self.local_rank == 0:
            self.print_to_log_file(f"Seed: {self.seed}, of the initial weights, the batches and the steps.")

    def get_dataloaders(self) -> tuple[Any, Any]:
        training, validation = super().get_dataloaders()
        return (
            self._seeded(training, _TRAINING_BATCHES, self.num_iterations_per_epoch),
            self._seeded(validation, _VALIDATION_BATCHES, self.num_val_iterations_per_epoch),
        )

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        _seed_all(self.seed, _STEPS, self.local_rank, self.current_epoch)

    def _seeded(self, loader: Any, stream: int, per_epoch: int) -> Any:
        first = self.current_epoch * per_epoch
        entropy = (self.seed, stream, self.local_rank)
        if isinstance(loader, SingleThreadedAugmenter):
            return SingleThreadedAugmenter(NumberedBatches(loader.data_loader, entropy, first), loader.transform)
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader._finish()  # nnU-Net has started it already, as it does with what it gets from here
            workers = loader.num_processes
            return MultiThreadedAugmenter(
                NumberedBatches(loader.generator, entropy, first, workers),
                loader.transform,
                num_processes=workers,
                num_cached_per_queue=max(1, loader.num_cached // workers),
                pin_memory=loader.pin_memory,
                wait_time=loader.wait_time,
            )
        self.print_to_log_file(f"Batches of {type(loader).__name__} are not seeded: it is not nnU-Net's own loader.")
        return loader


class NumberedBatches:
    """Batches of nnU-Net's loader, each drawn from random numbers that follow from its number alone.

    Args:
        loader: an infinite loader without a state of its own.
        entropy: what the seeds follow from, beside the number.
        first: number of the first batch.
        workers: how many processes take turns, each with every so manieth batch; 0 loads in this process.
    """

    def __init__(self, loader: Any, entropy: tuple[int, ...], first: int, workers: int = 0) -> None:
        self.loader = loader
        self.entropy = entropy
        self.number = first
        self.workers = workers

    def __iter__(self) -> NumberedBatches:
        return self

    def set_thread_id(self, worker: int) -> None:
        """Called once in each worker process."""
        torch.set_num_threads(1)
        self.number += worker
        self.loader.set_thread_id(worker)

    def __next__(self) -> Any:
        with random_numbers(*self.entropy, self.number):
            batch = next(self.loader)
        self.number += max(1, self.workers)
        return batch


def with_seed(trainer: type[nnUNetTrainer], seed: int, module: str) -> type[nnUNetTrainer]:
    """A trainer like the one given that trains with a seed, named `..._seed<N>`, so that its results have a folder.

    Args:
        trainer: any trainer class.
        seed: at least 0.
        module: where the class will be an attribute; its `__module__`.
    """
    name = seeded_names.with_seed(trainer.__name__, seed)
    members = {"seed": seed, "__module__": module, "__doc__": f"{trainer.__name__} with the seed {seed}."}
    return type(name, (SeededMixin, trainer), members)


def _seed_all(*entropy: int) -> None:
    """Seeds Python, NumPy and PyTorch on all devices."""
    for_python, for_numpy, for_torch = _seeds(entropy)
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


@contextmanager
def random_numbers(*entropy: int) -> Iterator[None]:
    """Within, this process draws from these seeds on the CPU; afterwards it goes on where it was."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for_python, for_numpy, for_torch = _seeds(entropy)
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(for_torch)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seeds(entropy: tuple[int, ...]) -> list[int]:
    """Three seeds of 32 bits that have nothing in common with those of neighbouring numbers."""
    return [int(seed) for seed in np.random.SeedSequence(entropy).generate_state(3)]
