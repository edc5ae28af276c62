"""The folder of a study: what is run, what has become of it, and who runs it now.

study.json                 the study as it was read
trainers.json              the code of its trainers when it was last run
lock                       held by whoever changes the study or what its queue works on, for moments
runner.lock, runner.json   held by the queue of this machine, as long as it works
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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.errors import UserError
from nnunet_godc.locks import is_held
from nnunet_godc.study.jobs import Job, in_order
from nnunet_godc.study.trainers import Code

if TYPE_CHECKING:
    from nnunet_godc.study.definition import Study

OWN_FILES = ("study.json", "trainers.json", "lock", "runner.lock", "runner.json", "jobs", "slurm")
CHANGED = "was changed, and is made anew"  # of a job that an edited study file has set back
TRAINER_CODE = ".nnunet-godc.trainer.json"  # in nnU-Net's folder of a fold: what it is trained with

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
    note: str = ""


_FIELDS = {entry.name for entry in fields(State)}


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
    with atomic_write(path) as partial:
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


def read_study_folder(folder: Path) -> tuple[Study, list[Job]]:
    """The study that a folder holds, with its jobs as they were last written.

    Raises:
        UserError: this is no study.
    """
    # pydantic takes longer to import than all else that a job needs to start
    from nnunet_godc.study.definition import Study
    from nnunet_godc.study.planning import jobs_of

    try:
        study = Study.model_validate_json((folder / "study.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no study; give the folder that `nnunet-godc study run` made.") from None
    except ValueError as error:
        raise UserError(f"{folder / 'study.json'} cannot be read ({error}); run the study again.") from None
    return study, [read_job(folder, job.id) for job in jobs_of(study, folder.absolute())]


def jobs_before(folder: Path) -> list[Job]:
    """All jobs that the study has had, as they were last written; none where it has not been run yet."""
    if not (folder / "study.json").exists():
        return []
    return [read_job(folder, path.parent.name) for path in sorted(folder.glob("jobs/*/job.json"))]


def read_trainers(folder: Path) -> dict[str, Code]:
    """The code of the study's trainers when it was last run, by their names without seeds; empty if it was not."""
    try:
        return {name: Code(**values) for name, values in json.loads((folder / "trainers.json").read_text()).items()}
    except FileNotFoundError:
        return {}


def write_trainers(folder: Path, trainers: Mapping[str, Code]) -> None:
    write_json(folder / "trainers.json", {name: code.to_json() for name, code in trainers.items()})


def read_trained_with(training: Job) -> Code | None:
    """The code that a training was begun with; None where no study has begun it."""
    try:
        return Code(**json.loads((training.fold_folder / TRAINER_CODE).read_text()))
    except FileNotFoundError:
        return None


def read_state(folder: Path, job_id: str) -> State:
    """The state as it was last written; that of a job nobody has touched is `pending`."""
    try:
        values = json.loads(job_folder(folder, job_id).state.read_text())
    except FileNotFoundError:
        return State()
    return State(**{name: value for name, value in values.items() if name in _FIELDS})


def write_state(folder: Path, job_id: str, state: State) -> None:
    write_json(job_folder(folder, job_id).state, asdict(state))


def update_state(folder: Path, job_id: str, **changes: Any) -> State:
    """Changes some fields of the state and returns it whole. Call it while nothing else writes this job's state."""
    state = replace(read_state(folder, job_id), **changes)
    write_state(folder, job_id, state)
    return state


def current_states(folder: Path, jobs: Iterable[Job]) -> dict[str, State]:
    """What has become of the jobs, by what is there: `done` is what need not run, whoever has made it.

    A prediction, an average or an evaluation is not, where what it was made from is to be made anew or has been since.
    """
    states: dict[str, State] = {}
    for job in in_order(jobs):
        state = read_state(folder, job.id)
        needed = [states[name] for name in job.depends_on if name in states]  # others are of another study
        made = is_made(job, state) and (job.lasts or not any(_outdates(other, state) for other in needed))
        if state.status not in ("running", "queued") and made != (state.status == "done"):
            again = State(note="is to be made again: it is gone, or what it was made from has changed")
            state = replace(state, status="done", note="") if made else again
        states[job.id] = state
    return states


def is_made(job: Job, state: State) -> bool:
    """Whether what a job leaves is there; of preprocessing, whether its data has not been deleted."""
    if not all(Path(path).exists() for path in job.expected):
        return False
    if state.status != "done" and not (job.skip_if_output_exists and job.expected):
        return False
    return job.kind != "preprocess" or _has_data(job)


def is_active(folder: Path, job: Job) -> bool:
    """Whether the job runs or waits in a cluster's queue, as far as is known since the states were last refreshed."""
    return read_state(folder, job.id).status in ("queued", "running") or is_held(job_folder(folder, job.id).lock)


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


def _outdates(needed: State, state: State) -> bool:
    # One that was killed with its watcher has left no end. What was there before the study has neither.
    made = needed.end or needed.start or 0
    return needed.status != "done" or (state.end is not None and made > state.end)
