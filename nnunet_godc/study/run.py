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
from itertools import pairwise
from pathlib import Path

from filelock import FileLock, Timeout

from nnunet_godc.errors import UserError
from nnunet_godc.study.definition import Study
from nnunet_godc.study.executors import Executor, make_executor
from nnunet_godc.study.folder import (
    State,
    is_done,
    job_folder,
    read_job,
    read_state,
    write_jobs,
    write_json,
    write_state,
)
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.planning import jobs_of

SECONDS_TO_STOP = 60.0
# Results of these would mix what was made in two ways; everything else is quickly made anew.
_LASTING = ("plan", "preprocess", "train")
_WORKERS = ("-np", "-npfp")
_SHOWN = ("--no_pbar", "--disable_progress_bar")


def run_study(study: Study, folder: Path) -> bool:
    """Runs whatever of a study is not done yet, and says whether everything is done now (or submitted).

    Args:
        study: what to train, on what.
        folder: for the study; new, empty, or of an earlier run of it.

    Raises:
        UserError: the folder holds something else, another process runs this study, its results would mix what was made
            in two ways, or nothing can run here.
    """
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with study_lock(folder):
        jobs = jobs_of(study, folder)
        _take_over_changes(folder, jobs)
        write_json(folder / "study.json", study.model_dump(by_alias=True))
        write_jobs(folder, jobs)
        executor = executor_of(study)
        executor.refresh(folder, jobs)
        missing = [job for job in jobs if not is_done(folder, job)]
        kinds = Counter(job.kind for job in missing)
        print(f"{study.name}: {len(jobs)} jobs, {len(jobs) - len(missing)} done", end="")
        print(
            f", to do: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}" if missing else "", flush=True
        )
        executor.run(folder, jobs)
    return all(read_state(folder, job.id).status in ("done", "queued", "running") for job in missing)


def cancel_study(folder: Path) -> int:
    """Ends the run of a study and whatever jobs of it go on, and returns how many those were.

    Raises:
        UserError: this is no study, or it runs on another machine.
    """
    study, jobs = read_study_folder(folder)
    running = [job for job in jobs if read_state(folder, job.id).status == "running"]
    _stop_runner(folder)
    ended = executor_of(study).cancel(folder, jobs)
    return max(ended, len(running))


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


def executor_of(study: Study) -> Executor:
    asked = study.definition.resources
    return make_executor(asked.executor, slots=asked.slots, slurm=asked.slurm.model_dump(exclude_none=True))


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
    if folder.is_dir() and not (folder / "study.json").exists():
        foreign = [path.name for path in folder.iterdir() if path.name not in ("lock", "runner.json", "jobs")]
        if foreign:
            raise UserError(
                f"{folder} holds something else ({foreign[0]}) and was left as it is; name another folder with --out."
            )


def _take_over_changes(folder: Path, jobs: Sequence[Job]) -> None:
    """Tells what an edited study file changes; what has to be made anew is set back.

    Raises:
        UserError: trainings or what they start from were made in another way.
    """
    if not (folder / "study.json").exists():
        return
    known = {path.parent.name for path in folder.glob("jobs/*/job.json")}
    new = [job.id for job in jobs if job.id not in known]
    changed = [job for job in jobs if job.id in known and _differs(read_job(folder, job.id), job)]
    begun = [job for job in changed if _has_begun(folder, job)]
    mixed = [job for job in begun if job.kind in _LASTING]
    if mixed:
        old = read_job(folder, mixed[0].id)
        raise UserError(
            f"{folder} already holds {mixed[0].id}, made by `{' '.join(old.command)}`, and the study file now says "
            f"`{' '.join(mixed[0].command)}`; their results would mix. Give the changed study another folder with "
            f"--out and, where results would lie in the same place, other names, or change it back."
        )
    removed = sorted(known.difference(job.id for job in jobs))
    for what, names in (
        ("new", new),
        ("changed", [job.id for job in changed]),
        ("no longer in the study, their results stay", removed),
    ):
        if names:
            print(f"{what}: {', '.join(names)}", flush=True)
    for job in begun:
        write_state(folder, job.id, State())


def _has_begun(folder: Path, job: Job) -> bool:
    return read_state(folder, job.id).attempts > 0 or job_folder(folder, job.id).provenance.exists()


def _differs(old: Job, new: Job) -> bool:
    """Whether another result would come out: not by other resources, worker processes or progress bars."""
    same = _recipe(old.command) == _recipe(new.command) and old.expected == new.expected
    # What is averaged or compared depends on what has been trained, too.
    return not same or (new.kind not in _LASTING and set(old.depends_on) != set(new.depends_on))


def _recipe(command: Sequence[str]) -> list[str]:
    words = [word for before, word in pairwise(("", *command)) if before not in _WORKERS]
    return [word for word in words if word not in _SHOWN]
