"""NRRD and MetaImage: a header in text, and after it or in another file the voxels, as they are or deflated.

ITK reads both, but not so that it can be relied on where a file is damaged: it takes 1 mm for a spacing whose line is
broken, compares neither lengths nor all checksums, and prints names of files past its own exceptions. It also does not
tell which files a volume is made of, without which a changed one would go unnoticed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from nnunet_godc.conversion.grid import IDENTITY, Grid, Matrix, Triple, grid_from_axes, is_unfilled
from nnunet_godc.conversion.nifti import MOST_COMPRESSED, READ_ERRORS
from nnunet_godc.conversion.problems import CaseError, Notes, UnknownGeometryError

HEADER_BYTES = 2**20  # far more than any header of these formats
READ_AT_ONCE = 2**16  # bytes, which may grow a thousandfold
LARGEST = 1e9  # mm, far beyond any scanner: no sum or product of such numbers overflows
DAMAGED_HEADER = "the header cannot be read: the file is damaged; fetch it again"
DAMAGED_VOXELS = "the file is damaged: it ends early or does not decompress; fetch it again"

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True)
class Geometry:
    """What a header says of the place of its voxels, LPS; see `Grid`. What it does not say is None."""

    spacing: Triple | None = None
    origin: Triple | None = None
    direction: Matrix | None = None


@dataclass(frozen=True)
class TextHeaderFile:
    """A volume whose header was read and found to fit the size of the file with its voxels.

    Attributes:
        path: the file with the header.
        data: the file with the voxels; the same, or another one.
        shape: voxels along i, j, k.
        dtype: of the voxels, in the file's byte order.
        offset: bytes before the voxels.
        compressed: whether they are deflated.
        geometry: where they lie.
        segments: value to name, where the file says so (3D Slicer's .seg.nrrd).
    """

    path: Path
    data: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    compressed: bool
    geometry: Geometry
    segments: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises CaseError where the file cannot hold these voxels."""
        try:
            present = self.data.stat().st_size - self.offset
        except OSError as error:
            raise CaseError("the file with the voxels, which the header names, is not there; fetch it again") from error
        needed = math.prod(self.shape) * self.dtype.itemsize
        if needed > present * (MOST_COMPRESSED if self.compressed else 1):
            raise CaseError("the file is damaged: its header asks for more voxels than it can hold; fetch it again")
        if not self.compressed and needed < present:
            raise CaseError("the file is damaged: it holds more voxels than its header asks for; fetch it again")

    def grid(self, notes: Notes, *, what: str, spacing: Triple | None = None, trust_header: bool = False) -> Grid:
        """Where the voxels lie; see `NiftiFile.grid`."""
        told = self.geometry
        grid = grid_from_axes(
            self.shape,
            told.spacing or (1.0, 1.0, 1.0),
            told.origin or (0.0, 0.0, 0.0),
            np.array(told.direction or IDENTITY),
            notes,
            what=what,
        )
        known = told.spacing is not None and not is_unfilled(grid.affine)
        if not known and spacing is None and not trust_header:
            raise UnknownGeometryError(
                f"the {what}'s header is the identity at 1 x 1 x 1 mm or says nothing, so its voxel size is unknown"
            )
        if told.direction is None:
            notes.warnings.append(
                f"the {what}'s header has no orientation: taken as LPS, as ITK does; look at the preview"
            )
        return grid.with_given_spacing(spacing, notes, what=what)

    def read(self) -> NDArray[Any]:
        """The values, (i, j, k); a read-only memory map where they are not compressed.

        Raises:
            CaseError: they end early, go on too long, or do not decompress.
        """
        if not self.compressed:
            return np.memmap(self.data, self.dtype, "r", self.offset, self.shape, order="F")
        voxels = np.empty(math.prod(self.shape), self.dtype)
        room = voxels.data.cast("B")
        try:
            for chunk in self._inflated():
                if len(chunk) > len(room):
                    raise CaseError(DAMAGED_VOXELS)
                room[: len(chunk)] = chunk
                room = room[len(chunk) :]
        except READ_ERRORS as error:
            raise CaseError(DAMAGED_VOXELS) from error
        if room:
            raise CaseError(DAMAGED_VOXELS)
        return voxels.reshape(self.shape, order="F")

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


def read_start(path: Path) -> bytes:
    """The first bytes of a file, in which its header ends.

    Raises:
        CaseError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEADER_BYTES)
    except OSError as error:
        raise CaseError("the file cannot be read: it is missing or not permitted") from error


def data_file(header: Path, name: str) -> Path:
    """The file that a header names for its voxels.

    Raises:
        CaseError: it lies in another folder, or there are several.
    """
    if re.search(r"%|\s\d+\s|^LIST\b", name):
        raise CaseError("the header names several files for its voxels; save the volume with all voxels in one file")
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise CaseError("the header names a file for its voxels that lies elsewhere; put both into one folder")
    return header.parent / path


def whole_numbers(text: str) -> list[int]:
    """Numbers separated by blanks. Raises CaseError for anything else."""
    fields = text.split()
    if not all(map(_WHOLE.fullmatch, fields)):
        raise CaseError(DAMAGED_HEADER)
    return [int(entry) for entry in fields]


def numbers(text: str, count: int) -> list[float]:
    """`count` numbers of a possible size in mm, separated by blanks. Raises CaseError for anything else."""
    fields = text.split()
    if len(fields) != count or not all(map(_NUMBER.fullmatch, fields)):
        raise CaseError(DAMAGED_HEADER)
    values = [float(entry) for entry in fields]
    if max(map(abs, values)) > LARGEST:
        raise CaseError(DAMAGED_HEADER)
    return values


def triple(text: str) -> Triple:
    """Three of `numbers`."""
    x, y, z = numbers(text, 3)
    return x, y, z


def three_dimensions(sizes: list[int], components: int = 1) -> tuple[int, int, int]:
    """`sizes`, if they are those of one 3D volume. Raises CaseError if not."""
    if len(sizes) != 3 or components != 1:
        several = f" of {components} components" if components != 1 else ""
        raise CaseError(
            f"the file holds an array of shape {tuple(sizes)}{several}; one 3D volume is needed "
            "(3D Slicer: export overlapping segments as separate files, or as one labelmap)"
        )
    if min(sizes) < 1:
        raise CaseError(DAMAGED_HEADER)
    return sizes[0], sizes[1], sizes[2]
