"""DICOM-SEG: each frame is put where it says that it lies, whatever the order and number of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from highdicom.seg import Segmentation
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from nnunet_godc.conversion.dicom import DicomSeries
from nnunet_godc.conversion.dicom_codecs import decode
from nnunet_godc.conversion.dicom_headers import (
    MAX_SIDE,
    Plane,
    UnreadableError,
    find_group,
    frame_groups,
    items_of,
    read_plane,
    side_of,
    text_of,
)
from nnunet_godc.conversion.grid import Grid
from nnunet_godc.conversion.problems import CaseError, Notes
from nnunet_godc.conversion.regions import Mask, note_frame_of_reference, note_outside

SAME_GRID = 0.05  # voxels: what rounding in headers moves a frame by
HALF = 0.5  # of the largest value of a fractional segmentation


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
    affine: NDArray[np.float64]


def read_segments(dataset: FileDataset, series: DicomSeries, notes: Notes) -> list[tuple[str, Callable[[], Mask]]]:
    """The segments' labels, and what draws each on the grid of `series`.

    A voxel belongs to a fractional segment where that is at least a half. A segmentation on another grid is resampled
    by nearest neighbour in the patient's space.

    Raises:
        CaseError, UnreadableError: it is damaged, or says not where it lies. Drawing raises them too.
    """
    try:
        groups = frame_groups(dataset)
        planes = [plane for group in groups if (plane := read_plane(group)) is not None]
        kind = text_of(dataset, "SegmentationType")
        shown = [None if kind == "LABELMAP" else _segment_of(group) for group in groups]
        shape = (side_of(dataset, "Rows"), side_of(dataset, "Columns"))
        labels = {
            int(item.SegmentNumber): text_of(item, "SegmentLabel") for item in items_of(dataset, "SegmentSequence")
        }
        segmentation = Segmentation.from_dataset(dataset, copy=False)
    except UnreadableError:
        raise
    except Exception:
        # Whatever it is, its text may quote the file.
        raise UnreadableError("cannot be read: it is damaged or no DICOM-SEG") from None
    if len(planes) < len(groups):
        raise CaseError(
            f"{len(groups) - len(planes)} frames of the DICOM-SEG do not say where they lie; export it again"
        )
    note_frame_of_reference(text_of(dataset, "FrameOfReferenceUID"), series, notes)
    frames = [
        _Frame(number, segment, _to_voxels(plane, series.grid))
        for number, (segment, plane) in enumerate(zip(shown, planes, strict=True))
    ]
    if kind == "FRACTIONAL":
        notes.repairs.append("fractional DICOM-SEG turned to masks: a voxel belongs to them from one half on")
    draw = _placed
    if not all(_is_on_grid(frame.affine, shape) for frame in frames):
        notes.repairs.append("DICOM-SEG on another grid than its series: resampled by nearest neighbour")
        draw = _resampled
    return [
        (
            label,
            partial(
                draw,
                segmentation,
                number,
                [frame for frame in frames if frame.segment in (number, None)],
                series.grid,
                notes,
            ),
        )
        for number, label in labels.items()
    ]


def _segment_of(groups: Sequence[Dataset]) -> int:
    return int(find_group(groups, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _to_voxels(plane: Plane, grid: Grid) -> NDArray[np.float64]:
    pixels = np.eye(4, 3)  # (column, row, 1) to (x, y, z, 1)
    pixels[:3, 0] = np.array(plane.along_row) * plane.column_spacing
    pixels[:3, 1] = np.array(plane.along_column) * plane.row_spacing
    pixels[:, 2] = (*plane.position, 1)
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


def _placed(segmentation: Segmentation, number: int, frames: Sequence[_Frame], grid: Grid, notes: Notes) -> Mask:
    """A segment whose frames lie on the series' own grid."""
    mask = np.zeros(grid.shape, np.bool_, order="F")
    outside = whole = 0
    for frame in frames:
        rows, columns = np.nonzero(_pixels(segmentation, frame, number))
        voxels = np.rint(frame.affine).astype(np.int64) @ np.stack([columns, rows, np.ones_like(rows)])  # (3, pixels)
        inside = ((voxels >= 0) & (voxels < np.array(grid.shape)[:, None])).all(axis=0)
        mask[tuple(voxels[:, inside])] = True
        outside += int(np.count_nonzero(~inside))
        whole += len(rows)
    note_outside(outside, whole, "voxels", notes)
    return mask


def _resampled(segmentation: Segmentation, number: int, frames: Sequence[_Frame], grid: Grid, notes: Notes) -> Mask:
    """A segment on a grid of its own: every voxel of the series takes the pixel that its centre is nearest to."""
    try:
        geometry = segmentation.get_volume_geometry(rtol=0.1)
    except Exception:
        geometry = None
    if geometry is None or geometry.spatial_shape[0] > MAX_SIDE:
        raise CaseError("the frames of the DICOM-SEG lie on no regular grid; export it on the grid of its series")
    mask = np.zeros(grid.shape, np.bool_, order="F")
    source = np.zeros(geometry.spatial_shape, np.bool_)  # (frame, row, column)
    to_source = np.linalg.solve(geometry.affine, grid.affine)[:3]
    for frame in frames:
        first_pixel = to_source @ (*frame.affine[:, 2], 1)
        source[round(first_pixel[0])] |= _pixels(segmentation, frame, number)
    i, j = np.ogrid[: grid.shape[0], : grid.shape[1]]
    for k in range(grid.shape[2]):
        at = [np.rint(row[0] * i + row[1] * j + (row[2] * k + row[3])).astype(np.int64) for row in to_source]
        inside = np.logical_and.reduce(
            [(place >= 0) & (place < size) for place, size in zip(at, source.shape, strict=True)]
        )
        mask[:, :, k][inside] = source[tuple(place[inside] for place in at)]
    if source.any() and not mask.any():
        raise CaseError("a region of the DICOM-SEG has no voxel on the series; give the series it was drawn on")
    return mask


def _pixels(segmentation: Segmentation, frame: _Frame, number: int) -> Mask:
    """Where a frame shows segment `number`, shape (rows, columns)."""
    try:
        if segmentation.BitsAllocated == 1:
            stored: NDArray[Any] = segmentation.get_stored_frame(frame.number, as_index=True)
        else:
            stored = decode(segmentation, frame.number, (segmentation.Rows, segmentation.Columns))
        if frame.segment is None:
            return np.asarray(stored == number)
        if text_of(segmentation, "SegmentationType") == "FRACTIONAL":
            return np.asarray(stored >= HALF * int(segmentation.MaximumFractionalValue))
        return np.asarray(stored != 0)
    except Exception:
        raise UnreadableError(f"cannot be decoded: frame {frame.number + 1} is damaged") from None
