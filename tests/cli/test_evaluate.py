import json
from pathlib import Path

import pytest

from nnunet_godc import cli
from tests.evaluation.results_folders import DATASET, segmentation, write_model, write_results, write_segmentation

CASES = "abcdef"
REPORT = ["statistics.csv", "comparisons.csv", "report.json", "report.md", "table.tex"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trainers on six cases, of which the second is the better one; and their references."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for index, case in enumerate(CASES):
        truth = segmentation(tumour=slice(2, 3 + index % 2))
        write_segmentation(tmp_path / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", truth)
    for trainer, liver in {"nnUNetTrainer": slice(1, 4), "nnUNetTrainerGODC": slice(1, 5)}.items():
        predictions = {case: segmentation(liver, slice(2, 3)) for case in CASES}
        write_results(tmp_path / "results", trainer, {0: predictions})
    return tmp_path


def evaluate(folders: Path, *options: str) -> int:
    results = sorted((folders / "results" / DATASET).iterdir())
    arguments = [*map(str, results), "--out", str(folders / "out"), "-np", "0", "--resamples", "1000", *options]
    return cli.main(["evaluate", *arguments])


def test_trainers_are_measured_and_compared(folders: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate(folders, "--baseline", "nnUNetTrainer") == 0
    written = {path.name for path in (folders / "out").iterdir()}
    assert written >= {"measurements.csv", "evaluation.json", *REPORT}
    text = capsys.readouterr().out
    assert "cases: 12 measured on their images" in text
    assert "lesions: tumour (by their names), detected from an IoU of 0.1" in text
    assert "patients: every case counts as one" in text
    assert "nnUNetTrainerGODC" in (folders / "out" / "report.md").read_text()


def test_a_second_run_measures_nothing_again(folders: Path, capsys: pytest.CaptureFixture[str]):
    evaluate(folders)
    measurements = (folders / "out" / "measurements.csv").read_bytes()
    capsys.readouterr()
    assert evaluate(folders, "--lesion-bins", "0.01") == 0
    assert "cases: 12 measured on their images by an earlier run" in capsys.readouterr().out
    assert (folders / "out" / "measurements.csv").read_bytes() == measurements


def test_overlap_alone_writes_no_lesions(folders: Path):
    assert evaluate(folders, "--metrics", "overlap") == 0
    assert "Lesion Dice" not in (folders / "out" / "measurements.csv").read_text()
    assert json.loads((folders / "out" / "evaluation.json").read_text())["metrics"] == ["overlap"]


def test_a_bad_case_is_told_after_all_else_is_done(folders: Path, capsys: pytest.CaptureFixture[str]):
    [bad] = (folders / "results" / DATASET).glob("nnUNetTrainerGODC__*/fold_0/validation/c.nii.gz")
    write_segmentation(bad, segmentation()[:-1])
    assert evaluate(folders) == 3
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-2:] == [
        "1 problem:",
        f"  {DATASET} nnUNetTrainerGODC__nnUNetPlans__3d_fullres, fold 0, case c: prediction and reference differ in "
        "shape, 5 x 8 x 10 and 6 x 8 x 10 voxels",
    ]
    why = "prediction and reference differ in geometry"
    assert f"| {DATASET} | nnUNetTrainerGODC | {why} | 1 | 6 |" in (folders / "out" / "report.md").read_text().replace(
        "\\_", "_"
    )
    assert f"Not measured: 1 of 6 of nnUNetTrainerGODC ({why})" in (folders / "out" / "table.tex").read_text()
    assert (folders / "out" / "report.md").exists()


def test_predictions_and_references_are_given_as_nnunet_has_it(folders: Path, capsys: pytest.CaptureFixture[str]):
    model = write_model(folders / "model")
    write_segmentation(folders / "ensemble" / "a.nii.gz", segmentation())
    command = ["evaluate", "-ref", str(folders / "raw" / DATASET / "labelsTr"), "-pred", str(folders / "ensemble")]
    command += ["-djfile", str(model / "dataset.json"), "-pfile", str(model / "plans.json")]
    command += ["--out", str(folders / "out"), "-np", "0", "--resamples", "1000"]
    assert cli.main([*command, "--chill"]) == 0
    assert cli.main(command) == 3
    assert "5 problems:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--nsd-tolerance", "0"], "is not a distance; give millimetres above 0"),
        (["--nsd-tolerance", "nan"], "is not a distance"),
        (["--lesion-iou", "1.5"], "is not an IoU; give 0 to 1"),
        (["--lesion-bins", "2", "1"], "each larger than the one before"),
        (["--lesion-bins", "0", "1"], "volumes above 0 ml"),
        (["-np", "-1"], "is not a number of worker processes"),
        (["--resamples", "10"], "10 resamples do not settle an interval"),
        (["--baseline", "nnUNetTrainr"], "the baseline nnUNetTrainr was not measured; did you mean nnUNetTrainer?"),
        (["--lesions", "kidney"], "no dataset has a label 'kidney'; labels are liver, tumour"),
        (["-pred", "somewhere"], "-pred needs the references"),
        (["--patients", "nowhere.csv"], "nowhere.csv cannot be read"),
    ],
)
def test_options_that_make_no_sense_end_in_a_sentence(
    options: list[str], sentence: str, folders: Path, capsys: pytest.CaptureFixture[str]
):
    assert evaluate(folders, *options) == 1
    assert sentence in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_nothing_to_evaluate_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["evaluate", "--out", str(tmp_path / "out")]) == 1
    assert "nothing to evaluate; give folders of results" in capsys.readouterr().err


def test_a_report_is_made_again_from_tables_that_are_joined(folders: Path, capsys: pytest.CaptureFixture[str]):
    results = sorted((folders / "results" / DATASET).iterdir())
    common = ["-np", "0", "--resamples", "1000"]
    for number, folder in enumerate(results):
        assert cli.main(["evaluate", str(folder), "--out", str(folders / f"part{number}"), *common]) == 0
    tables = [str(folders / f"part{number}" / "measurements.csv") for number in range(2)]
    out = ["--out", str(folders / "joined"), *common, "--baseline", "nnUNetTrainer"]
    assert cli.main(["evaluate", *tables, *out]) == 0
    assert evaluate(folders, "--baseline", "nnUNetTrainer") == 0
    for name in ("statistics.csv", "comparisons.csv", "measurements.csv"):
        assert (folders / "joined" / name).read_text() == (folders / "out" / name).read_text()


def test_headers_that_differ_are_measured_if_that_is_accepted(folders: Path):
    [bad] = (folders / "results" / DATASET).glob("nnUNetTrainerGODC__*/fold_0/validation/c.nii.gz")
    write_segmentation(bad, segmentation(), origin=(5, 0, 0))
    assert evaluate(folders) == 3
    assert evaluate(folders, "--accept-headers") == 0
    assert (
        "1 predictions were measured voxel by voxel although their headers differ"
        in (folders / "out" / "report.md").read_text()
    )
