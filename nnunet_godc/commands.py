"""The commands that this package starts, and how long they take in words."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_godc.errors import UserError

LINES_SHOWN_ON_FAILURE = 20
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_END = 20.0  # that a command has after SIGTERM, before it is killed


def find_command(name: str) -> str:
    """Path of a command installed beside this Python, or else on the search path; `python` is this Python.

    Raises:
        UserError: there is none.
    """
    if name == "python":
        return sys.executable
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise UserError(f"the command {name} is not to be found; install nnU-Net with: pip install nnunetv2")
    return found


def run_command(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    watch: Callable[[], None] | None = None,
    begun: Callable[[int], object] | None = None,
    pass_fds: Sequence[int] = (),
) -> int:
    """Runs a command to its end and returns its exit status, minus the signal that ended it.

    Whatever ends this function before, such as Ctrl-C, ends the command and everything that it has started.

    Args:
        command: as `find_command` finds it, with its arguments.
        log: everything that it prints is added to.
        environment: all of it.
        watch: called about twice a second, and once at the end, to show how far it is.
        begun: called with the id of the command's process group.
        pass_fds: file descriptors that it inherits.

    Raises:
        UserError: there is no such command.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            [find_command(command[0]), *command[1:]],
            env={**environment, "PYTHONUNBUFFERED": "1"},  # or the log would lag behind
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, so that whatever it starts ends with it
            pass_fds=pass_fds,
        )
    try:
        if begun is not None:
            begun(process.pid)
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_BETWEEN_LOOKS if watch else None)
            if watch is not None:
                watch()
    except BaseException:
        _end(process)
        raise
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and everything that it started."""
    if not hasattr(os, "killpg"):  # Windows
        process.terminate()
        process.wait()
        return
    try:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    finally:
        # its worker processes too, which may have outlived it
        _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def end_of_log(log: Path) -> str:
    """The last lines of a log, as they are shown where a command fails."""
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_SHOWN_ON_FAILURE:]
    return "\n".join(f"    | {line}" for line in lines)


def duration(seconds: float) -> str:
    """``'8 s'``, ``'1 min 20 s'``, ``'5 h 3 min'``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def run_visibly(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], watch: Callable[[], None] | None = None
) -> None:
    """As `run_command`, and prints the command, how long it took, or the end of its log where it fails.

    Raises:
        UserError: there is no such command, or it fails.
    """
    started = time.monotonic()
    print(f"  $ {' '.join(command)}", flush=True)
    code = run_command(command, log=log, environment=environment, watch=watch)
    if code:
        print(end_of_log(log), flush=True)
        raise UserError(
            f"{command[0]} ended with exit status {code}; its last lines stand above, all that it printed in {log}"
        )
    print(f"    done in {duration(time.monotonic() - started)}", flush=True)


def small_environment(raw: Path, preprocessed: Path, results: Path) -> dict[str, str]:
    """This process's environment with nnU-Net's three folders, for trainings of minutes on the CPU.

    The user's own folders stay untouched: nothing but these variables tells nnU-Net where to write.
    """
    return {
        **os.environ,
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(preprocessed),
        "nnUNet_results": str(results),
        # A worker imports torch for several seconds before its first case; these cases are too small to pay for more.
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_wandb_enabled": "0",  # it has no place among the user's logged experiments
        "OMP_NUM_THREADS": "1",  # for the workers; nnU-Net gives its main process all cores by itself
        # Training, augmentation and whatever else runs share few cores: threads that spin while they wait for each
        # other made a step up to twenty times slower there.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",  # or progress would arrive in blocks, long after the fact
    }
