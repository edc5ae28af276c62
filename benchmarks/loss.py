"""GODC against nnU-Net's soft Dice loss, per sample and pooled over the batch, alone and beside cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from _measure import Step, compare, forward_backward, parse_arguments, write_results
from torch import Tensor, nn

from nnunet_godc.losses import GODCConfig, GODCLoss

try:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
except ImportError:
    DC_and_CE_loss = MemoryEfficientSoftDiceLoss = None

SHAPES = [(2, 3, 64, 64, 64), (2, 14, 48, 48, 48)]
DICE_OPTIONS = {"smooth": 1e-5, "do_bg": False, "ddp": False}


def dice_terms() -> dict[str, Callable[..., nn.Module]]:
    terms: dict[str, Callable[..., nn.Module]] = {"GODC": partial(GODCLoss, config=GODCConfig())}
    if MemoryEfficientSoftDiceLoss is not None:
        terms["nnU-Net's sample Dice"] = partial(MemoryEfficientSoftDiceLoss, batch_dice=False)
        terms["nnU-Net's batch Dice"] = partial(MemoryEfficientSoftDiceLoss, batch_dice=True)
    return terms


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def steps(shape: tuple[int, ...], device: torch.device) -> tuple[dict[str, Step], dict[str, Step]]:
    """What is timed: Dice terms alone, and each beside cross-entropy."""
    torch.manual_seed(0)
    logits = torch.randn(shape, device=device, requires_grad=True)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), device=device).float()  # nnU-Net's loader gives floats
    alone, compound = {}, {}
    for name, term in dice_terms().items():
        loss = term(apply_nonlin=softmax, **DICE_OPTIONS)
        alone[name] = forward_backward(partial(loss, logits, labels), [logits])
        if DC_and_CE_loss is not None:
            both = DC_and_CE_loss(DICE_OPTIONS, {}, dice_class=term)
            compound[f"{name} + cross-entropy"] = forward_backward(partial(both, logits, labels), [logits])
    return alone, compound


def main() -> None:
    arguments = parse_arguments(__doc__)
    device = torch.device(arguments.device)
    notes = []
    if MemoryEfficientSoftDiceLoss is None:
        notes.append("nnunetv2 is not installed: its Dice losses, and cross-entropy beside Dice, are left out.")
        print(notes[0])
    measurements = []
    for shape in SHAPES:
        for group in steps(shape, device):
            if group:
                measurements += compare(" x ".join(map(str, shape)), group, device, arguments.seconds)
    write_results("loss", measurements, arguments, notes)


if __name__ == "__main__":
    main()
