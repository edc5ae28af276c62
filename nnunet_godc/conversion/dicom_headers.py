"""What DICOM images say of themselves, read so that a broken file ends in `UnreadableError` and in nothing else."""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import IGNORE
from pydicom.config import settings as pydicom_settings
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID

ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # and the legacy converted one
SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # and the label map
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_DEFLATED = "1.2.840.10008.1.2.1.99"

# Far above what a scanner writes: a damaged header must not ask for more memory than that.
MAX_SIDE = 8192  # pixels
_PREAMBLE = 128  # bytes
_ELEMENT_HEADER = 8  # bytes

_OF_FILE = [
    "SOPClassUID",
    "Modality",
    "ImageType",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "AcquisitionNumber",
    "FrameOfReferenceUID",
    "ConvolutionKernel",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PixelPaddingValue",
    "LossyImageCompression",
]
_OF_FRAMES = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]


class UnreadableError(Exception):
    """A DICOM file that is broken. Its text is one of ours, fit to be printed after "slice 7 "."""


class UnknownKindError(Exception):
    """A DICOM file that is no image as it stands, and does not say what else it is: private, or damaged."""


@dataclass(frozen=True)
class Plane:
    """Where an image lies, mm in the patient's LPS axes.

    Attributes:
        position: centre of the first pixel.
        along_row: direction of growing column index.
        along_column: direction of growing row index.
        row_spacing: distance between the centres of two rows.
        column_spacing: distance between the centres of two columns.
    """

    position: tuple[float, ...]
    along_row: tuple[float, ...]
    along_column: tuple[float, ...]
    row_spacing: float
    column_spacing: float

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector, shape (3,); zeros where the directions are not independent."""
        across: NDArray[np.float64] = np.cross(self.along_row, self.along_column)
        length = float(np.linalg.norm(across))
        return across / length if length > 0 else across


@dataclass(frozen=True)
class ImageHeader:
    """One image plane: a file's, or one frame of a multi-frame file's.

    What may be private is left out of `repr`.

    Attributes:
        file: where its pixels are.
        frame: which of the file's frames, from 0.
        modality: ``"CT"`` or what else the file says; empty where it says nothing.
        description: whatever tells apart series without a UID: study, description, convolution kernel.
        plane: where it lies; None where the file does not say all of it.
        thickness: SliceThickness, mm.
        slope, intercept: from stored values to Hounsfield units; None where the file does not say.
        padding: the stored value of pixels outside of the scanner's field, if there are any.
    """

    file: Path = field(repr=False)
    frame: int
    modality: str = field(repr=False)
    series_uid: str = field(repr=False)
    series_number: int | None
    acquisition: int | None
    description: tuple[str, ...] = field(repr=False)
    frame_of_reference: str = field(repr=False)
    is_localizer: bool
    rows: int
    columns: int
    plane: Plane | None
    thickness: float | None
    slope: float | None
    intercept: float | None
    padding: int | None
    lossy: bool


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


def has_preamble(file: Path) -> bool:
    """Whether a file is one of DICOM's; False as well where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def read_dataset(
    file: Path, *, pixels: bool = True, tags: Sequence[str] | None = None, whole: bool = False
) -> FileDataset:
    """A file's data set; to be called within `quiet`.

    Args:
        file: a file with a preamble.
        pixels: whether to read what the pixels are stored in.
        tags: keywords of the elements to read; None for all.
        whole: whether to make sure that nothing is cut off at the end. Pixels that are missing there are noticed anyhow
            when they are decoded; contours would not be.

    Raises:
        UnreadableError: the file is broken, or is of a kind that is not read.
    """
    try:
        if read_file_meta_info(str(file)).get("TransferSyntaxUID") == _DEFLATED:
            raise UnreadableError("is deflated, which is not read; inflate it, for example with `dcmconv +te`")
        with _Bounded(file) as opened:
            dataset = pydicom.dcmread(
                opened, stop_before_pixels=not pixels, specific_tags=None if tags is None else list(tags)
            )
            if whole and opened.ended_within:
                raise UnreadableError("is not whole; fetch it again")
            return dataset
    except UnreadableError:
        raise
    except Exception:
        # Whatever it is, its text may quote the file.
        raise UnreadableError("cannot be read: it is damaged or not whole") from None


def sop_class_of(file: Path) -> str:
    """What kind of object a DICOM file holds, by its first bytes; empty where they do not say."""
    with quiet():
        try:
            return str(read_file_meta_info(str(file)).get("MediaStorageSOPClassUID", ""))
        except Exception:
            return ""


def read_headers(file: Path) -> list[ImageHeader]:
    """The planes of a DICOM file; none where it is no image (a report, a structure set, a segmentation).

    Raises:
        UnreadableError: the file is broken, or holds an image that is not read.
        UnknownKindError: it is not said what it holds.
    """
    with quiet():
        dataset = read_dataset(file, pixels=False, tags=[*_OF_FILE, *_OF_FRAMES])
        try:
            return _planes(file, dataset)
        except (UnreadableError, UnknownKindError):
            raise
        except Exception:
            raise UnreadableError("cannot be read: an entry of its header is damaged") from None


def _planes(file: Path, dataset: FileDataset) -> list[ImageHeader]:
    # The file's beginning comes first: it is whole where the data set may be cut off, and there where that is empty.
    sop_class = str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) or text_of(dataset, "SOPClassUID")
    if sop_class in (*SEGMENTATION, RTSTRUCT) or text_of(dataset, "Modality") in ("SEG", "RTSTRUCT", "RTDOSE"):
        return []
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        name = UID(sop_class).name
        if name == sop_class:  # nobody has registered it
            raise UnknownKindError
        if name.endswith("Image Storage"):
            raise UnreadableError("cannot be read: its header ends too early")
        return []
    _check_pixels(dataset, sop_class)
    if sop_class in ENHANCED_CT:
        return [_header(file, index, dataset, groups) for index, groups in enumerate(frame_groups(dataset))]
    return [_header(file, 0, dataset, [dataset])]


def items_of(dataset: Dataset, key: str) -> list[Dataset]:
    """The items of a sequence; none where it is not there."""
    return list(dataset.get(key) or [])


def text_of(dataset: Dataset, key: str) -> str:
    """An entry as text; empty where it is not there."""
    value = dataset.get(key)
    return "" if value is None else str(value).strip()


def side_of(dataset: Dataset, key: str) -> int:
    """Rows or Columns. Raises UnreadableError for a number that no scanner writes."""
    side = int(dataset[key].value)
    if not 1 <= side <= MAX_SIDE:
        raise UnreadableError(f"claims to be {side} pixels wide or high; its header is damaged")
    return side


def frame_groups(dataset: Dataset) -> list[list[Dataset]]:
    """Where to look for what a multi-frame file says of each frame: the frame's own groups, the shared, the file's.

    Raises:
        UnreadableError: the file does not describe as many frames as it holds.
    """
    shared = items_of(dataset, "SharedFunctionalGroupsSequence")[:1]
    frames = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    if len(frames) != int(dataset.get("NumberOfFrames") or 1):
        raise UnreadableError("cannot be read: it does not say of each frame where it lies")
    return [[frame, *shared, dataset] for frame in frames]


def find_group(groups: Sequence[Dataset], key: str) -> Dataset:
    """The first item of the sequence `key` in the first of `groups` that has it; else the last, the file's header."""
    for place in groups:
        if items := items_of(place, key):
            return items[0]
    return groups[-1]


def read_plane(groups: Sequence[Dataset]) -> Plane | None:
    """Where a frame with these functional groups lies. Raises UnreadableError where that is damaged."""
    spacing = _numbers(find_group(groups, "PixelMeasuresSequence"), "PixelSpacing", 2)
    orientation = _numbers(find_group(groups, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    position = _numbers(find_group(groups, "PlanePositionSequence"), "ImagePositionPatient", 3)
    if spacing is None or orientation is None or position is None:
        return None
    return Plane(position, orientation[:3], orientation[3:], *spacing)


def _header(file: Path, frame: int, dataset: FileDataset, groups: Sequence[Dataset]) -> ImageHeader:
    rescale = find_group(groups, "PixelValueTransformationSequence")
    image_type = find_group(groups, "CTImageFrameTypeSequence").get("FrameType") or dataset.get("ImageType") or []
    image_type = [image_type] if isinstance(image_type, str) else [str(value) for value in image_type]
    return ImageHeader(
        file=file,
        frame=frame,
        modality=text_of(dataset, "Modality"),
        series_uid=text_of(dataset, "SeriesInstanceUID"),
        series_number=_whole(dataset, "SeriesNumber"),
        acquisition=_whole(dataset, "AcquisitionNumber"),
        description=tuple(
            text_of(dataset, key) for key in ("StudyInstanceUID", "SeriesDescription", "ConvolutionKernel")
        ),
        frame_of_reference=text_of(dataset, "FrameOfReferenceUID"),
        is_localizer="LOCALIZER" in image_type,
        rows=side_of(dataset, "Rows"),
        columns=side_of(dataset, "Columns"),
        plane=read_plane(groups),
        thickness=_number(find_group(groups, "PixelMeasuresSequence"), "SliceThickness"),
        slope=_number(rescale, "RescaleSlope"),
        intercept=_number(rescale, "RescaleIntercept"),
        padding=_whole(dataset, "PixelPaddingValue"),
        lossy=text_of(dataset, "LossyImageCompression") == "01",
    )


def _check_pixels(dataset: FileDataset, sop_class: str) -> None:
    """Raises UnreadableError for pixels that are no plain grey values."""
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise UnreadableError("is a coloured picture, no CT image; leave it out")
    if int(dataset.get("NumberOfFrames") or 1) != 1 and sop_class not in ENHANCED_CT:
        raise UnreadableError("holds several frames, but is no enhanced CT image; split it into single slices")
    stored = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 0)
    if (
        int(dataset.get("BitsAllocated") or 0) not in (8, 16, 32)
        or int(dataset.get("HighBit", stored - 1)) != stored - 1
    ):
        raise UnreadableError("stores its pixels in a layout of bits that is not read; convert it with dcm2niix")
    if items_of(dataset, "ModalityLUTSequence"):
        raise UnreadableError(
            "maps stored values to Hounsfield units by a table, which is not read; convert it with dcm2niix"
        )


def _numbers(dataset: Dataset, key: str, count: int) -> tuple[float, ...] | None:
    value = dataset.get(key)
    if value is None or value == "":
        return None
    numbers = tuple(float(number) for number in np.atleast_1d(np.asarray(value, dtype=np.float64)))
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise UnreadableError("cannot be read: a position, direction or spacing of its header is damaged")
    return numbers


def _number(dataset: Dataset, key: str) -> float | None:
    numbers = _numbers(dataset, key, 1)
    return None if numbers is None else numbers[0]


def _whole(dataset: Dataset, key: str) -> int | None:
    value = dataset.get(key)
    return None if value is None or value == "" else int(value)


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
        asked = size
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = max(min(size, self._size - self.tell()), 0)
        content = super().read(size)
        if asked is not None and len(content) < asked:
            self.ended_within |= bool(content) or self._found_end or asked != _ELEMENT_HEADER
            self._found_end = True
        return content
