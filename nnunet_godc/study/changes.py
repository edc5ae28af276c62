"""What an edited study file changes, and what it must not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from nnunet_godc.errors import UserError
from nnunet_godc.study.executors import is_at_work
from nnunet_godc.study.folder import LASTING, State, is_done, job_folder, read_job, read_state, write_state
from nnunet_godc.study.jobs import Job, dependents

JOBS_TOLD = 5
_WORKERS = ("-np", "-npfp", "-npp", "-nps")
_SHOWN = ("--no_pbar", "--disable_progress_bar")


def jobs_before(folder: Path) -> list[Job]:
    """All jobs that the study has had, as they were last written; none where it has not been run yet."""
    if not (folder / "study.json").exists():
        return []
    return [read_job(folder, path.parent.name) for path in sorted(folder.glob("jobs/*/job.json"))]


def take_over_changes(folder: Path, before: Sequence[Job], jobs: Sequence[Job]) -> None:
    """Tells what an edited study file changes; what has to be made anew is set back.

    Args:
        folder: of the study.
        before: its jobs so far, their states up to date.
        jobs: its jobs from now on.

    Raises:
        UserError: trainings or what they start from were made in another way, or what changes is at work.
    """
    if not before:
        return
    old = {job.id: job for job in before}
    changed = [job for job in jobs if job.id in old and _differs(old[job.id], job)]
    removed = [name for name in old if name not in {job.id for job in jobs}]
    for job in changed:
        if job.kind in LASTING:
            _refuse_mixing(folder, old, job)
    _refuse_what_is_at_work(folder, old, jobs, [job.id for job in changed], removed)
    for what, names in (
        ("new", [job.id for job in jobs if job.id not in old]),
        ("changed", [job.id for job in changed]),
        ("no longer in the study, their results stay", removed),
    ):
        if names:
            print(f"{what}: {', '.join(names)}", flush=True)
    for job in changed:
        write_state(folder, job.id, State())


def _refuse_what_is_at_work(
    folder: Path, old: Mapping[str, Job], jobs: Sequence[Job], changed: Sequence[str], removed: Sequence[str]
) -> None:
    """What runs or waits would be forgotten, wait for something else, or take the other's result for its own.

    Raises:
        UserError: such a job runs or waits.
    """
    touched = {*changed, *removed, *(name for other in changed for name in dependents(other, old.values()))}
    touched |= {job.id for job in jobs if job.id in old and set(old[job.id].depends_on) != set(job.depends_on)}
    at_work = [name for name, job in old.items() if name in touched and is_at_work(folder, job)]
    if at_work:
        more = f" and {len(at_work) - JOBS_TOLD} more" if len(at_work) > JOBS_TOLD else ""
        raise UserError(
            f"the edited study file changes what runs or waits already: {', '.join(at_work[:JOBS_TOLD])}{more}; wait "
            f"for its end, end it with `nnunet-godc study cancel {folder}`, or change the file back."
        )


def _refuse_mixing(folder: Path, old: Mapping[str, Job], changed: Job) -> None:
    """Raises:
    UserError: the job, which lasts, was made in another way, or its plans were used as they were before.
    """
    before = old[changed.id]
    users = [job for job in old.values() if job.kind in LASTING and job.plans_file == before.plans_file]
    mixed = next((job for job in (before, *(users if before.kind == "plan" else ())) if _has_left(folder, job)), None)
    if mixed is not None:
        made = "made by" if mixed is before else "made with the plans of"
        raise UserError(
            f"{folder} already holds {mixed.id}, {made} `{' '.join(before.command)}`, and the study file now says "
            f"`{' '.join(changed.command)}`; their results would mix. Give the changed study another folder with "
            f"--out and, where results would lie in the same place, other names, or change it back."
        )


def _has_left(folder: Path, job: Job) -> bool:
    """Whether this study has run the job and it has left something to go on with.

    That of a failed preprocessing cannot be told from what others, for other plans, have left in the same place.
    """
    begun = read_state(folder, job.id).attempts > 0 or job_folder(folder, job.id).provenance.exists()
    return begun and (is_done(folder, job) or any(Path(resume.file).exists() for resume in job.resume))


def _differs(old: Job, new: Job) -> bool:
    """Whether another result would come out: not by other resources, worker processes or progress bars."""
    same = _recipe(old.command) == _recipe(new.command) and old.expected == new.expected
    # What is averaged or compared depends on what has been trained, too.
    return not same or (new.kind not in LASTING and set(old.depends_on) != set(new.depends_on))


def _recipe(command: Sequence[str]) -> list[str]:
    words = [word for before, word in pairwise(("", *command)) if before not in _WORKERS]
    return [word for word in words if word not in _WORKERS + _SHOWN]
