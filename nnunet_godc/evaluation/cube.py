"""The long table arranged for statistics: trainings x cases x questions, with the cases of a patient side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.bootstrap import Floats
from nnunet_godc.evaluation.metrics import LESION_METRICS, NOT_MEASURED, STATES, better, volume_bins
from nnunet_godc.seeded_names import without_seed

ALL_STATES = (*STATES, NOT_MEASURED)
OVER_LABELS = "mean over labels"
NO_FOLD, NOT_THERE = -1, -2


@dataclass(frozen=True)
class Method:
    """A row of a table: a trainer without its seed, and what it was trained with."""

    configuration: str
    plans: str
    trainer: str


@dataclass(frozen=True)
class Endpoint:
    """A column of a table; `bin` is that of the lesions' volumes, "" where whole cases are measured."""

    label: str
    metric: str
    bin: str = ""


@dataclass(frozen=True)
class Side:
    """A method on all cases: trainings of one group of cases predicted the same cases, as of a fold.

    Attributes:
        values: mean over the trainings of the case's group, NaN unless each of them defines it, (C, K).
        states: index into `ALL_STATES`, of its trainings the last one there, (C, K), uint8.
        groups: indices of the trainings, and which cases they predicted, (C,), bool.
    """

    values: Floats
    states: NDArray[np.uint8]
    groups: tuple[tuple[NDArray[np.intp], NDArray[np.bool_]], ...]


@dataclass(frozen=True)
class Cube:
    """What several methods were measured at on the cases of one dataset.

    Attributes:
        dataset: its name.
        cross_validated: whether each case was predicted by a training that had not seen it, as part of a fold;
            otherwise no fold is named, as for a test set.
        methods: M of them, in the order in which they appear.
        questions: K, likewise; first the means over labels.
        label_columns: of each mean over labels, the questions that it is the mean of.
        patients: P names; their cases stand in this order.
        cases: C names; of lesions that of the case which each lies in.
        first_case: index of each patient's first case, (P,).
        trainings: per method, the indices of its trainings that a seed tells apart.
        seeds: of each training, -1 without.
        values: (R, C, K') of the R trainings and the K' questions without means over labels; NaN where undefined.
        states: index into `ALL_STATES`, (R, C, K'), uint8.
        fold_of: of each case in each training, `NO_FOLD` or `NOT_THERE`, (R, C).
    """

    dataset: str
    cross_validated: bool
    methods: tuple[Method, ...]
    endpoints: tuple[Endpoint, ...]
    label_columns: tuple[tuple[int, ...], ...]
    patients: tuple[str, ...]
    cases: tuple[str, ...]
    first_case: NDArray[np.intp]
    trainings: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    values: Floats
    states: NDArray[np.uint8]
    fold_of: NDArray[np.int64]

    @property
    def compared(self) -> Floats:
        """As `values`, but of metrics that are best at zero the distance from it.

        Taken before averaging: an average over trainings comes nearer to zero than each of them.
        """
        at_zero = [k for k, endpoint in enumerate(self.measured_endpoints) if better(endpoint.metric) == "zero"]
        if not at_zero:
            return self.values
        compared = self.values.copy()
        compared[:, :, at_zero] = np.abs(compared[:, :, at_zero])
        return compared

    @property
    def measured_endpoints(self) -> tuple[Endpoint, ...]:
        return self.endpoints[len(self.label_columns) :]

    def side(self, method: int, values: Floats) -> Side:
        """One method, with the trainings of each case averaged.

        A training that has no case of a fold does not count there; a case that one training of its fold lacks is
        not measured.
        """
        runs = np.array(self.trainings[method])
        folds = self.fold_of[runs]  # (runs, C)
        fold = np.where(folds == NOT_THERE, np.iinfo(np.int64).max, folds).min(axis=0)
        averaged = np.full(values.shape[1:], np.nan)
        states = np.full(values.shape[1:], ALL_STATES.index(NOT_MEASURED), np.uint8)
        groups = []
        for number in np.unique(fold[(folds != NOT_THERE).any(axis=0)]):
            cases = fold == number
            there = runs[(folds == number).any(axis=1)]
            if len(there) == len(values) and cases.all():  # no copy of what may be large
                averaged, states = values.mean(axis=0), self.states.max(axis=0)
            else:
                averaged[cases] = values[np.ix_(there, cases)].mean(axis=0)
                states[cases] = self.states[np.ix_(there, cases)].max(axis=0)
            groups.append((there, cases))
        return Side(averaged, states, tuple(groups))

    def by_patient(self, values: Floats) -> tuple[Floats, Floats]:
        """Sums over the defined cases of each patient, and how many these are.

        Means over labels come first: of each patient the value whose mean over patients is the mean over labels of the
        means over cases, and whose spread is that of this mean's (the patient's influence on it).

        Args:
            values: (C, K'), with NaN where undefined.

        Returns:
            Both (P, K).
        """
        defined = np.isfinite(values)
        totals = np.add.reduceat(np.where(defined, values, 0), self.first_case, axis=0)
        counts = np.add.reduceat(defined.astype(np.float64), self.first_case, axis=0)
        if not self.label_columns:
            return totals, counts
        number = counts.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = totals.sum(axis=0) / number
            influence = (totals - means * counts) / number
        over_totals, over_counts = np.zeros((2, len(totals), len(self.label_columns)))
        for index, columns in enumerate(self.label_columns):
            chosen = [column for column in columns if number[column] > 0]
            if chosen:
                there = (counts[:, chosen] > 0).any(axis=1)
                own = means[chosen].mean() + there.sum() * influence[:, chosen].mean(axis=1)
                over_totals[there, index], over_counts[there, index] = own[there], 1
        return np.concatenate([over_totals, totals], axis=1), np.concatenate([over_counts, counts], axis=1)

    def over_labels(self, columns: Floats) -> Floats:
        """Means over labels put before what holds for the questions without them, (..., K') to (..., K)."""
        if not self.label_columns:
            return columns
        means = [columns[..., list(chosen)].mean(axis=-1) for chosen in self.label_columns]
        return np.concatenate([np.stack(means, axis=-1), columns], axis=-1)


def cubes(measurements: pd.DataFrame, lesion_bins_ml: Sequence[float]) -> list[Cube]:
    """One for each dataset, cross-validation and other predictions apart, and lesions by volume after whole cases.

    Args:
        measurements: the long table as `nnunet_godc.evaluation.table` describes it.
        lesion_bins_ml: edges between the bins of lesion volumes, increasing.

    Raises:
        UserError: a case was measured twice, or belongs to two patients.
    """
    about_cases = measurements[measurements["case"] != ""]
    lesion = about_cases["lesion"].notna()
    found = []
    for rows, by_volume in ((about_cases[~lesion], False), (about_cases[lesion], True)):
        if by_volume and len(rows):
            rows = rows.sort_values("volume_ml", kind="stable")
            bins = volume_bins(lesion_bins_ml) or {"any volume": (0.0, np.inf)}
            names, edges = list(bins), [low for low, _ in bins.values()]
            which = np.searchsorted(edges, rows["volume_ml"].to_numpy(dtype=np.float64), side="right") - 1
            rows = rows.assign(bin=pd.Categorical.from_codes(which, names))
            rows = rows[rows["metric"].isin(LESION_METRICS[:2])]
        groups = rows.groupby(["dataset", rows["fold"].notna()], sort=False, observed=True)
        found += [_cube(part, bool(cross_validated)) for (_, cross_validated), part in groups]
    return [cube for cube in found if cube.endpoints]


def _cube(rows: pd.DataFrame, cross_validated: bool) -> Cube:
    if "bin" not in rows:
        rows = rows.assign(bin="")
    run, run_names = _numbered(rows, ["configuration", "plans", "trainer"])
    units = ["patient", "case", *(["lesion"] if rows["lesion"].notna().any() else [])]
    unit, unit_names = _numbered(rows, units, sort=True)
    _check_one_patient([name[1:] for name in unit_names])
    fold = rows["fold"].fillna(NO_FOLD).to_numpy(dtype=np.int64)
    fold_of = np.full((len(run_names), len(unit_names)), np.iinfo(np.int64).max)
    np.minimum.at(fold_of, (run, unit), fold)
    fold_of[fold_of == np.iinfo(np.int64).max] = NOT_THERE

    # What was not measured has no label and metric, and makes its case known.
    about_label = (rows["label"] != "").to_numpy()
    rows, run, unit, fold = rows[about_label], run[about_label], unit[about_label], fold[about_label]
    endpoint, endpoint_names = _numbered(rows, ["label", "metric", "bin"])
    shape = (len(run_names), len(unit_names), len(endpoint_names))
    place = np.ravel_multi_index((run, unit, endpoint), shape) if len(rows) else np.zeros(0, np.int64)
    _check_measured_once(rows, place, fold)
    values, states = _values_and_states(rows, place, int(np.prod(shape)))
    values, states = values.reshape(shape), states.reshape(shape)
    if "lesion" in units:
        states[:, (states == ALL_STATES.index(NOT_MEASURED)).all(axis=0)] = 0  # a lesion of another bin or label

    trainings: dict[Method, list[int]] = {}
    for index, (configuration, plans, trainer) in enumerate(run_names):
        trainings.setdefault(Method(configuration, plans, without_seed(trainer)), []).append(index)
    endpoints = [Endpoint(*name) for name in endpoint_names]
    over = _over_labels(endpoints)
    seeds = rows.groupby(run)["seed"].first()
    patients = [name[0] for name in unit_names]
    first_case = [index for index, name in enumerate(patients) if index == 0 or name != patients[index - 1]]
    return Cube(
        dataset=str(rows["dataset"].iloc[0]) if len(rows) else "",
        cross_validated=cross_validated,
        methods=tuple(trainings),
        endpoints=(*(Endpoint(OVER_LABELS, metric) for metric in over), *endpoints),
        label_columns=tuple(over.values()),
        patients=tuple(patients[index] for index in first_case),
        cases=tuple(name[1] for name in unit_names),
        first_case=np.array(first_case, dtype=np.intp),
        trainings=tuple(map(tuple, trainings.values())),
        seeds=tuple(-1 if pd.isna(seed := seeds.get(index)) else int(seed) for index in range(len(run_names))),
        values=values,
        states=states,
        fold_of=fold_of,
    )


def _over_labels(endpoints: Sequence[Endpoint]) -> dict[str, tuple[int, ...]]:
    """By metric, the places of the questions about several labels whose mean is a question, too."""
    columns: dict[str, list[int]] = {}
    for index, endpoint in enumerate(endpoints):
        if not endpoint.bin:
            columns.setdefault(endpoint.metric, []).append(index)
    return {metric: tuple(places) for metric, places in columns.items() if len(places) > 1}


def _check_one_patient(cases: Sequence[tuple[str, ...]]) -> None:
    if len(set(cases)) < len(cases):
        twice = next(name for index, name in enumerate(cases) if name in cases[:index])
        raise UserError(f"case {twice[0]} belongs to two patients; give it the same one in all measurements")


def _values_and_states(
    rows: pd.DataFrame, place: NDArray[np.int64], size: int
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """At each of `size` places, the mean of the values that were measured there (over folds), and the worst state."""
    times = np.bincount(place, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.bincount(place, rows["value"].to_numpy(dtype=np.float64), size) / times
    states = np.where(times > 0, 0, ALL_STATES.index(NOT_MEASURED)).astype(np.uint8)
    code, entries = pd.factorize(rows["state"])
    np.maximum.at(states, place, np.array([STATES.index(str(entry)) for entry in entries], dtype=np.uint8)[code])
    return values, states


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


def _check_measured_once(rows: pd.DataFrame, place: NDArray[np.int64], fold: NDArray[np.int64]) -> None:
    order = np.lexsort((fold, place))
    same = (np.diff(place[order]) == 0) & (np.diff(fold[order]) == 0)
    if same.any():
        row = rows.iloc[order[1:][same][0]]
        raise UserError(
            f"{row['metric']} of {row['label']} in {row['case']} is there twice for {row['trainer']}, "
            f"{row['configuration']}, {row['plans']}; evaluate every case once"
        )
