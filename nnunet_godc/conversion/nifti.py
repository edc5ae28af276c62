"""NIfTI-1 and NIfTI-2 files: what a header says, reading voxels in slabs, writing so that all readers agree.

nibabel's header classes do the parsing, but `nibabel.load` does not do the reading: it decompresses with zlib, several
times slower than ISA-L, turns a scaled volume into float64 all at once, and does not look at a gzip file's checksum.
"""

from __future__ import annotations

import hashlib
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from isal import igzip, igzip_lib, isal_zlib
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from nnunet_godc.conversion.geometry import Grid, Triple, grid_from_affine, is_default_affine
from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError

# What DEFLATE can shrink at most (a run of zeros): a header that claims more than this is broken.
MOST_COMPRESSED = 1032
SLAB_BYTES = 8 * 2**20  # large enough for full speed, small beside any volume
PADDING = 15  # bytes that may follow the voxels: some programs fill up to a multiple of 16
COMPRESSION_LEVELS = range(4)  # of ISA-L
DEFAULT_COMPRESSION = 1

# Bytes of a NIfTI-1 header that say where the voxels lie: pixdim, then from qform_code to srow_z.
_GEOMETRY_BYTES = (slice(76, 108), slice(252, 328))
PLAUSIBLE_MM = (0.01, 50.0)  # along an axis of a voxel, from micro-CT to coarse PET
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, metre, millimetre, micrometre
# What reading a damaged file raises; ISA-L's bindings type their exception wrongly.
_ISAL_ERROR: Any = igzip_lib.IsalError
READ_ERRORS: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, _ISAL_ERROR)
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class NiftiFile:
    """A file whose header was read and found to fit its size.

    Attributes:
        path: the file with the header; what is compressed is told by its first bytes, not by its name.
        data: the file with the voxels: the same one, or the .img of a pair.
        header: nibabel's, NIfTI-1 or NIfTI-2.
        header_bytes: the header as it stands in the file.
        shape: voxels along i, j, k.
        dtype: of the stored voxels, in the file's byte order.
        compressed: whether the file is gzip's.
    """

    path: Path
    data: Path
    header: Any
    header_bytes: bytes
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    compressed: bool

    @property
    def slope_and_intercept(self) -> tuple[float, float]:
        """Value = slope * stored + intercept; (1, 0) where the header has none."""
        slope, intercept = float(self.header["scl_slope"]), float(self.header["scl_inter"])
        if not math.isfinite(slope) or slope == 0:
            return 1.0, 0.0
        return slope, intercept if math.isfinite(intercept) else 0.0

    def grid(self, notes: CaseLog, *, what: str, spacing: Triple | None = None, trust_header: bool = False) -> Grid:
        """Where the voxels lie, by sform, else by qform.

        Args:
            notes: takes repairs and warnings.
            what: ``"image"`` or ``"label"``, for the messages.
            spacing: millimetres to use instead of the header's.
            trust_header: take a header for true that looks as if nobody had filled it in.

        Raises:
            UnknownGeometryError: the header has neither form, or is the identity at 1 mm; not if `spacing` is given or
                the header is to be trusted.
            CaseError: what the header says cannot be.
        """
        affine = self._lps_affine(notes, what)
        known = affine is not None and not is_default_affine(affine)
        if not known and spacing is None and not trust_header:
            raise UnknownGeometryError(
                f"the {what}'s header "
                + ("says neither sform nor qform" if affine is None else "is the identity at 1 x 1 x 1 mm")
                + ", so its voxel size is unknown"
            )
        if affine is None:
            sizes = np.abs(self.header["pixdim"][1:4].astype(np.float64))
            affine = np.diag([*np.where(sizes > 0, sizes, 1), 1.0])
            notes.warnings.append(
                f"the {what}'s header has no orientation: taken as LPS, as ITK does; look at the preview"
            )
        grid = grid_from_affine(self.shape, affine, notes, what=what).with_given_spacing(spacing, notes, what=what)
        if not known:
            notes.warnings.append(
                f"the {what}'s position and orientation are as its unfilled header has them; look at the preview"
            )
        return grid

    def _lps_affine(self, notes: CaseLog, what: str) -> NDArray[np.float64] | None:
        units = _TO_MM.get(int(self.header["xyzt_units"]) & 7, 1.0)
        sform = qform = None
        if self.header["sform_code"] > 0:
            sform = self.header.get_sform().astype(np.float64)
            if not np.isfinite(sform).all() or abs(np.linalg.det(sform[:3, :3])) < 1e-18:
                sform = None
        if self.header["qform_code"] > 0:
            try:
                qform = self.header.get_qform().astype(np.float64)
            except (HeaderDataError, ValueError, np.linalg.LinAlgError):
                qform = None
        if self.header["sform_code"] > 0 and sform is None:
            if qform is None:
                raise CaseError(f"the {what}'s sform is no affine matrix and it has no qform; fix its header")
            notes.repairs.append(f"the {what}'s sform is no affine matrix: qform used")
        chosen = sform if sform is not None else qform
        if chosen is None:
            return None
        if sform is not None and qform is not None:
            corner = np.array([*(n - 1 for n in self.shape), 1])
            apart = float(np.abs((sform - qform) @ corner).max())
            if apart > 0.5 * min(np.linalg.norm(chosen[:3, :3], axis=0)):
                notes.warnings.append(f"the {what}'s sform and qform are up to {apart:.3g} mm apart: sform used")
        chosen = chosen.copy()
        if self._units != 1.0:
            chosen[:3] *= self._units
            notes.repairs.append(f"the {what}'s header counts in units of {self._units:g} mm: converted to mm")
        elif units != 1.0:
            notes.warnings.append(
                f"the {what}'s header counts in units of {units:g} mm, by which its voxels could not be: taken as mm"
            )
        return np.asarray(_RAS_TO_LPS @ chosen)

    @property
    def _units(self) -> float:
        """Millimetres of the header's unit, as far as that can be: some programs write micrometres and mean mm."""
        units = _TO_MM.get(int(self.header["xyzt_units"]) & 7, 1.0)
        low, high = PLAUSIBLE_MM
        sizes = np.abs(self.header["pixdim"][1:4].astype(np.float64))
        fits = [low <= min(sizes * unit) and max(sizes * unit) <= high for unit in (units, 1.0)]
        return 1.0 if fits == [False, True] else units

    def other_grids(self, what: str) -> list[Grid]:
        """Where the voxels lie by qform, where there is a sform as well: ITK and nibabel differ in which they take."""
        if self.header["qform_code"] <= 0 or self.header["sform_code"] <= 0:
            return []
        try:
            affine = _RAS_TO_LPS @ self.header.get_qform().astype(np.float64)
            affine[:3] *= self._units
            return [grid_from_affine(self.shape, affine, CaseLog(), what=what)]
        except (HeaderDataError, ValueError, np.linalg.LinAlgError, CaseError):
            return []

    def forms_agree(self, expected: bytes) -> bool:
        """Whether sform and qform, as far as they are there, both say what the NIfTI-1 header `expected` says."""
        affine = nibabel.Nifti1Header(expected[:348]).get_sform()
        forms = []
        if self.header["sform_code"] > 0:
            forms.append(self.header.get_sform())
        if self.header["qform_code"] > 0:
            try:
                forms.append(self.header.get_qform())
            except (HeaderDataError, ValueError, np.linalg.LinAlgError):
                return False
        in_mm = _TO_MM.get(int(self.header["xyzt_units"]) & 7) == 1.0
        return in_mm and bool(forms) and all(np.allclose(form, affine, rtol=1e-5, atol=1e-3) for form in forms)

    def has_free_text(self) -> bool:
        """Whether the file holds anything, beside the volume, in which somebody may have written a patient's name.

        That is text in the header, an extension of it, and gzip's note of the name that the file once had.
        """
        texts = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
        if any(bytes(self.header[name].tobytes()).strip(b"\0") for name in texts if name in self.header):
            return True
        with self.path.open("rb") as file:
            start = file.read(4)
        return self._offset != len(self.header_bytes) + 4 or (self.compressed and start[3] != 0)

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The values, some slices at a time: positions along k, and an array (i, j, slices). Scaled ones are float64.

        Raises:
            CaseError: the file ends early or its compressed data is damaged.
        """
        slope, intercept = self.slope_and_intercept
        for where, slab in self._stored_slabs():
            yield where, slab if (slope, intercept) == (1.0, 0.0) else slab * slope + intercept

    def _stored_slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        slice_voxels = self.shape[0] * self.shape[1]
        thickness = max(1, SLAB_BYTES // (slice_voxels * self.dtype.itemsize))
        try:
            with self._voxels_stream() as stream:
                for start in range(0, self.shape[2], thickness):
                    stop = min(start + thickness, self.shape[2])
                    slab = np.empty((stop - start) * slice_voxels, dtype=self.dtype)
                    _read_into(stream, slab.data.cast("B"))
                    yield slice(start, stop), slab.reshape((*self.shape[:2], stop - start), order="F")
                # The end of a gzip file carries a checksum; it is compared when the end is read.
                left = 0
                while count := len(stream.read(SLAB_BYTES)):
                    left += count
                _check_rest(left)
        except READ_ERRORS as error:
            raise CaseError("the file is damaged: it ends early or does not decompress; download it again") from error

    def read(self) -> NDArray[Any]:
        """The values, (i, j, k), in the smallest type that holds every one of them exactly.

        Uncompressed voxels without scaling come as a read-only memory map.

        Raises:
            CaseError: the file ends early or its compressed data is damaged.
        """
        slope, intercept = self.slope_and_intercept
        if (slope, intercept) == (1.0, 0.0):
            if not self.compressed:
                _check_rest(self.data.stat().st_size - self._offset - math.prod(self.shape) * self.dtype.itemsize)
                return np.memmap(self.data, self.dtype, "r", self._offset, self.shape, order="F")
            return self._filled(self.dtype.newbyteorder("="))
        limits = np.iinfo(self.dtype) if self.dtype.kind in "iu" else None
        if limits is not None and slope.is_integer() and intercept.is_integer():
            largest = max(abs(slope * limit + intercept) for limit in (limits.min, limits.max))
            if largest < 2**31:
                return smallest_integers(self._filled(np.dtype(np.int32)))
        return self._filled(np.dtype(np.float64))

    def _filled(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        values = np.empty(self.shape, dtype, order="F")
        for where, slab in self.slabs():
            values[:, :, where] = slab
        return values

    @property
    def _offset(self) -> int:
        if self.data != self.path:
            return int(self.header["vox_offset"])
        # Some files say 0 where the voxels follow the header all the same.
        return int(self.header["vox_offset"]) or len(self.header_bytes) + 4

    def _voxels_stream(self) -> IO[bytes]:
        stream: IO[bytes] = igzip.open(self.data, "rb") if self.compressed else self.data.open("rb")
        _skip(stream, self._offset)
        return stream


def open_nifti(path: Path) -> NiftiFile:
    """Read a NIfTI file's header and compare it with the file's size.

    Raises:
        CaseError: not a NIfTI file, not one 3D volume of numbers, or shorter than its header says.
    """
    is_pair = path.name.lower().endswith((".hdr", ".hdr.gz"))
    try:
        with igzip.open(path, "rb") if _is_gzip(path) else path.open("rb") as stream:
            start = stream.read(540)
    except READ_ERRORS as error:
        raise CaseError("the file cannot be read: it is missing, empty, damaged or not permitted") from error
    header, header_bytes = _parse_header(start, is_pair=is_pair)
    data = paired_file(path) if is_pair else path
    compressed, size = _is_gzip(data), data.stat().st_size
    if not math.isfinite(header["vox_offset"]):
        raise CaseError("the NIfTI header is damaged: it does not say where the voxels begin; download the file again")
    shape = _three_dimensions(header)
    dtype = _number_type(header)
    opened = NiftiFile(path, data, header, header_bytes, shape, dtype, compressed)
    if opened._offset < (0 if is_pair else len(header_bytes) + 4):
        raise CaseError("the NIfTI header is damaged: it says that the voxels lie in it; download the file again")
    needed = opened._offset + math.prod(shape) * dtype.itemsize
    if needed > (size * MOST_COMPRESSED if compressed else size):
        raise CaseError(
            f"the file is damaged: its header asks for {needed} bytes, more than it can hold; download it again"
        )
    return opened


def paired_file(header: Path) -> Path:
    """The .img that belongs to a .hdr, whether there is one or not."""
    stem = header.name[: header.name.lower().rindex(".hdr")]
    named = [header.with_name(stem + ending) for ending in (".img", ".img.gz", ".IMG")]
    return next((path for path in named if path.exists()), named[0])


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _check_rest(count: int) -> None:
    """Raises CaseError for bytes after the voxels: the header may have lost some slices."""
    if count > PADDING:
        raise CaseError("the file is damaged: it holds more voxels than its header asks for; download it again")


def smallest_integers(values: NDArray[np.int32]) -> NDArray[Any]:
    """`values` as int16 where all of them fit, else as they are."""
    if values.size and values.min() >= -(2**15) and values.max() < 2**15:
        return values.astype(np.int16, order="K")
    return values


def _parse_header(start: bytes, *, is_pair: bool) -> tuple[Any, bytes]:
    if start[344:348] == (b"ni1\0" if is_pair else b"n+1\0"):
        header: Any = nibabel.Nifti1Header(start[:348], check=False)
        return header, start[:348]
    if start[4:8] == (b"ni2\0" if is_pair else b"n+2\0") and len(start) == 540:
        header = nibabel.Nifti2Header(start, check=False)
        return header, start
    if is_pair and len(start) >= 348 and start[344:348] == b"\0\0\0\0":
        raise CaseError(
            "the file is an Analyze 7.5 header, which does not tell left from right; convert it to NIfTI with the "
            "program that wrote it"
        )
    raise CaseError("the file is empty, cut off or not a NIfTI file; download it again, or convert it to .nii.gz")


def _three_dimensions(header: Any) -> tuple[int, int, int]:
    dimensions = [int(n) for n in header["dim"]]
    shape = dimensions[1 : 1 + dimensions[0]] if 1 <= dimensions[0] <= 7 else []
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3 or min(shape) < 1:
        raise CaseError(f"the file holds an array of shape {tuple(shape)}; one 3D volume is needed")
    return shape[0], shape[1], shape[2]


def _number_type(header: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, KeyError, ValueError) as error:
        raise CaseError("the NIfTI header names no known type of voxels; download the file again") from error
    if int(header["bitpix"]) not in (0, 8 * dtype.itemsize):
        raise CaseError(
            "the NIfTI header is damaged: its type of voxels and their number of bits disagree; download it again"
        )
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise CaseError(
            "the file's voxels are colours, complex or extended numbers; a CT volume of plain numbers is needed"
        )
    return dtype


def _read_into(stream: IO[bytes], buffer: memoryview) -> None:
    while buffer:
        count = stream.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        buffer = buffer[count:]


def _skip(stream: IO[bytes], count: int) -> None:
    while count:
        read = len(stream.read(min(count, SLAB_BYTES)))
        if not read:
            raise EOFError
        count -= read


def nifti_header(grid: Grid, dtype: np.dtype[Any]) -> bytes:
    """A NIfTI-1 header of 352 bytes for `grid`, LPS turned into NIfTI's RAS, with sform and qform alike.

    Readers differ in which of the forms they believe; spacing, origin and direction come from the same float32 numbers
    in every file written for equal grids, so that image and label agree to the last bit.
    """
    header = nibabel.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm")
    affine = _RAS_TO_LPS @ grid.affine
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + b"\0\0\0\0"


def geometry_of_header(header_bytes: bytes) -> bytes:
    """The bytes of a NIfTI-1 header that tell the geometry."""
    return b"".join(header_bytes[part] for part in _GEOMETRY_BYTES)


def with_geometry_of(header_bytes: bytes, other: bytes) -> bytes:
    """`header_bytes` with the geometry of `other`, bit by bit."""
    mixed = bytearray(header_bytes)
    for part in _GEOMETRY_BYTES:
        mixed[part] = other[part]
    return bytes(mixed)


def write_nifti(path: Path, voxels: NDArray[Any], header: bytes, *, compression: int | None) -> str:
    """Write `voxels` (i, j, k) after `header`. Equal input gives equal bytes.

    Args:
        path: overwritten if it exists.
        voxels: any strides; turned and flipped views are copied a slab at a time.
        header: 352 bytes, as from `nifti_header`.
        compression: ISA-L's level for gzip, 0 (fastest) to 3 (smallest); None writes a plain .nii.

    Returns:
        SHA-256 of the file, hexadecimal.
    """
    digest = hashlib.sha256()
    # wbits 31: gzip's format; the header that zlib writes has neither a time nor a name in it.
    compressor = isal_zlib.compressobj(compression, wbits=31) if compression is not None else None
    thickness = max(1, SLAB_BYTES // max(1, voxels[..., 0].nbytes))
    with path.open("wb", buffering=0) as file:

        def put(chunk: bytes | memoryview) -> None:
            data = compressor.compress(chunk) if compressor else chunk
            digest.update(data)
            _write_all(file, data)

        put(header)
        for start in range(0, voxels.shape[2], thickness):
            slab = voxels[:, :, start : start + thickness]
            little = slab.astype(slab.dtype.newbyteorder("<"), order="F", copy=False)
            put(little.ravel(order="F").data.cast("B"))
        if compressor:
            rest = compressor.flush()
            digest.update(rest)
            _write_all(file, rest)
    return digest.hexdigest()


def _write_all(file: io.RawIOBase | io.FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) or 0 :]
