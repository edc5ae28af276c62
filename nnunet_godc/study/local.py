"""The queue on this machine: one job per GPU, and a few at once that need none."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_godc.commands import duration
from nnunet_godc.errors import UserError
from nnunet_godc.study.folder import is_done, job_folder, read_state, update_state
from nnunet_godc.study.job_lock import is_held, job_lock
from nnunet_godc.study.jobs import Job, dependents, in_order

LINES_SHOWN_ON_FAILURE = 20
SECONDS_BETWEEN_LOOKS = 0.2


class LocalExecutor:
    """Runs jobs as processes of this machine.

    Args:
        slots: how many jobs that need no GPU run at once; None is one, since nnU-Net's own commands share the cores
            among worker processes.
    """

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots or 1

    def run(self, folder: Path, jobs: Sequence[Job]) -> None:
        jobs = in_order(jobs)
        waiting = [job for job in jobs if not is_done(folder, job)]
        for job in waiting:
            state = read_state(folder, job.id)
            if state.status in ("queued", "running") and state.scheduler_id:
                raise UserError(
                    f"{job.id} is job {state.scheduler_id} of the cluster; end it with "
                    f"`nnunet-godc study cancel {folder}`, or leave the study to --executor slurm."
                )
        gpus = visible_gpus() if any(job.resources.gpus for job in waiting) else []
        for job in waiting:
            if job.resources.gpus > len(gpus):
                raise UserError(
                    f"{job.id} needs {job.resources.gpus} GPU(s) and this machine offers {len(gpus)}; set "
                    f"`resources: device: cpu` or fewer gpus in the study file, or run it with --executor slurm."
                )
            update_state(folder, job.id, status="pending", note="")
        _Queue(folder, jobs, waiting, gpus, self.slots).work()

    def cancel(self, folder: Path, jobs: Sequence[Job]) -> int:
        ended = 0
        for job in jobs:
            state = read_state(folder, job.id)
            if state.host == socket.gethostname() and state.group and is_held(job_folder(folder, job.id).lock):
                # Its watcher, if there is one, writes what has become of it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(state.group, signal.SIGTERM)
                    ended += 1
        return ended

    def refresh(self, folder: Path, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if not _seems_to_run_here(folder, job):
                continue
            with contextlib.suppress(BlockingIOError), job_lock(job_folder(folder, job.id).lock, wait=False):
                # It may just have ended by itself; nobody else writes while the lock is held here.
                if _seems_to_run_here(folder, job):
                    update_state(folder, job.id, status="interrupted", note="its process is gone")


def _seems_to_run_here(folder: Path, job: Job) -> bool:
    state = read_state(folder, job.id)
    return state.status == "running" and state.host == socket.gethostname()


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
    job: Job
    process: subprocess.Popen[bytes]
    gpus: list[str]
    started: float = field(default_factory=time.monotonic)


class _Queue:
    def __init__(
        self, folder: Path, jobs: Sequence[Job], waiting: Sequence[Job], gpus: Sequence[str], slots: int
    ) -> None:
        self.folder = folder
        self.jobs = list(jobs)
        self.waiting = list(waiting)
        self.count = len(self.waiting)
        self.finished = 0
        self.free_gpus = list(gpus)
        self.free_slots = slots
        self.running: list[_Running] = []

    def work(self) -> None:
        try:
            while self.waiting or self.running:
                self._start_what_can_start()
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for running in [entry for entry in self.running if entry.process.poll() is not None]:
                    self._conclude(running)
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
        gpus = [self.free_gpus.pop(0) for _ in range(job.resources.gpus)]
        if not gpus:
            self.free_slots -= 1
        # Ctrl-C reaches this process alone, which then ends them in good order.
        process = subprocess.Popen(
            [sys.executable, "-m", "nnunet_godc.study.run_job", str(self.folder), job.id],
            env={**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.running.append(_Running(job, process, gpus))
        where = f" on GPU {', '.join(gpus)}" if gpus else ""
        print(f"started   {job.id}{where}", flush=True)

    def _conclude(self, entry: _Running) -> None:
        self.running.remove(entry)
        self.free_gpus += entry.gpus
        self.free_slots += not entry.gpus
        self.finished += 1
        took = duration(time.monotonic() - entry.started)
        if entry.process.returncode == 0:
            print(f"done      {entry.job.id} in {took}, {self.finished} of {self.count}", flush=True)
            return
        state = read_state(self.folder, entry.job.id)
        log = job_folder(self.folder, entry.job.id).log
        print(f"FAILED    {entry.job.id} after {took}: {state.note}; the end of {log}:", flush=True)
        print("\n".join(f"    | {line}" for line in last_lines(log)), flush=True)
        self._give_up_what_needs(entry.job)

    def _give_up_what_needs(self, failed: Job) -> None:
        lost = set(dependents(failed.id, self.jobs))
        for job in [job for job in self.waiting if job.id in lost]:
            self.waiting.remove(job)
            self.finished += 1
            update_state(self.folder, job.id, status="not run", note=f"needs {failed.id}, which has failed")
            print(f"not run   {job.id}, which needs it", flush=True)

    def _end_all(self) -> None:
        if self.running:
            print("ending    " + ", ".join(entry.job.id for entry in self.running), flush=True)
        for entry in self.running:
            entry.process.terminate()
        for entry in self.running:
            entry.process.wait()


def last_lines(log: Path) -> list[str]:
    """The end of a log, as it is shown for a job that failed."""
    if not log.exists():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_SHOWN_ON_FAILURE:]
