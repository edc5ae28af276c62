"""That 95 % are 95 %: on simulated studies, whose truth is known. docs/statistics.md has more of these figures."""

import pytest

calibration = pytest.importorskip("benchmarks.calibration", reason="the benchmarks are not in the source distribution")

STUDIES = 8000  # the standard error of a share of 95 % is then 0.24 %


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "patients"),
    [
        ("mean tumour Dice", 50),
        ("mean tumour Dice, 1 to 4 scans a patient", 50),
        ("mean liver Dice", 100),
        ("mean difference, none in truth", 50),
        ("mean difference, none in truth, 1 to 4 scans", 100),
        ("mean difference, an improvement", 30),
        ("median tumour Dice", 30),
        ("d_z, no difference in truth", 50),
        ("lesion sensitivity", 30),
    ],
)
def test_intervals_hold_the_truth_in_95_of_100_studies(name, patients):
    subject, draw = calibration.COVERAGE[name]
    assert calibration.coverage(subject, draw, patients, STUDIES, seed=2) == pytest.approx(0.95, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", calibration.REJECTION)
def test_tests_find_a_difference_that_is_not_there_in_5_of_100_studies(name):
    test, draw = calibration.REJECTION[name]
    assert calibration.rejection(test, draw, 30, STUDIES, seed=2) == pytest.approx(0.05, abs=0.01)


def test_exact_tests_of_few_patients_never_reject_too_often():
    for name in ("sign flip", "Wilcoxon"):
        test, draw = calibration.REJECTION[name]
        assert calibration.rejection(test, draw, 5, 400, seed=2) == 0  # p is 2 / 32 at the least
        assert calibration.rejection(test, draw, 7, 2000, seed=2) <= 0.065
