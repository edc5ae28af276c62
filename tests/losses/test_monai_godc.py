"""GODC with MONAI's arguments: MONAI's Dice loss at exponent 0, GODC otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunet_godc.losses import GODCConfig, GODCLoss, MonaiGODCLoss

SQUARE = [[[[1.0, -1.0], [-1.0, 1.0]]]]
TWO_SQUARES = SQUARE * 2
TANH_SQUARES = [[[[1.0, -0.0], [-1.0, 1.0]]], SQUARE[0]]
SQUARE_TARGET = [[[[1.0, 0.0], [1.0, 1.0]]]]
TWO_TARGETS = [[[[1.0, 1.0], [1.0, 1.0]]], [[[1.0, 0.0], [1.0, 0.0]]]]
SOFT = [[[[0.3, 0.4], [0.7, 0.9]]], [[[1.0, 0.1], [0.5, 0.3]]]]
LINES = [[[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
LINE_LABELS = [[[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]]
CERTAIN = [[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]
CERTAIN_LABELS = [[[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, dim=1)


def smooth(value: float, **options: Any) -> dict[str, Any]:
    return {"smooth_nr": value, "smooth_dr": value, **options}


# Inputs and values of MONAI's own tests of DiceLoss (tests/losses/test_dice_loss.py, Apache-2.0), without its cases of
# squared_pred, jaccard, batch and soft_label.
PUBLISHED = [
    (smooth(1e-6, sigmoid=True), SQUARE, SQUARE_TARGET, 0.307576),
    (smooth(1e-4, sigmoid=True), TWO_SQUARES, TWO_TARGETS, 0.416657),
    (smooth(1e-4), SOFT, SOFT, 0.307773),
    (smooth(0, include_background=False, to_onehot_y=True), CERTAIN, CERTAIN_LABELS, 0.0),
    (smooth(1e-4, to_onehot_y=True, sigmoid=True), LINES, LINE_LABELS, 0.435050),
    (
        smooth(1e-4, to_onehot_y=True, sigmoid=True, reduction="none"),
        LINES,
        LINE_LABELS,
        [[[0.296529], [0.415136]], [[0.599976], [0.428559]]],
    ),
    (smooth(1e-4, to_onehot_y=True, softmax=True), LINES, LINE_LABELS, 0.383713),
    (smooth(1e-4, to_onehot_y=True, softmax=True, reduction="sum"), LINES, LINE_LABELS, 1.534853),
    (smooth(1e-4, other_act=torch.tanh), TWO_SQUARES, TWO_TARGETS, 0.999963),
    ({"other_act": torch.tanh, "smooth_nr": 0, "smooth_dr": 1e-4}, TANH_SQUARES, TWO_TARGETS, 0.840058),
    (smooth(1e-4, to_onehot_y=True, other_act=log_softmax), LINES, LINE_LABELS, -8.522593),
    (smooth(1e-4, to_onehot_y=True, other_act=log_softmax, weight=(0, 1)), LINES, LINE_LABELS, -8.268515),
]


@pytest.mark.parametrize(("options", "input", "target", "expected"), PUBLISHED)
def test_exponent_0_has_the_published_values_of_monais_dice_loss(
    options: dict[str, Any], input: Any, target: Any, expected: Any
) -> None:
    loss = MonaiGODCLoss(**options, exponent=0)(torch.tensor(input), torch.tensor(target))
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-5, atol=1e-6)


OPTIONS = [
    {"softmax": True, "to_onehot_y": True},
    {"softmax": True, "to_onehot_y": True, "include_background": False, "weight": [0.5, 2.0]},
    {"softmax": True, "to_onehot_y": True, "weight": 3.0, "reduction": "none"},
    {"sigmoid": True, "reduction": "sum"},
    {"sigmoid": True, "include_background": False, "smooth_nr": 0.0, "smooth_dr": 1e-3},
]


def batch(one_hot: bool, dimensions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (6,) * dimensions
    logits = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 1, *size), generator=generator)
    target = torch.zeros_like(logits).scatter_(1, labels, 1) if one_hot else labels
    return logits.requires_grad_(), target


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_exponent_0_is_monais_dice_loss_with_its_gradient(options: dict[str, Any], dimensions: int) -> None:
    losses = pytest.importorskip("monai.losses", reason="MONAI is an extra: pip install 'nnunet-godc[comparison]'")
    results = []
    for loss in (losses.DiceLoss(**options), MonaiGODCLoss(**options, exponent=0)):
        logits, target = batch(one_hot=not options.get("to_onehot_y", False), dimensions=dimensions)
        value = loss(logits, target)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), logits)))
    torch.testing.assert_close(results[1], results[0], check_dtype=False)


@pytest.mark.parametrize("options", [{}, {"exponent": 2.0}, {"normalization": "l2"}, {"detach": False}], ids=str)
@pytest.mark.parametrize("include_background", [True, False])
def test_it_is_godc(options: dict[str, Any], include_background: bool) -> None:
    logits, labels = batch(one_hot=False)
    ours = MonaiGODCLoss(include_background, to_onehot_y=True, softmax=True, **options)(logits, labels)
    (gradient,) = torch.autograd.grad(ours, logits)
    config = GODCConfig(include_background=include_background, **options)
    inside_nnunet = 1 + GODCLoss(lambda output: output.softmax(1), config=config)(logits, labels)
    (expected,) = torch.autograd.grad(inside_nnunet, logits)
    torch.testing.assert_close(ours, inside_nnunet)
    torch.testing.assert_close(gradient, expected)


def test_gradient_is_independent_of_object_size() -> None:
    probabilities = torch.full((2, 1, 10, 10, 10), 0.2)
    target = torch.zeros(2, 1, 10, 10, 10)
    target[0, :, :5], target[1, :, :5, :2, 0] = 1, 1  # 500 and 10 voxels
    probabilities[1, :, :, 2:] = 0  # the same IoU in both: 0.2 of as much again is predicted around the object
    probabilities[1, :, :, :, 1:] = 0
    probabilities.requires_grad_()
    MonaiGODCLoss()(probabilities, target).backward()
    large, small = probabilities.grad[0, 0, 0, 0, 0], probabilities.grad[1, 0, 0, 0, 0]
    torch.testing.assert_close(large, small, rtol=1e-3, atol=0)
    probabilities.grad = None
    MonaiGODCLoss(exponent=0)(probabilities, target).backward()
    assert probabilities.grad[1, 0, 0, 0, 0] / probabilities.grad[0, 0, 0, 0, 0] > 40


def test_the_running_mean_is_state_of_the_module() -> None:
    loss = MonaiGODCLoss(include_background=False, to_onehot_y=True, softmax=True, normalization="running", classes=3)
    logits, labels = batch(one_hot=False)
    loss(logits.float(), labels)
    state = loss.state_dict()
    assert state["godc.running_union"].shape == (2,)
    assert state["godc.running_union"].gt(0).all()
    assert loss.eval()(logits.float(), labels) == loss(logits.float(), labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmoid": True, "softmax": True}, "exclude each other"),
        ({"reduction": "median"}, "reduction is 'median'; use one of"),
        ({"weight": [1.0, -1.0]}, r"weight is \[1.0, -1.0\]; use numbers of at least 0"),
        ({"normalization": "running"}, "pass the number of classes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonaiGODCLoss(**options)


@pytest.mark.parametrize(
    ("options", "channels", "message"),
    [
        ({}, 1, r"the target's shape is \(2, 1, 4, 4\), and \(2, 3, 4, 4\) belongs .*; to_onehot_y=True takes labels"),
        ({"to_onehot_y": True}, 3, r"the target's shape is \(2, 3, 4, 4\), and \(2, 1, 4, 4\) belongs to an input"),
        ({"weight": [1.0, 2.0]}, 3, "weight has 2 numbers, and 3 classes count"),
    ],
)
def test_targets_and_weights_that_do_not_fit_are_refused(options: dict[str, Any], channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonaiGODCLoss(**options)(torch.rand(2, 3, 4, 4), torch.zeros(2, channels, 4, 4))


@pytest.mark.parametrize("option", [{"softmax": True}, {"to_onehot_y": True}, {"include_background": False}], ids=str)
def test_what_has_no_effect_on_a_single_channel_warns(option: dict[str, bool]) -> None:
    probabilities, target = torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    with pytest.warns(UserWarning, match=f"{next(iter(option))}=.* has no effect on a single channel"):
        loss = MonaiGODCLoss(**option)(probabilities, target)
    assert loss == MonaiGODCLoss()(probabilities, target)
