"""What a run would change: by an edited study file, and by trainers whose code has changed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from nnunet_godc.seeded_names import without_seed
from nnunet_godc.study.folder import (
    CHANGED,
    State,
    is_active,
    is_made,
    job_folder,
    read_state,
    read_trained_with,
    write_state,
)
from nnunet_godc.study.jobs import Job, dependents
from nnunet_godc.study.trainers import Code

NAMES_SHOWN = 3
_WORKERS = ("-np", "-npfp", "-npp", "-nps")
_SHOWN = ("--no_pbar", "--disable_progress_bar")
_FORMER = {  # of studies that an earlier version has begun
    "nnunet_godc.study.plan_variation": "nnunet_godc.study.steps vary",
    "nnunet_godc.study.preprocess": "nnunet_godc.study.steps preprocess",
}


@dataclass
class Changes:
    """What becomes of a study's jobs.

    Attributes:
        new: those that it had not before.
        changed: those that would leave something else than before.
        removed: those that it has no longer; their results stay.
        ended: those of the ones before that run or wait and are to be replaced or forgotten.
        anew: trainings that are made anew, their folders put aside.
        refused: one sentence for each thing that would mix results.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)
    anew: list[Job] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.removed or self.anew)


def changes(
    folder: Path, before: Sequence[Job], jobs: Sequence[Job], trainers: Mapping[str, Code], *, retrain: bool = False
) -> Changes:
    """What would change; nothing is written.

    Args:
        folder: of the study.
        before: its jobs so far, their states up to date.
        jobs: its jobs from now on.
        trainers: their code as it is now, by their names without seeds.
        retrain: whether trainings that would mix results are made anew instead of refused.
    """
    found, old = Changes(), {job.id: job for job in before}
    differing = [job for job in jobs if job.id in old and _differs(old[job.id], job)]
    found.changed = [job.id for job in differing]
    found.new = [job.id for job in jobs if job.id not in old]
    found.removed = [name for name in old if name not in {job.id for job in jobs}]
    for job in differing:
        if (mixed := _mixed(folder, before, old[job.id], job)) is None:
            continue
        if retrain and job.kind == "train":
            found.anew.append(job)
            continue
        made = "made by" if mixed.id == job.id else "made with the plans of"
        found.refused.append(
            f"{folder} already holds {mixed.id}, {made} `{' '.join(old[job.id].command)}`, and the study file now says "
            f"`{' '.join(job.command)}`; their results would mix. Give the changed study another folder with "
            f"--out and, where results would lie in the same place, other names, or change it back."
        )
    _compare_code(folder, jobs, trainers, found, retrain=retrain)
    _find_ended(folder, old, jobs, found)
    return found


def put_aside(training: Job) -> Path | None:
    """Moves nnU-Net's folder of a training away, beside the model's folds, where nothing looks for results."""
    fold = training.fold_folder
    if not fold.exists():
        return None
    aside = fold.parent / f"replaced_{time.strftime('%Y%m%d-%H%M%S')}" / fold.name
    aside.parent.mkdir(exist_ok=True)
    shutil.move(fold, aside)
    return aside


def set_back(folder: Path, found: Changes) -> None:
    """Forgets the states of what is made anew, or was ended to wait for something else."""
    for name in dict.fromkeys([*found.changed, *(job.id for job in (*found.anew, *found.ended))]):
        write_state(folder, name, State(note=CHANGED))


def _compare_code(
    folder: Path, jobs: Sequence[Job], trainers: Mapping[str, Code], found: Changes, *, retrain: bool
) -> None:
    """Trainings that were begun with other code than their trainer has now."""
    by_trainer: dict[str, list[tuple[Job, list[str]]]] = {}
    for job in jobs:
        code = trainers.get(without_seed(job.trainer)) if job.kind == "train" else None
        if code is None or not (job.has_begun or is_active(folder, job)):
            continue
        before = read_trained_with(job)
        if before is not None and (differences := before.differences(code)):
            by_trainer.setdefault(without_seed(job.trainer), []).append((job, differences))
    for trainer, trainings in by_trainer.items():
        if retrain:
            found.anew += [job for job, _ in trainings if job not in found.anew]
            continue
        first, differences = trainings[0]
        more = f" and {len(trainings) - 1} more" if len(trainings) > 1 else ""
        found.refused.append(
            f"{trainer} has changed since it trained {first.id}{more} ({some(differences)}); their results would mix. "
            f"Change it back, give the changed one another name, or train all of this anew with --retrain."
        )


def _find_ended(folder: Path, old: Mapping[str, Job], jobs: Sequence[Job], found: Changes) -> None:
    """What runs or waits and would be forgotten, wait for something else, or take the other's result for its own."""
    touched = {*found.changed, *found.removed, *(job.id for job in found.anew)}
    touched |= {name for other in found.changed for name in dependents(other, old.values())}
    touched |= {job.id for job in jobs if job.id in old and set(old[job.id].depends_on) != set(job.depends_on)}
    at_work = [job for name, job in old.items() if name in touched and is_active(folder, job)]
    # What waits in a cluster's queue has lost nothing when it is replaced, and what does not last is made anew anyway.
    trained = [job.id for job in at_work if job.lasts and read_state(folder, job.id).status != "queued"]
    found.ended = [job for job in at_work if job.id not in trained]
    if trained:
        found.refused.append(
            f"this changes what runs already: {some(trained)}; wait for its end, end it with `nnunet-godc study "
            f"cancel {folder}`, or change it back."
        )


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _mixed(folder: Path, before: Sequence[Job], old: Job, new: Job) -> Job | None:
    """A job that was made in another way and lasts: this one, or one that has used its plans as they were before."""
    users = [job for job in before if job.lasts and job.plans_file == old.plans_file and job.id != old.id]
    candidates = (old, *(users if old.kind == "plan" else ())) if new.lasts else ()
    return next((job for job in candidates if _has_left(folder, job)), None)


def _has_left(folder: Path, job: Job) -> bool:
    """Whether this study has run the job and it has left something to go on with.

    That of a failed preprocessing cannot be told from what others, for other plans, have left in the same place.
    """
    state = read_state(folder, job.id)
    begun = state.attempts > 0 or job_folder(folder, job.id).provenance.exists()
    return begun and (is_made(job, state) or job.has_begun)


def _differs(old: Job, new: Job) -> bool:
    """Whether another result would come out: not by other resources, worker processes or progress bars."""
    same = _recipe(old.command) == _recipe(new.command) and old.expected == new.expected
    # What is averaged or compared depends on what has been trained, too.
    return not same or (not new.lasts and set(old.depends_on) != set(new.depends_on))


def _recipe(command: Sequence[str]) -> list[str]:
    words = [word for before, word in pairwise(("", *command)) if before not in _WORKERS]
    return " ".join(_FORMER.get(word, word) for word in words if word not in _WORKERS + _SHOWN).split(" ")
