"""The local queue, with commands that are small scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.study.folder import is_done, job_folder, read_job, read_state, update_state, write_jobs
from nnunet_godc.study.jobs import Job, Resources, Resume
from nnunet_godc.study.local import LocalExecutor, last_lines, visible_gpus
from tests.study.waiting import wait_until

RUNNER = """
import sys
from pathlib import Path
from nnunet_godc.study.folder import read_job
from nnunet_godc.study.local import LocalExecutor
import signal
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell makes its background jobs ignore
folder = Path(sys.argv[1])
LocalExecutor().run(folder, [read_job(folder, name) for name in sys.argv[2:]])
"""


class Study:
    """Jobs that write what happened to a common file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[Job] = []
        self.diary = folder / "diary"

    def add(self, name: str, script: str = "", *, after: tuple[str, ...] = (), **fields: Any) -> Job:
        script = f"import os, sys, time\nopen({str(self.diary)!r}, 'a').write('{name}\\n')\n{script}"
        job = Job(id=name, kind="train", command=("python", "-c", script), depends_on=after, **fields)
        self.jobs.append(job)
        write_jobs(self.folder, [job])
        return job

    def run(self, slots: int = 1) -> None:
        LocalExecutor(slots).run(self.folder, self.jobs)

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RUNNER, str(self.folder), *(job.id for job in self.jobs)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    @property
    def ran(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []

    @property
    def statuses(self) -> dict[str, str]:
        return {job.id: read_state(self.folder, job.id).status for job in self.jobs}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_jobs_run_after_those_they_depend_on(study: Study) -> None:
    study.add("evaluate", after=("train",))
    study.add("train", after=("plan",))
    study.add("plan")
    study.run()
    assert study.ran == ["plan", "train", "evaluate"]
    assert set(study.statuses.values()) == {"done"}


def test_what_is_done_does_not_run_again(study: Study) -> None:
    study.add("plan")
    study.add("train", after=("plan",))
    study.run()
    study.add("later", after=("plan",))
    study.run()
    assert study.ran == ["plan", "train", "later"]


def test_a_failed_job_is_told_and_stops_only_what_needs_it(study: Study, capfd: pytest.CaptureFixture[str]) -> None:
    study.add("bad", "print('what went wrong'); sys.exit(3)")
    study.add("needs it", after=("bad",))
    study.add("needs that", after=("needs it",))
    study.add("other")
    study.run()
    assert study.ran == ["bad", "other"]
    assert study.statuses == {"bad": "failed", "needs it": "not run", "needs that": "not run", "other": "done"}
    shown = capfd.readouterr().out
    assert "FAILED    bad" in shown
    assert "ended with exit status 3" in shown
    assert "    | what went wrong" in shown
    assert read_state(study.folder, "needs that").note == "needs bad, which has failed"


def test_what_needs_a_failed_job_only_through_one_that_is_done_runs(study: Study) -> None:
    study.add("preprocess")
    study.add("train", after=("preprocess",))
    study.run()
    study.jobs.clear()
    study.add("preprocess", "sys.exit(1)", expected=(str(study.folder / "data"),))
    study.jobs.append(read_job(study.folder, "train"))
    study.add("evaluate", after=("train",))
    study.run()
    assert study.statuses == {"preprocess": "failed", "train": "done", "evaluate": "done"}


def test_a_failed_job_runs_again_with_what_needs_it(study: Study) -> None:
    gate = study.folder / "gate"
    study.add("bad", f"sys.exit(not os.path.exists({str(gate)!r}))")
    study.add("needs it", after=("bad",))
    study.run()
    gate.touch()
    study.run()
    assert study.ran == ["bad", "bad", "needs it"]
    assert set(study.statuses.values()) == {"done"}


def test_a_killed_training_goes_on_from_its_checkpoint(study: Study) -> None:
    checkpoint = study.folder / "checkpoint_latest.dat"
    script = f"open({str(checkpoint)!r}, 'w'); os.kill(os.getpid(), 9) if '--c' not in sys.argv else None"
    study.add("train", script, resume=(Resume(str(checkpoint), ("--c",)),))
    study.run()
    assert study.statuses == {"train": "failed"}
    study.run()
    assert study.statuses == {"train": "done"}
    attempts = json.loads(job_folder(study.folder, "train").provenance.read_text())["attempts"]
    assert [attempt["return_code"] for attempt in attempts] == [-9, 0]
    assert attempts[1]["command"][-1] == "--c"


def test_only_the_end_of_a_long_log_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("\n".join(map(str, range(1000))))
    assert last_lines(log) == [str(number) for number in range(980, 1000)]


class TestRoom:
    """How many jobs run at once."""

    # ends well if all have come, or fails after twenty seconds
    MEET = (
        "alone = lambda: len(os.listdir({0!r})) < 2; "
        "[time.sleep(0.02) for _ in range(1000) if alone()]; sys.exit(alone())"
    )

    def test_jobs_without_gpu_run_in_slots(self, study: Study, tmp_path: Path) -> None:
        meeting = tmp_path / "meeting"
        meeting.mkdir()
        for name in ("a", "b"):
            study.add(name, f"open({str(meeting / name)!r}, 'w'); " + self.MEET.format(str(meeting)))
        study.run(slots=2)
        assert study.statuses == {"a": "done", "b": "done"}

    def test_one_slot_runs_one_after_the_other(self, study: Study) -> None:
        alone = str(study.folder / "alone")
        for name in ("a", "b", "c"):
            study.add(name, f"os.mkdir({alone!r}); time.sleep(0.1); os.rmdir({alone!r})")
        study.run()
        assert set(study.statuses.values()) == {"done"}

    def test_every_gpu_has_one_job_and_no_two_share_one(
        self, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
        claims, meeting = tmp_path / "claims", tmp_path / "meeting"
        claims.mkdir()
        meeting.mkdir()
        for name in ("a", "b"):
            gpu = f"gpu = os.environ['CUDA_VISIBLE_DEVICES']; open({str(claims)!r} + '/' + gpu, 'x'); "
            meet = f"open({str(meeting / name)!r}, 'w'); " + self.MEET.format(str(meeting))
            study.add(name, gpu + meet, resources=Resources(gpus=1))
        study.run()
        assert study.statuses == {"a": "done", "b": "done"}
        assert sorted(path.name for path in claims.iterdir()) == ["2", "5"]

    def test_a_gpu_is_used_again_when_it_is_free(self, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
        for name in ("a", "b"):
            study.add(name, "sys.exit(os.environ['CUDA_VISIBLE_DEVICES'] != '3')", resources=Resources(gpus=1))
        study.run()
        assert set(study.statuses.values()) == {"done"}

    def test_one_job_may_have_several_gpus(self, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        study.add("a", "sys.exit(os.environ['CUDA_VISIBLE_DEVICES'] != '0,1')", resources=Resources(gpus=2))
        study.run()
        assert study.statuses == {"a": "done"}

    def test_gpus_that_are_not_there_are_told_before_anything_runs(self, study: Study) -> None:
        study.add("plan")
        study.add("train", resources=Resources(gpus=1))
        with pytest.raises(UserError, match=r"train needs 1 GPU\(s\) and this machine offers 0"):
            study.run()
        assert study.ran == []

    @pytest.mark.parametrize(("variable", "gpus"), [("", []), ("-1", []), ("1, GPU-ab", ["1", "GPU-ab"])])
    def test_the_variable_of_cuda_counts(self, monkeypatch: pytest.MonkeyPatch, variable: str, gpus: list[str]) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert visible_gpus() == gpus


class TestOutlivedQueue:
    """A queue that is killed leaves its jobs running; the next one leaves them what they have."""

    @pytest.fixture
    def outlived(self, study: Study, monkeypatch: pytest.MonkeyPatch) -> Study:
        """A study whose first job runs on the second of two GPUs until there is a `gate`, without its queue."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        shows = f"gpu = os.environ['CUDA_VISIBLE_DEVICES']; open({str(study.diary)!r}, 'a').write(f'on {{gpu}}\\n')\n"
        gate = str(study.folder / "gate")
        waits = f"while not os.path.exists({gate!r}): time.sleep(0.02)\n"
        study.add("first", resources=Resources(gpus=1))
        study.add("second", shows + waits, resources=Resources(gpus=1))
        study.add("third", after=("first",), resources=Resources(gpus=1))
        with study.start() as runner:
            wait_until(lambda: "on 7" in study.ran and "third" in study.ran and study.statuses["third"] == "done")
            runner.kill()
        return study

    def test_its_gpu_stays_its_own(self, outlived: Study) -> None:
        gate = outlived.folder / "gate"
        shows = f"open({str(outlived.folder)!r} + '/gpu', 'a').write(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        outlived.add("new", shows, resources=Resources(gpus=1))
        outlived.add("newer", shows, resources=Resources(gpus=1))
        outlived.add("two", shows, resources=Resources(gpus=2))
        with outlived.start() as runner:
            wait_until(lambda: outlived.statuses["newer"] == "done")
            assert outlived.statuses == {
                **{"first": "done", "second": "running", "third": "done"},
                **{"new": "done", "newer": "done", "two": "pending"},
            }
            assert (outlived.folder / "gpu").read_text() == "44"
            gate.touch()
            assert runner.wait() == 0
        assert sorted((outlived.folder / "gpu").read_text().removeprefix("44").split(",")) == ["4", "7"]
        assert outlived.ran.count("second") == 1

    def test_its_failure_is_told_and_it_is_not_tried_again_at_once(self, outlived: Study) -> None:
        outlived.add("needs it", after=("second",))
        with outlived.start() as runner:
            assert runner.stdout is not None
            assert runner.stdout.readline() == "goes on   second on GPU 7, which an earlier run began\n"
            group = read_state(outlived.folder, "second").group
            assert group is not None
            os.killpg(group, signal.SIGKILL)
            shown, _ = runner.communicate()
        assert "FAILED    second" in shown
        assert outlived.statuses["needs it"] == "not run"
        assert outlived.ran.count("second") == 1

    def test_one_whose_end_nobody_told_runs_again(self, outlived: Study) -> None:
        outlived.add("new", resources=Resources(gpus=1))
        with outlived.start() as runner:
            wait_until(lambda: outlived.statuses["new"] == "done")
            state = read_state(outlived.folder, "second")
            assert state.pid is not None
            assert state.group is not None
            os.kill(state.pid, signal.SIGKILL)
            (outlived.folder / "gate").touch()
            assert runner.wait() == 0
        assert outlived.ran.count("second") == 2
        assert outlived.statuses["second"] == "done"

    def test_the_end_of_the_next_queue_ends_it_too(self, outlived: Study) -> None:
        outlived.add("new", resources=Resources(gpus=1))
        with outlived.start() as runner:
            wait_until(lambda: outlived.statuses["new"] == "done")
            runner.send_signal(signal.SIGTERM)
            assert runner.wait() != 0
        wait_until(lambda: outlived.statuses["second"] == "interrupted")


class TestInterruption:
    """Ctrl-C and SIGTERM end the jobs and leave a state that the next run goes on from."""

    @pytest.fixture
    def gate(self, study: Study) -> Path:
        """A study whose second job runs until this file is there."""
        gate = study.folder / "gate"
        study.add("first")
        wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)"
        study.add("second", wait, after=("first",))
        study.add("third", after=("second",))
        return gate

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_the_running_job(self, study: Study, gate: Path, number: signal.Signals) -> None:
        with study.start() as runner:
            wait_until(lambda: study.ran == ["first", "second"])
            group = read_state(study.folder, "second").group
            runner.send_signal(number)
            assert runner.wait() != 0
        assert study.statuses == {"first": "done", "second": "interrupted", "third": "pending"}
        assert group is not None
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
        gate.touch()
        study.run()
        assert study.ran == ["first", "second", "second", "third"]

    def test_a_killed_queue_leaves_its_job_running_and_the_next_one_waits_for_it(
        self, study: Study, gate: Path
    ) -> None:
        with study.start() as runner:
            wait_until(lambda: study.ran == ["first", "second"])
            runner.kill()
        LocalExecutor().refresh(study.folder, study.jobs)
        assert study.statuses["second"] == "running"
        with study.start() as runner:
            time.sleep(0.5)
            gate.touch()
            assert runner.wait() == 0
        assert study.ran == ["first", "second", "third"]

    def test_cancelling_ends_a_job_that_nobody_watches_any_more(self, study: Study, gate: Path) -> None:
        with study.start() as runner:
            wait_until(lambda: study.ran == ["first", "second"])
            watcher = read_state(study.folder, "second").pid
            runner.kill()
        assert watcher is not None
        os.kill(watcher, signal.SIGKILL)
        LocalExecutor().cancel(study.folder, study.jobs)
        state = read_state(study.folder, "second")
        assert (state.status, state.note) == ("interrupted", "its process is gone")

    def test_nothing_runs_and_nothing_is_cancelled(self, study: Study) -> None:
        job = study.add("plan")
        study.run()
        LocalExecutor().cancel(study.folder, study.jobs)
        assert is_done(study.folder, job)

    def test_a_job_of_another_machine_is_left_as_it_is(self, study: Study) -> None:
        study.add("plan")
        update_state(study.folder, "plan", status="running", host="elsewhere", group=1)
        LocalExecutor().refresh(study.folder, study.jobs)
        assert study.statuses == {"plan": "running"}
