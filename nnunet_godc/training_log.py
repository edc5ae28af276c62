"""How far a training is, from what nnU-Net writes while it trains. Loads no torch, hence no checkpoint."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Kind = Literal["epoch", "learning rate", "loss", "validation loss", "pseudo dice", "epoch time", "predicting"]

RECENT = 20  # epochs that the time left is reckoned from: what else the machine does changes with the hours
TAIL = 2**16  # bytes of the end of a log: more than so many epochs take, and the validation of hundreds of cases

# nnU-Net begins its lines with a time stamp; some versions leave it out in places.
_LINE = re.compile(
    r"\s*(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: )?\s*"
    r"(?:Epoch (\d+)|Current learning rate: (\S+)|train_loss (\S+)|val_loss (\S+)|Pseudo dice(.*)|"
    r"Epoch time: (\S+) s|predicting (\S+))\s*"
)
_KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of the groups
# not the 64 of np.float64(0.25)
_NUMBER = re.compile(r"(?<![\w.])(?:nan|\d[\d.e-]*)")


class Entry(NamedTuple):
    """One line of the log.

    Attributes:
        kind: what it tells: the epoch that begins, counted from 0; its learning rate; its mean loss on training
            batches, and on validation patches; the Dice of each class on these; the seconds that it took; the case
            that is predicted.
        text: the number, the numbers or the name, as it stands there.
    """

    kind: Kind
    text: str

    @property
    def numbers(self) -> list[float]:
        """Of "pseudo dice", one per class; NaN for one that was not there."""
        return [float(number) for number in _NUMBER.findall(self.text)]


def read_line(line: str) -> Entry | None:
    """What a line of the log or of the command's output tells; None for all other lines."""
    match = _LINE.fullmatch(line)
    return Entry(_KINDS[match.lastindex - 1], match[match.lastindex]) if match and match.lastindex else None


def number_of_epochs(debug: Path) -> int | None:
    """From debug.json in the folder of a fold, which nnU-Net writes when a training begins or goes on.

    None where it is not there yet.
    """
    try:
        return int(json.loads(debug.read_text())["num_epochs"])
    except (FileNotFoundError, KeyError, ValueError):
        return None


@dataclass(frozen=True)
class Progress:
    """The state of a training.

    Attributes:
        epochs: that are finished.
        of: how many there will be; None where nnU-Net has not said so yet.
        loss: of the latest epoch on training batches; None before the first.
        dice: pseudo Dice of each class in the latest epoch, on validation patches; NaN for one that was not there.
        seconds_left: of training; the validation that follows is not in it.
        validated: cases of the validation that were begun.
    """

    epochs: int = 0
    of: int | None = None
    loss: float | None = None
    dice: tuple[float, ...] = ()
    seconds_left: float | None = None
    validated: int = 0

    @property
    def mean_dice(self) -> float | None:
        defined = [value for value in self.dice if not math.isnan(value)]
        return statistics.fmean(defined) if defined else None


def read_progress(fold: Path) -> Progress:
    """The state of the training in nnU-Net's folder of one fold; the empty one where nothing has begun.

    A training that went on repeats epochs since its checkpoint, in a log of its own.
    """
    finished, begun = 0, 0
    loss: float | None = None
    dice: tuple[float, ...] = ()
    seconds: list[float] = []
    cases: set[str] = set()
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    for entry in filter(None, (read_line(line) for log in logs[-2:] for line in _end_of(log).splitlines())):
        if entry.kind == "epoch":
            begun = int(entry.text)
            cases.clear()
        elif entry.kind == "loss":
            loss = float(entry.text)
        elif entry.kind == "pseudo dice":
            dice = tuple(entry.numbers)
        elif entry.kind == "epoch time":
            finished = begun + 1
            seconds.append(float(entry.text))
        elif entry.kind == "predicting":
            cases.add(entry.text)
    of = number_of_epochs(fold / "debug.json")
    left = (of - finished) * statistics.median(seconds[-RECENT:]) if of and seconds and finished < of else None
    return Progress(finished, of, loss, dice, left, len(cases))


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL))
        return file.read().decode(errors="replace")
