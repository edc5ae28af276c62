"""A study from its file to its end, with small scripts in the place of nnU-Net's commands."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.locks import is_held, locked
from nnunet_godc.study.folder import TRAINER_CODE, job_folder, read_state, read_study_folder, update_state
from nnunet_godc.study.run import cancel_study
from nnunet_godc.study.study_file import read_study
from nnunet_godc.study.trainers import Code
from tests.study.waiting import wait_until
from tests.study.workspace import EVALUATION, GODC, ON_SLURM, PREDICTED, SMALL, TRAINING, VARIATION, Workspace

Pretend = Callable[[str, str], None]


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
    assert capsys.readouterr().out == f"study: 5 jobs, 5 done\nEverything is done: {workspace.out}\n"


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


def test_what_was_made_from_an_older_model_is_made_again(workspace: Workspace) -> None:
    workspace.run(PREDICTED)
    made = workspace.called
    shutil.rmtree(workspace.root / "results/Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_1")
    assert workspace.run(PREDICTED)
    again = ["nnUNetv2_train 1 nnUNetTrainer", "nnUNetv2_predict", "nnunet-godc", "nnunet-godc"]
    assert sorted(workspace.called[len(made) :]) == sorted(again)
    assert workspace.run(PREDICTED)
    assert len(workspace.called) == len(made) + len(again)


def test_what_an_interrupted_run_did_not_make_again_the_next_one_does(workspace: Workspace) -> None:
    workspace.run(PREDICTED)
    shutil.rmtree(workspace.root / "results/Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_1")
    update_state(workspace.out, f"{TRAINING}1", status="interrupted")
    (workspace.root / "fail").write_text("nnUNetv2_predict")
    assert not workspace.run(PREDICTED)
    (workspace.root / "fail").unlink()
    before = len(workspace.called)
    assert workspace.run(PREDICTED)
    assert workspace.called[before:] == ["nnUNetv2_predict", "nnunet-godc"]


def test_data_that_are_preprocessed_again_leave_trainings_as_they_are(workspace: Workspace) -> None:
    workspace.run()
    (workspace.root / "preprocessed/Dataset901_Tiny/gt_segmentations").rmdir()
    before = len(workspace.called)
    assert workspace.run()
    assert workspace.called[before:] == ["python"]
    assert workspace.run()
    assert len(workspace.called) == before + 1


def test_gpus_that_are_not_there_are_told_before_anything_is_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=rf"{TRAINING}0 needs 1 GPU\(s\) and this machine offers 0"):
        workspace.run(SMALL.replace("device: cpu, ", ""))
    assert workspace.files() == {}


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

    def test_another_device_trains_anew_if_asked_for(self, workspace: Workspace) -> None:
        workspace.run()
        assert workspace.run(SMALL.replace("device: cpu", "device: mps"), retrain=True)
        assert workspace.trained == ["0 nnUNetTrainer", "1 nnUNetTrainer"] * 2
        assert len(list(workspace.root.glob("results/*/*/replaced_*/fold_[01]/checkpoint_final.pth"))) == 2

    def test_plans_that_were_used_are_not_made_anew(self, workspace: Workspace) -> None:
        workspace.run(VARIATION)
        with pytest.raises(UserError, match="their results would mix"):
            workspace.run(VARIATION.replace("23", "24"), retrain=True)

    def test_what_has_not_begun_may_change(self, workspace: Workspace) -> None:
        (workspace.root / "fail").write_text("plan_and_preprocess")
        workspace.run(SMALL)
        (workspace.root / "fail").unlink()
        assert workspace.run(SMALL.replace("device: cpu", "device: mps"))

    def test_a_training_that_left_nothing_may_run_elsewhere(self, workspace: Workspace) -> None:
        (workspace.root / "fail").write_text("device cpu")
        assert not workspace.run()
        assert workspace.run(SMALL.replace("device: cpu", "device: mps"))
        assert "device mps" in (workspace.root / "diary").read_text()

    def test_a_training_that_left_a_checkpoint_may_not(self, workspace: Workspace) -> None:
        (workspace.root / "fail").write_text("device cpu")
        workspace.run()
        fold = workspace.root / "results/Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_1"
        (fold / "checkpoint_latest.pth").touch()
        with pytest.raises(UserError, match=r"fold1, made by .*their results would mix"):
            workspace.run(SMALL.replace("device: cpu", "device: mps"))

    def test_plans_that_do_not_fit_are_corrected(self, workspace: Workspace) -> None:
        (workspace.root / "fail").write_text("[23, 40, 24]")
        assert not workspace.run(VARIATION)
        assert workspace.run(VARIATION.replace("23", "24"))
        assert "[24, 40, 24]" in (workspace.root / "diary").read_text()

    def test_plans_that_were_trained_with_are_not_changed_even_if_they_are_gone(self, workspace: Workspace) -> None:
        workspace.run(VARIATION)
        (workspace.root / "preprocessed/Dataset901_Tiny/Small.json").unlink()
        with pytest.raises(UserError, match=r"fold0, made with the plans of .*\[23, .*\[24, .* would mix"):
            workspace.run(VARIATION.replace("23", "24"))

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


class TestEditedWhileItRuns:
    """What is new is added to the run; what waits is replaced; what trains is neither changed nor forgotten."""

    def test_a_trainer_is_added_to_the_run(self, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        with workspace.training() as first:
            assert workspace.run(SMALL.replace("[nnUNetTrainer]", "[nnUNetTrainer, nnUNetTrainerGODC]"))
            shown = capsys.readouterr().out.splitlines()
            assert shown[-1].startswith(f"Added to the run of process {first.pid} on ")
            workspace.go_on()
            assert first.wait() == 0
        assert workspace.trained == [f"{fold} {name}" for fold in (0, 1) for name in ("nnUNetTrainer", GODC)]
        assert workspace.called.count("nnunet-godc") == 1
        assert set(workspace.statuses().values()) == {"done"}
        assert "nnUNetTrainerGODC__nnUNetPlans__3d_fullres" in (workspace.root / "diary").read_text().splitlines()[-1]

    def test_a_fold_that_waits_can_be_left_out(self, workspace: Workspace) -> None:
        with workspace.training() as first:
            assert workspace.run(SMALL.replace("[0, 1]", "[0]"))
            workspace.go_on()
            assert first.wait() == 0
        assert workspace.trained == ["0 nnUNetTrainer"]
        assert set(workspace.statuses().values()) == {"done"}

    def test_an_evaluation_that_runs_is_replaced(self, workspace: Workspace) -> None:
        (workspace.root / "wait").write_text("nnunet-godc")
        with workspace.start() as first:
            wait_until(lambda: "nnunet-godc" in workspace.called)
            assert workspace.run(SMALL.replace("[0, 1]", "[0, 1, 2]"))
            workspace.go_on()
            assert first.wait() == 0
        assert workspace.called[-3:] == ["nnunet-godc", "nnUNetv2_train 2 nnUNetTrainer", "nnunet-godc"]
        assert set(workspace.statuses().values()) == {"done"}

    def test_a_training_that_runs_does_not_change(self, workspace: Workspace) -> None:
        with workspace.training() as first:
            before = workspace.files()
            for text in (SMALL.replace("device: cpu", "device: mps"), SMALL.replace("[0, 1]", "[1]")):
                with pytest.raises(UserError, match=f"this changes what runs already: {TRAINING}0;"):
                    workspace.run(text)
            assert workspace.files() == before
            workspace.go_on()
            assert first.wait() == 0
        assert workspace.trained == ["0 nnUNetTrainer", "1 nnUNetTrainer"]

    def test_what_has_failed_is_not_tried_again_unless_it_changes(self, workspace: Workspace) -> None:
        (workspace.root / "fail").write_text("3d_fullres 0")
        (workspace.root / "wait").write_text("3d_fullres 1")
        with workspace.start() as first:
            wait_until(lambda: "1 nnUNetTrainer" in workspace.trained)
            workspace.run(SMALL.replace("[0, 1]", "[0, 1, 2]"))
            workspace.go_on()
            assert first.wait() == 0
        assert workspace.trained == ["0 nnUNetTrainer", "1 nnUNetTrainer", "2 nnUNetTrainer"]
        assert workspace.statuses()[EVALUATION] == "not run"

    @pytest.fixture
    def submitted(self, workspace: Workspace, pretend: Pretend) -> Workspace:
        """A study of which the evaluation alone is not done: it waits on a cluster."""
        pretend("scancel", f"echo $* >> {workspace.root}/cancelled")
        pretend(
            "squeue",
            f"test -e {workspace.root}/cancelled && echo '104|CANCELLED|None' || echo '104|PENDING|Priority'",
        )
        (workspace.root / "fail").write_text("nnunet-godc")
        workspace.run()
        (workspace.root / "fail").unlink()
        update_state(workspace.out, EVALUATION, status="queued", scheduler_id="104", note="Slurm: Priority")
        return workspace

    @pytest.mark.parametrize("folds", ["[0, 1, 2]", "[0]"])
    def test_a_queued_job_is_replaced(self, submitted: Workspace, folds: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nnunet_godc.study.slurm.SlurmExecutor.run", lambda *of: None)
        assert submitted.run(ON_SLURM.replace("[0, 1]", folds))
        assert "104" in (submitted.root / "cancelled").read_text()
        assert submitted.statuses()[EVALUATION] == "pending"

    def test_a_queued_job_that_is_left_out_is_cancelled(
        self, submitted: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nnunet_godc.study.slurm.SlurmExecutor.run", lambda *of: None)
        update_state(submitted.out, f"{TRAINING}1", status="queued", scheduler_id="104")
        update_state(submitted.out, EVALUATION, status="failed", scheduler_id="")
        assert submitted.run(ON_SLURM.replace("[0, 1]", "[0]"))
        assert "104" in (submitted.root / "cancelled").read_text()

    def test_a_training_of_the_cluster_that_runs_does_not_change(self, submitted: Workspace, pretend: Pretend) -> None:
        pretend("squeue", "echo '104|RUNNING|None'")
        update_state(submitted.out, f"{TRAINING}1", status="running", scheduler_id="104")
        update_state(submitted.out, EVALUATION, status="failed", scheduler_id="")
        before = submitted.files()
        with pytest.raises(UserError, match=f"this changes what runs already: {TRAINING}1;"):
            submitted.run(ON_SLURM.replace("[0, 1]", "[0]"))
        assert submitted.files() == before
        assert not (submitted.root / "cancelled").exists()


class TestChangedTrainer:
    """Trainings by two versions of one trainer never stand beside each other in silence."""

    MINE = SMALL.replace("nnUNetTrainer", "nnUNetTrainerMine")
    TRAINING = TRAINING.replace("nnUNetTrainer", "nnUNetTrainerMine")

    @pytest.fixture
    def changed(self, workspace: Workspace) -> Workspace:
        """A study whose first fold was trained before its trainer changed."""
        (workspace.root / "fail").write_text("3d_fullres 1")
        workspace.trainers = {"nnUNetTrainerMine": Code({"mine.nnUNetTrainerMine": "before"})}
        workspace.run(self.MINE)
        (workspace.root / "fail").unlink()
        workspace.trainers = {"nnUNetTrainerMine": Code({"mine.nnUNetTrainerMine": "now"})}
        return workspace

    def test_it_is_refused(self, changed: Workspace) -> None:
        before = changed.files()
        with pytest.raises(
            UserError, match=rf"^nnUNetTrainerMine has changed since it trained {self.TRAINING}0 \(mine"
        ):
            changed.run(self.MINE)
        assert changed.files() == before
        changed.trainers = {"nnUNetTrainerMine": Code({"mine.nnUNetTrainerMine": "before"})}
        assert changed.run(self.MINE)

    def test_another_version_of_nnunet_is_refused_too(self, changed: Workspace) -> None:
        changed.trainers = {"nnUNetTrainerMine": Code({"mine.nnUNetTrainerMine": "before"}, {"nnunetv2": "3.0"})}
        with pytest.raises(UserError, match=r"\(nnunetv2 None -> 3.0\)"):
            changed.run(self.MINE)

    def test_it_is_trained_anew_if_asked_for_and_nothing_is_lost(self, changed: Workspace) -> None:
        assert changed.run(self.MINE, retrain=True)
        model = changed.root / "results/Dataset901_Tiny/nnUNetTrainerMine__nnUNetPlans__3d_fullres"
        assert len(list(model.glob("replaced_*/fold_0/checkpoint_final.pth"))) == 1
        assert changed.trained == [f"{fold} nnUNetTrainerMine" for fold in (0, 1, 0, 1)]
        for fold in (0, 1):
            assert json.loads((model / f"fold_{fold}" / TRAINER_CODE).read_text())["sources"] == {
                "mine.nnUNetTrainerMine": "now"
            }

    def test_where_nothing_is_trained_yet_it_is_taken(self, changed: Workspace) -> None:
        shutil.rmtree(changed.root / "results/Dataset901_Tiny/nnUNetTrainerMine__nnUNetPlans__3d_fullres/fold_0")
        assert changed.run(self.MINE)

    def test_other_trainers_are_none_of_its_business(self, changed: Workspace) -> None:
        changed.trainers["nnUNetTrainer"] = Code()
        assert changed.run(SMALL + "name: other\n")

    def test_what_was_trained_before_the_study_is_taken_as_it_is(self, changed: Workspace) -> None:
        for record in changed.root.glob(f"results/*/*/fold_0/{TRAINER_CODE}"):
            record.unlink()
        assert changed.run(self.MINE)

    def test_a_change_during_the_run_fails_what_has_not_begun(self, workspace: Workspace) -> None:
        source = workspace.root / "mine.py"
        source.write_text("class nnUNetTrainerMine: epochs = 6")
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        workspace.trainers = {"nnUNetTrainerMine": Code({"mine.nnUNetTrainerMine": "x"}, {}, {str(source): digest})}
        (workspace.root / "edit").write_text(str(source))  # done by the first training
        assert not workspace.run(self.MINE)
        assert workspace.statuses()[f"{self.TRAINING}0"] == "done"
        state = read_state(workspace.out, f"{self.TRAINING}1")
        assert state.status == "failed"
        assert state.note.startswith(
            "nnUNetTrainerMine has changed since `study run` (it is gone); run the study again"
        )


class TestDryRun:
    """What is done, what would run, what is refused; nothing is written."""

    def test_it_compares_with_what_is_there(self, workspace: Workspace) -> None:
        (workspace.root / "fail").write_text("3d_fullres 1")
        workspace.run()
        fold = workspace.root / "results/Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_1"
        (fold / "checkpoint_latest.pth").touch()
        before = workspace.files()
        lines, refused = workspace.dry_run(SMALL.replace("[0, 1]", "[0, 1, 2]"))
        assert [line.splitlines()[0] for line in lines] == [
            "done       plan.Dataset901_Tiny.nnUNetPlans",
            "done       preprocess.Dataset901_Tiny.nnUNetPlans.3d_fullres",
            f"done       {TRAINING}0",
            f"goes on    {TRAINING}1",
            f"would run  {TRAINING}2",
            f"would run  {EVALUATION}",
        ]
        assert "nnUNetv2_train Dataset901_Tiny 3d_fullres 2" in lines[4]
        assert refused == []
        assert workspace.files() == before

    def test_it_says_what_would_be_refused(self, workspace: Workspace) -> None:
        workspace.run()
        lines, refused = workspace.dry_run(SMALL.replace("device: cpu", "device: mps").replace("[0, 1]", "[1]"))
        assert f"forgotten  {TRAINING}0; its results stay" in lines
        (sentence,) = refused
        assert "their results would mix" in sentence

    def test_what_runs_is_told(self, workspace: Workspace) -> None:
        with workspace.training() as first:
            lines, _ = workspace.dry_run(SMALL)
            assert f"runs       {TRAINING}0" in [line.splitlines()[0] for line in lines]
            workspace.go_on()
            assert first.wait() == 0


class TestOtherExecutor:
    """A study may go on elsewhere; no job is in two places."""

    @pytest.fixture
    def on_slurm(self, workspace: Workspace, pretend: Pretend) -> Workspace:
        """A study of which a training waits on a cluster, which cancels it when it is told to."""
        (workspace.root / "fail").write_text("nnUNetv2_train")
        workspace.run()
        (workspace.root / "fail").unlink()
        update_state(workspace.out, f"{TRAINING}0", status="queued", scheduler_id="104")
        study = workspace.out / "study.json"
        study.write_text(study.read_text().replace('"executor": "local"', '"executor": "slurm"'))
        pretend("scancel", f"echo $* >> {workspace.root}/cancelled")
        pretend(
            "squeue",
            f"test -e {workspace.root}/cancelled && echo '104|CANCELLED|None' || echo '104|PENDING|Priority'",
        )
        return workspace

    def test_a_job_of_the_cluster_does_not_run_here_too(self, on_slurm: Workspace) -> None:
        with pytest.raises(UserError, match=f"{TRAINING}0 is job 104 of the cluster; .*--executor slurm"):
            on_slurm.run()
        assert read_study_folder(on_slurm.out)[0].definition.resources.executor == "slurm"

    def test_a_job_of_the_cluster_is_cancelled_whatever_the_study_says(self, on_slurm: Workspace) -> None:
        assert cancel_study(on_slurm.out) == 1
        assert "104" in (on_slurm.root / "cancelled").read_text()
        assert on_slurm.statuses()[f"{TRAINING}0"] == "interrupted"
        assert cancel_study(on_slurm.out) == 0

    def test_a_job_of_the_cluster_goes_on_here_once_it_is_cancelled(self, on_slurm: Workspace) -> None:
        cancel_study(on_slurm.out)
        assert on_slurm.run()
        assert read_state(on_slurm.out, f"{TRAINING}0").scheduler_id == ""

    def test_a_job_that_runs_here_is_not_submitted_too(self, workspace: Workspace) -> None:
        with workspace.training() as first:
            before = workspace.files()
            with pytest.raises(UserError, match=f"{TRAINING}0 runs on .* itself; .*--executor local"):
                workspace.run(ON_SLURM)
            assert workspace.files() == before
            assert cancel_study(workspace.out) == 1
            assert first.wait() != 0


class TestExclusion:
    """One process runs a study."""

    def test_a_second_run_says_who_runs_it(self, workspace: Workspace) -> None:
        with workspace.training() as first:
            with pytest.raises(UserError, match=rf"is being run by process {first.pid} on .*study cancel"):
                workspace.run()
            workspace.go_on()
            assert first.wait() == 0
        assert len(workspace.trained) == 2

    def test_the_lock_of_a_killed_run_is_free(self, workspace: Workspace) -> None:
        with workspace.training() as first:
            first.kill()
        wait_until(lambda: workspace.statuses()[f"{TRAINING}0"] == "interrupted")
        workspace.go_on()
        assert workspace.run()
        assert workspace.trained == ["0 nnUNetTrainer", "0 nnUNetTrainer", "1 nnUNetTrainer"]


class TestInterruption:
    """Ctrl-C, SIGTERM and `study cancel`."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_next_run_goes_on(self, workspace: Workspace, number: signal.Signals) -> None:
        with workspace.training() as first:
            first.send_signal(number)
            assert first.wait() != 0
        assert workspace.statuses()[f"{TRAINING}0"] == "interrupted"
        workspace.go_on()
        assert workspace.run()
        assert workspace.trained == ["0 nnUNetTrainer", "0 nnUNetTrainer", "1 nnUNetTrainer"]

    def test_cancelling_ends_the_run_and_its_job(self, workspace: Workspace) -> None:
        with workspace.training() as first:
            assert cancel_study(workspace.out) == 1
            assert first.wait() != 0
        assert workspace.statuses()[f"{TRAINING}0"] == "interrupted"
        assert cancel_study(workspace.out) == 0

    def test_a_job_that_cannot_be_ended_from_here_is_told(self, workspace: Workspace) -> None:
        workspace.run()
        update_state(workspace.out, EVALUATION, status="running", host="elsewhere")
        with pytest.raises(UserError, match=f"{EVALUATION} could not be ended from here, it runs on elsewhere"):
            cancel_study(workspace.out)

    def test_cancelling_ends_a_job_that_waits_for_another_study(self, workspace: Workspace) -> None:
        workspace.run()
        _, jobs = read_study_folder(workspace.out)
        (training,) = (job for job in jobs if job.id == f"{TRAINING}1")
        Path(training.expected[0]).unlink()
        with locked(Path(training.lock)):
            with workspace.start() as first:
                wait_until(lambda: "another study" in read_state(workspace.out, training.id).note)
                assert is_held(job_folder(workspace.out, training.id).lock)
                assert cancel_study(workspace.out) == 1
                assert first.wait() != 0
            assert not is_held(job_folder(workspace.out, training.id).lock)


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
