"""Lesion by lesion: which were found, how well, and what was found where none is.

A lesion is a connected component of the mask, voxels that share a face, an edge or a corner being connected (26 in 3D,
8 in 2D). Predicted lesions are matched to those of the reference, unless a `LesionRule` says otherwise, as follows:

- A predicted lesion belongs to the one lesion of the reference with which it shares most voxels; to none if it shares
  none. So a prediction that flows over two lesions finds the one that it mostly covers, and misses the other.
- All predicted lesions that belong to one lesion of the reference are taken together: a lesion that is predicted in
  pieces is found once, and its pieces are no false positives.
- A lesion is *detected* where its IoU with what belongs to it is above zero and at least the stated minimum. Predicted
  lesions that belong to no detected lesion are false positives.

Dice of a lesion is taken with what belongs to it, detected or not; 0 where nothing does.

Three options follow other tools. With a *minimum volume*, smaller lesions of the reference and smaller predicted ones
are dropped before matching, as if they were background. *One to one*, a lesion of the reference keeps of the predicted
ones that belong to it only that with the largest overlap, as panoptica has it; the others are false positives. With a
*dilation*, as in BraTS, voxels of the reference's mask that come together after so many dilations (by one voxel along
faces) are one lesion, and so are those of the prediction; volumes and overlaps are taken on the masks as they are, and
what touches the dilated lesion of the reference belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, generate_binary_structure, grey_dilation, label

Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class LesionRule:
    """How lesions are told apart and matched, see this module.

    Attributes:
        minimum_iou: from which a lesion counts as detected, 0 to 1.
        minimum_ml: lesions below this volume are dropped.
        one_to_one: a lesion has one predicted lesion at the most.
        dilation: voxels by which masks are dilated before they are taken apart.
    """

    minimum_iou: float = 0.1
    minimum_ml: float = 0.0
    one_to_one: bool = False
    dilation: int = 0

    def __str__(self) -> str:
        parts = [f"detected from an IoU of {self.minimum_iou:g}"]
        parts.append("one to one" if self.one_to_one else "all predicted lesions of one taken together")
        parts += [f"none below {self.minimum_ml:g} ml"] if self.minimum_ml else []
        parts += [f"masks dilated by {self.dilation} voxels before they are taken apart"] if self.dilation else []
        return ", ".join(parts)


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


def match_lesions(reference: Mask, prediction: Mask, *, voxel_ml: float, rule: LesionRule) -> Lesions:
    """The lesions of two masks of one shape, matched as this module says.

    Args:
        voxel_ml: volume of a voxel in ml.
        rule: how they are told apart and matched.
    """
    # Nothing outside the masks matters but what dilation reaches.
    references, reference_sizes = _components(reference, voxel_ml, rule)
    predictions, prediction_sizes = _components(prediction, voxel_ml, rule)
    reach = references
    if rule.dilation:
        reach = _dilated(references, rule.dilation)
    number = len(reference_sizes)
    owner, reached = _owners(reach, predictions, number=len(prediction_sizes))
    if rule.one_to_one:
        largest = np.zeros(number, np.int64)
        np.maximum.at(largest, owner, reached)
        keeps = np.zeros(number, np.int64)
        candidates = np.flatnonzero((owner > 0) & (reached == largest[owner]))[::-1]
        keeps[owner[candidates]] = candidates  # the first of equal ones
        owner = np.where((owner > 0) & (keeps[owner] == np.arange(len(owner))), owner, 0)

    both = (references > 0) & (predictions > 0)
    own_pairs = owner[predictions[both]] == references[both]
    intersection = np.bincount(references[both][own_pairs], minlength=number)[1:]
    predicted = np.bincount(owner, weights=prediction_sizes, minlength=number)[1:]
    own = reference_sizes[1:]
    iou = intersection / (own + predicted - intersection)
    dice = 2 * intersection / (own + predicted)
    detected = (iou > 0) & (iou >= rule.minimum_iou)

    found = np.concatenate([[False], detected])  # the background is no lesion
    return Lesions(
        reference=tuple(
            Lesion(float(size * voxel_ml), float(i), float(d), bool(is_detected))
            for size, i, d, is_detected in zip(own, iou, dice, detected, strict=True)
        ),
        false_positives=int(np.count_nonzero(~found[owner[1:]])),
    )


def _components(mask: Mask, voxel_ml: float, rule: LesionRule) -> tuple[NDArray[np.int32], Integers]:
    """Numbered components, 0 being the background, and how many voxels each has; the background has none."""
    whole = binary_dilation(np.pad(mask, rule.dilation), iterations=rule.dilation) if rule.dilation else mask
    components, number = label(whole, np.ones((3,) * mask.ndim))
    if rule.dilation:
        components = components[tuple(slice(rule.dilation, -rule.dilation) for _ in mask.shape)] * mask
    sizes = np.bincount(components[mask], minlength=number + 1)
    sizes[0] = 0
    if rule.minimum_ml:
        kept = sizes * voxel_ml >= rule.minimum_ml - 1e-9
        kept[0] = False
        renumbered = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
        components, sizes = renumbered[components], np.concatenate([[0], sizes[kept]])
    return components, sizes


def _dilated(components: NDArray[np.int32], voxels: int) -> NDArray[np.int32]:
    """Every component with the voxels around it; where two meet, those of the later one."""
    grown = components
    for _ in range(voxels):
        wider = grey_dilation(grown, footprint=generate_binary_structure(components.ndim, 1))
        grown = np.where(grown > 0, grown, wider)
    return grown


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
