"""Running, continuing and cancelling a study."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nnunet_godc.errors import UserError
from nnunet_godc.study.changes import jobs_before, take_over_changes
from nnunet_godc.study.definition import Study
from nnunet_godc.study.executors import cancel_jobs, is_at_work, make_executor, refresh_jobs
from nnunet_godc.study.folder import is_done, read_job, read_state, write_jobs, write_json
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.planning import jobs_of

SECONDS_TO_STOP = 60.0


def run_study(study: Study, folder: Path) -> bool:
    """Runs whatever of a study is not done yet, and says whether everything is done now (or submitted).

    Args:
        study: what to train, on what.
        folder: for the study; new, empty, or of an earlier run of it.

    Raises:
        UserError: the folder holds something else, another process runs this study, its results would mix what was made
            in two ways, jobs that run or wait would not be as the study says, or nothing can run here.
    """
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    asked = study.definition.resources
    executor = make_executor(asked.executor, slots=asked.slots, slurm=asked.slurm.model_dump(exclude_none=True))
    with study_lock(folder):
        jobs, before = jobs_of(study, folder), jobs_before(folder)
        refresh_jobs(folder, before)
        _check_executor(folder, before, asked.executor)
        take_over_changes(folder, before, jobs)
        write_json(folder / "study.json", study.model_dump(by_alias=True))
        write_jobs(folder, jobs)
        missing = [job for job in jobs if not is_done(folder, job)]
        kinds = Counter(job.kind for job in missing)
        print(f"{study.name}: {len(jobs)} jobs, {len(jobs) - len(missing)} done", end="")
        print(
            f", to do: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}" if missing else "", flush=True
        )
        executor.run(folder, jobs)
    return all(is_done(folder, job) or is_at_work(folder, job) for job in missing)


def cancel_study(folder: Path) -> int:
    """Ends the run of a study and whatever jobs of it go on, and returns how many jobs it has ended.

    Raises:
        UserError: this is no study, it runs on another machine, or something does not end.
    """
    _, jobs = read_study_folder(folder)
    _check_may_write(folder)
    refresh_jobs(folder, jobs)
    at_work = [job for job in jobs if is_at_work(folder, job)]
    _stop_runner(folder)
    cancel_jobs(folder, jobs)
    left = [job for job in at_work if is_at_work(folder, job)]
    if left:
        host = read_state(folder, left[0].id).host
        raise UserError(
            f"{left[0].id} could not be ended from here{f', it runs on {host}' if host else ''}; cancel it there. If "
            f"that machine is gone, `nnunet-godc study run` with the same study file begins it anew."
        )
    return sum(not is_done(folder, job) for job in at_work)


def read_study_folder(folder: Path) -> tuple[Study, list[Job]]:
    """The study that a folder holds, with its jobs as they were last written.

    Raises:
        UserError: this is no study.
    """
    try:
        study = Study.model_validate_json((folder / "study.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no study; give the folder that `nnunet-godc study run` made.") from None
    except ValueError as error:
        raise UserError(f"{folder / 'study.json'} cannot be read ({error}); run the study again.") from None
    return study, [read_job(folder, job.id) for job in jobs_of(study, folder.absolute())]


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Held by the one process that runs a study.

    Raises:
        UserError: another one holds it.
    """
    runner = folder / "runner.json"
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _runner(folder)
        raise UserError(
            f"{folder} is being run by process {who['pid']} on {who['host']} since {who['since']}; wait for it, or "
            f"end it with `nnunet-godc study cancel {folder}`."
        ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(runner, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        runner.unlink(missing_ok=True)
        lock.release()


def _runner(folder: Path) -> dict[str, str]:
    """Who holds the study's lock.

    Raises:
        UserError: it is just being taken or released.
    """
    try:
        who: dict[str, str] = json.loads((folder / "runner.json").read_text())
    except FileNotFoundError:
        raise UserError(f"a run of {folder} is just beginning or ending; try again.") from None
    return who


def _stop_runner(folder: Path) -> None:
    lock = FileLock(folder / "lock")
    try:
        with lock.acquire(timeout=0):
            return
    except Timeout:
        who = _runner(folder)
    if who["host"] != socket.gethostname():
        raise UserError(f"{folder} is being run by process {who['pid']} on {who['host']}; cancel it there.")
    os.kill(int(who["pid"]), signal.SIGTERM)
    try:
        with lock.acquire(timeout=SECONDS_TO_STOP):
            return
    except Timeout:
        raise UserError(f"process {who['pid']}, which runs {folder}, does not end; end it yourself.") from None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the study with --out.")
    _check_may_write(folder)
    if folder.is_dir() and not (folder / "study.json").exists():
        foreign = [path.name for path in folder.iterdir() if path.name not in ("lock", "runner.json", "jobs")]
        if foreign:
            raise UserError(
                f"{folder} holds something else ({foreign[0]}) and was left as it is; name another folder with --out."
            )


def _check_may_write(folder: Path) -> None:
    if folder.exists() and not os.access(folder, os.W_OK):
        raise UserError(f"you may not write to {folder}; whoever made it runs and cancels the study.")


def _check_executor(folder: Path, jobs: Sequence[Job], executor: str) -> None:
    """No job is run a second time by the other executor.

    Raises:
        UserError: a job would be.
    """
    for job in jobs:
        state = read_state(folder, job.id)
        if not is_at_work(folder, job) or bool(state.scheduler_id) == (executor == "slurm"):
            continue
        where = f"is job {state.scheduler_id} of the cluster" if state.scheduler_id else f"runs on {state.host} itself"
        raise UserError(
            f"{job.id} {where}; end it with `nnunet-godc study cancel {folder}`, or leave the study to --executor "
            f"{'slurm' if state.scheduler_id else 'local'}."
        )
