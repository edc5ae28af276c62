"""Trainers with LFAM on the skip connections and nnU-Net's own loss."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.alignment import LFAMConfig
from nnunet_godc.training import LFAMMixin


class nnUNetTrainerLFAM(LFAMMixin, nnUNetTrainer):
    """LFAM with kernels of its own at every level."""


class nnUNetTrainerLFAMShared(LFAMMixin, nnUNetTrainer):
    """LFAM with one deformable convolution for all levels (Table II of the paper)."""

    lfam = LFAMConfig(shared=True)


class nnUNetTrainerLFAMGuided(LFAMMixin, nnUNetTrainer):
    """LFAM whose offsets follow from skip and decoder features."""

    lfam = LFAMConfig(guided=True)


class nnUNetTrainerLFAMLite(LFAMMixin, nnUNetTrainer):
    """A cheap LFAM: from the second skip on, on a quarter of the channels."""

    lfam = LFAMConfig(first_level=1, reduction=4)
