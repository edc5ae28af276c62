"""nnU-Net's own trainer, made safe."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.training import SafeMixin


class nnUNetTrainerSafe(SafeMixin, nnUNetTrainer):
    """nnU-Net as it is, with the checkpoints and refusals that the other trainers here have, too."""
