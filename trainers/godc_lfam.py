"""Trainers with both parts of the paper."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.alignment import LFAMConfig
from nnunet_godc.training import GODCMixin, GODCOnlyMixin, LFAMMixin, PaperRecipeMixin


class nnUNetTrainerGODCLFAM(GODCMixin, LFAMMixin, nnUNetTrainer):
    """GODC and cross-entropy, with LFAM at every level."""


class nnUNetTrainerGODCLFAMShared(GODCMixin, LFAMMixin, nnUNetTrainer):
    """GODC and cross-entropy, with one deformable convolution for all levels."""

    lfam = LFAMConfig(shared=True)


class nnUNetTrainerGODCLFAMGuided(GODCMixin, LFAMMixin, nnUNetTrainer):
    """GODC and cross-entropy, with LFAM whose offsets follow from skip and decoder features."""

    lfam = LFAMConfig(guided=True)


class nnUNetTrainerGODCLFAMLite(GODCMixin, LFAMMixin, nnUNetTrainer):
    """GODC and cross-entropy, with a cheap LFAM: from the second skip on, on a quarter of the channels."""

    lfam = LFAMConfig(first_level=1, reduction=4)


class nnUNetTrainerGODCLFAMPaper(GODCOnlyMixin, LFAMMixin, PaperRecipeMixin, nnUNetTrainer):
    """GODC alone with LFAM, trained by the paper's recipe: Adam, batches of two, its augmentation."""
