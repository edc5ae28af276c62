import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_godc.cli import main
from nnunet_godc.demo import run_demo
from nnunet_godc.demo.run import README, README_TEXT, DemoFolder
from nnunet_godc.errors import UserError


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "nnUNet_results").mkdir()
    (tmp_path / "nnUNet_results" / "checkpoint_final.pth").write_text("precious")
    before = contents(tmp_path)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert contents(tmp_path) == before
    message = capsys.readouterr().err
    assert "not the folder of an earlier demo" in message
    assert message.count("\n") == 1


def test_a_readme_of_something_else_does_not_make_it_a_demo_folder(tmp_path):
    (tmp_path / README).write_text("my thesis")
    with pytest.raises(UserError, match="not the folder of an earlier demo"):
        run_demo(tmp_path)
    assert contents(tmp_path) == {README: b"my thesis"}


def test_a_file_is_refused(tmp_path):
    file = tmp_path / "demo"
    file.write_text("x")
    with pytest.raises(UserError, match="is a file; name a folder"):
        run_demo(file)
    assert file.read_text() == "x"


def test_a_folder_that_cannot_be_made_is_reported_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write to .*name another folder"):
        run_demo(tmp_path / "file" / "demo")


def test_an_earlier_demo_is_cleared_and_what_is_not_its_own_stays(tmp_path, capsys):
    folder = DemoFolder(tmp_path / "new" / "demo")
    folder.prepare()
    assert (folder.out / README).read_text() == README_TEXT
    (folder.results / "checkpoint_final.pth").write_text("old")
    folder.metrics_text.write_text("old")
    (folder.out / "notes.txt").write_text("mine")
    folder.prepare()
    assert sorted(contents(folder.out)) == [README, "notes.txt"]
    assert "holds an earlier demo" in capsys.readouterr().out


def test_everything_the_demo_writes_is_told_in_its_readme(tmp_path):
    folder = DemoFolder(tmp_path / "demo")
    folder.prepare()
    for path in [*folder.out.iterdir(), folder.collection, folder.metrics_text, folder.metrics_csv, folder.preview]:
        assert path.name == README or path.name in README_TEXT


def test_a_failing_command_ends_the_demo_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nnunet_godc.demo.run.write_phantom_collection", Path.mkdir)
    monkeypatch.setattr("nnunet_godc.demo.commands.find_command", lambda name: shutil.which("false"))
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 1
    message = capsys.readouterr().err
    assert "nnunet-godc ended with exit status 1" in message
    assert str(tmp_path / "demo" / "logs" / "convert.txt") in message


@pytest.mark.slow
def test_the_demo_learns(tmp_path, monkeypatch, capfd):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / "untouched"))
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    shown = capfd.readouterr().out

    with (out / "metrics.csv").open(newline="") as file:
        dice = {row["label"]: float(row["dice"]) for row in csv.DictReader(file) if row["case"] == "mean"}
    assert dice["liver"] > 0.85
    assert "The networks learnt" in shown
    assert "epoch 1 of " in shown
    assert (out / "metrics.txt").read_text() in shown

    held_out = sorted(path.name for path in (out / "nnUNet_raw" / "Dataset500_LiTS" / "labelsTs").iterdir())
    assert [path.stem for path in sorted((out / "figures").iterdir())] == [
        name.removesuffix(".nii.gz") for name in held_out
    ]
    for name in held_out:
        prediction = nibabel.load(out / "predictions" / "ensemble" / name)
        reference = nibabel.load(out / "nnUNet_raw" / "Dataset500_LiTS" / "labelsTs" / name)
        np.testing.assert_allclose(prediction.affine, reference.affine, atol=1e-4)
    trained = {
        case
        for fold in json.loads((out / "nnUNet_preprocessed" / "Dataset500_LiTS" / "splits_final.json").read_text())
        for case in fold["train"] + fold["val"]
    }
    assert trained.isdisjoint(name.removesuffix(".nii.gz") for name in held_out)
    assert not (tmp_path / "untouched").exists()
