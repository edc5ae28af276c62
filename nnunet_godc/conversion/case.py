"""One case from source to target: read, fix, check, reorient, copy or write, and record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.conversion.alignment import Label, LabelGrid, align_label
from nnunet_godc.conversion.dicom import (
    DicomSeries,
    SeriesChoice,
    drawn_on,
    is_dicom,
    mask_files,
    open_series,
    read_masks,
    region_names,
)
from nnunet_godc.conversion.files import VOLUME_ENDINGS, ending_of, visible_files
from nnunet_godc.conversion.geometry import Grid, Triple, Volume, times
from nnunet_godc.conversion.labels import LabelArray, LabelMap, Masks, merge_masks, read_label, read_mask, values_of
from nnunet_godc.conversion.nifti import NiftiFile, nifti_header, write_nifti
from nnunet_godc.conversion.problems import CaseError, CaseLog
from nnunet_godc.conversion.volumes import ItkFile, VolumeFile, files_of, open_volume
from nnunet_godc.conversion_record import RECORD_FORMAT

NamedMasks = tuple[tuple[str, Path], ...]

PLAUSIBLE_HU = (-250.0, 600.0)  # mean attenuation of anything that is segmented in these collections
COMPRESSION = 1  # benchmarks/results/compression-cpu.md: higher levels take longer and gain little
READ_AT_ONCE = 2**20
UNREADABLE = "a source file cannot be read: it is missing or not permitted"


@dataclass(frozen=True)
class CaseSource:
    """Where a case comes from.

    Attributes:
        name: the case's name in the dataset.
        image: a volume file, or a folder with a DICOM series.
        label: a volume file, DICOM-SEG or RTSTRUCT, a folder with one of these or with a DICOM series, or a folder with
            one volume file per label; None for a test case without.
        masks: in the place of `label`, the masks of several labels: name and file.
        test: whether it goes to imagesTs; None as long as nobody has decided that.
        patient: who it is of, under a made-up name: cases of one patient never stand on both sides of a split.
        series: which of several DICOM series; see `open_series`.
        warnings: what is known to be odd about this case.
    """

    name: str
    image: Path
    label: Path | None
    masks: NamedMasks = ()
    test: bool | None = False
    patient: str = ""
    series: SeriesChoice = "only"
    warnings: tuple[str, ...] = ()

    @property
    def mask_paths(self) -> list[Path]:
        """The label's, or those of the masks in its place."""
        return [path for _, path in self.masks] if self.label is None else [self.label]


@dataclass(frozen=True)
class CaseSettings:
    """What is the same for all cases of a dataset.

    Attributes:
        rules: what becomes of the labels' values.
        label_grid: where a label lies whose grid is not the image's; see `align_label`.
        orientation: ``"LPS"`` or ``"RAS"``.
        file_ending: ``".nii.gz"`` or ``".nii"``.
        link: link an image that already is what nnU-Net needs, instead of copying it.
        spacings: voxel sizes along the image's i, j, k in mm that replace the header's, by case.
        trust_headers: take headers for true that look as if nobody had filled them in.
        private: write no name of a source file into the record.
        strict: refuse what a person would be warned of.
        resample_series: resample tilted and uneven DICOM series together with the DICOM mask that was drawn on them.
    """

    rules: LabelMap
    label_grid: LabelGrid
    orientation: str = "LPS"
    file_ending: str = ".nii.gz"
    link: bool = False
    spacings: Mapping[str, Triple] = field(default_factory=dict)
    trust_headers: bool = False
    private: bool = False
    strict: bool = False
    resample_series: bool = False

    def identity(self) -> dict[str, Any]:
        """What two conversions must have in common for their cases to be interchangeable."""
        return {
            "format": RECORD_FORMAT,
            "labels": {str(value): name for value, name in sorted(self.rules.names.items())},
            "values": {str(value): becomes for value, becomes in sorted(self.rules.table().items())},
            "segments": [list(pair) for pair in self.rules.segments],
            "label_grid": self.label_grid,
            "orientation": self.orientation,
            "file_ending": self.file_ending,
            "private": self.private,
            **({"resample_series": True} if self.resample_series else {}),
        }


def convert_case(
    source: CaseSource, settings: CaseSettings, root: Path, folder: Path, hashes: Mapping[Path, str] | None = None
) -> dict[str, Any]:
    """Convert one case into `folder`, which holds imagesTr, labelsTr, imagesTs and labelsTs.

    Args:
        root: the collection's folder; file names in the record are relative to it.
        hashes: as `source_hashes`, where they are known already.

    Returns:
        The case's record for conversion.json: it depends on the sources and settings alone.

    Raises:
        CaseError: the case cannot be converted; nothing of it is left in `folder`.
        OSError: `folder` cannot be written to.
    """
    log = CaseLog(warnings=list(source.warnings))
    try:
        hashes = hashes or source_hashes(source)
        case = _OpenedCase.open(source, settings, log)
        label, label_grid = case.read_label()
        image = case.image
        if case.series is not None and case.series.straightening is not None:
            image, label = case.straightened(label)
    except OSError as error:
        raise CaseError(UNREADABLE) from error

    part = "Ts" if source.test else "Tr"
    image_file = f"images{part}/{source.name}_0000{settings.file_ending}"
    label_file = f"labels{part}/{source.name}{settings.file_ending}"
    header = nifti_header(image.grid, image.voxels.dtype)
    label_record = None
    try:
        file = case.file
        if isinstance(file, NiftiFile) and case.is_ready(file):
            header = file.header
            image_record = {
                "sha256": hashes[file.path],
                "written": link_or_copy(file.path, folder / image_file, link=settings.link),
            }
        else:
            digest = _write(folder / image_file, image.voxels, header, settings)
            image_record = {"sha256": digest, "written": "encoded"}
        if label is not None:
            # Never linked to its source: whoever corrects a label in nnUNet_raw would change that, too.
            label_header = nifti_header(image.grid, label.dtype, geometry_of=header)
            digest = _write(folder / label_file, label, label_header, settings)
            statistics = _label_statistics(label, image, settings.rules, log)
            label_record = {"sha256": digest, "written": "encoded", "file": label_file, **statistics}
        if settings.strict and log.warnings:
            raise CaseError(f"{'; '.join(log.warnings)} (--strict)")
    except BaseException:
        for name in (image_file, label_file):
            (folder / name).unlink(missing_ok=True)
        raise
    # The names of DICOM files are often UIDs or patients' names, in public collections too.
    private_image = settings.private or case.series is not None
    private_label = settings.private or source.label is None or _is_dicom(source.label)
    return {
        "inputs": inputs_digest(source, settings, hashes),
        "test": source.test,
        "patient": source.patient or source.name,
        "source": {
            "image": _files_record(case.image_files, hashes, None if private_image else root),
            "label": _files_record(_all_files(source.mask_paths), hashes, None if private_label else root),
        },
        "geometry": {
            "image": case.grid.as_json(),
            "label": label_grid.as_json() if label_grid else None,
            "after": image.grid.as_json(),
        },
        "image": {**image_record, "file": image_file, "fingerprint": fingerprint(image)},
        "label": label_record,
        "repairs": log.repairs,
        "warnings": log.warnings,
        "remarks": log.remarks,
    }


def inspect_case(source: CaseSource, settings: CaseSettings) -> str:
    """A line about a case: shape, voxel size, orientation, series, what its masks hold, what would be fixed.

    Reads the headers of images, and labels whole.

    Raises:
        CaseError: the case could not be converted.
    """
    log = CaseLog(warnings=list(source.warnings))
    try:
        file, (grid, *_) = _open_image(source, settings, log)
        parts = [f"{times(grid.shape)} voxels of {times(grid.spacing)} mm", grid.orientation]
        if isinstance(file, DicomSeries):
            number = file.slices[0].series_number
            parts.append(f"series {'without a number' if number is None else number}")
        if holds := _label_contents(source, settings, grid):
            parts.append(holds)
    except OSError as error:
        raise CaseError(UNREADABLE) from error
    reported = "; ".join([*log.repairs, *log.warnings, *log.remarks])
    return f"{', '.join(parts)}{f' ({reported})' if reported else ''}"


@dataclass(frozen=True)
class _OpenedCase:
    """A case whose image is read.

    Attributes:
        file: its image.
        grids: where that lies, as it is stored, and where else by other entries of its header.
        image: its voxels, reoriented as the dataset is to be.
    """

    source: CaseSource
    settings: CaseSettings
    log: CaseLog
    file: VolumeFile
    grids: list[Grid]
    image: Volume[Any]

    @classmethod
    def open(cls, source: CaseSource, settings: CaseSettings, log: CaseLog) -> _OpenedCase:
        file, grids = _open_image(source, settings, log)
        voxels = file.read()
        if voxels.dtype.kind == "f":
            broken = sum(int(np.count_nonzero(~np.isfinite(voxels[:, :, k]))) for k in range(voxels.shape[2]))
            if broken:
                raise CaseError(f"the image holds {broken} voxels that are not finite numbers; fix it")
        return cls(source, settings, log, file, grids, Volume(voxels, grids[0]).reoriented(settings.orientation))

    @property
    def grid(self) -> Grid:
        return self.grids[0]

    @property
    def series(self) -> DicomSeries | None:
        return self.file if isinstance(self.file, DicomSeries) else None

    @property
    def image_files(self) -> Sequence[Path]:
        return self.series.files if self.series is not None else _all_files([self.source.image])

    def is_ready(self, file: NiftiFile) -> bool:
        """Whether the image's file can be taken as it is."""
        return self.grid.orientation == self.settings.orientation and file.is_as_written(
            self.grid, compressed=self.settings.file_ending.endswith(".gz"), private=self.settings.private
        )

    def read_label(self) -> tuple[LabelArray | None, Grid | None]:
        """The label on the reoriented image's grid, and the grid that its own header describes, if there is one."""
        rules, log = self.settings.rules, self.log
        if masks := self._named_masks():
            return merge_masks(masks, self.image.voxels.shape, rules, log), None
        if self.source.label is None:
            return None, None
        file = _open_label(self.source.label)
        if isinstance(file, ItkFile) and file.layers > 1:
            stored = merge_masks(_layers(file), file.shape, rules, log)
        else:
            stored = read_label(file, rules, log)
        return self._aligned(file, stored, log)

    def _named_masks(self) -> Masks:
        """The masks that have a name: files of their own, or what a DICOM object draws; on the reoriented image."""
        if named := _separate_masks(self.source):
            return {name: partial(self._separate_mask, name, path) for name, path in named}
        if self.source.label is None or not _has_regions(self.source.label):
            return {}
        if self.series is None:
            raise CaseError(
                "the label is a DICOM object, but the image is not a DICOM series; give the series as the image"
            )
        return self._regions(self.source.label, self.series)

    def _regions(self, path: Path, series: DicomSeries) -> Masks:
        def reoriented(draw: Callable[[], NDArray[np.bool_]]) -> NDArray[np.bool_]:
            return Volume(draw(), self.grid).reoriented(self.settings.orientation).voxels

        return {name: partial(reoriented, draw) for name, draw in read_masks(path, series, self.log).items()}

    def _separate_mask(self, name: str, path: Path) -> NDArray[np.bool_]:
        if self.series is not None and _has_regions(path):
            return np.asarray(np.any([draw() for draw in self._regions(path, self.series).values()], axis=0))
        log = CaseLog()
        file = _open_label(path)
        mask, _ = self._aligned(file, read_mask(file), log)
        self.log.repairs.extend(repair for repair in log.repairs if repair not in self.log.repairs)
        for warning in log.warnings:
            self.log.warn_once(f"{name}: {warning}")
        return mask

    def _aligned(self, file: VolumeFile, stored: NDArray[Label], log: CaseLog) -> tuple[NDArray[Label], Grid | None]:
        return align_label(
            file,
            stored,
            self.grids,
            self.settings.label_grid,
            log,
            orientation=self.settings.orientation,
            image=self.image.voxels,
            image_is_dicom=self.series is not None,
        )

    def straightened(self, label: LabelArray | None) -> tuple[Volume[Any], LabelArray | None]:
        """Image and label from the series' stack of slices to the right-angled grid, in the same orientation."""
        assert self.series is not None
        assert self.series.straightening is not None
        straightening, now = self.series.straightening, self.image.grid.orientation
        as_stored = straightening.stack.orientation
        voxels, grid = straightening.resampled(self.image.reoriented(as_stored).voxels, nearest=False)
        if label is not None:
            stack = Volume(label, self.image.grid).reoriented(as_stored).voxels
            label = Volume(straightening.resampled(stack, nearest=True)[0], grid).reoriented(now).voxels
        return Volume(voxels, grid).reoriented(now), label


def _open_image(source: CaseSource, settings: CaseSettings, log: CaseLog) -> tuple[VolumeFile, list[Grid]]:
    spacing = settings.spacings.get(source.name)
    file: VolumeFile
    if not _is_dicom(source.image):
        file = open_volume(source.image)
    else:
        references = frozenset[str]().union(*map(drawn_on, filter(_is_dicom, source.mask_paths)))
        file = series = open_series(
            source.image, log, series=source.series, drawn_on=references, resample=settings.resample_series
        )
        if series.straightening is not None and not all(map(_is_dicom, source.mask_paths)):
            raise CaseError(
                "the DICOM series is tilted or uneven, and only masks in DICOM can be resampled with it; give the mask "
                "as DICOM-SEG or RTSTRUCT, or resample both first"
            )
    return file, file.read_grids(log, what="image", spacing=spacing, trust_header=settings.trust_headers)


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or (ending_of(path) not in VOLUME_ENDINGS and is_dicom(path))


def _has_regions(path: Path) -> bool:
    """Whether a source is a DICOM-SEG or RTSTRUCT, or a folder with one."""
    return _is_dicom(path) and bool(mask_files(path))


def _open_label(path: Path) -> VolumeFile:
    """A volume file, or masks that are stored as a DICOM series of plain images."""
    return open_series(path, CaseLog(), any_modality=True) if _is_dicom(path) else open_volume(path)


def _separate_masks(source: CaseSource) -> NamedMasks:
    """The masks of several labels: as given, or the volume files of a folder, named after them."""
    if source.label is None or not source.label.is_dir():
        return source.masks
    volumes = [path for path in visible_files(source.label) if ending_of(path) in VOLUME_ENDINGS]
    if volumes and is_dicom(source.label):
        return source.masks
    return tuple((path.name[: -len(ending_of(path))], path) for path in volumes)


def _layers(file: ItkFile) -> Masks:
    """3D Slicer's segments by name, of which several may overlap."""
    layers = file.read_layers()

    def unite(name: str) -> NDArray[np.bool_]:
        parts = [layers[segment.layer] == segment.value for segment in file.segments if segment.name == name]
        return np.asarray(np.any(parts, axis=0))

    if any(segment.layer >= len(layers) for segment in file.segments):
        raise CaseError("the segmentation names a layer that it does not hold; save it again")
    return {segment.name: partial(unite, segment.name) for segment in file.segments}


def _label_contents(source: CaseSource, settings: CaseSettings, grid: Grid) -> str:
    """What the masks hold, as the label map has to name it: regions, or values."""
    if named := _separate_masks(source):
        return f"masks {', '.join(name for name, _ in named)}"
    if source.label is None:
        return ""
    if _has_regions(source.label):
        return f"regions {', '.join(map(repr, region_names(source.label)))}"
    file = _open_label(source.label)
    if settings.label_grid == "image" and file.shape != grid.shape:
        raise CaseError(
            f"image and label differ in shape: {grid.shape} and {file.shape}; they do not belong together",
            file=source.label,
        )
    if segments := getattr(file, "segments", ()):
        return f"segments {', '.join(repr(segment.name) for segment in segments)}"
    return f"values {' '.join(map(str, values_of(file))) or '0 alone'}"


def _label_statistics(label: LabelArray, image: Volume[Any], rules: LabelMap, log: CaseLog) -> dict[str, Any]:
    counts, sums = _counts_and_sums(label, image.voxels)
    if counts[0] == label.size:
        log.warnings.append("the label is empty: no voxel has a value but 0")
    mean_hu = {name: round(sums[value] / counts[value], 2) for value, name in rules.names.items() if counts[value]}
    for name, mean in mean_hu.items():
        if not PLAUSIBLE_HU[0] <= mean <= PLAUSIBLE_HU[1]:
            log.warnings.append(
                f"mean value under {name} is {mean:.0f}, which no tissue has: does the label fit the image, "
                "and is the image in Hounsfield units? Look at the preview"
            )
    return {
        "voxels": {name: int(counts[value]) for value, name in {0: "background", **rules.names}.items()},
        "ml": {name: round(int(counts[value]) * image.grid.voxel_ml, 4) for value, name in rules.names.items()},
        "mean_hu": mean_hu,
    }


def _counts_and_sums(label: LabelArray, voxels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many voxels have each value, and the sum of the image under those that are not 0; shape (256,) each."""
    counts = np.zeros(256, dtype=np.int64)
    sums = np.zeros(256, dtype=np.float64)
    for k in range(label.shape[2]):
        if not label[:, :, k].max():
            continue  # most slices
        plane = label[:, :, k].ravel(order="F")
        labelled = np.flatnonzero(plane)
        values = plane[labelled]
        counts += np.bincount(values, minlength=256)
        sums += np.bincount(values, weights=voxels[:, :, k].ravel(order="F")[labelled], minlength=256)
    counts[0] = label.size - counts.sum()
    return counts, sums


def _write(path: Path, voxels: NDArray[Any], header: Any, settings: CaseSettings) -> str:
    compression = COMPRESSION if settings.file_ending.endswith(".gz") else None
    with atomic_write(path) as temporary:
        return write_nifti(temporary, voxels, header, compression=compression)


def link_or_copy(source: Path, path: Path, *, link: bool = False) -> str:
    """Link `source` to `path`, or copy it where that is not possible or not wanted; says which."""
    with atomic_write(path) as temporary:
        if link:
            with contextlib.suppress(OSError):
                os.link(source.resolve(), temporary)
                return "linked"
        shutil.copyfile(source, temporary)
        return "copied"


def fingerprint(image: Volume[Any]) -> str:
    """SHA-256 of a volume's shape and middle slice: equal for one scan in two collections of the same orientation."""
    middle = np.ascontiguousarray(image.voxels[:, :, image.grid.shape[2] // 2], dtype="<f4")
    return hashlib.sha256(repr(image.grid.shape).encode() + middle.tobytes()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        CaseError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(READ_AT_ONCE)
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    except OSError as error:
        raise CaseError(UNREADABLE, file=path) from error
    return digest.hexdigest()


def source_hashes(source: CaseSource) -> dict[Path, str]:
    """SHA-256 of every file that may make up a case.

    What cannot be read in a folder of many files has an empty one: it may be none of the case's.

    Raises:
        CaseError: a file that the case is made of cannot be read.
    """
    hashes = {}
    for path in source_files(source):
        try:
            hashes[path] = file_sha256(path)
        except CaseError:
            if source.image not in path.parents:
                raise
            hashes[path] = ""
    return hashes


def inputs_digest(source: CaseSource, settings: CaseSettings, hashes: Mapping[Path, str]) -> str:
    """SHA-256 over all that decides how a case's output looks: contents of its files and options, not their places."""
    decisive = {
        "files": sorted(hashes.values()),
        "image": sorted(hashes[path] for path in _all_files([source.image])),
        "test": source.test,
        "patient": source.patient,
        "series": source.series,
        "warnings": source.warnings,
        "spacing": settings.spacings.get(source.name),
        "settings": settings.identity(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def source_files(source: CaseSource) -> list[Path]:
    """Every file that may make up a case: those of its image and of its label. Raises CaseError as `files_of`."""
    return _all_files([source.image, *source.mask_paths])


def _all_files(paths: Iterable[Path]) -> list[Path]:
    return [file for path in paths for file in (visible_files(path) if path.is_dir() else files_of(path))]


def _files_record(paths: Sequence[Path], hashes: Mapping[Path, str], root: Path | None) -> list[dict[str, str]]:
    """SHA-256 of every file, with its name relative to `root` where it may be told."""
    named = {} if root is None else {path: Path(os.path.relpath(path, root)).as_posix() for path in paths}
    return [{"sha256": hashes[path], **({"file": named[path]} if named else {})} for path in paths]
