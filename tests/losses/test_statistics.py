import pytest
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn

from nnunet_godc.losses import soft_dice, soft_statistics, soft_union

PREDICTION = torch.tensor([[[[0.5, 0.25], [1.0, 0.0]]]])  # (1, 1, 2, 2)
REFERENCE = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])


def test_sums_are_those_computed_by_hand():
    statistics = soft_statistics(PREDICTION, REFERENCE)
    assert statistics.intersection.item() == 1.5
    assert statistics.prediction.item() == 1.75
    assert statistics.reference.item() == 3
    assert soft_union(statistics).item() == 3.25
    assert soft_dice(statistics, smooth=0).item() == pytest.approx(2 * 1.5 / (1.5 + 3.25))
    assert soft_dice(statistics, smooth=1).item() == pytest.approx(4 / 5.75)


def test_voxels_outside_the_mask_do_not_count():
    mask = torch.tensor([[[[True, True], [False, False]]]])
    statistics = soft_statistics(PREDICTION, REFERENCE, mask)
    assert [entry.item() for entry in (*statistics, soft_union(statistics))] == [0.5, 0.75, 1.0, 1.25]


@pytest.mark.parametrize("size", [(7, 5), (4, 3, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_sums_agree_with_true_and_false_positives_of_nnunet(random_batch, size, masked):
    logits, labels = random_batch(batch=3, classes=4, size=size)
    probabilities = logits.softmax(1)
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    tp, fp, fn, _ = get_tp_fp_fn_tn(probabilities, labels, mask=mask)
    statistics = soft_statistics(probabilities, labels, mask)
    torch.testing.assert_close(statistics.intersection, tp)
    torch.testing.assert_close(soft_union(statistics), tp + fp + fn)


def test_labels_in_every_layout_and_dtype_are_one_reference(random_batch):
    logits, labels = random_batch(classes=3)
    probabilities = logits.softmax(1)
    expected = soft_statistics(probabilities, labels)
    one_hot = torch.cat([labels == label for label in range(3)], dim=1)
    for target in (
        labels[:, 0],
        labels.float(),
        labels.to(torch.int16),
        labels.to(torch.uint8),
        one_hot,
        one_hot.half(),
    ):
        for got, want in zip(soft_statistics(probabilities, target), expected, strict=True):
            assert got.equal(want)


def test_background_is_left_out_on_demand(random_batch):
    logits, labels = random_batch(classes=4)
    everything = soft_statistics(logits.softmax(1), labels)
    foreground = soft_statistics(logits.softmax(1), labels, include_background=False)
    for all_classes, without in zip(everything, foreground, strict=True):
        assert all_classes[:, 1:].equal(without)


@pytest.mark.parametrize(
    ("probabilities", "sums"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_float32_at_least(random_batch, probabilities, sums):
    logits, labels = random_batch()
    assert {entry.dtype for entry in soft_statistics(logits.softmax(1).to(probabilities), labels)} == {sums}


def test_sums_of_a_large_float16_patch_do_not_overflow():
    probabilities = torch.full((1, 2, 128, 128, 128), 0.5, dtype=torch.float16)
    labels = torch.zeros((1, 1, 128, 128, 128), dtype=torch.uint8)
    voxels = 128**3  # 32 times the largest float16
    statistics = soft_statistics(probabilities, labels)
    assert soft_union(statistics).tolist() == [[voxels, voxels / 2]]
    assert statistics.intersection.tolist() == [[voxels / 2, 0]]


def test_gradients_reach_the_probabilities_alone(random_batch):
    logits, labels = random_batch()
    probabilities = logits.softmax(1).requires_grad_()
    target = torch.zeros_like(probabilities).scatter_(1, labels, 1).requires_grad_()
    statistics = soft_statistics(probabilities, target)
    assert not statistics.reference.requires_grad
    statistics.intersection.sum().backward()
    assert target.grad is None
    assert probabilities.grad is not None
    assert probabilities.grad.equal(target.detach())


@pytest.mark.parametrize(("smooth", "expected"), [(1e-5, 1.0), (0.0, 0.0)])
def test_dice_of_a_class_that_is_nowhere_is_defined(smooth, expected):
    nowhere = torch.zeros(1, 1, 3, 3)
    assert soft_dice(soft_statistics(nowhere, nowhere), smooth).item() == expected
