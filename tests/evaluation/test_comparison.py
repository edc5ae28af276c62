import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_godc.evaluation.case_table import MISSING, case_tables
from nnunet_godc.evaluation.comparison import compare_methods
from nnunet_godc.evaluation.metrics import ABSENT_IN_PREDICTION, HD95, RELATIVE_VOLUME_ERROR
from nnunet_godc.evaluation.paired_tests import holm
from tests.evaluation.measured import measured

NAN = float("nan")


def compare(*frames, baseline=None):
    [table] = case_tables(pd.concat(frames, ignore_index=True), lambda trainer: trainer.partition("_seed")[0])
    return compare_methods(table, baseline=baseline, resamples=1000, seed=0)


@pytest.fixture
def random():
    return np.random.default_rng(22)


def test_two_methods_are_compared_on_the_cases_that_both_define():
    [comparison] = compare(measured({"A": [0.5, 0.6, NAN, 0.2, None], "B": [0.7, 0.7, 0.9, NAN, 0.4]}))
    assert (comparison.method.variant, comparison.against.variant) == ("B", "A")
    assert (comparison.cases, comparison.patients) == (2, 2)
    assert (comparison.only_method, comparison.only_against) == (2, 1)
    assert comparison.undefined_method == {ABSENT_IN_PREDICTION: 1}
    assert comparison.undefined_against == {ABSENT_IN_PREDICTION: 1, MISSING: 1}
    assert comparison.difference == pytest.approx(0.15)


def test_a_method_that_misses_the_hard_cases_wins_nothing_by_it(random):
    distances = random.lognormal(1.5, 0.4, 40)
    nearer = distances * random.uniform(0.7, 0.9, 40)
    missed = np.where(np.arange(40) < 10, NAN, nearer)
    [all_found] = compare(measured({"A": distances, "B": nearer}, metric=HD95))
    [some_missed] = compare(measured({"A": distances, "B": missed}, metric=HD95))
    [not_measured] = compare(measured({"A": distances, "B": [None] * 10 + list(missed[10:])}, metric=HD95))
    assert all_found.supported
    assert some_missed.supported
    assert (all_found.winner, some_missed.winner, not_measured.winner) == (all_found.method, None, all_found.method)
    assert (all_found.selective, some_missed.selective, not_measured.selective) == (False, True, False)


def test_numbers_are_those_of_the_differences(random):
    a, b = random.random((2, 20))
    [comparison] = compare(measured({"A": a, "B": b}))
    assert comparison.difference == pytest.approx((b - a).mean())
    assert comparison.effect_size == pytest.approx((b - a).mean() / (b - a).std(ddof=1))
    assert comparison.signed_rank_p == pytest.approx(stats.wilcoxon(np.round(b - a, 9)).pvalue)
    assert comparison.sign_flip_p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.06)
    assert comparison.low < comparison.difference < comparison.high
    assert (comparison.wins, comparison.losses) == ((b > a).sum(), (b < a).sum())


def test_cases_of_one_patient_are_one_piece_of_evidence(random):
    a = random.random(6)
    b = a + random.normal(0.1, 0.05, 6)
    [single] = compare(measured({"A": a, "B": b}))
    patients = [f"p{number}" for number in range(6)] * 10
    [many] = compare(measured({"A": np.tile(a, 10), "B": np.tile(b, 10)}, patients=patients))
    assert (many.patients, many.cases) == (6, 60)
    for name in ("difference", "low", "high", "effect_size", "effect_low", "wins", "sign_flip_p", "signed_rank_p"):
        assert getattr(many, name) == pytest.approx(getattr(single, name), rel=1e-5), name


def test_the_mean_is_over_cases_and_wins_are_over_patients():
    [comparison] = compare(measured({"A": [0, 0, 0, 0], "B": [0.1, 0.1, 0.1, -0.2]}, patients=["p", "p", "p", "q"]))
    assert comparison.difference == pytest.approx(0.025)
    assert (comparison.wins, comparison.ties, comparison.losses) == (1, 0, 1)


def test_where_less_is_better_the_smaller_wins():
    [comparison] = compare(measured({"A": [5, 6, 7], "B": [4, 4, 9]}, metric=HD95))
    assert comparison.difference == pytest.approx(-1 / 3)
    assert (comparison.wins, comparison.losses) == (2, 1)
    assert comparison.improves
    assert comparison.rank_biserial == pytest.approx((2.5 - 3.5) / 6)  # -1, -2 and +2 have the ranks 1, 2.5 and 2.5
    assert comparison.ranks_improve


def test_where_zero_is_best_the_distance_from_it_counts():
    [comparison] = compare(measured({"A": [-0.3, 0.2], "B": [-0.1, 0.3]}, metric=RELATIVE_VOLUME_ERROR))
    assert comparison.difference == pytest.approx(-0.05)
    assert (comparison.wins, comparison.losses) == (1, 1)


def test_seeds_that_err_to_either_side_are_not_taken_for_exact():
    seeds = {"A": [0.1, 0.1], "B_seed1": [-0.3, 0.3], "B_seed2": [0.3, -0.3]}
    [comparison] = compare(measured(seeds, metric=RELATIVE_VOLUME_ERROR))
    assert comparison.difference == pytest.approx(0.2)
    assert comparison.losses == 2


def test_all_pairs_are_compared_unless_a_baseline_is_named(random):
    frame = measured({name: random.random(5) for name in "ABCD"})
    assert len(compare(frame)) == 6
    against = compare(frame, baseline="C")
    assert [(c.method.variant, c.against.variant) for c in against] == [("A", "C"), ("B", "C"), ("D", "C")]


def test_only_the_trainer_differs_in_a_comparison(random):
    first = measured({name: random.random(5) for name in "AB"})
    second = measured({name: random.random(5) for name in "AB"}, plans="nnUNetResEncUNetMPlans")
    compared = compare(first, second)
    assert len(compared) == 2
    assert all(c.method.plans == c.against.plans for c in compared)


def test_holm_corrects_over_all_comparisons_of_one_question(random):
    shift = {"A": 0, "B": 0.1, "C": 0.05, "D": 0}
    base = random.random(25)
    frames = [
        measured({name: base + by + random.normal(0, 0.1, 25) for name, by in shift.items()}, label=label)
        for label in ("liver", "tumour")
    ]
    compared = compare(*frames)
    for label in ("liver", "tumour"):
        family = [c for c in compared if c.question.label == label]
        assert {c.tests for c in family} == {6}
        for name in ("sign_flip_p", "signed_rank_p"):
            plain = np.array([getattr(c, name) for c in family])
            np.testing.assert_allclose([getattr(c, f"{name}_holm") for c in family], holm(plain))


def test_a_pair_without_common_cases_is_not_part_of_the_family():
    compared = compare(measured({"A": [0.1, 0.2, NAN], "B": [NAN, NAN, 0.3], "C": [0.3, 0.1, 0.2]}))
    apart = next(c for c in compared if (c.method.variant, c.against.variant) == ("B", "A"))
    assert apart.patients == 0
    assert math.isnan(apart.difference)
    assert math.isnan(apart.sign_flip_p_holm)
    assert not apart.supported
    assert {c.tests for c in compared} == {2}


def test_a_clear_difference_is_supported_and_noise_is_not(random):
    base = random.random(40)
    noise = random.normal(0, 0.1, (2, 40))
    [clear] = compare(measured({"A": base, "B": base + 0.2 + noise[0]}))
    [unclear] = compare(measured({"A": base, "B": base + noise[1] - noise[1].mean()}))
    assert clear.supported
    assert clear.improves
    assert not unclear.supported


def test_seeds_are_averaged_before_they_are_compared():
    [comparison] = compare(measured({"A": [0.5, 0.5], "B_seed1": [0.6, 0.5], "B_seed2": [0.8, 0.7]}))
    assert comparison.difference == pytest.approx(0.15)
    assert comparison.runs == (2, 1)


def test_without_the_baseline_there_is_nothing_to_compare():
    assert compare(measured({"A": [0.1, 0.2], "B": [0.2, 0.3]}), baseline="C") == []
