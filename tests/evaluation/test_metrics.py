import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_godc.evaluation import metrics

VOXELS = st.integers(0, 2**40)


def measured(tp: int, fp: int, fn: int) -> dict[str, float]:
    counts = (np.array([number]) for number in (tp, fp, fn))
    return {metric: float(values[0]) for metric, values in metrics.overlap_metrics(*counts).items()}


def test_metrics_by_hand():
    # 6 voxels right, 2 too many, 4 missed
    assert measured(6, 2, 4) == {
        "Dice": pytest.approx(12 / 18),
        "IoU": pytest.approx(6 / 12),
        "Precision": pytest.approx(6 / 8),
        "Recall": pytest.approx(6 / 10),
        "Relative volume error": pytest.approx(-2 / 10),
    }


@pytest.mark.parametrize(
    ("counts", "state", "dice", "iou", "precision", "recall", "error"),
    [
        ((0, 0, 0), "absent in both", math.nan, math.nan, math.nan, math.nan, math.nan),
        ((0, 5, 0), "absent in reference", 0, 0, 0, math.nan, math.nan),
        ((0, 0, 5), "absent in prediction", 0, 0, math.nan, 0, -1),
        ((0, 3, 5), "defined", 0, 0, 0, 0, -0.4),
    ],
)
def test_undefined_cases_follow_the_table(counts, state, dice, iou, precision, recall, error):
    assert list(measured(*counts).values()) == pytest.approx([dice, iou, precision, recall, error], nan_ok=True)
    assert metrics.STATES[metrics.presence(*(np.array(number) for number in counts))] == state


@given(tp=VOXELS, fp=VOXELS, fn=VOXELS)
def test_swapping_prediction_and_reference_swaps_precision_and_recall_alone(tp: int, fp: int, fn: int):
    there, back = measured(tp, fp, fn), measured(tp, fn, fp)
    for one, other in (("Dice", "Dice"), ("IoU", "IoU"), ("Precision", "Recall"), ("Recall", "Precision")):
        assert there[one] == pytest.approx(back[other], nan_ok=True)


@given(tp=st.integers(1, 2**40), fp=VOXELS, fn=VOXELS)
def test_dice_and_iou_say_the_same(tp: int, fp: int, fn: int):
    found = measured(tp, fp, fn)
    assert found["Dice"] == pytest.approx(2 * found["IoU"] / (1 + found["IoU"]))  # the paper's eq. 4


@given(tp=st.integers(1, 2**40))
def test_a_perfect_prediction_scores_one(tp: int):
    assert measured(tp, 0, 0) == {"Dice": 1, "IoU": 1, "Precision": 1, "Recall": 1, "Relative volume error": 0}


def test_every_volume_lies_in_one_bin():
    bins = metrics.volume_bins([0.5, 2, 10])
    assert list(bins) == ["below 0.5 ml", "0.5 to 2 ml", "2 to 10 ml", "10 ml or more"]
    for volume, expected in {0.01: 0, 0.5: 1, 1.99: 1, 2: 2, 10: 3, 1e4: 3}.items():
        assert [low <= volume < high for low, high in bins.values()].index(True) == expected
        assert sum(low <= volume < high for low, high in bins.values()) == 1
    assert metrics.volume_bins([]) == {}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("Dice", "higher"), (metrics.nsd(2), "higher"), ("HD95 (mm)", "lower"), ("Volume error (ml)", "zero")],
)
def test_the_better_direction_follows_from_the_name(metric: str, expected: str):
    assert metrics.better(metric) == expected
