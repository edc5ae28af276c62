import csv
import math

import pandas as pd
import pytest

from nnunet_godc.demo.table import format_table, score_table, write_csv
from tests.evaluation.measured import measured

NAN = math.nan
SOME = (2 / 3, 0.75, 0.6)
PERFECT = (1.0, 1.0, 1.0)
ABSENT = (NAN, NAN, NAN)
MISSED = (0.0, NAN, 0.0)


def scores(**cases):
    """The table of the given Dice, precision and recall by label, for one case after the other; HD95 is left out."""
    return score_table(
        pd.concat(
            [
                measured({"A": values}, label=label, metric=metric)
                for label, of_cases in cases.items()
                for metric, values in zip(
                    ("Dice", "Precision", "Recall", "HD95 (mm)"),
                    zip(*((*case, 3.0) for case in of_cases), strict=True),
                    strict=True,
                )
            ]
        )
    )


def test_each_metric_is_averaged_over_the_cases_where_it_is_defined():
    table = scores(tumour=[SOME, PERFECT, ABSENT, MISSED])
    assert [case for case, _ in table.index] == ["case_000", "case_001", "case_002", "case_003", "mean"]
    assert list(table.columns) == ["Dice", "precision", "recall"]
    assert list(table.loc["mean", "tumour"]) == pytest.approx([(2 / 3 + 1) / 3, (0.75 + 1) / 2, (0.6 + 1) / 3])


def test_labels_are_averaged_apart():
    table = scores(liver=[PERFECT, PERFECT], tumour=[SOME, ABSENT])
    assert list(table.loc["mean"].index) == ["liver", "tumour"]
    assert list(table.loc["mean"]["Dice"]) == pytest.approx([1, 2 / 3])


def test_an_undefined_metric_is_shown_as_a_dash():
    table = format_table(scores(liver=[PERFECT], tumour=[ABSENT]))
    assert [line.split() for line in table.splitlines()] == [
        ["case", "label", "Dice", "precision", "recall"],
        ["case_000", "liver", "1.000", "1.000", "1.000"],
        ["case_000", "tumour", "-", "-", "-"],
        ["mean", "liver", "1.000", "1.000", "1.000"],
        ["mean", "tumour", "-", "-", "-"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_columns_stand_below_each_other_however_long_a_name_is():
    table = scores(liver=[PERFECT, PERFECT]).rename(index={"case_000": "a", "case_001": "LiTS_test_000"})
    lines = format_table(table).splitlines()
    assert len({line.index(name) for line, name in zip(lines, ["label", *["liver"] * 3], strict=True)}) == 1


def test_the_csv_file_holds_every_row(tmp_path):
    path = tmp_path / "metrics.csv"
    write_csv(path, scores(liver=[SOME], tumour=[MISSED]))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"]) for row in rows] == [
        ("case_000", "liver"),
        ("case_000", "tumour"),
        ("mean", "liver"),
        ("mean", "tumour"),
    ]
    assert float(rows[0]["dice"]) == pytest.approx(2 / 3, abs=1e-6)
    assert rows[1]["precision"] == ""
