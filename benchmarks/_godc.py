"""GODC and cross-entropy in one pass, as the trainers compute it, in plain PyTorch where nnU-Net is not installed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from nnunet_godc.losses import GODCConfig, GODCLoss
from nnunet_godc.losses.fused import soft_statistics_and_cross_entropy


def godc() -> GODCLoss:
    """The Dice term, without the background."""
    return GODCLoss(partial(torch.softmax, dim=1), do_bg=False, ddp=False, config=GODCConfig())


class GODCInOnePass(nn.Module):
    """GODC and cross-entropy; tests/benchmarks compares it with nnU-Net's compound."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = godc()

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        statistics, cross_entropy, voxels = soft_statistics_and_cross_entropy(logits, labels)
        dice = self.dice.of_statistics(statistics.foreground(), voxels=logits.shape[2:].numel())
        return dice + cross_entropy.sum() / voxels.sum()
