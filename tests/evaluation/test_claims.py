from dataclasses import replace

import pytest

from nnunet_godc.evaluation.case_table import MISSING, Method, Question
from nnunet_godc.evaluation.claims import caveats, claim, multiplicity, p_value
from nnunet_godc.evaluation.comparison import Comparison
from nnunet_godc.evaluation.metrics import (
    ABSENT_IN_BOTH,
    ABSENT_IN_PREDICTION,
    ABSENT_IN_REFERENCE,
    HD95,
    LESION_DICE,
    RELATIVE_VOLUME_ERROR,
    VOLUME_ERROR,
)

NAN = float("nan")
LOWER = {"difference": -2.5, "low": -4.0, "high": -1.0, "rank_biserial": -0.3, "tests": 1}


@pytest.fixture
def raised():
    """GODC raises the Dice of tumours by 1.8 points, in all tests."""
    return Comparison(
        dataset="Dataset501_LiTS",
        cross_validated=True,
        question=Question("tumour", "Dice"),
        method=Method("3d_fullres", "nnUNetPlans", "GODC"),
        against=Method("3d_fullres", "nnUNetPlans", "stock"),
        patients=118,
        cases=118,
        undefined_method={},
        undefined_against={},
        difference=0.018,
        low=0.004,
        high=0.032,
        effect_size=0.2,
        effect_low=0.05,
        effect_high=0.35,
        wins=80,
        ties=3,
        losses=35,
        sign_flip_p=0.004,
        sign_flip_p_holm=0.012,
        signed_rank_p=0.003,
        signed_rank_p_holm=0.009,
        rank_biserial=0.3,
        tests=3,
        runs=(1, 1),
    )


def test_a_supported_difference_is_claimed_with_its_interval(raised):
    assert claim(raised) == (
        "GODC raises Dice of tumour by 1.8 points against stock, an improvement (95 % CI 0.4 to 3.2; p = 0.012 after "
        "Holm's correction for 3 comparisons; 118 patients)."
    )


def test_less_is_said_to_be_lower_and_whether_that_is_better(raised):
    lower = replace(raised, question=Question("tumour", HD95), **LOWER)
    assert claim(lower) == (
        "GODC lowers HD95 of tumour by 2.5 mm against stock, an improvement (95 % CI 1.0 to 4.0; p = 0.012; "
        "118 patients)."
    )
    worse = replace(raised, difference=-0.018, low=-0.032, high=-0.004, rank_biserial=-0.3)
    assert "lowers Dice of tumour by 1.8 points against stock, a deterioration (95 % CI 0.4 to 3.2;" in claim(worse)


def test_an_end_near_zero_is_not_written_as_zero(raised):
    assert "by 1.80 points against stock, an improvement (95 % CI 0.03 to 3.20;" in claim(replace(raised, low=0.0003))
    narrow = replace(raised, difference=0.0021, low=0.0007, high=0.0035)
    assert "by 0.21 points against stock, an improvement (95 % CI 0.07 to 0.35;" in claim(narrow)


def test_a_method_that_misses_the_label_does_not_improve_its_distances(raised):
    lower = replace(raised, question=Question("tumour", HD95), **LOWER)
    missing = replace(lower, cases=78, patients=78, undefined_method={ABSENT_IN_PREDICTION: 40})
    assert claim(missing) == (
        "On the 78 cases that both define, GODC lowers HD95 of tumour by 2.5 mm against stock (95 % CI 1.0 to 4.0; "
        "p = 0.012; 78 patients). The difference is one on these 78 cases alone, not an improvement: left out are 40 "
        "cases in which GODC alone predicts no tumour."
    )
    worse = replace(missing, difference=2.5, low=1.0, high=4.0, rank_biserial=0.3)
    assert "an improvement" not in claim(worse)
    assert "on these 78 cases alone, not a deterioration: left out are 40 cases" in claim(worse)


@pytest.mark.parametrize(
    ("sides", "told"),
    [
        ({"undefined_against": {ABSENT_IN_PREDICTION: 1}}, "1 case in which stock alone predicts no tumour."),
        (
            {"undefined_method": {ABSENT_IN_BOTH: 2}, "undefined_against": {ABSENT_IN_PREDICTION: 3}},
            "2 cases without tumour, in which GODC alone rightly predicts none and 3 cases in which stock alone "
            "predicts no tumour.",
        ),
        (
            {"undefined_method": {ABSENT_IN_PREDICTION: 2, ABSENT_IN_REFERENCE: 1}, "runs": (3, 1)},
            "2 cases in which a training of GODC predicts no tumour and 1 case in which it is not defined for a "
            "training of GODC.",
        ),
        (
            {"question": Question("tumour", LESION_DICE, "below 1 ml"), "undefined_method": {MISSING: 2}},
            "2 lesions at which GODC alone was not measured.",
        ),
    ],
)
def test_whatever_is_said_tells_which_cases_are_left_out(raised, sides, told):
    unclear = {"low": -0.012, "sign_flip_p_holm": 0.31, "signed_rank_p_holm": 0.2}
    equal = {"wins": 0, "losses": 0, "low": NAN, "high": NAN}
    none = {"patients": 0, "low": NAN, "high": NAN}
    for outcome in ({}, unclear, equal, none):
        assert claim(replace(raised, **outcome, **sides)).endswith(f"eft out are {told}")


def test_cases_that_were_not_measured_do_not_make_a_difference_selective(raised):
    incomplete = replace(raised, undefined_against={MISSING: 24})
    assert ", an improvement (" in claim(incomplete)
    assert claim(incomplete).endswith(" Left out are 24 cases at which stock alone was not measured.")


def test_questions_are_counted_since_nothing_is_corrected_for_them(raised):
    labels = [replace(raised, question=Question(f"label {number}", "Dice")) for number in range(26)]
    other_table = replace(raised, cross_validated=False, question=Question("label 0", "Dice"))
    untested = replace(raised, question=Question("label 27", "Dice"), tests=0)
    text = multiplicity([*labels, *labels, other_table, untested])
    assert text.startswith("Tests were made for 27 questions (label, metric and lesion size): p-values are corrected ")
    assert "(up to 3 comparisons), not for the number of questions." in text
    assert "about one question in twenty is claimed by chance, here 1.4 of 27. Name the primary question" in text
    alone = multiplicity([replace(entry, tests=1) for entry in labels])
    assert (
        "26 questions (label, metric and lesion size): with one comparison in each, no p-value is corrected." in alone
    )
    assert multiplicity([raised]) == "Tests were made for one question, a metric of a label."
    assert multiplicity([untested]) == multiplicity([]) == ""


def test_a_claimed_difference_is_not_written_as_zero(raised):
    volume = replace(raised, question=Question("tumour", VOLUME_ERROR), tests=1)
    tiny = claim(replace(volume, difference=0.00081, low=0.00061, high=0.0012))
    assert "by 0.0008 ml against stock, a deterioration (95 % CI 0.0006 to 0.0012;" in tiny
    alike = claim(replace(volume, difference=2.00005, low=2.00001, high=2.00009))
    assert "by 2.00005 ml against stock, a deterioration (95 % CI 2.00001 to 2.00009;" in alike
    unclear = claim(replace(volume, difference=0.002, low=-0.04, high=0.04, sign_flip_p_holm=0.8))
    assert "anything from -0.040 to 0.040 ml is compatible with the data (observed 0.002;" in unclear


def test_without_support_it_says_what_stays_possible(raised):
    unclear = replace(raised, low=-0.012, high=0.048, sign_flip_p_holm=0.31, signed_rank_p_holm=0.2)
    assert claim(unclear) == (
        "No difference in Dice of tumour between GODC and stock can be claimed: anything from -1.2 to 4.8 points is "
        "compatible with the data (observed 1.8; p = 0.31 after Holm's correction for 3 comparisons; 118 patients)."
    )


def test_an_interval_without_zero_is_not_enough_among_many_tests(raised):
    many = replace(raised, sign_flip_p_holm=0.08, signed_rank_p_holm=0.2)
    assert claim(many) == (
        "No difference in Dice of tumour between GODC and stock can be claimed: the interval from 0.4 to 3.2 points "
        "excludes zero, but the test does not reject (p = 0.080 after Holm's correction for 3 comparisons; 118 "
        "patients)."
    )


def test_a_test_alone_is_not_enough_either(raised):
    assert "can be claimed: the test sees one (p = 0.012" in claim(replace(raised, low=-0.001))


def test_the_other_test_is_told_when_it_disagrees(raised):
    assert "Wilcoxon's test does not see it (p = 0.30)" in claim(replace(raised, signed_rank_p_holm=0.3))
    unclear = replace(raised, low=-0.01, sign_flip_p_holm=0.2)
    assert claim(unclear).endswith(
        "Wilcoxon's test does see a shift (p = 0.009; the ranks of the differences favour GODC, which is better for 80 "
        "patients, equal for 3, worse for 35), from which no difference of the means follows."
    )


def test_the_ranks_may_favour_the_method_with_fewer_wins_or_the_worse_mean(raised):
    unclear = replace(raised, low=-0.01, sign_flip_p_holm=0.2, rank_biserial=-0.3)
    favours_stock = "favour stock, which is better for 35 patients, equal for 3, worse for 80)"
    assert favours_stock in claim(unclear)
    lower_is_better = replace(unclear, question=Question("tumour", HD95))
    assert "favour GODC, which is better for 80 patients, equal for 3, worse for 35)" in claim(lower_is_better)
    against_the_mean = claim(replace(raised, rank_biserial=-0.3))
    assert f"Wilcoxon's test sees the opposite (p = 0.009; the ranks of the differences {favours_stock}" in (
        against_the_mean
    )
    assert "Wilcoxon" not in claim(raised)


def test_without_an_interval_it_says_how_few_differ(raised):
    few = replace(raised, low=NAN, high=NAN, wins=1, losses=0, ties=41, patients=42, sign_flip_p_holm=1.0)
    assert claim(few) == (
        "No difference in Dice of tumour between GODC and stock can be claimed: 1 of 42 patients differs, too few or "
        "too alike for an interval."
    )


def test_equal_methods_are_called_equal(raised):
    assert claim(replace(raised, wins=0, losses=0, ties=7, patients=7, low=NAN, high=NAN)) == (
        "GODC and stock are equal in Dice of tumour for 7 patients."
    )


def test_without_common_cases_nothing_is_said(raised):
    assert "it is defined for both in no case" in claim(replace(raised, patients=0, low=NAN, high=NAN))


def test_sizes_and_distances_are_named(raised):
    assert "Lesion Dice of tumour, below 1 ml by" in claim(
        replace(raised, question=Question("tumour", LESION_DICE, "below 1 ml"))
    )
    assert "Relative volume error (distance from zero) of tumour by 1.8 points against stock, a deterioration" in claim(
        replace(raised, question=Question("tumour", RELATIVE_VOLUME_ERROR))
    )


def test_one_training_does_not_tell_what_a_seed_changes(raised):
    [caveat] = caveats(raised)
    assert caveat.startswith("One training (per fold) stands behind either side")


def test_several_seeds_are_said_to_be_averaged(raised):
    [caveat] = caveats(replace(raised, runs=(3, 1)))
    assert caveat.startswith("Averages over 3 and 1 trainings with different seeds")


def test_few_patients_are_a_reason_for_caution(raised):
    assert any("Fewer than 50 patients" in caveat for caveat in caveats(replace(raised, patients=49)))
    assert not any("Fewer than" in caveat for caveat in caveats(replace(raised, patients=50)))


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0001, "p < 0.001"),
        (0.001, "p = 0.001"),
        (0.0123, "p = 0.012"),
        (0.08, "p = 0.080"),
        (0.0999, "p = 0.10"),
        (1.0, "p = 1.00"),
    ],
)
def test_p_values_are_written_with_two_figures(p, text):
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0503, "p = 0.0503"), (0.0497, "p = 0.0497"), (0.05, "p = 0.050"), (0.0512, "p = 0.051")]
)
def test_p_values_tell_on_which_side_of_the_limit_they_are(p, text):
    assert p_value(p) == text
