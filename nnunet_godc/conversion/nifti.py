"""NIfTI-1 and NIfTI-2 files: what a header says, reading voxels in slabs, writing so that all readers agree.

nibabel's header classes do the parsing, but `nibabel.load` does not do the reading: it decompresses with zlib, several
times slower than ISA-L, turns a scaled volume into float64 all at once, and does not look at a gzip file's checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import nibabel
import numpy as np
from isal import igzip, igzip_lib, isal_zlib
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from nnunet_godc.conversion.files import PAIR_ENDINGS, ending_of
from nnunet_godc.conversion.geometry import Grid, Triple, grid_from_affine, is_default_affine
from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError

# What DEFLATE can shrink at most (a run of zeros): a header that claims more than this is broken.
MOST_COMPRESSED = 1032
SLAB_BYTES = 8 * 2**20  # large enough for full speed, small beside any volume
PADDING = 15  # bytes that may follow the voxels: some programs fill up to a multiple of 16
PLAUSIBLE_MM = (0.01, 50.0)  # along an axis of a voxel, from micro-CT to coarse PET

# What reading a damaged file raises; ISA-L's bindings type their exception wrongly.
_ISAL_ERROR: Any = igzip_lib.IsalError
READ_ERRORS: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, _ISAL_ERROR)
DAMAGED_VOXELS = "the file is damaged: it ends early or does not decompress; download it again"
TOO_FEW_VOXELS = "the file is damaged: its header asks for more voxels than it can hold; download it again"
TOO_MANY_VOXELS = "the file is damaged: it holds more voxels than its header asks for; download it again"
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, metre, millimetre, micrometre
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_GEOMETRY = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_FREE_TEXT = ("data_type", "db_name", "descrip", "aux_file", "intent_name")


@dataclass(frozen=True)
class NiftiFile:
    """A file whose header was read and found to fit its size.

    Attributes:
        path: the file with the header; what is compressed is told by its first bytes, not by its name.
        data: the file with the voxels: the same one, or the .img of a pair.
        header: nibabel's, NIfTI-1 or NIfTI-2.
        shape: voxels along i, j, k.
        dtype: of the stored voxels, in the file's byte order.
        offset: where they begin.
        compressed: whether the file with the voxels is gzip's.
    """

    path: Path
    data: Path
    header: Any
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    compressed: bool

    @property
    def slope_and_intercept(self) -> tuple[float, float]:
        """Value = slope * stored + intercept; (1, 0) where the header has none."""
        slope, intercept = self.header.get_slope_inter()
        return (1.0, 0.0) if slope is None else (float(slope), float(intercept))

    def read_grids(
        self, log: CaseLog, *, what: str, spacing: Triple | None = None, trust_header: bool = False
    ) -> list[Grid]:
        """Where the voxels lie by sform, and by qform if both are there: of these, ITK and nibabel take different ones.

        Args:
            log: takes repairs and warnings.
            what: ``"image"`` or ``"label"``, for the messages.
            spacing: millimetres to use instead of the header's.
            trust_header: take a header for true that looks as if nobody had filled it in.

        Raises:
            UnknownGeometryError: the header has neither form, or is the identity at 1 mm; not if `spacing` is given or
                the header is to be trusted.
            CaseError: what the header says cannot be.
        """
        affine = self._affine(log, what)
        known = affine is not None and not is_default_affine(affine)
        if not known and spacing is None and not trust_header:
            says = "says neither sform nor qform" if affine is None else "is the identity at 1 x 1 x 1 mm"
            raise UnknownGeometryError(f"the {what}'s header {says}, so its voxel size is unknown")
        if affine is None:
            sizes = np.abs(self.header["pixdim"][1:4].astype(np.float64))
            affine = np.diag([*np.where(sizes > 0, sizes, 1), 1.0])
            log.warnings.append(
                f"the {what}'s header has no orientation: taken as LPS, as ITK does; look at the preview"
            )
        grid = grid_from_affine(self.shape, affine, log, what=what).with_spacing(spacing, log, what=what)
        if not known:
            log.warnings.append(
                f"the {what}'s position and orientation are as its unfilled header has them; look at the preview"
            )
        grids = [grid]
        if spacing is None and self.header["sform_code"] > 0 and (qform := self._form("qform")) is not None:
            with contextlib.suppress(CaseError):
                grids.append(grid_from_affine(self.shape, qform, CaseLog(), what=what))
        return grids

    def _affine(self, log: CaseLog, what: str) -> NDArray[np.float64] | None:
        sform, qform = self._form("sform"), self._form("qform")
        if self.header["sform_code"] > 0 and sform is None:
            if qform is None:
                raise CaseError(f"the {what}'s sform is not an affine matrix and it has no qform; fix its header")
            log.repairs.append(f"the {what}'s sform is not an affine matrix: qform used")
        chosen = qform if sform is None else sform
        if chosen is None:
            return None
        if sform is not None and qform is not None:
            apart = float(np.abs((sform - qform) @ [*(n - 1 for n in self.shape), 1]).max())
            if apart > 0.5 * min(np.linalg.norm(chosen[:3, :3], axis=0)):
                log.warnings.append(f"the {what}'s sform and qform are up to {apart:.3g} mm apart: sform used")
        named, used = self._named_unit, self._unit
        if used != 1.0:
            log.repairs.append(f"the {what}'s header counts in units of {used:g} mm: converted to mm")
        elif named != 1.0:
            log.warnings.append(
                f"the {what}'s header counts in units of {named:g} mm, by which its voxels could not be: taken as mm"
            )
        return chosen

    def _form(self, name: Literal["sform", "qform"]) -> NDArray[np.float64] | None:
        """sform or qform as an LPS affine in mm; None where it is not there or no affine matrix."""
        if self.header[f"{name}_code"] <= 0:
            return None
        try:
            form = getattr(self.header, f"get_{name}")().astype(np.float64)
        except (HeaderDataError, ValueError, np.linalg.LinAlgError):
            return None
        if not np.isfinite(form).all() or abs(np.linalg.det(form[:3, :3])) < 1e-18:
            return None
        form[:3] *= self._unit
        return np.asarray(_RAS_TO_LPS @ form)

    @property
    def _named_unit(self) -> float:
        return _TO_MM.get(int(self.header["xyzt_units"]) & 7, 1.0)

    @property
    def _unit(self) -> float:
        """Millimetres of the header's unit, as far as that can be: some programs write micrometres and mean mm."""
        low, high = PLAUSIBLE_MM
        sizes = np.abs(self.header["pixdim"][1:4].astype(np.float64))
        as_named, as_mm = (low <= min(sizes * u) and max(sizes * u) <= high for u in (self._named_unit, 1.0))
        return 1.0 if as_mm and not as_named else self._named_unit

    def is_as_written(self, grid: Grid, *, compressed: bool, private: bool) -> bool:
        """Whether the file can stay as it is: every reader sees in it just what we would write for `grid`.

        Args:
            private: refuse what holds anything beside the volume, in which somebody may have written a patient's name.
                That is text in the header, an extension of it, and gzip's note of the name that the file once had.
        """
        header, ours = self.header, nifti_header(grid, self.dtype)
        forms = [self._form(name) for name in ("sform", "qform") if header[f"{name}_code"] > 0]
        if private and self._holds_text():
            return False
        return bool(
            header["sizeof_hdr"] == 348
            and self.data == self.path
            and int(header["vox_offset"]) >= 352  # ITK takes a 0 by its word and reads the header as voxels
            and header["dim"][0] == 3
            and self.dtype.newbyteorder("<") == self.dtype
            and self.dtype.itemsize <= 4
            and self.slope_and_intercept == (1.0, 0.0)
            and self.compressed == compressed
            and self._named_unit == 1.0
            and np.allclose(header["pixdim"][1:4], ours["pixdim"][1:4], rtol=1e-4)
            and forms
            and all(form is not None and np.allclose(form, grid.affine, rtol=1e-5, atol=1e-3) for form in forms)
        )

    def _holds_text(self) -> bool:
        """Whether somebody may have written into it beside its volume."""
        with self.path.open("rb") as file:
            has_name = self.compressed and file.read(4)[3] != 0
        return has_name or self.offset != 352 or any(self.header[name].tobytes().strip(b"\0") for name in _FREE_TEXT)

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The values, some slices at a time: positions along k, and an array (i, j, slices). Scaled ones are float64.

        Raises:
            CaseError: the file ends early or its compressed data is damaged.
        """
        slope, intercept = self.slope_and_intercept
        across, depth = self.shape[:2], self.shape[2]
        thickness = max(1, SLAB_BYTES // (math.prod(across) * self.dtype.itemsize))
        try:
            with _opened(self.data) as stream:
                _read_into(stream, memoryview(bytearray(self.offset)))
                for start in range(0, depth, thickness):
                    stop = min(start + thickness, depth)
                    slab = np.empty((*across, stop - start), self.dtype, order="F")
                    _read_into(stream, slab.ravel(order="K").data.cast("B"))
                    yield slice(start, stop), slab if (slope, intercept) == (1.0, 0.0) else slab * slope + intercept
                # The end of a gzip file carries a checksum; it is compared when the end is read.
                if len(stream.read(PADDING + 1)) > PADDING:
                    raise CaseError(TOO_MANY_VOXELS)
        except READ_ERRORS as error:
            raise CaseError(DAMAGED_VOXELS) from error

    def read(self) -> NDArray[Any]:
        """The values, (i, j, k), in a type that holds every one of them exactly.

        Uncompressed voxels without scaling come as a read-only memory map.

        Raises:
            CaseError: the file ends early or its compressed data is damaged.
        """
        is_scaled = self.slope_and_intercept != (1.0, 0.0)
        if is_scaled or self.compressed:
            return assembled(self.shape, self.slabs(), None if is_scaled else self.dtype.newbyteorder("="))
        if self.data.stat().st_size - self.offset - math.prod(self.shape) * self.dtype.itemsize > PADDING:
            raise CaseError(TOO_MANY_VOXELS)
        return np.memmap(self.data, self.dtype, "r", self.offset, self.shape, order="F")


def assembled(
    shape: tuple[int, int, int], slabs: Iterable[tuple[slice, NDArray[Any]]], dtype: np.dtype[Any] | None = None
) -> NDArray[Any]:
    """The volume that slabs make up, each with its place along k; Fortran order.

    Args:
        dtype: None for the first of int16, int32, float32 and float64 that holds all values exactly.
    """
    volume: NDArray[Any] = np.empty(shape, dtype or np.int16, order="F")
    for where, slab in slabs:
        if dtype is None:
            slab = slab.astype(_exact_type(slab), copy=False)
            volume = volume.astype(np.result_type(volume.dtype, slab.dtype), copy=False)
        volume[:, :, where] = slab
    return volume


def _exact_type(values: NDArray[Any]) -> type[np.generic]:
    low, high = values.min(), values.max()
    if values.dtype.kind in "iu" or np.array_equal(values, np.rint(values)):
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return dtype
    with np.errstate(over="ignore"):
        return np.float32 if np.array_equal(values.astype(np.float32), values) else np.float64


def open_nifti(path: Path) -> NiftiFile:
    """Read a NIfTI file's header and compare it with the file's size.

    Raises:
        CaseError: not a NIfTI file, not one 3D volume of numbers, or shorter than its header says.
    """
    is_pair = ending_of(path) in PAIR_ENDINGS
    try:
        with _opened(path) as stream:
            start = stream.read(540)
        data = paired_file(path) if is_pair else path
        compressed, size = _is_gzip(data), data.stat().st_size
    except READ_ERRORS as error:
        raise CaseError("the file cannot be read: it is missing, empty, damaged or not permitted") from error
    header = _parsed(start, is_pair=is_pair)
    try:
        shape = list(header.get_data_shape())
        dtype: np.dtype[Any] = header.get_data_dtype()
        header.get_slope_inter()
        offset = int(header["vox_offset"])
    except (HeaderDataError, KeyError, ValueError, OverflowError) as error:
        raise CaseError("the NIfTI header is damaged; download the file again") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3 or min(shape) < 1:
        raise CaseError(f"the file holds an array of shape {tuple(shape)}; one 3D volume is needed")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise CaseError(
            "the file's voxels are colours, complex or extended numbers; a CT volume of plain numbers is needed"
        )
    if not is_pair:
        offset = offset or int(header["sizeof_hdr"]) + 4  # some files say 0 where the voxels follow the header
    needed = offset + math.prod(shape) * dtype.itemsize
    if offset < 0 or needed > size * (MOST_COMPRESSED if compressed else 1):
        raise CaseError(TOO_FEW_VOXELS)
    return NiftiFile(path, data, header, (shape[0], shape[1], shape[2]), dtype, offset, compressed)


def paired_file(header: Path) -> Path:
    """The .img that belongs to a .hdr, whether there is one or not."""
    stem = header.name[: header.name.lower().rindex(".hdr")]
    named = [header.with_name(stem + ending) for ending in (".img", ".img.gz", ".IMG")]
    return next((path for path in named if path.exists()), named[0])


def _parsed(start: bytes, *, is_pair: bool) -> Any:
    magic = (b"ni1\0", b"ni2\0") if is_pair else (b"n+1\0", b"n+2\0")
    if start[344:348] == magic[0]:
        return nibabel.Nifti1Header(start[:348], check=False)
    if start[4:8] == magic[1] and len(start) == 540:
        return nibabel.Nifti2Header(start, check=False)
    raise CaseError("the file is empty, cut off or not a NIfTI file; download it again, or convert it to .nii.gz")


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> IO[bytes]:
    stream: IO[bytes] = igzip.open(path, "rb") if _is_gzip(path) else path.open("rb")
    return stream


def _read_into(stream: IO[bytes], buffer: memoryview) -> None:
    while buffer:
        count = stream.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        buffer = buffer[count:]


def nifti_header(grid: Grid, dtype: np.dtype[Any], *, geometry_of: Any = None) -> nibabel.Nifti1Header:
    """A NIfTI-1 header for `grid`, LPS turned into NIfTI's RAS, with sform and qform alike.

    Readers differ in which of the forms they believe; spacing, origin and direction come from the same float32 numbers
    in every file written for equal grids, so that image and label agree to the last bit.

    Args:
        geometry_of: a NIfTI-1 header whose geometry is taken over bit by bit.
    """
    header = nibabel.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_data_dtype(dtype.newbyteorder("="))
    header.set_xyzt_units("mm")
    affine = _RAS_TO_LPS @ grid.affine
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    for name in _GEOMETRY if geometry_of is not None else ():
        header[name] = geometry_of[name]
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["vox_offset"] = 352
    return header


def write_nifti(path: Path, voxels: NDArray[Any], header: nibabel.Nifti1Header, *, compression: int | None) -> str:
    """Write `voxels` (i, j, k) after `header`. Equal input gives equal bytes.

    Args:
        path: overwritten if it exists.
        voxels: any strides; turned and flipped views are copied a slab at a time.
        header: as from `nifti_header`.
        compression: ISA-L's level for gzip, 0 (fastest) to 3 (smallest); None writes a plain .nii.

    Returns:
        SHA-256 of the file, hexadecimal.
    """
    digest = hashlib.sha256()
    # wbits 31: gzip's format; the header that zlib writes has neither a time nor a name in it.
    compressor = isal_zlib.compressobj(compression, wbits=31) if compression is not None else None
    thickness = max(1, SLAB_BYTES // max(1, voxels[..., 0].nbytes))
    with path.open("wb", buffering=io.DEFAULT_BUFFER_SIZE) as file:

        def put(chunk: bytes | memoryview, *, last: bool = False) -> None:
            if compressor:
                chunk = compressor.compress(chunk) + (compressor.flush() if last else b"")
            digest.update(chunk)
            file.write(chunk)

        put(header.binaryblock + bytes(4))
        for start in range(0, voxels.shape[2], thickness):
            slab = voxels[:, :, start : start + thickness]
            little = slab.astype(slab.dtype.newbyteorder("<"), order="F", copy=False)
            put(little.ravel(order="F").data.cast("B"), last=start + thickness >= voxels.shape[2])
    return digest.hexdigest()
