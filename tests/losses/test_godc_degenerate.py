"""What patches hold in the worst case, and what holds for patches of any shape."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.utilities.helpers import softmax_helper_dim1

from nnunet_godc.losses import GODCConfig, GODCLoss
from nnunet_godc.losses.compounds import fused as fused_compound
from nnunet_godc.losses.godc import Normalization

CONFIGS = [
    GODCConfig(normalization=normalization, exponent=exponent, detach=detach)
    for normalization in get_args(Normalization)
    for exponent in (0.5, 1.0, 2.0)
    for detach in (True, False)
]
every_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.normalization}-{c.exponent}-{'constant' if c.detach else 'through'}"
)


def softmax_loss(config, classes=3, fused=False):
    if fused:
        options = {"do_bg": False, "smooth": 1e-5, "config": config, "classes": classes}
        return in_one_pass(DC_and_CE_loss(options, {}, weight_ce=0, ignore_label=classes, dice_class=GODCLoss), classes)
    return GODCLoss(softmax_helper_dim1, config=config, classes=classes)


def sigmoid_loss(config, classes=3, fused=False):
    if fused:
        options = {"do_bg": True, "smooth": 1e-5, "config": config, "classes": classes}
        compound = DC_and_BCE_loss({}, options, weight_ce=0, use_ignore_label=True, dice_class=GODCLoss)
        return in_one_pass(compound, classes)
    return GODCLoss(torch.sigmoid, do_bg=True, config=config, classes=classes)


def in_one_pass(compound, classes):
    """GODC as the fused compound computes it, called as GODCLoss is: with a mask instead of an ignore label."""
    loss = fused_compound(compound)
    assert loss is not compound

    def call(logits, target, mask=None):
        mask = torch.ones_like(target[:, :1], dtype=torch.bool) if mask is None else mask
        if isinstance(compound, DC_and_CE_loss):
            return loss(logits, torch.where(mask, target, classes))
        if target.shape != logits.shape:
            target = torch.cat([target == label for label in range(classes)], dim=1)
        return loss(logits, torch.cat([target, ~mask], dim=1).float())

    return call


both_ways = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


@both_ways
@every_config
class TestDegenerate:
    @pytest.mark.parametrize("batch", [1, 3])
    def test_class_without_a_voxel_in_the_reference(self, random_batch, differentiate, config, fused, batch):
        logits, labels = random_batch(batch=batch)
        value, gradient = differentiate(softmax_loss(config, fused=fused), logits, labels.clamp_max(1))
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient[:, 1].ne(0).all()

    def test_nothing_there_and_nothing_predicted_is_perfect(self, differentiate, config, fused):
        logits = torch.full((2, 3, 4, 4), -1e4)
        value, gradient = differentiate(sigmoid_loss(config, fused=fused), logits, torch.zeros(2, 3, 4, 4))
        assert value == -1
        assert gradient.eq(0).all()

    def test_prediction_below_the_normal_numbers_is_none(self, differentiate, config, fused):
        logits = torch.tensor([0.0, -95.0, -95.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
        value, gradient = differentiate(softmax_loss(config, fused=fused), logits, torch.zeros(2, 1, 4, 4).long())
        assert value == -1
        assert gradient.isfinite().all()

    def test_sample_with_nothing_beside_one_with_an_object(self, differentiate, config, fused):
        target = torch.zeros(2, 1, 4, 4)
        target[1, :, :2] = 1
        logits = torch.cat((torch.full((1, 1, 4, 4), -1e4), torch.zeros(1, 1, 4, 4)))
        value, gradient = differentiate(sigmoid_loss(config, classes=1, fused=fused), logits, target)
        assert value > -1
        assert gradient[0].eq(0).all()
        assert gradient[1].isfinite().all()
        assert gradient[1].ne(0).all()

    def test_patch_in_which_everything_is_ignored(self, random_batch, differentiate, config, fused):
        logits, _ = random_batch()
        labels = torch.full((2, 1, 6, 5, 4), 3)
        options = {"do_bg": False, "smooth": 1e-5, "config": config, "classes": 3}
        loss = DC_and_CE_loss(options, {}, ignore_label=3, dice_class=GODCLoss)
        loss = fused_compound(loss) if fused else loss
        value, gradient = differentiate(loss, logits, labels)
        assert value == -1
        assert gradient.eq(0).all()

    def test_one_ignored_sample_leaves_the_others_their_gradient(self, random_batch, differentiate, config, fused):
        logits, labels = random_batch(batch=2)
        mask = torch.ones_like(labels, dtype=torch.bool)
        mask[0] = False
        value, gradient = differentiate(softmax_loss(config, fused=fused), logits, labels, mask)
        assert value.isfinite()
        assert gradient[0].eq(0).all()
        assert gradient[1].isfinite().all()
        assert gradient[1].abs().max() > 0

    @pytest.mark.parametrize("size", [(1, 1), (1, 1, 1)])
    @pytest.mark.parametrize("label", [0, 1])
    def test_patch_of_one_voxel(self, differentiate, config, fused, size, label):
        logits = torch.tensor([0.3, -0.2]).view(1, 2, *[1] * len(size))
        target = torch.full((1, 1, *size), label)
        value, gradient = differentiate(softmax_loss(config, classes=2, fused=fused), logits, target)
        chance = logits.softmax(1).flatten()[1].item()
        assert value.item() == pytest.approx(-2 * chance / (1 + chance) if label else 0, abs=1e-4)
        assert gradient.isfinite().all()

    @pytest.mark.parametrize("right", [True, False])
    def test_extreme_logits(self, random_batch, differentiate, config, fused, right):
        _, labels = random_batch(batch=3)
        predicted = labels if right else (labels + 1) % 3
        logits = torch.full((3, 3, 6, 5, 4), -1e4).scatter_(1, predicted, 1e4)
        value, gradient = differentiate(softmax_loss(config, fused=fused), logits, labels)
        assert value.item() == pytest.approx(-1, abs=1e-5) if right else value > -1
        assert gradient.isfinite().all()

    def test_a_nan_logit_is_not_hidden(self, random_batch, config, fused):
        logits, labels = random_batch(batch=3)
        logits[1, 2, 0, 0, 0] = math.nan
        assert softmax_loss(config, fused=fused)(logits, labels).isnan()


@st.composite
def batches(draw):
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    size = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]))
    logits = scale * torch.randn((batch, classes, *size), generator=generator)
    present = draw(st.integers(1, classes))
    labels = torch.randint(present, (batch, 1, *size), generator=generator)
    mask = None
    if draw(st.booleans()):
        mask = torch.rand((batch, 1, *size), generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.9]))
    return logits, labels, mask


any_config = st.sampled_from(CONFIGS)
any_loss = st.sampled_from([softmax_loss, sigmoid_loss])
either_way = st.booleans()


class TestAnyPatch:
    @settings(max_examples=150, deadline=None)
    @given(batch=batches(), config=any_config, build=any_loss, fused=either_way)
    def test_value_is_in_range_and_gradient_finite(self, batch, config, build, fused):
        logits, labels, mask = batch
        logits.requires_grad_()
        classes = logits.shape[1]
        value = build(config, classes, fused)(logits, labels, mask)
        largest = len(logits) ** (config.exponent - 1) if config.normalization in ("mean", "running") else 1
        assert -1 - 1e-5 <= value.item() <= max(largest, 1) - 1 + 1e-4
        value.backward()
        assert logits.grad.isfinite().all()

    @settings(max_examples=60, deadline=None)
    @given(batch=batches(), config=any_config, build=any_loss, fused=either_way, data=st.data())
    def test_order_of_the_samples_does_not_matter(self, batch, config, build, fused, data):
        logits, labels, mask = batch
        order = data.draw(st.permutations(range(len(logits))))
        value = build(config, logits.shape[1], fused)(logits, labels, mask)
        shuffled = build(config, logits.shape[1], fused)(
            logits[order], labels[order], None if mask is None else mask[order]
        )
        torch.testing.assert_close(shuffled, value, rtol=1e-5, atol=1e-5)

    @settings(max_examples=60, deadline=None)
    @given(batch=batches(), config=any_config, fused=either_way, data=st.data())
    def test_order_of_the_axes_does_not_matter(self, batch, config, fused, data):
        logits, labels, mask = batch
        order = (0, 1, *data.draw(st.permutations(range(2, logits.dim()))))
        value = softmax_loss(config, logits.shape[1], fused)(logits, labels, mask)
        moved = [None if tensor is None else tensor.permute(order) for tensor in batch]
        torch.testing.assert_close(softmax_loss(config, logits.shape[1], fused)(*moved), value, rtol=1e-5, atol=1e-5)
