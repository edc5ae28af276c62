"""DICOM files as they lie about: with and without preamble, among files of every other kind."""

from __future__ import annotations

import logging
import math
import mmap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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


DAMAGED_ENTRY = "cannot be read: an entry of its header is damaged"


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


class _MappedFile(mmap.mmap):
    """A file as memory, of which no read makes room for more bytes than there are.

    Attributes:
        ended_within: whether what was asked for went on beyond the end. To find the end once is how reading ends.
    """

    found_end = False
    ended_within = False

    def read(self, size: int | None = None, /) -> bytes:
        content = super().read(size)
        if size is not None and len(content) < size:
            self.ended_within |= bool(content) or self.found_end or size != _ELEMENT_HEADER
            self.found_end = True
        return content


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
        UnreadableError: the file is broken.
    """
    specific = None if tags is None else list(tags)
    with file.open("rb") as opened, _MappedFile(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            dataset = pydicom.dcmread(content, stop_before_pixels=not pixels, specific_tags=specific, force=True)  # type: ignore[arg-type]
        except Exception:
            # pydicom raises whatever it stumbles over, and the text may quote the file.
            raise UnreadableError("cannot be read: it is damaged or not whole") from None
        if whole and content.ended_within:
            raise UnreadableError("is not whole; download it again")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def sop_class_of(dataset: FileDataset) -> str:
    """What kind of object a file holds; empty where it does not say."""
    # The file's beginning comes first: it is whole where the data set may be cut off, and there where that is empty.
    return text_of(dataset.file_meta, "MediaStorageSOPClassUID") or text_of(dataset, "SOPClassUID")


def value_of(dataset: Dataset, key: str) -> Any:
    """An entry's value; None where it is not there or empty.

    Raises:
        UnreadableError: it cannot be parsed; as all functions below.
    """
    try:
        value = dataset.get(key)
    except Exception:
        # pydicom parses an element when it is asked for, and raises whatever it stumbles over.
        raise UnreadableError(DAMAGED_ENTRY) from None
    return None if value is None or (isinstance(value, str) and not value) else value


def text_of(dataset: Dataset, key: str) -> str:
    """An entry as text; empty where it is not there."""
    value = value_of(dataset, key)
    return "" if value is None else str(value).strip()


def items_of(dataset: Dataset, *keys: str) -> list[Dataset]:
    """The items of a sequence, or of a sequence within its items; none where it is not there."""
    found = [dataset]
    for key in keys:
        sequences = [value for item in found if (value := value_of(item, key)) is not None]
        if not all(isinstance(sequence, pydicom.Sequence) for sequence in sequences):
            raise UnreadableError(DAMAGED_ENTRY)
        found = [item for sequence in sequences for item in sequence]
    return found


def whole_of(dataset: Dataset, key: str) -> int | None:
    """An entry as a whole number; None where it is not there."""
    value = value_of(dataset, key)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        raise UnreadableError(DAMAGED_ENTRY) from None


def number_of(dataset: Dataset, key: str) -> float | None:
    """An entry as a finite number; None where it is not there."""
    numbers = numbers_of(dataset, key, 1)
    return None if numbers is None else numbers[0]


def numbers_of(dataset: Dataset, key: str, count: int) -> tuple[float, ...] | None:
    """An entry as `count` finite numbers; None where it is not there."""
    value = value_of(dataset, key)
    if value is None or (not isinstance(value, str | bytes) and np.size(value) == 0):
        return None
    try:
        numbers = tuple(float(number) for number in np.atleast_1d(np.asarray(value, dtype=np.float64)))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UnreadableError("cannot be read: a position, direction or spacing of its header is damaged")
    return numbers
