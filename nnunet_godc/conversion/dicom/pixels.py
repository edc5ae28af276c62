"""Decoding the pixels of one DICOM image, also from a damaged file, which must end neither the process nor its memory.

There is one decoder for each compression, whatever else is installed. Each was fed thousands of streams with flipped
bits and cut ends, and ended in an exception at worst. GDCM's Python bindings and liblj92 ended the process; CharLS ran
for minutes until the sizes were checked beforehand.
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
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.utils import pixel_array

from nnunet_godc.conversion.dicom.files import UnreadableError

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"  # of 2024; this pydicom does not know it yet
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_PLUGINS = {
    **dict.fromkeys(_JPEG, "nnunet_godc"),  # `decode_frame` below
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys(
        (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "pylibjpeg"
    ),
    uid.RLELossless: "pydicom",
}
_NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
# JPEG's start-of-frame markers (C4, C8 and CC mean something else) and JPEG-LS's.
_START_OF_FRAME = {marker for marker in range(0xFFC0, 0xFFD0) if marker not in (0xFFC4, 0xFFC8, 0xFFCC)} | {0xFFF7}
_END_OF_IMAGE = b"\xff\xd9"

DECODER_DEPENDENCIES = dict.fromkeys(_JPEG, ("imagecodecs",))


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
    if syntax not in _PLUGINS and syntax not in _NATIVE and syntax != DEFLATED_FRAMES:
        name = f" ({syntax.name})" if syntax.name != syntax else ""
        raise UnreadableError(
            f"is stored in a transfer syntax that is not read{name}; decompress it, for example with `gdcmconv --raw`"
        )
    try:
        return _decode(dataset, syntax, frame, shape)
    except Exception:
        # The decoders raise whatever they stumble over, and the text may quote the file.
        raise UnreadableError("cannot be decoded: its pixels are damaged") from None


def _decode(dataset: Dataset, syntax: uid.UID, frame: int, shape: tuple[int, int]) -> NDArray[Any]:
    count = int(dataset.get("NumberOfFrames") or 1)
    bits = int(dataset.BitsAllocated)
    if syntax == DEFLATED_FRAMES or (bits == 1 and syntax == uid.RLELossless):
        stream = get_frame(dataset.PixelData, frame, number_of_frames=count)
        return _unpacked(_inflated(stream, shape) if syntax == DEFLATED_FRAMES else _run_lengths(stream), bits, shape)
    if bits == 1:
        swapped = syntax == uid.ExplicitVRBigEndian and dataset["PixelData"].VR == "OW"
        data = np.frombuffer(dataset.PixelData, ">u2").astype("<u2").tobytes() if swapped else dataset.PixelData
        return _bits(data, frame, count, shape)
    if syntax.is_encapsulated and syntax != uid.RLELossless:
        stream = get_frame(dataset.PixelData, frame, number_of_frames=count)
        if _size(stream) != (*shape, 1):
            raise ValueError("another size than the header's: the decoder would make room for it")
        if _END_OF_IMAGE not in stream[-16:]:
            raise ValueError("cut off: decoders make up the rest")
    pixels = pixel_array(dataset, index=frame, raw=True, decoding_plugin=_PLUGINS.get(syntax, ""))
    if pixels.shape != shape or pixels.dtype.kind not in "iu":
        raise ValueError("not the pixels that the header announces")
    return pixels


def _bits(data: bytes, frame: int, count: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """One frame of packed bits, which begins where the one before it ends, within a byte."""
    size = shape[0] * shape[1]
    if len(data) < (count * size + 7) // 8:
        raise ValueError("cut off")
    first, last = frame * size, (frame + 1) * size
    packed = np.frombuffer(data, np.uint8, (last + 7) // 8 - first // 8, first // 8)
    bits: NDArray[np.uint8] = np.unpackbits(packed, bitorder="little")[first % 8 :][:size].reshape(shape)
    return bits


def _unpacked(data: bytes, bits: int, shape: tuple[int, int]) -> NDArray[Any]:
    """A frame of its own; with packed bits it begins with a byte. Writers differ in whether it is padded."""
    size = shape[0] * shape[1]
    if bits == 1 and len(data) >= size > 8:
        # Some writers leave the bits unpacked, though the header says 1.
        return np.asarray(np.frombuffer(data, np.uint8, size) != 0).astype(np.uint8).reshape(shape)
    if bits == 1:
        return _bits(data, 0, 1, shape)
    pixels: NDArray[Any] = np.frombuffer(data, f"<u{bits // 8}", size).reshape(shape)
    return pixels


def _run_lengths(stream: bytes) -> bytes:
    (count,) = struct.unpack_from("<I", stream)
    starts = struct.unpack_from(f"<{count}I", stream, 4)
    ends = (*starts[1:], len(stream))
    return b"".join(imagecodecs.packbits_decode(stream[a:b]) for a, b in zip(starts, ends, strict=True))


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


def is_available(syntax: str) -> bool:
    """Asked by pydicom of a plug-in."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(stream: bytes, runner: DecodeRunner) -> bytes:
    """pydicom's plug-in for JPEG: libjpeg-turbo 3, which reads the lossless and the 12 bit one too."""
    pixels = imagecodecs.jpeg8_decode(stream)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    return np.ascontiguousarray(pixels).tobytes()


for _syntax in _JPEG:
    get_decoder(_syntax).add_plugin("nnunet_godc", (__name__, "decode_frame"))
