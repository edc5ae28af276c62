"""The trainer of `nnunet-godc demo`: both parts in a schedule that a CPU finishes in minutes."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.training import GODCMixin, LFAMMixin, ScheduleMixin


class nnUNetTrainerGODCLFAMDemo(ScheduleMixin, GODCMixin, LFAMMixin, nnUNetTrainer):
    """GODC and cross-entropy, with LFAM at every level; short."""

    epochs = 12
    iterations_per_epoch = 25
    validation_iterations_per_epoch = 4
