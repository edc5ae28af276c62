"""GODC with the arguments of MONAI's DiceLoss, for training loops outside of nnU-Net. It does not need MONAI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nnunet_godc.losses.godc import GODCConfig, GODCLoss, Normalization
from nnunet_godc.losses.statistics import soft_statistics

Reduction = Literal["mean", "sum", "none"]


class MonaiGODCLoss(nn.Module):
    """GODC, (1 - Dice) (U / norm(U over the batch)) ** exponent, called as MONAI's DiceLoss is.

    With exponent 0 it is that loss. MONAI's `squared_pred`, `jaccard` and `batch` have no place here: they would be
    another coefficient, or leave one union for the whole batch and nothing to weigh.

    Args:
        include_background: whether channel 0 counts; one channel always does.
        to_onehot_y: whether the target holds labels, to be spread over the channels.
        sigmoid, softmax, other_act: what makes probabilities of the network's output, at most one of them; none where
            it gives probabilities already.
        reduction: over samples and classes: "mean", "sum", or "none" for one value of each.
        smooth_nr, smooth_dr: added to the numerator and the denominator of the Dice coefficient.
        weight: of each class that counts, a number or one for each class; at least 0. As MONAI has it, the mean is not
            divided by them.
        normalization, exponent, detach: see :class:`GODCConfig`.
        classes: channels of the network's output; needed for normalization "running" only.

    Shape:
        - input: (B, C, ...) in any number of dimensions.
        - target: (B, C, ...), or (B, 1, ...) with `to_onehot_y`.
        - output: a scalar; with reduction "none" (B, C, 1, ...).

    With several ranks of a process group, unions are normalised over the samples of all.

    Raises:
        ValueError: if a value is out of range, or input and target do not fit together.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: Reduction = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        weight: Sequence[float] | float | Tensor | None = None,
        *,
        normalization: Normalization = "mean",
        exponent: float = 1.0,
        detach: bool = True,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if sigmoid + softmax + (other_act is not None) > 1:
            raise ValueError("GODC: sigmoid, softmax and other_act exclude each other; use one of them.")
        if reduction not in get_args(Reduction):
            raise ValueError(f"GODC: reduction is {reduction!r}; use one of {get_args(Reduction)}.")
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.reduction = reduction
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        class_weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        if class_weight is not None and not (class_weight >= 0).all():
            raise ValueError(f"GODC: weight is {weight}; use numbers of at least 0.")
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", class_weight)
        config = GODCConfig(normalization=normalization, exponent=exponent, detach=detach)
        self.godc = GODCLoss(do_bg=include_background or classes == 1, config=config, classes=classes)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        several = input.shape[1] > 1
        self._check(input, target)
        background = self.include_background or not several
        statistics = soft_statistics(self._activated(input), target, include_background=background)
        sums = statistics.prediction + statistics.reference
        dice = (2 * statistics.intersection + self.smooth_nr) / (sums + self.smooth_dr)  # (B, C)
        loss = 1 - dice
        share: Tensor | float = 1.0
        if self.godc.config.exponent != 0:
            weight, share = self.godc.weight(statistics, voxels=math.prod(input.shape[2:]))
            loss = loss * weight
        if self.class_weight is not None and loss.shape[1] > 1:
            if self.class_weight.dim() and len(self.class_weight) != loss.shape[1]:
                raise ValueError(
                    f"GODC: weight has {len(self.class_weight)} numbers, and {loss.shape[1]} classes count; give one "
                    f"for each, without the background if it does not count."
                )
            loss = loss * self.class_weight
        if self.reduction == "none":
            return loss.reshape(*loss.shape, *(1,) * (input.dim() - 2))
        return loss.sum() if self.reduction == "sum" else loss.mean() * share

    def _check(self, input: Tensor, target: Tensor) -> None:
        """Warns of arguments without effect, as MONAI does, and refuses a target of another shape."""
        several = input.shape[1] > 1
        for name in ("softmax", "to_onehot_y"):
            if getattr(self, name) and not several:
                warnings.warn(f"GODC: {name}=True has no effect on a single channel.", stacklevel=3)
        if not (self.include_background or several):
            warnings.warn("GODC: include_background=False has no effect on a single channel.", stacklevel=3)
        expected = (len(input), 1, *input.shape[2:]) if self.to_onehot_y and several else input.shape
        if target.shape != torch.Size(expected):
            hint = "" if self.to_onehot_y else "; to_onehot_y=True takes labels (B, 1, ...)"
            raise ValueError(
                f"GODC: the target's shape is {tuple(target.shape)}, and {tuple(expected)} belongs to an input of "
                f"{tuple(input.shape)}{hint}."
            )

    def _activated(self, input: Tensor) -> Tensor:
        if self.sigmoid:
            return torch.sigmoid(input)
        if self.softmax and input.shape[1] > 1:
            return torch.softmax(input, 1)
        return input if self.other_act is None else self.other_act(input)
