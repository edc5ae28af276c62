"""What is measured for a label in a case, and what holds where a label is absent.

``TP``, ``FP`` and ``FN`` are the voxels that are right, too many and missed; the numbers of equations are the paper's.

================================  ==============  ===================  ====================  ======
metric                            absent in both  absent in reference  absent in prediction  better
================================  ==============  ===================  ====================  ======
Dice (9), IoU                     NaN             0                    0                     higher
Precision (10)                    NaN             0                    NaN                   higher
Recall (11)                       NaN             NaN                  0                     higher
Relative volume error             NaN             NaN                  -1                    zero
Volume error (ml)                 NaN             as measured          as measured           zero
HD95 (mm), ASSD (mm)              NaN             NaN                  NaN                   lower
NSD                               NaN             0                    0                     higher
Lesion sensitivity, lesion Dice   NaN             NaN                  0                     higher
False positive lesions            0               as counted           0                     lower
Lesion F1                         NaN             0                    0                     higher
================================  ==============  ===================  ====================  ======

NaN: the metric is not defined there, and the case is left out of its mean. Volume errors are prediction minus
reference. False positive lesions are counted on every scan, so that their state is "defined" everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DEFINED = "defined"
ABSENT_IN_BOTH = "absent in both"
ABSENT_IN_REFERENCE = "absent in reference"
ABSENT_IN_PREDICTION = "absent in prediction"
STATES = (DEFINED, ABSENT_IN_BOTH, ABSENT_IN_REFERENCE, ABSENT_IN_PREDICTION)

NOT_MEASURED = "not measured"
PREDICTION_MISSING = f"{NOT_MEASURED}: its prediction is missing"
REFERENCE_MISSING = f"{NOT_MEASURED}: its reference is missing"
GEOMETRY_DIFFERS = f"{NOT_MEASURED}: prediction and reference differ in geometry"
NOT_READABLE = f"{NOT_MEASURED}: a file cannot be read, or is no segmentation with the dataset's labels"
OTHER_REASON = f"{NOT_MEASURED}: another reason"
UNMEASURED = (PREDICTION_MISSING, REFERENCE_MISSING, GEOMETRY_DIFFERS, NOT_READABLE, OTHER_REASON)

DICE = "Dice"
IOU = "IoU"
PRECISION = "Precision"
RECALL = "Recall"
RELATIVE_VOLUME_ERROR = "Relative volume error"
VOLUME_ERROR = "Volume error (ml)"
HD95 = "HD95 (mm)"
ASSD = "ASSD (mm)"
LESION_SENSITIVITY = "Lesion sensitivity"
LESION_DICE = "Lesion Dice"
LESION_F1 = "Lesion F1"
LESION_IOU = "Lesion IoU"
FALSE_POSITIVE_LESIONS = "False positive lesions per scan"
LESION_METRICS = (LESION_SENSITIVITY, LESION_DICE, LESION_IOU)  # of a single lesion

# Of a case without regard to labels, and of a training.
HEADERS_DIFFER = "Headers differ (mm)"
SECONDS_PER_EPOCH = "Seconds per epoch"
TRAINING_HOURS = "Training hours"
ADDED_PARAMETERS = "Added parameters"
TRAINING_METRICS = (SECONDS_PER_EPOCH, TRAINING_HOURS, ADDED_PARAMETERS)

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def nsd(tolerance_mm: float) -> str:
    """The name of the normalised surface distance at a tolerance."""
    return f"NSD at {tolerance_mm:g} mm"


def better(metric: str) -> Literal["higher", "lower", "zero"]:
    """In which direction a metric of the table is better, by its name; "zero": the nearer to zero."""
    if metric in (RELATIVE_VOLUME_ERROR, VOLUME_ERROR):
        return "zero"
    return "lower" if metric in (HD95, ASSD, FALSE_POSITIVE_LESIONS) else "higher"


def volume_bins(edges_ml: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Bins of lesion volumes, each from its lower edge to below its upper one, by what they are called in the table.

    Args:
        edges_ml: increasing, in millilitres; none gives no bins.
    """
    if not edges_ml:
        return {}
    first, last = edges_ml[0], edges_ml[-1]
    between = {f"{low:g} to {high:g} ml": (low, high) for low, high in pairwise(edges_ml)}
    return {f"below {first:g} ml": (0.0, first), **between, f"{last:g} ml or more": (last, float("inf"))}


def overlap_metrics(true_positive: Counts, false_positive: Counts, false_negative: Counts) -> dict[str, Values]:
    """What follows from the counts of voxels alone, elementwise; see the module for where they are not defined."""
    tp, fp, fn = true_positive, false_positive, false_negative
    return {
        DICE: _ratio(2 * tp, 2 * tp + fp + fn),
        IOU: _ratio(tp, tp + fp + fn),
        PRECISION: _ratio(tp, tp + fp),
        RECALL: _ratio(tp, tp + fn),
        RELATIVE_VOLUME_ERROR: _ratio(fp - fn, tp + fn),
    }


def presence(true_positive: Counts, false_positive: Counts, false_negative: Counts) -> NDArray[np.int8]:
    """The state of a label as an index into `STATES`, elementwise."""
    in_reference, in_prediction = true_positive + false_negative > 0, true_positive + false_positive > 0
    # DEFINED: 0, ABSENT_IN_BOTH: 1, ABSENT_IN_REFERENCE: 2, ABSENT_IN_PREDICTION: 3
    states = np.where(in_prediction, np.where(in_reference, 0, 2), np.where(in_reference, 3, 1))
    return states.astype(np.int8)


def _ratio(numerator: Counts, denominator: Counts) -> Values:
    ratio = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator != 0)
    return ratio
