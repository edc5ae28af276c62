"""The queue on this machine: one job per GPU, and a few at once that need none."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_godc.commands import duration
from nnunet_godc.errors import UserError
from nnunet_godc.study.folder import is_done, job_folder, read_state, update_state
from nnunet_godc.study.job_lock import is_held, job_lock
from nnunet_godc.study.jobs import Job, dependents, in_order

LINES_SHOWN_ON_FAILURE = 20
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_CANCEL = 60.0


class LocalExecutor:
    """Runs jobs as processes of this machine.

    Args:
        slots: how many jobs that need no GPU run at once; None is one, since nnU-Net's own commands share the cores
            among worker processes.
    """

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots or 1

    def run(self, folder: Path, jobs: Sequence[Job]) -> None:
        # In this order: what ends in between is either done, or has failed and is told.
        held = {job.id for job in jobs if is_held(job_folder(folder, job.id).lock)}
        undone = [job for job in in_order(jobs) if not is_done(folder, job)]
        gpus = visible_gpus() if any(job.resources.gpus for job in undone) else []
        for job in undone:
            if job.resources.gpus > len(gpus):
                raise UserError(
                    f"{job.id} needs {job.resources.gpus} GPU(s) and this machine offers {len(gpus)}; set "
                    f"`resources: device: cpu` or fewer gpus in the study file, or run it with --executor slurm."
                )
        _Queue(folder, undone, held, gpus, self.slots).work()

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> None:
        told = [job.id for job in jobs if _tell_to_end(folder, job.id)]
        deadline = time.monotonic() + SECONDS_TO_CANCEL
        while remaining := [name for name in told if is_held(job_folder(folder, name).lock)]:
            if time.monotonic() > deadline:
                state = read_state(folder, remaining[0])
                raise UserError(f"{remaining[0]}, process {state.group or state.pid}, does not end; end it yourself.")
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.refresh(folder, jobs)

    def refresh(self, folder: Path, jobs: Sequence[Job]) -> None:
        for job in jobs:
            files = job_folder(folder, job.id)
            if not _seems_to_run_here(folder, job) or not os.access(files.path, os.W_OK):
                continue
            with contextlib.suppress(BlockingIOError), job_lock(files.lock, wait=False):
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


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1")]
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ModuleNotFoundError, pynvml.NVMLError):
        return []
    count = pynvml.nvmlDeviceGetCount()
    pynvml.nvmlShutdown()
    return [str(index) for index in range(count)]


@dataclass
class _Running:
    """A job at work; `process` is None where an earlier run began it, whose end its lock tells."""

    job: Job
    process: subprocess.Popen[bytes] | None
    gpus: list[str]
    started: float = field(default_factory=time.time)


class _Queue:
    """Runs jobs as there is room for them.

    Args:
        folder: of the study.
        undone: the jobs, each after those it depends on.
        held: ids of those that run already, since a queue that was killed leaves its jobs running.
        gpus: all that may be used, the jobs that run already included.
        slots: how many jobs that need no GPU run at once.
    """

    def __init__(
        self, folder: Path, undone: Sequence[Job], held: Collection[str], gpus: Sequence[str], slots: int
    ) -> None:
        self.folder = folder
        self.waiting = [job for job in undone if job.id not in held]
        self.count = len(undone)
        self.finished = 0
        self.free_gpus = list(gpus)
        self.free_slots = slots
        self.running: list[_Running] = []
        for job in self.waiting:
            self._set_back(job)
        for job in undone:
            if job.id in held:
                self._take_over(job)

    def _set_back(self, job: Job) -> None:
        fresh: dict[str, Any] = {"pid": None, "group": None, "scheduler_id": "", "gpus": "", "note": ""}
        update_state(self.folder, job.id, status="pending", **fresh)

    def _take_over(self, job: Job) -> None:
        state = read_state(self.folder, job.id)
        gpus = [gpu for gpu in state.gpus.split(",") if gpu in self.free_gpus and state.host == socket.gethostname()]
        self._enter(_Running(job, None, gpus, state.start or time.time()))
        print(f"goes on   {job.id}{_on(gpus)}, which an earlier run began", flush=True)

    def _enter(self, entry: _Running) -> None:
        self.free_gpus = [gpu for gpu in self.free_gpus if gpu not in entry.gpus]
        self.free_slots -= not entry.job.resources.gpus
        self.running.append(entry)

    def _leave(self, entry: _Running) -> None:
        self.running.remove(entry)
        self.free_gpus += entry.gpus
        self.free_slots += not entry.job.resources.gpus

    def work(self) -> None:
        try:
            while self.waiting or self.running:
                self._start_what_can_start()
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for entry in [entry for entry in self.running if self._has_ended(entry)]:
                    self._leave(entry)
                    self._conclude(entry)
        except BaseException:
            self._end_all()
            raise

    def _start_what_can_start(self) -> None:
        undone = {job.id for job in self.waiting} | {entry.job.id for entry in self.running}
        for job in list(self.waiting):
            if undone.isdisjoint(job.depends_on) and self._has_room(job):
                self.waiting.remove(job)
                self._start(job)

    def _has_room(self, job: Job) -> bool:
        return len(self.free_gpus) >= job.resources.gpus if job.resources.gpus else self.free_slots > 0

    def _start(self, job: Job) -> None:
        gpus = self.free_gpus[: job.resources.gpus]
        update_state(self.folder, job.id, gpus=",".join(gpus))
        # Ctrl-C reaches this process alone, which then ends them in good order.
        process = subprocess.Popen(
            [sys.executable, "-m", "nnunet_godc.study.run_job", str(self.folder), job.id],
            env={**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._enter(_Running(job, process, gpus))
        print(f"started   {job.id}{_on(gpus)}", flush=True)

    def _has_ended(self, entry: _Running) -> bool:
        if entry.process is None:
            return not is_held(job_folder(self.folder, entry.job.id).lock)
        return entry.process.poll() is not None

    def _conclude(self, entry: _Running) -> None:
        state = read_state(self.folder, entry.job.id)
        done = entry.process.returncode == 0 if entry.process else is_done(self.folder, entry.job)
        if entry.process is None and not done and state.status != "failed":
            # Nobody has told what has become of it, or somebody else has ended it.
            self._set_back(entry.job)
            self.waiting.append(entry.job)
            return
        self.finished += 1
        took = duration(time.time() - entry.started)
        if done:
            print(f"done      {entry.job.id} in {took}, {self.finished} of {self.count}", flush=True)
            return
        log = job_folder(self.folder, entry.job.id).log
        print(f"FAILED    {entry.job.id} after {took}: {state.note}; the end of {log}:", flush=True)
        print("\n".join(f"    | {line}" for line in last_lines(log)), flush=True)
        self._give_up_what_needs(entry.job)

    def _give_up_what_needs(self, failed: Job) -> None:
        lost = set(dependents(failed.id, self.waiting))
        for job in [job for job in self.waiting if job.id in lost]:
            self.waiting.remove(job)
            self.finished += 1
            update_state(self.folder, job.id, status="not run", note=f"needs {failed.id}, which has failed")
            print(f"not run   {job.id}, which needs it", flush=True)

    def _end_all(self) -> None:
        if self.running:
            print("ending    " + ", ".join(entry.job.id for entry in self.running), flush=True)
        for entry in self.running:
            if entry.process is None:
                _tell_to_end(self.folder, entry.job.id)
            else:
                entry.process.terminate()
        for entry in self.running:
            if entry.process is not None:
                entry.process.wait()


def _on(gpus: Sequence[str]) -> str:
    return f" on GPU {', '.join(gpus)}" if gpus else ""


def last_lines(log: Path) -> list[str]:
    """The end of a log, as it is shown for a job that failed."""
    if not log.exists():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_SHOWN_ON_FAILURE:]
