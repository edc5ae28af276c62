"""DICOM series: choosing one, putting its slices in order of their positions, reading Hounsfield units.

Order, distance and number of slices come from ImagePositionPatient and ImageOrientationPatient alone: file names,
InstanceNumber, SliceLocation and SliceThickness are at odds with them in real collections.

highdicom's `get_volume_from_series` is not used: it holds every data set and every frame at once (8 to 10 volumes of
int16, where this holds one), takes twice the time, and refuses series without a UID or with one for each file.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from nnunet_godc.conversion.dicom.files import UnreadableError, is_dicom_file, quiet, read_dataset
from nnunet_godc.conversion.dicom.headers import ImageHeader, Plane, read_headers
from nnunet_godc.conversion.dicom.pixels import decode
from nnunet_godc.conversion.dicom.straightening import Straightening
from nnunet_godc.conversion.files import files_below
from nnunet_godc.conversion.geometry import ROUNDING, Grid, Triple, grid_from_affine
from nnunet_godc.conversion.problems import CaseError, CaseLog, IrregularError

SeriesChoice = int | Literal["only", "largest"]

SAME_POSITION = 0.01  # mm; no scanner's slices are so near to each other
# A slice may lie this far from its place in an even stack, in shares of the distance between slices: positions that are
# rounded to a tenth of a millimetre stay below, a missing slice or a change of distance does not.
MAX_UNEVEN = 0.1
EVEN = 0.01  # what rounding in a header leaves of it
LEAST_PADDING = -5000  # Hounsfield units; GE's padding becomes -3024, which LiTS has too
ALTERNATING = 3.0  # Hounsfield units: far above what two rows of one detector differ by

_OTHER_MODALITIES = ("MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "SC", "OT")
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class DicomSeries:
    """A series as one volume: array axes i (column), j (row), k (slice, by position along the normal).

    Attributes:
        files: where the slices are, in the order of k; one file where it holds all of them.
        grid: where the voxels lie.
        slices: what each slice says of itself, in the order of k. In memory only: it holds UIDs.
        straightening: where the slices really lie, where `grid` has them stand upright and even until image and mask
            are resampled together; None for a series that needs none.
    """

    files: tuple[Path, ...] = field(repr=False)
    grid: Grid
    slices: tuple[ImageHeader, ...] = field(repr=False)
    straightening: Straightening | None = field(default=None, repr=False)

    def to_grid(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of one plane, mm, shape (points, 3), as they lie on `grid`."""
        return points if self.straightening is None else self.straightening.to_stack(points)

    def read(self) -> NDArray[Any]:
        """The rescaled values, shape (i, j, k), Fortran order; nothing is clipped or rounded.

        Every slice is multiplied with its own RescaleSlope and shifted by its own RescaleIntercept, in float64. The
        dtype is the first of int16, int32, float32 and float64 that holds all results exactly.

        Raises:
            CaseError: the pixels of a slice cannot be decoded, or two acquisitions alternate from slice to slice.
        """
        columns, rows, count = self.grid.shape
        volume: NDArray[Any] = np.zeros((count, rows, columns), np.int16)
        means = np.zeros(count)
        with quiet():
            frames = _Frames()
            for k, header in enumerate(self.slices):
                values = _rescaled(header, frames, f"slice {k + 1} of {count}")
                dtype = np.result_type(volume.dtype, values.dtype)
                if dtype != volume.dtype:
                    volume = volume.astype(dtype)
                volume[k] = values
                means[k] = values.mean()
        _check_alternating(means)
        return volume.transpose(2, 1, 0)


@dataclass(frozen=True)
class SeriesVolume:
    """A series as a volume file: masks are stored so as well."""

    series: DicomSeries

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.series.grid.shape

    def grid(self, notes: CaseLog, *, what: str, spacing: Triple | None = None, trust_header: bool = False) -> Grid:
        return self.series.grid

    def other_grids(self, what: str) -> Sequence[Grid]:
        return ()

    def read(self) -> NDArray[Any]:
        return self.series.read()

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        yield slice(0, self.shape[2]), self.read()


@dataclass(frozen=True)
class _Slice:
    """A slice that says where it lies."""

    header: ImageHeader
    plane: Plane


@dataclass
class _Folder:
    """What lies in a folder.

    Attributes:
        headers: all planes of all images.
        broken: DICOM files that cannot be read, and why.
        foreign: files that are not DICOM.
        unknown: how many DICOM files do not say what they hold.
        others: how many DICOM files are whole, but not images.
    """

    files: list[Path]
    headers: list[ImageHeader] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    foreign: list[Path] = field(default_factory=list)
    unknown: int = 0
    others: int = 0

    def place(self, file: Path) -> str:
        return f"file {self.files.index(file) + 1} of {len(self.files)} (in the order of names)"


def is_dicom(path: Path) -> bool:
    """Whether `path` is a DICOM file, or a folder that holds such a file at any depth."""
    return any(map(is_dicom_file, files_below(path)))


def open_series(
    path: Path,
    notes: CaseLog,
    *,
    series: SeriesChoice = "only",
    drawn_on: Collection[str] = (),
    any_modality: bool = False,
    resample: bool = False,
) -> DicomSeries:
    """Finds a CT series and the order and positions of its slices.

    The series is chosen first; what is not of it is passed over and counted: other files, series and modalities,
    segmentations, structure sets, reports. No pixel is decoded but those of slices that share a position, which are
    compared.

    Args:
        path: a folder, searched with its subfolders, or a file.
        notes: takes what was fixed and what a person should look at.
        series: ``"only"`` where no other may be but the one that the case's mask was drawn on, ``"largest"`` for the
            one with most slices, or a series number.
        drawn_on: UIDs of the series or images that the case's mask was drawn on; empty where it does not say.
        any_modality: take images of any modality, as masks are stored.
        resample: take a tilted or uneven series, too, whose voxels are to be resampled.

    Raises:
        CaseError: there is no such series, or it is no complete stack of parallel slices at even distances.
    """
    folder = _looked_through(path)
    headers = _chosen(_candidates(folder, notes, any_modality=any_modality), series, drawn_on, notes)
    name = _name(headers)
    _check_whole(folder, headers, name, notes)
    stack = _without_duplicates(_stacked(headers), notes)
    straightening = None
    try:
        grid = _grid(stack, notes)
    except IrregularError as problem:
        if not resample:
            raise
        grid, straightening = _straightened(stack)
        why = str(problem).partition(";")[0]
        notes.warnings.append(f"image and mask resampled together (--resample-series): {why}")
    slices = [slice_.header for slice_ in stack]
    if not any_modality:
        _check_rescale(slices, notes)
    _check_acquisitions(slices, name)
    if any(header.lossy for header in slices):
        notes.warnings.append("the DICOM images were compressed with loss before")
    files = tuple(dict.fromkeys(header.file for header in slices))
    return DicomSeries(files, grid, tuple(slices), straightening)


def patient_of(path: Path) -> str:
    """The PatientID of the first DICOM image in a folder; empty where none names one."""
    for file in filter(is_dicom_file, files_below(path)):
        with contextlib.suppress(UnreadableError):
            if headers := read_headers(file):
                return headers[0].patient_id
    return ""


def _looked_through(path: Path) -> _Folder:
    folder = _Folder(files_below(path))
    for file in folder.files:
        if not is_dicom_file(file):
            folder.foreign.append(file)
            continue
        try:
            headers = read_headers(file)
        except UnreadableError as problem:
            folder.broken[file] = str(problem)
            continue
        if headers is None:
            folder.unknown += 1
        elif headers:
            folder.headers += headers
        else:
            folder.others += 1
    return folder


def _candidates(folder: _Folder, notes: CaseLog, *, any_modality: bool) -> list[list[ImageHeader]]:
    """The CT volumes in a folder; each has a list of its slices, unordered. What else is there is counted."""
    if not folder.headers:
        if folder.broken:
            file, why = next(iter(folder.broken.items()))
            raise CaseError(f"DICOM {folder.place(file)} {why}", file=file)
        raise CaseError("there is no DICOM image here")
    groups: dict[object, list[ImageHeader]] = defaultdict(list)
    for header in folder.headers:
        if not header.is_localizer:
            groups[_identity(header)].append(header)
    counted: Counter[str] = Counter()
    faulty: list[list[ImageHeader]] = []
    candidates: list[list[ImageHeader]] = []
    for group in _without_uid_for_each_file(list(groups.values()), notes):
        modalities = {header.modality for header in group}
        if len(modalities) > 1:
            raise CaseError(
                f"the slices of {_name(group)} name several modalities; the headers of some are damaged",
                file=group[0].file,
            )
        modality = modalities.pop()
        if modality not in ("CT", "") and not any_modality:
            # Only a name that is known is told: a damaged entry may hold anything.
            counted[f"image|of modality {modality if modality in _OTHER_MODALITIES else _UNKNOWN}"] += len(group)
        elif all(header.fault for header in group):
            faulty.append(group)
        elif all(header.plane is None for header in group):
            counted["CT image|without position, direction or spacing"] += len(group)
        else:
            candidates += _by_acquisition(group) if not group[0].series_uid else [group]
    localizers = sum(header.is_localizer for header in folder.headers)
    if not candidates:
        _say_why_none(faulty, counted, localizers)
    if localizers:
        notes.remarks.append(f"left out {_count(localizers, 'localizer image')}")
    without_position = counted.pop("CT image|without position, direction or spacing", 0)
    if without_position:
        notes.warnings.append(f"left out {_count(without_position, 'image')} without a position")
    unknown = counted.pop(f"image|of modality {_UNKNOWN}", 0)
    if unknown:
        notes.warnings.append(f"passed over {_count(unknown, 'image')} of unknown modality")
    if folder.unknown:
        notes.warnings.append(f"passed over {_count(folder.unknown, 'DICOM file')} of unknown content")
    if any(not group[0].modality for group in candidates):
        notes.warnings.append("the DICOM header names no modality; taken for CT")
    counted["image|without a volume"] = sum(map(len, faulty))
    counted["DICOM file|without an image"] = folder.others
    counted["file|of other kinds"] = len(folder.foreign)
    passed = [_count(number, what) for what, number in sorted(counted.items()) if number]
    if passed:
        notes.remarks.append(f"passed over {', '.join(passed)}")
    return candidates


def _identity(header: ImageHeader) -> object:
    """What the slices of one series have in common. A picture of a screen is never one of them."""
    if header.series_uid:
        return header.series_uid, header.is_capture
    return _likeness(header)


def _likeness(header: ImageHeader) -> object:
    same = (header.series_number, header.description, header.modality, header.rows, header.columns, header.is_capture)
    plane = header.plane
    if plane is None:
        return same
    lengths = (round(plane.row_spacing, 4), round(plane.column_spacing, 4))
    return same, lengths, tuple(round(cosine, 2) + 0.0 for cosine in (*plane.along_row, *plane.along_column))


def _without_uid_for_each_file(groups: list[list[ImageHeader]], notes: CaseLog) -> list[list[ImageHeader]]:
    """Unites slices of which each names a series of its own, as some anonymisers write them."""
    alike: dict[object, list[ImageHeader]] = defaultdict(list)
    others = []
    for group in groups:
        if len(group) == 1 and group[0].plane is not None:
            alike[_likeness(group[0])].append(group[0])
        else:
            others.append(group)
    for group in alike.values():
        positions = {header.plane and header.plane.position for header in group}
        if len(group) > 2 and len(positions) == len(group):
            notes.remarks.append(f"{len(group)} slices name a series each: taken as one by all else that they say")
            others.append(group)
        else:
            others += [[header] for header in group]
    return others


def _by_acquisition(group: list[ImageHeader]) -> list[list[ImageHeader]]:
    """Splits a series without a UID by acquisition number, but only where several of its slices share a position."""
    if len({header.plane and header.plane.position for header in group}) == len(group):
        return [group]
    parts: dict[str, list[ImageHeader]] = defaultdict(list)
    for header in group:
        parts[header.acquisition[0] if header.acquisition else ""].append(header)
    return list(parts.values())


def _say_why_none(faulty: Sequence[Sequence[ImageHeader]], counted: Counter[str], localizers: int) -> None:
    found = [_count(number, what) for what, number in sorted(counted.items())]
    if localizers:
        found.append(_count(localizers, "localizer image"))
    if faulty:
        first = faulty[0][0]
        raise CaseError(f"there is no CT series here: {_name(faulty[0])} {first.fault}", file=first.file)
    raise CaseError(f"there is no CT series here, only {', '.join(found)}; name the folder of a CT series")


def _chosen(
    candidates: list[list[ImageHeader]], series: SeriesChoice, drawn_on: Collection[str], notes: CaseLog
) -> list[ImageHeader]:
    listed = "; ".join(sorted(map(_described, candidates)))
    named = [
        group
        for group in candidates
        if any(header.series_uid in drawn_on or header.instance_uid in drawn_on for header in group)
    ]
    if isinstance(series, int):
        numbered = [group for group in candidates if group[0].series_number == series]
        if len(numbered) != 1:
            found = "no series" if not numbered else f"{len(numbered)} series"
            raise CaseError(f"{found} with series number {series} among: {listed}")
        chosen = numbered[0]
    elif len(candidates) == 1:
        chosen = candidates[0]
    elif series == "only":
        if len(named) != 1:
            raise CaseError(
                f"{len(candidates)} DICOM series in one folder ({listed}); name one by its number (--series 3), take "
                "the largest (--series largest), or give each a folder of its own"
            )
        notes.remarks.append(f"took the series of {len(candidates)} that the mask was drawn on: {_described(named[0])}")
        return named[0]
    else:
        candidates = sorted(candidates, key=len)
        if len(candidates[-1]) == len(candidates[-2]):
            raise CaseError(
                f"the largest DICOM series is not the only one of its size ({listed}); name one by its number"
            )
        chosen = candidates[-1]
        notes.warnings.append(f"took the largest of {len(candidates)} DICOM series: {_described(chosen)}")
    if drawn_on and not any(group is chosen for group in named):
        instead = f", {_described(named[0])}" if len(named) == 1 else ""
        notes.warnings.append(
            f"the mask was drawn on another series{instead} than the one that is converted ({_described(chosen)}); "
            "look whether it fits"
        )
    return chosen


def _check_whole(folder: _Folder, chosen: Sequence[ImageHeader], name: str, notes: CaseLog) -> None:
    """Raises CaseError where a slice of the chosen series cannot be used, or a file may be one that is broken."""
    for header in chosen:
        if header.fault:
            raise CaseError(f"{name}: {folder.place(header.file)} {header.fault}", file=header.file)
    alike = {(header.file.parent, _ending(header.file)) for header in chosen}
    for file, why in folder.broken.items():
        if (file.parent, _ending(file)) in alike:
            raise CaseError(f"beside {name}, DICOM {folder.place(file)} {why}", file=file)
        notes.warn_once("passed over DICOM files that cannot be read, in other folders or of other names")
    for file in folder.foreign:
        # Passing over it would leave a volume that lacks its first or last slice and looks whole.
        if (file.parent, _ending(file)) in alike and not _is_text(file):
            raise CaseError(
                f"beside {name}, {folder.place(file)} is named like a DICOM slice, but is empty or not a DICOM file; "
                "download it again or remove it",
                file=file,
            )


def _ending(file: Path) -> str:
    """The suffix with every number alike; without one, whether the name has digits."""
    return re.sub(r"\d+", "#", file.suffix.lower()) or ("#" if any(map(str.isdigit, file.name)) else "")


def _is_text(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            start = opened.read(512)
    except OSError:
        return False
    return bool(start) and not any(byte < 32 and byte not in b"\t\n\r\f" for byte in start)


def _name(group: Sequence[ImageHeader]) -> str:
    number = group[0].series_number
    return "the series without a number" if number is None else f"series {number}"


def _described(group: Sequence[ImageHeader]) -> str:
    """Such as ``series 3: 120 slices of 0.977 x 0.977 x 2 mm``."""
    first = group[0]
    name = "a series without a number" if first.series_number is None else f"series {first.series_number}"
    planes = [header.plane for header in group if header.plane is not None]
    distances = np.diff(sorted(planes[0].normal @ plane.position for plane in planes))
    between = f"{np.median(distances):.3g}" if len(distances) else "unknown"
    sizes = f"{planes[0].column_spacing:.3g} x {planes[0].row_spacing:.3g} x {between} mm"
    return f"{name}: {_count(len(group), 'slice')} of {sizes}"


def _check_acquisitions(slices: Sequence[ImageHeader], name: str) -> None:
    """Raises CaseError where few acquisitions change from slice to slice: two volumes, interleaved."""
    for what, values in zip(
        ("AcquisitionNumber", "TemporalPositionIdentifier", "AcquisitionTime"),
        zip(*(header.acquisition for header in slices), strict=True),
        strict=False,
    ):
        changes = sum(before != after for before, after in pairwise(values))
        if len(slices) >= 6 and 1 < len(set(values)) <= len(slices) / 3 and changes > len(slices) / 2:
            raise CaseError(
                f"{len(set(values))} acquisitions lie interleaved in {name}: {what} changes from slice to slice; move "
                "the files of each into a folder of their own",
                file=slices[0].file,
            )


def _check_alternating(means: NDArray[np.float64]) -> None:
    """Raises CaseError where the slices' means tell of two acquisitions by turns, such as two phases of contrast.

    The median of a slice's distance from its neighbours, with alternating sign, vanishes for anatomy and noise, and a
    single odd slice does not move it. It is compared with how far slices are from their next neighbours but one, which
    belong to the same acquisition.
    """
    if len(means) < 8:
        return
    signs = (-1.0) ** np.arange(len(means))
    to_neighbours = means[1:-1] - (means[:-2] + means[2:]) / 2
    within = np.abs(means[2:-2] - (means[:-4] + means[4:]) / 2)
    amplitude = abs(float(np.median(signs[1:-1] * to_neighbours)))
    if amplitude > ALTERNATING and amplitude > 2 * float(np.median(within)):
        raise CaseError(
            f"two acquisitions seem to lie interleaved in the series: the mean of its slices jumps by {amplitude:.3g} "
            "to and fro from slice to slice; move the files of each into a folder of their own"
        )


def _stacked(slices: Sequence[ImageHeader]) -> list[_Slice]:
    """The slices in the order of their positions; raises CaseError unless they are parallel and of one size."""
    located = [_Slice(header, header.plane) for header in slices if header.plane is not None]
    if len(located) < len(slices):
        raise CaseError(
            f"{len(slices) - len(located)} of {len(slices)} slices do not say their position, direction or "
            "spacing; fix their headers"
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
        raise CaseError("the direction cosines of the series are no perpendicular unit vectors; fix its headers")
    return sorted(located, key=lambda slice_: float(first.normal @ slice_.plane.position))


def _without_duplicates(slices: list[_Slice], notes: CaseLog) -> list[_Slice]:
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


def _grid(slices: Sequence[_Slice], notes: CaseLog) -> Grid:
    """The grid of slices in order; raises CaseError where a slice is missing or the stack is sheared."""
    header, plane = slices[0].header, slices[0].plane
    positions = np.array([slice_.plane.position for slice_ in slices], np.float64)  # (k, 3)
    if len(slices) == 1:
        if not header.thickness or header.thickness <= 0:
            raise CaseError("there is a single slice, and it does not say how thick it is; fix its header")
        notes.warnings.append(f"a single slice: its SliceThickness of {header.thickness:g} mm stands for the distance")
        step = plane.normal * header.thickness
    else:
        _check_even(positions @ plane.normal, notes)
        _check_shear(plane, positions[-1] - positions[0])
        step = (positions[-1] - positions[0]) / (len(slices) - 1)
    shape = (header.columns, header.rows, len(slices))
    return grid_from_affine(shape, plane.affine(step), notes, what="DICOM series")


def _straightened(slices: Sequence[_Slice]) -> tuple[Grid, Straightening]:
    """The grid of a stack with the same slices, but upright and at their usual distance."""
    header, plane = slices[0].header, slices[0].plane
    positions = np.array([slice_.plane.position for slice_ in slices], np.float64)
    step = plane.normal * float(np.median(np.diff(positions @ plane.normal)))
    grid = grid_from_affine((header.columns, header.rows, len(slices)), plane.affine(step), CaseLog(), what="series")
    return grid, Straightening(grid, plane, positions)


def _check_even(along: NDArray[np.float64], notes: CaseLog) -> None:
    """Raises CaseError unless the slices, at `along` (ascending, mm), lie at one distance from each other."""
    distances = np.diff(along)
    usual = float(np.median(distances))
    if usual < SAME_POSITION:
        raise CaseError(f"{len(along)} slices lie on top of each other: their positions are damaged; fix their headers")
    even = np.linspace(along[0], along[-1], len(along))
    moved = float(np.abs(along - even).max())
    if moved > MAX_UNEVEN * usual:
        odd = np.flatnonzero(np.abs(distances - usual) > MAX_UNEVEN * usual)
        places = [f"{distances[k]:.3g} mm between slices {k + 1} and {k + 2}" for k in odd[:3]]
        if len(odd) > 3:
            places.append(f"{_count(len(odd) - 3, 'more place')}")
        if not places:
            places = [f"from {distances.min():.4g} to {distances.max():.4g} mm, changing on the way"]
        raise IrregularError(
            f"slices are missing or at uneven distances: {usual:.3g} mm usually, but {', '.join(places)} (of "
            f"{len(along)}, counted along the normal); complete the series, or resample it first: of "
            "dcm2niix's files, take the one whose name ends in _Eq_1; with a DICOM mask, --resample-series"
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
        raise IrregularError(
            f"the DICOM series is sheared by {np.degrees(np.arctan2(aside, along)):.1f} degrees (a gantry tilt): it "
            f"moves {aside:.3g} mm aside from its first slice to its last; resample it to a right-angled grid "
            "first: of dcm2niix's files, take the one whose name ends in _Tilt_1; with a DICOM mask, --resample-series"
        )


def _check_rescale(slices: Sequence[ImageHeader], notes: CaseLog) -> None:
    """Raises CaseError where only some slices say how to rescale them; notes what is unusual."""
    missing = [k for k, header in enumerate(slices, start=1) if header.slope is None or header.intercept is None]
    if len(missing) == len(slices):
        notes.warnings.append("no RescaleSlope and RescaleIntercept: stored values taken for Hounsfield units")
    elif missing:
        raise CaseError(
            f"{len(missing)} of {len(slices)} slices (the first is slice {missing[0]}) have no RescaleSlope and "
            "RescaleIntercept, the others have; fix their headers"
        )
    elif len({(header.slope, header.intercept) for header in slices}) > 1:
        notes.warnings.append("the rescaling to Hounsfield units differs between slices; each has got its own")
    if any(header.slope == 0 for header in slices):
        raise CaseError("a RescaleSlope is 0, so that all values would be the same; fix the headers")
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
        return decode(self._dataset, header.frame, (header.rows, header.columns))


def _rescaled(header: ImageHeader, frames: _Frames, where: str) -> NDArray[Any]:
    """One plane's values, shape (rows, columns), in the smallest exact dtype."""
    try:
        stored = frames.stored(header)
    except UnreadableError as problem:
        raise CaseError(f"{where} {problem}", file=header.file) from None
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


def _count(number: int, what: str) -> str:
    """``_count(2, "image|of modality MR")`` is ``"2 images of modality MR"``."""
    noun, _, rest = what.partition("|")
    return f"{number} {noun}{'s' if number != 1 else ''}{' ' if rest else ''}{rest}"
