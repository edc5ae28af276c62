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
from nnunet_godc.evaluation.table import (
    LESION_COLUMNS,
    MEASUREMENT_COLUMNS,
    Measured,
    lesion_table,
    measurement_table,
    read_lesions,
    read_measurements,
    write_table,
)

BINS = metrics.volume_bins([0.5, 2])
MISSED, FOUND = Lesion(0.25, 0.0, 0.0, False), Lesion(3.0, 0.5, 2 / 3, True)


def results(trainer: str = "nnUNetTrainer") -> Results:
    labels = Labels({"liver": 1, "tumour": 2}, None)
    return Results(Path(), "Dataset001_NA", "3d_fullres", "nnUNetPlans", trainer, labels, SimpleITKIO, ())


def case(name: str, fold: int | None = 0) -> Case:
    return Case(name, fold, Path(), Path(), name)


def measures(liver: LabelMeasures, tumour: LabelMeasures, voxel_ml: float | None = 0.01) -> CaseMeasures:
    return CaseMeasures({"liver": liver, "tumour": tumour}, voxel_ml)


@pytest.fixture
def measured() -> list[tuple[Results, Measured]]:
    """One case with everything, one without a tumour, and one of another trainer that only nnU-Net has counted."""
    liver = LabelMeasures(6, 2, 4, SurfaceMeasures(3.0, 1.5, 0.75))
    tumour = LabelMeasures(5, 0, 1, SurfaceMeasures(2.0, 0.5, 0.5), Lesions((MISSED, FOUND), 1))
    none = LabelMeasures(0, 0, 0, SurfaceMeasures(np.nan, np.nan, np.nan), Lesions((), 0))
    counted = measures(LabelMeasures(6, 2, 4), LabelMeasures(0, 3, 0), None)
    return [
        (results(), [(case("a"), measures(liver, tumour)), (case("b", 1), measures(liver, none))]),
        (results("nnUNetTrainerGODC"), [(case("a", None), counted)]),
    ]


@pytest.fixture
def table(measured: list[tuple[Results, Measured]]) -> pd.DataFrame:
    return measurement_table(measured, {("Dataset001_NA", "b"): "patient 7"}, nsd_tolerance_mm=2)


def value(table: pd.DataFrame, case: str, label: str, metric: str, trainer: str = "nnUNetTrainer") -> tuple[float, str]:
    chosen = (table["case"] == case) & (table["label"] == label) & (table["metric"] == metric)
    [row] = table[chosen & (table["trainer"] == trainer)].itertuples()
    return row.value, row.state


def test_every_metric_of_every_label_is_there_once(table: pd.DataFrame):
    assert list(table.columns) == list(MEASUREMENT_COLUMNS)
    of_a = table[(table["case"] == "a") & (table["trainer"] == "nnUNetTrainer")]
    overlap = ["Dice", "IoU", "Precision", "Recall", "Relative volume error", "Volume error (ml)"]
    surface = ["HD95 (mm)", "ASSD (mm)", "NSD at 2 mm"]
    lesions = ["Lesion sensitivity", "Lesion Dice", "Lesion F1", "False positive lesions per scan"]
    assert list(of_a.loc[of_a["label"] == "liver", "metric"]) == overlap + surface
    assert list(of_a.loc[of_a["label"] == "tumour", "metric"]) == overlap + surface + lesions


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
    assert value(table, "a", label, metric) == (pytest.approx(expected), "defined")


def test_a_label_that_is_absent_in_both_has_only_its_false_positives(table: pd.DataFrame):
    absent = table[(table["case"] == "b") & (table["label"] == "tumour")].set_index("metric")
    assert absent.loc["False positive lesions per scan", "value"] == 0
    assert absent.loc["False positive lesions per scan", "state"] == "defined"
    others = absent.drop("False positive lesions per scan")
    assert len(others) == 12
    assert others["value"].isna().all()
    assert set(others["state"]) == {"absent in both"}


def test_counts_alone_give_overlap_alone(table: pd.DataFrame):
    counted = table[table["trainer"] == "nnUNetTrainerGODC"]
    assert set(counted["metric"]) == {"Dice", "IoU", "Precision", "Recall", "Relative volume error"}
    assert value(table, "a", "tumour", "Precision", "nnUNetTrainerGODC") == (0, "absent in reference")
    assert counted["fold"].isna().all()


def test_cases_belong_to_patients(table: pd.DataFrame):
    assert dict(zip(table["case"], table["patient"], strict=True)) == {"a": "a", "b": "patient 7"}


def test_lesions_have_a_row_each_with_their_bin(measured: list[tuple[Results, Measured]]):
    lesions = lesion_table(measured, {}, bins=BINS)
    assert list(lesions.columns) == list(LESION_COLUMNS)
    assert lesions[["case", "label", "lesion", "volume_ml", "bin", "detected"]].to_numpy().tolist() == [
        ["a", "tumour", 1, 0.25, "below 0.5 ml", False],
        ["a", "tumour", 2, 3.0, "2 ml or more", True],
    ]


def test_tables_come_back_as_they_were(table: pd.DataFrame, measured: list[tuple[Results, Measured]], tmp_path: Path):
    lesions = lesion_table(measured, {}, bins=BINS)
    write_table(table, tmp_path / "measurements.csv")
    write_table(lesions, tmp_path / "lesions.csv")
    again = read_measurements(tmp_path / "measurements.csv")
    assert set(again["dataset"]) == {"Dataset001_NA"}
    pd.testing.assert_frame_equal(again, table, check_categorical=False, check_dtype=False)
    assert (str(again["fold"].dtype), str(again["value"].dtype)) == ("Int64", "float64")
    pd.testing.assert_frame_equal(read_lesions(tmp_path / "lesions.csv"), lesions, check_dtype=False)


def test_no_lesion_leaves_a_table_without_rows(tmp_path: Path):
    write_table(lesion_table([], {}, bins=BINS), tmp_path / "lesions.csv")
    assert read_lesions(tmp_path / "lesions.csv").empty


def test_names_that_read_like_missing_numbers_stay_names(tmp_path: Path):
    liver = LabelMeasures(1, 0, 0)
    table = measurement_table([(results("NA"), [(case("nan"), measures(liver, liver))])], {}, nsd_tolerance_mm=2)
    write_table(table, tmp_path / "measurements.csv")
    again = read_measurements(tmp_path / "measurements.csv")
    assert (set(again["trainer"]), set(again["case"])) == ({"NA"}, {"nan"})


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(MEASUREMENT_COLUMNS) + "\n" + "x," * 9 + "defined,1\n"])
def test_other_tables_end_in_a_sentence(text: str, tmp_path: Path):
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(UserError, match=r"other\.csv"):
        read_measurements(tmp_path / "other.csv")
