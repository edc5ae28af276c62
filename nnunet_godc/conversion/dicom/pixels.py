"""Decoding the pixels of one DICOM image, also from a damaged file, which must end neither the process nor its memory.

imagecodecs' decoders are called directly: pydicom picks whichever plug-in is installed, of which GDCM's and liblj92
ended the process on damaged streams.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame

from nnunet_godc.conversion.dicom.files import UnreadableError

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"  # of 2024; this pydicom does not know it yet
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
_DECODERS = {
    **dict.fromkeys(_JPEG, imagecodecs.jpeg8_decode),  # libjpeg-turbo 3 reads the lossless and the 12 bit one too
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), imagecodecs.jpegls_decode),
    **dict.fromkeys(_JPEG_2000, imagecodecs.jpeg2k_decode),
}
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
# JPEG's start-of-frame markers (C4, C8 and CC mean something else) and JPEG-LS's.
_START_OF_FRAME = {marker for marker in range(0xFFC0, 0xFFD0) if marker not in (0xFFC4, 0xFFC8, 0xFFCC)} | {0xFFF7}
_END_OF_IMAGE = b"\xff\xd9"


def decode(dataset: Dataset, frame: int, shape: tuple[int, int]) -> NDArray[Any]:
    """The stored values of one frame.

    Args:
        dataset: with its pixel data.
        frame: from 0.
        shape: rows and columns; a compressed frame of another size is not decoded.

    Returns:
        Shape `shape`, an integer dtype, read-only or not; of packed bits, 0 and 1.

    Raises:
        UnreadableError: the pixels are damaged, or in a transfer syntax that is not read.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (*_DECODERS, *_NATIVE, uid.RLELossless, DEFLATED_FRAMES):
        name = f" ({syntax.name})" if syntax.name != syntax else ""
        raise UnreadableError(
            f"is stored in a transfer syntax that is not read{name}; decompress it, for example with `gdcmconv --raw`"
        )
    try:
        bits = int(dataset.BitsAllocated)
        pixels = _native(dataset, frame, shape, bits) if syntax in _NATIVE else _compressed(dataset, frame, shape, bits)
        if pixels.shape != shape or pixels.dtype.kind not in "iu":
            raise ValueError("not the pixels that the header announces")
        return pixels if bits == 1 else _as_stored(pixels, dataset)
    except Exception:
        # The decoders raise whatever they stumble over, and the text may quote the file.
        raise UnreadableError("cannot be decoded: its pixels are damaged") from None


def _native(dataset: Dataset, frame: int, shape: tuple[int, int], bits: int) -> NDArray[Any]:
    data = dataset.PixelData
    order = ">" if dataset.file_meta.TransferSyntaxUID == uid.ExplicitVRBigEndian else "<"
    if order == ">" and bits < 16 and dataset["PixelData"].VR == "OW":
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    size = shape[0] * shape[1]
    if bits == 1:
        if 8 * len(data) < int(dataset.get("NumberOfFrames") or 1) * size:
            raise ValueError("cut off")
        # A frame begins where the one before it ends, within a byte.
        return _unpacked(data[frame * size // 8 :], frame * size % 8, shape)
    return np.frombuffer(data, f"{order}u{bits // 8}", size, frame * size * bits // 8).reshape(shape)


def _compressed(dataset: Dataset, frame: int, shape: tuple[int, int], bits: int) -> NDArray[Any]:
    syntax, size = dataset.file_meta.TransferSyntaxUID, shape[0] * shape[1]
    stream = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    if syntax in _DECODERS:
        if _size(stream) != (*shape, 1):
            raise ValueError("another size than the header's: the decoder would make room for it")
        if _END_OF_IMAGE not in stream[-16:]:
            raise ValueError("cut off: decoders make up the rest")
        return np.asarray(_DECODERS[syntax](stream))
    planes = [_inflated(stream, shape)] if syntax == DEFLATED_FRAMES else _run_lengths(stream)
    if bits > 1:
        if syntax == DEFLATED_FRAMES:
            return np.frombuffer(planes[0], f"<u{bits // 8}", size).reshape(shape)
        # Run lengths hold the highest bytes of all pixels first.
        stacked = np.stack([np.frombuffer(plane, np.uint8, size) for plane in reversed(planes)], axis=-1)
        return stacked.view(f"<u{len(planes)}").reshape(shape)
    data = b"".join(planes)
    if len(data) >= size > 8:
        # Some writers leave the bits unpacked, though the header says 1.
        return np.asarray(np.frombuffer(data, np.uint8, size) != 0).astype(np.uint8).reshape(shape)
    return _unpacked(data, 0, shape)


def _unpacked(data: bytes, first: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Packed bits from bit `first` on."""
    size = shape[0] * shape[1]
    packed = np.frombuffer(data, np.uint8, (first + size + 7) // 8)
    return np.asarray(np.unpackbits(packed, bitorder="little")[first:][:size].reshape(shape))


def _as_stored(pixels: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Without the bits beyond those stored, which hold overlays or the sign."""
    signed = dataset.get("PixelRepresentation") == 1
    unused = 8 * pixels.dtype.itemsize - int(dataset.get("BitsStored") or dataset.BitsAllocated)
    kind = np.dtype(f"{'i' if signed else 'u'}{pixels.dtype.itemsize}")
    if unused <= 0:
        return pixels.astype(kind, copy=False)
    return np.asarray((pixels.astype(kind) << unused) >> unused)


def _run_lengths(stream: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<I", stream)
    starts = struct.unpack_from(f"<{count}I", stream, 4)
    ends = (*starts[1:], len(stream))
    return [bytes(imagecodecs.packbits_decode(stream[a:b])) for a, b in zip(starts, ends, strict=True)]


def _inflated(stream: bytes, shape: tuple[int, int]) -> bytes:
    # At most what the header asks for, whatever a damaged stream would grow to.
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(stream, shape[0] * shape[1] * 4 + 16)
    if not inflater.eof:
        raise ValueError("cut off, or more than the header announces")
    return data


def _size(stream: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of a JPEG, JPEG-LS or JPEG 2000 image. Raises ValueError or struct.error."""
    jpeg_2000 = stream.find(b"\xff\x4f\xff\x51")  # its first two markers, inside of whatever wraps the codestream
    if jpeg_2000 >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", stream, jpeg_2000 + 8)
        (components,) = struct.unpack_from(">H", stream, jpeg_2000 + 40)
        return bottom - top, right - left, components
    place = 2
    while True:
        marker, length = struct.unpack_from(">HH", stream, place)
        if marker in _START_OF_FRAME:
            rows, columns, components = struct.unpack_from(">HHB", stream, place + 5)
            return rows, columns, components
        if marker < 0xFF01 or length < 2:
            raise ValueError("no JPEG")
        place += 2 + length
