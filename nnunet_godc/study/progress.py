"""How far a training is, from what nnU-Net writes while it trains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunet_godc.training_log import number_of_epochs, read_line

_RECENT = 20  # epochs that the time left is reckoned from: what else the machine does changes with the hours


@dataclass(frozen=True)
class Progress:
    """The state of a training.

    Attributes:
        epochs: that are finished.
        of: how many there will be; None where nnU-Net has not said so yet.
        loss: of the latest epoch on training batches; None before the first.
        pseudo_dice: mean over classes of the latest epoch, on validation patches; None before the first.
        seconds_left: of training; the validation that follows is not in it.
        validated: cases of the validation that were begun.
    """

    epochs: int = 0
    of: int | None = None
    loss: float | None = None
    pseudo_dice: float | None = None
    seconds_left: float | None = None
    validated: int = 0


def read_progress(fold: Path) -> Progress:
    """The state of the training in nnU-Net's folder of one fold; the empty one where nothing has begun."""
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    lines = (line for path in logs for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return _progress(lines, number_of_epochs(fold / "debug.json"))


def _progress(lines: Iterable[str], of: int | None) -> Progress:
    """From the lines of all logs, the oldest first: a training that went on repeats epochs since its checkpoint."""
    finished, begun = 0, 0
    loss: float | None = None
    pseudo_dice: float | None = None
    seconds: list[float] = []
    cases: set[str] = set()
    for entry in filter(None, map(read_line, lines)):
        if entry.kind == "epoch":
            begun = int(entry.text)
            cases.clear()
        elif entry.kind == "loss":
            loss = float(entry.text)
        elif entry.kind == "pseudo dice":
            defined = [value for value in entry.numbers if not math.isnan(value)]
            pseudo_dice = statistics.fmean(defined) if defined else None
        elif entry.kind == "epoch time":
            finished = begun + 1
            seconds.append(float(entry.text))
        elif entry.kind == "predicting":
            cases.add(entry.text)
    left = None
    if of is not None and seconds and finished < of:
        left = (of - finished) * statistics.median(seconds[-_RECENT:])
    return Progress(finished, of, loss, pseudo_dice, left, len(cases))
