"""The folder of a study: what is run, what has become of it, and who runs it now.

study.json                 the study as it was read
lock                       held by the one `nnunet-godc study run` at work
jobs/ID/job.json           the command
jobs/ID/state.json         what has become of it
jobs/ID/log.txt            everything that it printed, in all attempts
jobs/ID/provenance.json    what made its result
jobs/ID/lock               held as long as a process of it lives
slurm/                     batch scripts, and what Slurm says of each of its jobs
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nnunet_godc.errors import UserError
from nnunet_godc.replacing import replacing
from nnunet_godc.study.jobs import Job

# Kinds of jobs whose results other studies may use, too, and which are not made anew by themselves.
LASTING = ("plan", "preprocess", "train")

Status = Literal["pending", "queued", "running", "done", "failed", "interrupted", "not run"]


@dataclass(frozen=True)
class State:
    """What has become of a job.

    Attributes:
        status: `queued` is said of what a cluster has accepted and not started; `not run` of what depends on a job that
            failed; `interrupted` of what goes on where it stopped.
        pid: of the process that watches over it, on `host`.
        group: process group of its command, on `host`.
        host: name of the machine.
        start: of the latest attempt, seconds since 1970.
        end: of the latest attempt.
        return_code: of the command; minus the signal that ended it; None as long as there is none.
        attempts: how often it was started.
        scheduler_id: the cluster's id of the job; empty where this machine runs it.
        gpus: that this machine's queue has given it, as CUDA_VISIBLE_DEVICES names them.
        note: one sentence where the status needs a reason.
    """

    status: Status = "pending"
    pid: int | None = None
    group: int | None = None
    host: str = ""
    start: float | None = None
    end: float | None = None
    return_code: int | None = None
    attempts: int = 0
    scheduler_id: str = ""
    gpus: str = ""
    note: str = ""


@dataclass(frozen=True)
class JobFolder:
    """The files of one job."""

    path: Path

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"


def job_folder(folder: Path, job_id: str) -> JobFolder:
    return JobFolder(folder / "jobs" / job_id)


def write_json(path: Path, values: Any) -> None:
    """Replaces the file at once, so that nobody who reads it meanwhile sees half of it."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")


def write_jobs(folder: Path, jobs: Iterable[Job]) -> None:
    for job in jobs:
        files = job_folder(folder, job.id)
        files.path.mkdir(parents=True, exist_ok=True)
        write_json(files.job, job.to_json())


def read_job(folder: Path, job_id: str) -> Job:
    """Raises:
    UserError: the study has no such job.
    """
    try:
        return Job.from_json(json.loads(job_folder(folder, job_id).job.read_text()))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no job {job_id}; `nnunet-godc study status {folder}` lists them.") from None


def read_state(folder: Path, job_id: str) -> State:
    """The state as it was last written; that of a job nobody has touched is `pending`."""
    try:
        return State(**json.loads(job_folder(folder, job_id).state.read_text()))
    except FileNotFoundError:
        return State()


def write_state(folder: Path, job_id: str, state: State) -> None:
    write_json(job_folder(folder, job_id).state, asdict(state))


def update_state(folder: Path, job_id: str, **changes: Any) -> State:
    """Changes some fields of the state and returns it whole. Call it while nothing else writes this job's state."""
    state = replace(read_state(folder, job_id), **changes)
    write_state(folder, job_id, state)
    return state


def is_done(folder: Path, job: Job) -> bool:
    """Whether what the job makes is there, so that it need not run.

    Preprocessing is not, where its data has been deleted. A prediction, an average or an evaluation is not, where what
    it was made from is to be made anew or has been since.
    """
    if not all(Path(path).exists() for path in job.expected):
        return False
    state = read_state(folder, job.id)
    if state.status != "done" and not (job.adopted and job.expected):
        return False
    if job.kind == "preprocess":
        return _has_data(job)
    return job.kind in LASTING or not _is_outdated(folder, job, state)


def _has_data(job: Job) -> bool:
    """Whether the folder that was preprocessed into still holds something; many delete it when the disk is full."""
    plans = Path(job.plans_file)
    try:
        configuration = json.loads(plans.read_text())["configurations"][job.configuration]
        with os.scandir(plans.parent / configuration["data_identifier"]) as entries:
            return any(True for _ in entries)
    except (KeyError, ValueError):
        return True  # other plans than nnU-Net's say where it is in a way of their own
    except OSError:
        return False


def _is_outdated(folder: Path, job: Job, state: State) -> bool:
    for name in job.depends_on:
        if not job_folder(folder, name).job.exists():
            continue  # of another study
        if not is_done(folder, read_job(folder, name)):
            return True
        needed = read_state(folder, name)
        # One that was killed with its watcher has left no end. What was there before the study has neither.
        if state.end is not None and (needed.end or needed.start or 0) > state.end:
            return True
    return False
