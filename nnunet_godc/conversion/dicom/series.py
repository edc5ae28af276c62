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
from nnunet_godc.conversion.dicom.headers import ACQUISITION, ImageHeader, Plane, read_headers
from nnunet_godc.conversion.dicom.pixels import decode
from nnunet_godc.conversion.dicom.straightening import Straightening
from nnunet_godc.conversion.files import visible_files
from nnunet_godc.conversion.geometry import ROUNDING, Grid, Triple, grid_from_affine
from nnunet_godc.conversion.nifti import assembled
from nnunet_godc.conversion.problems import CaseError, CaseLog, IrregularError, listed

SeriesChoice = int | Literal["only", "largest"]

SAME_POSITION = 0.01  # mm; no scanner's slices are so near to each other
# A slice may lie this far from its place in an even stack, in shares of the distance between slices: positions that are
# rounded to a tenth of a millimetre stay below, a missing slice or a change of distance does not.
MAX_UNEVEN = 0.1
EVEN = 0.01  # what rounding in a header leaves of it
LEAST_PADDING = -5000  # Hounsfield units; GE's padding becomes -3024, which LiTS has too
ALTERNATING = 3.0  # Hounsfield units: far above what two rows of one detector differ by

_OTHER_MODALITIES = ("MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "SC", "OT")

_Slice = tuple[ImageHeader, Plane]


@dataclass(frozen=True)
class DicomSeries:
    """A series as one volume: array axes i (column), j (row), k (slice, by position along the normal).

    It is a `VolumeFile`, since masks are stored as series, too.

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

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.grid.shape

    def read_grids(
        self, log: CaseLog, *, what: str, spacing: Triple | None = None, trust_header: bool = False
    ) -> list[Grid]:
        """Where the voxels lie. Raises CaseError where a spacing is given, which is there to fill in headers."""
        if spacing is not None:
            raise CaseError("a spacing is given for a DICOM series, which has its own; take the case out of the CSV")
        return [self.grid]

    def to_grid(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of one plane, mm, shape (points, 3), as they lie on `grid`."""
        return points if self.straightening is None else self.straightening.to_stack(points)

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The rescaled values slice by slice: position along k, and an array (i, j, 1); nothing is clipped or rounded.

        Every slice is multiplied with its own RescaleSlope and shifted by its own RescaleIntercept, in float64.

        Raises:
            CaseError: the pixels of a slice cannot be decoded, or two acquisitions alternate from slice to slice.
        """
        means = []
        frames = _Frames()
        for k, header in enumerate(self.slices):
            values = _rescaled(header, frames, f"slice {k + 1} of {len(self.slices)}")
            means.append(float(values.mean()))
            yield slice(k, k + 1), values.T[:, :, None]
        _check_alternating(np.array(means))

    def read(self) -> NDArray[Any]:
        """All of them, shape (i, j, k), in the first of int16, int32, float32 and float64 that holds them exactly."""
        return assembled(self.shape, self.slabs())


def is_dicom(path: Path) -> bool:
    """Whether `path` is a DICOM file, or a folder that holds such a file at any depth."""
    return any(map(is_dicom_file, visible_files(path)))


def patient_of(path: Path) -> str:
    """The PatientID of the first DICOM image in a folder; empty where none names one."""
    for file in filter(is_dicom_file, visible_files(path)):
        with contextlib.suppress(UnreadableError):
            if headers := read_headers(file):
                return headers[0].patient_id
    return ""


def open_series(
    path: Path,
    log: CaseLog,
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
        log: takes what was fixed and what a person should look at.
        series: ``"only"`` where no other may be but the one that the case's mask was drawn on, ``"largest"`` for the
            one with most slices, or a series number.
        drawn_on: UIDs of the series or images that the case's mask was drawn on; empty where it does not say.
        any_modality: take images of any modality, as masks are stored.
        resample: take a tilted or uneven series, too, whose voxels are to be resampled.

    Raises:
        CaseError: there is no such series, or it is no complete stack of parallel slices at even distances.
    """
    folder = _Folder(visible_files(path))
    headers = _chosen(_candidates(folder, log, any_modality=any_modality), series, drawn_on, log)
    name = _name(headers)
    folder.check(headers, name, log)
    stack = _without_duplicates(_stacked(headers), log)
    straightening = None
    try:
        grid = _grid(stack, log)
    except IrregularError as problem:
        if not resample:
            raise
        straightening = Straightening.of([plane for _, plane in stack], (headers[0].columns, headers[0].rows))
        grid = straightening.stack
        why = str(problem).partition(";")[0]
        log.warnings.append(f"image and mask resampled together (--resample-series): {why}")
    slices = tuple(header for header, _ in stack)
    if not any_modality:
        _check_rescale(slices, log)
    _check_acquisitions(slices, name)
    if any(header.lossy for header in slices):
        log.warnings.append("the DICOM images were compressed with loss before")
    return DicomSeries(tuple(dict.fromkeys(header.file for header in slices)), grid, slices, straightening)


class _Folder:
    """What lies in a folder.

    Attributes:
        headers: all planes of all images.
        broken: DICOM files that cannot be read, and why.
        foreign: files that are not DICOM.
        unknown: how many DICOM files do not say what they hold.
        others: how many DICOM files are whole, but not images.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.headers: list[ImageHeader] = []
        self.broken: dict[Path, str] = {}
        self.foreign: list[Path] = []
        self.unknown = self.others = 0
        for file in files:
            if not is_dicom_file(file):
                self.foreign.append(file)
                continue
            try:
                headers = read_headers(file)
            except UnreadableError as problem:
                self.broken[file] = str(problem)
                continue
            self.unknown += headers is None
            self.others += headers == []
            self.headers += headers or []

    def place(self, file: Path) -> str:
        return f"file {self.files.index(file) + 1} of {len(self.files)} (in the order of names)"

    def check(self, chosen: Sequence[ImageHeader], name: str, log: CaseLog) -> None:
        """Raises CaseError where a slice of the chosen series cannot be used, or a file may be one that is broken."""
        for header in chosen:
            if header.fault:
                raise CaseError(f"{name}: {self.place(header.file)} {header.fault}", file=header.file)
        alike = {(header.file.parent, _ending(header.file)) for header in chosen}
        for file, why in self.broken.items():
            if (file.parent, _ending(file)) in alike:
                raise CaseError(f"beside {name}, DICOM {self.place(file)} {why}", file=file)
            log.warn_once("passed over DICOM files that cannot be read, in other folders or of other names")
        for file in self.foreign:
            # Passing over it would leave a volume that lacks its first or last slice and looks whole.
            if (file.parent, _ending(file)) in alike and not _is_text(file):
                raise CaseError(
                    f"beside {name}, {self.place(file)} is named like a DICOM slice, but is empty or not a DICOM file; "
                    "download it again or remove it",
                    file=file,
                )


def _ending(file: Path) -> str:
    """The suffix with every number alike; without one, whether the name has digits."""
    return re.sub(r"\d+", "#", file.suffix.lower()) or ("#" if any(map(str.isdigit, file.name)) else "")


def _is_text(file: Path) -> bool:
    with contextlib.suppress(OSError), file.open("rb") as opened:
        start = opened.read(512)
        return bool(start) and not any(byte < 32 and byte not in b"\t\n\r\f" for byte in start)
    return False


def _candidates(folder: _Folder, log: CaseLog, *, any_modality: bool) -> list[list[ImageHeader]]:
    """The CT volumes in a folder; each has a list of its slices, unordered. What else is there is counted."""
    if not folder.headers:
        for file, why in folder.broken.items():
            raise CaseError(f"DICOM {folder.place(file)} {why}", file=file)
        raise CaseError("there is no DICOM image here")
    localizers = sum(header.is_localizer for header in folder.headers)
    passed = Counter({"localizer image|": localizers})
    doubtful: Counter[str] = Counter()
    candidates: list[list[ImageHeader]] = []
    faulty: list[list[ImageHeader]] = []
    for group in _grouped([header for header in folder.headers if not header.is_localizer], log):
        modality = _modality(group)
        if modality not in ("CT", "") and not any_modality:
            # Only a name that is known is told: a damaged entry may hold anything.
            if modality in _OTHER_MODALITIES:
                passed[f"image|of modality {modality}"] += len(group)
            else:
                doubtful["image|of unknown modality"] += len(group)
        elif all(header.fault for header in group):
            faulty.append(group)
        elif all(header.plane is None for header in group):
            doubtful["image|without position, direction or spacing"] += len(group)
        else:
            candidates.append(group)
    if not candidates:
        if faulty:
            first = faulty[0][0]
            raise CaseError(f"there is no CT series here: {_name(faulty[0])} {first.fault}", file=first.file)
        found = _counted(doubtful + passed)
        raise CaseError(f"there is no CT series here, only {found}; name the folder of a CT series")
    doubtful["DICOM file|of unknown content"] = folder.unknown
    passed["image|without a volume"] = sum(map(len, faulty))
    passed["DICOM file|without an image"] = folder.others
    passed["file|of other kinds"] = len(folder.foreign)
    for counts, reported in ((passed, log.remarks), (doubtful, log.warnings)):
        if +counts:
            reported.append(f"passed over {_counted(counts)}")
    if any(not group[0].modality for group in candidates):
        log.warnings.append("the DICOM header names no modality; taken for CT")
    return candidates


def _modality(group: Sequence[ImageHeader]) -> str:
    modality, *others = {header.modality for header in group}
    if others:
        raise CaseError(
            f"the slices of {_name(group)} name several modalities; the headers of some are damaged",
            file=group[0].file,
        )
    return modality


def _grouped(headers: Sequence[ImageHeader], log: CaseLog) -> list[list[ImageHeader]]:
    """The headers by series, as far as that can be told. A picture of a screen is never one with slices."""
    by_uid: dict[object, list[ImageHeader]] = defaultdict(list)
    for header in headers:
        by_uid[(header.series_uid, header.is_capture) if header.series_uid else _likeness(header)].append(header)
    groups: list[list[ImageHeader]] = []
    alike: dict[object, list[ImageHeader]] = defaultdict(list)
    for group in by_uid.values():
        if len(group) == 1 and group[0].plane is not None:
            alike[_likeness(group[0])].append(group[0])
        elif not group[0].series_uid and not _positions_differ(group):
            acquisitions: dict[tuple[str, ...], list[ImageHeader]] = defaultdict(list)
            for header in group:
                acquisitions[header.acquisition[:1]].append(header)
            groups += acquisitions.values()
        else:
            groups.append(group)
    for singles in alike.values():
        # Some anonymisers give every file a series of its own.
        if len(singles) > 2 and _positions_differ(singles):
            log.remarks.append(f"{len(singles)} slices name a series each: taken as one by all else that they say")
            groups.append(singles)
        else:
            groups += [[header] for header in singles]
    return groups


def _likeness(header: ImageHeader) -> object:
    """What the slices of one series have in common, whatever series they name."""
    same = (header.series_number, header.description, header.modality, header.rows, header.columns, header.is_capture)
    plane = header.plane
    if plane is None:
        return same
    lengths = (round(plane.row_spacing, 4), round(plane.column_spacing, 4))
    return same, lengths, tuple(round(cosine, 2) + 0.0 for cosine in (*plane.along_row, *plane.along_column))


def _positions_differ(group: Sequence[ImageHeader]) -> bool:
    return len({header.plane and header.plane.position for header in group}) == len(group)


def _chosen(
    candidates: list[list[ImageHeader]], series: SeriesChoice, drawn_on: Collection[str], log: CaseLog
) -> list[ImageHeader]:
    several = "; ".join(sorted(map(_described, candidates)))
    named = [group for group in candidates if any({h.series_uid, h.instance_uid} & {*drawn_on} for h in group)]
    if isinstance(series, int):
        numbered = [group for group in candidates if group[0].series_number == series]
        if len(numbered) != 1:
            raise CaseError(f"{len(numbered) or 'no'} series with series number {series} among: {several}")
        chosen = numbered[0]
    elif len(candidates) == 1:
        chosen = candidates[0]
    elif series == "only":
        if len(named) != 1:
            raise CaseError(
                f"{len(candidates)} DICOM series in one folder ({several}); name one by its number (--series 3), take "
                "the largest (--series largest), or give each a folder of its own"
            )
        log.remarks.append(f"took the series of {len(candidates)} that the mask was drawn on: {_described(named[0])}")
        return named[0]
    else:
        *_, second, chosen = sorted(candidates, key=len)
        if len(chosen) == len(second):
            raise CaseError(
                f"the largest DICOM series is not the only one of its size ({several}); name one by its number"
            )
        log.warnings.append(f"took the largest of {len(candidates)} DICOM series: {_described(chosen)}")
    if drawn_on and not any(group is chosen for group in named):
        instead = f", {_described(named[0])}" if len(named) == 1 else ""
        log.warnings.append(
            f"the mask was drawn on another series{instead} than the one that is converted ({_described(chosen)}); "
            "look whether it fits"
        )
    return chosen


def _name(group: Sequence[ImageHeader]) -> str:
    number = group[0].series_number
    return "the series without a number" if number is None else f"series {number}"


def _described(group: Sequence[ImageHeader]) -> str:
    """Such as ``series 3: 120 slices of 0.977 x 0.977 x 2 mm``."""
    planes = [header.plane for header in group if header.plane is not None]
    distances = np.diff(sorted(planes[0].normal @ plane.position for plane in planes))
    between = f"{np.median(distances):.3g}" if len(distances) else "unknown"
    sizes = f"{planes[0].column_spacing:.3g} x {planes[0].row_spacing:.3g} x {between} mm"
    return f"{_name(group).replace('the', 'a')}: {_count(len(group), 'slice|')} of {sizes}"


def _stacked(slices: Sequence[ImageHeader]) -> list[_Slice]:
    """The slices in the order of their positions; raises CaseError unless they are parallel and of one size."""
    located = [(header, header.plane) for header in slices if header.plane is not None]
    if len(located) < len(slices):
        raise CaseError(
            f"{len(slices) - len(located)} of {len(slices)} slices do not say their position, direction or "
            "spacing; fix their headers"
        )
    planes = [plane for _, plane in located]
    for what, tolerance, values in (
        ("number of rows and columns", 0.0, [(header.rows, header.columns) for header in slices]),
        ("pixel spacing", 1e-3, [(plane.row_spacing, plane.column_spacing) for plane in planes]),
        ("orientation", 1e-3, [plane.along_row + plane.along_column for plane in planes]),
    ):
        usual = np.median(np.array(values, np.float64), axis=0)
        differing = np.abs(np.array(values) - usual).max(axis=1) > tolerance
        if differing.any():
            raise CaseError(
                f"the slices of one series differ in {what} ({differing.sum()} of {len(slices)} from the others); move "
                "what does not belong to it into another folder"
            )
    directions = np.array([planes[0].along_row, planes[0].along_column])
    if np.abs(np.linalg.norm(directions, axis=1) - 1).max() > 0.05 or abs(directions[0] @ directions[1]) > 0.5:
        raise CaseError("the direction cosines of the series are not perpendicular unit vectors; fix its headers")
    return sorted(located, key=lambda slice_: float(planes[0].normal @ slice_[1].position))


def _without_duplicates(slices: list[_Slice], log: CaseLog) -> list[_Slice]:
    """Drops slices that repeat the one before them, voxel for voxel."""
    kept = slices[:1]
    frames = _Frames()
    for header, plane in slices[1:]:
        if not np.allclose(plane.position, kept[-1][1].position, rtol=0, atol=SAME_POSITION):
            kept.append((header, plane))
            continue
        where = f"slice {len(kept)}, counted along the normal,"
        if not np.array_equal(_rescaled(header, frames, where), _rescaled(kept[-1][0], frames, where)):
            raise CaseError(
                f"two slices with different pixels share the position of {where} such as two phases or "
                "reconstructions in one series; separate them"
            )
    if len(kept) < len(slices):
        log.repairs.append(f"left out {_count(len(slices) - len(kept), 'slice|')} that another one repeats exactly")
    return kept


def _grid(slices: Sequence[_Slice], log: CaseLog) -> Grid:
    """The grid of slices in order; raises CaseError where a slice is missing or the stack is sheared."""
    header, plane = slices[0]
    positions = np.array([plane.position for _, plane in slices], np.float64)  # (k, 3)
    whole = positions[-1] - positions[0]
    if len(slices) == 1:
        if not header.thickness or header.thickness <= 0:
            raise CaseError("there is a single slice, and it does not say how thick it is; fix its header")
        log.warnings.append(f"a single slice: its SliceThickness of {header.thickness:g} mm stands for the distance")
        step = plane.normal * header.thickness
    else:
        _check_even(positions @ plane.normal, log)
        _check_shear(plane, whole)
        step = whole / (len(slices) - 1)
    shape = (header.columns, header.rows, len(slices))
    return grid_from_affine(shape, plane.affine(step), log, what="DICOM series")


def _check_even(along: NDArray[np.float64], log: CaseLog) -> None:
    """Raises CaseError unless the slices, at `along` (ascending, mm), lie at one distance from each other."""
    distances = np.diff(along)
    usual = float(np.median(distances))
    if usual < SAME_POSITION:
        raise CaseError(f"{len(along)} slices lie on top of each other: their positions are damaged; fix their headers")
    moved = float(np.abs(along - np.linspace(along[0], along[-1], len(along))).max())
    if moved > MAX_UNEVEN * usual:
        odd = np.flatnonzero(np.abs(distances - usual) > MAX_UNEVEN * usual)
        places = [f"{distances[k]:.3g} mm between slices {k + 1} and {k + 2}" for k in odd]
        gradual = f"from {distances.min():.4g} to {distances.max():.4g} mm, changing on the way"
        raise IrregularError(
            f"slices are missing or at uneven distances: {usual:.3g} mm usually, but {listed(places, 3) or gradual} "
            f"(of {len(along)}, counted along the normal); complete the series, or resample it first: of "
            "dcm2niix's files, take the one whose name ends in _Eq_1; with a DICOM mask, --resample-series"
        )
    if moved > EVEN * usual:
        log.repairs.append(f"uneven slice positions taken for even ones, {usual:.4g} mm apart: moved by {moved:.2g} mm")


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


def _check_rescale(slices: Sequence[ImageHeader], log: CaseLog) -> None:
    """Raises CaseError where only some slices say how to rescale them; notes what is unusual."""
    missing = [k for k, header in enumerate(slices, start=1) if header.slope is None or header.intercept is None]
    if len(missing) == len(slices):
        log.warnings.append("no RescaleSlope and RescaleIntercept: stored values taken for Hounsfield units")
    elif missing:
        raise CaseError(
            f"{len(missing)} of {len(slices)} slices (the first is slice {missing[0]}) have no RescaleSlope and "
            "RescaleIntercept, the others have; fix their headers"
        )
    elif len({(header.slope, header.intercept) for header in slices}) > 1:
        log.warnings.append("the rescaling to Hounsfield units differs between slices; each has got its own")
    if any(header.slope == 0 for header in slices):
        raise CaseError("a RescaleSlope is 0, so that all values would be the same; fix the headers")
    padding = [_hounsfield(header, header.padding) for header in slices if header.padding is not None]
    if padding and min(padding) < LEAST_PADDING:
        log.warnings.append(f"pixels outside of the scanner's field hold {min(padding):g}; kept as they are")


def _check_acquisitions(slices: Sequence[ImageHeader], name: str) -> None:
    """Raises CaseError where few acquisitions change from slice to slice: two volumes, interleaved."""
    for what, values in zip(ACQUISITION, zip(*(header.acquisition for header in slices), strict=True), strict=True):
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


class _Frames:
    """Stored values of planes; keeps the last multi-frame file open, so that it is read once."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._dataset = FileDataset("", {})

    def stored(self, header: ImageHeader) -> NDArray[Any]:
        """Shape (rows, columns), an integer dtype. Raises UnreadableError."""
        if self._file != header.file:
            self._dataset, self._file = read_dataset(header.file), header.file
        return decode(self._dataset, header.frame, (header.rows, header.columns))


def _rescaled(header: ImageHeader, frames: _Frames, where: str) -> NDArray[Any]:
    """One plane's values, shape (rows, columns), int64 or float64."""
    try:
        with quiet():
            stored = frames.stored(header)
    except UnreadableError as problem:
        raise CaseError(f"{where} {problem}", file=header.file) from None
    intercept = header.intercept or 0.0
    if header.slope in (None, 1) and intercept.is_integer() and abs(intercept) < 2**31 and stored.dtype.itemsize < 4:
        values: NDArray[Any] = stored.astype(np.int32) + np.int64(intercept)
    else:
        values = _hounsfield(header, stored.astype(np.float64))
    return values


def _hounsfield(header: ImageHeader, stored: Any) -> Any:
    return stored * (1.0 if header.slope is None else header.slope) + (header.intercept or 0.0)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(_count(number, what) for what, number in sorted(counts.items()) if number)


def _count(number: int, what: str) -> str:
    """``_count(2, "image|of modality MR")`` is ``"2 images of modality MR"``."""
    noun, _, rest = what.partition("|")
    return f"{number} {noun}{'s' if number != 1 else ''}{' ' if rest else ''}{rest}"
