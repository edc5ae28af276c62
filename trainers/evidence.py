"""The trainers of the shipped studies on lung nodules: what one CPU core learns in minutes, one difference at a time.

Whether GODC and LFAM help is asked of these; docs/evidence/protocol.md says how, and what the answer cannot tell.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_godc.alignment import LFAMConfig
from nnunet_godc.losses import GODCConfig
from nnunet_godc.training import GODCMixin, GODCOnlyMixin, LFAMMixin, ScheduleMixin


class _Evidence(ScheduleMixin):
    """1500 steps on one thread, predictions without mirrored copies; all else is nnU-Net's.

    One thread, since two trainings side by side learn more in an hour than one on two cores, and since sums then have
    one order: the same seed gives the same numbers. Mirroring at prediction would take four times as long.
    """

    epochs = 30
    iterations_per_epoch = 50
    validation_iterations_per_epoch = 10

    def initialize(self) -> None:
        torch.set_num_threads(1)
        super().initialize()

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        configured: tuple[Any, ...] = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return configured


class _DicePooling(_Evidence):
    """nnU-Net's own loss, with its Dice per sample or over the batch whatever the plans say.

    Attributes:
        batch_dice: whether one Dice is made of the whole batch.
    """

    batch_dice: ClassVar[bool]

    def _build_loss(self) -> nn.Module:
        loss: nn.Module = super()._build_loss()
        compound: Any = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        compound.dc.batch_dice = self.batch_dice
        self.print_to_log_file(f"Loss: nnU-Net's own, batch_dice {self.batch_dice}.")
        return loss


class nnUNetTrainerEvidenceSampleDice(_DicePooling, nnUNetTrainer):
    """Dice per sample and cross-entropy: GODC's exponent 0."""

    batch_dice = False


class nnUNetTrainerEvidenceBatchDice(_DicePooling, nnUNetTrainer):
    """Dice over the batch and cross-entropy, as nnU-Net's 2d plans have it."""

    batch_dice = True


class nnUNetTrainerEvidenceGODC(_Evidence, GODCMixin, nnUNetTrainer):
    """GODC and cross-entropy."""


class nnUNetTrainerEvidenceGODCSquared(_Evidence, GODCMixin, nnUNetTrainer):
    """GODC with the squared weight, and cross-entropy."""

    godc = GODCConfig(exponent=2)


class nnUNetTrainerEvidenceGODCHalf(_Evidence, GODCMixin, nnUNetTrainer):
    """GODC with the square root of the weight, and cross-entropy."""

    godc = GODCConfig(exponent=0.5)


class nnUNetTrainerEvidenceGODCMinusHalf(_Evidence, GODCMixin, nnUNetTrainer):
    """The reverse of GODC: small objects weigh more, by the inverse root of their union; and cross-entropy."""

    godc = GODCConfig(exponent=-0.5)


class nnUNetTrainerEvidenceGODCMinusOne(_Evidence, GODCMixin, nnUNetTrainer):
    """The reverse of GODC: small objects weigh more, by the inverse of their union; and cross-entropy."""

    godc = GODCConfig(exponent=-1)


class nnUNetTrainerEvidenceGODCAttached(_Evidence, GODCMixin, nnUNetTrainer):
    """GODC with gradients through its weight, and cross-entropy."""

    godc = GODCConfig(detach=False)


class nnUNetTrainerEvidenceGODCL2(_Evidence, GODCMixin, nnUNetTrainer):
    """GODC normalised by the 2-norm of the batch's unions, and cross-entropy."""

    godc = GODCConfig(normalization="l2")


class nnUNetTrainerEvidenceGODCL1(_Evidence, GODCMixin, nnUNetTrainer):
    """GODC normalised by the sum of the batch's unions, and cross-entropy."""

    godc = GODCConfig(normalization="l1")


class nnUNetTrainerEvidenceGODCMax(_Evidence, GODCMixin, nnUNetTrainer):
    """GODC normalised by the largest union of the batch, and cross-entropy."""

    godc = GODCConfig(normalization="max")


class nnUNetTrainerEvidenceGODCRunning(_Evidence, GODCMixin, nnUNetTrainer):
    """GODC normalised by a running mean of unions, and cross-entropy."""

    godc = GODCConfig(normalization="running")


class _DiceAlone(_DicePooling):
    """nnU-Net's Dice without cross-entropy."""

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        compound: Any = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        compound.weight_ce = 0
        return loss


class nnUNetTrainerEvidenceSampleDiceOnly(_DiceAlone, nnUNetTrainer):
    """Dice per sample alone, the paper's baseline."""

    batch_dice = False


class nnUNetTrainerEvidenceGODCOnly(_Evidence, GODCOnlyMixin, nnUNetTrainer):
    """GODC alone, the paper's loss."""


class _WithBatchDice(LFAMMixin, _DicePooling):
    """LFAM under nnU-Net's own loss, as its 2d plans have it."""

    batch_dice = True


class nnUNetTrainerEvidenceLFAM(_WithBatchDice, nnUNetTrainer):
    """LFAM with kernels of its own at every level."""


class nnUNetTrainerEvidenceLFAMFrozen(_WithBatchDice, nnUNetTrainer):
    """The control: LFAM whose offsets stay zero, which is a plain convolution on every skip connection."""

    lfam = LFAMConfig(offset_lr_factor=0)


class nnUNetTrainerEvidenceLFAMShared(_WithBatchDice, nnUNetTrainer):
    """LFAM with one deformable convolution for all levels."""

    lfam = LFAMConfig(shared=True)


class nnUNetTrainerEvidenceLFAMGuided(_WithBatchDice, nnUNetTrainer):
    """LFAM whose offsets follow from skip and decoder features."""

    lfam = LFAMConfig(guided=True)


class nnUNetTrainerEvidenceLFAMLite(_WithBatchDice, nnUNetTrainer):
    """LFAM from the second skip on, on a quarter of the channels."""

    lfam = LFAMConfig(first_level=1, reduction=4)


class nnUNetTrainerEvidenceGODCLFAM(_Evidence, GODCMixin, LFAMMixin, nnUNetTrainer):
    """GODC and cross-entropy, with LFAM at every level."""


__all__ = [name for name in globals() if name.startswith("nnUNetTrainerEvidence")]
