"""nnU-Net's compounds in one pass: equal to nnU-Net's own around the plain GODC, whatever they are made of."""

import copy
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_godc.losses import GODCConfig, GODCLoss
from nnunet_godc.losses.compounds import fused
from nnunet_godc.losses.godc import Normalization

NORMALIZATIONS = get_args(Normalization)


def compound(*, regions=False, ignored=False, classes=3, config=None, weight_ce=1, weight_dice=1, do_bg=None):
    """nnU-Net's compound with the plain GODC, for so many classes."""
    dice = {
        "batch_dice": True,
        "smooth": 1e-5,
        "do_bg": regions if do_bg is None else do_bg,
        "ddp": False,
        "config": config or GODCConfig(),
        "classes": classes,
    }
    weights = {"weight_ce": weight_ce, "weight_dice": weight_dice}
    if regions:
        return DC_and_BCE_loss({}, dice, **weights, use_ignore_label=ignored, dice_class=GODCLoss)
    return DC_and_CE_loss(dice, {}, **weights, ignore_label=classes if ignored else None, dice_class=GODCLoss)


def batch(*, regions=False, ignored=False, classes=3, samples=2, size=(4, 5, 6), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((samples, classes, *size), generator=generator, dtype=torch.float64).to(dtype)
    if regions:
        return logits, torch.rand((samples, classes + ignored, *size), generator=generator) < 0.3
    return logits, torch.randint(classes + ignored, (samples, 1, *size), generator=generator).float()


def in_one_pass(loss):
    """The fused twin, with a Dice term, and a state, of its own."""
    twin = fused(copy.deepcopy(loss))
    assert type(twin) is not type(loss)
    assert isinstance(twin, type(loss))
    return twin


def assert_alike(differentiate, first, second, *arguments, tolerance=2e-6):
    (value, gradient), (other_value, other_gradient) = (differentiate(loss, *arguments) for loss in (first, second))
    torch.testing.assert_close(other_value, value, rtol=tolerance, atol=tolerance, check_dtype=False)
    largest = gradient.abs().max().item()
    torch.testing.assert_close(other_gradient, gradient, rtol=tolerance, atol=tolerance * max(largest, 1e-6))


@settings(max_examples=80, deadline=None)
@given(
    regions=st.booleans(),
    ignored=st.booleans(),
    classes=st.integers(2, 6),
    samples=st.integers(1, 3),
    size=st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple),
    normalization=st.sampled_from(NORMALIZATIONS),
    exponent=st.sampled_from([0.5, 1.0, 2.0]),
    detach=st.booleans(),
    do_bg=st.booleans(),
    weights=st.sampled_from([(1, 1), (0, 1), (1, 0), (0.3, 2.5)]),
    seed=st.integers(0, 2**31),
)
@example(
    regions=False,
    ignored=True,
    classes=2,
    samples=1,
    size=(1, 1),
    normalization="mean",
    exponent=0.5,
    detach=False,
    do_bg=False,
    weights=(1, 0),
    seed=1,
)
def test_value_gradient_and_state_are_those_of_nnunets_compound(
    regions, ignored, classes, samples, size, normalization, exponent, detach, do_bg, weights, seed
):
    kind = {"regions": regions, "ignored": ignored, "classes": classes}
    config = GODCConfig(normalization=normalization, exponent=exponent, detach=detach)
    loss = compound(**kind, config=config, do_bg=do_bg, weight_ce=weights[0], weight_dice=weights[1])
    twin = in_one_pass(loss)
    for step in range(2):  # the running mean takes part from the second step on
        logits, target = batch(**kind, samples=samples, size=size, dtype=torch.float64, seed=seed + step)
        results = []
        for each in (loss, twin):
            leaf = logits.clone().requires_grad_()
            # where every voxel is ignored and the Dice term has no weight, nnU-Net returns the number 0, not a tensor
            value = each(leaf, target) + 0 * leaf.sum()
            results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
        # in float64 nnU-Net's binary cross-entropy is rounded to float32
        tolerance = 1e-6 if regions else 1e-9
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance, check_dtype=not regions)
    torch.testing.assert_close(twin.dc.state_dict(), loss.dc.state_dict(), rtol=1e-6, atol=1e-9)


KINDS = [
    {},
    {"ignored": True},
    {"regions": True},
    {"regions": True, "ignored": True},
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(kind) or "labels")


@every_kind
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_in_single_precision(differentiate, kind, normalization):
    loss = compound(**kind, config=GODCConfig(normalization=normalization))
    assert_alike(differentiate, loss, in_one_pass(loss), *batch(**kind))


@every_kind
def test_in_half_precision_under_autocast(differentiate, kind):
    """As logits come from a network on a GPU; the statistics are float32 either way."""
    loss = compound(**kind)
    logits, target = batch(**kind, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert in_one_pass(loss)(logits, target).dtype == torch.float32
        assert_alike(differentiate, loss, in_one_pass(loss), logits, target, tolerance=2e-2)


@every_kind
def test_one_region_or_two_classes(differentiate, kind):
    classes = 1 if kind.get("regions") else 2
    loss = compound(**kind, classes=classes)
    assert_alike(differentiate, loss, in_one_pass(loss), *batch(**kind, classes=classes))


def test_what_a_trainer_changes_of_the_compound_takes_effect(differentiate):
    loss = compound()
    twin = in_one_pass(loss)
    for each in (loss, twin):
        each.weight_ce, each.weight_dice, each.dc.smooth = 0.25, 3.0, 1.0
    assert_alike(differentiate, loss, twin, *batch())


def test_deep_supervision(differentiate):
    batches = [batch(size=(8, 8)), batch(size=(4, 4)), batch(size=(2, 2))]
    outputs, targets = ([entry[i] for entry in batches] for i in range(2))
    loss = compound(config=GODCConfig(normalization="running"))
    values = [DeepSupervisionWrapper(each, [0.6, 0.4, 0])(outputs, targets) for each in (loss, in_one_pass(loss))]
    torch.testing.assert_close(*values)


class OtherGODC(GODCLoss):
    """Anyone's own variant."""

    def of_statistics(self, statistics, voxels):
        return super().of_statistics(statistics, voxels) * 2


def changed(*, ignored=False, **changes):
    """The compound with other terms."""
    loss = compound(ignored=ignored)
    for path, value in changes.items():
        part, name = path.split("__")
        setattr(getattr(loss, part), name, value)
    return loss


def of_other_class(dice_class):
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(options, {}, dice_class=dice_class)


UNKNOWN = {
    "exponent 0, which promises Dice to the last bit": lambda: compound(config=GODCConfig(exponent=0)),
    "Dice": lambda: of_other_class(MemoryEfficientSoftDiceLoss),
    "a subclass of GODC": lambda: of_other_class(OtherGODC),
    "class weights": lambda: changed(ce__weight=torch.tensor([1.0, 2.0, 3.0])),
    "label smoothing": lambda: changed(ce__label_smoothing=0.1),
    "cross-entropy without a class": lambda: changed(ce__ignore_index=2),
    "cross-entropy that ignores other voxels than Dice": lambda: changed(ignored=True, ce__ignore_index=0),
    "a sum of cross-entropies": lambda: changed(ce__reduction="sum"),
    "another nonlinearity": lambda: changed(dc__apply_nonlin=torch.sigmoid),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_is_not_known_stays_nnunets(make):
    loss = make()
    assert fused(loss) is loss


@pytest.mark.parametrize(
    "loss", [DC_and_topk_loss({}, {}), nn.CrossEntropyLoss()], ids=lambda loss: type(loss).__name__
)
def test_other_losses_are_left_alone(loss):
    assert fused(loss) is loss


def test_terms_changed_afterwards_are_followed_too(differentiate):
    loss = compound()
    twin = in_one_pass(loss)
    for each in (loss, twin):
        each.ce = type(each.ce)(weight=torch.tensor([1.0, 2.0, 3.0]))
    value, gradient = differentiate(loss, *batch())
    assert differentiate(twin, *batch())[0] == value
    assert differentiate(twin, *batch())[1].equal(gradient)


def test_a_target_that_does_not_fit_is_refused_in_nnunets_words():
    logits, target = batch()
    for loss in (compound(), in_one_pass(compound())):
        with pytest.raises((RuntimeError, ValueError)):
            loss(logits, target[:, :, 1:])


@every_kind
def test_compiled_as_one_graph_with_deep_supervision(kind):
    torch._dynamo.reset()
    loss = DeepSupervisionWrapper(in_one_pass(compound(**kind)), [0.6, 0.4, 0.0])
    compiled = copy.deepcopy(loss)
    compiled.compile(backend="aot_eager", fullgraph=True)
    batches = [batch(**kind, size=(8, 8)), batch(**kind, size=(4, 4)), batch(**kind, size=(2, 2))]
    results = []
    for each in (loss, compiled):
        leaves = [logits.clone().requires_grad_() for logits, _ in batches]
        value = each(leaves, [target for _, target in batches])
        results.append((value.detach(), torch.autograd.grad(value, leaves[:2])))
    torch.testing.assert_close(*results)
    torch._dynamo.reset()
