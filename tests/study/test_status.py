"""The table of a study, and what it says of half-done ones."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from nnunet_godc.cli import main
from nnunet_godc.study.folder import update_state
from nnunet_godc.study.status import job_statuses, render

ReadOnly = Callable[..., subprocess.CompletedProcess[str]]
TRAINING = "train.Dataset901_Tiny.nnUNetTrainer.nnUNetPlans.3d_fullres.fold"


@pytest.fixture
def study(study_folder: Callable[..., Path]) -> Path:
    """The folder of a study that was written down and has not begun."""
    return study_folder(trainers=["nnUNetTrainer"], folds=[0, 1], resources={"device": "cpu"})


@pytest.fixture
def fold(nnunet: Path) -> Path:
    """nnU-Net's folder of a training that has finished one epoch of four."""
    fold = nnunet / "results/Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0"
    (fold / "validation").mkdir(parents=True)
    (fold / "debug.json").write_text(json.dumps({"num_epochs": "4"}))
    (fold / "training_log_1.txt").write_text(
        "2026-01-01 00:00:00.0: Epoch 0\n2026-01-01 00:00:00.0: train_loss -0.25\n"
        "2026-01-01 00:00:00.0: Pseudo dice [np.float32(0.5)]\n2026-01-01 00:00:00.0: Epoch time: 30.0 s\n"
    )
    return fold


def shown(folder: Path) -> str:
    screen = io.StringIO()
    Console(width=200, file=screen).print(render(folder, job_statuses(folder)))
    return screen.getvalue()


def test_a_running_training_shows_how_far_it_is(study: Path, fold: Path) -> None:
    update_state(study, f"{TRAINING}0", status="running", host="elsewhere", start=0.0)
    (row,) = (line.split() for line in shown(study).splitlines() if line.startswith(f"{TRAINING}0"))
    assert row[1:8] == ["running", "1/4", "-0.2500", "0.5000", "1", "min", "30"]


def test_a_training_that_is_validating_says_so(study: Path, fold: Path) -> None:
    with (fold / "training_log_1.txt").open("a") as log:
        for epoch in (1, 2, 3):
            log.write(f"Epoch {epoch}\nEpoch time: 30.0 s\n")
        log.write("predicting case_1\npredicting case_2\n")
    update_state(study, f"{TRAINING}0", status="running", host="elsewhere", start=0.0)
    assert "4/4" in shown(study)
    assert "validating, case 2" in shown(study)


def test_failures_are_told_below_the_table(study: Path) -> None:
    update_state(study, f"{TRAINING}1", status="failed", note="ended with exit status 1")
    assert shown(study).splitlines()[-2:] == ["4 pending, 1 failed", f"{TRAINING}1: ended with exit status 1"]


def test_what_runs_is_shown_where_not_everything_fits(study: Path) -> None:
    update_state(study, f"{TRAINING}1", status="running", host="elsewhere", start=0.0)
    screen = io.StringIO()
    Console(width=200, file=screen).print(render(study, job_statuses(study), rows=1))
    lines = screen.getvalue().splitlines()
    assert [line.split()[0] for line in lines[2:]] == [f"{TRAINING}1", "4"]
    assert lines[-1] == "4 pending, 1 running; 4 jobs are not shown, which --once shows"


def test_a_job_whose_process_is_gone_is_interrupted(study: Path) -> None:
    update_state(study, f"{TRAINING}0", status="running", host=socket.gethostname(), group=1)
    states = {entry.job.id: entry.state.status for entry in job_statuses(study)}
    assert states[f"{TRAINING}0"] == "interrupted"


def test_what_was_finished_elsewhere_counts_as_done(study: Path, fold: Path) -> None:
    (fold / "checkpoint_final.pth").touch()
    (fold / "validation" / "summary.json").touch()
    for status in ("failed", "not run", "interrupted"):
        update_state(study, f"{TRAINING}0", status=status, note="ended with exit status 1")
        states = {entry.job.id: entry.state.status for entry in job_statuses(study)}
        assert states[f"{TRAINING}0"] == "done"


def test_a_page_shows_table_and_curves_and_renews_itself(
    study: Path, fold: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    update_state(study, f"{TRAINING}0", status="running", host="elsewhere", start=0.0)

    def page() -> str:
        return (study / "status" / "index.html").read_text()

    def end_the_study(seconds: float) -> None:
        assert f'<meta http-equiv="refresh" content="{seconds:g}">' in page()
        for number in (0, 1):
            update_state(study, f"{TRAINING}{number}", status="failed", note="a <b>reason</b>")
        for job in job_statuses(study):
            if job.state.status == "pending":
                update_state(study, job.job.id, status="not run")

    monkeypatch.setattr("nnunet_godc.study.status.time.sleep", end_the_study)
    assert main(["study", "status", str(study), "--html"]) == 0
    assert f"open {study}/status/index.html" in capsys.readouterr().out
    assert 'http-equiv="refresh"' not in page()  # nothing runs any more
    assert "<td>failed</td>" in page()
    assert "a &lt;b&gt;reason" in page()
    (data,) = re.findall('id="data">(.*?)</script>', page())
    (chart,) = json.loads(data)["charts"]
    assert [panel["title"] for panel in chart["panels"]] == ["training loss", "pseudo Dice (%)", "seconds per epoch"]
    assert chart["panels"][1]["series"][0]["y"] == [50]


def test_what_was_deleted_is_to_be_made_again(study: Path) -> None:
    update_state(study, f"{TRAINING}0", status="done")
    assert f"{TRAINING}0: is to be made again" in shown(study)


def test_reasons_to_wait_are_told_once(study: Path, pretend: Callable[[str, str], None]) -> None:
    pretend("squeue", "echo '7_0|PENDING|Priority'; echo '7_1|PENDING|Priority'; echo '8|PENDING|Dependency'")
    for number in (0, 1):
        update_state(study, f"{TRAINING}{number}", status="queued", scheduler_id=f"7_{number}")
    update_state(study, "evaluate.Dataset901_Tiny", status="queued", scheduler_id="8")
    assert shown(study).splitlines()[-3:] == [
        "2 pending, 3 queued",
        "2 queued: Slurm: Priority",
        "1 queued: Slurm: Dependency",
    ]


def test_who_may_only_read_sees_it_too(study: Path, pretend: Callable[[str, str], None], read_only: ReadOnly) -> None:
    pretend("squeue", "echo '7|FAILED|None'")
    update_state(study, f"{TRAINING}0", status="running", host=socket.gethostname(), group=1)
    update_state(study, f"{TRAINING}1", status="running", scheduler_id="7")
    (study / "jobs" / f"{TRAINING}0" / "lock").touch()
    command = ("-c", "import sys; from nnunet_godc.cli import main; sys.exit(main(sys.argv[1:]))", "study")
    answer = read_only(study, *command, "status", str(study))
    assert answer.stderr == ""
    assert "2 running" in answer.stdout
    answer = read_only(study, *command, "cancel", str(study))
    assert "you may not write to" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_what_was_there_before_counts_as_done(study: Path, fold: Path) -> None:
    (fold / "checkpoint_final.pth").touch()
    (fold / "validation" / "summary.json").touch()
    states = {entry.job.id: entry.state.status for entry in job_statuses(study)}
    assert states[f"{TRAINING}0"] == "done"


def test_the_command_prints_once_where_nobody_looks(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "status", str(study)]) == 0
    assert "5 pending" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["status", "collect", "cancel"])
def test_a_folder_that_holds_no_study_is_refused(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", what, str(tmp_path)]) == 1
    assert "holds no study" in capsys.readouterr().err
