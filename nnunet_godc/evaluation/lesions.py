"""Lesion by lesion: which were found, how well, and what was found where none is.

A lesion is a connected component of the mask, voxels that share a face, an edge or a corner being connected (26 in 3D,
8 in 2D). Predicted lesions are matched to those of the reference in one way only:

- A predicted lesion belongs to the one lesion of the reference with which it shares most voxels; to none if it shares
  none. So a prediction that flows over two lesions finds the one that it mostly covers, and misses the other.
- All predicted lesions that belong to one lesion of the reference are taken together: a lesion that is predicted in
  pieces is found once, and its pieces are no false positives.
- A lesion is *detected* where its IoU with what belongs to it is above zero and at least the stated minimum. Predicted
  lesions that belong to no detected lesion are false positives.

Dice of a lesion is taken with what belongs to it, detected or not; 0 where nothing does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Lesion:
    """A lesion of the reference.

    Attributes:
        volume_ml: its volume in the reference.
        iou, dice: with the predicted lesions that belong to it.
        detected: by the rule of this module.
    """

    volume_ml: float
    iou: float
    dice: float
    detected: bool


@dataclass(frozen=True)
class Lesions:
    """The lesions of one label in one case.

    Attributes:
        reference: those of the reference, in the order of their first voxels.
        false_positives: number of predicted lesions that belong to no detected one.
    """

    reference: tuple[Lesion, ...]
    false_positives: int

    @property
    def sensitivity(self) -> float:
        """The share of the reference's lesions that was detected; NaN if there are none."""
        return float(np.mean([lesion.detected for lesion in self.reference])) if self.reference else np.nan

    @property
    def dice(self) -> float:
        """The mean over the reference's lesions; NaN if there are none."""
        return float(np.mean([lesion.dice for lesion in self.reference])) if self.reference else np.nan

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN) over lesions; NaN if there are none, neither in the reference nor predicted."""
        detected = sum(lesion.detected for lesion in self.reference)
        # TP + FN are the lesions of the reference
        total = detected + len(self.reference) + self.false_positives
        return 2 * detected / total if total else np.nan


def match_lesions(reference: Mask, prediction: Mask, *, voxel_ml: float, minimum_iou: float) -> Lesions:
    """The lesions of two masks of one shape, matched as this module says.

    Args:
        voxel_ml: volume of a voxel in ml.
        minimum_iou: from which a lesion counts as detected, 0 to 1.
    """
    references, reference_sizes = _components(reference)
    predictions, prediction_sizes = _components(prediction)
    owner, shared = _owners(references, predictions, number=len(prediction_sizes))

    number = len(reference_sizes)
    intersection = np.bincount(owner, weights=shared, minlength=number)[1:]
    predicted = np.bincount(owner, weights=prediction_sizes, minlength=number)[1:]
    own = reference_sizes[1:]
    iou = intersection / (own + predicted - intersection)
    dice = 2 * intersection / (own + predicted)
    detected = (iou > 0) & (iou >= minimum_iou)

    found = np.concatenate([[False], detected])  # the background is no lesion
    return Lesions(
        reference=tuple(
            Lesion(float(size * voxel_ml), float(i), float(d), bool(is_detected))
            for size, i, d, is_detected in zip(own, iou, dice, detected, strict=True)
        ),
        false_positives=int(np.count_nonzero(~found[owner[1:]])),
    )


def _components(mask: Mask) -> tuple[NDArray[np.int32], Integers]:
    """Numbered components, 0 being the background, and how many voxels each has; the background has none."""
    components, number = label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(components[mask], minlength=number + 1)
    return components, sizes


def _owners(references: NDArray[np.int32], predictions: NDArray[np.int32], *, number: int) -> tuple[Integers, Integers]:
    """For every predicted component the one of the reference that it belongs to, 0 for none, and the voxels they share.

    Of two with which it shares as many, it belongs to the first.
    """
    both = (references > 0) & (predictions > 0)
    pairs, voxels = np.unique(
        np.stack([predictions[both], references[both]], axis=1), axis=0, return_counts=True
    )  # sorted by predicted component, then by the reference's
    order = np.lexsort((pairs[:, 1], -voxels, pairs[:, 0]))
    components, first = np.unique(pairs[order, 0], return_index=True)
    owner, shared = np.zeros(number, np.int64), np.zeros(number, np.int64)
    owner[components] = pairs[order[first], 1]
    shared[components] = voxels[order[first]]
    return owner, shared
