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
    """One line of the table: a model's mean over cases, each metric over the cases where it is defined."""

    label: str
    model: str
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


def mean_row(label: str, model: str, counts: Iterable[Counts]) -> Row:
    """The mean of each metric over the cases where it is defined; NaN if it is nowhere."""
    cases = list(counts)
    return Row(
        label=label,
        model=model,
        dice=_mean(case.dice for case in cases),
        precision=_mean(case.precision for case in cases),
        recall=_mean(case.recall for case in cases),
    )


def format_table(rows: Iterable[Row]) -> str:
    """The rows as aligned text; an undefined metric is a dash."""
    lines = [f"{'label':<8} {'model':<10} {'Dice':>9} {'precision':>9} {'recall':>9}"]
    for row in rows:
        numbers = " ".join(
            f"{'-' if math.isnan(number) else f'{number:.3f}':>9}" for number in (row.dice, row.precision, row.recall)
        )
        lines.append(f"{row.label:<8} {row.model:<10} {numbers}")
    return "\n".join(lines)


def write_cases(path: Path, models: Mapping[str, dict[str, dict[str, Counts]]]) -> None:
    """Every model, case and label on a line of its own, as CSV; an undefined metric is an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "case", "label", "dice", "precision", "recall", "tp", "fp", "fn"])
        for model, cases in models.items():
            for case, labels in cases.items():
                for label, counts in labels.items():
                    metrics = (counts.dice, counts.precision, counts.recall)
                    voxels = (counts.true_positive, counts.false_positive, counts.false_negative)
                    numbers = ["" if math.isnan(metric) else f"{metric:.6f}" for metric in metrics]
                    writer.writerow([model, case, label, *numbers, *voxels])


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
