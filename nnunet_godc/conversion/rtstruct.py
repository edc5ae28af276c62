"""RTSTRUCT: contours, in millimetres, to the voxels whose centres they enclose.

Of the libraries that do this, none can be relied on: `docs/rtstruct.md` has what was measured. So pydicom reads the
file and scikit-image fills the polygons.

A voxel belongs to a region if its centre is inside an odd number of the closed contours of its slice (so that a contour
within another one cuts a hole), or on a contour: programs that trace masks put the contours through the centres of the
outermost voxels. Contours lie in a slice's plane; one between two slices belongs to the nearer one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from skimage.measure import grid_points_in_poly

from nnunet_godc.conversion.dicom import DicomSeries
from nnunet_godc.conversion.dicom_headers import UnreadableError, items_of, text_of
from nnunet_godc.conversion.grid import Grid
from nnunet_godc.conversion.problems import CaseError, Notes
from nnunet_godc.conversion.regions import Mask, note_frame_of_reference, note_outside, warn_once

FLAT = 0.25  # slices: a contour that is more uneven than that was drawn across the slices
SAME_PLANE = 0.05  # slices
DECIMALS = 4  # of a voxel: what is left of a centre after the way through millimetres
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR", "")
_INSIDE = 1  # as grid_points_in_poly has it; 2 and 3 are on a corner and on an edge

Contour = NDArray[np.float64]  # (points, 3), voxels (i, j, k) of the series


def read_regions(dataset: FileDataset, series: DicomSeries, notes: Notes) -> list[tuple[str, Callable[[], Mask]]]:
    """The regions' names, and what draws each on the grid of `series`; a region without contours is empty.

    Raises:
        UnreadableError: the file is damaged.
        CaseError: while drawing, for contours across the slices or beside all of them.
    """
    try:
        contours = {
            int(drawn.ReferencedROINumber): items_of(drawn, "ContourSequence")
            for drawn in items_of(dataset, "ROIContourSequence")
        }
        for region in items_of(dataset, "StructureSetROISequence"):
            note_frame_of_reference(text_of(region, "ReferencedFrameOfReferenceUID"), series, notes)
        regions = [
            (text_of(region, "ROIName"), contours.get(int(region.ROINumber), []))
            for region in items_of(dataset, "StructureSetROISequence")
        ]
    except Exception:
        # Whatever it is, its text may quote the file.
        raise UnreadableError("cannot be read: it is damaged or no structure set") from None
    if "ROIContourSequence" not in dataset:
        # It may be empty, but has to be there: the file was cut off before it.
        raise UnreadableError("has no contours; fetch it again")
    if not regions:
        raise CaseError("the structure set names no region; export it again")
    return [(name, partial(_drawn, items, series.grid, notes)) for name, items in regions]


def _drawn(items: Sequence[Dataset], grid: Grid, notes: Notes) -> Mask:
    contours = _closed_contours(items, grid, notes)
    mask = np.zeros(grid.shape, np.bool_, order="F")
    inside = [contour for contour in contours if -0.5 <= _height(contour) < grid.shape[2] - 0.5]
    note_outside(len(contours) - len(inside), len(contours), "contours", notes)
    for k, flat in _by_slice(inside, notes).items():
        mask[:, :, k] = _filled(flat, grid.shape[:2])
    used = np.flatnonzero(mask.any(axis=(0, 1)))
    between = int(np.count_nonzero(np.diff(used) > 1))
    if between:
        warn_once(f"a region of the structure set skips slices at {between} places: nothing was put there", notes)
    return mask


def _closed_contours(items: Sequence[Dataset], grid: Grid, notes: Notes) -> list[Contour]:
    to_voxels = np.linalg.inv(grid.affine)
    contours, others = [], 0
    for item in items:
        try:
            kind = text_of(item, "ContourGeometricType")
            points = np.array(item.get("ContourData") or [], np.float64).reshape(-1, 3)
        except Exception:
            raise UnreadableError("cannot be read: the points of a contour are damaged") from None
        if not np.isfinite(points).all():
            raise UnreadableError("cannot be read: a contour has points that are no numbers")
        if kind not in _CLOSED or len(points) < 3:
            others += 1
            continue
        contour = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        if np.ptp(contour[:, 2]) > FLAT:
            raise CaseError(
                "a contour of the structure set runs across the slices of the series; give the series it was drawn on"
            )
        contours.append(contour)
    if others:
        warn_once(f"{others} points or open contours in a region of the structure set enclose nothing: left out", notes)
    return contours


def _by_slice(contours: Sequence[Contour], notes: Notes) -> dict[int, list[Contour]]:
    """The contours of each slice: all of one plane, the nearest where several planes lie within half a slice."""
    planes: dict[int, list[tuple[float, Contour]]] = defaultdict(list)
    for contour in contours:
        planes[int(np.floor(_height(contour) + 0.5))].append((_height(contour), contour))
    chosen: dict[int, list[Contour]] = {}
    dropped = moved = 0
    for k, candidates in planes.items():
        nearest = min((height for height, _ in candidates), key=lambda height: abs(height - k))
        chosen[k] = [contour for height, contour in candidates if abs(height - nearest) <= SAME_PLANE]
        dropped += len(candidates) - len(chosen[k])
        moved += abs(nearest - k) > SAME_PLANE
    if moved:
        warn_once(f"contours of a region lie between slices: on {moved} slices the nearest one was taken", notes)
    if dropped:
        warn_once(f"{dropped} contours of a region lie between slices that have a nearer one: left out", notes)
    return chosen


def _filled(contours: Sequence[Contour], shape: tuple[int, int]) -> Mask:
    """What the contours of one slice enclose, shape (i, j)."""
    odd = np.zeros(shape, np.bool_)
    edge = np.zeros(shape, np.bool_)
    for contour in contours:
        corners = np.round(contour[:, :2], DECIMALS)
        first = np.clip(np.floor(corners.min(axis=0)), 0, shape).astype(np.int64)
        last = np.clip(np.ceil(corners.max(axis=0)) + 1, first, shape).astype(np.int64)
        if (first == last).any():
            continue
        box = slice(first[0], last[0]), slice(first[1], last[1])
        places = grid_points_in_poly(tuple(last - first), corners - first, binarize=False)
        odd[box] ^= places == _INSIDE
        edge[box] |= places > _INSIDE
    return odd | edge


def _height(contour: Contour) -> float:
    """The slice that a contour lies at, as a fraction."""
    return float(np.mean(contour[:, 2]))
