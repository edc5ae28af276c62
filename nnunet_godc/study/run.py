"""Running, continuing and cancelling a study."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nnunet_godc.errors import UserError
from nnunet_godc.locks import is_held, locked
from nnunet_godc.study.changes import Changes, changes, put_aside, set_back, some
from nnunet_godc.study.definition import Study
from nnunet_godc.study.folder import (
    OWN_FILES,
    current_states,
    is_active,
    jobs_before,
    read_state,
    read_study_folder,
    write_jobs,
    write_json,
    write_trainers,
)
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.local import LocalExecutor
from nnunet_godc.study.planning import jobs_of
from nnunet_godc.study.slurm import SlurmExecutor
from nnunet_godc.study.trainers import Code

# Each looks after those jobs alone that it was given, as their state's `scheduler_id` tells.
EXECUTORS = (LocalExecutor(), SlurmExecutor())
SECONDS_TO_STOP = 60.0


def run_study(study: Study, folder: Path, *, trainers: Mapping[str, Code] | None = None, retrain: bool = False) -> bool:
    """Runs whatever of a study is not done yet, and returns whether everything is done now, submitted, or added.

    Where another process of this machine runs it already, what is new is added to that run.

    Args:
        study: what to train, on what.
        folder: for the study; new, empty, or of an earlier run of it.
        trainers: their code as it is now, by their names without seeds.
        retrain: whether trainings that would mix results are made anew; what they have left is put aside.

    Raises:
        UserError: the folder holds something else, another process runs this study as it is, its results would mix what
            was made in two ways, or nothing can run here.
    """
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trainers = trainers or {}
    with locked(folder / "lock"):
        jobs, before = jobs_of(study, folder), jobs_before(folder)
        runner = _runner(folder)
        refresh_jobs(folder, before)
        found = changes(folder, before, jobs, trainers, retrain=retrain)
        refused = [*_elsewhere(folder, before, study), *found.refused]
        if refused:
            raise UserError("\n".join(refused))
        on_cluster = study.definition.resources.executor == "slurm"
        if runner and (on_cluster or not found):
            raise UserError(
                f"{folder} is being run by {runner}, and the study file adds nothing to that; wait for it, or end it "
                f"with `nnunet-godc study cancel {folder}`."
            )
        here = LocalExecutor(study.definition.resources.slots)
        if not on_cluster:
            here.check(folder, jobs)
        _take_over(study, folder, jobs, found, trainers)
        if runner:
            print(f"Added to the run of {runner}; `nnunet-godc study status {folder}` shows how far it is.", flush=True)
            return True
        if on_cluster:
            SlurmExecutor(study.definition.resources.slurm).run(folder, jobs)
            print(f"Submitted; `nnunet-godc study status {folder}` shows how far it is.", flush=True)
            return True
        queue = here.queue(folder, jobs)
    queue.work()
    _, jobs = read_study_folder(folder)
    done = all(state.status == "done" for state in current_states(folder, jobs).values())
    outcome = "Everything is done" if done else "Not everything is done; fix what has failed and run it again"
    print(f"{outcome}: {folder}", flush=True)
    return done


def _take_over(study: Study, folder: Path, jobs: Sequence[Job], found: Changes, trainers: Mapping[str, Code]) -> None:
    """Ends and sets back what has changed, writes the study down, and prints what is to do."""
    for executor in EXECUTORS:
        executor.cancel(folder, found.ended)
    for what, names in (
        ("new", found.new if (folder / "study.json").exists() else []),
        ("changed", found.changed),
        ("no longer in the study, their results stay", found.removed),
    ):
        if names:
            print(f"{what}: {some(names)}", flush=True)
    for job in found.anew:
        print(f"made anew: {job.id}; what it left is now in {put_aside(job)}", flush=True)
    set_back(folder, found)
    write_jobs(folder, jobs)
    write_trainers(folder, trainers)
    write_json(folder / "study.json", study.model_dump(by_alias=True))
    states = current_states(folder, jobs)
    missing = [job for job in jobs if states[job.id].status != "done"]
    kinds = Counter(job.kind for job in missing)
    to_do = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(
        f"{study.name}: {len(jobs)} jobs, {len(jobs) - len(missing)} done" + (f", to do: {to_do}" if missing else ""),
        flush=True,
    )


def dry_run(
    study: Study, folder: Path, *, trainers: Mapping[str, Code] | None = None, retrain: bool = False
) -> tuple[list[str], list[str]]:
    """What `run_study` would do, as lines to print, and why it would refuse. Nothing is written, but states refreshed.

    Raises:
        UserError: the folder holds something else, or the cluster that has some of the jobs does not answer.
    """
    _check_folder(folder)
    jobs, before = jobs_of(study, folder), jobs_before(folder)
    refresh_jobs(folder, before)
    found = changes(folder, before, jobs, trainers or {}, retrain=retrain)
    states, ended, anew = current_states(folder, jobs), {job.id for job in found.ended}, {job.id for job in found.anew}
    lines = []
    for job in jobs:
        status = states[job.id].status
        if job.id in anew:
            word = "made anew"
        elif status in ("running", "queued") and job.id not in ended:
            word = {"running": "runs", "queued": "waits"}[status]
        elif status == "done" and job.id not in found.changed:
            word = "done"
        else:
            word = "goes on" if job.has_begun else "would run"
        lines.append(f"{word:<10} {job.id}" + ("" if word == "done" else f"\n    {' '.join(job.command)}"))
    lines += [f"{'forgotten':<10} {name}; its results stay" for name in found.removed]
    return lines, [*_elsewhere(folder, before, study), *found.refused]


def cancel_study(folder: Path) -> int:
    """Ends the run of a study and whatever jobs of it go on, and returns how many jobs it has ended.

    Raises:
        UserError: this is no study, it runs on another machine, or something does not end.
    """
    _, jobs = read_study_folder(folder)
    _check_may_write(folder)
    refresh_jobs(folder, jobs)
    at_work = [job for job in jobs if is_active(folder, job)]
    _stop_runner(folder)
    for executor in EXECUTORS:
        executor.cancel(folder, jobs)
    left = [job for job in at_work if is_active(folder, job)]
    if left:
        host = read_state(folder, left[0].id).host
        raise UserError(
            f"{left[0].id} could not be ended from here{f', it runs on {host}' if host else ''}; cancel it there. If "
            f"that machine is gone, `nnunet-godc study run` with the same study file begins it anew."
        )
    states = current_states(folder, jobs)
    return sum(states[job.id].status != "done" for job in at_work)


def refresh_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    """Brings states up to date that nobody could write, as of a job whose machine went down.

    Raises:
        UserError: the cluster that has some of them does not answer.
    """
    for executor in EXECUTORS:
        executor.refresh(folder, jobs)


def _is_submitted(folder: Path, job: Job) -> bool:
    return bool(read_state(folder, job.id).scheduler_id)


def _elsewhere(folder: Path, jobs: Sequence[Job], study: Study) -> Iterator[str]:
    """Jobs that would be run a second time by the other executor."""
    for job in jobs:
        submitted = _is_submitted(folder, job)
        if is_active(folder, job) and submitted != (study.definition.resources.executor == "slurm"):
            state = read_state(folder, job.id)
            where = f"is job {state.scheduler_id} of the cluster" if submitted else f"runs on {state.host} itself"
            yield (
                f"{job.id} {where}; end it with `nnunet-godc study cancel {folder}`, or leave the study to --executor "
                f"{'slurm' if submitted else 'local'}."
            )
            return


def _runner(folder: Path) -> str:
    """Who runs the study, in words; empty if nobody does."""
    if not is_held(folder / "runner.lock"):
        return ""
    who = json.loads((folder / "runner.json").read_text())
    return f"process {who['pid']} on {who['host']} since {who['since']}"


def _stop_runner(folder: Path) -> None:
    """Ends the queue that works on a study, if there is one."""
    with locked(folder / "lock"):  # so that it is neither just beginning nor just ending
        if not (runner := _runner(folder)):
            return
        who = json.loads((folder / "runner.json").read_text())
        if who["host"] != socket.gethostname():
            raise UserError(f"{folder} is being run by {runner}; cancel it there.")
        os.kill(int(who["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_STOP
    while is_held(folder / "runner.lock"):
        if time.monotonic() > deadline:
            raise UserError(f"process {who['pid']}, which runs {folder}, does not end; end it yourself.")
        time.sleep(0.1)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the study with --out.")
    _check_may_write(folder)
    if folder.is_dir() and not (folder / "study.json").exists():
        foreign = [path.name for path in folder.iterdir() if path.name not in OWN_FILES]
        if foreign:
            raise UserError(
                f"{folder} holds something else ({foreign[0]}) and was left as it is; name another folder with --out."
            )


def _check_may_write(folder: Path) -> None:
    if folder.exists() and not os.access(folder, os.W_OK):
        raise UserError(f"you may not write to {folder}; whoever made it runs and cancels the study.")
