"""Jobs of a study as jobs of a Slurm cluster, which schedules them; submitit writes and submits the batch scripts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_godc.errors import UserError
from nnunet_godc.study.definition import Slurm
from nnunet_godc.study.folder import State, current_states, job_folder, read_job, read_state, update_state, write_state
from nnunet_godc.study.jobs import Job, in_order
from nnunet_godc.study.run_job import run_job

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

DEFAULT_REQUEUES = 10
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_CANCEL = 120.0  # clusters give a job some thirty to end

# What Slurm calls jobs that do not come back by themselves: https://slurm.schedmd.com/job_state_codes.html
FAILURES = frozenset({"DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"})
FORGOTTEN = "FORGOTTEN"  # said here of jobs that neither the queue nor the accounts know any more
HELD = "JobHeldUser"
ENDS = FAILURES | {"BOOT_FAIL", "CANCELLED", "COMPLETED", "NODE_FAIL", "PREEMPTED", "REVOKED", FORGOTTEN}


@dataclass(frozen=True)
class SubmittedJob:
    """What a Slurm job executes, at every start of it.

    Attributes:
        folder: of the study, absolute, seen alike by all nodes.
        job_id: of the study's job.
    """

    folder: Path
    job_id: str

    def __call__(self) -> None:
        from submitit.core.utils import UncompletedJobError

        try:
            code = run_job(self.folder, self.job_id)
        except UncompletedJobError as error:  # raised by submitit's signal handler where it does not requeue
            update_state(self.folder, self.job_id, status="failed", note=f"reached its time limit. {error}")
            raise
        if code:
            # Jobs that wait for this one by `afterok` are then never started.
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit requeues at the time limit; None for a job that would begin anew and reach the limit again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self) if read_job(self.folder, self.job_id).resume else None


class SlurmExecutor:
    """Submits the jobs of a study; returns as soon as they wait in Slurm's queue.

    Jobs of one kind that ask for the same and wait for the same jobs make one array. A job starts once those it depends
    on have succeeded (`afterok`); where one fails, Slurm cancels its dependents and nothing else. A job that is
    preempted, loses its node or reaches its time limit is requeued, and goes on from its checkpoint.

    Args:
        options: the `slurm` block of the study.
    """

    def __init__(self, options: Slurm | None = None) -> None:
        self._options = options or Slurm()

    def run(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Submits what is neither done nor in Slurm's queue already, and releases what an earlier run left on hold.

        Raises:
            UserError: there is no Slurm here, or it refuses a job; what it accepted before that stays submitted.
        """
        submitted = self._refresh(folder, jobs)
        if submitted:
            # A run that was killed, or which Slurm no longer answered, leaves its jobs on hold.
            answers = _ask_slurm(submitted.values())
            _release([slurm_id for slurm_id, answer in answers.items() if answer == ("PENDING", HELD)])
        states = current_states(folder, jobs)
        missing = [job for job in in_order(jobs) if job.id not in submitted and states[job.id].status != "done"]
        open_jobs = {job.id for job in missing} | submitted.keys()
        needed = {job.id: frozenset(open_jobs.intersection(job.depends_on)) for job in missing}
        for array in _arrays(missing, needed, _largest_array() if missing else 1):
            # Between Slurm's acceptance and the note of it here an interruption would lose the jobs.
            with _signals_wait():
                ids = self._submit(folder, array, sorted(submitted[name] for name in needed[array[0].id]))
            submitted |= ids
            first, last = array[0].id, ids[array[-1].id]
            more = f" and {len(array) - 1} more, up to {last}" if len(array) > 1 else ""
            print(f"submitted {first} as Slurm's job {ids[first]}{more}", flush=True)

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Cancels what waits or runs in Slurm, and waits until it has ended.

        Raises:
            UserError: Slurm does not answer, or jobs do not end.
        """
        if not (submitted := self._refresh(folder, jobs)):
            return
        # Those that wait go first, or they might start meanwhile.
        _slurm("scancel", "--state=PENDING", *submitted.values())
        _slurm("scancel", *submitted.values())
        deadline = time.monotonic() + SECONDS_TO_CANCEL
        while remaining := self._refresh(folder, jobs):
            if time.monotonic() > deadline:
                raise UserError(f"Slurm has cancelled but not ended {', '.join(remaining)}; look at squeue.")
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def refresh(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Writes what Slurm knows and the job itself could not write.

        Raises:
            UserError: Slurm does not answer.
        """
        self._refresh(folder, jobs)

    def _refresh(self, folder: Path, jobs: Sequence[Job]) -> dict[str, str]:
        """As `refresh`; returns Slurm's ids of the jobs that wait or run, by their own."""
        states = {job.id: read_state(folder, job.id) for job in in_order(jobs)}
        followed = {
            name: state.scheduler_id
            for name, state in states.items()
            if state.scheduler_id and state.status in ("queued", "running", "interrupted")
        }
        if not followed:
            return {}
        found = _ask_slurm(followed.values())
        needed = {job.id: job.depends_on for job in jobs}
        alive = {}
        for name, slurm_id in followed.items():
            word, reason = found[slurm_id]
            before, changed = states[name], read_state(folder, name)
            states[name] = changed
            if word in ENDS:
                # What the job has written before it ended holds.
                changed = _ended(changed, word, [states[other] for other in needed[name] if other in states])
            else:
                alive[name] = slurm_id
                # One that has written since Slurm was asked no longer waits.
                if word == "PENDING" and changed == before:
                    changed = _waiting(changed, reason)
            if changed != states[name] and os.access(job_folder(folder, name).path, os.W_OK):
                write_state(folder, name, changed)
                states[name] = changed
        return alive

    def _submit(self, folder: Path, array: Sequence[Job], after: Sequence[str]) -> dict[str, str]:
        """Submits the jobs as one array that starts once the Slurm jobs `after` have succeeded; returns its ids."""
        try:
            import submitit
        except ModuleNotFoundError:
            raise UserError(
                "studies run on Slurm through submitit, which is not installed: pip install 'nnunet-godc[slurm]'"
            ) from None
        folder = folder.absolute()
        executor = submitit.SlurmExecutor(
            folder / "slurm",
            max_num_timeout=DEFAULT_REQUEUES if self._options.requeues is None else self._options.requeues,
        )
        executor.update_parameters(**self._parameters(folder, array, after))
        try:
            with _outside_of_slurm():
                accepted = executor.submit_array([SubmittedJob(folder, job.id) for job in array])
        except submitit.core.utils.FailedJobError as error:
            others = f" and {len(array) - 1} more" if len(array) > 1 else ""
            raise UserError(f"Slurm refuses {array[0].id}{others}: {' '.join(str(error).split())}") from None
        ids = {job.id: entry.job_id for job, entry in zip(array, accepted, strict=True)}
        for name, slurm_id in ids.items():
            update_state(folder, name, status="queued", scheduler_id=slurm_id, note="")
        # Submitted on hold, so that no job writes its state before this process has.
        _release(ids.values())
        return ids

    def _parameters(self, folder: Path, array: Sequence[Job], after: Sequence[str]) -> dict[str, Any]:
        """Of submitit's executor."""
        options, resources = self._options, array[0].resources
        parameters: dict[str, Any] = {
            "job_name": f"{folder.name}-{array[0].kind}",
            # submitit takes a limit this short for reached at each of its signals, and takes no other than minutes
            "time": resources.minutes or 1,
            "cpus_per_task": resources.cpus,
            # Since Slurm 22.05 a step has one core unless it asks for them once more.
            "srun_args": [f"--cpus-per-task={resources.cpus}"],
            "array_parallelism": options.parallel or len(array),
            "stderr_to_stdout": True,
            "wckey": None,  # submitit's default is refused where these are enforced
            **options.model_dump(exclude_unset=True, include={"partition", "account", "qos", "constraint", "setup"}),
        }
        if resources.gpus:
            parameters["gpus_per_node"] = resources.gpus
        if resources.memory_gb is not None:
            parameters["mem"] = f"{round(resources.memory_gb * 1024)}M"
        if after:
            parameters["dependency"] = f"afterok:{':'.join(after)}"
        parameters["additional_parameters"] = {
            "hold": True,
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            **({} if resources.minutes else {"time": self._longest_time()}),
            **({"reservation": options.reservation} if options.reservation else {}),
            **options.extra,
        }
        return parameters

    def _longest_time(self) -> str:
        """What the partition allows, as Slurm writes it.

        Raises:
            UserError: the study names no partition of this cluster, or none where the cluster has no default.
        """
        partition = self._options.partition
        asked = [f"--partition={partition}"] if partition else []
        for line in _slurm("sinfo", "--noheader", "--format=%P %l", *asked).splitlines():
            name, limit = line.split()
            if partition or name.endswith("*"):
                return limit
        raise UserError(
            f"Slurm has no partition {partition}; `sinfo` lists them."
            if partition
            else "Slurm has no default partition here: give one as `partition` in the study's `slurm` block."
        )


def _arrays(jobs: Sequence[Job], needed: Mapping[str, frozenset[str]], largest: int) -> Iterator[list[Job]]:
    """Groups of jobs of one kind that ask for the same and wait for the same jobs, each after those it waits for.

    Args:
        jobs: those to submit, each after those it depends on.
        needed: the jobs that each has to wait for.
        largest: most jobs of one group.
    """
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.kind, job.resources, needed[job.id]), []).append(job)
    for group in groups.values():
        for start in range(0, len(group), largest):
            yield group[start : start + largest]


def _waiting(state: State, reason: str) -> State:
    """State of a job that waits in Slurm's queue, or waits there again after it was requeued."""
    note = "" if reason == "None" else f"Slurm: {reason}"
    return replace(state, status="queued", note=f"{note}, until the next `study run`" if reason == HELD else note)


def _ended(state: State, word: str, needed: Iterable[State]) -> State:
    """State of a job whose end Slurm tells, where the job itself had no time to.

    Args:
        state: as the job has left it.
        word: Slurm's name of its end.
        needed: what has become of those it depends on.
    """
    if state.status not in ("queued", "running") or word == "COMPLETED":
        return state
    if state.status == "queued" and any(other.status in ("failed", "not run") for other in needed):
        return replace(state, status="not run", note="depends on a job that failed")
    if word in FAILURES:
        note = f"ended by Slurm: {word}; slurm/{state.scheduler_id}_0_log.out may say why"
        return replace(state, status="failed", note=note)
    note = "Slurm knows nothing of it any more" if word == FORGOTTEN else f"ended by Slurm: {word}"
    return replace(state, status="interrupted" if state.attempts else "pending", note=note)


def _release(slurm_ids: Collection[str]) -> None:
    if slurm_ids:
        _slurm("scontrol", "release", *slurm_ids)


def _ask_slurm(slurm_ids: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Slurm's name of each job's state, and the reason that it gives for it."""
    asked = list(slurm_ids)
    known = _queue("--me")
    # A colleague may look at the study. Slurm refuses the number of a job that it has forgotten.
    if unknown := ",".join(slurm_id for slurm_id in asked if slurm_id not in known):
        with contextlib.suppress(UserError):
            known |= _queue(f"--jobs={unknown}")
    # The queue forgets a job minutes after its end; not every cluster keeps accounts.
    if unknown := ",".join(slurm_id for slurm_id in asked if slurm_id not in known):
        what = ("--allusers", "--allocations", "--noheader", "--parsable2", "--format=JobID,State")
        with contextlib.suppress(UserError):
            for line in _slurm("sacct", *what, f"--jobs={unknown}").splitlines():
                slurm_id, _, word = line.partition("|")
                known[slurm_id] = (word.split()[0], "")  # "CANCELLED by 1000"
    return {slurm_id: known.get(slurm_id, (FORGOTTEN, "")) for slurm_id in asked}


def _queue(whose: str) -> dict[str, tuple[str, str]]:
    """As `_ask_slurm`, of all jobs that an option of squeue names, by their ids."""
    lines = _slurm("squeue", whose, "--array", "--states=all", "--noheader", "--format=%i|%T|%r").splitlines()
    return {slurm_id: (word, reason) for slurm_id, word, reason in (line.strip().split("|", 2) for line in lines)}


def _largest_array() -> int:
    """How many jobs the cluster allows in one array."""
    for line in _slurm("scontrol", "show", "config").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return max(1, int(value))
    return 1


def _slurm(*command: str) -> str:
    """What one of Slurm's commands prints.

    Raises:
        UserError: it is not installed, or fails.
    """
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not to be found: run this where Slurm is, or a study that is not there with the executor "
            f"`local`."
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"Slurm's {command[0]} fails: {error.stderr.strip() or error.stdout.strip()}") from None


@contextlib.contextmanager
def _outside_of_slurm() -> Iterator[None]:
    """Hides what a surrounding job has set, as in an interactive session: jobs submitted from there would inherit it.

    submitit's own `clean_env` hides `SLURM_CONF` too, without which a cluster may not be found.
    """
    hidden = {}
    if "SLURM_JOB_ID" in os.environ:
        names = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
        hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ |= hidden


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM are put off until the end."""
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in arrived:
        signal.raise_signal(late)
