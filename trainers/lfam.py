"""Trainers with LFAM on the skip connections and nnU-Net's own loss."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.alignment import LFAMConfig
from nnunet_godc.training import LFAMMixin


class nnUNetTrainerLFAM(LFAMMixin, nnUNetTrainer):
    """LFAM with kernels of its own at every level."""


class nnUNetTrainerLFAMShared(LFAMMixin, nnUNetTrainer):
    """LFAM with one deformable convolution for all levels (Table II of the paper)."""

    lfam = LFAMConfig(shared=True)
