"""The studentised bootstrap over patients, for many means at once."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

SHARED = 100  # from so many patients on, columns that are undefined for some share the draws of the others
BLOCK = 2**22  # weights at a time: 16 MiB
PIVOTS = 2**24  # pivots at a time: 64 MiB
NO_SPREAD = 1e-5  # of the sample's variance; single precision cannot tell less from zero


def ratios(totals: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Means over units that belong to patients, sum(totals) / sum(counts), and their standard errors.

    The error is that of a ratio of two sums over independent patients: with the residuals e = totals - mean * counts of
    k patients, sqrt(k / (k - 1) * sum(e ** 2)) / sum(counts). For one unit per patient it is the familiar s / sqrt(k).

    Args:
        totals: sum over the units of each patient, (patients, columns); 0 where there is none.
        counts: how many units these are, (patients, columns).

    Returns:
        Both (columns,); a mean without a unit, and an error without two patients, is NaN.
    """
    patients = (counts > 0).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = totals.sum(axis=0) / counts.sum(axis=0)
        squares = ((totals - means * counts) ** 2).sum(axis=0)
        errors = np.sqrt(patients / (patients - 1) * squares) / counts.sum(axis=0)
    return means, np.where(patients > 1, errors, np.nan)


def pivot_quantiles(totals: Floats, counts: Floats, *, level: float, resamples: int, seed: int) -> Floats:
    """The `level` quantile of |mean* - mean| / error* over resamples of the patients, for each column.

    Times the standard error it is the half-width of the symmetric studentised bootstrap interval (Hall, "On symmetric
    bootstrap confidence intervals", Journal of the Royal Statistical Society B 50, 1988). A resample draws as many
    patients as there are, with replacement, and takes all units of each along: it is a vector of multinomial weights,
    and the sums over a block of resamples are one matrix product. A resample without any spread counts as infinitely
    far away unless its mean is the sample's. So few patients, or few that differ from the others, give infinity, which
    is to say: no interval.

    Args:
        totals: as in `ratios`.
        counts: as in `ratios`; a patient without units in a column is not drawn for it. (From 100 patients with units
            on, they may be drawn to no effect, which lets all such columns share one set of weights.)
        level: such as 0.95.
        resamples: their number.
        seed: of the draws. Columns of the same patients get the same draws.

    Returns:
        (columns,); NaN where fewer than two patients have units.
    """
    quantiles = np.full(totals.shape[1], np.nan)
    position = min(math.ceil(level * (resamples + 1)), resamples) - 1
    for rows, columns in _same_patients(counts > 0):
        chunk = max(1, PIVOTS // resamples)
        for start in range(0, len(columns), chunk):
            chosen = columns[start : start + chunk]
            pivots = _pivots(totals[np.ix_(rows, chosen)], counts[np.ix_(rows, chosen)], resamples, seed)
            pivots.partition(position, axis=0)
            quantiles[chosen] = pivots[position]
    return quantiles


def _same_patients(has_units: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Patients to draw from, and the columns that share these draws."""
    patients = has_units.sum(axis=0)
    large = patients >= SHARED
    if large.any():
        # all patients: which of them have units elsewhere depends on the columns that are asked for together
        yield np.arange(len(has_units)), np.flatnonzero(large)
    small = np.flatnonzero(~large & (patients > 1))
    patterns, group = np.unique(has_units[:, small], axis=1, return_inverse=True)
    for index in range(patterns.shape[1]):
        yield np.flatnonzero(patterns[:, index]), small[group.ravel() == index]


def _pivots(totals: Floats, counts: Floats, resamples: int, seed: int) -> Singles:
    """|mean* - mean| / error* of every resample, (resamples, columns).

    With the residuals e and the weights w, mean* - mean is shift = sum(w e) / sum(w n), the residuals of the resample
    are e - shift * n, and the sums of units cancel from the ratio of the two.
    """
    means, _ = ratios(totals, counts)
    residuals = totals - means * counts
    scales = np.sqrt((residuals**2).mean(axis=0))
    scaled = (residuals / np.where(scales > 0, scales, 1)).astype(np.float32)
    units = counts.astype(np.float32)
    patients = (counts > 0).sum(axis=0)
    single = bool((counts <= 1).all())  # then units ** 2 = units and e * units = e, which saves two of five products
    distinct, which = _distinct_columns(units)
    operands = [scaled, scaled**2, distinct]
    if not single:
        operands += [scaled * units, distinct**2]
    operand = np.concatenate(operands, axis=1)
    edges = np.cumsum([part.shape[1] for part in operands])[:-1]

    pivots = np.empty((resamples, totals.shape[1]), dtype=np.float32)
    done = 0
    for weights in _weights(len(totals), resamples, seed):
        first, second, number, *mixed = np.split(weights @ operand, edges, axis=1)  # each (block, its columns)
        number = number[:, which]
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = np.where(number > 0, first / number, 0)
            if single:
                spread = second - shift * first
            else:
                crossed, square = mixed
                spread = second - 2 * shift * crossed + shift**2 * square[:, which]
            flat = spread <= NO_SPREAD * len(totals)
            moved = np.abs(first) > NO_SPREAD * len(totals)
            block = np.abs(first) / np.sqrt(patients / (patients - 1) * spread)
            pivots[done : done + len(weights)] = np.where(flat, np.where(moved, np.inf, 0), block)
        done += len(weights)
    return pivots


def _distinct_columns(units: Singles) -> tuple[Singles, NDArray[np.intp]]:
    """The different columns, and which of them each column is: most metrics are defined for the same patients."""
    found: dict[bytes, int] = {}
    which = np.array([found.setdefault(column.tobytes(), len(found)) for column in units.T], dtype=np.intp)
    first = [int(np.argmax(which == index)) for index in range(len(found))]
    return units[:, first], which


def _weights(patients: int, resamples: int, seed: int) -> Iterator[Singles]:
    """How often each patient is drawn, in blocks of resamples, (block, patients)."""
    random = np.random.default_rng(seed)
    size = max(1, BLOCK // patients)
    for start in range(0, resamples, size):
        block = min(size, resamples - start)
        drawn = random.integers(0, patients, (block, patients))
        drawn += np.arange(block)[:, None] * patients
        counted = np.bincount(drawn.ravel(), minlength=block * patients)
        yield counted.reshape(block, patients).astype(np.float32)
