"""Decoding the pixels of one DICOM image, also from a damaged file, which must end neither the process nor its memory.

There is one decoder for each compression, whatever else is installed. Each was fed thousands of streams with flipped
bits and cut ends, and ended in an exception at worst. GDCM's Python bindings and liblj92 ended the process; CharLS ran
for minutes until the sizes were checked beforehand.
"""

from __future__ import annotations

import struct
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.utils import pixel_array

_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_PLUGINS = {
    **dict.fromkeys(_JPEG, "nnunet_godc"),  # `decode_frame` below
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys(
        (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "pylibjpeg"
    ),
    uid.RLELossless: "pydicom",
}
# JPEG's start-of-frame markers (C4, C8 and CC mean something else) and JPEG-LS's.
_START_OF_FRAME = {marker for marker in range(0xFFC0, 0xFFD0) if marker not in (0xFFC4, 0xFFC8, 0xFFCC)} | {0xFFF7}
_END_OF_IMAGE = b"\xff\xd9"

DECODER_DEPENDENCIES = dict.fromkeys(_JPEG, ("imagecodecs",))


def decode(dataset: Dataset, frame: int, shape: tuple[int, int]) -> NDArray[Any]:
    """The stored values of one frame; may raise any exception.

    Args:
        dataset: with its pixel data.
        frame: from 0.
        shape: rows and columns; a compressed frame of another size is not decoded.

    Returns:
        Shape `shape`, an integer dtype, read-only or not.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != uid.RLELossless:
        count = int(dataset.get("NumberOfFrames") or 1)
        stream = get_frame(dataset.PixelData, frame, number_of_frames=count)
        if _size(stream) != (*shape, 1):
            raise ValueError("another size than the header's: the decoder would make room for it")
        if _END_OF_IMAGE not in stream[-16:]:
            raise ValueError("cut off: decoders make up the rest")
    pixels = pixel_array(dataset, index=frame, raw=True, decoding_plugin=_PLUGINS.get(syntax, ""))
    if pixels.shape != shape or pixels.dtype.kind not in "iu":
        raise ValueError("not the pixels that the header announces")
    return pixels


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
