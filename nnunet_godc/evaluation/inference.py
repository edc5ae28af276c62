"""How well each method does, and what differs between two on the same cases.

One training per side: patients are drawn, and everything speaks of the trained models that were measured. Several:
patients and trainings are crossed random effects, and everything speaks of new patients and new trainings. With the
training t of the group g of cases that it predicted (a fold, or the whole test set), patient p,

    value of a case = method + patient + training (t, g) + residual (p, t),

the estimate is the mean over cases of the means over trainings, and its variance is the sum of two parts: `V_t`, from
the spread of the trainings' means within their groups, which holds the residuals of these trainings, and `V_i`, that
of the patients less the residuals, at least 0. docs/statistics.md says why, and how well it works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunet_godc.evaluation.bootstrap import Floats, ratios
from nnunet_godc.evaluation.cube import ALL_STATES, Cube, Endpoint, Method, Side
from nnunet_godc.evaluation.intervals import (
    LEVEL,
    Interval,
    mean_intervals,
    median_intervals,
    proportion_intervals,
    standardised_differences,
)
from nnunet_godc.evaluation.metrics import LESION_SENSITIVITY, NOT_MEASURED, better
from nnunet_godc.evaluation.paired_tests import holm, sign_flip_p_values, signed_rank_p_values, wins_ties_losses
from nnunet_godc.evaluation.units import shown

COLUMNS_AT_ONCE = 640  # of differences: bounds the memory, and so many share one set of resamples
LIMIT = 0.05
FEWEST_PATIENTS = 4  # of an interval


@dataclass(frozen=True)
class Spread:
    """What trainings add to the variance of a mean, all (K,).

    Attributes:
        training: variance of the mean that its trainings account for, their residuals included.
        freedom: degrees of freedom behind it; 0 where no group of cases has two trainings.
        residual: the part of it that patients and trainings share.
    """

    training: Floats
    freedom: Floats
    residual: Floats

    def __add__(self, other: Spread) -> Spread:
        """Of a difference; no freedom where either side has none."""
        both = (self.freedom > 0) & (other.freedom > 0)
        freedom = np.where(both, self.freedom + other.freedom, 0)
        return Spread(self.training + other.training, freedom, self.residual + other.residual)


@dataclass(frozen=True)
class Summary:
    """One method and one question; NaN where there is no estimate or no interval.

    Attributes:
        patients: with a defined case.
        cases: defined (lesions, where the question is about a bin of volumes).
        undefined: cases left out, by the reason that `ALL_STATES` names.
        mean: over cases, `low` and `high` its 95 % interval; `sd` between cases.
        median: over patients of their means over cases, with its interval; `q1` and `q3` are the quartiles.
        trainings: that a seed tells apart, the most of any group of cases.
        seed_means: of each training over the cases that all of them define.
        training_sd: standard deviation of these.
    """

    dataset: str
    cross_validated: bool
    method: Method
    endpoint: Endpoint
    patients: int
    cases: int
    undefined: dict[str, int]
    mean: float
    low: float
    high: float
    sd: float
    median: float
    median_low: float
    median_high: float
    q1: float
    q3: float
    trainings: int
    seed_means: tuple[float, ...]
    training_sd: float


@dataclass(frozen=True)
class Comparison:
    """`method` minus `against` on the cases where both are defined; NaN where there is none to be had.

    Where a metric is best at zero, the distances from zero are compared.

    Attributes:
        new_trainings: whether interval and test hold for new trainings, too; else they speak of the measured ones.
        patients, cases: compared.
        undefined_method, undefined_against: cases left out because that one alone is not defined there, by the reason
            that `ALL_STATES` names.
        difference: of the means over cases, `low` and `high` its 95 % interval.
        freedom: degrees of freedom of Student's t behind interval and test; NaN for bootstrap and sign flips.
        effect_size: Cohen's d_z over patients, with its interval over patients.
        wins, ties, losses: patients for whom `method` is better, equal, worse.
        p: of the test (sign flips, or Student's t with `new_trainings`), and `p_holm` after Holm's correction.
        wilcoxon_p: of the signed rank test over patients, not corrected, for those who want to report it.
        tests: size of the family that was corrected for: all comparisons that answer this question.
        trainings: with different seeds, on either side.
    """

    dataset: str
    cross_validated: bool
    endpoint: Endpoint
    method: Method
    against: Method
    new_trainings: bool
    patients: int
    cases: int
    undefined_method: dict[str, int]
    undefined_against: dict[str, int]
    difference: float
    low: float
    high: float
    freedom: float
    effect_size: float
    effect_low: float
    effect_high: float
    wins: int
    ties: int
    losses: int
    p: float
    p_holm: float
    wilcoxon_p: float
    tests: int
    trainings: tuple[int, int]

    @property
    def only_method(self) -> int:
        """Cases left out because they are defined for `method` only."""
        return sum(self.undefined_against.values())

    @property
    def only_against(self) -> int:
        """Cases left out because they are defined for `against` only."""
        return sum(self.undefined_method.values())

    @property
    def selectively_missing(self) -> bool:
        """Whether cases are left out because of what one of the two predicted, such as nothing where a label is."""
        return bool({*self.undefined_method, *self.undefined_against} - {NOT_MEASURED})

    @property
    def significant(self) -> bool:
        """Whether a difference can be claimed: by the corrected test, with no interval that includes zero.

        There is no interval where differences are too alike, such as of one point in every patient.
        """
        return self.p_holm <= LIMIT and not self.low <= 0 <= self.high

    @property
    def improves(self) -> bool:
        """Whether `method` has the better mean."""
        return (self.difference > 0) == (better(self.endpoint.metric) == "higher")

    @property
    def winner(self) -> Method | None:
        """The one that may be called better: of a significant difference that leaves out no case selectively."""
        if not self.significant or self.selectively_missing:
            return None
        return self.method if self.improves else self.against


def crossed_intervals(
    estimate: Floats, patient_variance: Floats, patients: Floats, spread: Spread, *, level: float = LEVEL
) -> tuple[Interval, Floats, Floats]:
    """Student intervals that hold for new patients and new trainings, p-values of 0, and degrees of freedom.

    The share w of the trainings in the variance decides on the degrees of freedom, 1 / (w^2 / f + (1 - w)^2 / (n - 1)),
    as Satterthwaite has it; but w is taken 1 + 1 / f times, at most 1. With few f, the share that is estimated and the
    variance err together: where it comes out small, so does the variance. Plain Satterthwaite rejects up to 8 of 100
    with f = 2.

    Args:
        estimate: (K,).
        patient_variance: of the estimate, as patients account for it, the residuals included, (K,).
        patients: (K,).
        spread: with its degrees of freedom f.
    """
    own = np.maximum(patient_variance - spread.residual, 0)
    variance = spread.training + own
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.minimum((1 + 1 / spread.freedom) * spread.training / variance, 1)
        freedom = 1 / (share**2 / spread.freedom + (1 - share) ** 2 / (patients - 1))
        error = np.sqrt(variance)
        estimable = (
            (patients >= FEWEST_PATIENTS) & (spread.freedom > 0) & (error > 1e-12 * np.maximum(np.abs(estimate), 1e-12))
        )
        half = np.where(estimable, stats.t.ppf((1 + level) / 2, freedom) * error, np.nan)
        p_values = np.where(estimable, 2 * stats.t.sf(np.abs(estimate) / error, freedom), np.nan)
    return Interval(estimate, estimate - half, estimate + half), p_values, np.where(estimable, freedom, np.nan)


def training_spread(cube: Cube, side: Side, values: Floats, defined: NDArray[np.bool_]) -> Spread:
    """How far the trainings of a method lie apart on the cases that are defined.

    The variance between trainings is pooled over groups of cases, so that a fold with one training has that of the
    others.

    Args:
        values: (R, C, K').
        defined: (C, K').
    """
    columns = len(cube.endpoints)
    if all(len(runs) < 2 for runs, _ in side.groups):
        return Spread(*np.zeros((3, columns)))
    number = np.maximum(defined.sum(axis=0), 1)
    squares, freedom, reach, residual = np.zeros((4, columns))
    for runs, cases in side.groups:
        counted = np.add.reduceat((defined & cases[:, None]) / number, cube.first_case, axis=0)
        weights = cube.over_labels(counted)  # (P, K)
        weight = weights.sum(axis=0)
        there = weight > 0
        reach += weight**2 / len(runs)
        if len(runs) < 2:
            continue
        apart = [np.where(defined & cases[:, None], values[run] - side.values, 0) / number for run in runs]
        cells = np.stack([cube.over_labels(np.add.reduceat(part, cube.first_case, axis=0)) for part in apart])
        with np.errstate(divide="ignore", invalid="ignore"):
            effects = np.where(there, cells.sum(axis=1) / weight, 0)  # (runs, K)
            patients = (weights > 0).sum(axis=0)
            factor = np.where(patients > 1, patients / (patients - 1), 0)
        left = cells - effects[:, None] * weights
        squares += (effects**2).sum(axis=0)
        freedom += np.where(there, len(runs) - 1, 0)
        residual += factor * (left**2).sum(axis=(0, 1)) / (len(runs) * (len(runs) - 1))
    variance = np.divide(squares, freedom, out=np.zeros(columns), where=freedom > 0)
    return Spread(variance * reach, freedom, residual)


def summarise(cube: Cube, *, resamples: int, seed: int) -> list[Summary]:
    """Every method on every question, method after method."""
    sides = [cube.side(method, cube.values) for method in range(len(cube.methods))]
    per_side = [cube.by_patient(side.values) for side in sides]
    totals, counts = (np.concatenate(part, axis=1) for part in zip(*per_side, strict=True))
    intervals = _means(cube, totals, counts, resamples, seed)
    by_patient = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
    medians = median_intervals(by_patient)
    with np.errstate(all="ignore"):
        errors = ratios(totals, counts)[1]
    summaries = []
    for m, side in enumerate(sides):
        at = slice(m * len(cube.endpoints), (m + 1) * len(cube.endpoints))
        spread = training_spread(cube, side, cube.values, np.isfinite(side.values))
        patients = (counts[:, at] > 0).sum(axis=0)
        crossed, _, freedom = crossed_intervals(intervals.estimate[at], errors[at] ** 2, patients, spread)
        crossing = np.isfinite(freedom) & ~_detected(cube)
        low = np.where(crossing, crossed.low, intervals.low[at])
        high = np.where(crossing, crossed.high, intervals.high[at])
        seed_means = _seed_means(cube, m)
        most = max((len(runs) for runs, _ in side.groups), default=0)
        for k, endpoint in enumerate(cube.endpoints):
            column, own = at.start + k, k - len(cube.label_columns)
            bounds = shown(endpoint.metric)
            cases = side.values[:, own] if own >= 0 else by_patient[:, column]
            present = cases[np.isfinite(cases)]
            labels = [own] if own >= 0 else list(cube.label_columns[k])
            patient = by_patient[np.isfinite(by_patient[:, column]), column]
            quartiles = np.quantile(patient, (0.25, 0.75)) if len(patient) else (np.nan, np.nan)
            means = tuple(float(mean[k]) for mean in seed_means)
            summaries.append(
                Summary(
                    dataset=cube.dataset,
                    cross_validated=cube.cross_validated,
                    method=cube.methods[m],
                    endpoint=endpoint,
                    patients=int(patients[k]),
                    cases=int(np.isfinite(side.values[:, labels]).any(axis=1).sum()),
                    undefined=_reasons(side.states[np.isnan(cases), own]) if own >= 0 else {},
                    mean=float(intervals.estimate[column]),
                    low=float(np.maximum(low[k], bounds.lowest)),
                    high=float(np.minimum(high[k], bounds.highest)),
                    sd=float(np.std(present, ddof=1)) if len(present) > 1 else math.nan,
                    median=float(medians.estimate[column]),
                    median_low=float(medians.low[column]),
                    median_high=float(medians.high[column]),
                    q1=float(quartiles[0]),
                    q3=float(quartiles[1]),
                    trainings=most,
                    seed_means=means,
                    training_sd=float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
                )
            )
    return summaries


def _detected(cube: Cube) -> NDArray[np.bool_]:
    """Which questions are shares of lesions, of which all or none is a frequent result."""
    return np.array([endpoint.bin != "" and endpoint.metric == LESION_SENSITIVITY for endpoint in cube.endpoints])


def _means(cube: Cube, totals: Floats, counts: Floats, resamples: int, seed: int) -> Interval:
    detected = np.tile(_detected(cube), len(cube.methods))
    ends = np.full((3, len(detected)), np.nan)
    for chosen, intervals in (
        (~detected, lambda t, c: mean_intervals(t, c, resamples=resamples, seed=seed)),
        (detected, proportion_intervals),
    ):
        if chosen.any():
            found = intervals(totals[:, chosen], counts[:, chosen])
            ends[:, chosen] = found.estimate, found.low, found.high
    return Interval(*ends)


def _seed_means(cube: Cube, method: int) -> list[Floats]:
    """Mean of each training over the cases that all trainings of the method define, (K,) each; NaN without such."""
    values = cube.values[list(cube.trainings[method])]
    defined = np.isfinite(values).all(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=0)
    return list(cube.over_labels(means))


def compare_methods(cube: Cube, *, baseline: str | None, resamples: int, seed: int) -> list[Comparison]:
    """Methods of one configuration and plans, each against the baseline, or all against all if none is named.

    Args:
        baseline: a trainer without its seed; where it is not among the methods, there is nothing to compare.
    """
    pairs = _pairs(cube, baseline)
    if not pairs:
        return []
    compared = cube.compared
    sides = [cube.side(method, compared) for method in range(len(cube.methods))]
    found: list[list[Comparison]] = []
    step = max(1, COLUMNS_AT_ONCE // len(cube.endpoints))
    for start in range(0, len(pairs), step):
        found += _compare(cube, compared, sides, pairs[start : start + step], resamples, seed)
    comparisons = []
    for family in zip(*found, strict=True):  # of one question
        corrected = holm(np.array([entry.p for entry in family]))
        tests = int(np.isfinite(corrected).sum())
        for entry, p_holm in zip(family, corrected, strict=True):
            comparisons.append(Comparison(**{**vars(entry), "p_holm": float(p_holm), "tests": tests}))
    return comparisons


def _pairs(cube: Cube, baseline: str | None) -> list[tuple[int, int]]:
    """Indices of methods to compare, each before what it is compared with."""
    pairs = []
    for first, second in combinations(range(len(cube.methods)), 2):
        a, b = cube.methods[first], cube.methods[second]
        if (a.configuration, a.plans) != (b.configuration, b.plans):
            continue
        if baseline is None or a.trainer == baseline:
            pairs.append((second, first))
        elif b.trainer == baseline:
            pairs.append((first, second))
    return pairs


def _compare(
    cube: Cube, values: Floats, sides: Sequence[Side], pairs: Sequence[tuple[int, int]], resamples: int, seed: int
) -> list[list[Comparison]]:
    """Of each pair every question; not corrected yet."""
    endpoints = len(cube.endpoints)
    per_pair = [cube.by_patient(sides[a].values - sides[b].values) for a, b in pairs]
    totals, counts = (np.concatenate(part, axis=1) for part in zip(*per_pair, strict=True))
    means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
    p_values = sign_flip_p_values(np.where(counts > 0, totals, np.nan), resamples=resamples, seed=seed)
    wilcoxon = signed_rank_p_values(means)
    effects = standardised_differences(means)
    signs = np.array([1.0 if better(endpoint.metric) == "higher" else -1.0 for endpoint in cube.endpoints])
    wins, ties, losses = wins_ties_losses(means * np.tile(signs, len(pairs)))
    intervals = mean_intervals(totals, counts, resamples=resamples, seed=seed)
    errors = ratios(totals, counts)[1]

    found = []
    for number, (a, b) in enumerate(pairs):
        at = slice(number * endpoints, (number + 1) * endpoints)
        defined = [np.isfinite(sides[side].values) for side in (a, b)]
        both = defined[0] & defined[1]
        spread = training_spread(cube, sides[a], values, both) + training_spread(cube, sides[b], values, both)
        patients = (counts[:, at] > 0).sum(axis=0)
        crossed, crossed_p, freedom = crossed_intervals(intervals.estimate[at], errors[at] ** 2, patients, spread)
        family = []
        for k, endpoint in enumerate(cube.endpoints):
            column, own = at.start + k, k - len(cube.label_columns)
            several = bool(np.isfinite(freedom[k]))
            missing = [
                _reasons(sides[one].states[defined[other][:, own] & ~defined[1 - other][:, own], own])
                if own >= 0
                else _missing_over_labels(cube, sides[one], defined[other], defined[1 - other], k)
                for one, other in ((a, 1), (b, 0))
            ]
            family.append(
                Comparison(
                    dataset=cube.dataset,
                    cross_validated=cube.cross_validated,
                    endpoint=endpoint,
                    method=cube.methods[a],
                    against=cube.methods[b],
                    new_trainings=several,
                    patients=int(patients[k]),
                    cases=int(
                        both[:, own].sum() if own >= 0 else both[:, list(cube.label_columns[k])].any(axis=1).sum()
                    ),
                    undefined_method=missing[0],
                    undefined_against=missing[1],
                    difference=float(intervals.estimate[column]),
                    low=float(crossed.low[k] if several else intervals.low[column]),
                    high=float(crossed.high[k] if several else intervals.high[column]),
                    freedom=float(freedom[k]),
                    effect_size=float(effects.estimate[column]),
                    effect_low=float(effects.low[column]),
                    effect_high=float(effects.high[column]),
                    wins=int(wins[column]),
                    ties=int(ties[column]),
                    losses=int(losses[column]),
                    p=float(crossed_p[k] if several else p_values[column]),
                    p_holm=math.nan,
                    wilcoxon_p=float(wilcoxon[column]),
                    tests=0,
                    trainings=(_most(sides[a]), _most(sides[b])),
                )
            )
        found.append(family)
    return found


def _missing_over_labels(
    cube: Cube, side: Side, there: NDArray[np.bool_], here: NDArray[np.bool_], k: int
) -> dict[str, int]:
    """Cases and labels that one side of a mean over labels lacks, by the reason."""
    columns = list(cube.label_columns[k])
    return _reasons(side.states[:, columns][there[:, columns] & ~here[:, columns]])


def _most(side: Side) -> int:
    return max((len(runs) for runs, _ in side.groups), default=0)


def _reasons(states: NDArray[np.uint8]) -> dict[str, int]:
    counted = zip(*np.unique(states, return_counts=True), strict=True)
    return {ALL_STATES[state]: int(number) for state, number in counted if state}
