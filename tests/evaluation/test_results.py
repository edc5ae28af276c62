import json
import os
from pathlib import Path

import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.case import LabelMeasures
from nnunet_godc.evaluation.results import Results, predicted_results, trainer_results
from tests.evaluation.results_folders import (
    DATASET,
    segmentation,
    write_model,
    write_results,
    write_segmentation,
    write_summary,
)

FOLDS = {0: {"a": segmentation(), "b": segmentation()}, 1: {"c": segmentation()}}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's three folders; of the raw dataset there are the references."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for case in "abc":
        write_segmentation(tmp_path / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", segmentation())
    return tmp_path


def cases(results: Results) -> list[tuple[str, int | None]]:
    return [(case.name, case.fold) for case in results.cases]


def test_a_cross_validation_is_found_with_its_folds_and_references(folders: Path):
    results = trainer_results(write_results(folders / "results", "nnUNetTrainerGODC", FOLDS))
    names = (results.dataset, results.trainer, results.plans, results.configuration)
    assert names == (DATASET, "nnUNetTrainerGODC", "nnUNetPlans", "3d_fullres")
    assert cases(results) == [("a", 0), ("b", 0), ("c", 1)]
    assert results.labels.values == {"liver": 1, "tumour": 2}
    assert all(case.prediction.is_file() and case.reference.is_file() for case in results.cases)
    assert all(case.counted is None for case in results.cases)


def test_a_link_to_results_is_called_as_it_says(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    link = folder.with_name("nnUNetTrainerLinked__nnUNetPlans__3d_fullres")
    link.symlink_to(folder, target_is_directory=True)
    assert trainer_results(link).trainer == "nnUNetTrainerLinked"


def test_counts_are_taken_from_the_summary(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    counts = {"a": {"1": (5, 1, 2), "2": (0, 0, 0)}, "gone": {"1": (1, 0, 0), "2": (0, 3, 0)}}
    write_summary(folder / "fold_0" / "validation", counts, folders / "raw" / DATASET / "labelsTr")
    found = {case.name: case.counted for case in trainer_results(folder).cases}
    assert found["a"] == {"liver": LabelMeasures(5, 1, 2), "tumour": LabelMeasures(0, 0, 0)}
    assert found["gone"] == {"liver": LabelMeasures(1, 0, 0), "tumour": LabelMeasures(0, 3, 0)}
    assert found["b"] is None
    # They hold against these references, and no others.
    assert all(case.counted is None for case in trainer_results(folder, folders / "mine").cases)


def test_regions_and_the_ignore_label_are_read_as_nnunet_does(folders: Path):
    labels = {"background": 0, "liver": [1, 2], "tumour": [2], "vessel": 3, "ignore": 4}
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS, labels=labels, regions_class_order=[1, 2, 3])
    write_summary(
        folder / "fold_1" / "validation",
        {"c": {"(1, 2)": (4, 0, 0), "(2,)": (3, 0, 0), "3": (2, 0, 0)}},
        folders / "raw" / DATASET / "labelsTr",
    )
    results = trainer_results(folder)
    assert results.labels.values == {"liver": (1, 2), "tumour": (2,), "vessel": 3}
    assert (results.labels.ignore, results.labels.known) == (4, {0, 1, 2, 3})
    assert [label.true_positive for label in results.cases[-1].counted.values()] == [4, 3, 2]


def test_merged_folds_serve_where_the_folds_are_gone(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", {})
    write_segmentation(folder / "crossval_results_folds_0_1_2_3_4" / "a.nii.gz", segmentation())
    assert cases(trainer_results(folder)) == [("a", None)]
    write_segmentation(folder / "crossval_results_folds_0_1" / "a.nii.gz", segmentation())
    with pytest.raises(UserError, match="several merged cross-validations"):
        trainer_results(folder)


def test_a_fold_that_validates_on_its_training_cases_is_left_out(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    write_segmentation(folder / "fold_all" / "validation" / "a.nii.gz", segmentation())
    results = trainer_results(folder)
    assert cases(results) == [("a", 0), ("b", 0), ("c", 1)]
    assert "fold_all is left out" in results.notes[0]


def test_cases_of_the_split_are_expected(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    splits = folders / "preprocessed" / DATASET / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text(json.dumps([{"train": [], "val": ["a", "b", "d"]}, {"train": [], "val": ["c"]}]))
    results = trainer_results(folder)
    assert ("d", 0) in cases(results)
    assert results.notes == ()


def test_folds_that_are_not_there_are_told(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    splits = folders / "preprocessed" / DATASET / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text(json.dumps([{"train": [], "val": [case]} for case in "acdef"]))
    [note] = trainer_results(folder).notes
    assert "no validation results of fold 2, 3, 4" in note


def test_a_case_that_the_split_leaves_to_another_fold_is_told_and_left_out(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", {0: dict.fromkeys("abc", segmentation()), 1: FOLDS[1]})
    splits = folders / "preprocessed" / DATASET / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text(json.dumps([{"train": [], "val": ["a", "b"]}, {"train": [], "val": ["c"]}]))
    results = trainer_results(folder)
    assert cases(results) == [("a", 0), ("b", 0), ("c", 1)]
    [problem] = results.problems
    assert "holds 1 cases that splits_final.json does not leave to this fold, such as c" in problem


def test_a_case_in_two_folds_is_told(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", {0: FOLDS[0], 1: {"b": segmentation()}})
    [problem] = trainer_results(folder).problems
    assert "folds 0 and 1 both hold b" in problem


def test_folders_that_are_no_whole_folds_are_told(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    write_segmentation(folder / "fold_0_old" / "validation" / "a.nii.gz", segmentation())
    (folder / "fold_2").mkdir()
    results = trainer_results(folder)
    assert cases(results) == [("a", 0), ("b", 0), ("c", 1)]
    assert "fold_0_old is left out" in results.notes[0]
    assert "fold_2 has no validation results" in results.notes[1]


@pytest.mark.parametrize("what", ["prediction", "reference"])
def test_what_was_written_after_nnunet_had_counted_it_is_read_again(what: str, folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    counts = {case: {"1": (5, 1, 2), "2": (0, 0, 0)} for case in "ab"}
    summary = write_summary(folder / "fold_0" / "validation", counts, folders / "raw" / DATASET / "labelsTr")
    changed = getattr(trainer_results(folder).cases[0], what)
    since = summary.stat().st_mtime_ns + 10**9
    os.utime(changed, ns=(since, since))
    found = {case.name: case.counted for case in trainer_results(folder).cases}
    assert found["a"] is None
    assert found["b"] is not None


def test_pictures_are_said_to_be_in_pixels(folders: Path):
    model = write_model(folders / "predictions", file_ending=".png", reader="NaturalImage2DIO")
    (model / "a.png").touch()
    assert "holds no spacing, so mm and ml stand for pixels" in predicted_results(model, folders).notes[0]


def test_a_summary_of_other_labels_is_told_and_not_used(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    write_summary(folder / "fold_0" / "validation", {"a": {"7": (1, 1, 1)}}, folders)
    results = trainer_results(folder)
    assert "does not hold the counts of the labels" in results.problems[0]
    assert results.cases[0].counted is None


def test_references_come_from_the_preprocessed_folder_where_the_raw_dataset_is_gone(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    monkeypatch.delenv("nnUNet_raw")
    kept = folders / "preprocessed" / DATASET / "gt_segmentations"
    kept.mkdir(parents=True)
    assert trainer_results(folder).cases[0].reference == kept / "a.nii.gz"


def test_a_folder_of_predictions_expects_a_prediction_for_every_reference(folders: Path):
    predictions = write_model(folders / "ensemble")
    write_segmentation(predictions / "a.nii.gz", segmentation())
    references = folders / "raw" / DATASET / "labelsTr"
    results = predicted_results(predictions, references)
    assert (results.trainer, results.plans, results.dataset) == ("ensemble", "nnUNetPlans", DATASET)
    assert cases(results) == [("a", None), ("b", None), ("c", None)]
    assert cases(predicted_results(predictions, references, only_predicted=True)) == [("a", None)]


def test_predictions_within_the_results_keep_their_trainer(folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainerGODC", FOLDS)
    results = predicted_results(
        folder / "fold_1" / "validation",
        folders / "raw" / DATASET / "labelsTr",
        folder / "dataset.json",
        folder / "plans.json",
    )
    assert (results.trainer, results.configuration) == ("nnUNetTrainerGODC", "3d_fullres")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "plans.json").unlink(), "plans.json is missing; .*give it with -djfile or -pfile"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "dataset.json cannot be read, or is no JSON"),
        (lambda folder: (folder / "dataset.json").write_text("[]"), "does not hold what nnU-Net writes"),
        (lambda folder: (folder / "dataset.json").write_text('{"labels": {"liver": 1}}'), "Background label not"),
        (lambda folder: (folder / "plans.json").write_text("{}"), "are not a pair that nnU-Net can use"),
    ],
)
def test_models_that_cannot_be_read_end_in_a_sentence(spoil, sentence: str, folders: Path):
    folder = write_results(folders / "results", "nnUNetTrainer", FOLDS)
    spoil(folder)
    with pytest.raises(UserError, match=sentence):
        trainer_results(folder)


def test_folders_without_results_end_in_a_sentence(folders: Path):
    with pytest.raises(UserError, match="is not a folder of results"):
        trainer_results(folders)
    with pytest.raises(UserError, match="has no validation results"):
        trainer_results(write_results(folders / "results", "nnUNetTrainer", {}))
    with pytest.raises(UserError, match="is not a folder; give"):
        predicted_results(folders / "nowhere", folders)
