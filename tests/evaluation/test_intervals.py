from itertools import product

import numpy as np
import pytest
from scipy import stats

from nnunet_godc.evaluation import bootstrap
from nnunet_godc.evaluation.bootstrap import pivot_quantiles, ratios
from nnunet_godc.evaluation.intervals import (
    mean_intervals,
    median_intervals,
    proportion_intervals,
    standardised_differences,
)


def column(*values):
    return np.array(values, dtype=np.float64)[:, None]


def ones_like(totals):
    return np.ones_like(totals)


@pytest.fixture
def random():
    return np.random.default_rng(20)


def test_the_error_of_a_mean_over_single_cases_is_the_familiar_one(random):
    values = random.normal(size=(12, 3))
    means, errors = ratios(values, ones_like(values))
    np.testing.assert_allclose(means, values.mean(axis=0))
    np.testing.assert_allclose(errors, stats.sem(values))


def test_the_error_of_a_mean_over_cases_of_patients_by_hand():
    # Three patients with the cases (1, 2), (4) and (2, 2, 1): mean 12 / 6 = 2, residuals -1, 2, -1.
    means, errors = ratios(column(3, 4, 5), column(2, 1, 3))
    assert means[0] == pytest.approx(2)
    assert errors[0] == pytest.approx(np.sqrt(3 / 2 * 6) / 6)


@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (2, 1, 3, 1, 1)], ids=["single-cases", "several-cases"])
def test_the_bootstrap_draws_near_what_all_possible_resamples_give(counts):
    totals, counts = column(0.3, 0.9, 1.2, 0.5, 0.05), column(*counts)
    mean, _ = ratios(totals, counts)
    residuals = (totals - mean * counts)[:, 0]
    pivots = []
    for drawn in product(range(5), repeat=5):
        chosen = list(drawn)
        units = counts[chosen, 0]
        shift = residuals[chosen].sum() / units.sum()
        error = np.sqrt(5 / 4 * ((residuals[chosen] - shift * units) ** 2).sum()) / units.sum()
        pivots.append(abs(shift) / error if error > 1e-9 else np.inf)
    expected = np.quantile(pivots, [0.945, 0.955], method="lower")
    [found] = pivot_quantiles(totals, counts, level=0.95, resamples=40_000, seed=1)
    assert expected[0] <= found * 1.001
    assert found <= expected[1] * 1.001


def test_pivots_are_those_of_each_resample_computed_by_itself_however_uneven_the_counts(random):
    uneven, even = np.array([1, 1, 2, 500, 3, 1, 40, 1, 2, 90, 1, 5.0]), np.full(12, 2.0)
    counts = np.stack([uneven, even, uneven, uneven[::-1]], axis=1)  # two columns share their counts
    totals = counts * random.random((12, 4))
    means, _ = ratios(totals, counts)
    pivots = []
    for weights in bootstrap._weights(12, 999, seed=3):
        for number in weights.astype(int):
            drawn = np.repeat(np.arange(12), number)
            resampled, errors = ratios(totals[drawn], counts[drawn])
            pivots.append(np.abs(resampled - means) / errors)
    expected = np.sort(pivots, axis=0)[949]
    np.testing.assert_allclose(pivot_quantiles(totals, counts, level=0.95, resamples=999, seed=3), expected, rtol=1e-4)


def test_for_many_normal_values_the_interval_is_students(random):
    values = random.normal(size=(400, 8))
    interval = mean_intervals(values, ones_like(values), resamples=20_000)
    expected = stats.t.ppf(0.975, 399) * stats.sem(values)
    np.testing.assert_allclose(interval.high - interval.estimate, expected, rtol=0.02)
    np.testing.assert_allclose(interval.high - interval.estimate, interval.estimate - interval.low)


def test_the_same_scans_twice_tell_nothing_new(random):
    totals, counts = random.random((30, 2)), random.integers(1, 4, (30, 2)).astype(float)
    once, twice = mean_intervals(totals, counts, resamples=2000), mean_intervals(2 * totals, 2 * counts, resamples=2000)
    np.testing.assert_allclose(twice.low, once.low, rtol=1e-5)
    np.testing.assert_allclose(twice.high, once.high, rtol=1e-5)


def test_patients_without_a_defined_case_do_not_count(random):
    values = random.random((40, 1))
    padded = np.concatenate([values, np.zeros((25, 1))])
    counts = np.concatenate([np.ones((40, 1)), np.zeros((25, 1))])
    alone, among = (mean_intervals(t, c, resamples=2000) for t, c in ((values, ones_like(values)), (padded, counts)))
    np.testing.assert_allclose([among.estimate, among.low, among.high], [alone.estimate, alone.low, alone.high])


def test_columns_that_share_draws_agree_with_columns_of_their_own(random):
    values = random.random((300, 1))
    counts = np.ones((300, 2))
    counts[::3, 1] = 0
    together = mean_intervals(values * counts, counts, resamples=20_000)
    kept = values[counts[:, 1] > 0]
    alone = mean_intervals(kept, ones_like(kept), resamples=20_000)
    assert together.estimate[1] == pytest.approx(alone.estimate[0])
    assert together.high[1] - together.low[1] == pytest.approx(alone.high[0] - alone.low[0], rel=0.02)


def test_a_column_does_not_depend_on_the_others(random):
    values = random.random((60, 5))
    counts = (random.random((60, 5)) < 0.8).astype(float)
    together = mean_intervals(values * counts, counts, resamples=2000)
    for index in range(5):
        alone = mean_intervals(values[:, [index]] * counts[:, [index]], counts[:, [index]], resamples=2000)
        assert together.low[index] == pytest.approx(alone.low[0], rel=1e-5)


def test_intervals_do_not_depend_on_the_size_of_the_blocks(random, monkeypatch):
    values = random.random((50, 4))
    whole = mean_intervals(values, ones_like(values), resamples=2000)
    monkeypatch.setattr(bootstrap, "BLOCK", 50 * 7)
    monkeypatch.setattr(bootstrap, "PIVOTS", 3 * 2000)
    np.testing.assert_allclose(mean_intervals(values, ones_like(values), resamples=2000).low, whole.low, rtol=1e-5)


def test_the_seed_decides(random):
    values = random.random((30, 1))
    first, again, other = (mean_intervals(values, ones_like(values), resamples=1000, seed=s).low for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first == pytest.approx(other, abs=0.02)


def test_intervals_follow_scale_and_origin(random):
    values = random.random((30, 1))
    plain = mean_intervals(values, ones_like(values), resamples=2000)
    moved = mean_intervals(1e4 + 1e-3 * values, ones_like(values), resamples=2000)
    assert moved.low[0] == pytest.approx(1e4 + 1e-3 * plain.low[0], rel=1e-9)


@pytest.mark.parametrize("patients", [0, 1, 2, 3])
def test_too_few_patients_have_no_interval(patients, random):
    values = random.random((patients, 1))
    interval = mean_intervals(values, ones_like(values), resamples=2000)
    assert np.isnan(interval.estimate[0]) == (patients == 0)
    assert np.isnan([interval.low[0], interval.high[0]]).all()


@pytest.mark.parametrize(
    "values", [[0.7] * 30, [0.1] * 30, [1.0] * 29 + [0.0]], ids=["all-equal", "all-equal-rounded", "one-differs"]
)
def test_values_that_hardly_differ_have_no_interval(values):
    totals = column(*values)
    interval = mean_intervals(totals, ones_like(totals), resamples=2000)
    assert interval.estimate[0] == pytest.approx(np.mean(values))
    assert np.isnan(interval.low[0])


def test_four_patients_have_an_interval(random):
    values = random.random((4, 1))
    interval = mean_intervals(values, ones_like(values))
    assert np.isfinite([interval.low[0], interval.high[0]]).all()


def test_the_median_lies_between_order_statistics():
    # Of ten, the second to the ninth cover 97.9 %, the third to the eighth 89.1 %.
    interval = median_intervals(column(*range(1, 11)))
    assert interval.estimate[0] == 5.5
    assert 2 < interval.low[0] < 3
    assert interval.low[0] + interval.high[0] == pytest.approx(11)
    conservative = stats.quantile_test(np.arange(1, 11)).confidence_interval(0.95)
    assert conservative.low == 2
    assert conservative.high == 9


def test_the_interpolated_median_by_hand():
    # n = 10, 95 %: share (0.978516 - 0.95) / (0.978516 - 0.890625) = 0.324438,
    # fraction 8 * 0.324438 / (2 + 6 * 0.324438) = 0.657636
    assert median_intervals(column(*range(1, 11))).low[0] == pytest.approx(2.657636, abs=1e-4)


def test_five_values_do_not_settle_a_median_and_six_do():
    assert np.isnan(median_intervals(column(*range(5))).low[0])
    assert np.isfinite(median_intervals(column(*range(6))).low[0])


def test_undefined_patients_are_left_out_of_the_median():
    with_gaps = median_intervals(column(3, np.nan, 1, 2, 5, 4, 6, 7, np.nan))
    without = median_intervals(column(1, 2, 3, 4, 5, 6, 7))
    assert (with_gaps.estimate, with_gaps.low) == (without.estimate, without.low)
    assert np.isnan(median_intervals(column(np.nan, np.nan)).estimate[0])


def test_proportions_of_one_lesion_per_patient_are_wilsons():
    detected = column(*[1] * 70 + [0] * 30)
    interval = proportion_intervals(detected, ones_like(detected))
    wilson = stats.binomtest(70, 100).proportion_ci(method="wilson")
    assert interval.low[0] == pytest.approx(wilson.low, abs=0.003)
    assert interval.high[0] == pytest.approx(wilson.high, abs=0.003)


def test_lesions_that_go_with_their_patient_are_worth_one_each():
    detected, lesions = column(*[5] * 14 + [0] * 6), column(*[5] * 20)
    single = proportion_intervals(detected / 5, lesions / 5)
    assert proportion_intervals(detected, lesions).low[0] == pytest.approx(single.low[0])


def test_all_lesions_detected_leave_room_below():
    # Wilson's interval at 100 % of n = 20: from 1 / (1 + t ** 2 / n)
    interval = proportion_intervals(column(*[3] * 20), column(*[3] * 20))
    assert interval.low[0] == pytest.approx(1 / (1 + stats.t.ppf(0.975, 19) ** 2 / 20))
    assert interval.high[0] == 1
    none = proportion_intervals(column(*[0] * 20), column(*[3] * 20))
    assert none.low[0] == 0
    assert none.high[0] == pytest.approx(1 - interval.low[0])


def test_lesions_of_one_patient_give_no_interval():
    interval = proportion_intervals(column(2, 0), column(3, 0))
    assert interval.estimate[0] == pytest.approx(2 / 3)
    assert np.isnan(interval.low[0])


def test_the_effect_size_by_hand():
    # mean 2, standard deviation sqrt(10 / 4)
    interval = standardised_differences(column(0, 1, 2, 3, 4, np.nan))
    effect = 2 / np.sqrt(2.5)
    assert interval.estimate[0] == pytest.approx(effect)
    half_width = stats.t.ppf(0.975, 4) * np.sqrt((1 + effect**2 / 2) / 5)
    assert interval.high[0] - effect == pytest.approx(half_width)


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, 2.0), (0.1,) * 9], ids=["none", "one", "two", "no-spread"])
def test_an_effect_size_needs_spread(values):
    interval = standardised_differences(np.array(values, dtype=float).reshape(-1, 1))
    assert np.isnan([interval.estimate[0], interval.low[0]]).all()
