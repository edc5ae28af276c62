"""Running nnU-Net's commands one after the other: full logs in files, progress on the screen."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_godc.commands import duration, find_command
from nnunet_godc.errors import UserError
from nnunet_godc.training_log import number_of_epochs, read_line

Watcher = Callable[[str], str | None]
"""Takes a line of a command's output; returns what is worth showing of it, or None."""

LINES_SHOWN_ON_FAILURE = 20


def nnunet_environment(raw: Path, preprocessed: Path, results: Path) -> dict[str, str]:
    """This process's environment with nnU-Net's three folders set, and one worker process at a time.

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
        "nnUNet_wandb_enabled": "0",  # a demo has no place among the user's logged experiments
        "OMP_NUM_THREADS": "1",  # for the workers; nnU-Net gives its main process all cores by itself
        # Training, augmentation and whatever else runs share few cores: threads that spin while they wait for each
        # other made a step up to twenty times slower there.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",  # or progress would arrive in blocks, long after the fact
    }


def run_command(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], watch: Watcher | None = None
) -> None:
    """Run `command` to its end; write all of its output to `log` and show what `watch` makes of each line.

    Raises:
        UserError: the command is missing or fails; the last lines of its log were printed.
    """
    started = time.monotonic()
    print(f"  $ {' '.join(command)}", flush=True)
    last_lines: deque[str] = deque(maxlen=LINES_SHOWN_ON_FAILURE)
    with (
        log.open("w", encoding="utf-8") as log_file,
        subprocess.Popen(
            [find_command(command[0]), *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a group of its own: what stops us stops its worker processes too
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log_file.write(line)
                last_lines.append(line.rstrip())
                shown = watch(line) if watch else None
                if shown:
                    print(f"    {shown}", flush=True)
        except BaseException:
            _kill_group(process)
            raise
    if process.returncode != 0:
        print("\n".join(f"    | {line}" for line in last_lines), flush=True)
        raise UserError(
            f"{command[0]} ended with exit status {process.returncode}; its last lines stand above, all of it in {log}"
        )
    print(f"    done in {duration(time.monotonic() - started)}", flush=True)


def _kill_group(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


@dataclass
class TrainingWatcher:
    """Condenses what nnU-Net prints per epoch into one line, with the time left.

    Attributes:
        debug_file: nnU-Net's debug.json of this fold, which tells the number of epochs once training runs.
        labels: names of the foreground classes in their order.
    """

    debug_file: Path
    labels: Sequence[str]
    _epoch: int = 0
    _loss: str = ""
    _dice: str = ""
    _seconds: list[float] = field(default_factory=list)

    def __call__(self, line: str) -> str | None:
        entry = read_line(line)
        if entry is None:
            return None
        if entry.kind == "epoch":
            self._epoch = int(entry.text)
        elif entry.kind == "loss":
            self._loss = entry.text
        elif entry.kind == "pseudo dice":
            named = zip(self.labels, entry.numbers, strict=False)
            self._dice = ", ".join(f"{name} {value:.2f}" for name, value in named)
        elif entry.kind == "epoch time":
            self._seconds.append(float(entry.text))
            return self._summary()
        elif entry.kind == "predicting":
            return f"validating on {entry.text}"
        return None

    def _summary(self) -> str:
        epochs = number_of_epochs(self.debug_file)
        assert epochs is not None  # nnU-Net writes it before the first epoch
        left = (epochs - self._epoch - 1) * sum(self._seconds) / len(self._seconds)
        remaining = f", about {duration(left)} left" if left else ""
        return f"epoch {self._epoch + 1} of {epochs}: loss {self._loss}, pseudo Dice {self._dice}{remaining}"
