from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.case import CaseMeasures, LabelMeasures, Labels, SurfaceMeasures
from nnunet_godc.evaluation.lesions import Lesion, Lesions
from nnunet_godc.evaluation.results import Case, Results
from nnunet_godc.evaluation.table import COLUMNS, Measured, check_table, long_table, read_tables, write_table
from tests.evaluation.measured import measured as written_down

MISSED, FOUND = Lesion(0.25, 0.0, 0.0, False), Lesion(3.0, 0.5, 2 / 3, True)
HEADER = ",".join(COLUMNS)


def results(trainer: str = "nnUNetTrainer") -> Results:
    labels = Labels({"liver": 1, "tumour": 2}, None)
    return Results(Path(), "Dataset001_NA", "3d_fullres", "nnUNetPlans", trainer, labels, SimpleITKIO, ())


def case(name: str, fold: int | None = 0) -> Case:
    return Case(name, fold, Path(), Path(), name)


@pytest.fixture
def table() -> pd.DataFrame:
    """One case with everything, one without a tumour, one unmeasured, and one that nnU-Net alone has counted."""
    liver = LabelMeasures(6, 2, 4, SurfaceMeasures(3.0, 1.5, 0.75))
    tumour = LabelMeasures(5, 0, 1, SurfaceMeasures(2.0, 0.5, 0.5), Lesions((MISSED, FOUND), 1))
    none = LabelMeasures(0, 0, 0, SurfaceMeasures(np.nan, np.nan, np.nan), Lesions((), 0))
    counted = CaseMeasures({"liver": LabelMeasures(6, 2, 4), "tumour": LabelMeasures(0, 3, 0)}, None)
    cases: list[tuple[Results, Measured]] = [
        (
            results(),
            [
                (case("a"), CaseMeasures({"liver": liver, "tumour": tumour}, 0.01)),
                (case("b", 1), CaseMeasures({"liver": liver, "tumour": none}, 0.01)),
            ],
        ),
        (results("nnUNetTrainerGODC_seed3"), [(case("a", None), counted)]),
    ]
    unmeasured = [[(case("c"), metrics.PREDICTION_MISSING)], []]
    return long_table(cases, unmeasured, [[], []], {("Dataset001_NA", "b"): "patient 7"}, nsd_tolerance_mm=2)


def of(table: pd.DataFrame, **entries: str) -> pd.DataFrame:
    for column, entry in entries.items():
        table = table[table[column] == entry]
    return table


def test_every_metric_of_every_label_is_there_once(table: pd.DataFrame):
    assert list(table.columns) == list(COLUMNS)
    of_a = of(table, case="a", trainer="nnUNetTrainer")
    of_a = of_a[of_a["lesion"].isna()]
    overlap = ["Dice", "IoU", "Precision", "Recall", "Relative volume error", "Volume error (ml)"]
    surface = ["HD95 (mm)", "ASSD (mm)", "NSD at 2 mm"]
    lesions = ["Lesion sensitivity", "Lesion Dice", "Lesion F1", "False positive lesions per scan"]
    assert list(of(of_a, label="liver")["metric"]) == overlap + surface
    assert list(of(of_a, label="tumour")["metric"]) == overlap + surface + lesions


@pytest.mark.parametrize(
    ("label", "metric", "expected"),
    [
        ("liver", "Dice", 12 / 18),
        ("liver", "Volume error (ml)", -0.02),
        ("liver", "HD95 (mm)", 3.0),
        ("liver", "NSD at 2 mm", 0.75),
        ("tumour", "Lesion sensitivity", 1 / 2),
        ("tumour", "Lesion Dice", 1 / 3),
        ("tumour", "Lesion F1", 2 / 4),
        ("tumour", "False positive lesions per scan", 1),
    ],
)
def test_values_are_where_they_belong(label: str, metric: str, expected: float, table: pd.DataFrame):
    found = of(table, case="a", label=label, metric=metric, trainer="nnUNetTrainer")
    [row] = found[found["lesion"].isna()].itertuples()
    assert (row.value, row.state) == (pytest.approx(expected), "defined")


def test_a_label_that_is_absent_in_both_has_only_its_false_positives(table: pd.DataFrame):
    absent = of(table, case="b", label="tumour").set_index("metric")
    assert absent.loc["False positive lesions per scan", ["value", "state"]].tolist() == [0, "defined"]
    others = absent.drop("False positive lesions per scan")
    assert len(others) == 12
    assert others["value"].isna().all()
    assert set(others["state"]) == {"absent in both"}


def test_counts_alone_give_overlap_alone(table: pd.DataFrame):
    counted = of(table, trainer="nnUNetTrainerGODC_seed3")
    assert set(counted["metric"]) == {"Dice", "IoU", "Precision", "Recall", "Relative volume error"}
    [row] = of(counted, label="tumour", metric="Precision").itertuples()
    assert (row.value, row.state, row.seed) == (0, "absent in reference", 3)
    assert counted["fold"].isna().all()


def test_lesions_have_a_row_per_metric_with_their_number_and_volume(table: pd.DataFrame):
    lesions = table[table["lesion"].notna()]
    assert lesions[["case", "label", "metric", "lesion", "volume_ml", "value"]].to_numpy().tolist() == [
        ["a", "tumour", metric, number, ml, pytest.approx(value)]
        for metric, values in {
            "Lesion sensitivity": (0, 1),
            "Lesion Dice": (MISSED.dice, FOUND.dice),
            "Lesion IoU": (MISSED.iou, FOUND.iou),
        }.items()
        for number, ml, value in zip((1, 2), (0.25, 3.0), values, strict=True)
    ]


def test_cases_belong_to_patients_and_unmeasured_ones_stand_with_their_reason(table: pd.DataFrame):
    assert dict(zip(table["case"], table["patient"], strict=True)) == {"a": "a", "b": "patient 7", "c": "c"}
    [row] = of(table, case="c").itertuples()
    assert (row.label, row.metric, row.state) == ("", "", "not measured: its prediction is missing")


def test_a_table_comes_back_as_it_was(table: pd.DataFrame, tmp_path: Path):
    write_table(table, tmp_path / "measurements.csv")
    again = read_tables([tmp_path / "measurements.csv"])
    pd.testing.assert_frame_equal(again, table, check_categorical=False, check_dtype=False)
    assert [str(again[name].dtype) for name in ("fold", "seed", "lesion", "value")] == ["Int64"] * 3 + ["float64"]


def test_tables_of_several_trainers_are_joined(tmp_path: Path):
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path, trainer in zip(paths, ("A", "B_seed2"), strict=True):
        write_table(written_down({trainer: [0.5, 0.6]}), path)
    joined = read_tables(paths)
    assert list(joined["trainer"]) == ["A", "A", "B_seed2", "B_seed2"]
    assert list(joined["seed"].isna()) == [True, True, False, False]
    assert list(joined.index) == [0, 1, 2, 3]


def test_names_that_read_like_missing_numbers_stay_names(tmp_path: Path):
    write_table(written_down({"NA": [0.5]}).assign(case="nan", patient="null"), tmp_path / "measurements.csv")
    [row] = read_tables([tmp_path / "measurements.csv"]).itertuples()
    assert (row.trainer, row.case, row.patient) == ("NA", "nan", "null")


GOOD = "D,3d,P,T,0,,a,a,liver,Dice,0.5,defined,,\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"other\.csv cannot be read \(No columns"),
        ("a,b\n1,2\n", r"other\.csv is not a table of nnunet-godc evaluate: it lacks the column dataset"),
        (f"{HEADER.replace('patient,', '')}\n", r"other\.csv .* lacks the column patient"),
        (f"{HEADER}\n", r"other\.csv holds no measurements"),
        (
            f"{HEADER}\n{GOOD}{GOOD.replace('0.5', 'high')}",
            r"other\.csv .*line 3: 'high' in the column value is not a",
        ),
        (f"{HEADER}\n{GOOD.replace('T,0', 'T,1.5')}", r"line 2: '1.5' in the column fold is not a whole number"),
        (f"{HEADER}\n{GOOD}{GOOD.replace('defined', 'gone')}", r"other\.csv, line 3: 'gone' is not a state"),
        (f"{HEADER}\n{GOOD}D,3d,P,T,0,,a,a,liv", r"other\.csv, line 3: .* is not a state"),  # cut off
        (f"{HEADER}\n{GOOD}{GOOD.replace('defined', 'defined,1,2,3')}", r"other\.csv .*line 3, saw 17\)"),
        (f"{HEADER}\n{GOOD}{GOOD.replace('P,T', 'P,')}", r"other\.csv, line 3: there is no trainer"),
        (f"{HEADER}\n{GOOD.replace('a,a', 'a,')}", r"other\.csv, line 2: there is no patient"),
        (f"{HEADER}\n{GOOD.replace('0.5', '')}", r"other\.csv, line 2: Dice of liver in a is nan; write a finite"),
        (f"{HEADER}\n{GOOD.replace('0.5', 'inf')}", r"other\.csv, line 2: Dice of liver in a is inf; write a finite"),
        (
            f"{HEADER}\n{GOOD.replace('defined', metrics.PREDICTION_MISSING)}",
            r"line 2: a case that was not measured has no",
        ),
        (f"{HEADER}\n{GOOD.replace('defined,,', 'defined,1,')}", r"line 2: a lesion has the volume_ml nan"),
        (f"{HEADER}\n{GOOD.replace('defined,,', 'defined,1,-2')}", r"line 2: a lesion has the volume_ml -2"),
    ],
)
def test_damaged_tables_are_refused_with_file_and_line(text: str, told: str, tmp_path: Path):
    good = tmp_path / "good.csv"
    good.write_text(f"{HEADER}\n{GOOD * 5}")
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(UserError, match=told) as refused:
        read_tables([tmp_path / "other.csv"])
    assert "\n" not in str(refused.value)
    if text != f"{HEADER}\n":  # as lesions.csv of version 0.1.0 is without a lesion
        with pytest.raises(UserError, match=told):
            read_tables([good, tmp_path / "other.csv"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame.drop(columns="patient"), "lack the column patient"),
        (lambda frame: frame.iloc[:0], "no measurements"),
        (lambda frame: frame.assign(trainer=None), "row 0 .* no trainer"),
        (lambda frame: frame.assign(state=["defined", "gone"]), "row 1 of the measurements: 'gone' is not a state"),
        (lambda frame: frame.assign(value=[0.5, np.inf]), r"row 1 .* Dice of tumour in case_001 is inf"),
    ],
)
def test_frames_that_cannot_be_right_are_refused_with_their_row(
    change: Callable[[pd.DataFrame], pd.DataFrame], told: str
):
    frame = written_down({"A": [0.5, 0.6]})
    check_table(frame)
    with pytest.raises(UserError, match=told):
        check_table(change(frame))
