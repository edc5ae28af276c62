import json
from pathlib import Path

import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_godc.conversion.case import RECORD_FORMAT
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.case import Labels
from nnunet_godc.evaluation.patients import read_patients
from nnunet_godc.evaluation.results import Case, Results

CASES = tuple(Case(name, 0, Path(), Path(), name) for name in ("a", "b"))
RESULTS = Results(Path(), "D", "3d", "P", "T", Labels({"liver": 1}, None), SimpleITKIO, CASES)


@pytest.fixture(autouse=True)
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    return tmp_path


def test_every_case_is_a_patient_unless_something_says_otherwise():
    patients, note = read_patients([RESULTS], None)
    assert patients == {}
    assert "every case counts as one" in note


def test_patients_come_from_the_conversion(raw: Path):
    (raw / "D").mkdir()
    record = {"format": RECORD_FORMAT, "cases": {"a": {"patient": "p"}, "b": {"patient": ""}}}
    (raw / "D" / "conversion.json").write_text(json.dumps(record))
    patients, note = read_patients([RESULTS], None)
    assert patients == {("D", "a"): "p", ("D", "b"): "b"}
    assert "conversion.json" in note


def test_a_record_that_lacks_cases_points_to_the_table(raw: Path):
    (raw / "D").mkdir()
    record = {"format": RECORD_FORMAT, "cases": {"a": {"patient": "p"}}}
    (raw / "D" / "conversion.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"lacks 1 cases, such as b, .*; --patients FILE names"):
        read_patients([RESULTS], None)


def test_a_damaged_record_points_to_the_table(raw: Path):
    (raw / "D").mkdir()
    (raw / "D" / "conversion.json").write_text("{")
    with pytest.raises(UserError, match=r"does not name the patients .*; --patients FILE does"):
        read_patients([RESULTS], None)


def test_a_table_comes_before_the_conversion(tmp_path: Path):
    table = tmp_path / "patients.csv"
    table.write_text("case;patient\na;p\nb;p\nother;q\n")
    assert read_patients([RESULTS], table)[0] == {("D", "a"): "p", ("D", "b"): "p"}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [("a,p\n", "lacks 1 cases, such as b"), ("a,p\nb,p\na,q\n", "line 4: a is of another patient above")],
)
def test_incomplete_and_contradicting_tables_are_refused(rows: str, sentence: str, tmp_path: Path):
    table = tmp_path / "patients.csv"
    table.write_text(f"case,patient\n{rows}")
    with pytest.raises(UserError, match=sentence):
        read_patients([RESULTS], table)
