"""Where the jobs of a study run: on this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nnunet_godc.study.jobs import Job


class Executor(Protocol):
    """Runs jobs through `nnunet_godc.study.run_job`, which is all that it knows of them.

    It is given all jobs of the study, done ones included, and runs those that are not done
    (`nnunet_godc.study.folder.is_done`), each after those it depends on.
    """

    def run(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Runs or submits what is not done.

        Returns when there is nothing left to do for this process: locally when everything has run, on a cluster when
        everything is submitted. The caller holds the study's lock. Ctrl-C and SIGTERM arrive as KeyboardInterrupt and
        SystemExit, and leave a state from which the next run goes on.

        Raises:
            UserError: nothing can be run or submitted here.
        """

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> int:
        """Ends what runs or waits, in a state from which it can go on, and returns how many jobs that were."""

    def refresh(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Brings states up to date that nobody could write, as of a job whose machine went down."""


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
