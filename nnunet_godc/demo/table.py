"""Dice, precision and recall from the counts in nnU-Net's summary.json."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Counts:
    """Voxels of one label in one case, against the reference; a ratio without voxels is NaN."""

    true_positive: int
    false_positive: int
    false_negative: int

    @property
    def dice(self) -> float:
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def precision(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_negative)


@dataclass(frozen=True)
class Row:
    """One line of the table: a label in one case, or its mean over cases."""

    case: str
    label: str
    dice: float
    precision: float
    recall: float


def read_counts(summary: Path, labels: Mapping[str, int]) -> dict[str, dict[str, Counts]]:
    """Counts per case and label name from the summary.json that nnUNetv2_evaluate_folder writes.

    Args:
        summary: the file.
        labels: value of each label by name.
    """
    cases = json.loads(summary.read_text())["metric_per_case"]
    return {
        Path(case["prediction_file"]).name.removesuffix(".nii.gz"): {
            name: Counts(*(int(case["metrics"][str(value)][count]) for count in ("TP", "FP", "FN")))
            for name, value in labels.items()
        }
        for case in cases
    }


def table_rows(counts: Mapping[str, Mapping[str, Counts]]) -> list[Row]:
    """Every case, then the mean; each metric averages over the cases where it is defined, and is NaN if it is nowhere.

    Args:
        counts: counts per case and label, as `read_counts` gives them.
    """
    rows = [
        Row(case, label, count.dice, count.precision, count.recall)
        for case, labels in counts.items()
        for label, count in labels.items()
    ]
    means = [
        Row(
            "mean",
            label,
            dice=_mean(row.dice for row in rows if row.label == label),
            precision=_mean(row.precision for row in rows if row.label == label),
            recall=_mean(row.recall for row in rows if row.label == label),
        )
        for label in dict.fromkeys(row.label for row in rows)
    ]
    return rows + means


def format_table(rows: Iterable[Row]) -> str:
    """The rows as aligned text; an undefined metric is a dash."""
    rows = list(rows)
    width = max(len("case"), *(len(row.case) for row in rows))
    lines = [f"{'case':<{width}} {'label':<8} {'Dice':>9} {'precision':>9} {'recall':>9}"]
    for row in rows:
        numbers = " ".join(
            f"{'-' if math.isnan(number) else f'{number:.3f}':>9}" for number in (row.dice, row.precision, row.recall)
        )
        lines.append(f"{row.case:<{width}} {row.label:<8} {numbers}")
    return "\n".join(lines)


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """The rows as CSV with six decimals; an undefined metric is an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "label", "dice", "precision", "recall"])
        for row in rows:
            numbers = ("" if math.isnan(value) else f"{value:.6f}" for value in (row.dice, row.precision, row.recall))
            writer.writerow([row.case, row.label, *numbers])


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
