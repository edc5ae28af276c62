"""Where the jobs of a study run: on this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nnunet_godc.study.folder import job_folder, read_state
from nnunet_godc.study.job_lock import is_held
from nnunet_godc.study.jobs import Job

EXECUTORS = ("local", "slurm")


class Executor(Protocol):
    """Runs jobs through `nnunet_godc.study.run_job`, which is all that it knows of them.

    It is given all jobs of the study, done ones included, and runs those that are not done
    (`nnunet_godc.study.folder.is_done`), each after those it depends on. It cancels and looks after those alone that it
    was given to run, as their state's `scheduler_id` tells: a study may go on with the other executor.
    """

    def run(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Runs or submits what is not done.

        Returns when there is nothing left to do for this process: locally when everything has run, on a cluster when
        everything is submitted. The caller holds the study's lock. Ctrl-C and SIGTERM arrive as KeyboardInterrupt and
        SystemExit, and leave a state from which the next run goes on.

        Raises:
            UserError: nothing can be run or submitted here.
        """

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Ends what runs or waits, in a state from which it can go on, and waits until it has ended.

        Raises:
            UserError: it does not end.
        """

    def refresh(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Brings states up to date that nobody could write, as of a job whose machine went down.

        Where this user may not write, they stay as they are.
        """


def make_executor(name: str, *, slots: int | None = None, slurm: Mapping[str, Any] | None = None) -> Executor:
    """The executor of that name, `local` or `slurm`.

    Args:
        name: the study's `executor`.
        slots: local: how many jobs that need no GPU run at once, default 1; of the others one runs on each GPU.
        slurm: the study's `slurm` block, validated: `partition`, `account`, `qos`, `constraint`, `reservation` (text),
            `setup` (list of shell lines that run before a job), `parallel` (most jobs of one array at once), `requeues`
            (how often a training may reach its time limit and go on, default 10; a preempted one always goes on),
            `extra` (further options of sbatch by their long names).
    """
    if name == "slurm":
        from nnunet_godc.study.slurm import SlurmExecutor

        slurm_executor: Executor = SlurmExecutor(slurm or {})
        return slurm_executor
    from nnunet_godc.study.local import LocalExecutor

    return LocalExecutor(slots)


def cancel_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    """Ends what runs or waits, wherever that is.

    Raises:
        UserError: it does not end, or the cluster does not answer.
    """
    for name in EXECUTORS:
        make_executor(name).cancel(folder, jobs)


def refresh_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    """Brings states up to date that nobody could write, wherever the jobs are.

    Raises:
        UserError: the cluster that has some of them does not answer.
    """
    for name in EXECUTORS:
        make_executor(name).refresh(folder, jobs)


def is_at_work(folder: Path, job: Job) -> bool:
    """Whether the job runs or waits in a cluster's queue, as far as is known after a `refresh_jobs`."""
    return read_state(folder, job.id).status in ("queued", "running") or is_held(job_folder(folder, job.id).lock)
