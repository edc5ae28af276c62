"""NRRD and MetaImage, with 3D Slicer's .seg.nrrd: SimpleITK reads their headers.

ITK takes 1 mm for a spacing that is not there, compares neither all lengths nor all checksums, does not read compressed
MetaImages without CompressedDataSize, and does not tell which files a volume is made of. So the header, which is text,
is looked at as well, and the voxels are mapped or inflated here, in one pass with their checksum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK
from isal import isal_zlib
from numpy.typing import NDArray

from nnunet_godc.conversion.geometry import Grid, Triple, grid_from_axes, is_default_affine
from nnunet_godc.conversion.nifti import READ_ERRORS
from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError

HEADER_BYTES = 2**20  # far more than any header of these formats
READ_AT_ONCE = 2**16  # bytes, which may grow a thousandfold
DAMAGED_HEADER = "the header cannot be read: the file is damaged; download it again"
DAMAGED_VOXELS = "the file is damaged: it ends early or does not decompress; download it again"
Encoding = Literal["raw", "deflated", "text"]
_METAIMAGE_NUMBERS = {
    **dict.fromkeys(("ElementSpacing", "ElementSize", "DimSize", "Offset", "Origin", "Position"), 1),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2),
}
_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")


@dataclass(frozen=True)
class Segment:
    """One of 3D Slicer's segments: where `layer` holds `value`."""

    name: str
    layer: int
    value: int


@dataclass(frozen=True)
class ItkFile:
    """A volume whose header was read and found to fit the size of the file with its voxels.

    Attributes:
        path: the file with the header.
        data: the file with the voxels; the same, or another one.
        shape: voxels along i, j, k.
        layers: values of each voxel; more than one where segments overlap.
        dtype: of the voxels, in the file's byte order.
        encoding: how they are stored, from byte `offset` of `data` on.
        spacing, origin: mm; None where the header does not say.
        direction: cosines, shape (3, 3); None where the header does not say.
        segments: where the file names what its values mean (3D Slicer's .seg.nrrd).
    """

    path: Path
    data: Path
    shape: tuple[int, int, int]
    layers: int
    spacing: Triple | None
    origin: Triple | None
    direction: NDArray[np.float64] | None = field(repr=False)
    segments: tuple[Segment, ...]
    dtype: np.dtype[Any]
    encoding: Encoding
    offset: int

    def grid(self, notes: CaseLog, *, what: str, spacing: Triple | None = None, trust_header: bool = False) -> Grid:
        """Where the voxels lie; see `NiftiFile.grid`."""
        grid = grid_from_axes(
            self.shape,
            self.spacing or (1.0, 1.0, 1.0),
            self.origin or (0.0, 0.0, 0.0),
            np.eye(3) if self.direction is None else self.direction,
            notes,
            what=what,
        )
        known = self.spacing is not None and not is_default_affine(grid.affine)
        if not known and spacing is None and not trust_header:
            raise UnknownGeometryError(
                f"the {what}'s header is the identity at 1 x 1 x 1 mm or says nothing, so its voxel size is unknown"
            )
        if self.direction is None:
            notes.warnings.append(
                f"the {what}'s header has no orientation: taken as LPS, as ITK does; look at the preview"
            )
        return grid.with_given_spacing(spacing, notes, what=what)

    def other_grids(self, what: str) -> Sequence[Grid]:
        """None: these headers say where the voxels lie once."""
        return ()

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
        """All values, shape (layers, i, j, k); a read-only memory map where they are not compressed.

        Raises:
            CaseError: they end early, go on too long, or do not decompress.
        """
        if self.encoding == "text":
            try:
                image = _reader(self.path).Execute()
            except RuntimeError:
                raise CaseError(DAMAGED_VOXELS) from None  # ITK's text names the file
            stacked = SimpleITK.GetArrayFromImage(image).reshape((*reversed(self.shape), self.layers))
            return np.asarray(stacked.transpose(3, 2, 1, 0))
        shape = (self.layers, *self.shape)
        if self.encoding == "raw":
            return np.memmap(self.data, self.dtype, "r", self.offset, shape, order="F")
        voxels = np.empty(math.prod(shape), self.dtype)
        room = voxels.data.cast("B")
        try:
            for chunk in self._inflated():
                if len(chunk) > len(room):
                    raise EOFError
                room[: len(chunk)] = chunk
                room = room[len(chunk) :]
            if room:
                raise EOFError
        except READ_ERRORS:
            raise CaseError(DAMAGED_VOXELS) from None
        return voxels.reshape(shape, order="F")

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """All values as one slab; unlike NIfTI images, what these formats hold is not read in parts."""
        yield slice(0, self.shape[2]), self.read()

    def _inflated(self) -> Iterator[bytes]:
        """zlib's format or gzip's, of one member or several; the checksum at its end is compared."""
        with self.data.open("rb") as file:
            file.seek(self.offset)
            inflater = None
            while block := file.read(READ_AT_ONCE):
                while block:
                    inflater = inflater or isal_zlib.decompressobj(wbits=47)
                    yield inflater.decompress(block)
                    block = inflater.unused_data
                    if inflater.eof:
                        inflater = None
            if inflater is not None:
                raise EOFError


def open_itk(path: Path) -> ItkFile:
    """Read the header of a .nrrd, .nhdr, .mha or .mhd file.

    Raises:
        CaseError: it is missing, damaged, or not a 3D volume of numbers.
    """
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    fields, keys, end = _header(path, is_nrrd=is_nrrd)
    data, encoding = (_nrrd_data if is_nrrd else _metaimage_data)(path, fields)
    if not data.exists():
        raise CaseError("the file with the voxels, which the header names, is not there; download it again")
    _check_numbers(fields)
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise CaseError(DAMAGED_HEADER) from None  # ITK's text names the file
    shape = list(reader.GetSize())
    layers = reader.GetNumberOfComponents()
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3 or min(shape) < 1:
        raise CaseError(f"the file holds an array of shape {tuple(shape)}; one 3D volume is needed")
    segments = _segments(keys)
    if layers > 1 and not segments:
        raise CaseError(
            f"the file holds an array of shape {tuple(shape)} of {layers} components; one 3D volume is needed"
        )
    dtype = SimpleITK.GetArrayFromImage(SimpleITK.Image([1, 1, 1], reader.GetPixelID(), layers)).dtype
    if dtype.kind not in "iuf":
        raise CaseError("the file's voxels are complex numbers; a CT volume of plain numbers is needed")
    big = fields.get("endian", fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", ""))).lower()
    if is_nrrd and dtype.itemsize > 1 and big not in ("big", "little") and encoding != "text":
        raise CaseError(DAMAGED_HEADER)
    offset = end if data == path else 0
    if encoding != "text":
        _check_size(data, offset, math.prod(shape) * layers * dtype.itemsize, compressed=encoding == "deflated")
    says_spacing = {"spacings", "spacedirections", "ElementSpacing", "ElementSize"} & fields.keys()
    has_direction = {"space", "TransformMatrix", "Rotation", "Orientation"} & fields.keys()
    cosines = np.array(reader.GetDirection())
    dimensions = round(math.sqrt(len(cosines)))
    direction = cosines.reshape(dimensions, dimensions)[:3, :3]
    spacing, origin = reader.GetSpacing()[:3], reader.GetOrigin()[:3]
    return ItkFile(
        path,
        data,
        (shape[0], shape[1], shape[2]),
        layers,
        (spacing[0], spacing[1], spacing[2]) if says_spacing else None,
        (origin[0], origin[1], origin[2]),
        direction if has_direction else None,
        segments,
        dtype.newbyteorder(">" if big in ("big", "true", "1") else "<"),
        encoding,
        offset,
    )


def _reader(path: Path) -> SimpleITK.ImageFileReader:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    return reader


def _header(path: Path, *, is_nrrd: bool) -> tuple[dict[str, str], dict[str, str], int]:
    """The format's fields, the keys that programs add, and where the header ends."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise CaseError("the file cannot be read: it is missing or not permitted") from error
    mark = re.search(rb"\r?\n\r?\n" if is_nrrd else rb"\n\s*ElementDataFile\s*=[^\n]*\n?", start)
    end = mark.end() if mark else len(start)
    if is_nrrd and not start.startswith(b"NRRD000"):
        raise CaseError("the file is empty, damaged or not an NRRD file; download it again")
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in start[:end].decode("utf-8", errors="replace").splitlines()[int(is_nrrd) :]:
        if is_nrrd and (key := re.fullmatch(r"([^:#]*):=(.*)", line)):
            keys[key[1]] = key[2]
        elif not line.startswith("#"):
            name, _, value = line.partition(":" if is_nrrd else "=")
            fields[name.replace(" ", "").lower() if is_nrrd else name.strip()] = value.strip()
    if not is_nrrd and "ElementDataFile" not in fields:
        raise CaseError(DAMAGED_HEADER)
    return fields, keys, end


def _nrrd_data(path: Path, fields: Mapping[str, str]) -> tuple[Path, Encoding]:
    """The file with the voxels, and how they are stored."""
    if fields.get("lineskip", "0") != "0" or fields.get("byteskip", "0") != "0":
        raise CaseError("the header says to skip bytes before the voxels; save the file again as a plain NRRD")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gz", "gzip", "ascii", "text", "txt", "hex"):
        raise CaseError("the voxels are in an encoding that is not read; save the file again as raw or gzip")
    if fields.get("space", "lps").lower() not in _SPACES:
        raise CaseError("the header's directions are not in the patient's space; save the file again as LPS")
    if "spacedirections" in fields and "space" not in fields:
        raise CaseError("the header does not say in which space its directions are; save the file again as LPS")
    if "space" in fields and not {"spacedirections", "spaceorigin"} <= fields.keys():
        raise CaseError(DAMAGED_HEADER)
    data = _data_file(path, fields["datafile"]) if "datafile" in fields else path
    return data, "deflated" if encoding in ("gz", "gzip") else "raw" if encoding == "raw" else "text"


def _metaimage_data(path: Path, fields: Mapping[str, str]) -> tuple[Path, Encoding]:
    """The file with the voxels, and how they are stored."""
    if fields.get("HeaderSize", "0") != "0":
        raise CaseError("the header says to skip bytes before the voxels; save the file again as a plain MetaImage")
    if fields.get("ObjectType", "Image") != "Image":
        raise CaseError(DAMAGED_HEADER)
    compressed = fields.get("CompressedData", "False").lower()
    binary = fields.get("BinaryData", "True").lower()
    if not {compressed, binary} <= {"true", "false", "1", "0"}:
        raise CaseError(DAMAGED_HEADER)
    name = fields["ElementDataFile"]
    data = path if name.lower() == "local" else _data_file(path, name)
    return data, "text" if binary in ("false", "0") else "deflated" if compressed in ("true", "1") else "raw"


def _check_numbers(fields: Mapping[str, str]) -> None:
    """Raises CaseError for a position, direction or size that ITK would put numbers of its own in the place of."""
    vectors = [text.split(",") for text in re.findall(r"\(([^()]*)\)", fields.get("spacedirections", ""))]
    if "spacedirections" in fields:
        vectors.append(fields.get("spaceorigin", "").strip("() ").split(","))
        if len(vectors) != 4:
            raise CaseError(DAMAGED_HEADER)
    dimensions = int(fields["NDims"]) if fields.get("NDims", "").isdecimal() else 3
    for name, count in _METAIMAGE_NUMBERS.items():
        if name in fields:
            numbers = fields[name].split()
            if len(numbers) != dimensions**count:
                raise CaseError(DAMAGED_HEADER)
            vectors += [numbers[n : n + dimensions] for n in range(0, len(numbers), dimensions)]
    for n, vector in enumerate(vectors):
        try:
            values = [float(number) for number in vector]
        except ValueError:
            raise CaseError(DAMAGED_HEADER) from None
        is_direction = "spacedirections" in fields and n < 3
        if not all(map(math.isfinite, values)) or (is_direction and not (len(values) == 3 and any(values))):
            raise CaseError(DAMAGED_HEADER)


def _data_file(header: Path, name: str) -> Path:
    """The file that a header names for its voxels. Raises CaseError: it lies elsewhere, or in several."""
    if re.search(r"%|\s\d+\s|^LIST\b", name):
        raise CaseError("the header names several files for its voxels; save the volume with all voxels in one file")
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise CaseError("the header names a file for its voxels that lies elsewhere; put both into one folder")
    return header.parent / path


def _check_size(data: Path, offset: int, needed: int, *, compressed: bool) -> None:
    present = data.stat().st_size - offset
    # DEFLATE shrinks a run of zeros to a thousandth: no volume has to be made room for that cannot be there.
    if needed > present * (1032 if compressed else 1):
        raise CaseError("the file is damaged: its header asks for more voxels than it can hold; download it again")
    if needed < present and not compressed:
        raise CaseError("the file is damaged: it holds more voxels than its header asks for; download it again")


def _segments(keys: Mapping[str, str]) -> tuple[Segment, ...]:
    """3D Slicer's names of the values."""
    found = []
    for key, value in keys.items():
        if (match := re.fullmatch(r"Segment(\d+)_LabelValue", key)) and re.fullmatch(r"\d{1,9}", value):
            name = keys.get(f"Segment{match[1]}_Name")
            layer = keys.get(f"Segment{match[1]}_Layer", "0")
            if name is not None and layer.isdigit():
                found.append(Segment(name, int(layer), int(value)))
    return tuple(found)
