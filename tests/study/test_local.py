"""The local queue, with commands that are small scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_godc.study.folder import job_folder, read_job, read_state, update_state, write_jobs
from nnunet_godc.study.jobs import Job, Resources, Resume
from nnunet_godc.study.local import LocalExecutor, visible_gpus
from tests.study.waiting import wait_until

RUNNER = """
import sys
from pathlib import Path
from nnunet_godc.study.folder import read_job
from nnunet_godc.study.local import LocalExecutor
import signal
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell makes its background jobs ignore
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
folder = Path(sys.argv[1])
LocalExecutor().queue(folder, [read_job(folder, name) for name in sys.argv[2:]]).work()
"""


class Study:
    """Jobs that write what happened to a common file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[Job] = []
        self.diary = folder / "diary"
        (folder / "study.json").touch()

    def add(self, name: str, script: str = "", *, after: tuple[str, ...] = (), **fields: Any) -> Job:
        script = f"import os, sys, time\nopen({str(self.diary)!r}, 'a').write('{name}\\n')\n{script}"
        job = Job(id=name, kind="train", command=("python", "-c", script), depends_on=after, **fields)
        self.jobs.append(job)
        write_jobs(self.folder, [job])
        return job

    def run(self, slots: int = 1) -> None:
        LocalExecutor(slots).queue(self.folder, self.jobs).work()

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

    @pytest.mark.parametrize(
        ("variable", "gpus"),
        [
            ("", {}),
            ("-1", {}),
            ("1, GPU-ab", {"1": "NVIDIA H100 PCIe", "GPU-ab": "NVIDIA A40"}),
            ("7", {"7": "unknown"}),
            (None, {"0": "NVIDIA A40", "1": "NVIDIA H100 PCIe"}),
        ],
    )
    def test_the_variable_of_cuda_counts(
        self,
        monkeypatch: pytest.MonkeyPatch,
        pretend: Callable[[str, str], None],
        variable: str | None,
        gpus: dict[str, str],
    ) -> None:
        pretend(
            "nvidia-smi",
            "echo 'GPU 0: NVIDIA A40 (UUID: GPU-ab12-3)'; echo 'GPU 1: NVIDIA H100 PCIe (UUID: GPU-cd34-5)'",
        )
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        if variable is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert visible_gpus() == gpus

    def test_without_a_driver_there_are_none(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert visible_gpus() == {}


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

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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

    def test_a_killed_queue_takes_its_jobs_with_it(self, study: Study, gate: Path) -> None:
        with study.start() as runner:
            wait_until(lambda: study.ran == ["first", "second"])
            runner.kill()
        wait_until(lambda: study.statuses["second"] == "interrupted")
        gate.touch()
        study.run()
        assert study.ran == ["first", "second", "second", "third"]

    def test_what_its_watcher_has_left_behind_is_waited_for(self, study: Study, gate: Path) -> None:
        with study.start() as runner:
            wait_until(lambda: study.ran == ["first", "second"])
            watcher = read_state(study.folder, "second").pid
            assert watcher is not None
            os.kill(watcher, signal.SIGKILL)
            runner.kill()
        LocalExecutor().refresh(study.folder, study.jobs)
        assert study.statuses["second"] == "running"
        with study.start() as runner:
            time.sleep(0.5)
            assert study.ran == ["first", "second"]
            gate.touch()
            assert runner.wait() == 0
        assert study.ran == ["first", "second", "second", "third"]

    def test_cancelling_ends_a_job_that_nobody_watches_any_more(self, study: Study, gate: Path) -> None:
        with study.start() as runner:
            wait_until(lambda: study.ran == ["first", "second"])
            watcher = read_state(study.folder, "second").pid
            assert watcher is not None
            os.kill(watcher, signal.SIGKILL)
            runner.kill()
        LocalExecutor().cancel(study.folder, study.jobs)
        state = read_state(study.folder, "second")
        assert (state.status, state.note) == ("interrupted", "its process is gone")

    def test_nothing_runs_and_nothing_is_cancelled(self, study: Study) -> None:
        study.add("plan")
        study.run()
        LocalExecutor().cancel(study.folder, study.jobs)
        assert study.statuses == {"plan": "done"}

    def test_a_job_of_another_machine_is_left_as_it_is(self, study: Study) -> None:
        study.add("plan")
        update_state(study.folder, "plan", status="running", host="elsewhere", group=1)
        LocalExecutor().refresh(study.folder, study.jobs)
        assert study.statuses == {"plan": "running"}
