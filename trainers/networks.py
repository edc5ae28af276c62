"""Trainers of the networks that the paper compares with (Table III), with nnU-Net's own loss."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc.training.networks import AttentionUNetMixin, CENetMixin, ResUNetMixin, UNetMixin, UNetPlusPlusMixin


class nnUNetTrainerUNet(UNetMixin, nnUNetTrainer):
    """U-Net as published, 64 to 1024 features."""


class nnUNetTrainerResUNet(ResUNetMixin, nnUNetTrainer):
    """A residual U-Net with 64 to 512 features, as published."""


class nnUNetTrainerUNetPlusPlus(UNetPlusPlusMixin, nnUNetTrainer):
    """U-Net++ of MONAI."""


class nnUNetTrainerAttentionUNet(AttentionUNetMixin, nnUNetTrainer):
    """Attention U-Net of MONAI."""


class nnUNetTrainerCENet(CENetMixin, nnUNetTrainer):
    """CE-Net, in 2D."""
