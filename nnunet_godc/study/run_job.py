"""Running one job to its end, whoever asks for it: a process of the local queue or one on a cluster's node.

python -m nnunet_godc.study.run_job [--watched] STUDY_FOLDER JOB_ID
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from nnunet_godc.commands import find_command, run_command
from nnunet_godc.errors import UserError
from nnunet_godc.locks import is_held, locked
from nnunet_godc.seeded_names import without_seed
from nnunet_godc.study.folder import (
    TRAINER_CODE,
    JobFolder,
    is_made,
    job_folder,
    read_job,
    read_state,
    read_trainers,
    update_state,
    write_json,
)
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.provenance import Record
from nnunet_godc.study.trainers import Code, look_up

WITH_PROBLEMS = 3  # exit status of an evaluation whose report is written, though cases could not be measured
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_TIME_IS_UP = signal.SIGUSR2  # submitit's, whose handler in this process has the job started again
SECONDS_TO_HEAR = 5.0  # from it, where the command has heard before this process


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
            print(f"{job_id} is run by process {read_state(folder, job_id).pid} already: waiting for it", flush=True)
        with _signals_raise(), locked(files.lock) as own, contextlib.ExitStack() as held:
            shared = _lock_place(folder, job, held)
            if job.lasts and is_made(job, read_state(folder, job_id)):
                if read_state(folder, job_id).status != "done":
                    update_state(folder, job_id, status="done", note="was there before this study ran it")
                return 0
            return _attempt(folder, job, files, [own, *shared])
    except _Stopped as stopped:
        return 128 + stopped.number


def _lock_place(folder: Path, job: Job, held: contextlib.ExitStack) -> list[int]:
    """Locks the place that the job writes to, where other studies may write, too; returns the lock's descriptor."""
    if not job.lock or is_made(job, read_state(folder, job.id)):
        return []
    path = Path(job.lock)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(BlockingIOError):
            return [held.enter_context(locked(path, wait=False))]
        note = f"another study writes to {path.parent}, and is waited for"
        update_state(folder, job.id, pid=os.getpid(), group=None, host=socket.gethostname(), note=note)
        print(f"{job.id}: {note}", flush=True)
        return [held.enter_context(locked(path))]
    except OSError as error:
        # Mostly a place where nothing can be written, which the command meets, too, and reports.
        print(f"{job.id}: {path} cannot be locked ({error.strerror}); no other study may write there now", flush=True)
        return []
    except _Stopped:
        update_state(folder, job.id, note="")
        raise


def _attempt(folder: Path, job: Job, files: JobFolder, locks: list[int]) -> int:
    attempts = read_state(folder, job.id).attempts + 1
    update_state(
        folder,
        job.id,
        **{"status": "running", "pid": os.getpid(), "group": None, "host": socket.gethostname(), "note": ""},
        **{"start": time.time(), "end": None, "return_code": None, "attempts": attempts},
    )
    heading = f"=== attempt {attempts}, {time.strftime('%Y-%m-%d %H:%M:%S')}"
    try:
        command = command_to_run(job)
        trainer = _note_trainer(folder, job) if job.kind == "train" and job.trainer else None
        record = Record.begin(job, command, files.provenance, trainer)
    except (UserError, OSError) as error:
        _write_line(files.log, f"{heading}: {error}")
        update_state(folder, job.id, status="failed", end=time.time(), note=str(error))
        return 1
    _write_line(files.log, f"{heading}: {' '.join(command)}")
    try:
        code = run_command(
            command,
            log=files.log,
            environment={**os.environ, **job.environment},
            begun=lambda group: update_state(folder, job.id, group=group),
            pass_fds=locks,  # held as long as one of them lives, should this process be killed
        )
    except BaseException as error:
        number = error.number if isinstance(error, _Stopped) else signal.SIGTERM
        record.finish(-number)
        update_state(folder, job.id, status="interrupted", end=time.time(), return_code=-number, note=_ended_by(number))
        raise
    record.finish(code)
    return _conclude(folder, job, code)


def _note_trainer(folder: Path, job: Job) -> Code | None:
    """The code that a training is run with, which is written beside its results.

    Raises:
        UserError: it is not what it was when the study was run.
    """
    trainer = without_seed(job.trainer)
    expected = read_trainers(folder).get(trainer)
    if expected is None:
        return None
    if not expected.is_untouched():
        now = look_up([trainer]).code.get(trainer)
        differences = expected.differences(now) if now else ["it is gone"]
        if differences:
            raise UserError(
                f"{trainer} has changed since `study run` ({', '.join(differences[:3])}); run the study again, which "
                f"says whether results would mix."
            )
    job.fold_folder.mkdir(parents=True, exist_ok=True)
    write_json(job.fold_folder / TRAINER_CODE, expected.to_json())
    return expected


def _conclude(folder: Path, job: Job, code: int) -> int:
    """Writes what has become of a command that ended by itself, and returns the job's exit status."""
    missing = [path for path in job.expected if not Path(path).exists()]
    if -code in (*_STOPPING, _TIME_IS_UP):
        # As when a cluster signals every process of a job, this one last.
        update_state(folder, job.id, status="interrupted", end=time.time(), return_code=code, note=_ended_by(-code))
        if -code == _TIME_IS_UP:
            time.sleep(SECONDS_TO_HEAR)
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
    command = [find_command(job.command[0]), *job.command[1:]]
    for resume in job.resume:
        file = Path(resume.file)
        if not file.exists():
            continue
        if file.suffix == ".pth" and not zipfile.is_zipfile(file):
            file.replace(file.with_name(f"{file.name}.broken"))
            continue
        return [*command, *resume.arguments]
    return command


def _write_line(log: Path, line: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


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


def _end_with_parent() -> None:
    """Ends this process, as SIGTERM does, when the other end of its standard input is gone: its queue was killed."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    *watched, folder, job_id = arguments
    if watched:
        _end_with_parent()
    try:
        return run_job(Path(folder), job_id)
    except UserError as error:
        print(f"nnunet-godc: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
