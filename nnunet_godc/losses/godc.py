"""GODC, the gradient-optimised Dice loss (Ming and Xiao, IEEE Signal Processing Letters 31, 2024).

The gradient of the Dice loss of one object, with IoU = I / U, is

    d(1 - Dice) / dP_v = -2 [Y_v - IoU (1 - Y_v)] / ((1 + IoU)^2 U)

(eq. (7) of the paper, which drops the factor 2 before IoU; the line above is what autograd gives). It falls as 1 / U,
so large objects learn slowly. GODC multiplies each object's loss by its union over the norm of the unions of the batch
(eq. (8)), as a constant:

    GODC = (1 - Dice) w,   w = (U / norm(U over the batch)) ** exponent

With exponent 1 two objects of one batch with the same IoU have the same gradient per voxel, whatever their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nnunet_godc.losses.statistics import SoftStatistics, soft_dice, soft_statistics, soft_union

Normalization = Literal["mean", "l2", "l1", "max", "running"]

# Every norm of the paper's ||U||* is a vector norm; the mean is the 1-norm over the number of samples.
_ORDER = {"mean": 1.0, "running": 1.0, "l1": 1.0, "l2": 2.0, "max": math.inf}


@dataclass(frozen=True, kw_only=True)
class GODCConfig:
    """Options of GODC.

    Attributes:
        normalization: what a union is divided by, per class over the samples of the batch (and of all ranks): their
            "mean" (weights then average 1, so that the balance with cross-entropy stays), their "l2" or "l1" norm,
            their "max", or a "running" mean over the training. The paper does not say which norm it means. All but
            "running" make the weight of a batch of one sample 1: GODC is then the Dice loss.
        exponent: 1 is GODC, 2 the paper's faster and less stable variant, 0 the Dice loss to the last bit. Below 0,
            small objects weigh more than large ones, the reverse of GODC; a sample without the class, whose union is
            false positives alone and may be next to nothing, then has the weight 1. Every other union is at least one
            voxel, so that no weight exceeds norm ** -exponent.
        detach: the weight is a constant, as the paper's "gradient scaling" says; False lets gradients through it.
        smooth: added to numerator and denominator of the Dice coefficient.
        include_background: whether channel 0 of a softmax counts. In region-based training every channel counts.
        momentum: weight of the newest batch in the running mean, which starts as a plain average of all batches.

    Raises:
        ValueError: if a value is out of range.
    """

    normalization: Normalization = "mean"
    exponent: float = 1.0
    detach: bool = True
    smooth: float = 1e-5
    include_background: bool = False
    momentum: float = 0.01

    def __post_init__(self) -> None:
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"GODC: normalization is {self.normalization!r}; use one of {get_args(Normalization)}.")
        if not math.isfinite(self.exponent):
            raise ValueError(f"GODC: exponent is {self.exponent}; use a finite number (1 is the paper's GODC).")
        if not (math.isfinite(self.smooth) and self.smooth >= 0):
            raise ValueError(f"GODC: smooth is {self.smooth}; use a number of at least 0 (nnU-Net uses 1e-5).")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"GODC: momentum is {self.momentum}; use a number above 0 and at most 1.")


def union_norm(union: Tensor, normalization: Normalization) -> Tensor:
    """Norm of the unions of a batch, per class: (samples, C) -> (C,). "running" is the mean of this batch."""
    norm: Tensor = torch.linalg.vector_norm(union, _ORDER[normalization], dim=0)
    return norm / len(union) if normalization in ("mean", "running") else norm


def dice_weight(union: Tensor, norm: Tensor, exponent: float) -> Tensor:
    """The weight (U / norm) ** exponent of each sample and class, (B, C) and (C,) -> (B, C).

    A norm of zero means that nothing was predicted and nothing is there in any sample: the weight is 1. So does one
    below the normal numbers, whose reciprocal, a derivative of the weight, may be infinite.
    """
    nothing = norm < torch.finfo(norm.dtype).tiny
    ratio = torch.where(nothing, torch.ones_like(union), union / torch.where(nothing, torch.ones_like(norm), norm))
    if exponent == 1:
        return ratio
    # the derivative of ratio ** exponent is infinite at zero for an exponent below 1
    return ratio.clamp_min(torch.finfo(ratio.dtype).tiny) ** exponent


class GODCLoss(nn.Module):
    """GODC in the place of nnU-Net's soft Dice loss, with its arguments, inside DC_and_CE_loss or DC_and_BCE_loss.

    Args:
        apply_nonlin: makes probabilities of the network's output: softmax over channels, or sigmoid for regions.
        batch_dice: accepted because nnU-Net passes it, and without effect: one union for the whole batch would leave
            nothing to weigh.
        do_bg: whether channel 0 counts; None takes `config.include_background`.
        smooth: None takes `config.smooth`.
        ddp: whether to normalise over all ranks of the default process group, if there is one.
        config: the options.
        classes: channels of the network's output; needed for the state of normalization "running" only.

    Shape:
        - input: (B, C, ...) logits in 2D or 3D, any floating dtype; statistics are float32 at least.
        - target: labels (B, 1, ...) or (B, ...), or one-hot or regions (B, C, ...).
        - loss_mask: (B, 1, ...), True where a voxel counts, or None.
        - output: a scalar, mean over samples and classes of (1 - Dice) w, minus 1. nnU-Net's Dice loss is -Dice, which
          is (1 - Dice) - 1, so the two are on one scale.

    With several ranks each rank's value is weighted by its share of the samples: the ranks' average, which is what
    DistributedDataParallel makes of the gradients, is that of one process with the whole batch.

    The state of "running" is the mean union as a share of the output's voxels, so that one state serves all outputs of
    deep supervision. A batch is weighed with the mean of those before it (the first with its own), and changes it only
    in training mode. Each output of deep supervision counts as a batch: a step's coarser outputs are weighed with a
    mean that its finer ones have moved, by `momentum` at the most once the training is under way. The mean includes
    patches without the class, so that an object of a rare class has a weight well above 1.
    """

    running_union: Tensor
    batches_seen: Tensor

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool | None = None,
        smooth: float | None = None,
        ddp: bool = True,
        *,
        config: GODCConfig | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config if config is not None else GODCConfig()
        self.apply_nonlin = apply_nonlin
        self.do_bg = self.config.include_background if do_bg is None else do_bg
        self.smooth = self.config.smooth if smooth is None else smooth
        self.ddp = ddp
        if self.config.normalization == "running":
            if classes is None:
                raise ValueError("GODC: normalization 'running' keeps a mean per class; pass the number of classes.")
            self.register_buffer("running_union", torch.zeros(classes if self.do_bg else classes - 1))
            self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))

    def forward(self, net_output: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        probabilities = net_output if self.apply_nonlin is None else self.apply_nonlin(net_output)
        statistics = soft_statistics(probabilities, target, loss_mask, include_background=self.do_bg)
        return self.of_statistics(statistics, voxels=math.prod(net_output.shape[2:]))

    def of_statistics(self, statistics: SoftStatistics, voxels: int) -> Tensor:
        """The loss that these statistics give; of all classes that count, from an output of so many voxels."""
        dice = soft_dice(statistics, self.smooth)  # (B, C)
        if self.config.exponent == 0:
            return -dice.mean()
        weight, share = self.weight(statistics, voxels)
        return (weight - 1 - weight * dice).mean() * share

    def weight(self, statistics: SoftStatistics, voxels: int) -> tuple[Tensor, Tensor | float]:
        """The weight of each sample and class, (B, C), and this rank's number of samples over the ranks' average."""
        union = soft_union(statistics)  # (B, C)
        if self.config.detach:
            union = union.detach()
        norm, share = self._norm_over_ranks(union)  # (C,), scalar
        if self.config.normalization == "running":
            norm = self._running_norm(norm, voxels)
        if self.config.exponent < 0:
            union = torch.where(statistics.reference > 0, union, norm)
        return dice_weight(union, norm, self.config.exponent), share

    def _norm_over_ranks(self, union: Tensor) -> tuple[Tensor, Tensor | float]:
        """The norm over the samples of all ranks, and this rank's number of samples over the ranks' average."""
        normalization = self.config.normalization
        if not (self.ddp and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return union_norm(union, normalization), 1.0
        from nnunetv2.utilities.ddp_allgather import AllGatherGrad

        # A norm of the ranks' norms is the norm of all. Ranks may hold different numbers of samples.
        samples = union.new_full((1,), len(union))
        local = torch.linalg.vector_norm(union, _ORDER[normalization], dim=0)
        gathered = AllGatherGrad.apply(torch.cat((local, samples)))  # (ranks, C + 1)
        norm = torch.linalg.vector_norm(gathered[:, :-1], _ORDER[normalization], dim=0)
        all_samples = gathered[:, -1].detach().sum()
        share = len(union) * len(gathered) / all_samples
        return (norm / all_samples if normalization in ("mean", "running") else norm), share

    def _running_norm(self, batch_mean: Tensor, voxels: int) -> Tensor:
        """Mean union of the batches so far, for an output of so many voxels; adds this batch to it."""
        newest = batch_mean.detach() / voxels
        first = self.batches_seen == 0
        mean = torch.where(first, newest, self.running_union)
        if self.training:
            # a copy, since the addition below must not reach the norm that autograd keeps
            step = (1 / (self.batches_seen + 1)).clamp_min(self.config.momentum)
            # a gradient scaler skips a batch that is not finite and goes on; one such batch must not stay in the mean
            finite = newest.isfinite().all()
            self.running_union.copy_(torch.where(finite, mean + (newest - mean) * step, self.running_union))
            self.batches_seen.add_(finite)
        return mean * voxels

    def extra_repr(self) -> str:
        return f"{self.config}, do_bg={self.do_bg}, smooth={self.smooth}, ddp={self.ddp}"
