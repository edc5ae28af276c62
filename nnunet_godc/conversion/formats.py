"""Opening a volume in whatever format it comes: NIfTI by our own reader, NRRD and MetaImage by SimpleITK."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK
from isal import igzip
from numpy.typing import NDArray

from nnunet_godc.conversion.grid import Grid, Triple, grid_from_axes
from nnunet_godc.conversion.nifti import MOST_COMPRESSED, READ_ERRORS, is_unfilled_grid, open_nifti
from nnunet_godc.conversion.problems import CaseError, Notes, UnknownGeometryError

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
VOLUME_ENDINGS = (*NIFTI_ENDINGS, *ITK_READERS)
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
HEADER_BYTES = 2**20  # far more than any header of these formats


class VolumeFile(Protocol):
    """A file with one 3D volume, its header read, its voxels not."""

    @property
    def path(self) -> Path: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def grid(self, notes: Notes, *, what: str, spacing: Triple | None = None, trust_header: bool = False) -> Grid:
        """Where the voxels lie; see `NiftiFile.grid`."""

    def read(self) -> NDArray[Any]:
        """The values, shape (i, j, k), exactly."""

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The values some slices at a time."""


def ending_of(path: Path) -> str:
    """The file's ending as one of `VOLUME_ENDINGS` or `ARCHIVE_ENDINGS`; else an empty string. Case does not matter."""
    name = path.name.lower()
    return next((ending for ending in (*VOLUME_ENDINGS, *ARCHIVE_ENDINGS) if name.endswith(ending)), "")


def stem_of(path: Path) -> str:
    """The file's name without that ending."""
    return path.name[: len(path.name) - len(ending_of(path))]


def open_volume(path: Path) -> VolumeFile:
    """Read a volume's header.

    Raises:
        CaseError: the file is missing, damaged, of another format, or no single 3D volume of numbers.
    """
    ending = ending_of(path)
    if ending in ITK_READERS:
        return _open_itk(path, ITK_READERS[ending])
    if ending in ARCHIVE_ENDINGS:
        raise CaseError("the file is an archive; unpack it first")
    return open_nifti(path)


@dataclass(frozen=True)
class ItkFile:
    """A volume that SimpleITK reads.

    Attributes:
        path: the file with the header.
        shape: voxels along i, j, k.
        segments: value to name, where the file says so (3D Slicer's .seg.nrrd).
    """

    path: Path
    shape: tuple[int, int, int]
    segments: dict[int, str] = field(default_factory=dict)
    _io: str = ""
    _spacing: Triple = (1.0, 1.0, 1.0)
    _origin: Triple = (0.0, 0.0, 0.0)
    _direction: tuple[float, ...] = ()

    def grid(self, notes: Notes, *, what: str, spacing: Triple | None = None, trust_header: bool = False) -> Grid:
        """Where the voxels lie; see `NiftiFile.grid`."""
        direction = np.array(self._direction).reshape(3, 3)
        grid = grid_from_axes(self.shape, self._spacing, self._origin, direction, notes, what=what)
        known = not is_unfilled_grid(grid)
        if not known and spacing is None and not trust_header:
            raise UnknownGeometryError(
                f"the {what}'s header is the identity at 1 x 1 x 1 mm or says nothing, so its voxel size is unknown"
            )
        if spacing is not None and not np.allclose(grid.spacing, spacing, rtol=1e-4):
            notes.repairs.append(f"spacing of the {what} set from {grid.spacing} to {spacing} mm, as given")
            grid = grid.with_spacing(spacing)
        return grid

    def read(self) -> NDArray[Any]:
        """The values, (i, j, k), in the file's type."""
        image = _execute(_reader(self.path, self._io))
        voxels = np.array(SimpleITK.GetArrayViewFromImage(image)).transpose(2, 1, 0)
        if voxels.shape != self.shape:
            raise CaseError("the file changed while it was read, or its header is damaged")
        return voxels

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The values as a whole: SimpleITK does not read these formats in parts."""
        yield slice(0, self.shape[2]), self.read()


def _open_itk(path: Path, io: str) -> ItkFile:
    _check_file(path)
    reader = _reader(path, io)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise CaseError("the header cannot be read: the file is damaged; fetch it again") from error
    size = [int(n) for n in reader.GetSize()]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) != 3 or min(size) < 1 or reader.GetNumberOfComponents() != 1:
        several = f" of {reader.GetNumberOfComponents()} components" if reader.GetNumberOfComponents() != 1 else ""
        raise CaseError(
            f"the file holds an array of shape {tuple(size)}{several}; one 3D volume is needed "
            "(3D Slicer: export overlapping segments as separate files, or as one labelmap)"
        )
    if reader.GetDimension() != 3:
        raise CaseError(f"the file holds an array of {reader.GetDimension()} dimensions; save it as one 3D volume")
    pixel = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in pixel or "vector" in pixel:
        raise CaseError(f"the file's voxels are {pixel}; a CT volume of plain numbers is needed")
    if math.prod(size) > MOST_COMPRESSED * _bytes_at_hand(path):
        raise CaseError("the file is damaged: its header asks for more voxels than it can hold; fetch it again")
    return ItkFile(
        path,
        (size[0], size[1], size[2]),
        _segments(reader),
        io,
        _floats(reader.GetSpacing()),
        _floats(reader.GetOrigin()),
        tuple(reader.GetDirection()),
    )


def _reader(path: Path, io: str) -> SimpleITK.ImageFileReader:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings name paths
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(io)  # or ITK would believe the content of a file named otherwise
    return reader


def _execute(reader: SimpleITK.ImageFileReader) -> SimpleITK.Image:
    try:
        image: SimpleITK.Image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise CaseError("the file is damaged: it ends early or does not decompress; fetch it again") from error
    return image


def _floats(values: tuple[float, ...]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _segments(reader: SimpleITK.ImageFileReader) -> dict[int, str]:
    named = {}
    for key in reader.GetMetaDataKeys():
        if match := re.fullmatch(r"Segment(\d+)_LabelValue", key):
            value = reader.GetMetaData(key)
            name_key = f"Segment{match[1]}_Name"
            if value.lstrip("-").isdigit() and reader.HasMetaDataKey(name_key):
                named[int(value)] = reader.GetMetaData(name_key)
    return named


def _bytes_at_hand(path: Path) -> int:
    """Size of the file, or of its folder's files where the voxels may lie in another one."""
    if path.suffix.lower() in (".mhd", ".nhdr"):
        return sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    return path.stat().st_size


def _check_file(path: Path) -> None:
    """What ITK does not look at: a compressed NRRD's checksum and length, a MetaImage's length."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise CaseError("the file cannot be read: it is missing or not permitted") from error
    header, blank, _ = start.partition(b"\n\n")
    if path.suffix.lower() == ".nrrd" and blank and re.search(rb"^encoding: gz", header, re.MULTILINE):
        _check_gzip(path, offset=len(header) + len(blank))


def _check_gzip(path: Path, offset: int) -> None:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            with igzip.IGzipFile(fileobj=file) as stream:
                while stream.read(HEADER_BYTES):
                    pass
    except READ_ERRORS as error:
        raise CaseError("the file is damaged: it ends early or does not decompress; fetch it again") from error
