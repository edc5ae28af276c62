"""One case from source to target: read, fix, check, reorient, copy or write, and record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_godc.conversion.alignment import LabelGrid, align_label
from nnunet_godc.conversion.files import visible_files
from nnunet_godc.conversion.formats import VOLUME_ENDINGS, VolumeFile, ending_of, files_of, open_volume
from nnunet_godc.conversion.geometry import Grid, Triple, Volume
from nnunet_godc.conversion.itk import ItkFile
from nnunet_godc.conversion.labels import LabelArray, LabelMap, count_values, merge_masks, read_label, read_mask
from nnunet_godc.conversion.nifti import NiftiFile, geometry_of_header, nifti_header, with_geometry_of, write_nifti
from nnunet_godc.conversion.problems import CaseError, CaseLog
from nnunet_godc.conversion_record import RECORD_FORMAT
from nnunet_godc.replacing import replacing

if TYPE_CHECKING:
    from nnunet_godc.conversion.dicom.series import DicomSeries
    from nnunet_godc.conversion.dicom.straightening import Straightening

SeriesChoice = int | Literal["only", "largest"]
NamedMasks = tuple[tuple[str, Path], ...]

PLAUSIBLE_HU = (-250.0, 600.0)  # mean attenuation of anything that is segmented in these collections
READ_AT_ONCE = 2**20
_ANY_VALUE = {value: str(value) for value in range(1, 256)}
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
        test: whether it goes to imagesTs.
        patient: who it is of, under a made-up name: cases of one patient never stand on both sides of a split.
        series: which of several DICOM series; see `open_series`.
        warnings: what is known to be odd about this case.
    """

    name: str
    image: Path
    label: Path | None
    masks: NamedMasks = ()
    test: bool = False
    patient: str = ""
    series: SeriesChoice = "only"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseSettings:
    """What is the same for all cases of a dataset.

    Attributes:
        rules: what becomes of the labels' values.
        label_grid: where a label lies whose grid is not the image's; see `align_label`.
        orientation: ``"LPS"`` or ``"RAS"``.
        file_ending: ``".nii.gz"`` or ``".nii"``.
        compression: ISA-L's level, 0 to 3.
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
    compression: int = 1
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
            "compression": self.compression if self.file_ending.endswith(".gz") else None,
            "private": self.private,
            **({"resample_series": True} if self.resample_series else {}),
        }


@dataclass(frozen=True)
class _Source:
    """An opened image: exactly one of `series` and `file` is there."""

    grid: Grid
    series: DicomSeries | None = None
    file: VolumeFile | None = None
    path: Path | None = None
    others: Sequence[Grid] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        if self.series is not None:
            return self.series.files
        assert self.path is not None
        return tuple(_all_files(self.path))

    def read(self) -> NDArray[Any]:
        if self.series is not None:
            return self.series.read()
        assert self.file is not None
        return self.file.read()


def convert_case(source: CaseSource, settings: CaseSettings, root: Path, folder: Path) -> dict[str, Any]:
    """Convert one case into `folder`, which holds imagesTr, labelsTr, imagesTs and labelsTs.

    Args:
        root: the collection's folder; file names in the record are relative to it.

    Returns:
        The case's record for conversion.json: it depends on the sources and settings alone.

    Raises:
        CaseError: the case cannot be converted; nothing of it is left in `folder`.
        OSError: `folder` cannot be written to.
    """
    notes = CaseLog(warnings=list(source.warnings))
    try:
        hashes = source_hashes(source)
        image_source = _open_image(source, settings, notes)
        voxels = image_source.read()
        _check_finite(voxels)
        image = Volume(voxels, image_source.grid).reoriented(settings.orientation)
        label_file, label, label_before = _read_label(source, settings, image_source, image, notes)
        if image_source.series is not None and image_source.series.straightening is not None:
            image, label = _straightened(image, label, image_source.series.straightening)
    except OSError as error:
        raise CaseError(UNREADABLE) from error

    part = "Ts" if source.test else "Tr"
    image_path = folder / f"images{part}" / f"{source.name}_0000{settings.file_ending}"
    label_path = folder / f"labels{part}" / f"{source.name}{settings.file_ending}"
    try:
        header, image_record = _put_image(image_path, image, image_source, settings, hashes)
        label_record = None
        if label is not None:
            statistics = _label_statistics(label, image, settings.rules, notes)
            label_record = {
                **_put_label(label_path, label, label_file, header, settings, hashes),
                "file": f"labels{part}/{label_path.name}",
                **statistics,
            }
        if settings.strict and notes.warnings:
            raise CaseError(f"{'; '.join(notes.warnings)} (--strict)")
    except BaseException:
        for path in (image_path, label_path):
            path.unlink(missing_ok=True)
        raise
    # The names of DICOM files are often UIDs or patients' names, in public collections too.
    private_image = settings.private or image_source.series is not None
    private_label = settings.private or label_file is None
    return {
        "inputs": inputs_digest(source, settings, hashes),
        "test": source.test,
        "patient": source.patient or source.name,
        "source": {
            "image": _files_record(image_source.paths, hashes, None if private_image else root),
            "label": _files_record(_label_paths(source), hashes, None if private_label else root),
        },
        "geometry": {
            "image": image_source.grid.as_json(),
            "label": label_before.as_json() if label_before else None,
            "after": image.grid.as_json(),
        },
        "image": {**image_record, "file": f"images{part}/{image_path.name}", "fingerprint": fingerprint(image)},
        "label": label_record,
        "repairs": notes.repairs,
        "warnings": notes.warnings,
        "remarks": notes.remarks,
    }


def inspect_case(source: CaseSource, settings: CaseSettings) -> str:
    """A line about a case: shape, voxel size, orientation, series, what its masks hold, what would be fixed.

    Reads the headers of images, and labels whole.

    Raises:
        CaseError: the case could not be converted.
    """
    notes = CaseLog(warnings=list(source.warnings))
    try:
        opened = _open_image(source, settings, notes)
        grid = opened.grid
        parts = [
            " x ".join(map(str, grid.shape)) + " voxels of " + " x ".join(f"{n:.4g}" for n in grid.spacing) + " mm"
        ]
        parts[0] += f", {grid.orientation}"
        if opened.series is not None:
            number = opened.series.slices[0].series_number
            parts.append(f"series {'without a number' if number is None else number}")
        parts += _label_contents(source, settings, grid)
    except OSError as error:
        raise CaseError(UNREADABLE) from error
    told = "; ".join([*notes.repairs, *notes.warnings, *notes.remarks])
    return f"{', '.join(parts)}{f' ({told})' if told else ''}"


def _label_contents(source: CaseSource, settings: CaseSettings, grid: Grid) -> list[str]:
    """What the masks hold, as the label map has to name it: regions, or values."""
    named = _named_masks(source)
    if named:
        return ["masks " + ", ".join(name for name, _ in named)]
    if source.label is None:
        return []
    if _is_dicom(source.label):
        from nnunet_godc.conversion.dicom.masks import region_names

        if regions := region_names(source.label):
            return ["regions " + ", ".join(repr(name) for name in regions)]
    file = _open_label(source.label)
    if settings.label_grid == "image" and file.shape != grid.shape:
        raise CaseError(
            f"image and label differ in shape: {grid.shape} and {file.shape}; they do not belong together",
            file=source.label,
        )
    if segments := getattr(file, "segments", ()):
        return ["segments " + ", ".join(repr(segment.name) for segment in segments)]
    values = sorted(count_values(read_label(file, LabelMap(_ANY_VALUE), CaseLog())).keys() - {0})
    return ["values " + (" ".join(map(str, values)) or "0 alone")]


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


def inputs_digest(source: CaseSource, settings: CaseSettings, hashes: Mapping[Path, str]) -> str:
    """SHA-256 over all that decides how a case's output looks: contents of its files and options, not their places."""
    decisive = {
        "files": sorted(hashes.values()),
        "image": sorted(hashes[path] for path in _all_files(source.image)),
        "test": source.test,
        "patient": source.patient,
        "series": source.series,
        "warnings": source.warnings,
        "spacing": settings.spacings.get(source.name),
        "settings": settings.identity(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def source_hashes(source: CaseSource) -> dict[Path, str]:
    """SHA-256 of every file that may make up a case.

    What cannot be read in a folder of many files has an empty one: it may be none of the case's.

    Raises:
        CaseError: a file that the case is made of cannot be read.
    """
    hashes = {}
    for path in source_paths(source):
        try:
            hashes[path] = file_sha256(path)
        except CaseError:
            if source.image not in path.parents:
                raise
            hashes[path] = ""
    return hashes


def source_paths(source: CaseSource) -> list[Path]:
    """Every file that may make up a case: those of its image and of its label."""
    return [*_all_files(source.image), *_label_paths(source)]


def _open_image(source: CaseSource, settings: CaseSettings, notes: CaseLog) -> _Source:
    spacing = settings.spacings.get(source.name)
    if _is_dicom(source.image):
        from nnunet_godc.conversion.dicom.series import open_series

        if spacing is not None:
            raise CaseError("a spacing is given for a DICOM series, which has its own; take the case out of the CSV")
        masks = [source.label] if source.label else [path for _, path in source.masks]
        references: frozenset[str] = frozenset()
        if any(map(_is_dicom, masks)):
            from nnunet_godc.conversion.dicom.masks import drawn_on

            references = references.union(*(drawn_on(mask) for mask in masks if _is_dicom(mask)))
        series = open_series(
            source.image, notes, series=source.series, drawn_on=references, resample=settings.resample_series
        )
        if series.straightening is not None and not all(_is_dicom(mask) for mask in masks):
            raise CaseError(
                "the DICOM series is tilted or uneven, and only masks in DICOM can be resampled with it; give the mask "
                "as DICOM-SEG or RTSTRUCT, or resample both first"
            )
        return _Source(series.grid, series=series)
    file = open_volume(source.image)
    grid = file.grid(notes, what="image", spacing=spacing, trust_header=settings.trust_headers)
    # With voxel sizes from elsewhere, the header is known to be wrong.
    return _Source(grid, file=file, path=source.image, others=file.other_grids("image") if spacing is None else ())


def _is_dicom(path: Path) -> bool:
    """Whether a source is to be read by the DICOM modules, which take a second to load and are loaded only for that."""
    if path.is_dir():
        return True
    if ending_of(path) in VOLUME_ENDINGS:
        return False
    from nnunet_godc.conversion.dicom.series import is_dicom

    return is_dicom(path)


def _check_finite(voxels: NDArray[Any]) -> None:
    if voxels.dtype.kind == "f":
        broken = sum(int(np.count_nonzero(~np.isfinite(voxels[:, :, k]))) for k in range(voxels.shape[2]))
        if broken:
            raise CaseError(f"the image holds {broken} voxels that are no finite number; fix it")


def _read_label(
    source: CaseSource, settings: CaseSettings, opened: _Source, image: Volume[Any], notes: CaseLog
) -> tuple[VolumeFile | None, LabelArray | None, Grid | None]:
    """The label on the reoriented image's grid; the file it is, if it is a single volume; its grid as that has it."""
    named = _named_masks(source)
    if named:
        masks = _SeparateMasks(dict(named), settings, opened, image, notes)
        return None, merge_masks(masks, image.grid.shape, settings.rules, notes), None
    if source.label is None:
        return None, None, None
    if _is_dicom(source.label):
        from nnunet_godc.conversion.dicom.masks import mask_files, read_masks

        if mask_files(source.label):
            if opened.series is None:
                raise CaseError(
                    "the label is a DICOM object, but the image is not a DICOM series; give the series as the image"
                )
            label = merge_masks(
                read_masks(source.label, opened.series, notes), opened.grid.shape, settings.rules, notes
            )
            return None, Volume(label, opened.grid).reoriented(settings.orientation).voxels, None
    file = _open_label(source.label)
    if isinstance(file, ItkFile) and file.layers > 1:
        stored = merge_masks(_layers(file), file.shape, settings.rules, notes)
    else:
        stored = read_label(file, settings.rules, notes)
    placed, before = _aligned(file, stored, settings, opened, image, notes)
    return file, placed, before


def _aligned(
    file: VolumeFile, stored: LabelArray, settings: CaseSettings, opened: _Source, image: Volume[Any], notes: CaseLog
) -> tuple[LabelArray, Grid | None]:
    return align_label(
        file,
        stored,
        opened.grid,
        settings.label_grid,
        notes,
        orientation=settings.orientation,
        image=image.voxels,
        other_grids=opened.others,
        image_is_dicom=opened.series is not None,
    )


def _open_label(path: Path) -> VolumeFile:
    """A volume file, or masks that are stored as a DICOM series of plain images."""
    if not _is_dicom(path):
        return open_volume(path)
    from nnunet_godc.conversion.dicom.series import SeriesVolume, open_series

    return SeriesVolume(open_series(path, CaseLog(), any_modality=True))


def _named_masks(source: CaseSource) -> NamedMasks:
    """The masks of several labels: as given, or the volume files of a folder, named after them."""
    if source.label is None or not source.label.is_dir():
        return source.masks
    volumes = [path for path in visible_files(source.label) if ending_of(path) in VOLUME_ENDINGS]
    if volumes:
        from nnunet_godc.conversion.dicom.series import is_dicom

        if is_dicom(source.label):
            return source.masks
    return tuple((path.name[: -len(ending_of(path))], path) for path in volumes)


def _layers(file: ItkFile) -> dict[str, NDArray[np.bool_]]:
    """3D Slicer's segments by name, of which several may overlap."""
    layers = file.read_layers()
    masks: dict[str, NDArray[np.bool_]] = {}
    for segment in file.segments:
        if segment.layer >= len(layers):
            raise CaseError("the segmentation names a layer that it does not hold; save it again")
        mask = layers[segment.layer] == segment.value
        masks[segment.name] = masks[segment.name] | mask if segment.name in masks else mask
    return masks


class _SeparateMasks(Mapping[str, NDArray[np.bool_]]):
    """Masks in files of their own, on the reoriented image's grid, each read when it is asked for."""

    def __init__(
        self,
        paths: Mapping[str, Path],
        settings: CaseSettings,
        opened: _Source,
        image: Volume[Any],
        notes: CaseLog,
    ) -> None:
        self._paths, self._settings, self._opened, self._image, self._notes = paths, settings, opened, image, notes

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        path = self._paths[name]
        if _is_dicom(path) and self._opened.series is not None:
            from nnunet_godc.conversion.dicom.masks import mask_files, read_masks

            if mask_files(path):
                regions = read_masks(path, self._opened.series, self._notes)
                mask = np.logical_or.reduce([regions[region] for region in regions])
                return Volume(mask, self._opened.grid).reoriented(self._settings.orientation).voxels
        file = _open_label(path)
        notes = CaseLog()
        placed, _ = _aligned(file, read_mask(file), self._settings, self._opened, self._image, notes)
        for repair in notes.repairs:
            if repair not in self._notes.repairs:
                self._notes.repairs.append(repair)
        for warning in notes.warnings:
            self._notes.warn_once(f"{name}: {warning}")
        return np.asarray(placed != 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _straightened(
    image: Volume[Any], label: LabelArray | None, straightening: Straightening
) -> tuple[Volume[Any], LabelArray | None]:
    """Image and label from the stack of slices, reoriented, to the right-angled grid, in the same orientation."""
    as_stored, now = straightening.stack.orientation, image.grid.orientation
    voxels, grid = straightening.resampled(image.reoriented(as_stored).voxels, nearest=False)
    if label is not None:
        stack = Volume(label, image.grid).reoriented(as_stored).voxels
        label = Volume(straightening.resampled(stack, nearest=True)[0], grid).reoriented(now).voxels
    return Volume(voxels, grid).reoriented(now), label


def _put_image(
    path: Path, image: Volume[Any], source: _Source, settings: CaseSettings, hashes: Mapping[Path, str]
) -> tuple[bytes, dict[str, Any]]:
    """Link or write the image; its header, and what the record says of it."""
    header = nifti_header(image.grid, image.voxels.dtype)
    file = source.file
    if isinstance(file, NiftiFile) and _is_ready(file, source.grid, settings):
        return file.header_bytes, {
            "sha256": hashes[file.path],
            "written": link_or_copy(file.path, path, link=settings.link),
        }
    digest = _write(path, image.voxels, header, settings)
    return header, {"sha256": digest, "written": "encoded"}


def _put_label(
    path: Path,
    label: LabelArray,
    file: VolumeFile | None,
    image_header: bytes,
    settings: CaseSettings,
    hashes: Mapping[Path, str],
) -> dict[str, Any]:
    """Link or write the label with the very geometry of the image's header."""
    if (
        isinstance(file, NiftiFile)
        and file.dtype.kind in "iu"
        and _has_right_form(file, settings)
        and geometry_of_header(file.header_bytes) == geometry_of_header(image_header)
        and file.shape == label.shape
        and all(np.array_equal(slab, label[:, :, where]) for where, slab in file.slabs())
    ):
        # Never linked: whoever corrects a label in nnUNet_raw would change the source with it.
        return {"sha256": hashes[file.path], "written": link_or_copy(file.path, path)}
    # The shape is the same: only the type of the voxels differs from the image's header.
    shape_and_type = nifti_header(
        Grid(_shape(label), (1, 1, 1), (0, 0, 0), ((1, 0, 0), (0, 1, 0), (0, 0, 1))), label.dtype
    )
    header = with_geometry_of(shape_and_type, image_header)
    return {"sha256": _write(path, label, header, settings), "written": "encoded"}


def _is_ready(file: NiftiFile, grid: Grid, settings: CaseSettings) -> bool:
    """Whether an image can be taken as it is: every reader would see just what we would write."""
    expected = nifti_header(grid, file.dtype)
    sizes = file.header["pixdim"][1:4].astype(np.float64)
    return (
        grid.orientation == settings.orientation
        and _has_right_form(file, settings)
        and file.dtype.itemsize <= 4
        and np.allclose(sizes, grid.spacing, rtol=1e-4)
        and file.forms_agree(expected)
    )


def _has_right_form(file: NiftiFile, settings: CaseSettings) -> bool:
    return (
        len(file.header_bytes) == 348  # NIfTI-1
        and file.data == file.path
        and int(file.header["vox_offset"]) >= 352  # ITK takes a 0 by its word and reads the header as voxels
        and int(file.header["dim"][0]) == 3
        and file.dtype.byteorder in "<=|"
        and file.slope_and_intercept == (1.0, 0.0)
        and file.compressed == settings.file_ending.endswith(".gz")
        and not (settings.private and file.has_free_text())
    )


def _write(path: Path, voxels: NDArray[Any], header: bytes, settings: CaseSettings) -> str:
    compression = settings.compression if settings.file_ending.endswith(".gz") else None
    with replacing(path) as temporary:
        return write_nifti(temporary, voxels, header, compression=compression)


def link_or_copy(source: Path, path: Path, *, link: bool = False) -> str:
    """Link `source` to `path`, or copy it where that is not possible or not wanted; says which."""
    with replacing(path) as temporary:
        if link:
            with contextlib.suppress(OSError):
                os.link(source.resolve(), temporary)
                return "linked"
        shutil.copyfile(source, temporary)
        return "copied"


def _label_statistics(label: LabelArray, image: Volume[Any], rules: LabelMap, notes: CaseLog) -> dict[str, Any]:
    counts, sums = _counts_and_sums(label, image.voxels)
    counts[0] = label.size - counts.sum()
    if counts[0] == label.size:
        notes.warnings.append("the label is empty: no voxel has a value but 0")
    mean_hu = {name: round(sums[value] / counts[value], 2) for value, name in rules.names.items() if counts[value]}
    for name, mean in mean_hu.items():
        if not PLAUSIBLE_HU[0] <= mean <= PLAUSIBLE_HU[1]:
            notes.warnings.append(
                f"mean value under {name} is {mean:.0f}, which no tissue has: does the label fit the image, "
                "and is the image in Hounsfield units? Look at the preview"
            )
    names = {0: "background", **rules.names}
    return {
        "voxels": {name: int(counts[value]) for value, name in names.items()},
        "ml": {name: round(int(counts[value]) * image.grid.voxel_ml, 4) for value, name in rules.names.items()},
        "mean_hu": mean_hu,
    }


def _counts_and_sums(label: LabelArray, voxels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many voxels have each value but 0, and the sum of the image under them; shape (256,) each."""
    counts = np.zeros(256, dtype=np.int64)
    sums = np.zeros(256, dtype=np.float64)
    for k in range(label.shape[2]):
        if not label[:, :, k].max():
            continue  # most slices
        plane = label[:, :, k].ravel(order="F")
        labelled = np.flatnonzero(plane != 0)
        values = plane[labelled]
        counts += np.bincount(values, minlength=256)
        sums += np.bincount(values, weights=voxels[:, :, k].ravel(order="F")[labelled], minlength=256)
    return counts, sums


def _shape(array: NDArray[Any]) -> tuple[int, int, int]:
    i, j, k = array.shape
    return i, j, k


def _label_paths(source: CaseSource) -> tuple[Path, ...]:
    masks = [path for _, path in source.masks] if source.label is None else [source.label]
    return tuple(file for path in masks for file in _all_files(path))


def _all_files(path: Path) -> list[Path]:
    return visible_files(path) if path.is_dir() else files_of(path)


def _files_record(paths: tuple[Path, ...], hashes: Mapping[Path, str], root: Path | None) -> list[dict[str, str]]:
    """SHA-256 of every file, with its name relative to `root` where it may be told."""
    records = []
    for path in paths:
        record = {"sha256": hashes[path]}
        if root is not None:
            record["file"] = Path(os.path.relpath(path, root)).as_posix()
        records.append(record)
    return records
