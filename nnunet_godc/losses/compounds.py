"""nnU-Net's compounds of Dice and cross-entropy, computed in one pass over the logits where GODC is the Dice term.

Each is nnU-Net's class with another `forward`, so that its attributes, and what a trainer changes of them, keep their
meaning. What the fused computation does not know goes through nnU-Net's `forward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn

from nnunet_godc.losses.fused import soft_statistics_and_cross_entropy
from nnunet_godc.losses.godc import GODCLoss
from nnunet_godc.losses.statistics import SoftStatistics

NOTHING_IGNORED = -100  # PyTorch's default for cross-entropy, which is no label


def fused(compound: nn.Module) -> nn.Module:
    """The compound with the same terms and weights, computed in one pass; itself where that is not known how to do."""
    if type(compound) is DC_and_CE_loss:
        options = {"ignore_label": compound.ignore_label}
        made = FusedDiceAndCrossEntropy
    elif type(compound) is DC_and_BCE_loss:
        options = {"use_ignore_label": compound.use_ignore_label}
        made = FusedDiceAndBinaryCrossEntropy
    else:
        return compound
    weights = {"weight_ce": compound.weight_ce, "weight_dice": compound.weight_dice}
    result = made({}, {}, **weights, **options, dice_class=lambda **_: compound.dc)
    result.ce = compound.ce
    return result if result.knows_terms() else compound


class FusedDiceAndCrossEntropy(DC_and_CE_loss):
    """Dice and cross-entropy of labels; (B, C, ...) and (B, 1, ...) -> scalar."""

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        if not (self.knows_terms() and _fits(net_output, target, channels=1) and net_output.shape[1] > 1):
            return cast(Tensor, super().forward(net_output, target))
        statistics, cross_entropy, voxels = soft_statistics_and_cross_entropy(
            net_output, target, ignore_label=self.ignore_label
        )
        # As nnU-Net has it, a term of weight 0 is left out, even if it is NaN, and cross-entropy where all is ignored.
        loss = cross_entropy.new_zeros(())
        if self.weight_ce != 0:
            loss = loss + self.weight_ce * cross_entropy.sum() / voxels.sum().clamp_min(1)
        if self.weight_dice != 0:
            loss = loss + self.weight_dice * _dice(self.dc, statistics, net_output)
        return loss

    def knows_terms(self) -> bool:
        """Whether the terms are GODC and plain cross-entropy."""
        ce = self.ce
        return (
            _knows_dice(self.dc, softmax_helper_dim1)
            and type(ce) is RobustCrossEntropyLoss
            and ce.weight is None
            and ce.label_smoothing == 0
            and ce.reduction == "mean"
            and ce.ignore_index == (NOTHING_IGNORED if self.ignore_label is None else self.ignore_label)
        )


class FusedDiceAndBinaryCrossEntropy(DC_and_BCE_loss):
    """Dice and binary cross-entropy of regions; (B, C, ...) and (B, C, ...), or (B, C + 1, ...), -> scalar."""

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        channels = net_output.shape[1] + int(self.use_ignore_label)
        if not (self.knows_terms() and _fits(net_output, target, channels)):
            return cast(Tensor, super().forward(net_output, target))
        statistics, cross_entropy, voxels = soft_statistics_and_cross_entropy(net_output, target, regions=True)
        # As nnU-Net has it, cross-entropy is the mean over all logits, or with an ignore label the sum over regions of
        # the mean over voxels.
        count = voxels.sum().clamp_min(1e-8) if self.use_ignore_label else net_output.numel()
        loss = self.weight_ce * cross_entropy.sum() / count
        return cast(Tensor, loss + self.weight_dice * _dice(self.dc, statistics, net_output))

    def knows_terms(self) -> bool:
        """Whether the terms are GODC and plain cross-entropy."""
        ce = self.ce
        return (
            _knows_dice(self.dc, torch.sigmoid)
            and type(ce) is nn.BCEWithLogitsLoss
            and ce.weight is None
            and ce.pos_weight is None
            and ce.reduction == ("none" if self.use_ignore_label else "mean")
        )


def _knows_dice(dice: nn.Module, nonlinearity: Callable[[Tensor], Tensor]) -> bool:
    # exponent 0 promises nnU-Net's Dice to the last bit, which another order of the sums does not keep
    return type(dice) is GODCLoss and dice.apply_nonlin is nonlinearity and dice.config.exponent != 0


def _fits(net_output: Tensor, target: Tensor, channels: int) -> bool:
    return net_output.is_floating_point() and target.shape == (net_output.shape[0], channels, *net_output.shape[2:])


def _dice(term: GODCLoss, statistics: SoftStatistics, net_output: Tensor) -> Tensor:
    return term.of_statistics(
        statistics if term.do_bg else statistics.foreground(), voxels=math.prod(net_output.shape[2:])
    )
