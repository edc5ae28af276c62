import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_godc.cli import main
from nnunet_godc.demo import run, run_demo
from nnunet_godc.demo.run import README, README_TEXT, STEPS, STUDY, _Demo, _Watch, claim
from nnunet_godc.errors import UserError
from nnunet_godc.locks import locked
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.planning import jobs_of


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
    out = tmp_path / "new" / "demo"
    claim(out)
    assert (out / README).read_text() == README_TEXT
    _Demo(out)._clear()
    (out / "nnUNet_results" / "checkpoint_final.pth").write_text("old")
    (out / "metrics.txt").write_text("old")
    (out / "notes.txt").write_text("mine")
    claim(out)
    _Demo(out)._clear()
    assert sorted(contents(out)) == [README, "notes.txt"]
    assert "holds an earlier demo" in capsys.readouterr().out


def test_two_demos_do_not_write_to_one_folder(tmp_path):
    claim(tmp_path / "demo")
    with locked(tmp_path / "demo" / ".lock"), pytest.raises(UserError, match="another demo is writing to"):
        run_demo(tmp_path / "demo")


def test_everything_the_demo_writes_is_told_in_its_readme():
    assert all(f"\n{name} " in README_TEXT for name in ("collection", *run._FOLDERS, *run._FILES))


def test_its_study_is_one_that_a_user_can_run(tmp_path):
    (tmp_path / "demo.yaml").write_text(STUDY)
    assert set(STEPS) == {job.kind for job in jobs_of(_Demo(tmp_path)._study(), tmp_path)}


def test_a_failing_command_ends_the_demo_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nnunet_godc.demo.run.write_phantom_collection", Path.mkdir)
    monkeypatch.setattr("nnunet_godc.commands.find_command", lambda name: shutil.which("false"))
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 1
    message = capsys.readouterr().err
    assert "nnunet-godc ended with exit status 1" in message
    assert str(tmp_path / "demo" / "logs" / "convert.txt") in message


# As nnU-Net 2.8 prints it; numpy 1 wrote the numbers without their type.
EPOCH = """\
2026-01-02 03:04:05.678901:
2026-01-02 03:04:05.678901: Epoch {epoch}
2026-01-02 03:04:05.678901: Current learning rate: 0.00338
2026-01-02 03:04:15.678901: train_loss -0.1234
2026-01-02 03:04:15.678901: val_loss -0.1297
2026-01-02 03:04:15.678901: Pseudo dice {dice}
2026-01-02 03:04:15.678901: Epoch time: 10.0 s
"""


@pytest.mark.parametrize(
    ("dice", "shown"),
    [
        ("[np.float32(0.8697), np.float32(0.1)]", "liver 0.87, tumour 0.10"),
        ("[0.8697, nan]", "liver 0.87, tumour nan"),
        ("[np.float64(1.0), np.float64(nan)]", "liver 1.00, tumour nan"),
        ("[np.float32(1e-04), np.float32(0.0)]", "liver 0.00, tumour 0.00"),
    ],
)
def test_an_epoch_becomes_one_line_with_the_time_left(tmp_path, capsys, dice, shown):
    watch = _Watch(Job("train", "train", (), fold="0", trainer="T", expected=(str(tmp_path / "checkpoint_final.pth"),)))
    watch()
    (tmp_path / "debug.json").write_text(json.dumps({"num_epochs": "4"}))
    log = tmp_path / "training_log_1.txt"
    log.write_text(EPOCH.format(epoch=2, dice=dice))
    watch()
    watch()
    log.write_text(log.read_text() + EPOCH.format(epoch=3, dice=dice))
    watch()
    assert capsys.readouterr().out.splitlines() == [
        "    fold 0 with T",
        f"    epoch 3 of 4: loss -0.1234, pseudo Dice {shown}, about 10 s left",
        f"    epoch 4 of 4: loss -0.1234, pseudo Dice {shown}",
    ]


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
        (prediction,) = (nibabel.load(path) for path in (out / "predictions").rglob(name))
        reference = nibabel.load(out / "nnUNet_raw" / "Dataset500_LiTS" / "labelsTs" / name)
        np.testing.assert_allclose(prediction.affine, reference.affine, atol=1e-4)
    trained = {
        case
        for fold in json.loads((out / "nnUNet_preprocessed" / "Dataset500_LiTS" / "splits_final.json").read_text())
        for case in fold["train"] + fold["val"]
    }
    assert trained.isdisjoint(name.removesuffix(".nii.gz") for name in held_out)
    assert not (tmp_path / "untouched").exists()
