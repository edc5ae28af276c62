import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunet_godc import cli
from nnunet_godc.conversion.command import main
from nnunet_godc.dataset_conversion.Dataset501_LiTS import CONVERTER

RAS = np.diag([0.8, 0.8, 2.5, 1.0])
RAS[:3, 3] = (-11.0, -7.0, 30.0)


@pytest.fixture
def lits(tmp_path, nifti, ct, mask, monkeypatch):
    """Six cases of LiTS, and nnUNet_raw set."""
    source = tmp_path / "LiTS source"
    for number in range(6):
        nifti(source / f"volume-{number}.nii", ct + np.int16(number), RAS)
        nifti(source / f"segmentation-{number}.nii", mask, RAS)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    return source


def convert(*options):
    return cli.main(["convert", *map(str, options)])


def test_a_collection_becomes_a_dataset_of_its_usual_number(lits, tmp_path, capsys):
    assert convert("lits", "-i", lits, "-np", 0) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "raw" / "Dataset501_LiTS" / "dataset.json").exists()
    assert "6 training and 0 test cases" in shown
    assert "nnUNetv2_plan_and_preprocess -d 501 --verify_dataset_integrity" in shown


def test_the_script_does_what_the_command_does(lits, tmp_path):
    script = Path(__file__).parents[2] / "dataset_conversion" / "Dataset501_LiTS.py"
    done = subprocess.run([sys.executable, script, "-i", lits, "-d", "77", "-np", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(CONVERTER, ["-i", str(lits), "-d", "78", "-np", "0"]) == 0
    records = [
        json.loads((tmp_path / "raw" / f"Dataset0{number}_LiTS" / "conversion.json").read_text()) for number in (77, 78)
    ]
    assert records[0] == records[1]


def test_problems_are_told_at_the_end_with_exit_1(lits, capsys):
    (lits / "volume-3.nii").write_bytes(b"")
    (lits / "segmentation-5.nii").unlink()
    assert convert("lits", "-i", lits, "-np", 0) == 1
    output = capsys.readouterr()
    assert "4 training" in output.out
    assert "2 problems:" in output.err
    assert "LiTS_003: the file is empty" in output.err
    assert "volume-5.nii has no segmentation" in output.err
    assert "Traceback" not in output.err


def test_a_dry_run_writes_nothing_and_finds_problems(lits, tmp_path, capsys):
    (lits / "volume-3.nii").write_bytes(b"")
    assert convert("lits", "-i", lits, "--dry-run") == 1
    output = capsys.readouterr()
    assert "LiTS_000  train  12 x 10 x 6 voxels of 0.8 x 0.8 x 2.5 mm, RAS" in output.out
    assert "LiTS_003" in output.err
    assert not (tmp_path / "raw").exists()


def test_folds_are_drawn(lits, tmp_path):
    assert convert("lits", "-i", lits, "-np", 0, "--folds") == 0
    splits = tmp_path / "raw" / "Dataset501_LiTS" / "splits_final.json"
    drawn = json.loads(splits.read_text())
    assert len(drawn) == 5
    assert sorted(name for fold in drawn for name in fold["val"]) == [f"LiTS_{n:03d}" for n in range(6)]


def test_a_dataset_stays_whole_where_its_folds_cannot_be_placed(lits, tmp_path, capsys, monkeypatch):
    (lits / "volume-5.nii").write_bytes(b"")
    (tmp_path / "preprocessed").write_text("no folder")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert convert("lits", "-i", lits, "-np", 0, "--folds") == 1
    told = capsys.readouterr()
    assert "5 training and 0 test cases" in told.out
    assert "cannot be put into nnUNet_preprocessed" in told.err
    assert "LiTS_005" in told.err
    assert "Traceback" not in told.err
    assert (tmp_path / "raw" / "Dataset501_LiTS" / "splits_final.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-d", "1000"], "run from 1 to 999"),
        (["-np", "-1"], "not a number of worker processes"),
        (["--regions", "--tumour-only"], "exclude each other"),
        (["--spacing-csv", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["--leave-out-scans-of", "nowhere"], "nowhere has no conversion.json"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_and_nothing_is_written(lits, tmp_path, capsys, options, message):
    assert convert("lits", "-i", lits, *options) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "raw").exists() or not any((tmp_path / "raw").iterdir())


def test_a_spacing_of_a_case_that_is_not_there_is_refused(lits, tmp_path, capsys):
    (tmp_path / "s.csv").write_text("case,x,y,z\nLiTS_0OO,1,1,2\n")
    assert convert("lits", "-i", lits, "--spacing-csv", tmp_path / "s.csv") == 1
    assert "names a case that is not there: 'LiTS_0OO' (did you mean LiTS_00" in capsys.readouterr().err


def test_without_nnunet_raw_a_sentence_says_so(lits, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    assert convert("lits", "-i", lits) == 1
    assert "nnUNet_raw is not set" in capsys.readouterr().err


def test_a_target_in_the_source_is_refused(lits, capsys):
    assert convert("lits", "-i", lits, "-o", lits / "raw") == 1
    assert "lies in the source" in capsys.readouterr().err


def test_a_number_that_another_dataset_has_is_refused(lits, tmp_path, capsys):
    (tmp_path / "raw" / "Dataset501_Mine").mkdir(parents=True)
    assert convert("lits", "-i", lits) == 1
    assert "has a dataset of ID 501 already, Dataset501_Mine" in capsys.readouterr().err


def test_a_source_without_cases_is_refused(tmp_path, lits, capsys):
    (tmp_path / "empty").mkdir()
    assert convert("lits", "-i", tmp_path / "empty") == 1
    assert "no case of LiTS is to be found" in capsys.readouterr().err


def test_check_finds_what_was_changed_afterwards(lits, tmp_path, capsys):
    convert("lits", "-i", lits, "-np", 0)
    dataset = tmp_path / "raw" / "Dataset501_LiTS"
    assert convert("check", dataset) == 0
    assert "every file is as it was converted" in capsys.readouterr().out
    path = dataset / "labelsTr" / "LiTS_002.nii.gz"
    path.write_bytes(path.read_bytes()[:-1])
    assert convert("check", dataset) == 1
    assert "LiTS_002" in capsys.readouterr().err


def test_preview_writes_a_picture(lits, tmp_path):
    convert("lits", "-i", lits, "-np", 0)
    dataset = tmp_path / "raw" / "Dataset501_LiTS"
    assert convert("preview", dataset) == 0
    assert (dataset / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert convert("check", dataset) == 0


@pytest.mark.parametrize("what", ["lits", "pancreas", "msd-pancreas", "nih-pancreas", "panorama", "check", "preview"])
def test_every_help_is_there(what, capsys):
    with pytest.raises(SystemExit) as stopped:
        convert(what, "--help")
    assert stopped.value.code == 0
    assert f"nnunet-godc convert {what}" in capsys.readouterr().out


def test_an_unknown_collection_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        convert("kits", "-i", "x")
    assert stopped.value.code == 2
    assert "lits" in capsys.readouterr().err
