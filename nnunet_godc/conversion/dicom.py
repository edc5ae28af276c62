"""DICOM series: choosing one, putting its slices in order of their positions, reading Hounsfield units.

Order, distance and number of slices come from ImagePositionPatient and ImageOrientationPatient alone: file names,
InstanceNumber, SliceLocation and SliceThickness are at odds with them in real collections.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from nnunet_godc.conversion.dicom_codecs import decode
from nnunet_godc.conversion.dicom_headers import (
    ImageHeader,
    Plane,
    UnknownKindError,
    UnreadableError,
    has_preamble,
    quiet,
    read_dataset,
    read_headers,
)
from nnunet_godc.conversion.files import files_below
from nnunet_godc.conversion.grid import ROUNDING, Grid, grid_from_affine
from nnunet_godc.conversion.problems import CaseError, Notes

SAME_POSITION = 0.01  # mm; no scanner's slices are so near to each other
# A slice may lie this far from its place in an even stack, in shares of the distance between slices: positions that are
# rounded to a tenth of a millimetre stay below, a missing slice or a change of distance does not.
MAX_UNEVEN = 0.1
EVEN = 0.01  # what rounding in a header leaves of it
LEAST_PADDING = -5000  # Hounsfield units; GE's padding becomes -3024, which LiTS has too

_OTHER_MODALITIES = ("MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "SC", "OT")
_UNKNOWN = "unknown"
_SLICE_NAME = re.compile(r".*(\.dcm|\.dicom|\.ima|\.\d+)|[^.]*\d[^.]*", re.IGNORECASE)


@dataclass(frozen=True)
class DicomSeries:
    """A CT series as one volume: array axes i (column), j (row), k (slice, by position along the normal).

    Attributes:
        files: where the slices are, in the order of k; one file where it holds all of them.
        grid: where the voxels lie.
        slices: what each slice says of itself, in the order of k. In memory only: it holds UIDs.
    """

    files: tuple[Path, ...] = field(repr=False)
    grid: Grid
    slices: tuple[ImageHeader, ...] = field(repr=False)

    def read(self) -> NDArray[Any]:
        """The rescaled values, shape (i, j, k), Fortran order; nothing is clipped or rounded.

        Every slice is multiplied with its own RescaleSlope and shifted by its own RescaleIntercept, in float64. The
        dtype is the first of int16, int32, float32 and float64 that holds all results exactly.

        Raises:
            CaseError: the pixels of a slice cannot be decoded.
        """
        columns, rows, count = self.grid.shape
        volume: NDArray[Any] = np.zeros((count, rows, columns), np.int16)
        with quiet():
            frames = _Frames()
            for k, header in enumerate(self.slices):
                values = _rescaled(header, frames, f"slice {k + 1} of {count}")
                dtype = np.result_type(volume.dtype, values.dtype)
                if dtype != volume.dtype:
                    volume = volume.astype(dtype)
                volume[k] = values
        return volume.transpose(2, 1, 0)


@dataclass(frozen=True)
class _Slice:
    """A slice that says where it lies."""

    header: ImageHeader
    plane: Plane


def is_dicom(path: Path) -> bool:
    """Whether `path` is a file with DICOM's preamble, or a folder that holds such a file at any depth."""
    return any(map(has_preamble, files_below(path)))


def open_series(path: Path, notes: Notes, *, series: int | Literal["only", "largest"] = "only") -> DicomSeries:
    """Finds a CT series and the order and positions of its slices.

    No pixel is decoded but those of slices that share a position, which are compared.

    Args:
        path: a folder, searched with its subfolders, or a file. What is no DICOM image is passed over: other files,
            segmentations, structure sets, reports.
        notes: takes what was mended and what a person should look at.
        series: ``"only"`` where no other may be, ``"largest"`` for the one with most slices, or a series number.

    Raises:
        CaseError: there is no such series, or it is no complete stack of parallel slices at even distances.
    """
    candidates = _series_of(_images(path, notes), notes)
    slices = _chosen(candidates, series, notes)
    stack = _without_duplicates(_stacked(slices), notes)
    grid = _grid(stack, notes)
    slices = [slice_.header for slice_ in stack]
    _check_rescale(slices, notes)
    if any(header.lossy for header in slices):
        notes.warnings.append("the DICOM images were compressed with loss before")
    files = tuple(dict.fromkeys(header.file for header in slices))
    return DicomSeries(files, grid, tuple(slices))


def _images(path: Path, notes: Notes) -> list[ImageHeader]:
    """All planes of all images below `path`."""
    headers: list[ImageHeader] = []
    unknown = 0
    files = files_below(path)
    for number, file in enumerate(files, start=1):
        if has_preamble(file):
            try:
                headers += read_headers(file)
            except UnknownKindError:
                unknown += 1
            except UnreadableError as problem:
                raise CaseError(f"DICOM file {number} of {len(files)} (in the order of names) {problem}") from None
        elif _seems_a_slice(file):
            # Passing over it would leave a volume that lacks its first or last slice and looks whole.
            raise CaseError(
                f"file {number} of {len(files)} (in the order of names) is named like a DICOM slice, but is empty or "
                "no DICOM file; fetch it again or remove it"
            )
    if not headers:
        raise CaseError("there is no DICOM image here")
    if unknown:
        notes.warnings.append(f"passed over {_count(unknown, 'DICOM file')} of unknown content")
    return headers


def _seems_a_slice(file: Path) -> bool:
    if not _SLICE_NAME.fullmatch(file.name):
        return False
    # Files without a suffix may be anything, unless there is nothing in them.
    return "." in file.name or not file.is_file() or file.stat().st_size == 0


def _series_of(headers: list[ImageHeader], notes: Notes) -> list[list[ImageHeader]]:
    """The CT volumes among the images; each has a list of its slices, unordered."""
    localizers = [header for header in headers if header.is_localizer]
    groups: dict[object, list[ImageHeader]] = defaultdict(list)
    for header in headers:
        if not header.is_localizer:
            groups[_identity(header)].append(header)
    candidates: list[list[ImageHeader]] = []
    others: Counter[str] = Counter()
    without_position = 0
    for group in groups.values():
        modalities = {header.modality for header in group}
        if len(modalities) > 1:
            raise CaseError("the slices of one DICOM series name several modalities; the headers of some are damaged")
        modality = modalities.pop()
        if modality not in ("CT", ""):
            # Only a name that is known is told: a damaged entry may hold anything.
            others[modality if modality in _OTHER_MODALITIES else _UNKNOWN] += len(group)
            continue
        if all(header.plane is None for header in group):
            without_position += len(group)
            continue
        candidates += _by_acquisition(group) if not group[0].series_uid else [group]
    if not candidates:
        raise CaseError(_why_none(others, without_position, len(localizers)))
    if localizers:
        notes.warnings.append(f"left out {_count(len(localizers), 'localizer image')}")
    if without_position:
        notes.warnings.append(f"left out {_count(without_position, 'image')} without a position")
    if others[_UNKNOWN]:
        notes.warnings.append(f"passed over {_count(others[_UNKNOWN], 'image')} of unknown modality")
    if any(not group[0].modality for group in candidates):
        notes.warnings.append("the DICOM header names no modality; taken for CT")
    return candidates


def _identity(header: ImageHeader) -> object:
    """What the slices of one series have in common."""
    if header.series_uid:
        return header.series_uid
    same = (header.series_number, header.description, header.modality, header.rows, header.columns)
    plane = header.plane
    if plane is None:
        return same
    lengths = (round(plane.row_spacing, 4), round(plane.column_spacing, 4))
    return same, lengths, tuple(round(cosine, 2) + 0.0 for cosine in (*plane.along_row, *plane.along_column))


def _by_acquisition(group: list[ImageHeader]) -> list[list[ImageHeader]]:
    """Splits a series without a UID by acquisition number, but only where several of its slices share a position."""
    if len({header.plane and header.plane.position for header in group}) == len(group):
        return [group]
    parts: dict[int | None, list[ImageHeader]] = defaultdict(list)
    for header in group:
        parts[header.acquisition].append(header)
    return list(parts.values())


def _why_none(others: Mapping[str, int], without_position: int, localizers: int) -> str:
    found = [f"{_count(count, 'image')} of modality {modality}" for modality, count in sorted(others.items())]
    if without_position:
        found.append(f"{_count(without_position, 'CT image')} without position, direction or spacing")
    if localizers:
        found.append(_count(localizers, "localizer image"))
    return f"there is no CT series here, only {', '.join(found)}; name the folder of a CT series"


def _chosen(
    candidates: list[list[ImageHeader]], series: int | Literal["only", "largest"], notes: Notes
) -> list[ImageHeader]:
    listed = "; ".join(sorted(map(_described, candidates)))
    if isinstance(series, int):
        numbered = [group for group in candidates if group[0].series_number == series]
        if len(numbered) != 1:
            found = "no series" if not numbered else f"{len(numbered)} series"
            raise CaseError(f"{found} with series number {series} among: {listed}")
        return numbered[0]
    if len(candidates) == 1:
        return candidates[0]
    if series == "only":
        raise CaseError(
            f"{len(candidates)} DICOM series in one folder ({listed}); name one by its number, take the largest, or "
            "give each a folder of its own"
        )
    candidates = sorted(candidates, key=len)
    if len(candidates[-1]) == len(candidates[-2]):
        raise CaseError(f"the largest DICOM series is not the only one of its size ({listed}); name one by its number")
    notes.warnings.append(f"took the largest of {len(candidates)} DICOM series: {_described(candidates[-1])}")
    return candidates[-1]


def _described(group: Sequence[ImageHeader]) -> str:
    """Such as ``series 3: 120 slices of 0.977 x 0.977 x 2 mm``."""
    first = group[0]
    name = "a series without a number" if first.series_number is None else f"series {first.series_number}"
    planes = [header.plane for header in group if header.plane is not None]
    distances = np.diff(sorted(plane.normal @ plane.position for plane in planes))
    between = f"{np.median(distances):.3g}" if len(distances) else "unknown"
    sizes = f"{planes[0].column_spacing:.3g} x {planes[0].row_spacing:.3g} x {between} mm"
    return f"{name}: {_count(len(group), 'slice')} of {sizes}"


def _stacked(slices: Sequence[ImageHeader]) -> list[_Slice]:
    """The slices in the order of their positions; raises CaseError unless they are parallel and of one size."""
    located = [_Slice(header, header.plane) for header in slices if header.plane is not None]
    if len(located) < len(slices):
        raise CaseError(
            f"{len(slices) - len(located)} of {len(slices)} slices do not say their position, direction or "
            "spacing; mend their headers"
        )
    for what, tolerance, values in (
        ("number of rows and columns", 0.0, [(slice_.header.rows, slice_.header.columns) for slice_ in located]),
        ("pixel spacing", 1e-3, [(slice_.plane.row_spacing, slice_.plane.column_spacing) for slice_ in located]),
        ("orientation", 1e-3, [slice_.plane.along_row + slice_.plane.along_column for slice_ in located]),
    ):
        usual = np.median(np.array(values, np.float64), axis=0)
        differing = np.abs(np.array(values) - usual).max(axis=1) > tolerance
        if differing.any():
            raise CaseError(
                f"the slices of one series differ in {what} ({differing.sum()} of {len(slices)} from the others); move "
                "what does not belong to it into another folder"
            )
    first = located[0].plane
    directions = np.array([first.along_row, first.along_column])
    if np.abs(np.linalg.norm(directions, axis=1) - 1).max() > 0.05 or abs(directions[0] @ directions[1]) > 0.5:
        raise CaseError("the direction cosines of the series are no perpendicular unit vectors; mend its headers")
    return sorted(located, key=lambda slice_: float(first.normal @ slice_.plane.position))


def _without_duplicates(slices: list[_Slice], notes: Notes) -> list[_Slice]:
    """Drops slices that repeat the one before them, voxel for voxel."""
    kept = slices[:1]
    with quiet():
        frames = _Frames()
        for slice_ in slices[1:]:
            if not np.allclose(slice_.plane.position, kept[-1].plane.position, rtol=0, atol=SAME_POSITION):
                kept.append(slice_)
                continue
            where = f"slice {len(kept)}, counted along the normal,"
            before = _rescaled(kept[-1].header, frames, where)
            if not np.array_equal(_rescaled(slice_.header, frames, where), before):
                raise CaseError(
                    f"two slices with different pixels share the position of {where} such as two phases or "
                    "reconstructions in one series; separate them"
                )
    if len(kept) < len(slices):
        notes.repairs.append(f"left out {_count(len(slices) - len(kept), 'slice')} that another one repeats exactly")
    return kept


def _grid(slices: Sequence[_Slice], notes: Notes) -> Grid:
    """The grid of slices in order; raises CaseError where a slice is missing or the stack is sheared."""
    header, plane = slices[0].header, slices[0].plane
    positions = np.array([slice_.plane.position for slice_ in slices], np.float64)  # (k, 3)
    if len(slices) == 1:
        if not header.thickness or header.thickness <= 0:
            raise CaseError("there is a single slice, and it does not say how thick it is; mend its header")
        notes.warnings.append(f"a single slice: its SliceThickness of {header.thickness:g} mm stands for the distance")
        step = plane.normal * header.thickness
    else:
        _check_even(positions @ plane.normal, notes)
        _check_shear(plane, positions[-1] - positions[0])
        step = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0] = np.array(plane.along_row) * plane.column_spacing
    affine[:3, 1] = np.array(plane.along_column) * plane.row_spacing
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return grid_from_affine((header.columns, header.rows, len(slices)), affine, notes, what="DICOM series")


def _check_even(along: NDArray[np.float64], notes: Notes) -> None:
    """Raises CaseError unless the slices, at `along` (ascending, mm), lie at one distance from each other."""
    distances = np.diff(along)
    usual = float(np.median(distances))
    if usual < SAME_POSITION:
        raise CaseError(
            f"{len(along)} slices lie on top of each other: their positions are damaged; mend their headers"
        )
    even = np.linspace(along[0], along[-1], len(along))
    moved = float(np.abs(along - even).max())
    if moved > MAX_UNEVEN * usual:
        odd = np.flatnonzero(np.abs(distances - usual) > MAX_UNEVEN * usual)
        places = [f"{distances[k]:.3g} mm between slices {k + 1} and {k + 2}" for k in odd[:3]]
        if len(odd) > 3:
            places.append(f"{_count(len(odd) - 3, 'more place')}")
        if not places:
            places = [f"from {distances.min():.4g} to {distances.max():.4g} mm, changing on the way"]
        raise CaseError(
            f"slices are missing or at uneven distances: {usual:.3g} mm usually, but {', '.join(places)} (of "
            f"{len(along)}, counted along the normal); complete the series, or resample it first, for "
            "example with dcm2niix"
        )
    if moved > EVEN * usual:
        notes.repairs.append(
            f"uneven slice positions taken for even ones, {usual:.4g} mm apart: moved by {moved:.2g} mm"
        )


def _check_shear(plane: Plane, whole: NDArray[np.float64]) -> None:
    """Raises CaseError for a shear too small for `grid_from_affine`, but too large for rounding.

    Args:
        plane: of any slice.
        whole: from the first slice to the last, mm.
    """
    directions = np.array([plane.along_row, plane.along_column])
    if np.abs(directions @ directions.T - np.eye(2)).max() > ROUNDING:
        return  # then the normal itself is not known well enough to tell
    along = float(whole @ plane.normal)
    aside = float(np.linalg.norm(whole - along * plane.normal))
    if aside > max(plane.row_spacing, plane.column_spacing) / 2:
        raise CaseError(
            f"the DICOM series is sheared by {np.degrees(np.arctan2(aside, along)):.1f} degrees (a gantry tilt): it "
            f"moves {aside:.3g} mm aside from its first slice to its last; resample it to a right-angled grid "
            "first, for example with dcm2niix"
        )


def _check_rescale(slices: Sequence[ImageHeader], notes: Notes) -> None:
    """Raises CaseError where only some slices say how to rescale them; notes what is unusual."""
    missing = [k for k, header in enumerate(slices, start=1) if header.slope is None or header.intercept is None]
    if len(missing) == len(slices):
        notes.warnings.append("no RescaleSlope and RescaleIntercept: stored values taken for Hounsfield units")
    elif missing:
        raise CaseError(
            f"{len(missing)} of {len(slices)} slices (the first is slice {missing[0]}) have no RescaleSlope and "
            "RescaleIntercept, the others have; mend their headers"
        )
    elif len({(header.slope, header.intercept) for header in slices}) > 1:
        notes.warnings.append("the rescaling to Hounsfield units differs between slices; each has got its own")
    if any(header.slope == 0 for header in slices):
        raise CaseError("a RescaleSlope is 0, so that all values would be the same; mend the headers")
    padding = [
        header.padding * (1 if header.slope is None else header.slope) + (header.intercept or 0)
        for header in slices
        if header.padding is not None
    ]
    if padding and min(padding) < LEAST_PADDING:
        notes.warnings.append(f"pixels outside of the scanner's field hold {min(padding):g}; kept as they are")


class _Frames:
    """Stored values of planes; keeps the last multi-frame file open, so that it is read once."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._dataset: FileDataset | None = None

    def stored(self, header: ImageHeader) -> NDArray[Any]:
        """Shape (rows, columns), an integer dtype. Raises UnreadableError."""
        if self._dataset is None or self._file != header.file:
            self._dataset = read_dataset(header.file)
            self._file = header.file
        try:
            return decode(self._dataset, header.frame, (header.rows, header.columns))
        except Exception:
            # Whatever it is, its text may quote the file.
            raise UnreadableError("cannot be decoded: its pixels are damaged or in an unknown compression") from None


def _rescaled(header: ImageHeader, frames: _Frames, where: str) -> NDArray[Any]:
    """One plane's values, shape (rows, columns), in the smallest exact dtype."""
    try:
        stored = frames.stored(header)
    except UnreadableError as problem:
        raise CaseError(f"{where} {problem}") from None
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    if slope == 1 and intercept.is_integer() and abs(intercept) < 2**31 and stored.dtype.itemsize < 4:
        values: NDArray[Any] = stored.astype(np.int64) + int(intercept)
        return values.astype(_dtype_for(values))
    values = stored * np.float64(slope) + intercept
    return values.astype(_dtype_for(values))


def _dtype_for(values: NDArray[Any]) -> type[np.generic]:
    """The first of int16, int32, float32 and float64 that holds `values` exactly."""
    if values.dtype.kind == "i" or np.array_equal(values, np.rint(values)):
        for dtype in (np.int16, np.int32):
            limits = np.iinfo(dtype)
            if limits.min <= values.min() and values.max() <= limits.max:
                return dtype
    with np.errstate(over="ignore"):
        return np.float32 if np.array_equal(values.astype(np.float32), values) else np.float64


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
