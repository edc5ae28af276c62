import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_godc.evaluation import inference
from nnunet_godc.evaluation.cube import cubes
from nnunet_godc.evaluation.inference import Comparison, Summary, compare_methods, summarise
from nnunet_godc.evaluation.metrics import ABSENT_IN_PREDICTION, HD95, NOT_MEASURED, RELATIVE_VOLUME_ERROR
from tests.evaluation.measured import measured

NAN = float("nan")


def compare(*frames: pd.DataFrame, baseline: str | None = None) -> list[Comparison]:
    return [
        entry
        for cube in cubes(pd.concat(frames, ignore_index=True), ())
        for entry in compare_methods(cube, baseline=baseline, resamples=1000, seed=0)
    ]


def sum_up(*frames: pd.DataFrame) -> list[Summary]:
    [cube] = cubes(pd.concat(frames, ignore_index=True), ())
    return summarise(cube, resamples=1000, seed=0)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(22)


def test_two_methods_are_compared_on_the_cases_that_both_define():
    [found] = compare(measured({"A": [0.5, 0.6, NAN, 0.2, None], "B": [0.7, 0.7, 0.9, NAN, 0.4]}))
    assert (found.method.trainer, found.against.trainer) == ("B", "A")
    assert (found.cases, found.patients) == (2, 2)
    assert (found.only_method, found.only_against) == (2, 1)
    assert found.undefined_method == {ABSENT_IN_PREDICTION: 1}
    assert found.undefined_against == {ABSENT_IN_PREDICTION: 1, NOT_MEASURED: 1}
    assert found.difference == pytest.approx(0.15)


def test_a_method_that_misses_the_hard_cases_wins_nothing_by_it(random: np.random.Generator):
    distances = random.lognormal(1.5, 0.4, 40)
    nearer = distances * random.uniform(0.7, 0.9, 40)
    missed = np.where(np.arange(40) < 10, NAN, nearer)
    [all_found] = compare(measured({"A": distances, "B": nearer}, metric=HD95))
    [some_missed] = compare(measured({"A": distances, "B": missed}, metric=HD95))
    [unmeasured] = compare(measured({"A": distances, "B": [None] * 10 + list(missed[10:])}, metric=HD95))
    assert all(found.significant for found in (all_found, some_missed, unmeasured))
    assert (all_found.winner, some_missed.winner, unmeasured.winner) == (all_found.method, None, all_found.method)


def test_numbers_are_those_of_the_differences(random: np.random.Generator):
    a, b = random.random((2, 20))
    [found] = compare(measured({"A": a, "B": b}))
    assert found.difference == pytest.approx((b - a).mean())
    assert found.effect_size == pytest.approx((b - a).mean() / (b - a).std(ddof=1))
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(np.round(b - a, 9)).pvalue)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.06)
    assert found.low < found.difference < found.high
    assert (found.wins, found.losses) == ((b > a).sum(), (b < a).sum())


def test_signs_of_six_patients_are_counted_out():
    [found] = compare(measured({"A": [0.1] * 6, "B": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}))
    assert found.p == found.p_holm == 2 / 2**6
    assert (found.wins, found.ties, found.losses) == (6, 0, 0)


def test_cases_of_one_patient_are_one_piece_of_evidence(random: np.random.Generator):
    a = random.random(6)
    b = a + random.normal(0.1, 0.05, 6)
    [single] = compare(measured({"A": a, "B": b}))
    patients = [f"p{number}" for number in range(6)] * 10
    [many] = compare(measured({"A": np.tile(a, 10), "B": np.tile(b, 10)}, patients=patients))
    assert (many.patients, many.cases) == (6, 60)
    for name in ("difference", "low", "high", "effect_size", "effect_low", "wins", "p", "wilcoxon_p"):
        assert getattr(many, name) == pytest.approx(getattr(single, name), rel=1e-5), name


def test_the_mean_is_over_cases_and_wins_are_over_patients():
    [found] = compare(measured({"A": [0, 0, 0, 0], "B": [0.1, 0.1, 0.1, -0.2]}, patients=["p", "p", "p", "q"]))
    assert found.difference == pytest.approx(0.025)
    assert (found.wins, found.ties, found.losses) == (1, 0, 1)


def test_the_test_is_about_the_mean_over_cases():
    """Sums 0.3, -0.2 and 0.1: six of the eight patterns of signs give a sum of 0.2 or more; of means, all would."""
    values = {"A": [0.5] * 5, "B": [0.6, 0.6, 0.6, 0.3, 0.6]}
    [found] = compare(measured(values, patients=["p", "p", "p", "q", "r"]))
    assert found.difference == pytest.approx(0.04)
    assert found.p == 6 / 8


def test_comparisons_do_not_depend_on_how_many_are_computed_at_once(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    liver, tumour = ({name: random.random(130) for name in "ABCD"} for _ in range(2))
    for values in tumour.values():
        values[random.random(130) < 0.1] = NAN
    for values in (liver, tumour):
        values["D"] = [*values["D"][:-20], *[None] * 20]  # these patients are known of the others alone
    few = measured({name: random.random(12) for name in "ABC"}, metric=HD95)
    frames = [measured(liver, label="liver"), measured(tumour), few]
    together = compare(*frames)
    monkeypatch.setattr(inference, "COLUMNS_AT_ONCE", 1)
    apart = compare(*frames)
    assert len(together) == len(apart) > 20
    for one, other in zip(together, apart, strict=True):
        for name, value in vars(one).items():
            expected = pytest.approx(value, rel=1e-5, nan_ok=True) if isinstance(value, float) else value
            assert getattr(other, name) == expected, name


def test_where_less_is_better_wins_and_improvements_are_those_of_less():
    [found] = compare(measured({"A": [5, 6, 7], "B": [4, 4, 9]}, metric=HD95))
    assert found.difference == pytest.approx(-1 / 3)
    assert (found.wins, found.losses) == (2, 1)
    assert found.improves


def test_where_zero_is_best_the_distance_from_it_counts():
    [found] = compare(measured({"A": [-0.3, 0.2], "B": [-0.1, 0.3]}, metric=RELATIVE_VOLUME_ERROR))
    assert found.difference == pytest.approx(-0.05)
    assert (found.wins, found.losses, found.improves) == (1, 1, True)
    seeds = {"A": [0.1, 0.1], "B_seed1": [-0.3, 0.3], "B_seed2": [0.3, -0.3]}
    [found] = compare(measured(seeds, metric=RELATIVE_VOLUME_ERROR))
    assert found.difference == pytest.approx(0.2)  # trainings that err to either side are not exact
    assert (found.losses, found.improves) == (2, False)


def test_all_pairs_are_compared_unless_a_baseline_is_named(random: np.random.Generator):
    frame = measured({name: random.random(5) for name in "ABCD"})
    assert len(compare(frame)) == 6
    against = compare(frame, baseline="C")
    assert [(c.method.trainer, c.against.trainer) for c in against] == [("A", "C"), ("B", "C"), ("D", "C")]
    assert compare(frame, baseline="E") == []


def test_only_the_trainer_differs_in_a_comparison(random: np.random.Generator):
    first = measured({name: random.random(5) for name in "AB"})
    second = measured({name: random.random(5) for name in "AB"}, plans="nnUNetResEncUNetMPlans")
    compared = compare(first, second)
    assert len(compared) == 2
    assert all(c.method.plans == c.against.plans for c in compared)


def test_holm_corrects_over_the_methods_of_one_question():
    """All of n patients differ to one side: p is 2 / 2**n, and 6, 8 and 9 patients have three such p."""
    base = np.linspace(0.1, 0.2, 9)
    step = np.linspace(0.1, 0.3, 9)
    values = {"stock": base, "C": np.where(np.arange(9) < 6, base + step, NAN), "D": base + step}
    values["E"] = np.where(np.arange(9) < 8, base + step, NAN)
    tumour = measured(values)
    liver = measured({"stock": base, "C": values["C"]}, label="liver")
    compared = compare(tumour, liver, baseline="stock")
    of = {(c.method.trainer, c.endpoint.label): c for c in compared}
    for name, p, factor in (("D", 2 / 2**9, 3), ("E", 2 / 2**8, 2), ("C", 2 / 2**6, 1)):
        assert of[name, "tumour"].p == pytest.approx(p)
        assert of[name, "tumour"].p_holm == pytest.approx(factor * p)
        assert of[name, "tumour"].tests == 3
    assert (of["C", "liver"].p_holm, of["C", "liver"].tests) == (2 / 2**6, 1)


def test_what_is_significant_alone_may_not_be_among_many():
    base = np.linspace(0.1, 0.2, 6)
    step = np.linspace(0.1, 0.3, 6)
    [alone] = compare(measured({"A": base, "B": base + step}))
    assert alone.significant  # 2 / 2**6 = 0.031
    *_, last = compare(measured({"A": base, "B": base + step, "C": base + 2 * step}), baseline="A")
    assert last.p_holm == pytest.approx(2 * 2 / 2**6)
    assert last.low > 0
    assert not last.significant


def test_a_pair_without_common_cases_is_not_part_of_the_family():
    compared = compare(measured({"A": [0.1, 0.2, NAN], "B": [NAN, NAN, 0.3], "C": [0.3, 0.1, 0.2]}))
    apart = next(c for c in compared if (c.method.trainer, c.against.trainer) == ("B", "A"))
    assert apart.patients == 0
    assert math.isnan(apart.difference)
    assert math.isnan(apart.p_holm)
    assert not apart.significant
    assert {c.tests for c in compared} == {2}


def test_one_point_in_nearly_all_patients_alike_has_no_interval_and_is_significant():
    base = np.full(60, 0.5)
    [found] = compare(measured({"A": base, "B": np.where(np.arange(60) == 7, base, base + 0.01)}))
    assert (found.wins, found.ties) == (59, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.p_holm < 0.001
    assert found.winner == found.method


def test_fewer_than_four_patients_have_no_interval_and_no_significance():
    [three] = compare(measured({"A": [0.1, 0.2, 0.3], "B": [0.5, 0.7, 0.9]}))
    assert math.isnan(three.low)
    assert three.p == 2 / 2**3
    assert not three.significant
    trainings = {"A_seed1": [0.1, 0.2, 0.3], "A_seed2": [0.2, 0.1, 0.3], "B_seed1": [5, 6, 7], "B_seed2": [5, 7, 6]}
    [several] = compare(measured(trainings))
    assert math.isnan(several.low)
    assert not several.new_trainings
    assert not several.significant


@pytest.mark.parametrize(("first", "second", "new"), [(1, 1, False), (3, 1, False), (1, 2, False), (2, 2, True)])
def test_new_trainings_need_several_on_both_sides(first: int, second: int, new: bool, random: np.random.Generator):
    runs = {f"{name}_seed{seed}": random.random(8) for name, n in (("A", first), ("B", second)) for seed in range(n)}
    [found] = compare(measured(runs))
    assert (found.new_trainings, found.trainings) == (new, (second, first))
    assert math.isnan(found.freedom) == (not new)


def test_cases_and_patients_of_a_mean_over_labels_are_those_with_any_label():
    patients = ["p", "p", "q", "q", "r"]
    frames = [
        measured({"A": [0.2, 0.4, NAN, 0.6, NAN]}, patients=patients),
        measured({"A": [0.9, 0.9, 0.8, NAN, NAN]}, label="liver", patients=patients),
    ]
    over, tumour, liver = sum_up(*frames)
    assert (over.cases, over.patients) == (4, 2)
    assert (tumour.cases, tumour.patients, tumour.undefined) == (3, 2, {ABSENT_IN_PREDICTION: 2})
    assert (tumour.mean, tumour.median) == (pytest.approx(0.4), pytest.approx(0.45))  # of cases; of 0.3 and 0.6
    assert over.mean == pytest.approx((tumour.mean + liver.mean) / 2)


def test_means_of_trainings_are_over_the_cases_that_all_of_them_define():
    easy, hard = [0.9, 0.8], [0.4, 0.3, 0.5]
    [a, b] = sum_up(measured({"A_seed1": easy + hard, "A_seed2": [0.7, 0.6, None, NAN, 0.5], "B": easy + hard}))
    assert a.seed_means == pytest.approx((2.2 / 3, 1.8 / 3))
    assert a.training_sd == pytest.approx(0.4 / 3 / math.sqrt(2))
    assert b.seed_means == pytest.approx((2.9 / 5,))
    assert math.isnan(b.training_sd)


def test_intervals_stay_within_what_a_metric_can_be():
    [dice] = sum_up(measured({"A": [0.99, 1.0, 1.0, 0.8, 1.0, 0.97]}))
    assert dice.high == 1
    [score] = sum_up(measured({"A": [-3, -1, -2, -2.5, 0.5]}, metric="Score"))
    assert score.low < score.mean < score.high
