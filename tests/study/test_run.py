"""A study from its file to its end, with small scripts in the place of nnU-Net's commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.study import planning
from nnunet_godc.study.definition import Study
from nnunet_godc.study.folder import read_state
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.run import cancel_study, read_study_folder, run_study, study_lock
from nnunet_godc.study.study_file import read_study

WaitUntil = Callable[[Callable[[], object]], None]

SMALL = """\
datasets: [901]
trainers: [nnUNetTrainer]
folds: [0, 1]
resources: {device: cpu, cpus: 2}
"""
TRAINING = "train.Dataset901_Tiny.nnUNetTrainer.nnUNetPlans.3d_fullres.fold"
STAND_IN = Path(__file__).with_name("stand_in.py")

RUNNER = f"""
import signal, sys
from dataclasses import replace
from pathlib import Path
from nnunet_godc.study import planning, run
from nnunet_godc.study.study_file import read_study
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
root = sys.argv[1]
run.jobs_of = lambda *of: [
    replace(job, command=("python", {str(STAND_IN)!r}, root, *job.command)) for job in planning.jobs_of(*of)
]
run.run_study(read_study(Path(root, "study.yaml")), Path(root, "out"))
"""


class Workspace:
    """nnU-Net's folders, a study file, and its folder `out`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"

    def run(self, text: str = SMALL) -> bool:
        (self.root / "study.yaml").write_text(text)
        return run_study(read_study(self.root / "study.yaml"), self.out)

    def start(self, text: str = SMALL) -> subprocess.Popen[str]:
        (self.root / "study.yaml").write_text(text)
        command = [sys.executable, "-c", RUNNER, str(self.root)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def called(self) -> list[str]:
        """The commands in the order of their calls, with the options that tell trainings apart."""
        diary = self.root / "diary"
        lines = [line.split() for line in diary.read_text().splitlines()] if diary.exists() else []
        return [
            " ".join((words[0], *words[3:6:2], *(word for word in words if word in ("--c", "--val"))))
            if words[0] == "nnUNetv2_train"
            else words[0]
            for words in lines
        ]

    @property
    def trained(self) -> list[str]:
        return [line.removeprefix("nnUNetv2_train ") for line in self.called if line.startswith("nnUNetv2_train")]

    def statuses(self) -> dict[str, str]:
        _, jobs = read_study_folder(self.out)
        return {job.id: read_state(self.out, job.id).status for job in jobs}


@pytest.fixture
def workspace(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    def stand_ins(study: Study, folder: Path) -> list[Job]:
        jobs = planning.jobs_of(study, folder)
        return [replace(job, command=("python", str(STAND_IN), str(nnunet), *job.command)) for job in jobs]

    monkeypatch.setattr("nnunet_godc.study.run.jobs_of", stand_ins)
    return Workspace(nnunet)


def test_a_study_runs_to_its_end(workspace: Workspace) -> None:
    assert workspace.run()
    assert workspace.called == [
        "nnUNetv2_plan_and_preprocess",
        "python",
        "nnUNetv2_train 0 nnUNetTrainer",
        "nnUNetv2_train 1 nnUNetTrainer",
        "nnunet-godc",
    ]
    assert set(workspace.statuses().values()) == {"done"}


def test_running_it_again_does_nothing(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.run()
    before = workspace.called
    capsys.readouterr()
    assert workspace.run()
    assert workspace.called == before
    assert capsys.readouterr().out == "study: 5 jobs, 5 done\n"


def test_what_was_there_before_is_taken(workspace: Workspace) -> None:
    fold = workspace.root / "results/Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0"
    (fold / "validation").mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    (fold / "validation" / "summary.json").touch()
    assert workspace.run()
    assert workspace.trained == ["1 nnUNetTrainer"]


def test_what_was_deleted_is_made_again(workspace: Workspace) -> None:
    workspace.run()
    fold = workspace.root / "results/Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_1"
    (fold / "validation" / "summary.json").unlink()
    assert workspace.run()
    assert workspace.trained == ["0 nnUNetTrainer", "1 nnUNetTrainer", "1 nnUNetTrainer"]


def test_a_failed_training_leaves_the_rest_done(workspace: Workspace) -> None:
    (workspace.root / "fail").write_text("3d_fullres 0")
    assert not workspace.run()
    assert workspace.statuses() == {
        "plan.Dataset901_Tiny.nnUNetPlans": "done",
        "preprocess.Dataset901_Tiny.nnUNetPlans.3d_fullres": "done",
        f"{TRAINING}0": "failed",
        f"{TRAINING}1": "done",
        "evaluate.Dataset901_Tiny": "not run",
    }
    (workspace.root / "fail").unlink()
    assert workspace.run()
    assert workspace.trained == ["0 nnUNetTrainer", "1 nnUNetTrainer", "0 nnUNetTrainer"]


class TestEditedFile:
    """New jobs are added, old results stay, and what would mix is refused."""

    def test_a_new_trainer_is_added_and_everything_evaluated_again(
        self, workspace: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        workspace.run()
        assert workspace.run(SMALL.replace("[nnUNetTrainer]", "[nnUNetTrainer, nnUNetTrainerGODC]"))
        assert workspace.trained[2:] == ["0 nnUNetTrainerGODC", "1 nnUNetTrainerGODC"]
        assert workspace.called.count("nnunet-godc") == 2
        shown = capsys.readouterr().out
        added = TRAINING.replace("nnUNetTrainer", "nnUNetTrainerGODC")
        assert f"new: {added}0, {added}1" in shown
        assert "changed: evaluate.Dataset901_Tiny" in shown

    def test_a_new_fold_is_evaluated_too(self, workspace: Workspace) -> None:
        workspace.run()
        assert workspace.run(SMALL.replace("[0, 1]", "[0, 1, 2]"))
        assert workspace.called[-2:] == ["nnUNetv2_train 2 nnUNetTrainer", "nnunet-godc"]

    def test_what_is_no_longer_in_it_is_told_and_stays(
        self, workspace: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        workspace.run()
        assert workspace.run(SMALL.replace("[0, 1]", "[0]"))
        assert f"no longer in the study, their results stay: {TRAINING}1" in capsys.readouterr().out
        assert f"{TRAINING}1" not in workspace.statuses()
        assert (workspace.out / "jobs" / f"{TRAINING}1" / "state.json").exists()

    def test_another_device_would_mix_results(self, workspace: Workspace) -> None:
        workspace.run()
        before = (workspace.out / "study.json").read_text()
        with pytest.raises(UserError, match="their results would mix"):
            workspace.run(SMALL.replace("device: cpu", "device: mps"))
        assert (workspace.out / "study.json").read_text() == before

    def test_what_has_not_begun_may_change(self, workspace: Workspace) -> None:
        (workspace.root / "fail").write_text("plan_and_preprocess")
        workspace.run(SMALL)
        (workspace.root / "fail").unlink()
        assert workspace.run(SMALL.replace("device: cpu", "device: mps"))

    def test_other_folders_of_nnunet_would_mix_results(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace.run()
        (workspace.root / "elsewhere").mkdir()
        monkeypatch.setenv("nnUNet_results", str(workspace.root / "elsewhere"))
        with pytest.raises(UserError, match="their results would mix"):
            workspace.run()

    def test_more_cpus_change_nothing(self, workspace: Workspace) -> None:
        workspace.run()
        assert workspace.run(SMALL.replace("cpus: 2", "cpus: 4"))
        assert len(workspace.called) == 5


class TestExclusion:
    """One process runs a study."""

    def test_a_second_run_says_who_runs_it(self, workspace: Workspace, wait_until: WaitUntil) -> None:
        (workspace.root / "wait").touch()
        with workspace.start() as first:
            wait_until(lambda: workspace.trained)
            with pytest.raises(UserError, match=rf"is being run by process {first.pid} on .*study cancel"):
                workspace.run()
            (workspace.root / "wait").unlink()
            assert first.wait() == 0
        assert len(workspace.trained) == 2

    def test_the_lock_of_a_killed_run_is_free(self, workspace: Workspace, wait_until: WaitUntil) -> None:
        (workspace.root / "wait").touch()
        with workspace.start() as first:
            wait_until(lambda: workspace.trained)
            first.kill()
        (workspace.root / "wait").unlink()
        assert workspace.run()
        # the training went on by itself, and was waited for
        assert workspace.trained == ["0 nnUNetTrainer", "1 nnUNetTrainer"]

    def test_two_studies_do_not_exclude_each_other(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        with study_lock(tmp_path / "a"), study_lock(tmp_path / "b"):
            pass


class TestInterruption:
    """Ctrl-C, SIGTERM and `study cancel`."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_next_run_goes_on(self, workspace: Workspace, wait_until: WaitUntil, number: signal.Signals) -> None:
        (workspace.root / "wait").touch()
        with workspace.start() as first:
            wait_until(lambda: workspace.trained)
            first.send_signal(number)
            assert first.wait() != 0
        assert workspace.statuses()[f"{TRAINING}0"] == "interrupted"
        (workspace.root / "wait").unlink()
        assert workspace.run()
        assert workspace.trained == ["0 nnUNetTrainer", "0 nnUNetTrainer", "1 nnUNetTrainer"]

    def test_cancelling_ends_the_run_and_its_job(self, workspace: Workspace, wait_until: WaitUntil) -> None:
        (workspace.root / "wait").touch()
        with workspace.start() as first:
            wait_until(lambda: workspace.trained)
            assert cancel_study(workspace.out) == 1
            assert first.wait() != 0
        assert workspace.statuses()[f"{TRAINING}0"] == "interrupted"
        assert cancel_study(workspace.out) == 0


class TestFolder:
    """Where a study may be kept."""

    def test_a_folder_that_holds_something_else_is_left_alone(self, workspace: Workspace) -> None:
        workspace.out.mkdir()
        (workspace.out / "thesis.tex").touch()
        with pytest.raises(UserError, match=r"holds something else \(thesis.tex\)"):
            workspace.run()
        assert [path.name for path in workspace.out.iterdir()] == ["thesis.tex"]

    def test_a_file_is_refused(self, workspace: Workspace) -> None:
        workspace.out.touch()
        with pytest.raises(UserError, match="is a file"):
            workspace.run()

    def test_it_says_what_the_study_is(self, workspace: Workspace) -> None:
        workspace.run()
        study, jobs = read_study_folder(workspace.out)
        assert study == read_study(workspace.root / "study.yaml")
        assert len(jobs) == 5
        assert json.loads((workspace.out / "study.json").read_text())["datasets"] == ["Dataset901_Tiny"]

    def test_another_folder_is_no_study(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no study"):
            read_study_folder(tmp_path)
