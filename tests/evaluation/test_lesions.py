import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nnunet_godc.evaluation.lesions import LesionRule, Lesions, match_lesions

Mask = NDArray[np.bool_]
Voxel = tuple[int, ...]


def line(*pieces: tuple[int, int]) -> Mask:
    """A row of 30 voxels in a volume, set from each start to before each end."""
    mask = np.zeros((3, 3, 30), bool)
    for start, end in pieces:
        mask[1, 1, start:end] = True
    return mask


def match(reference: Mask, prediction: Mask, minimum_iou: float = 0.1) -> Lesions:
    return match_lesions(reference, prediction, voxel_ml=0.5, rule=LesionRule(minimum_iou))


def brute_force(reference: Mask, prediction: Mask, minimum_iou: float) -> tuple[list[tuple[float, ...]], int]:
    """Voxels, IoU, Dice and detection of each lesion, and the false positives, with sets of voxels."""
    references, predictions = components(reference), components(prediction)
    belongs: dict[int, list[set[Voxel]]] = {index: [] for index in range(len(references))}
    nowhere = 0
    for predicted in predictions:
        shared = [len(predicted & lesion) for lesion in references]
        if any(shared):
            belongs[shared.index(max(shared))].append(predicted)
        else:
            nowhere += 1
    found, false_positives = [], nowhere
    for index, lesion in enumerate(references):
        union: set[Voxel] = set().union(*belongs[index])
        iou = len(lesion & union) / len(lesion | union)
        detected = iou > 0 and iou >= minimum_iou
        found.append((len(lesion), iou, 2 * len(lesion & union) / (len(lesion) + len(union)), detected))
        false_positives += 0 if detected else len(belongs[index])
    return found, false_positives


def components(mask: Mask) -> list[set[Voxel]]:
    """In the order of their first voxels."""
    left = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    found = []
    while left:
        waiting, component = [min(left)], set()
        left.discard(waiting[0])
        while waiting:
            voxel = waiting.pop()
            component.add(voxel)
            for step in itertools.product((-1, 0, 1), repeat=len(voxel)):
                neighbour = tuple(i + j for i, j in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.discard(neighbour)
                    waiting.append(neighbour)
        found.append(component)
    return found


def test_a_found_and_a_missed_lesion_and_a_false_positive():
    lesions = match(line((0, 10), (14, 18)), line((2, 10), (22, 24)))
    found, missed = lesions.reference
    assert (found.volume_ml, found.iou, found.dice, found.detected) == (5, 0.8, pytest.approx(16 / 18), True)
    assert (missed.volume_ml, missed.iou, missed.dice, missed.detected) == (2, 0, 0, False)
    assert lesions.false_positives == 1
    assert (lesions.sensitivity, lesions.f1, lesions.dice) == (0.5, pytest.approx(2 / 4), pytest.approx(8 / 18))


def test_a_lesion_predicted_in_pieces_is_found_once_without_false_positives():
    lesions = match(line((0, 12)), line((0, 4), (6, 10)))
    assert lesions.reference[0].iou == pytest.approx(8 / 12)
    assert (lesions.sensitivity, lesions.false_positives, lesions.f1) == (1, 0, 1)


def test_a_prediction_over_two_lesions_finds_the_one_that_it_mostly_covers():
    lesions = match(line((0, 10), (12, 15)), line((0, 15)))
    assert [lesion.detected for lesion in lesions.reference] == [True, False]
    assert lesions.reference[0].iou == pytest.approx(10 / 15)
    assert lesions.false_positives == 0


def test_a_graze_below_the_minimum_is_a_miss_and_a_false_positive():
    reference, prediction = line((0, 10)), line((9, 20))  # IoU 1 / 20
    assert match(reference, prediction).sensitivity == 0
    assert match(reference, prediction).false_positives == 1
    assert match(reference, prediction, minimum_iou=0.05).sensitivity == 1
    assert match(reference, prediction, minimum_iou=0).false_positives == 0


def test_nothing_that_does_not_overlap_is_detected_at_a_minimum_of_zero():
    assert match(line((0, 3)), line((5, 8)), minimum_iou=0).sensitivity == 0


def test_voxels_that_share_a_corner_are_one_lesion():
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert len(match(mask, mask).reference) == 1
    assert len(match(mask[1], mask[1]).reference) == 1


@pytest.mark.parametrize(
    ("reference", "prediction", "sensitivity", "false_positives", "f1", "dice"),
    [
        (line(), line(), math.nan, 0, math.nan, math.nan),
        (line(), line((0, 2), (4, 6)), math.nan, 2, 0, math.nan),
        (line((0, 2)), line(), 0, 0, 0, 0),
        (line((0, 2)), line((0, 2)), 1, 0, 1, 1),
    ],
)
def test_undefined_cases_follow_the_table(reference, prediction, sensitivity, false_positives, f1, dice):
    lesions = match(reference, prediction)
    found = [lesions.sensitivity, lesions.false_positives, lesions.f1, lesions.dice]
    assert found == pytest.approx([sensitivity, false_positives, f1, dice], nan_ok=True)


@pytest.mark.parametrize("seed", range(200))
def test_matching_is_that_of_sets_of_voxels(seed: int):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 9, size=random.integers(2, 4)))
    reference = random.random(shape) < random.choice([0, 0.05, 0.3])
    prediction = (reference & (random.random(shape) < 0.8)) | (random.random(shape) < random.choice([0, 0.05, 0.2]))
    lesions = match(reference, prediction, minimum_iou=0.3)
    expected, false_positives = brute_force(reference, prediction, 0.3)
    found = [(lesion.volume_ml / 0.5, lesion.iou, lesion.dice, lesion.detected) for lesion in lesions.reference]
    assert found == [pytest.approx(values) for values in expected]
    assert lesions.false_positives == false_positives


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_perfect_prediction_finds_every_lesion(seed: int):
    mask = np.random.default_rng(seed).random((5, 6, 7)) < 0.1
    mask[0, 0, 0] = True
    lesions = match(mask, mask.copy(), minimum_iou=1)
    assert (lesions.sensitivity, lesions.f1, lesions.dice, lesions.false_positives) == (1, 1, 1, 0)


def test_lesions_below_the_minimum_volume_are_dropped_on_both_sides():
    reference, prediction = line((0, 1), (5, 10)), line((5, 10), (20, 21))
    found = match_lesions(reference, prediction, voxel_ml=0.5, rule=LesionRule(minimum_ml=1.0))
    assert [lesion.volume_ml for lesion in found.reference] == [2.5]
    assert (found.reference[0].dice, found.false_positives) == (1.0, 0)


def test_one_to_one_keeps_the_largest_piece_and_counts_the_others_as_false_positives():
    reference, prediction = line((0, 10)), line((0, 2), (4, 9))
    assert match(reference, prediction).false_positives == 0
    found = match_lesions(reference, prediction, voxel_ml=0.5, rule=LesionRule(one_to_one=True))
    assert (found.reference[0].iou, found.false_positives) == (0.5, 1)


def test_dilation_joins_pieces_that_come_together_and_measures_them_as_they_are():
    reference, prediction = line((0, 4), (6, 10)), line((0, 4))
    found = match_lesions(reference, prediction, voxel_ml=0.5, rule=LesionRule(dilation=1))
    assert [(lesion.volume_ml, lesion.iou) for lesion in found.reference] == [(4.0, 0.5)]
