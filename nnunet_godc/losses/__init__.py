"""GODC, the gradient-optimised Dice loss."""

from nnunet_godc.losses.godc import GODCConfig, GODCLoss, dice_weight, union_norm
from nnunet_godc.losses.monai import MonaiGODCLoss
from nnunet_godc.losses.statistics import SoftStatistics, soft_dice, soft_statistics, soft_union

__all__ = [
    "GODCConfig",
    "GODCLoss",
    "MonaiGODCLoss",
    "SoftStatistics",
    "dice_weight",
    "soft_dice",
    "soft_statistics",
    "soft_union",
    "union_norm",
]
