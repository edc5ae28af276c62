import errno
import json
from pathlib import Path

import pandas as pd
import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import evaluate, read_tables
from nnunet_godc.evaluation.evaluate import lesion_labels
from nnunet_godc.evaluation.results import trainer_results
from nnunet_godc.evaluation.table import write_table
from tests.evaluation.measured import measured
from tests.evaluation.results_folders import DATASET, segmentation, write_model, write_results, write_segmentation

FOLDS = {0: {"a": segmentation(slice(1, 4))}, 1: {"b": segmentation(tumour=slice(0, 0))}}
REPORT = ["statistics.csv", "comparisons.csv", "report.json", "report.md", "table.tex"]
VALUES = [0.5, 0.6, 0.7, 0.9, 0.8]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two trainers on the same two cases; the second case's tumour is missed."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for case in "ab":
        write_segmentation(tmp_path / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", segmentation())
    return [write_results(tmp_path / "results", name, FOLDS) for name in ("nnUNetTrainer", "nnUNetTrainerGODC")]


@pytest.fixture
def table() -> pd.DataFrame:
    return measured({"A": VALUES, "B": [value + 0.05 for value in VALUES]})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_results_become_a_table_a_record_and_a_report(results: list[Path], tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*")}
    out = tmp_path / "out" / "new"
    found = evaluate(results, out, lesions=["tumour"], nsd_tolerance_mm=1.5, lesion_bins_ml=[1.0], resamples=1000)
    assert [path.name for path in found.files] == ["measurements.csv", "evaluation.json", *REPORT]
    assert sorted(content(out)) == sorted(path.name for path in found.files)
    again = read_tables([out / "measurements.csv"])
    assert again["lesion"].isna().sum() == 2 * 2 * (9 + 9 + 4)
    assert len(again) == len(found.measurements)
    assert set(found.statistics["bin"]) == {"", "below 1 ml"}

    record = json.loads((out / "evaluation.json").read_text())
    assert record["surface"]["nsd_tolerance_mm"] == 1.5
    assert (record["lesions"]["labels"], record["lesions"]["minimum_iou"]) == (["tumour"], 0.1)
    assert record["cases"] == {"counted by nnU-Net": 0, "measured": 4, "kept": 0}
    states = {"defined": 1, "absent in both": 0, "absent in reference": 0, "absent in prediction": 1}
    assert [about["states"]["tumour"] for about in record["results"]] == [states, states]
    assert record["versions"].keys() >= {"nnunet-godc", "nnunetv2", "scikit-image"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*")} == before


@pytest.mark.usefixtures("results")
def test_a_missing_prediction_is_told_recorded_and_stands_in_report_and_latex(
    tmp_path: Path,
):
    mine = write_model(tmp_path / "mine")
    write_segmentation(mine / "a.nii.gz", segmentation())
    references = tmp_path / "raw" / DATASET / "labelsTr"
    found = evaluate(predictions=[mine], references=references, out=tmp_path / "out", resamples=1000)
    assert len(found.problems) == 1
    assert "case b: its prediction is missing" in found.problems[0]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["problems"] == found.problems
    assert "| mine | its prediction is missing | 1 | 2 |" in found.report
    assert "1 of 2 of mine (its prediction is missing)" in (tmp_path / "out" / "table.tex").read_text()


def test_nothing_that_could_be_measured_is_an_error(results: list[Path], tmp_path: Path):
    for case in "ab":
        (tmp_path / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz").unlink()
    with pytest.raises(UserError, match=r"no case could be measured\n  .*its reference is missing; give the folder"):
        evaluate(results, tmp_path / "out", resamples=1000)


def test_one_trainer_given_twice_is_refused(results: list[Path]):
    with pytest.raises(UserError, match=r"are both of .* nnUNetTrainer__nnUNetPlans__3d_fullres; evaluate them apart"):
        evaluate([results[0], results[0]], resamples=1000)


def test_lesions_are_known_by_their_names(results: list[Path]):
    found = [trainer_results(path) for path in results]
    assert lesion_labels(found, None) == ("tumour",)
    assert lesion_labels(found, ["liver"]) == ("liver",)
    with pytest.raises(UserError, match="no dataset has a label 'tumor'; labels are liver, tumour"):
        lesion_labels(found, ["tumor"])


def test_patients_of_several_cases_are_counted_once(results: list[Path], tmp_path: Path):
    patients = tmp_path / "patients.csv"
    patients.write_text("case,patient\na,p\nb,p\n")
    found = evaluate(results, patients=patients, resamples=1000)
    own = found.statistics.query("label == 'liver' and metric == 'Dice'")
    assert [*own["cases"], *own["patients"]] == [2, 2, 1, 1]


def test_tables_of_several_runs_are_joined(table: pd.DataFrame, tmp_path: Path):
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path, trainer in zip(paths, "AB", strict=True):
        write_table(table[table["trainer"] == trainer], path)
    joined = evaluate(paths, tmp_path / "out", resamples=1000)
    assert list(joined.comparisons["difference"]) == pytest.approx([0.05])
    assert [path.name for path in joined.files] == ["measurements.csv", *REPORT]
    assert evaluate(table, tmp_path / "frame", resamples=1000).files == [tmp_path / "frame" / name for name in REPORT]


def test_tables_that_contradict_each_other_leave_everything_as_it_was(table: pd.DataFrame, tmp_path: Path):
    path, out = tmp_path / "measurements.csv", tmp_path / "out"
    write_table(table, path)
    evaluate([path], out, resamples=1000)
    before = content(out)
    with pytest.raises(UserError, match=r"^Dice of tumour in case_000 is there twice for A, 3d_fullres, nnUNetPlans"):
        evaluate([path, out / "measurements.csv"], out, resamples=1000)
    moved = tmp_path / "moved.csv"
    write_table(table.assign(trainer="C", patient="p"), moved)
    with pytest.raises(UserError, match=r"^case case_000 belongs to two patients"):
        evaluate([out / "measurements.csv", moved], out, resamples=1000)
    assert content(out) == before
    with pytest.raises(UserError, match="is there twice"):
        evaluate([path, path], tmp_path / "new", resamples=1000)
    assert not (tmp_path / "new").exists()


def test_the_files_of_a_report_are_replaced_together_or_none_is(
    table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluate(table, tmp_path, resamples=1000)
    before = content(tmp_path)
    assert sorted(before) == sorted(REPORT)
    write_text = Path.write_text

    def full_disk(path: Path, *arguments: object, **options: object) -> int:
        if "table.tex" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_text(path, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(UserError, match=r"cannot write to .*: No space left on device \(.*table\.tex"):
            evaluate(table, tmp_path, resamples=1000, seed=1)
    assert content(tmp_path) == before

    evaluate(table, tmp_path, resamples=1000, seed=1)
    assert content(tmp_path)["report.json"] != before["report.json"]


def test_a_folder_in_the_place_of_a_file_leaves_the_other_files_as_they_were(table: pd.DataFrame, tmp_path: Path):
    evaluate(table, tmp_path, resamples=1000)
    (tmp_path / "report.md").unlink()
    (tmp_path / "report.md").mkdir()
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"cannot write to .*report\.md"):
        evaluate(table, tmp_path, resamples=1000, seed=1)
    assert content(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_told(table: pd.DataFrame, tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write to .*out: File exists"):
        evaluate(table, tmp_path / "out", resamples=1000)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"baseline": "C"}, "the baseline C was not measured"),
        ({"table": ["hd95"]}, "no metric begins with 'hd95'; measured are Dice"),
        ({"resamples": 100}, "100 resamples do not settle"),
        ({"lesion_bins_ml": [2, 1]}, "each larger than the one before"),
        ({"nsd_tolerance_mm": 0}, "--nsd-tolerance 0 is not a distance"),
    ],
)
def test_what_cannot_be_reported_is_refused_before_anything_is_written(
    options: dict[str, object], told: str, table: pd.DataFrame, tmp_path: Path
):
    path = tmp_path / "table.csv"
    write_table(table, path)
    with pytest.raises(UserError, match=told):
        evaluate([path], tmp_path / "out", **{"resamples": 1000, **options})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
