"""How well each method does: means and medians with their intervals, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_godc.evaluation.case_table import ALL_STATES, CaseTable, Method, Question, patient_means
from nnunet_godc.evaluation.metrics import LESION_SENSITIVITY
from nnunet_godc.evaluation.statistics import Interval, mean_intervals, median_intervals, proportion_intervals
from nnunet_godc.evaluation.units import shown


@dataclass(frozen=True)
class Summary:
    """One method and one question; NaN where there is no estimate or no interval.

    Attributes:
        patients: with a defined case.
        cases: defined (lesions, where the question is about a bin of volumes).
        undefined: cases left out, by the reason that `ALL_STATES` names.
        mean: over cases, `low` and `high` its 95 % interval over patients.
        median: over patients of their means over cases, with its interval.
        runs: mean of each training that a seed tells apart, over the same cases.
    """

    dataset: str
    cross_validated: bool
    method: Method
    question: Question
    patients: int
    cases: int
    undefined: dict[str, int]
    mean: float
    low: float
    high: float
    median: float
    median_low: float
    median_high: float
    runs: tuple[float, ...]


def summarise(table: CaseTable, *, resamples: int, seed: int) -> list[Summary]:
    """Every method on every question, method after method."""
    by_column = np.moveaxis(table.values, 0, 1)  # (C, M, K)
    methods, questions = len(table.methods), len(table.questions)
    totals, counts = table.by_patient(by_column.reshape(len(by_column), -1))  # (P, M * K)
    means = _means(table, totals, counts, resamples, seed)
    medians = median_intervals(patient_means(totals, counts))
    summaries = []
    for index in range(methods * questions):
        m, k = divmod(index, questions)
        left_out = np.isnan(table.values[m, :, k])
        reasons = np.bincount(table.states[m, left_out, k], minlength=len(ALL_STATES))
        bounds = shown(table.questions[k].metric)
        summaries.append(
            Summary(
                dataset=table.dataset,
                cross_validated=table.cross_validated,
                method=table.methods[m],
                question=table.questions[k],
                patients=int((counts[:, index] > 0).sum()),
                cases=int(counts[:, index].sum()),
                undefined={state: int(n) for state, n in list(zip(ALL_STATES, reasons, strict=True))[1:] if n},
                mean=float(means.estimate[index]),
                low=float(np.maximum(means.low[index], bounds.lowest)),
                high=float(np.minimum(means.high[index], bounds.highest)),
                median=float(medians.estimate[index]),
                median_low=float(medians.low[index]),
                median_high=float(medians.high[index]),
                runs=tuple(float(value) for value in table.runs[m][:, k]),
            )
        )
    return summaries


def _means(table: CaseTable, totals: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> Interval:
    """By the bootstrap, but for the lesions detected in a bin of volumes, of which all or none is a frequent result."""
    questions = table.questions * len(table.methods)
    detected = np.array([question.bin != "" and question.metric == LESION_SENSITIVITY for question in questions])
    ends = np.full((3, len(questions)), np.nan)
    for chosen, intervals in (
        (~detected, lambda t, c: mean_intervals(t, c, resamples=resamples, seed=seed)),
        (detected, proportion_intervals),
    ):
        found = intervals(totals[:, chosen], counts[:, chosen])
        ends[:, chosen] = found.estimate, found.low, found.high
    return Interval(*ends)
