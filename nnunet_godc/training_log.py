"""What nnU-Net tells of a training while it runs. Loads no torch, hence no checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["epoch", "learning rate", "loss", "validation loss", "pseudo dice", "epoch time", "predicting"]

# nnU-Net begins its lines with a time stamp; some versions leave it out in places.
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")
_LINES: dict[Kind, re.Pattern[str]] = {
    "epoch": re.compile(r"Epoch (\d+)"),
    "learning rate": re.compile(r"Current learning rate: (\S+)"),
    "loss": re.compile(r"train_loss (\S+)"),
    "validation loss": re.compile(r"val_loss (\S+)"),
    "pseudo dice": re.compile(r"Pseudo dice(.*)"),
    "epoch time": re.compile(r"Epoch time: (\S+) s"),
    "predicting": re.compile(r"predicting (\S+)"),
}
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
    message = _STAMP.sub("", line).strip()
    for kind, pattern in _LINES.items():
        if match := pattern.fullmatch(message):
            return Entry(kind, match[1])
    return None


def number_of_epochs(debug: Path) -> int | None:
    """From debug.json in the folder of a fold, which nnU-Net writes when a training begins or goes on.

    None where it is not there yet.
    """
    try:
        return int(json.loads(debug.read_text())["num_epochs"])
    except (FileNotFoundError, KeyError, ValueError):
        return None
