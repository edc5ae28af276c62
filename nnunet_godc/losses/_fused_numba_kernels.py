"""The inner loops of soft statistics and cross-entropy on the CPU, compiled by numba.

They walk over tiles of voxels that stay in the cache, class by class; the innermost loops run along the voxels and are
vectorised, exponential and logarithm included, for which numba would call a function per number. They release the
interpreter's lock, so that threads of ours share the work.

Throughout, for one sample and its voxels `first` to `last`: `logits` and `grad_logits` (C, voxels), float32; `target`
(1, voxels), or (C or C + 1, voxels) for regions; `ignores` says whether there is an `ignore_label`. `sums` (3C + 2),
float64, are those of :mod:`nnunet_godc.losses.fused`, and are added to; `grad_sums` (3C + 2), float32.

Voxels are counted by unsigned numbers: for signed ones numba tests each index for being negative, which keeps the loop
from being vectorised.
"""

from __future__ import annotations

import numba
import numpy as np

# Sums may be reordered and multiply-adds contracted; NaN keeps its meaning, which numba's fastmath=True would drop. In
# NumPy's model of errors a division does not stop to ask whether it is one by zero, and so can be vectorised.
_compiled = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
# The order of the operations in these is what makes them accurate.
_function = numba.njit(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy", forceinline=True)
_inlined = numba.njit(nogil=True, error_model="numpy", inline="always")

TILE = 512  # voxels

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
HALF = np.float32(0.5)
LOG2_E = np.float32(1.44269504)
LN2 = np.float32(0.693147181)
# ln 2 as a sum whose first part has few digits, so that multiples of it are exact
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
SMALLEST = np.float32(-87.3)  # below it exp is no normal number
EXPONENT_BITS = np.int32(23)
EXPONENT_BIAS = np.int32(127)


@_function
def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0, to 2 units in the last place; 0 for results below the normal numbers. NaN stays NaN."""
    normal = x > SMALLEST
    clamped = x if normal else SMALLEST
    whole = np.floor(clamped * LOG2_E + HALF)
    rest = (clamped - whole * LN2_HIGH) - whole * LN2_LOW  # |rest| <= ln(2) / 2
    # Taylor's series to the seventh power
    series = np.float32(1 / 5040)
    series = series * rest + np.float32(1 / 720)
    series = series * rest + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + HALF
    series = (series * rest + ONE) * rest + ONE
    power = np.int32((np.int32(whole) + EXPONENT_BIAS) << EXPONENT_BITS).view(np.float32)
    return series * power if normal else (ZERO if x == x else x)


@_function
def _log_of_ratio(difference, total):  # type: ignore[no-untyped-def]
    """ln((total + difference) / (total - difference)), 2 artanh(difference / total), for a quotient up to 1/3."""
    quotient = difference / total
    square = quotient * quotient
    series = np.float32(2 / 15)
    series = series * square + np.float32(2 / 13)
    series = series * square + np.float32(2 / 11)
    series = series * square + np.float32(2 / 9)
    series = series * square + np.float32(2 / 7)
    series = series * square + np.float32(2 / 5)
    series = series * square + np.float32(2 / 3)
    return (series * square + TWO) * quotient


@_function
def _log(x):  # type: ignore[no-untyped-def]
    """ln(x) for normal x >= 1, and NaN."""
    bits = np.float32(x).view(np.int32)
    exponent = np.int32(bits >> EXPONENT_BITS) - EXPONENT_BIAS
    mantissa = np.int32(bits - (exponent << EXPONENT_BITS)).view(np.float32)  # in [1, 2)
    log = np.float32(exponent) * LN2 + _log_of_ratio(mantissa - ONE, mantissa + ONE)
    return log if x == x else x  # the bits of a NaN are those of 1.5 * 2 ** 128


@_inlined
def _labels_and_peaks(logits, target, ignores, ignore_label, first, count, labels, peaks):  # type: ignore[no-untyped-def]
    """Per voxel of a tile the label, -1 where it is ignored, and the largest logit; how many labels are no class."""
    unknown = 0
    for voxel in range(count):
        label = np.int32(target[0, first + voxel])
        ignored = ignores and label == ignore_label
        labels[voxel] = np.int32(-1) if ignored else label
        unknown += not ignored and not 0 <= label < logits.shape[0]
        peaks[voxel] = logits[0, first + voxel]
    for channel in range(1, logits.shape[0]):
        row = logits[channel, first : first + count]
        for voxel in range(count):
            peaks[voxel] = max(peaks[voxel], row[voxel])
    return unknown


@_compiled
def sum_labels(logits, target, ignores, ignore_label, first, last, sums):  # type: ignore[no-untyped-def]
    classes = logits.shape[0]
    exponentials = np.empty((classes, TILE), np.float32)
    labels = np.empty(TILE, np.int32)
    peaks, totals = np.empty((2, TILE), np.float32)
    for begin in range(first, last, TILE):
        start = np.uint64(begin)
        count = np.uint64(min(TILE, last - begin))
        if _labels_and_peaks(logits, target, ignores, ignore_label, start, count, labels, peaks):
            sums[3 * classes] = np.nan
        totals[:] = ZERO
        for channel in range(classes):
            row, exponential = logits[channel, start : start + count], exponentials[channel]
            for voxel in range(count):
                exponential[voxel] = _exp(row[voxel] - peaks[voxel])
                totals[voxel] += exponential[voxel]
        # The cross-entropy of a voxel is ln(total) - (logit - peak) of its label. The two are added up apart: in one
        # sum, which may be reordered, ln(total) could be added to the peak first, and get lost.
        valid, logs = 0, ZERO
        for voxel in range(count):
            counts = labels[voxel] >= 0
            valid += counts
            logs += _log(totals[voxel]) if counts else ZERO
            totals[voxel] = (ONE if counts else ZERO) / totals[voxel]
        sums[3 * classes] += logs
        for channel in range(classes):
            row, exponential = logits[channel, start : start + count], exponentials[channel]
            intersection = prediction = chosen = ZERO
            reference = 0
            for voxel in range(count):
                probability = exponential[voxel] * totals[voxel]
                here = labels[voxel] == channel
                prediction += probability
                intersection += probability if here else ZERO
                reference += here
                chosen += row[voxel] - peaks[voxel] if here else ZERO
            sums[channel] += intersection
            sums[classes + channel] += prediction
            sums[2 * classes + channel] += reference
            sums[3 * classes] -= chosen
        sums[3 * classes + 1] += valid


@_compiled
def differentiate_labels(grad_sums, logits, target, ignores, ignore_label, first, last, grad_logits):  # type: ignore[no-untyped-def]
    classes = logits.shape[0]
    exponentials = np.empty((classes, TILE), np.float32)
    labels = np.empty(TILE, np.int32)
    peaks, totals, means = np.empty((3, TILE), np.float32)
    by_cross_entropy = grad_sums[3 * classes]
    for begin in range(first, last, TILE):
        start = np.uint64(begin)
        count = np.uint64(min(TILE, last - begin))
        _labels_and_peaks(logits, target, ignores, ignore_label, start, count, labels, peaks)
        totals[:] = ZERO
        means[:] = ZERO
        for channel in range(classes):
            row, exponential = logits[channel, start : start + count], exponentials[channel]
            by_intersection, by_prediction = grad_sums[channel], grad_sums[classes + channel]
            for voxel in range(count):
                exponential[voxel] = _exp(row[voxel] - peaks[voxel])
                totals[voxel] += exponential[voxel]
                by_probability = by_prediction + (by_intersection if labels[voxel] == channel else ZERO)
                means[voxel] += by_probability * exponential[voxel]
        for voxel in range(count):
            means[voxel] /= totals[voxel]
            totals[voxel] = (ONE if labels[voxel] >= 0 else ZERO) / totals[voxel]
        for channel in range(classes):
            grad, exponential = grad_logits[channel, start : start + count], exponentials[channel]
            by_intersection, by_prediction = grad_sums[channel], grad_sums[classes + channel]
            for voxel in range(count):
                here = labels[voxel] == channel
                by_probability = by_prediction + (by_intersection if here else ZERO)
                probability = exponential[voxel] * totals[voxel]
                grad[voxel] = probability * (by_probability - means[voxel] + by_cross_entropy) - (
                    by_cross_entropy if here else ZERO
                )


@_inlined
def _tile_counts(target, classes, first, count, counts):  # type: ignore[no-untyped-def]
    """Per voxel of a tile 1 where it counts, and 0 where it is ignored."""
    if target.shape[0] == classes:
        counts[:] = ONE
    else:
        ignored = target[classes, first : first + count]
        for voxel in range(count):
            counts[voxel] = ZERO if ignored[voxel] == 1 else ONE


@_compiled
def sum_regions(logits, target, first, last, sums):  # type: ignore[no-untyped-def]
    classes = logits.shape[0]
    counts = np.empty(TILE, np.float32)
    for begin in range(first, last, TILE):
        start = np.uint64(begin)
        count = np.uint64(min(TILE, last - begin))
        _tile_counts(target, classes, start, count, counts)
        for channel in range(classes):
            row, region = logits[channel, start : start + count], target[channel, start : start + count]
            intersection = prediction = reference = cross_entropy = ZERO
            for voxel in range(count):
                logit, inside = row[voxel], np.float32(region[voxel])
                exponential = _exp(-abs(logit))
                probability = (ONE if logit >= ZERO else exponential) / (ONE + exponential) * counts[voxel]
                prediction += probability
                intersection += probability * inside
                reference += inside * counts[voxel]
                log = _log_of_ratio(exponential, TWO + exponential)  # ln(1 + exp(-|logit|))
                cross_entropy += (max(logit, ZERO) - logit * inside + log) * counts[voxel]
            sums[channel] += intersection
            sums[classes + channel] += prediction
            sums[2 * classes + channel] += reference
            sums[3 * classes] += cross_entropy
        for voxel in range(count):
            sums[3 * classes + 1] += counts[voxel]


@_compiled
def differentiate_regions(grad_sums, logits, target, first, last, grad_logits):  # type: ignore[no-untyped-def]
    classes = logits.shape[0]
    counts = np.empty(TILE, np.float32)
    by_cross_entropy = grad_sums[3 * classes]
    for begin in range(first, last, TILE):
        start = np.uint64(begin)
        count = np.uint64(min(TILE, last - begin))
        _tile_counts(target, classes, start, count, counts)
        for channel in range(classes):
            row, region = logits[channel, start : start + count], target[channel, start : start + count]
            grad = grad_logits[channel, start : start + count]
            by_intersection, by_prediction = grad_sums[channel], grad_sums[classes + channel]
            for voxel in range(count):
                logit, inside = row[voxel], np.float32(region[voxel])
                exponential = _exp(-abs(logit))
                share = ONE / (ONE + exponential)
                probability = share if logit >= ZERO else exponential * share
                slope = exponential * share * share
                by_probability = by_intersection * inside + by_prediction
                grad[voxel] = (slope * by_probability + by_cross_entropy * (probability - inside)) * counts[voxel]
