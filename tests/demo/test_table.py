import csv
import json
import math

import pytest

from nnunet_godc.demo.table import Counts, format_table, read_counts, table_rows, write_csv

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
    cases = {"a": SOME, "b": PERFECT, "c": ABSENT, "d": MISSED}
    rows = table_rows({case: {"tumour": counts} for case, counts in cases.items()})
    assert [row.case for row in rows] == ["a", "b", "c", "d", "mean"]
    mean = rows[-1]
    assert mean.dice == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert mean.precision == pytest.approx((0.75 + 1) / 2)
    assert mean.recall == pytest.approx((0.6 + 1 + 0) / 3)


def test_labels_are_averaged_apart():
    rows = table_rows({"a": {"liver": PERFECT, "tumour": SOME}, "b": {"liver": PERFECT, "tumour": ABSENT}})
    assert [(row.label, row.dice) for row in rows if row.case == "mean"] == [
        ("liver", 1.0),
        ("tumour", pytest.approx(2 / 3)),
    ]


def test_an_undefined_metric_is_shown_as_a_dash():
    table = format_table(table_rows({"phantom_012": {"liver": PERFECT, "tumour": ABSENT}}))
    assert [line.split() for line in table.splitlines()] == [
        ["case", "label", "Dice", "precision", "recall"],
        ["phantom_012", "liver", "1.000", "1.000", "1.000"],
        ["phantom_012", "tumour", "-", "-", "-"],
        ["mean", "liver", "1.000", "1.000", "1.000"],
        ["mean", "tumour", "-", "-", "-"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_columns_stand_below_each_other_however_long_a_name_is():
    table = format_table(table_rows({"a": {"liver": PERFECT}, "LiTS_test_000": {"liver": PERFECT}}))
    assert (
        len({line.index(column) for line, column in zip(table.splitlines(), ["label", *["liver"] * 3], strict=True)})
        == 1
    )


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


def test_the_csv_file_holds_every_row(tmp_path):
    path = tmp_path / "metrics.csv"
    write_csv(path, table_rows({"phantom_012": {"liver": SOME, "tumour": MISSED}}))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"]) for row in rows] == [
        ("phantom_012", "liver"),
        ("phantom_012", "tumour"),
        ("mean", "liver"),
        ("mean", "tumour"),
    ]
    assert float(rows[0]["dice"]) == pytest.approx(2 / 3, abs=1e-6)
    assert rows[1]["precision"] == ""
