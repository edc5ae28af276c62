"""Shorter trainings, in nnU-Net's own naming."""

from __future__ import annotations

from typing import ClassVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.training.hyperparameters import HyperparametersMixin


class ScheduleMixin(HyperparametersMixin):
    """Sets how long a training is; what is None stays as nnU-Net has it.

    Attributes:
        epochs: nnU-Net has 1000.
        iterations_per_epoch: training batches; nnU-Net has 250.
        validation_iterations_per_epoch: batches for the pseudo Dice; nnU-Net has 50.
    """

    epochs: ClassVar[int | None] = None
    iterations_per_epoch: ClassVar[int | None] = None
    validation_iterations_per_epoch: ClassVar[int | None] = None

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        if self.epochs is not None:
            self.num_epochs = self.epochs
        if self.iterations_per_epoch is not None:
            self.num_iterations_per_epoch = self.iterations_per_epoch
        if self.validation_iterations_per_epoch is not None:
            self.num_val_iterations_per_epoch = self.validation_iterations_per_epoch


def with_epochs(trainer: type[nnUNetTrainer], epochs: int, module: str) -> type[nnUNetTrainer]:
    """A trainer like the one given that trains for so many epochs, named as nnU-Net names such variants.

    Args:
        trainer: any trainer class.
        epochs: at least 1.
        module: where the class will be an attribute; its `__module__`.
    """
    name = f"{trainer.__name__}_{epochs}epochs"
    members = {"epochs": epochs, "__module__": module, "__doc__": f"{trainer.__name__} for {epochs} epochs."}
    bases = (trainer,) if issubclass(trainer, ScheduleMixin) else (ScheduleMixin, trainer)
    return type(name, bases, members)
