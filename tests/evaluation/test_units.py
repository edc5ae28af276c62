import pytest

from nnunet_godc.evaluation.metrics import DICE, HD95, VOLUME_ERROR
from nnunet_godc.evaluation.units import shown

NAN = float("nan")


@pytest.mark.parametrize(
    ("metric", "difference", "low", "high", "decimals"),
    [
        (DICE, 0.018, 0.004, 0.032, 1),
        (DICE, 0.018, 0.0003, 0.035, 2),  # an end that would be zero
        (DICE, 0.018, -0.0003, 0.035, 2),
        (DICE, 0.0000006, -0.01, 0.01, 5),  # a difference that would be
        (HD95, 0.89, 0.78, 1.01, 2),  # a narrow interval
        (HD95, 0.000004, 0.000003, 0.000006, 6),
        (HD95, 5.000004, 5.000003, 5.000006, 6),
        (HD95, 1.0, 0.0, 3.0, 1),
        (HD95, 1.0, 1e-13, 3.0, 1),
    ],
)
def test_neither_difference_nor_interval_is_written_as_zero(metric, difference, low, high, decimals):
    assert shown(metric).of_difference(difference, low, high).decimals == decimals


@pytest.mark.parametrize(
    ("mean", "text"),
    [(3.24, "3.2"), (0.05, "0.05"), (0.0031, "0.003"), (-0.0312, "-0.03"), (0.0, "0.0"), (1e-14, "0.0"), (NAN, "nan")],
)
def test_a_mean_is_written_as_zero_only_where_it_is(mean, text):
    assert shown(VOLUME_ERROR).telling(mean).number(mean) == text
