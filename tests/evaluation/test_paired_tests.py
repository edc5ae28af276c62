import numpy as np
import pytest
from scipy import stats

from nnunet_godc.evaluation import paired_tests
from nnunet_godc.evaluation.paired_tests import (
    holm,
    sign_flip_p_values,
    signed_rank_p_values,
    wins_ties_losses,
)


def column(*values):
    return np.array(values, dtype=np.float64)[:, None]


@pytest.fixture
def random():
    return np.random.default_rng(21)


@pytest.mark.parametrize("patients", [3, 8, 13])
def test_few_patients_get_the_exact_permutation_test(patients, random):
    differences = random.normal(0.3, 1, (patients, 4))
    expected = stats.permutation_test(
        (differences,), lambda d, axis: d.mean(axis=axis), permutation_type="samples", vectorized=True, axis=0
    )
    np.testing.assert_allclose(sign_flip_p_values(differences, resamples=10_000, seed=0), expected.pvalue)


def test_the_permutation_test_by_hand():
    # Of the 8 patterns of +-1, +-2, +-3, the sums +-6 and +-4 are at least as extreme as 3 + 2 - 1 = 4.
    assert sign_flip_p_values(column(3, 2, -1), resamples=1000, seed=0)[0] == 4 / 8


def test_drawn_patterns_come_near_to_all_patterns(random):
    differences = random.normal(0.3, 1, (13, 6))
    exact = sign_flip_p_values(differences, resamples=2**13, seed=0)
    drawn = sign_flip_p_values(differences, resamples=2**13 - 1, seed=0)
    assert not np.array_equal(exact, drawn)
    np.testing.assert_allclose(drawn, exact, atol=4 * np.sqrt(0.25 / 2**13))


def test_drawn_patterns_do_not_depend_on_the_size_of_the_blocks(random, monkeypatch):
    differences = random.normal(0.1, 1, (37, 3))
    whole = sign_flip_p_values(differences, resamples=2000, seed=0)
    monkeypatch.setattr(paired_tests, "BLOCK", 37 * 16)
    np.testing.assert_allclose(sign_flip_p_values(differences, resamples=2000, seed=0), whole)


def test_equal_sizes_are_as_extreme_as_what_was_observed():
    # 40 differences of one size: the test is the binomial one.
    differences = column(*[0.1] * 27 + [-0.1] * 13)
    [p] = sign_flip_p_values(differences, resamples=50_000, seed=0)
    assert p == pytest.approx(stats.binomtest(27, 40).pvalue, abs=0.005)


@pytest.mark.parametrize("resamples", [2**21, 20_000], ids=["exact", "drawn"])
def test_sums_that_are_equal_on_paper_are_as_extreme_whatever_their_last_bits(resamples):
    sizes = column(*[1, 3, 7] * 7)
    sizes[:9] *= -1
    [p] = sign_flip_p_values(sizes * 0.1, resamples=resamples, seed=0)
    [of_whole_numbers] = sign_flip_p_values(sizes, resamples=2**21, seed=0)
    assert p == pytest.approx(of_whole_numbers, abs=0 if resamples == 2**21 else 0.015)


def test_a_p_value_is_never_zero():
    differences = column(*np.linspace(1, 2, 60))
    assert sign_flip_p_values(differences, resamples=999, seed=0)[0] == 1 / 1000


def test_patients_who_tie_decide_nothing(random):
    differences = random.normal(0.5, 1, (9, 1))
    padded = np.concatenate([differences, np.zeros((30, 1)), np.full((5, 1), np.nan), np.full((5, 1), 1e-7)])
    for test in (lambda d: sign_flip_p_values(d, resamples=1000, seed=0), signed_rank_p_values):
        assert test(padded)[0] == test(differences)[0]


def test_without_any_difference_p_is_one_and_without_patients_undefined():
    differences = np.array([[0.0, np.nan], [0.0, np.nan]])
    for p in (sign_flip_p_values(differences, resamples=1000, seed=0), signed_rank_p_values(differences)):
        assert p[0] == 1
        assert np.isnan(p[1])


@pytest.mark.parametrize("patients", [6, 25, 80])
def test_signed_ranks_are_those_of_scipy(patients, random):
    differences = random.normal(0.2, 1, (patients, 3))
    np.testing.assert_allclose(signed_rank_p_values(differences), stats.wilcoxon(differences, axis=0).pvalue)


def test_the_signed_rank_test_by_hand():
    # Ranks of 5 patients, all positive: P = 2 / 2 ** 5.
    assert signed_rank_p_values(column(0.1, 0.2, 0.3, 0.4, 0.5))[0] == pytest.approx(2 / 32)


def test_equal_sizes_of_few_patients_are_ranked_together_and_tested_exactly():
    # Ranks 1.5, 1.5, 3, 4, the first negative: W- = 1.5; patterns with W- or W+ of at most 1.5: none, {1}, {2}, twice.
    # The last bit, in which 0.3 - 0.2 and 0.1 differ, must not tell the first two apart.
    assert 0.3 - 0.2 < 0.1
    assert signed_rank_p_values(column(0.2 - 0.3, 0.1, 0.2, 0.4))[0] == pytest.approx(6 / 16)


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_was_not_tested_and_stays_below_one():
    np.testing.assert_allclose(holm(np.array([0.6, np.nan, 0.7, 0.01])), [1, np.nan, 1, 0.03])
    assert holm(np.array([])).shape == (0,)


def test_holm_of_one_test_changes_nothing():
    assert holm(np.array([0.049]))[0] == 0.049


def test_wins_ties_and_losses():
    wins, ties, losses = wins_ties_losses(column(0.1, 2, -1, 0, 5e-7, np.nan))
    assert (wins[0], ties[0], losses[0]) == (2, 2, 1)
