"""Running one job to its end, whoever asks for it: a process of the local queue or one on a cluster's node.

python -m nnunet_godc.study.run_job STUDY_FOLDER JOB_ID
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from nnunet_godc.commands import find_command
from nnunet_godc.errors import UserError
from nnunet_godc.study.folder import JobFolder, is_done, job_folder, read_job, read_state, update_state
from nnunet_godc.study.job_lock import is_held, job_lock
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.provenance import Record

WITH_PROBLEMS = 3  # exit status of an evaluation whose report is written, though cases could not be measured
SECONDS_TO_END = 20.0  # that a command has after SIGTERM, before it is killed
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_TIME_IS_UP = signal.SIGUSR2  # submitit's; who called `run_job` deals with it


class _Stopped(BaseException):
    """Somebody asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_job(folder: Path, job_id: str) -> int:
    """Runs the job unless it is done, and returns its exit status: 0 once it is done.

    A command that was stopped before goes on from its checkpoint. SIGTERM and SIGINT end the command with all its
    processes and leave the state `interrupted` (exit status 128 plus the signal). While another process runs the same
    job, or one of another study that writes to the same place, this one waits for it.

    Raises:
        UserError: the study has no such job.
    """
    job = read_job(folder, job_id)
    files = job_folder(folder, job_id)
    try:
        if is_held(files.lock):
            print(
                f"{job_id} is run by process {read_state(folder, job_id).pid} already, which is waited for", flush=True
            )
        with _signals_raise(), job_lock(files.lock) as own, contextlib.ExitStack() as held:
            shared = _lock_place(folder, job, held)
            if is_done(folder, job):
                if read_state(folder, job_id).status != "done":
                    update_state(folder, job_id, status="done", note="was there before this study ran it")
                return 0
            return _attempt(folder, job, files, [own, *shared])
    except _Stopped as stopped:
        return 128 + stopped.number


def _lock_place(folder: Path, job: Job, held: contextlib.ExitStack) -> list[int]:
    """Locks the place that the job writes to, where other studies may write, too; returns the lock's descriptor."""
    if not job.lock or is_done(folder, job):
        return []
    path = Path(job.lock)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(BlockingIOError):
            return [held.enter_context(job_lock(path, wait=False))]
        note = f"another study writes to {path.parent}, and is waited for"
        update_state(folder, job.id, pid=os.getpid(), group=None, host=socket.gethostname(), note=note)
        print(f"{job.id}: {note}", flush=True)
        return [held.enter_context(job_lock(path))]
    except OSError as error:
        # Mostly a place where nothing can be written, which the command meets, too, and tells.
        print(f"{job.id}: {path} cannot be locked ({error.strerror}); no other study may write there now", flush=True)
        return []
    except _Stopped:
        update_state(folder, job.id, note="")
        raise


def _attempt(folder: Path, job: Job, files: JobFolder, locks: list[int]) -> int:
    attempts = read_state(folder, job.id).attempts + 1
    beginning = time.time()
    update_state(
        folder,
        job.id,
        **{"status": "running", "pid": os.getpid(), "group": None, "host": socket.gethostname(), "note": ""},
        **{"start": beginning, "end": None, "return_code": None, "attempts": attempts},
    )
    try:
        command = command_to_run(job)
        record = Record.begin(job, command, files.provenance)
    except (UserError, OSError) as error:
        with files.log.open("a", encoding="utf-8") as log:
            log.write(f"=== attempt {attempts}, {time.strftime('%Y-%m-%d %H:%M:%S')}: {error}\n")
        update_state(folder, job.id, status="failed", end=time.time(), note=str(error))
        return 1
    process: subprocess.Popen[bytes] | None = None
    try:
        with files.log.open("a", encoding="utf-8") as log:
            log.write(f"=== attempt {attempts}, {time.strftime('%Y-%m-%d %H:%M:%S')}: {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                env={**os.environ, **job.environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that whatever it starts ends with it
                pass_fds=locks,  # held as long as one of them lives, should this process be killed
            )
        update_state(folder, job.id, group=process.pid)
        code = process.wait()
    except BaseException as error:
        code = -signal.SIGTERM if process is None else _end(process)
        number = error.number if isinstance(error, _Stopped) else signal.SIGTERM
        record.finish(code)
        update_state(folder, job.id, status="interrupted", end=time.time(), return_code=code, note=_ended_by(number))
        raise
    record.finish(code)
    return _conclude(folder, job, code)


def _conclude(folder: Path, job: Job, code: int) -> int:
    """Writes what has become of a command that ended by itself, and returns the job's exit status."""
    missing = [path for path in job.expected if not Path(path).exists()]
    if -code in (*_STOPPING, _TIME_IS_UP):
        # As when a cluster signals every process of a job, this one last.
        update_state(folder, job.id, status="interrupted", end=time.time(), return_code=code, note=_ended_by(-code))
        return 128 - code
    if (code == 0 or (job.kind == "evaluate" and code == WITH_PROBLEMS)) and not missing:
        note = f"some cases could not be measured, see {job.expected[0]}" if code else ""
        update_state(folder, job.id, status="done", end=time.time(), return_code=code, note=note)
        return 0
    if code < 0:
        note = f"{_ended_by(-code)}; the kernel does so to a process for which there is not enough memory"
        note = note if -code == signal.SIGKILL else _ended_by(-code)
    else:
        note = f"ended with exit status {code}" if code else f"ended without leaving {missing[0]}"
    update_state(folder, job.id, status="failed", end=time.time(), return_code=code, note=note)
    return 128 - code if code < 0 else code or 1


def command_to_run(job: Job) -> list[str]:
    """The command with its program's path, and with what makes it go on from an earlier attempt.

    A checkpoint that is cut off, as nnU-Net leaves it when it is killed while writing, is renamed to `.pth.broken`:
    nnU-Net would load it and fail.

    Raises:
        UserError: the program is not installed.
    """
    program, *arguments = job.command
    command = [sys.executable if program == "python" else find_command(program), *arguments]
    for resume in job.resume:
        file = Path(resume.file)
        if not file.exists():
            continue
        if file.suffix == ".pth" and not zipfile.is_zipfile(file):
            file.replace(file.with_name(f"{file.name}.broken"))
            continue
        return [*command, *resume.arguments]
    return command


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends the command and everything that it started; returns its exit status."""
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # its worker processes too, which may have outlived it
        _signal_group(process.pid, signal.SIGKILL)
    return process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _ended_by(number: int) -> str:
    return f"ended by {signal.Signals(number).name}"


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Within, SIGTERM and SIGINT raise `_Stopped`; only a process's main thread may say so."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: list[str]) -> int:
    folder, job_id = arguments
    try:
        return run_job(Path(folder), job_id)
    except UserError as error:
        print(f"nnunet-godc: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
