"""DICOM-SEG: each frame is put where it says that it lies, whatever the order and number of frames.

highdicom's `Segmentation` is not used: it refuses files without coded terms, study UID, label or slice thickness, whose
geometry and pixels are whole, and bits in run lengths; and `get_volume` takes the smallest distance between frames for
the distance of slices, which it is not where every other slice is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from nnunet_godc.conversion.dicom.files import SEGMENTATION, UnreadableError, items_of, sop_class_of, text_of, value_of
from nnunet_godc.conversion.dicom.headers import (
    MAX_SIDE,
    Plane,
    find_group,
    frame_groups,
    number_of,
    read_plane,
    side_of,
    whole_of,
)
from nnunet_godc.conversion.dicom.pixels import decode
from nnunet_godc.conversion.dicom.regions import Mask, note_frame_of_reference, note_outside
from nnunet_godc.conversion.dicom.series import DicomSeries
from nnunet_godc.conversion.geometry import Grid, Volume, grid_from_affine
from nnunet_godc.conversion.problems import CaseError, CaseLog
from nnunet_godc.conversion.resampling import resampled_to

SAME_GRID = 0.05  # voxels: what rounding in headers moves a frame by
HALF = 0.5  # of the largest value of a fractional segmentation
LABELMAP = SEGMENTATION[1]


@dataclass(frozen=True)
class _Frame:
    """One frame of a segmentation.

    Attributes:
        number: in the file, from 0.
        segment: the one that it shows; None in a label map, where it may show all.
        affine: (column, row, 1) to the voxel (i, j, k) of the series, shape (3, 3).
    """

    number: int
    segment: int | None
    plane: Plane
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class _Segmentation:
    """What of a file is needed to draw a segment.

    Attributes:
        threshold: the smallest stored value that belongs to a segment; None in a label map, whose values are segments.
        between: millimetres between slices, where the file says so.
    """

    dataset: FileDataset
    shape: tuple[int, int]
    threshold: float | None
    between: float | None

    def pixels(self, frame: _Frame, number: int) -> Mask:
        """Where a frame shows segment `number`, shape (rows, columns). Raises UnreadableError."""
        stored: NDArray[Any] = decode(self.dataset, frame.number, self.shape)
        return np.asarray(stored == number if self.threshold is None else stored >= self.threshold)


def read_segments(dataset: FileDataset, series: DicomSeries, notes: CaseLog) -> list[tuple[str, Callable[[], Mask]]]:
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
    kind = "LABELMAP" if sop_class_of(dataset) == LABELMAP else text_of(dataset, "SegmentationType") or "BINARY"
    threshold: float | None = 1
    if kind == "FRACTIONAL":
        threshold = HALF * (whole_of(dataset, "MaximumFractionalValue") or 1)
        notes.repairs.append("fractional DICOM-SEG made masks: a voxel belongs to them from one half on")
    elif kind == "LABELMAP":
        threshold = None
    elif kind != "BINARY":
        raise UnreadableError("cannot be read: it is damaged or not a DICOM-SEG")
    planes = [replace(plane, position=tuple(series.to_grid(np.array([plane.position]))[0])) for plane in planes]
    size = side_of(dataset, "Rows") * side_of(dataset, "Columns") * len(groups)
    pixels = value_of(dataset, "PixelData")
    bits = size * (whole_of(dataset, "BitsAllocated") or 1)
    if not isinstance(pixels, bytes) or (not dataset["PixelData"].is_undefined_length and 8 * len(pixels) < bits):
        raise UnreadableError("is not whole; download it again")
    shown = [None if threshold is None else _segment_of(frame) for frame in groups]
    labels = {
        number: text_of(item, "SegmentLabel") or str(number)
        for item in items_of(dataset, "SegmentSequence")
        if (number := whole_of(item, "SegmentNumber") or 0)
    }
    if not labels or not {number for number in shown if number is not None} <= labels.keys():
        raise UnreadableError("cannot be read: its frames show segments that it does not name")
    note_frame_of_reference(text_of(dataset, "FrameOfReferenceUID"), series, notes)
    frames = [
        _Frame(number, segment, plane, _to_voxels(plane, series.grid))
        for number, (segment, plane) in enumerate(zip(shown, planes, strict=True))
    ]
    measures = find_group(groups[0], "PixelMeasuresSequence")
    between = number_of(measures, "SpacingBetweenSlices") or number_of(measures, "SliceThickness")
    source = _Segmentation(dataset, (side_of(dataset, "Rows"), side_of(dataset, "Columns")), threshold, between)
    draw = _placed
    if not all(_is_on_grid(frame.affine, source.shape) for frame in frames):
        notes.warnings.append("DICOM-SEG on another grid than its series: resampled by nearest neighbour")
        draw = _resampled
    return [
        (label, partial(draw, source, number, [f for f in frames if f.segment in (number, None)], series.grid, notes))
        for number, label in labels.items()
    ]


def _segment_of(groups: Sequence[Dataset]) -> int:
    number = whole_of(find_group(groups, "SegmentIdentificationSequence"), "ReferencedSegmentNumber")
    if number is None:
        raise UnreadableError("cannot be read: a frame does not say which segment it shows")
    return number


def _to_voxels(plane: Plane, grid: Grid) -> NDArray[np.float64]:
    pixels = plane.affine(plane.normal)[:, [0, 1, 3]]  # (column, row, 1) to (x, y, z, 1)
    return np.asarray(np.linalg.solve(grid.affine, pixels)[:3], np.float64)


def _is_on_grid(affine: NDArray[np.float64], shape: tuple[int, int]) -> bool:
    """Whether the centre of every pixel of a frame is the centre of a voxel (which may lie beside the series)."""
    rows, columns = shape
    corners = np.array([(column, row, 1) for column in (0, columns - 1) for row in (0, rows - 1)]).T
    whole = np.rint(affine)
    return bool(
        np.array_equal(np.abs(whole[:, :2]).sum(axis=0), (1, 1))
        and np.abs((affine - whole) @ corners).max() < SAME_GRID
    )


def _placed(source: _Segmentation, number: int, frames: Sequence[_Frame], grid: Grid, notes: CaseLog) -> Mask:
    """A segment whose frames lie on the series' own grid."""
    mask = np.zeros(grid.shape, np.bool_, order="F")
    outside = whole = 0
    for frame in frames:
        rows, columns = np.nonzero(source.pixels(frame, number))
        voxels = np.rint(frame.affine).astype(np.int64) @ np.stack([columns, rows, np.ones_like(rows)])  # (3, pixels)
        inside = ((voxels >= 0) & (voxels < np.array(grid.shape)[:, None])).all(axis=0)
        mask[tuple(voxels[:, inside])] = True
        outside += int(np.count_nonzero(~inside))
        whole += len(rows)
    note_outside(outside, whole, "voxels", notes)
    return mask


def _resampled(source: _Segmentation, number: int, frames: Sequence[_Frame], grid: Grid, notes: CaseLog) -> Mask:
    """A segment on a grid of its own: every voxel of the series takes the pixel that its centre is nearest to."""
    if not frames:
        return np.zeros(grid.shape, np.bool_, order="F")
    from highdicom.spatial import get_volume_positions  # a second of imports, for few files

    first = frames[0].plane
    positions = np.array([frame.plane.position for frame in frames])
    heights = positions @ first.normal
    places = None
    for hint in (source.between, None):
        spacing, places = get_volume_positions(
            positions.tolist(),
            [*first.along_row, *first.along_column],
            rtol=0.1,
            allow_missing_positions=True,
            allow_duplicate_positions=True,
            spacing_hint=hint or None,
        )
        if places is not None:
            break
    one_size = len({(frame.plane.row_spacing, frame.plane.column_spacing) for frame in frames}) == 1
    if places is None or spacing is None or not one_size or np.ptp(places) >= MAX_SIDE:
        raise CaseError("the frames of the DICOM-SEG lie on no regular grid; export it on the grid of its series")
    # In the order of heights, whichever way the library counts.
    slices = np.rint((heights - heights.min()) / spacing).astype(np.int64)
    rows, columns = source.shape
    voxels = np.zeros((columns, rows, int(slices.max()) + 1), np.bool_, order="F")
    for k, frame in zip(slices, frames, strict=True):
        voxels[:, :, k] |= source.pixels(frame, number).T
    lowest = frames[int(heights.argmin())].plane
    own = grid_from_affine(voxels.shape, lowest.affine(lowest.normal * spacing), CaseLog(), what="DICOM-SEG")
    mask = np.asfortranarray(resampled_to(grid, Volume(voxels, own)) != 0)
    if voxels.any() and not mask.any():
        raise CaseError("a region of the DICOM-SEG has no voxel on the series; give the series it was drawn on")
    return mask
