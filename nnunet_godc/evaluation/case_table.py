"""Measurements arranged for statistics: methods x cases x questions, with the cases of a patient side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.bootstrap import Floats
from nnunet_godc.evaluation.metrics import STATES, better

MISSING = "not measured"
ALL_STATES = (*STATES, MISSING)
NAMES = ("dataset", "configuration", "plans", "trainer", "case", "patient", "label", "metric", "state")
COLUMNS = (*NAMES, "fold", "value")


@dataclass(frozen=True)
class Method:
    """A row of a table: a variant is a trainer, or what its trainings with several seeds are called together."""

    configuration: str
    plans: str
    variant: str


@dataclass(frozen=True)
class Question:
    """A column of a table; `bin` is that of the lesions' volumes, "" where whole cases are measured."""

    label: str
    metric: str
    bin: str = ""


@dataclass(frozen=True)
class CaseTable:
    """What several methods were measured at on the cases of one dataset.

    Attributes:
        dataset: its name.
        cross_validated: whether each case was predicted by a training that had not seen it, as part of a fold;
            otherwise no fold is named, as for a test set that an ensemble predicts.
        methods: M of them, in the order in which they appear.
        questions: K, likewise.
        patients: P names; their cases stand in this order.
        first_case: index of each patient's first case, (P,).
        values: (M, C, K); several runs of a method are averaged case by case. NaN where it is not defined in every run.
        compared: as `values`, but of metrics that are best at zero the distance from it, taken before averaging:
            an average over seeds comes nearer to zero than each of them.
        states: index into `ALL_STATES`, (M, C, K), uint8; that of the runs which comes last there. What no method was
            measured at is not missing from any.
        runs: per method, mean of each of its trainings that a seed tells apart, over the cases of `values`, (runs, K).
    """

    dataset: str
    cross_validated: bool
    methods: tuple[Method, ...]
    questions: tuple[Question, ...]
    patients: tuple[str, ...]
    first_case: NDArray[np.intp]
    values: Floats
    compared: Floats
    states: NDArray[np.uint8]
    runs: tuple[Floats, ...]

    def by_patient(self, values: Floats) -> tuple[Floats, Floats]:
        """Sums over the defined cases of each patient, and how many these are.

        Args:
            values: (cases, columns), with NaN where undefined.

        Returns:
            Both (patients, columns).
        """
        defined = np.isfinite(values)
        totals = np.add.reduceat(np.where(defined, values, 0), self.first_case, axis=0)
        return totals, np.add.reduceat(defined.astype(np.float64), self.first_case, axis=0)


def patient_means(totals: Floats, counts: Floats) -> Floats:
    """Mean over the defined cases of each patient, (patients, columns); NaN where there is none."""
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def case_tables(measurements: pd.DataFrame, variant_of: Callable[[str], str]) -> list[CaseTable]:
    """One table for each dataset, cross-validation and other predictions apart.

    Args:
        measurements: one row per case, label and metric of every run, with the columns dataset, configuration, plans,
            trainer, fold (missing where there is none), case, patient, label, metric, value (NaN where undefined) and
            state; `bin` and `lesion` are optional. A case that several folds predicted counts with their average.
        variant_of: what a trainer is called in the table; trainers called alike are runs that differ in their seed.

    Raises:
        UserError: columns or entries are missing, a case was measured twice, or belongs to two patients.
    """
    _check(measurements)
    groups = measurements.groupby(["dataset", measurements["fold"].notna()], sort=False, observed=True)
    return [_case_table(rows, bool(cross_validated), variant_of) for (_, cross_validated), rows in groups]


def _check(measurements: pd.DataFrame) -> None:
    missing = [name for name in COLUMNS if name not in measurements.columns]
    if missing:
        raise UserError(f"the measurements lack the column {missing[0]}; write them with nnunet-godc evaluate")
    if measurements.empty:
        raise UserError("there are no measurements; evaluate at least one case first")
    for name in NAMES:
        empty = np.flatnonzero(measurements[name].isna())
        if len(empty):
            raise UserError(f"row {empty[0]} of the measurements has no {name}; fill it in, or leave the row out")
    unknown = sorted(set(map(str, measurements["state"].unique())) - set(STATES))
    if unknown:
        raise UserError(f"{unknown[0]!r} is not a state of a measurement; known are {', '.join(STATES)}")
    values = measurements["value"].to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(np.isinf(values) | (np.isnan(values) & (measurements["state"] == STATES[0]).to_numpy()))
    if len(wrong):
        row = measurements.iloc[wrong[0]]
        raise UserError(
            f"{row['metric']} of {row['label']} in {row['case']} is {row['value']}; write a finite number, or into "
            "the column state why it is not defined"
        )


def _case_table(rows: pd.DataFrame, cross_validated: bool, variant_of: Callable[[str], str]) -> CaseTable:
    keys = rows.assign(**{name: "" for name in ("bin", "lesion") if name not in rows})
    run, run_names = _numbered(keys, ["configuration", "plans", "trainer"])
    unit, unit_names = _numbered(keys, ["patient", "case", "lesion"], sort=True)
    question, question_names = _numbered(keys, ["label", "metric", "bin"])
    cases = [name[1:] for name in unit_names]
    if len(set(cases)) < len(cases):
        twice = next(name for index, name in enumerate(cases) if name in cases[:index])
        raise UserError(f"case {twice[0]} belongs to two patients; give it the same one in all measurements")

    shape = (len(run_names), len(unit_names), len(question_names))
    place = np.ravel_multi_index((run, unit, question), shape)
    _check_measured_once(rows, place)
    size = int(np.prod(shape))
    times = np.bincount(place, minlength=size)
    with np.errstate(invalid="ignore"):
        values = np.bincount(place, rows["value"].to_numpy(dtype=np.float64), size) / np.where(times > 0, times, np.nan)
    states = np.full(size, ALL_STATES.index(MISSING), dtype=np.uint8)
    states[times > 0] = 0
    code, entries = pd.factorize(rows["state"])
    np.maximum.at(states, place, np.array([STATES.index(str(entry)) for entry in entries], dtype=np.uint8)[code])

    values, states = values.reshape(shape), states.reshape(shape)
    states[:, (states == ALL_STATES.index(MISSING)).all(axis=0)] = 0  # nobody's: a lesion of another bin, say
    runs_of: dict[Method, list[int]] = {}
    for index, (configuration, plans, trainer) in enumerate(run_names):
        runs_of.setdefault(Method(configuration, plans, variant_of(trainer)), []).append(index)
    best_at_zero = [index for index, (_, metric, _) in enumerate(question_names) if better(metric) == "zero"]
    compared = values.copy()
    compared[:, :, best_at_zero] = np.abs(compared[:, :, best_at_zero])
    patients = [name[0] for name in unit_names]
    first_case = [index for index, name in enumerate(patients) if index == 0 or name != patients[index - 1]]
    return CaseTable(
        dataset=str(rows["dataset"].iloc[0]),
        cross_validated=cross_validated,
        methods=tuple(runs_of),
        questions=tuple(Question(*name) for name in question_names),
        patients=tuple(patients[index] for index in first_case),
        first_case=np.array(first_case, dtype=np.intp),
        values=np.stack([values[runs].mean(axis=0) for runs in runs_of.values()]),
        compared=np.stack([compared[runs].mean(axis=0) for runs in runs_of.values()]),
        states=np.stack([states[runs].max(axis=0) for runs in runs_of.values()]),
        runs=tuple(_means(values[runs]) for runs in runs_of.values()),
    )


def _numbered(
    rows: pd.DataFrame, names: list[str], *, sort: bool = False
) -> tuple[NDArray[np.int64], list[tuple[str, ...]]]:
    """Numbers the different entries of some columns, by appearance or in order; gives them by number."""
    codes: NDArray[np.int64] = np.zeros(len(rows), dtype=np.int64)
    found: list[tuple[str, ...]] = [()]
    for name in names:
        code, distinct = pd.factorize(rows[name])
        entries = [str(entry) for entry in distinct]
        if sort:
            order = sorted(range(len(entries)), key=entries.__getitem__)
            code, entries = np.argsort(order)[code], [entries[index] for index in order]
        combined, numbers = np.unique(codes * len(entries) + code, return_inverse=True)
        codes = numbers.reshape(-1)
        found = [(*found[number // len(entries)], entries[number % len(entries)]) for number in combined]
    return codes, found


def _check_measured_once(rows: pd.DataFrame, place: NDArray[np.int64]) -> None:
    fold = rows["fold"].fillna(-1).to_numpy(dtype=np.int64)
    order = np.lexsort((fold, place))
    same = (np.diff(place[order]) == 0) & (np.diff(fold[order]) == 0)
    if same.any():
        row = rows.iloc[order[1:][same][0]]
        raise UserError(
            f"{row['metric']} of {row['label']} in {row['case']} is there twice for {row['trainer']}, "
            f"{row['configuration']}, {row['plans']}; evaluate every case once"
        )


def _means(values: Floats) -> Floats:
    """Over the cases that all runs define, (runs, C, K) to (runs, K)."""
    defined = np.isfinite(values).all(axis=0)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=0)
    return means
