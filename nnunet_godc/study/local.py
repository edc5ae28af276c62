"""The queue on this machine: one job per GPU, and a few at once that need none."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from nnunet_godc.commands import duration, end_of_log
from nnunet_godc.errors import UserError
from nnunet_godc.locks import is_held, locked
from nnunet_godc.study.folder import (
    CHANGED,
    current_states,
    job_folder,
    read_state,
    read_study_folder,
    update_state,
    write_json,
)
from nnunet_godc.study.jobs import Job, in_order

SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_TO_CANCEL = 60.0


class LocalExecutor:
    """Runs jobs as processes of this machine.

    Args:
        slots: how many jobs that need no GPU run at once; None is one, since nnU-Net's own commands share the cores
            among worker processes. Of the others one runs on each GPU.
    """

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots or 1

    def check(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Raises:
        UserError: a job that is not done needs more GPUs than there are.
        """
        gpus, states = visible_gpus(), current_states(folder, jobs)
        for job in jobs:
            if job.resources.gpus > len(gpus) and states[job.id].status != "done":
                raise UserError(
                    f"{job.id} needs {job.resources.gpus} GPU(s) and this machine offers {len(gpus)}; set "
                    f"`resources: device: cpu` or fewer gpus in the study file, or run it with --executor slurm."
                )

    def queue(self, folder: Path, jobs: Sequence[Job]) -> Queue:
        """A queue for what is not done. The caller holds the study's lock, and lets go of it before the queue works."""
        return Queue(folder, jobs, list(visible_gpus()), self.slots)

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Ends what runs, in a state from which it can go on, and waits until it has ended.

        Raises:
            UserError: it does not end.
        """
        asked = [job.id for job in jobs if _tell_to_end(folder, job.id)]
        deadline = time.monotonic() + SECONDS_TO_CANCEL
        while remaining := [name for name in asked if is_held(job_folder(folder, name).lock)]:
            if time.monotonic() > deadline:
                state = read_state(folder, remaining[0])
                raise UserError(f"{remaining[0]}, process {state.group or state.pid}, does not end; end it yourself.")
            time.sleep(0.05)
        self.refresh(folder, jobs)

    def refresh(self, folder: Path, jobs: Sequence[Job]) -> None:
        """Brings states up to date that nobody could write, as of a job that was killed.

        Where this user may not write, they stay as they are.
        """
        for job in jobs:
            files = job_folder(folder, job.id)
            if not _seems_to_run_here(folder, job) or not os.access(files.path, os.W_OK):
                continue
            with contextlib.suppress(BlockingIOError), locked(files.lock, wait=False):
                # It may just have ended by itself; nobody else writes while the lock is held here.
                if _seems_to_run_here(folder, job):
                    update_state(folder, job.id, status="interrupted", note="its process is gone")


def _seems_to_run_here(folder: Path, job: Job) -> bool:
    state = read_state(folder, job.id)
    return state.status == "running" and not state.scheduler_id and state.host == socket.gethostname()


def _tell_to_end(folder: Path, job_id: str) -> bool:
    """Signals whatever of the job lives on this machine; says whether there was something."""
    state = read_state(folder, job_id)
    if state.scheduler_id or state.host != socket.gethostname() or not is_held(job_folder(folder, job_id).lock):
        return False
    try:
        # Its watcher, if there is one, writes what has become of it. Before there is a command, there is the watcher.
        if state.group:
            os.killpg(state.group, signal.SIGTERM)
        elif state.pid:
            os.kill(state.pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        return False
    return bool(state.group or state.pid)


def visible_gpus() -> dict[str, str]:
    """The names of the GPUs that this process may use, by what CUDA_VISIBLE_DEVICES calls them."""
    listed: list[tuple[str, str, str]] = []
    with contextlib.suppress(OSError):  # no driver, no GPUs
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        listed = re.findall(r"^GPU (\d+): (.*) \(UUID: (\S+)\)", answer, re.MULTILINE)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return {index: name for index, name, _ in listed}
    asked = [entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1")]
    # CUDA accepts any beginning of a UUID that is unique
    return {
        entry: next((name for index, name, uuid in listed if entry == index or uuid.startswith(entry)), "unknown")
        for entry in asked
    }


@dataclass
class _Running:
    """A job at work."""

    job: Job
    process: subprocess.Popen[bytes]
    gpus: list[str]
    started: float = field(default_factory=time.time)


class Queue:
    """Runs jobs as there is room for them, and whatever is added to the study meanwhile.

    Args:
        folder: of the study.
        jobs: all of it.
        gpus: all that may be used.
        slots: how many jobs that need no GPU run at once.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], gpus: Sequence[str], slots: int) -> None:
        self.folder = folder
        self.free_gpus = list(gpus)
        self.free_slots = slots
        self.running: list[_Running] = []
        self.given_up: dict[str, str] = {}  # what has failed or needs what has: by its id, that of what has failed
        self.finished = 0
        self._held = contextlib.ExitStack()
        self._held.enter_context(locked(folder / "runner.lock", wait=False))
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(folder / "runner.json", {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        self._take(jobs)

    def work(self) -> None:
        """Returns when there is nothing left to do.

        Ctrl-C, SIGTERM and the end of the terminal end what runs, in states from which the next run goes on. So does
        whatever kills this process: its jobs notice.
        """
        try:
            with _hangup_exits():
                while self._look():
                    time.sleep(SECONDS_BETWEEN_LOOKS)
        except BaseException:
            self._end_all()
            raise
        finally:
            self._held.close()

    def _take(self, jobs: Sequence[Job]) -> None:
        """Queues what is neither done nor runs nor has failed since."""
        states, at_work = current_states(self.folder, jobs), {entry.job.id for entry in self.running}
        self._read, self.ids = self._version(), states.keys()
        self.given_up = {
            name: failed
            for name, failed in self.given_up.items()
            if name in states and states[name].status != "pending"
        }
        self.waiting = [
            job
            for job in in_order(jobs)
            if states[job.id].status != "done" and job.id not in at_work and job.id not in self.given_up
        ]
        self.count = self.finished + len(self.waiting) + len(self.running)
        for job in self.waiting:
            update_state(self.folder, job.id, status="pending", pid=None, group=None, scheduler_id="", note="")

    def _version(self) -> int:
        return (self.folder / "study.json").stat().st_mtime_ns

    def _look(self) -> bool:
        """Notes what has ended and starts what can start; says whether there is more to do."""
        with locked(self.folder / "lock"):
            for entry in [entry for entry in self.running if entry.process.poll() is not None]:
                self._leave(entry)
            if self._version() != self._read:
                self._take(read_study_folder(self.folder)[1])
            self._start_what_can_start()
            more = bool(self.waiting or self.running)
            if not more:
                # While nobody can add to it: who comes later finds that nobody runs it.
                self._held.close()
            return more

    def _start_what_can_start(self) -> None:
        for job in list(self.waiting):
            if failed := [self.given_up[name] for name in job.depends_on if name in self.given_up]:
                self.waiting.remove(job)
                self.given_up[job.id] = failed[0]
                self.finished += 1
                update_state(self.folder, job.id, status="not run", note=f"needs {failed[0]}, which has failed")
                print(f"not run   {job.id}, which needs it", flush=True)
        undone = {job.id for job in self.waiting} | {entry.job.id for entry in self.running}
        for job in list(self.waiting):
            if undone.isdisjoint(job.depends_on) and self._has_room(job):
                self.waiting.remove(job)
                self._start(job)

    def _has_room(self, job: Job) -> bool:
        return len(self.free_gpus) >= job.resources.gpus if job.resources.gpus else self.free_slots > 0

    def _start(self, job: Job) -> None:
        gpus = self.free_gpus[: job.resources.gpus]
        self.free_gpus = self.free_gpus[job.resources.gpus :]
        self.free_slots -= not job.resources.gpus
        process = subprocess.Popen(
            [sys.executable, "-m", "nnunet_godc.study.run_job", "--watched", str(self.folder), job.id],
            env={**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})},
            stdin=subprocess.PIPE,  # whose end tells it that this process is gone
            # Ctrl-C reaches this process alone, which then ends them in good order.
            start_new_session=True,
        )
        self.running.append(_Running(job, process, gpus))
        print(f"started   {job.id}" + (f" on GPU {', '.join(gpus)}" if gpus else ""), flush=True)

    def _leave(self, entry: _Running) -> None:
        self.running.remove(entry)
        self.free_gpus += entry.gpus
        self.free_slots += not entry.job.resources.gpus
        if entry.process.stdin is not None:
            entry.process.stdin.close()
        state = read_state(self.folder, entry.job.id)
        took = duration(time.time() - entry.started)
        if entry.process.returncode == 0:
            self.finished += 1
            print(f"done      {entry.job.id} in {took}, {self.finished} of {self.count}", flush=True)
        elif state.note == CHANGED or self._version() != self._read or entry.job.id not in self.ids:
            print(f"ended     {entry.job.id}, which was changed", flush=True)
            self._read = 0  # so that it is queued again, if it still belongs to the study
        else:
            self.finished += 1
            self.given_up[entry.job.id] = entry.job.id
            log = job_folder(self.folder, entry.job.id).log
            print(f"FAILED    {entry.job.id} after {took}: {state.note}; the end of {log}:", flush=True)
            print(end_of_log(log), flush=True)

    def _end_all(self) -> None:
        if self.running:
            print("ending    " + ", ".join(entry.job.id for entry in self.running), flush=True)
        for entry in self.running:
            entry.process.terminate()
        for entry in self.running:
            entry.process.wait()


@contextlib.contextmanager
def _hangup_exits() -> Iterator[None]:
    """Within, SIGHUP does as SIGTERM does for the whole command, unless it is ignored, as nohup has it."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.getsignal(signal.SIGHUP)
    try:
        if before != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, leave)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
