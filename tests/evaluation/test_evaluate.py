import json
from pathlib import Path

import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.case import Options
from nnunet_godc.evaluation.evaluate import evaluate, lesion_labels
from nnunet_godc.evaluation.results import Results, trainer_results
from nnunet_godc.evaluation.table import read_lesions, read_measurements
from tests.evaluation.results_folders import DATASET, segmentation, write_results, write_segmentation

FOLDS = {0: {"a": segmentation(slice(1, 4))}, 1: {"b": segmentation(tumour=slice(0, 0))}}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Results]:
    """Two trainers on the same two cases; the second case's tumour is missed."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for case in "ab":
        write_segmentation(tmp_path / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", segmentation())
    names = ("nnUNetTrainer", "nnUNetTrainerGODC")
    return [trainer_results(write_results(tmp_path / "results", name, FOLDS)) for name in names]


def test_tables_and_their_record_are_written(results: list[Results], tmp_path: Path):
    out = tmp_path / "out" / "new"
    evaluation = evaluate(results, out, Options(lesions=("tumour",), nsd_tolerance_mm=1.5), lesion_bins_ml=[1.0])
    assert [path.name for path in evaluation.files] == ["measurements.csv", "lesions.csv", "evaluation.json"]
    table = read_measurements(out / "measurements.csv")
    assert len(table) == 2 * 2 * (9 + 9 + 4)
    assert set(read_lesions(out / "lesions.csv")["bin"]) == {"below 1 ml"}

    record = json.loads((out / "evaluation.json").read_text())
    assert record["surface"]["nsd_tolerance_mm"] == 1.5
    assert (record["lesions"]["labels"], record["lesions"]["minimum_iou"]) == (["tumour"], 0.1)
    assert record["cases"] == {"counted by nnU-Net": 0, "measured": 4, "kept": 0}
    assert [result["trainer"] for result in record["results"]] == ["nnUNetTrainer", "nnUNetTrainerGODC"]
    assert record["results"][0]["states"]["tumour"] == {
        "defined": 1,
        "absent in both": 0,
        "absent in reference": 0,
        "absent in prediction": 1,
    }
    assert record["versions"].keys() >= {"nnunet-godc", "nnunetv2", "scikit-image"}


def test_the_users_results_stay_as_they_are(results: list[Results], tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*")}
    evaluate(results, tmp_path / "out", Options())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*")} == before


def test_lesions_of_an_earlier_run_do_not_stay_behind(results: list[Results], tmp_path: Path):
    evaluate(results, tmp_path, Options(lesions=("tumour",)))
    evaluation = evaluate(results, tmp_path, Options())
    assert evaluation.lesions is None
    assert not (tmp_path / "lesions.csv").exists()


def test_a_bad_case_is_told_and_recorded(results: list[Results], tmp_path: Path):
    results[1].cases[0].prediction.unlink()
    evaluation = evaluate(results, tmp_path, Options())
    assert len(evaluation.problems) == 1
    assert (
        "nnUNetTrainerGODC__nnUNetPlans__3d_fullres, fold 0, case a: its prediction is missing"
        in (evaluation.problems[0])
    )
    assert json.loads((tmp_path / "evaluation.json").read_text())["problems"] == evaluation.problems


def test_nothing_that_could_be_measured_is_an_error(results: list[Results], tmp_path: Path):
    for case in results[0].cases:
        case.reference.unlink()
    with pytest.raises(UserError, match=r"no case could be measured\n  .*its reference is missing; give the folder"):
        evaluate(results, tmp_path / "out", Options())


def test_one_trainer_given_twice_is_refused(results: list[Results], tmp_path: Path):
    with pytest.raises(UserError, match=r"are both of .* nnUNetTrainer__nnUNetPlans__3d_fullres; evaluate them apart"):
        evaluate([results[0], results[0]], tmp_path, Options())


def test_lesions_are_known_by_their_names(results: list[Results]):
    assert lesion_labels(results, None) == ("tumour",)
    assert lesion_labels(results, ["liver"]) == ("liver",)
    with pytest.raises(UserError, match="no dataset has a label 'tumor'; labels are liver, tumour"):
        lesion_labels(results, ["tumor"])
