"""DICOM-SEG: each frame is put where it says that it lies, whatever the order and number of frames.

highdicom's `Segmentation` is not used: it refuses files without coded terms, study UID, label or slice thickness, whose
geometry and pixels are whole, and bits in run lengths; and `get_volume` takes the smallest distance between frames for
the distance of slices, which it is not where every other slice is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from nnunet_godc.conversion.dicom.files import (
    SEGMENTATION,
    UnreadableError,
    items_of,
    number_of,
    sop_class_of,
    text_of,
    value_of,
    whole_of,
)
from nnunet_godc.conversion.dicom.headers import MAX_SIDE, Plane, find_group, frame_groups, read_plane, sides_of
from nnunet_godc.conversion.dicom.pixels import decode
from nnunet_godc.conversion.dicom.rtstruct import Mask, note_outside
from nnunet_godc.conversion.dicom.series import DicomSeries
from nnunet_godc.conversion.geometry import Grid, Volume, grid_from_affine, resampled_to
from nnunet_godc.conversion.problems import CaseError, CaseLog

SAME_GRID = 0.05  # voxels: what rounding in headers moves a frame by
UNEVEN = 0.1  # slices: how far a frame may lie from its place on a regular grid of its own
HALF = 0.5  # of the largest value of a fractional segmentation
LABELMAP = SEGMENTATION[1]


@dataclass(frozen=True)
class _Frame:
    """One frame of a segmentation.

    Attributes:
        segment: the one that it shows; None in a label map, where it may show all.
        affine: (column, row, 1) to the voxel (i, j, k) of the series, shape (3, 3).
        shows: what gives its pixels, shape (rows, columns), where a segment is.
    """

    segment: int | None
    plane: Plane
    affine: NDArray[np.float64]
    shows: Callable[[int], Mask]


def read_segments(dataset: FileDataset, series: DicomSeries, log: CaseLog) -> list[tuple[str, Callable[[], Mask]]]:
    """The segments' labels (or numbers, without), and what draws each on the grid of `series`.

    A voxel belongs to a fractional segment where that is at least a half. A segmentation on another grid is resampled
    by nearest neighbour in the patient's space. Segment 0 of a label map is its background, and never listed.

    Raises:
        CaseError, UnreadableError: it is damaged, or does not say where it lies. Drawing raises them too.
    """
    groups = frame_groups(dataset)
    planes = [plane for frame in groups if (plane := read_plane(frame)) is not None]
    if len(planes) < len(groups):
        raise CaseError(
            f"{len(groups) - len(planes)} frames of the DICOM-SEG do not say where they lie; export it again"
        )
    threshold = _threshold(dataset, log)
    shape = sides_of(dataset)
    if not _is_whole(dataset, shape, len(groups)):
        raise UnreadableError("is not whole; download it again")
    labels = segments_of(dataset)
    shown = [None if threshold is None else _segment_of(frame) for frame in groups]
    if not labels or not {number for number in shown if number is not None} <= labels.keys():
        raise UnreadableError("cannot be read: its frames show segments that it does not name")

    def shows(frame: int, segment: int) -> Mask:
        stored = decode(dataset, frame, shape)
        return np.asarray(stored == segment if threshold is None else stored >= threshold)

    to_voxels = np.linalg.inv(series.grid.affine)
    frames = []
    for number, (segment, plane) in enumerate(zip(shown, planes, strict=True)):
        on_stack = replace(plane, position=tuple(series.to_grid(np.array([plane.position]))[0]))
        affine = (to_voxels @ on_stack.affine(on_stack.normal))[:3][:, [0, 1, 3]]
        frames.append(_Frame(segment, on_stack, affine, partial(shows, number)))
    measures = find_group(groups[0], "PixelMeasuresSequence")
    between = number_of(measures, "SpacingBetweenSlices") or number_of(measures, "SliceThickness")
    draw = _placed
    if not all(_is_on_grid(frame.affine, shape) for frame in frames):
        log.warnings.append("DICOM-SEG on another grid than its series: resampled by nearest neighbour")
        draw = partial(_resampled, between)
    return [
        (label, partial(draw, number, [f for f in frames if f.segment in (number, None)], series.grid, log))
        for number, label in labels.items()
    ]


def _threshold(dataset: FileDataset, log: CaseLog) -> float | None:
    """From which value on a pixel belongs to its frame's segment; None in a label map, where it names its segment."""
    kind = "LABELMAP" if sop_class_of(dataset) == LABELMAP else text_of(dataset, "SegmentationType") or "BINARY"
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise UnreadableError("cannot be read: it is damaged or not a DICOM-SEG")
    if kind != "FRACTIONAL":
        return None if kind == "LABELMAP" else 1
    log.repairs.append("fractional DICOM-SEG made masks: a voxel belongs to them from one half on")
    return HALF * (whole_of(dataset, "MaximumFractionalValue") or 1)


def _is_whole(dataset: FileDataset, shape: tuple[int, int], frames: int) -> bool:
    pixels, bits = value_of(dataset, "PixelData"), whole_of(dataset, "BitsAllocated") or 1
    return isinstance(pixels, bytes) and (
        dataset["PixelData"].is_undefined_length or 8 * len(pixels) >= math.prod(shape) * frames * bits
    )


def segments_of(dataset: Dataset) -> dict[int, str]:
    """The labels of a file's segments, or their numbers, by number; the background is none."""
    return {
        number: text_of(item, "SegmentLabel") or str(number)
        for item in items_of(dataset, "SegmentSequence")
        if (number := whole_of(item, "SegmentNumber") or 0)
    }


def _segment_of(groups: Sequence[Dataset]) -> int:
    number = whole_of(find_group(groups, "SegmentIdentificationSequence"), "ReferencedSegmentNumber")
    if number is None:
        raise UnreadableError("cannot be read: a frame does not say which segment it shows")
    return number


def _is_on_grid(affine: NDArray[np.float64], shape: tuple[int, int]) -> bool:
    """Whether the centre of every pixel of a frame is the centre of a voxel (which may lie beside the series)."""
    rows, columns = shape
    corners = np.array([(column, row, 1) for column in (0, columns - 1) for row in (0, rows - 1)]).T
    whole = np.rint(affine)
    return bool(
        np.array_equal(np.abs(whole[:, :2]).sum(axis=0), (1, 1))
        and np.abs((affine - whole) @ corners).max() < SAME_GRID
    )


def _placed(segment: int, frames: Sequence[_Frame], grid: Grid, log: CaseLog) -> Mask:
    """A segment whose frames lie on the series' own grid."""
    mask = np.zeros(grid.shape, np.bool_, order="F")
    outside = whole = 0
    for frame in frames:
        rows, columns = np.nonzero(frame.shows(segment))
        voxels = np.rint(frame.affine).astype(np.int64) @ np.stack([columns, rows, np.ones_like(rows)])  # (3, pixels)
        inside = ((voxels >= 0) & (voxels < np.array(grid.shape)[:, None])).all(axis=0)
        mask[tuple(voxels[:, inside])] = True
        outside += int(np.count_nonzero(~inside))
        whole += len(rows)
    note_outside(outside, whole, "voxels", log)
    return mask


def _resampled(between: float | None, segment: int, frames: Sequence[_Frame], grid: Grid, log: CaseLog) -> Mask:
    """A segment on a grid of its own: every voxel of the series takes the pixel that its centre is nearest to.

    Args:
        between: millimetres between slices, where the file says so.
    """
    if not frames:
        return np.zeros(grid.shape, np.bool_, order="F")
    lowest = min((frame.plane for frame in frames), key=lambda plane: float(plane.normal @ plane.position))
    normal = lowest.normal
    above = np.array([normal @ np.subtract(frame.plane.position, lowest.position) for frame in frames])
    steps = np.diff(np.unique(np.round(above, 3)))
    for distance in filter(None, (between, float(steps.min(initial=np.inf)))):
        places = above / distance
        if np.abs(places - np.rint(places)).max() < UNEVEN:
            break
    slices = np.rint(places).astype(np.int64)
    sizes = {(frame.plane.row_spacing, frame.plane.column_spacing) for frame in frames}
    if (
        np.abs(places - slices).max() >= UNEVEN
        or len(sizes) > 1
        or not np.isfinite(distance)
        or slices.max() >= MAX_SIDE
    ):
        raise CaseError("the frames of the DICOM-SEG lie on no regular grid; export it on the grid of its series")
    pixels = frames[0].shows(segment)
    voxels = np.zeros((*reversed(pixels.shape), int(slices.max()) + 1), np.bool_, order="F")
    for k, frame in zip(slices, frames, strict=True):
        voxels[:, :, k] |= frame.shows(segment).T
    own = grid_from_affine(voxels.shape, lowest.affine(normal * distance), CaseLog(), what="DICOM-SEG")
    mask = np.asfortranarray(resampled_to(grid, Volume(voxels, own)) != 0)
    if voxels.any() and not mask.any():
        raise CaseError("a region of the DICOM-SEG has no voxel on the series; give the series it was drawn on")
    return mask
