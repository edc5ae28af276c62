"""DICOM files as they lie about: with and without preamble, among files of every other kind."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom import uid
from pydicom.config import IGNORE
from pydicom.config import settings as pydicom_settings
from pydicom.dataset import Dataset, FileDataset

SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # and the label map
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"

_PREAMBLE = 128  # bytes
_ELEMENT_HEADER = 8  # bytes
# Where a file without preamble begins: the meta information's or the data set's first elements, group and element.
_FIRST_ELEMENTS = {(2, n) for n in (0, 1, 2, 3, 16)} | {(8, n) for n in (0, 1, 5, 6, 8, 18, 19, 20, 22, 24)}


class UnreadableError(Exception):
    """A DICOM file that is broken. Its text is one of ours, fit to be printed after "slice 7 "."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the DICOM libraries, whose warnings quote values that may be private."""
    disabled, validation = logging.root.manager.disable, pydicom_settings.reading_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        pydicom_settings.reading_validation_mode = IGNORE
        try:
            yield
        finally:
            logging.disable(disabled)
            pydicom_settings.reading_validation_mode = validation


def is_dicom_file(file: Path) -> bool:
    """Whether a file is one of DICOM's, by its first bytes; False as well where it cannot be read.

    Scanners and research tools leave out the preamble, or the meta information too: then the first element is one of
    those that a data set begins with, and its header makes sense.
    """
    try:
        if not file.is_file():  # a pipe would never end
            return False
        with file.open("rb") as opened:
            start = opened.read(_PREAMBLE + 4)
    except OSError:
        return False
    if start[_PREAMBLE:] == b"DICM":
        return True
    return len(start) == _PREAMBLE + 4 and any(_begins_data_set(start, order) for order in ("little", "big"))


def _begins_data_set(start: bytes, order: Any) -> bool:
    group, element = (int.from_bytes(start[n : n + 2], order) for n in (0, 2))
    if (group, element) not in _FIRST_ELEMENTS:
        return False
    explicit = start[4:6] in (b"UL", b"OB", b"UI", b"CS", b"DA", b"LO", b"SQ", b"SH")
    return explicit or int.from_bytes(start[4:8], order) <= _PREAMBLE


def read_dataset(
    file: Path, *, pixels: bool = True, tags: Sequence[str] | None = None, whole: bool = False
) -> FileDataset:
    """A file's data set; to be called within `quiet`.

    Args:
        pixels: whether to read what the pixels are stored in.
        tags: keywords of the elements to read; None for all.
        whole: whether to make sure that nothing is cut off at the end. Pixels that are missing there are noticed anyhow
            when they are decoded; contours would not be.

    Raises:
        UnreadableError: the file is broken, or is of a kind that is not read.
    """
    with _Bounded(file) as opened:
        try:
            dataset = pydicom.dcmread(
                opened, stop_before_pixels=not pixels, specific_tags=None if tags is None else list(tags), force=True
            )
        except _DeflatedError:
            raise UnreadableError(
                "is deflated, which is not read; inflate it, for example with `dcmconv +te`"
            ) from None
        except Exception:
            # pydicom raises whatever it stumbles over, and the text may quote the file.
            raise UnreadableError("cannot be read: it is damaged or not whole") from None
        if whole and opened.ended_within:
            raise UnreadableError("is not whole; download it again")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian
            if implicit
            else uid.ExplicitVRLittleEndian
            if little
            else uid.ExplicitVRBigEndian
        )
    return dataset


def sop_class_of(dataset: FileDataset) -> str:
    """What kind of object a file holds; empty where it does not say."""
    # The file's beginning comes first: it is whole where the data set may be cut off, and there where that is empty.
    return text_of(dataset.file_meta, "MediaStorageSOPClassUID") or text_of(dataset, "SOPClassUID")


def value_of(dataset: Dataset, key: str) -> Any:
    """An entry's value; None where it is not there or empty.

    Raises:
        UnreadableError: it cannot be parsed.
    """
    try:
        value = dataset.get(key)
    except Exception:
        # pydicom parses an element when it is asked for, and raises whatever it stumbles over.
        raise UnreadableError("cannot be read: an entry of its header is damaged") from None
    return None if value is None or (isinstance(value, str) and not value) else value


def text_of(dataset: Dataset, key: str) -> str:
    """An entry as text; empty where it is not there. Raises UnreadableError."""
    value = value_of(dataset, key)
    return "" if value is None else str(value).strip()


def items_of(dataset: Dataset, key: str) -> list[Dataset]:
    """The items of a sequence; none where it is not there. Raises UnreadableError."""
    items = value_of(dataset, key)
    if items is None:
        return []
    if not isinstance(items, pydicom.Sequence):
        raise UnreadableError("cannot be read: an entry of its header is damaged")
    return list(items)


class _DeflatedError(Exception):
    pass


class _Bounded(io.BufferedReader):
    """A file that never makes room for more bytes than it has, whatever length a damaged header asks for.

    Attributes:
        ended_within: whether what was asked for went on beyond the end. To find the end once is how reading ends.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(file))
        self._size = os.fstat(self.fileno()).st_size
        self._found_end = False
        self.ended_within = False

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            # pydicom reads all that is left for one reason alone: to inflate it, to whatever size that has.
            raise _DeflatedError
        asked = size
        if size > io.DEFAULT_BUFFER_SIZE:
            size = max(min(size, self._size - self.tell()), 0)
        content = super().read(size)
        if len(content) < asked:
            self.ended_within |= bool(content) or self._found_end or asked != _ELEMENT_HEADER
            self._found_end = True
        return content
