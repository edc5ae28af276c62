"""Mixins that put GODC, LFAM, the paper's recipe and short schedules into nnU-Net's trainer.

Each derives from nnUNetTrainer and calls `super()`, so they combine with each other and with nnU-Net's own variants:

    class nnUNetTrainerMine(GODCMixin, LFAMMixin, nnUNetTrainer):
        godc = GODCConfig(normalization="running")
        lfam = LFAMConfig(first_level=1)
"""

from nnunet_godc.training.godc import GODCMixin, GODCOnlyMixin
from nnunet_godc.training.lfam import LFAMMixin
from nnunet_godc.training.recipe import PaperRecipeMixin
from nnunet_godc.training.schedule import ScheduleMixin, with_epochs

__all__ = ["GODCMixin", "GODCOnlyMixin", "LFAMMixin", "PaperRecipeMixin", "ScheduleMixin", "with_epochs"]
