"""The trainers of the shipped study `smoke`: what two CPU cores learn in a minute."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam

from nnunet_godc.trainers.godc import nnUNetTrainerGODC
from nnunet_godc.training import ScheduleMixin


class _Smoke(ScheduleMixin, nnUNetTrainerAdam, nnUNetTrainerNoMirroring):
    """120 steps that serve speed alone.

    nnU-Net's own optimiser takes some 300 steps to find the foreground of the hippocampus, its variant with Adam takes
    40. Mirroring would turn anterior into posterior, and make prediction take eight times as long.
    """

    epochs = 6
    iterations_per_epoch = 20
    validation_iterations_per_epoch = 4

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        self.initial_lr = 3e-3
        self.oversample_foreground_percent = 1.0
        self.save_every = 2


class nnUNetTrainerSmoke(_Smoke, nnUNetTrainer):
    """nnU-Net's own loss, for 120 steps."""


class nnUNetTrainerGODCSmoke(_Smoke, nnUNetTrainerGODC):
    """GODC and cross-entropy, for 120 steps."""
