"""The trainer of `nnunet-godc demo`: both parts in a schedule that two CPU cores finish in minutes."""

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring

from nnunet_godc.alignment import LFAMConfig
from nnunet_godc.training import GODCMixin, LFAMMixin, ScheduleMixin


class nnUNetTrainerGODCLFAMDemo(ScheduleMixin, GODCMixin, LFAMMixin, nnUNetTrainerNoMirroring):
    """GODC and cross-entropy, with LFAM on every skip connection but the finest; 450 steps.

    What differs from `nnUNetTrainerGODCLFAM` serves speed alone, and is not meant for real data. LFAM leaves out the
    full resolution, where it costs most on the CPU. Nothing is mirrored: all phantoms are converted to one orientation,
    where the liver is always on one side, and prediction takes an eighth of the time. With a higher learning
    rate and foreground in every patch, the tumour is found after 75 to 250 steps.
    """

    lfam = LFAMConfig(first_level=1)
    epochs = 18
    iterations_per_epoch = 25
    validation_iterations_per_epoch = 4

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        self.initial_lr = 4e-2
        self.oversample_foreground_percent = 1.0
