"""Trainers with GODC in the place of the Dice loss."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.losses import GODCConfig
from nnunet_godc.training import GODCMixin, GODCOnlyMixin


class nnUNetTrainerGODC(GODCMixin, nnUNetTrainer):
    """GODC and cross-entropy."""


class nnUNetTrainerGODCOnly(GODCOnlyMixin, nnUNetTrainer):
    """GODC alone, the paper's loss."""


class nnUNetTrainerGODCSquared(GODCMixin, nnUNetTrainer):
    """GODC with the square of the weight, which the paper calls faster and less stable, and cross-entropy."""

    godc = GODCConfig(exponent=2)


class nnUNetTrainerGODCRunning(GODCMixin, nnUNetTrainer):
    """GODC normalised by a running mean of unions, for batches of one sample or sizes that differ between batches."""

    godc = GODCConfig(normalization="running")
