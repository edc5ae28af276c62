"""GODC in nnU-Net's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn
from torch._dynamo import OptimizedModule

from nnunet_godc.errors import UserError
from nnunet_godc.losses import GODCConfig, GODCLoss
from nnunet_godc.losses.compounds import fused
from nnunet_godc.training.safe import SafeMixin

STATE_KEY = "godc_state"


class GODCMixin(SafeMixin):
    """Trains with GODC in the place of the soft Dice loss, beside cross-entropy as ever.

    Attributes:
        godc: the options; a subclass sets its own.
        godc_fused: whether GODC and cross-entropy are computed in one pass over the network's output, which takes less
            time and memory. Values and gradients are the same up to rounding; exponent 0, which promises Dice to the
            last bit, never is.
    """

    godc: ClassVar[GODCConfig] = GODCConfig()
    godc_fused: ClassVar[bool] = True

    def _build_loss(self) -> nn.Module:
        loss: nn.Module = super()._build_loss()
        compound = _compound(loss)
        stock = getattr(compound, "dc", None)
        if stock is None:
            raise UserError(
                f"{type(self).__name__}: the loss {type(compound).__name__} has no Dice term that GODC could replace; "
                f"combine GODCMixin with a trainer whose loss is Dice and cross-entropy."
            )
        compiled = isinstance(stock, OptimizedModule)
        if compiled:
            stock = stock._orig_mod
        term = GODCLoss(
            apply_nonlin=stock.apply_nonlin,
            batch_dice=stock.batch_dice,
            do_bg=stock.do_bg or self.godc.include_background,
            ddp=stock.ddp,
            config=self.godc,
            classes=self.label_manager.num_segmentation_heads,
        ).to(self.device)
        compound.dc = term
        in_one_pass = fused(compound) if self.godc_fused else compound
        is_fused = in_one_pass is not compound
        if isinstance(loss, DeepSupervisionWrapper):
            loss.loss = in_one_pass
            # torch.compile cannot branch on NumPy's numbers
            loss.weight_factors = tuple(float(weight) for weight in loss.weight_factors)
        else:
            loss = in_one_pass
        if compiled and is_fused:
            # dozens of operations on a few numbers remain, whose launches would take longer than the pass itself
            loss.compile()
        elif compiled:
            compound.dc = torch.compile(term)
        self._log_loss(stock.batch_dice, is_fused)
        return loss

    def _log_loss(self, batch_dice: bool, is_fused: bool) -> None:
        if self.local_rank != 0:
            return
        lines = [f"Loss: GODC in the place of the Dice term, {self.godc}."]
        if is_fused:
            lines.append("Loss: GODC and cross-entropy are computed in one pass over the network's output.")
        else:
            lines.append("Loss: GODC and cross-entropy are computed one after the other.")
        if batch_dice:
            lines.append(
                "The plans say batch_dice: true, which would pool the batch into one union per class. GODC weighs "
                "samples by their own unions and keeps them apart."
            )
        if self.configuration_manager.batch_size == 1 and self.godc.normalization != "running":
            lines.append(
                "The batch is one sample: its weight is 1 and GODC is the Dice loss. Use normalization='running', or "
                "plans with a larger batch_size."
            )
        for line in lines:
            self.print_to_log_file(line)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.loss.train()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        # validation patches stay out of the running mean
        self.loss.eval()

    def own_state(self) -> dict[str, Any]:
        state = _term(self.loss).state_dict()
        return super().own_state() | ({STATE_KEY: state} if state else {})

    def load_own_state(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_own_state(checkpoint)
        term = _term(self.loss)
        if bool(term.state_dict()) != (STATE_KEY in checkpoint):
            which = "no running mean of unions, which" if term.state_dict() else "a running mean of unions, and"
            does = "keeps" if term.state_dict() else "keeps none"
            raise UserError(
                f"the checkpoint of {checkpoint.get('trainer_name', 'another trainer')} holds {which} "
                f"{type(self).__name__} {does}; go on with the trainer that wrote it."
            )
        if STATE_KEY in checkpoint:
            term.load_state_dict(checkpoint[STATE_KEY])


class GODCOnlyMixin(GODCMixin):
    """Trains with GODC alone, without cross-entropy, as the paper does."""

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        _compound(loss).weight_ce = 0
        return loss

    def _log_loss(self, batch_dice: bool, is_fused: bool) -> None:
        super()._log_loss(batch_dice, is_fused)
        if self.local_rank == 0:
            self.print_to_log_file("Loss: cross-entropy has weight 0.")


def _compound(loss: nn.Module) -> Any:
    """nnU-Net's sum of Dice and cross-entropy inside its deep supervision."""
    return loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss


def _term(loss: nn.Module) -> GODCLoss:
    term = _compound(loss).dc
    return cast(GODCLoss, term._orig_mod if isinstance(term, OptimizedModule) else term)
