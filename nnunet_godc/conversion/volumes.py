"""Opening a volume in whatever format it comes; NRRD and MetaImage, with 3D Slicer's .seg.nrrd, by SimpleITK.

ITK takes 1 mm for a spacing that is not there, compares neither all lengths nor all checksums, reads compressed
MetaImages without CompressedDataSize wrongly, and does not tell which files a volume is made of. So the header, which
is text, is looked at as well, and lengths and checksums are compared here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK
from isal import isal_zlib
from numpy.typing import NDArray

from nnunet_godc.conversion.files import ARCHIVE_ENDINGS, ITK_ENDINGS, PAIR_ENDINGS, ending_of
from nnunet_godc.conversion.geometry import Grid, Triple, grid_from_affine, is_default_affine
from nnunet_godc.conversion.nifti import (
    DAMAGED_VOXELS,
    MOST_COMPRESSED,
    READ_ERRORS,
    TOO_FEW_VOXELS,
    TOO_MANY_VOXELS,
    open_nifti,
    paired_file,
)
from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError

HEADER_BYTES = 2**20  # far more than any header of these formats
READ_AT_ONCE = 2**16  # bytes, which may grow a thousandfold
DAMAGED_HEADER = "the header cannot be read: the file is damaged; download it again"
_PATIENT_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")
_SPACINGS = {"spacings", "spacedirections", "elementspacing", "elementsize"}
_DIRECTIONS = {"space", "transformmatrix", "rotation", "orientation"}


class VolumeFile(Protocol):
    """A file with one 3D volume, its header read, its voxels not."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def read_grids(
        self, log: CaseLog, *, what: str, spacing: Triple | None = None, trust_header: bool = False
    ) -> list[Grid]:
        """Where the voxels lie, and where else by other entries of the header; see `NiftiFile.read_grids`."""

    def read(self) -> NDArray[Any]:
        """The values, shape (i, j, k), exactly."""

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The values some slices at a time."""


@dataclass(frozen=True)
class Segment:
    """One of 3D Slicer's segments: where `layer` holds `value`."""

    name: str
    layer: int
    value: int


@dataclass(frozen=True)
class ItkFile:
    """A NRRD or MetaImage whose header was read and found to fit the size of the file with its voxels.

    Attributes:
        path: the file with the header.
        data: the file with the voxels, from byte `offset` on; the same, or another one.
        shape: voxels along i, j, k.
        layers: values of each voxel; more than one where segments overlap.
        affine: LPS, mm, shape (4, 4).
        says_spacing, says_direction: whether the header does; else ITK's defaults stand in `affine`.
        segments: where the file names what its values mean (3D Slicer's .seg.nrrd).
    """

    path: Path
    data: Path
    offset: int
    compressed: bool
    shape: tuple[int, int, int]
    layers: int
    affine: NDArray[np.float64] = field(repr=False)
    says_spacing: bool
    says_direction: bool
    segments: tuple[Segment, ...]

    def read_grids(
        self, log: CaseLog, *, what: str, spacing: Triple | None = None, trust_header: bool = False
    ) -> list[Grid]:
        """Where the voxels lie; see `NiftiFile.read_grids`."""
        grid = grid_from_affine(self.shape, self.affine, log, what=what)
        known = self.says_spacing and not is_default_affine(grid.affine)
        if not known and spacing is None and not trust_header:
            raise UnknownGeometryError(
                f"the {what}'s header is the identity at 1 x 1 x 1 mm or says nothing, so its voxel size is unknown"
            )
        if not self.says_direction:
            log.warnings.append(
                f"the {what}'s header has no orientation: taken as LPS, as ITK does; look at the preview"
            )
        return [grid.with_spacing(spacing, log, what=what)]

    def read(self) -> NDArray[Any]:
        """The values, (i, j, k).

        Raises:
            CaseError: they end early, go on too long, do not decompress, or there are several for each voxel.
        """
        if self.layers != 1:
            raise CaseError(
                f"the file holds {self.layers} values for each voxel without saying what they are; save one volume, "
                "or a segmentation of 3D Slicer with its names"
            )
        return np.asarray(self.read_layers()[0])

    def read_layers(self) -> NDArray[Any]:
        """All values, shape (layers, i, j, k).

        Raises:
            CaseError: they end early, go on too long, or do not decompress.
        """
        try:
            image = _reader(self.path).Execute()
        except RuntimeError:
            raise CaseError(DAMAGED_VOXELS) from None  # ITK's text names the file
        voxels = SimpleITK.GetArrayFromImage(image)
        if self.compressed:
            self._check_compressed(voxels.nbytes)
        return np.asarray(voxels.reshape((*reversed(self.shape), self.layers)).transpose(3, 2, 1, 0))

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """All values as one slab; unlike NIfTI images, what these formats hold is not read in parts."""
        yield slice(0, self.shape[2]), self.read()

    def _check_compressed(self, needed: int) -> None:
        """Raises CaseError unless zlib's or gzip's stream holds `needed` bytes and ends with their checksum."""
        inflater = None
        try:
            with self.data.open("rb") as file:
                file.seek(self.offset)
                while block := file.read(READ_AT_ONCE):
                    while block:  # a stream may have several members
                        inflater = inflater or isal_zlib.decompressobj(wbits=47)
                        needed -= len(inflater.decompress(block))
                        if needed < 0:
                            raise EOFError
                        block = inflater.unused_data
                        if inflater.eof:
                            inflater = None
        except READ_ERRORS:
            raise CaseError(DAMAGED_VOXELS) from None
        if inflater is not None or needed:
            raise CaseError(DAMAGED_VOXELS)


def open_volume(path: Path) -> VolumeFile:
    """Read a volume's header.

    Raises:
        CaseError: the file is missing, damaged, of another format, or no single 3D volume of numbers.
    """
    ending = ending_of(path)
    if ending in ARCHIVE_ENDINGS:
        raise CaseError("the file is an archive; unpack it first")
    return open_itk(path) if ending in ITK_ENDINGS else open_nifti(path)


def files_of(path: Path) -> list[Path]:
    """The files that a volume is made of: `path`, and another one with its voxels where its header names that.

    Raises:
        CaseError: as `open_volume`, for formats that may name another file.
    """
    ending = ending_of(path)
    if ending in PAIR_ENDINGS:
        data = paired_file(path)
        if not data.exists():
            raise CaseError("the .img file with the header's voxels is not there; put both into one folder", file=path)
    elif ending in (".nhdr", ".mhd"):
        data = open_itk(path).data
    else:
        return [path]
    return [path] if data == path else [path, data]


def open_itk(path: Path) -> ItkFile:
    """Read the header of a .nrrd, .nhdr, .mha or .mhd file.

    Raises:
        CaseError: it is missing, damaged, or not a 3D volume of numbers.
    """
    fields, end = _header(path)
    _check_fields(fields)
    name = fields.get("datafile", fields.get("elementdatafile", "local"))
    data = path if name.lower() == "local" else _data_file(path, name)
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise CaseError(DAMAGED_HEADER) from None  # ITK's text names the file
    shape, layers = list(reader.GetSize()), reader.GetNumberOfComponents()
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    segments = _segments(reader)
    if len(shape) != 3 or min(shape) < 1 or (layers > 1 and not segments):
        of = f" of {layers} components" if layers > 1 else ""
        raise CaseError(f"the file holds an array of shape {tuple(shape)}{of}; one 3D volume is needed")
    dtype = SimpleITK.GetArrayFromImage(SimpleITK.Image([1, 1, 1], reader.GetPixelID(), layers)).dtype
    if dtype.kind not in "iuf":
        raise CaseError("the file's voxels are complex numbers; a CT volume of plain numbers is needed")
    offset = end if data == path else 0
    compressed = fields.get("encoding", "").startswith("gz") or _is_compressed_meta_image(fields)
    needed, present = math.prod(shape) * layers * dtype.itemsize, data.stat().st_size - offset
    if needed > present * (MOST_COMPRESSED if compressed else 1):
        raise CaseError(TOO_FEW_VOXELS)
    if needed < present and not compressed:
        raise CaseError(TOO_MANY_VOXELS)
    dimensions = len(reader.GetSize())
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:3, :3] * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    return ItkFile(
        *(path, data, offset, compressed, (shape[0], shape[1], shape[2]), layers, affine),
        says_spacing=bool(_SPACINGS & fields.keys()),
        says_direction=bool(_DIRECTIONS & fields.keys()),
        segments=segments,
    )


def _reader(path: Path) -> SimpleITK.ImageFileReader:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if ending_of(path) in (".nrrd", ".nhdr") else "MetaImageIO")
    return reader


def _header(path: Path) -> tuple[dict[str, str], int]:
    """The format's fields, their names in small letters without blanks, and where the header ends."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise CaseError("the file cannot be read: it is missing or not permitted") from error
    is_nrrd = ending_of(path) in (".nrrd", ".nhdr")
    if is_nrrd and not start.startswith(b"NRRD000"):
        raise CaseError("the file is empty, damaged or not an NRRD file; download it again")
    mark = re.search(rb"\r?\n\r?\n" if is_nrrd else rb"\n\s*ElementDataFile\s*=[^\n]*\n?", start)
    if mark is None and not is_nrrd:
        raise CaseError(DAMAGED_HEADER)
    end = mark.end() if mark else len(start)
    fields = {}
    for line in start[:end].decode("utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":" if is_nrrd else "=")
        fields[name.replace(" ", "").lower()] = value.strip()
    return fields, end


def _is_compressed_meta_image(fields: dict[str, str]) -> bool:
    return fields.get("compresseddata", "")[:1] in ("T", "t", "1")  # as ITK has it


def _check_fields(fields: dict[str, str]) -> None:
    """Raises CaseError for what ITK does not read as it is meant."""
    if {fields.get(name, "0") for name in ("lineskip", "byteskip", "headersize")} != {"0"}:
        raise CaseError("the header says to skip bytes before the voxels; save the file again in a plain form")
    is_text = fields.get("binarydata", "true").lower() in ("false", "0")
    if is_text or fields.get("encoding", "raw").lower() not in ("raw", "gz", "gzip"):
        raise CaseError("the voxels are in an encoding that is not read; save the file again as raw or gzip")
    if _is_compressed_meta_image(fields) and "compresseddatasize" not in fields:
        raise CaseError("the header does not say how long the compressed voxels are; save the file again")
    if fields.get("space", "lps").lower() not in _PATIENT_SPACES:
        raise CaseError("the header's directions are not in the patient's space; save the file again as LPS")
    if "spacedirections" in fields and "space" not in fields:
        raise CaseError("the header does not say in which space its directions are; save the file again as LPS")
    if "space" in fields and not {"spacedirections", "spaceorigin"} <= fields.keys():
        raise CaseError(DAMAGED_HEADER)


def _data_file(header: Path, name: str) -> Path:
    """The file that a header names for its voxels. Raises CaseError: it lies elsewhere, or in several."""
    if re.search(r"%|\s\d+\s|^LIST\b", name):
        raise CaseError("the header names several files for its voxels; save the volume with all voxels in one file")
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise CaseError("the header names a file for its voxels that lies elsewhere; put both into one folder")
    if not (header.parent / path).exists():
        raise CaseError("the file with the voxels, which the header names, is not there; download it again")
    return header.parent / path


def _segments(reader: SimpleITK.ImageFileReader) -> tuple[Segment, ...]:
    """3D Slicer's names of the values."""
    keys = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    numbers = sorted(int(match[1]) for key in keys if (match := re.fullmatch(r"Segment(\d+)_LabelValue", key)))
    found = []
    for n in numbers:
        name, value, layer = (keys.get(f"Segment{n}_{what}", "0") for what in ("Name", "LabelValue", "Layer"))
        if f"Segment{n}_Name" in keys and value.isdecimal() and layer.isdecimal():
            found.append(Segment(name, int(layer), int(value)))
    return tuple(found)
