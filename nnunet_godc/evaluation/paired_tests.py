"""Tests of whether two methods differ on the same patients, and what many tests at once cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunet_godc.evaluation.bootstrap import BLOCK, Floats

TIE = 1e-6
"""Differences up to this are ties: what two ways of computing one number may differ by."""


def sign_flip_p_values(differences: Floats, *, resamples: int, seed: int) -> Floats:
    """Two-sided p-values of the paired permutation test: each patient's difference keeps its size and loses its sign.

    If the two methods are exchangeable within a patient, either sign was as likely. The statistic is |sum of the
    differences|. With so few patients that there are no more patterns of signs than `resamples`, all are counted and
    the p-value is exact; it cannot be less than 2 / 2 ** patients. Otherwise patterns are drawn, and the one that was
    observed counts as drawn, too: (1 + as extreme) / (1 + resamples), which never rejects too often (Phipson and
    Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010).

    Args:
        differences: summed over the cases of each patient, (patients, columns); NaN where undefined.

    Returns:
        (columns,); 1 where all patients tie, NaN where there is no patient.
    """
    cleaned = _without_ties(differences)
    different = np.count_nonzero(cleaned, axis=0)
    p_values = np.where(np.isfinite(differences).any(axis=0), 1.0, np.nan)
    countable = different <= np.log2(resamples)
    for column in np.flatnonzero(countable & (different > 0)):
        p_values[column] = _exact_sign_flips(cleaned[cleaned[:, column] != 0, column])
    drawn = np.flatnonzero(~countable)
    if len(drawn):
        p_values[drawn] = _drawn_sign_flips(cleaned[:, drawn], resamples, seed)
    return p_values


def _exact_sign_flips(differences: Floats) -> float:
    sums = np.zeros(1)
    for size in np.abs(differences):
        sums = np.concatenate([sums + size, sums - size])
    return float(np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12 * np.abs(differences).sum()))


def _drawn_sign_flips(differences: Floats, resamples: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    shares = (differences / np.abs(differences).sum(axis=0)).astype(np.float32)
    # what single precision may add: a hundredth of the sums' standard deviation at the very most
    observed = np.abs(shares.sum(axis=0)) - 2e-6
    as_extreme = np.zeros(shares.shape[1], dtype=np.int64)
    patients = len(shares)
    size = max(1, BLOCK // patients)
    for start in range(0, resamples, size):
        block = min(size, resamples - start)
        bits = np.frombuffer(random.bytes(block * -(-patients // 8)), dtype=np.uint8).reshape(block, -1)
        signs = np.unpackbits(bits, axis=1, count=patients).astype(np.float32) * 2 - 1
        as_extreme += (np.abs(signs @ shares) >= observed).sum(axis=0)
    return (1 + as_extreme) / (1 + resamples)


def signed_rank_p_values(differences: Floats) -> Floats:
    """Two-sided p-values of Wilcoxon's signed rank test, one difference per patient.

    Patients who tie are left out, as Wilcoxon did: they do not tell which method is better. Equal sizes share their
    mean rank. The distribution is exact for up to 50 patients without equal sizes and for up to 13 with such, otherwise
    the normal one with its variance corrected for them, without continuity correction.

    Args:
        differences: (patients, columns); NaN where undefined.

    Returns:
        (columns,); 1 where all patients tie, NaN where there is no patient.
    """
    cleaned = _rounded(differences)
    p_values = np.where(np.isfinite(differences).any(axis=0), 1.0, np.nan)
    for column in np.flatnonzero(cleaned.any(axis=0)):
        sample = cleaned[cleaned[:, column] != 0, column]
        p_values[column] = stats.wilcoxon(sample, zero_method="wilcox", correction=False, method="auto").pvalue
    return p_values


def holm(p_values: Floats) -> Floats:
    """p-values of one family after Holm's correction (Scandinavian Journal of Statistics 6, 1979).

    The k-th smallest of m is multiplied by m - k + 1, and none becomes smaller than those before it. Rejecting what is
    at most 0.05 afterwards, the chance of any false rejection in the family is at most 5 %, however they depend on each
    other. NaN, where nothing could be tested, stays NaN and does not count.

    Args:
        p_values: (tests,).
    """
    corrected = np.full_like(p_values, np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return corrected


def wins_ties_losses(differences: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """How many patients have a positive difference, a tie, a negative one; each (columns,)."""
    wins = (differences > TIE).sum(axis=0)
    losses = (differences < -TIE).sum(axis=0)
    return wins, np.isfinite(differences).sum(axis=0) - wins - losses, losses


def _rounded(differences: Floats) -> Floats:
    """Sizes that are equal on paper get equal ranks."""
    rounded: Floats = np.round(_without_ties(differences), 9)
    return rounded


def _without_ties(differences: Floats) -> Floats:
    """Ties and what is undefined become zero, which no sign changes."""
    return np.where(np.abs(differences) > TIE, differences, 0)
