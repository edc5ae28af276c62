"""`nnunet-godc study`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_godc.cli import main

SMALL = "datasets: [901]\ntrainers: [nnUNetTrainer]\nfolds: [0]\n"


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file in the current folder, beside nnU-Net's folders with one raw dataset."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "raw" / "Dataset901_Tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path("mine.yaml")
    path.write_text(SMALL)
    return path


def test_a_dry_run_shows_the_commands_and_leaves_nothing(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", str(study_file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    name = "train.Dataset901_Tiny.nnUNetTrainer.nnUNetPlans.3d_fullres.fold0"
    assert f"would run  {name}\n    nnUNetv2_train Dataset901_Tiny" in shown
    assert not Path("mine").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("{metric: all}", "line 4, column 12: 'metric' is unknown; did you mean 'metrics'?"),
        ("{metrics: [dise]}", "line 4, column 21: argument --metrics: invalid choice: 'dise'"),
        ("{nsd_tolerance: wide}", "line 4, column 27: argument --nsd-tolerance: invalid float value: 'wide'"),
        ("{resamples: 10}", "line 4, column 23: 10 resamples do not settle an interval; take 1000 or more"),
        ("{lesion_iou: 2}", "line 4, column 24: --lesion-iou 2 is not an IoU; give 0 to 1"),
        ("{out: here}", "line 4, column 12: 'out' is unknown"),
    ],
)
def test_options_of_the_evaluation_are_checked_before_anything_is_trained(
    study_file: Path, capsys: pytest.CaptureFixture[str], options: str, problem: str
) -> None:
    study_file.write_text(f"{SMALL}evaluate: {options}\n")
    assert main(["study", "run", str(study_file)]) == 1
    assert f"mine.yaml, {problem}" in capsys.readouterr().err
    assert not Path("mine").exists()


def test_options_of_the_evaluation_that_are_right_are_passed_on(
    study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study_file.write_text(SMALL + "evaluate: {metrics: [overlap], lesion_bins: [0.5, 3], chill: true}\n")
    assert main(["study", "run", str(study_file), "--dry-run"]) == 0
    assert "--metrics overlap --lesion-bins 0.5 3 --chill\n" in capsys.readouterr().out


def test_the_executor_of_the_command_line_goes_before_that_of_the_file(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("nnunet_godc.study.slurm.SlurmExecutor.run", lambda *of: asked.append(of))
    assert main(["study", "run", str(study_file), "--executor", "slurm"]) == 0
    assert len(asked) == 1
    written = json.loads(Path("mine/study.json").read_text())
    assert written["definition"]["resources"]["executor"] == "slurm"


def test_without_nnunets_folders_there_is_no_study(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("nnUNet_raw")
    assert main(["study", "run", str(study_file)]) == 1
    assert "nnUNet_raw not set" in capsys.readouterr().err


def test_status_and_cancel_take_what_run_takes(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nnunet_godc.study.slurm.SlurmExecutor.run", lambda *of: None)
    assert main(["study", "run", "mine.yaml", "--executor", "slurm"]) == 0
    for study in (["mine.yaml"], ["mine"], [str(Path("mine").absolute())], ["table1", "--out", "mine"]):
        capsys.readouterr()
        assert main(["study", "status", *study]) == 0
        assert "4 pending" in capsys.readouterr().out
        assert main(["study", "cancel", *study]) == 0
        assert main(["study", "collect", *study]) == 1
        assert "no training is done yet" in capsys.readouterr().err
    study_file.write_text("name: other\n" + SMALL)
    assert main(["study", "status", "mine.yaml"]) == 1
    assert f"{Path('other').absolute()} holds no study" in capsys.readouterr().err


TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerMine(nnUNetTrainer):
    num_epochs = {epochs}
"""


@pytest.mark.slow
def test_a_trainer_of_the_users_own_that_has_changed_is_refused(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("trainers").absolute()
    folder.mkdir()
    monkeypatch.setenv("nnUNet_extTrainer", str(folder), prepend=":")
    monkeypatch.setattr("nnunet_godc.study.slurm.SlurmExecutor.run", lambda *of: None)
    study_file.write_text(SMALL.replace("nnUNetTrainer", "nnUNetTrainerMine"))
    (folder / "mine.py").write_text(TRAINER.format(epochs=6))
    run = ["study", "run", "mine.yaml", "--executor", "slurm"]
    assert main(run) == 0
    fold = Path("results/Dataset901_Tiny/nnUNetTrainerMine__nnUNetPlans__3d_fullres/fold_0")
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    code = json.loads(Path("mine/trainers.json").read_text())["nnUNetTrainerMine"]
    (fold / ".nnunet-godc.trainer.json").write_text(json.dumps(code))

    (folder / "mine.py").write_text(TRAINER.format(epochs="6  # as ever"))
    assert main(run) == 0
    (folder / "mine.py").write_text(TRAINER.format(epochs=3))
    capsys.readouterr()
    assert main(run) == main([*run, "--dry-run"]) == 1
    message = capsys.readouterr().err
    assert message.count("nnUNetTrainerMine has changed since it trained train.Dataset901_Tiny.nnUNetTrainerMine") == 2
    assert "(mine.nnUNetTrainerMine)" in message
    assert main([*run, "--retrain"]) == 0
    assert not fold.exists()
