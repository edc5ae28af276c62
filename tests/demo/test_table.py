import csv
import json
import math

import pytest

from nnunet_godc.demo.table import Counts, format_table, mean_row, read_counts, write_cases

# 6 voxels right, 2 too many, 4 missed: Dice 12/18, precision 6/8, recall 6/10.
SOME = Counts(true_positive=6, false_positive=2, false_negative=4)
PERFECT = Counts(true_positive=5, false_positive=0, false_negative=0)
ABSENT = Counts(true_positive=0, false_positive=0, false_negative=0)
MISSED = Counts(true_positive=0, false_positive=0, false_negative=7)


def test_metrics_follow_from_the_counts():
    assert SOME.dice == pytest.approx(2 / 3)
    assert SOME.precision == pytest.approx(0.75)
    assert SOME.recall == pytest.approx(0.6)


def test_a_label_that_is_absent_and_not_predicted_has_no_metrics():
    assert math.isnan(ABSENT.dice)
    assert math.isnan(ABSENT.precision)
    assert math.isnan(ABSENT.recall)


def test_a_missed_label_scores_zero_and_has_no_precision():
    assert MISSED.dice == 0
    assert math.isnan(MISSED.precision)
    assert MISSED.recall == 0


def test_each_metric_is_averaged_over_the_cases_where_it_is_defined():
    row = mean_row("tumour", "ensemble", [SOME, PERFECT, ABSENT, MISSED])
    assert row.dice == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert row.precision == pytest.approx((0.75 + 1) / 2)
    assert row.recall == pytest.approx((0.6 + 1 + 0) / 3)


def test_an_undefined_mean_is_shown_as_a_dash():
    table = format_table([mean_row("liver", "fold_0", [PERFECT]), mean_row("tumour", "fold_0", [ABSENT])])
    assert [line.split() for line in table.splitlines()] == [
        ["label", "model", "Dice", "precision", "recall"],
        ["liver", "fold_0", "1.000", "1.000", "1.000"],
        ["tumour", "fold_0", "-", "-", "-"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_counts_are_read_from_the_summary_of_nnunet(tmp_path):
    metrics = {"TP": 6, "FP": 2, "FN": 4, "TN": 100, "Dice": 0.66}
    summary = tmp_path / "summary.json"
    summary.write_text(
        json.dumps(
            {
                "metric_per_case": [
                    {
                        "prediction_file": "/somewhere/phantom_012.nii.gz",
                        "metrics": {"1": metrics, "2": {**metrics, "TP": 0, "FP": 0, "FN": 7}},
                    }
                ]
            }
        )
    )
    assert read_counts(summary, {"liver": 1, "tumour": 2}) == {"phantom_012": {"liver": SOME, "tumour": MISSED}}


def test_the_file_per_case_holds_every_model_case_and_label(tmp_path):
    path = tmp_path / "metrics.csv"
    write_cases(path, {"fold_0": {"phantom_012": {"liver": SOME, "tumour": MISSED}}, "ensemble": {"phantom_012": {}}})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["case"], row["label"]) for row in rows] == [
        ("fold_0", "phantom_012", "liver"),
        ("fold_0", "phantom_012", "tumour"),
    ]
    assert float(rows[0]["dice"]) == pytest.approx(2 / 3, abs=1e-6)
    assert (rows[0]["tp"], rows[0]["fp"], rows[0]["fn"]) == ("6", "2", "4")
    assert rows[1]["precision"] == ""
