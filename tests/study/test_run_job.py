"""One job from its command to its state, whoever runs it."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.locks import locked
from nnunet_godc.study.folder import current_states, job_folder, read_state, update_state, write_jobs
from nnunet_godc.study.jobs import Job, Resume
from nnunet_godc.study.run_job import run_job
from tests.study.waiting import wait_until

ReadOnly = Callable[..., subprocess.CompletedProcess[str]]


def python(script: str) -> tuple[str, ...]:
    return ("python", "-c", script)


def write_job(folder: Path, **fields: object) -> Job:
    job = Job(**{"id": "job", "kind": "train", "command": python("print('hello')"), **fields})
    write_jobs(folder, [job])
    return job


def start(folder: Path, job_id: str = "job") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "nnunet_godc.study.run_job", str(folder), job_id])


def start_when(condition: Callable[[], object], folder: Path) -> subprocess.Popen[bytes]:
    wait_until(condition)
    return start(folder)


def test_a_job_leaves_its_state_and_everything_it_printed(tmp_path: Path) -> None:
    job = write_job(tmp_path, command=python("import sys; print('out'); print('err', file=sys.stderr)"))
    assert run_job(tmp_path, "job") == 0
    state = read_state(tmp_path, "job")
    assert (state.status, state.return_code, state.attempts) == ("done", 0, 1)
    assert state.start is not None
    assert state.end is not None
    assert state.start <= state.end
    assert job_folder(tmp_path, "job").log.read_text().splitlines()[1:] == ["out", "err"]
    assert current_states(tmp_path, [job])["job"].status == "done"


def test_a_job_that_is_done_does_not_run_again(tmp_path: Path) -> None:
    counter = tmp_path / "count"
    write_job(tmp_path, command=python(f"open({str(counter)!r}, 'a').write('x')"))
    assert run_job(tmp_path, "job") == run_job(tmp_path, "job") == 0
    assert counter.read_text() == "x"


def test_a_job_runs_again_when_what_it_made_is_gone(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_job(tmp_path, command=python(f"open({str(made)!r}, 'a').write('x')"), expected=(str(made),))
    assert run_job(tmp_path, "job") == 0
    made.unlink()
    assert run_job(tmp_path, "job") == 0
    assert made.exists()
    assert read_state(tmp_path, "job").attempts == 2


@pytest.mark.parametrize(("skip", "status"), [(True, "done"), (False, "failed")])
def test_only_where_its_output_suffices_a_job_counts_as_done_without_having_run(
    tmp_path: Path, skip: bool, status: str
) -> None:
    (tmp_path / "plans").touch()
    write_job(tmp_path, command=python("exit(3)"), expected=(str(tmp_path / "plans"),), skip_if_output_exists=skip)
    assert run_job(tmp_path, "job") == (0 if skip else 3)
    assert read_state(tmp_path, "job").status == status


def test_a_command_that_ends_well_and_leaves_nothing_has_failed(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    write_job(tmp_path, expected=(missing,))
    assert run_job(tmp_path, "job") == 1
    assert read_state(tmp_path, "job").note == f"ended without leaving {missing}"


def test_a_program_that_is_not_installed_is_told_in_state_and_log(tmp_path: Path) -> None:
    write_job(tmp_path, command=("nnUNetv2_no_such_command",))
    assert run_job(tmp_path, "job") == 1
    assert "nnUNetv2_no_such_command" in read_state(tmp_path, "job").note
    assert "nnUNetv2_no_such_command" in job_folder(tmp_path, "job").log.read_text()


def test_an_error_before_the_command_begins_leaves_the_log_of_earlier_attempts(tmp_path: Path) -> None:
    write_job(tmp_path, command=python("print('first'); exit(1)"))
    run_job(tmp_path, "job")
    write_job(tmp_path, command=("nnUNetv2_no_such_command",))
    run_job(tmp_path, "job")
    log = job_folder(tmp_path, "job").log.read_text()
    assert "\nfirst\n=== attempt 2, " in log
    assert "nnUNetv2_no_such_command" in log


def test_variables_of_the_job_reach_its_command(tmp_path: Path) -> None:
    write_job(tmp_path, command=python("import os; print(os.environ['COLOUR'])"), environment={"COLOUR": "green"})
    run_job(tmp_path, "job")
    assert job_folder(tmp_path, "job").log.read_text().endswith("\ngreen\n")


def test_a_job_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no job lost"):
        run_job(tmp_path, "lost")


class TestResuming:
    """`--c` where there is a whole checkpoint, and only there."""

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        return tmp_path / "checkpoint_latest.pth"

    @pytest.fixture
    def arguments(self, tmp_path: Path, checkpoint: Path) -> Callable[[], list[str]]:
        """Runs a job that prints its arguments, and returns them."""
        final = tmp_path / "checkpoint_final.pth"
        write_job(
            tmp_path,
            command=(*python("import sys; print(sys.argv[1:]); exit(1)"), "0"),
            resume=(Resume(str(final), ("--val",)), Resume(str(checkpoint), ("--c",))),
        )

        def run() -> list[str]:
            run_job(tmp_path, "job")
            shown: list[str] = json.loads(
                job_folder(tmp_path, "job").log.read_text().splitlines()[-1].replace("'", '"')
            )
            return shown

        return run

    @staticmethod
    def write_checkpoint(path: Path) -> None:
        # PyTorch's files are zip archives, whose directory stands at the end
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", bytes(1000))

    def test_there_is_nothing_to_go_on_from(self, arguments: Callable[[], list[str]]) -> None:
        assert arguments() == ["0"]

    def test_a_training_goes_on_from_its_checkpoint(self, arguments: Callable[[], list[str]], checkpoint: Path) -> None:
        self.write_checkpoint(checkpoint)
        assert arguments() == ["0", "--c"]

    def test_a_finished_training_is_only_validated(self, arguments: Callable[[], list[str]], checkpoint: Path) -> None:
        self.write_checkpoint(checkpoint)
        self.write_checkpoint(checkpoint.with_name("checkpoint_final.pth"))
        assert arguments() == ["0", "--val"]

    def test_a_checkpoint_that_breaks_off_is_put_aside(
        self, arguments: Callable[[], list[str]], checkpoint: Path
    ) -> None:
        self.write_checkpoint(checkpoint)
        checkpoint.write_bytes(checkpoint.read_bytes()[:-30])
        assert arguments() == ["0"]
        assert not checkpoint.exists()
        assert checkpoint.with_name("checkpoint_latest.pth.broken").exists()


class TestEndings:
    """What ends a job from outside leaves no process behind and a state that the next run goes on from."""

    @pytest.fixture
    def grandchild(self, tmp_path: Path) -> Path:
        """A job whose command starts a process that would live on; the file that holds that process's id."""
        pid = tmp_path / "pid"
        child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid()) + '\\n'); time.sleep(60)"
        parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        write_job(tmp_path, command=python(parent))
        return pid

    @staticmethod
    def alive(pid: int) -> bool:
        try:
            return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return False

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_the_whole_group(self, tmp_path: Path, grandchild: Path, number: signal.Signals) -> None:
        with start(tmp_path) as process:
            wait_until(lambda: grandchild.exists() and grandchild.read_text().endswith("\n"))
            process.send_signal(number)
            assert process.wait() == 128 + number
        state = read_state(tmp_path, "job")
        assert (state.status, state.note) == ("interrupted", f"ended by {number.name}")
        wait_until(lambda: not self.alive(int(grandchild.read_text())))

    def test_a_command_that_was_killed_has_failed(self, tmp_path: Path, grandchild: Path) -> None:
        with start(tmp_path) as process:
            wait_until(lambda: grandchild.exists() and grandchild.read_text().endswith("\n"))
            group = read_state(tmp_path, "job").group
            assert group is not None
            os.killpg(group, signal.SIGKILL)
            assert process.wait() == 128 + signal.SIGKILL
        state = read_state(tmp_path, "job")
        assert (state.status, state.return_code) == ("failed", -signal.SIGKILL)
        assert "memory" in state.note

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
    def test_a_command_that_a_cluster_ended_itself_goes_on_later(
        self, tmp_path: Path, grandchild: Path, number: signal.Signals
    ) -> None:
        with start(tmp_path) as process:
            wait_until(lambda: grandchild.exists() and grandchild.read_text().endswith("\n"))
            group = read_state(tmp_path, "job").group
            assert group is not None
            os.killpg(group, number)
            assert process.wait() == 128 + number
        assert read_state(tmp_path, "job").status == "interrupted"


class TestWaiting:
    """What two processes would make at once is made once."""

    @pytest.fixture
    def gated(self, tmp_path: Path) -> dict[str, object]:
        """A job that appends to `count`, waits for `gate` and leaves `made`."""
        script = (
            f"import pathlib, time\nopen({str(tmp_path / 'count')!r}, 'a').write('x')\n"
            f"while not pathlib.Path({str(tmp_path / 'gate')!r}).exists(): time.sleep(0.02)\n"
            f"pathlib.Path({str(tmp_path / 'made')!r}).touch()"
        )
        return {"command": python(script), "expected": (str(tmp_path / "made"),), "skip_if_output_exists": True}

    @staticmethod
    def waits_until_it_is_made(folder: Path, gate: Path) -> None:
        with start(folder) as second:
            time.sleep(0.5)
            assert second.poll() is None
            gate.touch()
            assert second.wait() == 0
        assert gate.with_name("count").read_text() == "x"
        assert read_state(folder, "job").status == "done"

    def test_a_second_process_waits_for_a_command_whose_watcher_was_killed(
        self, tmp_path: Path, gated: dict[str, object]
    ) -> None:
        write_job(tmp_path, **gated)
        with start(tmp_path) as first:
            wait_until((tmp_path / "count").exists)
            first.kill()
        self.waits_until_it_is_made(tmp_path, tmp_path / "gate")

    @pytest.mark.parametrize("killed", [False, True])
    def test_another_study_waits_for_what_writes_to_the_same_place(
        self, tmp_path: Path, gated: dict[str, object], killed: bool
    ) -> None:
        for name in ("one", "other"):
            write_job(tmp_path / name, lock=str(tmp_path / "model" / "lock"), **gated)
        with start(tmp_path / "one") as first:
            wait_until((tmp_path / "count").exists)
            if killed:
                first.kill()
            self.waits_until_it_is_made(tmp_path / "other", tmp_path / "gate")
        assert killed or read_state(tmp_path / "one", "job").status == "done"
        assert read_state(tmp_path / "other", "job").attempts == 0

    def test_who_waits_for_another_study_says_so_and_can_be_stopped(
        self, tmp_path: Path, gated: dict[str, object]
    ) -> None:
        for name in ("one", "other"):
            write_job(tmp_path / name, lock=str(tmp_path / "model" / "lock"), **gated)
        with start(tmp_path / "one"), start_when((tmp_path / "count").exists, tmp_path / "other") as second:
            wait_until(lambda: str(tmp_path / "model") in read_state(tmp_path / "other", "job").note)
            second.terminate()
            assert second.wait() == 128 + signal.SIGTERM
            (tmp_path / "gate").touch()
        state = read_state(tmp_path / "other", "job")
        assert (state.status, state.note) == ("pending", "")

    def test_a_place_where_nothing_can_be_written_is_for_the_command_to_tell(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        write_job(tmp_path, lock=str(tmp_path / "file" / "lock"))
        assert run_job(tmp_path, "job") == 0
        assert f"{tmp_path}/file/lock cannot be locked" in capsys.readouterr().out

    def test_another_users_lock_that_can_only_be_read_is_waited_for(self, tmp_path: Path, read_only: ReadOnly) -> None:
        lock = tmp_path / "model" / "lock"
        write_job(tmp_path / "study", lock=str(lock))
        lock.parent.mkdir()
        with locked(lock), pytest.raises(subprocess.TimeoutExpired):
            read_only(lock.parent, "-m", "nnunet_godc.study.run_job", str(tmp_path / "study"), "job", timeout=3)
        state = read_state(tmp_path / "study", "job")
        assert "another study" in state.note
        assert state.attempts == 0
        answer = read_only(lock.parent, "-m", "nnunet_godc.study.run_job", str(tmp_path / "study"), "job")
        assert answer.returncode == 0


class TestProvenance:
    """provenance.json tells what made a result."""

    def test_it_tells_versions_command_plans_and_time(self, tmp_path: Path) -> None:
        plans = tmp_path / "plans.json"
        plans.write_text("{}")
        (tmp_path / "dataset_fingerprint.json").write_text("[]")
        write_job(tmp_path, plans_file=str(plans), seed=7)
        run_job(tmp_path, "job")
        record = json.loads(job_folder(tmp_path, "job").provenance.read_text())
        assert record["seed"] == 7
        assert record["plans_sha256"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        assert record["dataset_fingerprint_sha256"] != record["plans_sha256"]
        (attempt,) = record["attempts"]
        assert attempt["command"] == [sys.executable, "-c", "print('hello')"]
        assert attempt["seconds"] > 0
        assert attempt["return_code"] == 0
        assert attempt["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
        assert attempt["versions"]["nnunetv2"]

    def test_every_attempt_has_its_entry(self, tmp_path: Path) -> None:
        write_job(tmp_path, command=python("exit(1)"))
        run_job(tmp_path, "job")
        write_job(tmp_path)
        run_job(tmp_path, "job")
        attempts = json.loads(job_folder(tmp_path, "job").provenance.read_text())["attempts"]
        assert [attempt["return_code"] for attempt in attempts] == [1, 0]


def test_states_change_field_by_field(tmp_path: Path) -> None:
    write_job(tmp_path)
    update_state(tmp_path, "job", status="queued", scheduler_id="17")
    assert update_state(tmp_path, "job", status="running").scheduler_id == "17"
