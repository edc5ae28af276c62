"""RTSTRUCT: contours, in millimetres, to the voxels whose centres they enclose.

Of the libraries that do this, none can be relied on: `docs/rtstruct.md` has what was measured. So pydicom reads the
file and scikit-image fills the polygons.

A voxel belongs to a region if its centre is inside an odd number of the closed contours of its slice (so that a contour
within another one cuts a hole), or on a contour: programs that trace masks put the contours through the centres of the
outermost voxels. A contour that is stored twice counts once. Contours lie in a slice's plane; one between two slices
belongs to the nearer one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from skimage.measure import grid_points_in_poly

from nnunet_godc.conversion.dicom.files import UnreadableError, items_of, text_of, value_of, whole_of
from nnunet_godc.conversion.dicom.series import DicomSeries
from nnunet_godc.conversion.problems import CaseError, CaseLog

FLAT = 0.25  # slices: a contour that is more uneven than that was drawn across the slices
SAME_PLANE = 0.05  # slices
DECIMALS = 4  # of a voxel: what is left of a centre after the way through millimetres
# Of the area of two contours: what they differ by where they are one, smoothed or rounded anew. A wall that is as thin
# would be half a voxel thick around a hole of 200 voxels' width.
SAME_AREA = 0.01
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR", "")
_INSIDE = 1  # as grid_points_in_poly has it; 2 and 3 are on a corner and on an edge

Mask = NDArray[np.bool_]  # (i, j, k) of the series, Fortran order
Contour = NDArray[np.float64]  # (points, 3), voxels (i, j, k) of the series


def read_regions(dataset: FileDataset, series: DicomSeries, log: CaseLog) -> list[tuple[str, Callable[[], Mask]]]:
    """The regions' names, and what draws each on the grid of `series`; a region without contours is empty.

    Raises:
        UnreadableError: the file is damaged.
        CaseError: while drawing, for contours across the slices or beside all of them, or that enclose no voxel.
    """
    contours: dict[int | None, list[Dataset]] = defaultdict(list)
    for drawn in items_of(dataset, "ROIContourSequence"):
        contours[whole_of(drawn, "ReferencedROINumber")] += items_of(drawn, "ContourSequence")
    if "ROIContourSequence" not in dataset:
        # It may be empty, but has to be there: the file was cut off before it.
        raise UnreadableError("has no contours; download it again")
    regions: list[tuple[str, Callable[[], Mask]]] = []
    for region in items_of(dataset, "StructureSetROISequence"):
        number = whole_of(region, "ROINumber")
        name = text_of(region, "ROIName") or str(number)
        regions.append((name, partial(_drawn, name, contours.get(number, []), series, log)))
    if not regions:
        raise CaseError("the structure set names no region; export it again")
    return regions


def _drawn(name: str, items: Sequence[Dataset], series: DicomSeries, log: CaseLog) -> Mask:
    shape = series.grid.shape
    contours = _closed_contours(items, series, log)
    inside = [contour for contour in contours if -0.5 <= _height(contour) < shape[2] - 0.5]
    note_outside(len(contours) - len(inside), len(contours), "contours", log)
    mask = np.zeros(shape, np.bool_, order="F")
    repeated = 0
    for k, flat in _by_slice(inside, log).items():
        mask[:, :, k], twice = _filled(flat, shape[:2])
        repeated += twice
    if repeated:
        log.warn_once(f"{repeated} contours of {name} are stored more than once on their slice: counted once")
    used = np.flatnonzero(mask.any(axis=(0, 1)))
    if items and not len(used):
        raise CaseError(
            f"the {len(items)} contours of {name} enclose no voxel of the series; look at the structure set, or leave "
            "the region out of the label map"
        )
    if between := int(np.count_nonzero(np.diff(used) > 1)):
        log.warn_once(f"a region of the structure set skips slices at {between} places: nothing was put there")
    return mask


def note_outside(outside: int, whole: int, what: str, log: CaseLog) -> None:
    """Warns where `outside` of `whole` voxels or contours of a region lie beside the series.

    Raises:
        CaseError: all of them do.
    """
    if outside and outside == whole:
        raise CaseError(f"all {what} of a region of the DICOM mask lie beside the series; give the one it was drawn on")
    if outside:
        log.warn_once(f"{outside} of {whole} {what} of a region of the DICOM mask lie beside the series: left out")


def _closed_contours(items: Sequence[Dataset], series: DicomSeries, log: CaseLog) -> list[Contour]:
    to_voxels = np.linalg.inv(series.grid.affine)
    contours = []
    for item in items:
        points = _points(item)
        if text_of(item, "ContourGeometricType") not in _CLOSED or len(points) < 3:
            continue
        contour = series.to_grid(points) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        if np.ptp(contour[:, 2]) > FLAT:
            raise CaseError(
                "a contour of the structure set runs across the slices of the series; give the series it was drawn on"
            )
        contours.append(contour)
    if others := len(items) - len(contours):
        log.warn_once(f"{others} points or open contours in a region of the structure set enclose nothing: left out")
    return contours


def _points(item: Dataset) -> NDArray[np.float64]:
    """A contour's points, mm, shape (points, 3)."""
    value = value_of(item, "ContourData")
    if isinstance(value, bytes):
        # 64 kB and more do not fit the length of a DS in explicit syntaxes: they are written as UN, and stay text.
        value = value.strip(b" \0").split(b"\\")
    try:
        points = np.array([] if value is None else value, np.float64).reshape(-1, 3)
    except (TypeError, ValueError):
        raise UnreadableError("cannot be read: the points of a contour are damaged") from None
    if not np.isfinite(points).all():
        raise UnreadableError("cannot be read: a contour has points that are not numbers")
    return points


def _by_slice(contours: Sequence[Contour], log: CaseLog) -> dict[int, list[Contour]]:
    """The contours of each slice: all of one plane, the nearest where several planes lie within half a slice."""
    planes: dict[int, list[Contour]] = defaultdict(list)
    for contour in contours:
        planes[int(np.floor(_height(contour) + 0.5))].append(contour)
    chosen: dict[int, list[Contour]] = {}
    moved = 0
    for k, candidates in planes.items():
        nearest = min(map(_height, candidates), key=lambda height: abs(height - k))
        chosen[k] = [contour for contour in candidates if abs(_height(contour) - nearest) <= SAME_PLANE]
        moved += abs(nearest - k) > SAME_PLANE
    if moved:
        log.warn_once(f"contours of a region lie between slices: on {moved} slices the nearest one was taken")
    if dropped := len(contours) - sum(map(len, chosen.values())):
        log.warn_once(f"{dropped} contours of a region lie between slices that have a nearer one: left out")
    return chosen


def _filled(contours: Sequence[Contour], shape: tuple[int, int]) -> tuple[Mask, int]:
    """What the contours of one slice enclose, shape (i, j), and how many of them repeat another one."""
    odd, edge = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    drawn: list[NDArray[np.float64]] = []
    for contour in contours:
        corners = np.round(contour[:, :2], DECIMALS)
        if any(_are_one(corners, other) for other in drawn):
            continue
        drawn.append(corners)
        first = np.clip(np.floor(corners.min(axis=0)), 0, shape).astype(np.int64)
        last = np.clip(np.ceil(corners.max(axis=0)) + 1, first, shape).astype(np.int64)
        if (first == last).any():
            continue
        box = slice(first[0], last[0]), slice(first[1], last[1])
        places = grid_points_in_poly(tuple(last - first), corners - first, binarize=False)
        odd[box] ^= places == _INSIDE
        edge[box] |= places > _INSIDE
    return odd | edge, len(contours) - len(drawn)


def _are_one(corners: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two polygons, shape (points, 2), are the same one, from whatever start and in whatever direction."""
    area, other_area = _area(corners), _area(other)
    apart = [
        corners.min(axis=0) - other.min(axis=0),
        corners.max(axis=0) - other.max(axis=0),
        _centroid(corners) - _centroid(other),
    ]
    largest = max(area, other_area)
    return bool(abs(area - other_area) <= SAME_AREA * largest and np.abs(apart).max() <= SAME_AREA * np.sqrt(largest))


def _area(corners: NDArray[np.float64]) -> float:
    x, y = corners.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _centroid(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the outline, so that a point more or less on an edge does not move it."""
    following = np.roll(corners, -1, axis=0)
    lengths = np.linalg.norm(following - corners, axis=1)
    if not lengths.sum():
        return np.asarray(corners[0])
    return np.asarray(np.average((corners + following) / 2, axis=0, weights=lengths))


def _height(contour: Contour) -> float:
    """The slice that a contour lies at, as a fraction."""
    return float(np.mean(contour[:, 2]))
