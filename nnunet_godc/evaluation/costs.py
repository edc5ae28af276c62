"""What a training took, as far as nnU-Net's log in the folder of its fold says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from nnunet_godc.evaluation.metrics import ADDED_PARAMETERS, SECONDS_PER_EPOCH, TRAINING_HOURS
from nnunet_godc.training_log import read_line

LOGS = "training_log_*.txt"
_PARAMETERS = re.compile(r"It adds ([\d,]+) parameters")  # as our trainers say of what they put into the network


class Cost(NamedTuple):
    """One number about a training; the metric is one of `metrics.TRAINING_METRICS`."""

    fold: int | None
    metric: str
    value: float


def training_costs(folder: Path) -> list[Cost]:
    """Of every fold of a model, ``TRAINER__PLANS__CONFIGURATION``; nothing where there is no log.

    Hours are those of all epochs that are in the logs, once each: without validation, and without epochs that were
    lost to an interruption.
    """
    costs = []
    for fold in sorted(folder.glob("fold_*")):
        number = fold.name.removeprefix("fold_")
        if number.isdigit():
            costs += list(_of_fold(fold, int(number)))
    return costs


def _of_fold(folder: Path, fold: int) -> Iterator[Cost]:
    seconds: dict[int, float] = {}
    parameters, epoch = None, -1
    for log in sorted(folder.glob(LOGS)):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            entry = read_line(line)
            if entry is None:
                parameters = _PARAMETERS.search(line) or parameters
            elif entry.kind == "epoch":
                epoch = int(entry.text)
            elif entry.kind == "epoch time":
                seconds[epoch] = float(entry.text)
    if seconds:
        yield Cost(fold, SECONDS_PER_EPOCH, median(seconds.values()))
        yield Cost(fold, TRAINING_HOURS, sum(seconds.values()) / 3600)
    if parameters:
        yield Cost(fold, ADDED_PARAMETERS, float(parameters[1].replace(",", "")))
