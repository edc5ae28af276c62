"""Mixins that put GODC, LFAM, the paper's recipe, short schedules and seeds into nnU-Net's trainer.

Each derives from nnUNetTrainer and calls `super()`, so they combine with each other and with nnU-Net's own variants:

    class nnUNetTrainerMine(GODCMixin, LFAMMixin, nnUNetTrainer):
        godc = GODCConfig(normalization="running")
        lfam = LFAMConfig(first_level=1)
"""

from nnunet_godc.training.godc import GODCMixin, GODCOnlyMixin
from nnunet_godc.training.lfam import LFAMMixin
from nnunet_godc.training.recipe import PaperRecipeMixin
from nnunet_godc.training.safe import SafeMixin
from nnunet_godc.training.schedule import ScheduleMixin, with_epochs
from nnunet_godc.training.seeding import SeededMixin, with_seed

__all__ = [
    "GODCMixin",
    "GODCOnlyMixin",
    "LFAMMixin",
    "PaperRecipeMixin",
    "SafeMixin",
    "ScheduleMixin",
    "SeededMixin",
    "with_epochs",
    "with_seed",
]
