from dataclasses import replace

import pytest

from nnunet_godc.evaluation.cube import OVER_LABELS, Endpoint, Method
from nnunet_godc.evaluation.inference import Comparison
from nnunet_godc.evaluation.metrics import (
    ABSENT_IN_BOTH,
    ABSENT_IN_PREDICTION,
    ABSENT_IN_REFERENCE,
    HD95,
    LESION_DICE,
    NOT_MEASURED,
    RELATIVE_VOLUME_ERROR,
    VOLUME_ERROR,
)
from nnunet_godc.evaluation.sentences import (
    NEW_TRAININGS,
    THESE_MODELS,
    caveats,
    claim,
    multiplicity,
    p_value,
    subject_of,
)

NAN = float("nan")
LOWER = {"difference": -2.5, "low": -4.0, "high": -1.0, "tests": 1}


@pytest.fixture
def raised():
    """GODC raises the Dice of tumours by 1.8 points; two trainings on either side."""
    return Comparison(
        dataset="Dataset501_LiTS",
        cross_validated=True,
        endpoint=Endpoint("tumour", "Dice"),
        method=Method("3d_fullres", "nnUNetPlans", "GODC"),
        against=Method("3d_fullres", "nnUNetPlans", "stock"),
        new_trainings=True,
        patients=118,
        cases=118,
        undefined_method={},
        undefined_against={},
        difference=0.018,
        low=0.004,
        high=0.032,
        freedom=14.0,
        effect_size=0.2,
        effect_low=0.05,
        effect_high=0.35,
        wins=80,
        ties=3,
        losses=35,
        p=0.004,
        p_holm=0.012,
        wilcoxon_p=0.003,
        tests=3,
        trainings=(2, 2),
    )


@pytest.fixture
def single(raised):
    """The same, of one training on either side."""
    return replace(raised, new_trainings=False, freedom=NAN, trainings=(1, 1), tests=1)


def test_several_trainings_speak_of_the_methods(raised):
    assert claim(raised) == (
        "GODC raises Dice of tumour by 1.8 points against stock, an improvement (95 % CI 0.4 to 3.2; p = 0.012 after "
        "Holm's correction for 3 comparisons; 118 patients, 2 and 2 trainings per fold)."
    )
    assert claim(replace(raised, cross_validated=False)).endswith("; 118 patients, 2 and 2 trainings).")


def test_one_training_per_side_speaks_of_the_trained_models(single):
    assert claim(single) == (
        "The trained GODC is 1.8 points higher in Dice of tumour than the trained stock, an improvement of this model "
        "over that one (95 % CI 0.4 to 3.2; p = 0.012; 118 patients)."
    )
    unclear = claim(replace(single, low=-0.012, p_holm=0.31))
    assert unclear.startswith("No difference in Dice of tumour between these trained models of GODC and stock can be ")
    equal = claim(replace(single, wins=0, losses=0, ties=7, patients=7, low=NAN, high=NAN))
    assert equal == "These trained models of GODC and stock are equal in Dice of tumour for 7 patients."


def test_less_is_said_to_be_lower_and_whether_that_is_better(raised):
    lower = replace(raised, endpoint=Endpoint("tumour", HD95), **LOWER)
    assert claim(lower).startswith(
        "GODC lowers HD95 of tumour by 2.5 mm against stock, an improvement (95 % CI 1.0 to 4.0; p = 0.012; "
    )
    worse = replace(raised, difference=-0.018, low=-0.032, high=-0.004)
    assert "lowers Dice of tumour by 1.8 points against stock, a deterioration (95 % CI 0.4 to 3.2;" in claim(worse)
    one = claim(replace(worse, new_trainings=False, trainings=(1, 1)))
    assert "is 1.8 points lower in Dice of tumour than the trained stock, a deterioration of this model" in one


def test_where_zero_is_best_more_is_a_deterioration(raised):
    further = claim(replace(raised, endpoint=Endpoint("tumour", RELATIVE_VOLUME_ERROR)))
    assert "raises Relative volume error (distance from zero) of tumour by 1.8 points" in further
    assert "a deterioration" in further


def test_a_claimed_difference_and_its_ends_are_not_written_as_zero(raised):
    assert "by 1.80 points against stock, an improvement (95 % CI 0.03 to 3.20;" in claim(replace(raised, low=0.0003))
    narrow = replace(raised, difference=0.0021, low=0.0007, high=0.0035)
    assert "by 0.21 points against stock, an improvement (95 % CI 0.07 to 0.35;" in claim(narrow)
    volume = replace(raised, endpoint=Endpoint("tumour", VOLUME_ERROR), tests=1)
    tiny = claim(replace(volume, difference=0.00081, low=0.00061, high=0.0012))
    assert "by 0.0008 ml against stock, a deterioration (95 % CI 0.0006 to 0.0012;" in tiny
    alike = claim(replace(volume, difference=2.00005, low=2.00001, high=2.00009))
    assert "by 2.00005 ml against stock, a deterioration (95 % CI 2.00001 to 2.00009;" in alike
    bare = claim(replace(raised, difference=0.0000021, low=NAN, high=NAN))
    assert "raises Dice of tumour by 0.0002 points against stock, an improvement (no interval, the" in bare


def test_without_support_it_says_what_stays_possible(raised):
    unclear = replace(raised, low=-0.012, high=0.048, p_holm=0.31)
    assert claim(unclear) == (
        "No difference in Dice of tumour between GODC and stock can be claimed: anything from -1.2 to 4.8 points is "
        "compatible with the data (observed 1.8; p = 0.31 after Holm's correction for 3 comparisons; 118 patients, "
        "2 and 2 trainings per fold)."
    )
    tiny = replace(unclear, endpoint=Endpoint("tumour", VOLUME_ERROR), difference=0.002, low=-0.04, high=0.04)
    assert "anything from -0.040 to 0.040 ml is compatible with the data (observed 0.002;" in claim(tiny)


def test_test_and_interval_have_to_agree(raised):
    many = claim(replace(raised, p_holm=0.08))
    assert "can be claimed: the interval from 0.4 to 3.2 points excludes zero, but the test does not reject (p" in many
    lower = claim(replace(raised, difference=-0.018, low=-0.032, high=-0.004, p_holm=0.08))
    assert "the interval from -3.2 to -0.4 points excludes zero, but the test does not reject (p" in lower
    across = claim(replace(raised, low=-0.001))
    assert "can be claimed: the test sees one (p = 0.012" in across
    assert "but the interval from -0.1 to 3.2 points has zero" in across


def test_where_there_is_no_interval_it_says_why(single):
    few = replace(single, low=NAN, high=NAN, wins=1, losses=0, ties=41, patients=42, p_holm=1.0)
    assert claim(few) == (
        "No difference in Dice of tumour between these trained models of GODC and stock can be claimed: 1 of 42 "
        "patients differs, too few or too alike for an interval (p = 1.00)."
    )
    alike = claim(replace(few, wins=59, ties=1, patients=60, p_holm=0.0002))
    assert "(no interval, the patients' differences being too alike; p < 0.001; 60 patients)" in alike
    none = claim(replace(single, patients=0, low=NAN, high=NAN))
    assert none == "Nothing can be said about Dice of tumour of GODC and stock: it is defined for both in no case."


def test_a_method_that_misses_the_label_does_not_improve_its_distances(raised):
    lower = replace(raised, endpoint=Endpoint("tumour", HD95), **LOWER)
    missing = replace(lower, cases=78, patients=78, undefined_method={ABSENT_IN_PREDICTION: 40}, trainings=(1, 1))
    assert claim(replace(missing, new_trainings=False)) == (
        "On the 78 cases that both define, the trained GODC is 2.5 mm lower in HD95 of tumour than the trained stock "
        "(95 % CI 1.0 to 4.0; p = 0.012; 78 patients). The difference is one on these 78 cases alone, not an "
        "improvement: left out are 40 cases in which GODC alone predicts no tumour."
    )
    worse = replace(missing, difference=2.5, low=1.0, high=4.0)
    assert claim(worse).startswith("On the 78 cases that both define, GODC raises HD95 of tumour by 2.5 mm against")
    assert "on these 78 cases alone, not a deterioration: left out are 40 cases" in claim(worse)
    assert ", an improvement" not in claim(missing)
    assert (missing.winner, lower.winner) == (None, lower.method)


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
            {"undefined_method": {ABSENT_IN_PREDICTION: 2, ABSENT_IN_REFERENCE: 1}, "trainings": (3, 1)},
            "2 cases in which a training of GODC predicts no tumour and 1 case in which it is not defined for a "
            "training of GODC.",
        ),
        (
            {"endpoint": Endpoint(OVER_LABELS, "Dice"), "undefined_method": {ABSENT_IN_PREDICTION: 2}},
            "2 cases in which GODC alone predicts nothing of a label.",
        ),
        (
            {"endpoint": Endpoint("tumour", LESION_DICE, "below 1 ml"), "undefined_method": {NOT_MEASURED: 2}},
            "2 lesions at which GODC alone was not measured.",
        ),
    ],
)
def test_whatever_is_said_tells_which_cases_are_left_out(single, sides, told):
    unclear = {"low": -0.012, "p_holm": 0.31}
    equal = {"wins": 0, "losses": 0, "low": NAN, "high": NAN}
    none = {"patients": 0, "low": NAN, "high": NAN}
    for outcome in ({}, unclear, equal, none):
        assert claim(replace(single, **outcome, **sides)).endswith(f"eft out are {told}")


def test_cases_that_were_not_measured_do_not_make_a_difference_selective(raised):
    incomplete = replace(raised, undefined_against={NOT_MEASURED: 24}, trainings=(1, 1))
    assert ", an improvement (" in claim(incomplete)
    assert claim(incomplete).endswith(" Left out are 24 cases at which stock alone was not measured.")
    assert incomplete.winner == incomplete.method


def test_questions_are_counted_since_nothing_is_corrected_for_them(raised):
    labels = [replace(raised, endpoint=Endpoint(f"label {number}", "Dice")) for number in range(26)]
    other_table = replace(raised, cross_validated=False, endpoint=Endpoint("label 0", "Dice"))
    untested = replace(raised, endpoint=Endpoint("label 27", "Dice"), tests=0)
    text = multiplicity([*labels, *labels, other_table, untested])
    assert text.startswith("Tests were made for 27 questions (label, metric and lesion size): p-values are corrected ")
    assert "(Holm, up to 3 comparisons), not for the number of questions." in text
    assert "about one question in twenty is claimed by chance, here 1.4 of 27. Name the primary question" in text
    alone = multiplicity([replace(entry, tests=1) for entry in labels])
    assert "26 questions (label, metric and lesion size): with one comparison in each, no p-value is corr" in alone
    assert multiplicity([raised]) == "Tests were made for one question, a metric of a label."
    assert multiplicity([untested]) == multiplicity([]) == ""


def test_sizes_distances_and_means_are_named():
    assert subject_of(Endpoint("tumour", LESION_DICE, "below 1 ml")) == "Lesion Dice of tumour, below 1 ml"
    assert subject_of(Endpoint("tumour", VOLUME_ERROR)) == "Volume error (distance from zero) of tumour"
    assert subject_of(Endpoint(OVER_LABELS, HD95)) == "HD95, mean over labels"


def test_caveats_say_what_the_sentences_speak_of(raised, single):
    assert caveats([single]) == [THESE_MODELS]
    assert caveats([raised]) == [NEW_TRAININGS]
    assert caveats([raised, single]) == [THESE_MODELS, NEW_TRAININGS]
    [_, few] = caveats([replace(raised, patients=49)])
    assert few.startswith("Fewer than 50 patients")
    assert len(caveats([replace(raised, patients=50)])) == 1


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0001, "p < 0.001"),
        (0.001, "p = 0.001"),
        (0.0123, "p = 0.012"),
        (0.08, "p = 0.080"),
        (0.0999, "p = 0.10"),
        (1.0, "p = 1.00"),
        # on which side of the limit they are
        (0.0503, "p = 0.0503"),
        (0.0497, "p = 0.0497"),
        (0.05, "p = 0.050"),
        (0.0512, "p = 0.051"),
    ],
)
def test_p_values_have_two_figures_unless_these_would_be_the_limit(p, text):
    assert p_value(p) == text
