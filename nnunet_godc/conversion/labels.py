"""From whatever a mask holds to the label values of a dataset: uint8, named, nothing unexpected."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_godc.conversion.problems import CaseError, CaseLog, listed
from nnunet_godc.conversion.volumes import VolumeFile

WHOLE = 1e-3  # how far a stored label may lie from a whole number: 0.9999997 is a rounding, 0.5 is an interpolation

LabelArray = NDArray[np.uint8]
Masks = Mapping[str, Callable[[], NDArray[np.bool_]]]  # by name, each read or drawn when it is asked for


@dataclass(frozen=True)
class LabelMap:
    """What becomes of a mask's values.

    Attributes:
        names: value in the dataset to its name, background (0) left out.
        values: value in a file to value in the dataset; 0 stays 0. None: each of `names` stays what it is.
        stray: values that are known to occur without a meaning: they become background, and a repair is noted.
        segments: patterns of segment or structure names (shell's * and ?, case ignored) to value in the dataset. The
            first that fits counts; a segment that none fits is left out, with a warning, unless none fits at all.
            Where a file names its segments, these count instead of `values`, but for names that are numbers.
        region_of: names of regions to the values that they unite, for nnU-Net's region-based training; empty without.
    """

    names: Mapping[int, str]
    values: Mapping[int, int] | None = None
    stray: frozenset[int] = frozenset()
    segments: tuple[tuple[str, int], ...] = ()
    region_of: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def table(self) -> dict[int, int]:
        """Value in a file to value in the dataset, all legal ones."""
        values = {value: value for value in self.names} if self.values is None else dict(self.values)
        return {**dict.fromkeys(self.stray, 0), **values, 0: 0}


def read_label(file: VolumeFile, rules: LabelMap, log: CaseLog) -> LabelArray:
    """A mask's voxels as the dataset's label values, uint8, shape (i, j, k).

    Raises:
        CaseError: values that are no whole numbers, or that the rules do not name; or names of segments of which none
            fits.
    """
    stored, counts, rounded = _read_whole_numbers(file)
    if rounded:
        log.repairs.append(f"{rounded} label values that were within {WHOLE} of a whole number rounded")
    table = rules.table()
    segments = {segment.value: segment.name for segment in getattr(file, "segments", ())}
    if segments and rules.segments:
        fitting = _fitting(segments.values(), rules, log)
        table.update({value: fitting.get(name, 0) for value, name in segments.items()})
    if unknown := counts.keys() - table.keys():
        raise CaseError(
            f"the label holds values that nothing explains: {_counted(unknown, counts)}; known are {sorted(table)}. "
            "Fix the mask, or map them (option --label-map where the collection has it)"
        )
    if dropped := {value for value in counts if value in rules.stray and not table[value]}:
        log.repairs.append(f"stray label values made background: {_counted(dropped, counts)}")
    if any(table[value] != value for value in counts):
        lookup = np.array([table.get(value, 0) for value in range(256)], dtype=np.uint8)
        for k in range(stored.shape[2]):
            stored[:, :, k] = lookup[stored[:, :, k]]
    return stored


def read_mask(file: VolumeFile) -> NDArray[np.bool_]:
    """A mask that has a file for itself: where its only value but 0 is.

    Raises:
        CaseError: values that are no whole numbers, or several of them.
    """
    stored, counts, _ = _read_whole_numbers(file)
    if len(values := sorted(counts.keys() - {0})) > 1:
        raise CaseError(f"a mask of one label holds several values ({values[:8]}); give it as the case's only mask")
    return np.asarray(stored != 0)


def values_of(file: VolumeFile) -> list[int]:
    """The values of a mask but 0. Raises CaseError for values that are no whole numbers."""
    return sorted(_read_whole_numbers(file)[1].keys() - {0})


def merge_masks(masks: Masks, shape: tuple[int, int, int], rules: LabelMap, log: CaseLog) -> LabelArray:
    """Named masks of one case, each of `shape`, as one label array; where several overlap, the highest value wins.

    Raises:
        CaseError: none of the names fits the rules.
    """
    label = np.zeros(shape, dtype=np.uint8, order="F")
    overlap = 0
    for value, name in sorted((value, name) for name, value in _fitting(masks, rules, log).items() if value):
        mask = masks[name]()
        if not mask.any():
            log.warn_once(f"the mask of {name} is empty")
        overlap += int(np.count_nonzero((label != 0) & (label != value) & mask))
        label[mask] = value
    if overlap:
        log.warnings.append(f"segments overlap on {overlap} voxels: the label with the higher value was kept there")
    return label


def count_values(label: LabelArray) -> Counter[int]:
    """How many voxels hold each value that occurs, by value."""
    counts = np.zeros(256, dtype=np.int64)
    for k in range(label.shape[2]):
        plane = label[:, :, k]  # a slice stays in the processor's cache from one comparison to the next
        highest = int(plane.max(initial=0))
        if highest < 16:
            # Most slices are background; else a comparison per value beats bincount, which widens voxels to 64 bits.
            found = [int(np.count_nonzero(plane == value)) for value in range(1, highest + 1)]
            counts[: highest + 1] += [plane.size - sum(found), *found]
        else:
            counts += np.bincount(plane.ravel(order="K"), minlength=256)
    return Counter({value: int(count) for value, count in enumerate(counts) if count})


def _read_whole_numbers(file: VolumeFile) -> tuple[LabelArray, Counter[int], int]:
    """All values as uint8, how often each occurs, and how many were rounded."""
    stored = np.empty(file.shape, dtype=np.uint8, order="F")
    counts: Counter[int] = Counter()
    rounded = 0
    for where, slab in file.slabs():
        whole, changed = _whole_numbers(slab)
        stored[:, :, where] = whole
        counts += count_values(whole)
        rounded += changed
    return stored, counts, rounded


def _whole_numbers(values: NDArray[Any]) -> tuple[LabelArray, int]:
    """Values as uint8, and how many were rounded."""
    whole, rounded = values, 0
    if values.dtype.kind == "f":
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):  # infinities, which are refused below
            apart = np.abs(values - whole)
        if broken := int(np.count_nonzero(~(apart <= WHOLE))):
            raise CaseError(
                f"the label holds {broken} voxels or more that are not whole numbers; it was interpolated: fix the mask"
            )
        rounded = int(np.count_nonzero(apart))
    low, high = whole.min(initial=0), whole.max(initial=0)
    if low < 0 or high > 255:
        raise CaseError(f"the label holds values from {low:g} to {high:g}; from 0 to 255 are possible. Is it an image?")
    return whole.astype(np.uint8, copy=False), rounded


def _fitting(names: Iterable[str], rules: LabelMap, log: CaseLog) -> dict[str, int]:
    """The value in the dataset of every segment that fits a pattern; the others are warned of.

    Raises:
        CaseError: none fits.
    """
    values = {name: _value_of_segment(name, rules) for name in names}
    fitting = {name: value for name, value in values.items() if value is not None}
    if not fitting:
        raise CaseError(
            f"none of the mask's segments ({listed(sorted(values))}) fits the label map; add --label-map "
            "'PATTERN=LABEL'"
        )
    if left_out := sorted(values.keys() - fitting.keys()):
        log.warnings.append(f"segments that fit no pattern of the label map are left out: {listed(left_out)}")
    return fitting


def _value_of_segment(name: str, rules: LabelMap) -> int | None:
    folded = _folded(name)
    for pattern, value in rules.segments:
        # Brackets are part of many names, such as "GTV [1]", not the shell's.
        if fnmatchcase(folded, _folded(pattern).replace("[", "[[]")):
            return value
    return (rules.values or {}).get(int(folded)) if folded.isdecimal() else None


def _folded(name: str) -> str:
    """Without regard to capitals, and to whether an accent is a character of its own, as macOS has it."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def _counted(values: Iterable[int], counts: Mapping[int, int]) -> str:
    return listed(f"{value} ({counts[value]} voxels)" for value in sorted(values))
