"""What the benchmarks call stock nnU-Net is nnU-Net."""

import json
from pathlib import Path

import pytest
import torch
from _godc import GODCInOnePass
from _stock import FEATURES, DeepSupervision, DiceAndCrossEntropy, SoftDice, TrainingStep, batch, network
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_godc.losses import GODCLoss
from nnunet_godc.losses.compounds import FusedDiceAndCrossEntropy, fused

PLANS = Path(__file__).parents[3] / "shared" / "data" / "lits" / "plans.json"


@pytest.mark.parametrize("batch_dice", [True, False])
def test_the_loss_is_nnunets(batch_dice):
    _, targets = batch((16, 16, 16), samples=2, stages=4, device=torch.device("cpu"))
    outputs = [torch.randn(2, 3, *target.shape[2:], requires_grad=True) for target in targets]
    ours = DeepSupervision(DiceAndCrossEntropy(SoftDice(batch_dice)), len(outputs))
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    stock = DeepSupervisionWrapper(
        DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss), (*ours.weights, 0.0)
    )
    torch.testing.assert_close(ours(outputs, targets), stock(outputs, targets))
    for mine, theirs in zip(
        torch.autograd.grad(ours(outputs, targets), outputs[:-1]),
        torch.autograd.grad(stock(outputs, targets), outputs[:-1]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_godc_in_one_pass_is_that_of_the_trainers():
    _, targets = batch((16, 16, 16), samples=2, stages=2, device=torch.device("cpu"))
    logits = torch.randn(2, 3, 16, 16, 16)
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    compound = fused(DC_and_CE_loss(options, {}, dice_class=GODCLoss))
    assert isinstance(compound, FusedDiceAndCrossEntropy)
    torch.testing.assert_close(GODCInOnePass()(logits, targets[0]), compound(logits, targets[0]))


@pytest.mark.skipif(not PLANS.exists(), reason="the plans of LiTS are not at hand")
def test_the_network_is_that_of_the_plans():
    plans = json.loads(PLANS.read_text())["configurations"]["3d_fullres"]["architecture"]
    planned = get_network_from_plans(
        plans["network_class_name"], plans["arch_kwargs"], plans["_kw_requires_import"], 1, 3, deep_supervision=True
    )
    ours = network(FEATURES)
    assert str(ours) == str(planned)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in planned.state_dict().items()}


def test_a_step_learns():
    torch.manual_seed(0)
    data = batch((16, 16, 16), samples=2, stages=3, device=torch.device("cpu"))
    loss = DeepSupervision(DiceAndCrossEntropy(SoftDice()), 2)
    step = TrainingStep(network((4, 8, 16)), loss, data)
    before = loss(step.bare(data[0]), data[1]).item()
    for _ in range(5):
        step()
    assert loss(step.bare(data[0]), data[1]).item() < before
