"""Means, medians, proportions and effect sizes over patients, each with its interval.

The unit that is drawn at random from the world is the patient: whatever belongs to one patient stays together, and
patients are what the intervals speak about. Everything here is NumPy; columns are independent questions asked of the
same patients. Why these methods: docs/statistics.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from nnunet_godc.evaluation.bootstrap import Floats, pivot_quantiles, ratios

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """Estimates with their intervals, each (columns,).

    Attributes:
        estimate: NaN where nothing was defined.
        low: lower end; NaN where there is no interval, which is better than a false one.
        high: upper end, likewise.
    """

    estimate: Floats
    low: Floats
    high: Floats


def mean_intervals(
    totals: Floats, counts: Floats, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Means over cases (or lesions), with symmetric studentised bootstrap intervals over their patients.

    There is no interval for fewer than four patients (one draw in nine of three patients is one patient three times,
    which tells no spread), when all patients have the same mean, nor when so few differ from the others that more than
    one resample in twenty misses them all.

    Args:
        totals: sum over the cases of each patient, (patients, columns); 0 where none is defined.
        counts: number of defined cases of each patient, (patients, columns).
    """
    means, errors = ratios(totals, counts)
    quantiles = pivot_quantiles(totals, counts, level=level, resamples=resamples, seed=seed)
    return _around(means, np.where(errors > _rounding(means), errors, np.nan) * quantiles)


def median_intervals(values: Floats, *, level: float = LEVEL) -> Interval:
    """Medians over patients, with intervals between order statistics, interpolated.

    The number of values below the median is binomial whatever their distribution, so that no resampling is needed
    (whose intervals fail for medians: Andre et al., "Some hidden traps of confidence intervals in medical image
    segmentation", MICCAI workshops 2025). Between the two pairs of order statistics that cover more and less than
    `level`, the ends are interpolated as by Hettmansperger and Sheather (Statistics and Probability Letters 4, 1986).
    There is no interval for fewer than six patients at 95 %.

    Args:
        values: one value per patient, (patients, columns); NaN where undefined.
    """
    ordered = np.sort(values, axis=0)  # NaN comes last
    patients = np.isfinite(values).sum(axis=0)
    estimate, low, high = np.full((3, values.shape[1]), np.nan)
    for column, n in enumerate(patients):
        if n == 0:
            continue
        sample = ordered[:n, column]
        estimate[column] = np.median(sample)
        depth = _median_depth(int(n), level)
        if depth > 0:
            low[column] = np.interp(depth - 1, np.arange(n), sample)
            high[column] = np.interp(n - depth, np.arange(n), sample)
    return Interval(estimate, low, high)


def _median_depth(n: int, level: float) -> float:
    """How far from either end the interval of the median reaches, from 1; 0 if n values allow of no interval.

    Between the k-th value from below and from above lies the median with probability 1 - 2 P(B < k), where B is
    binomial with n draws of 1/2.
    """
    depths = np.arange(1, n // 2 + 1)
    coverage = 1 - 2 * stats.binom.cdf(depths - 1, n, 0.5)
    enough = np.flatnonzero(coverage >= level)
    if len(enough) == 0:
        return 0
    k = int(enough[-1])
    if k + 1 == len(depths):
        return float(depths[k])
    share = (coverage[k] - level) / (coverage[k] - coverage[k + 1])
    fraction = (n - depths[k]) * share / (depths[k] + (n - 2 * depths[k]) * share)
    return float(depths[k] + fraction)


def proportion_intervals(totals: Floats, counts: Floats, *, level: float = LEVEL) -> Interval:
    """Proportions, such as of lesions detected, with Wilson intervals for as many lesions as they are worth.

    Lesions of one patient resemble each other, so that they count as p (1 - p) / error ** 2 independent ones at the
    most (Korn and Graubard, Survey Methodology 24, 1998), and for one per patient where all or none were detected. The
    quantile is Student's. Unlike the bootstrap, this has an interval at 0 and 100 %. There is none for one patient.

    Args:
        totals: detected lesions of each patient, (patients, columns).
        counts: lesions of each patient, (patients, columns).
    """
    proportions, errors = ratios(totals, counts)
    patients = (counts > 0).sum(axis=0)
    lesions = counts.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(errors > 0, np.minimum(proportions * (1 - proportions) / errors**2, lesions), patients)
        quantile = stats.t.ppf((1 + level) / 2, np.maximum(patients - 1, 1))
        share = quantile**2 / worth
        centre = (proportions + share / 2) / (1 + share)
        half_widths = np.sqrt(proportions * (1 - proportions) * share + share**2 / 4) / (1 + share)
    half_widths = np.where(patients > 1, half_widths, np.nan)
    return Interval(
        proportions, np.clip(centre - half_widths, 0, proportions), np.clip(centre + half_widths, proportions, 1)
    )


def standardised_differences(differences: Floats, *, level: float = LEVEL) -> Interval:
    """Cohen's d_z of pairs: the mean of the differences over their standard deviation, one difference per patient.

    The interval is d_z +- t sqrt((1 + d_z ** 2 / 2) / n) with Student's quantile t for n - 1 degrees of freedom. It is
    exact enough for normal differences and covers more than it promises for heavier tails, where the bootstrap of d_z
    covers less. Neither exists for fewer than three patients or without any spread.

    Args:
        differences: (patients, columns); NaN where undefined.
    """
    patients = np.isfinite(differences).sum(axis=0)
    enough = patients > 2
    present = np.where(np.isfinite(differences), differences, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = present.sum(axis=0) / patients
        deviations = np.sqrt((np.where(np.isfinite(differences), present - means, 0) ** 2).sum(axis=0) / (patients - 1))
        effects = np.where(enough & (deviations > _rounding(means)), means / deviations, np.nan)
        quantile = stats.t.ppf((1 + level) / 2, np.maximum(patients - 1, 1))
        half_widths = quantile * np.sqrt((1 + effects**2 / 2) / patients)
    return _around(effects, half_widths)


def _around(estimate: Floats, half_widths: Floats) -> Interval:
    half_widths = np.where(np.isfinite(half_widths), half_widths, np.nan)
    return Interval(estimate, estimate - half_widths, estimate + half_widths)


def _rounding(means: Floats) -> Floats:
    """What sums of equal numbers may differ by."""
    return 1e-12 * np.maximum(np.abs(means), 1e-12)
