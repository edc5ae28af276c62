"""What DICOM images say of themselves: an `ImageHeader` for every plane, with its fault where it is not usable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID

from nnunet_godc.conversion.dicom.files import (
    RTSTRUCT,
    SEGMENTATION,
    UnreadableError,
    items_of,
    number_of,
    numbers_of,
    quiet,
    read_dataset,
    sop_class_of,
    text_of,
    value_of,
    whole_of,
)

ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # and the legacy converted one
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MAX_SIDE = 8192  # pixels; far above what a scanner writes: a damaged header must not ask for more memory than that
ACQUISITION = ("AcquisitionNumber", "TemporalPositionIdentifier", "AcquisitionTime")

_DESCRIPTION = ("StudyInstanceUID", "SeriesDescription", "ConvolutionKernel")
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber", "PatientID"),
    *(*ACQUISITION, *_DESCRIPTION, "FrameOfReferenceUID", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"),
    *("SliceThickness", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "PixelPaddingValue"),
    *("LossyImageCompression", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_NO_IMAGES = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "DOC", "REG")


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

    def affine(self, step: NDArray[np.float64]) -> NDArray[np.float64]:
        """(column, row, slice, 1) to (x, y, z, 1), shape (4, 4), for slices that are `step` (mm, shape (3,)) apart."""
        affine = np.eye(4)
        affine[:3, 0] = np.array(self.along_row) * self.column_spacing
        affine[:3, 1] = np.array(self.along_column) * self.row_spacing
        affine[:3, 2] = step
        affine[:3, 3] = self.position
        return affine


@dataclass(frozen=True)
class ImageHeader:
    """One image plane: a file's, or one frame of a multi-frame file's.

    What may be private is left out of `repr`.

    Attributes:
        file: where its pixels are.
        frame: which of the file's frames, from 0.
        fault: why the plane cannot be used, fit to be printed after "slice 7 "; empty where it can.
        modality: ``"CT"`` or what else the file says; empty where it says nothing.
        acquisition: what differs between two acquisitions of the same place, as `ACQUISITION` names it.
        description: whatever tells apart series without a UID: study, description, convolution kernel.
        is_capture: a picture of a screen, by its kind of object.
        plane: where it lies; None where the file does not say all of it.
        thickness: SliceThickness, mm.
        slope, intercept: from stored values to Hounsfield units; None where the file does not say.
        padding: the stored value of pixels outside of the scanner's field, if there are any.
    """

    file: Path = field(repr=False)
    frame: int = 0
    fault: str = ""
    modality: str = field(default="", repr=False)
    series_uid: str = field(default="", repr=False)
    instance_uid: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)
    series_number: int | None = None
    acquisition: tuple[str, ...] = field(default=(), repr=False)
    description: tuple[str, ...] = field(default=(), repr=False)
    frame_of_reference: str = field(default="", repr=False)
    is_localizer: bool = False
    is_capture: bool = False
    rows: int = 0
    columns: int = 0
    plane: Plane | None = None
    thickness: float | None = None
    slope: float | None = None
    intercept: float | None = None
    padding: int | None = None
    lossy: bool = False


def read_headers(file: Path) -> list[ImageHeader] | None:
    """The planes of a DICOM file; none where it is no image (a report, a structure set, a segmentation).

    Returns:
        None where the file does not say what it holds: it is private, or damaged.

    Raises:
        UnreadableError: the file is broken, so that not even its series is known.
    """
    with quiet():
        dataset = read_dataset(file, pixels=False, tags=_TAGS)
        sop_class, modality = sop_class_of(dataset), text_of(dataset, "Modality")
        if sop_class in (*SEGMENTATION, RTSTRUCT) or modality in _NO_IMAGES:
            return []
        if value_of(dataset, "Rows") is None or value_of(dataset, "Columns") is None:
            name = UID(sop_class).name
            if name.endswith("Image Storage"):
                raise UnreadableError("cannot be read: its header ends too early")
            return None if name == sop_class else []  # nobody has registered it
        base = ImageHeader(
            file,
            modality=modality,
            series_uid=text_of(dataset, "SeriesInstanceUID"),
            instance_uid=text_of(dataset, "SOPInstanceUID"),
            patient_id=text_of(dataset, "PatientID"),
            is_capture=sop_class.startswith(SECONDARY_CAPTURE),
        )
        try:
            base = replace(base, series_number=whole_of(dataset, "SeriesNumber"))
            rows, columns = sides_of(dataset)
            base = replace(
                base,
                fault=_fault(dataset, sop_class),
                acquisition=tuple(text_of(dataset, key) for key in ACQUISITION),
                description=tuple(text_of(dataset, key) for key in _DESCRIPTION),
                frame_of_reference=text_of(dataset, "FrameOfReferenceUID"),
                rows=rows,
                columns=columns,
                padding=whole_of(dataset, "PixelPaddingValue"),
                lossy=text_of(dataset, "LossyImageCompression") == "01",
            )
            frames: list[list[Dataset]] = frame_groups(dataset) if sop_class in ENHANCED_CT else [[dataset]]
            return [_of_frame(base, number, dataset, groups) for number, groups in enumerate(frames)]
        except UnreadableError as error:
            return [replace(base, fault=str(error))]


def frame_groups(dataset: Dataset) -> list[list[Dataset]]:
    """Where to look for what a multi-frame file says of each frame: the frame's own groups, the shared, the file's.

    Raises:
        UnreadableError: the file does not describe as many frames as it holds.
    """
    shared = items_of(dataset, "SharedFunctionalGroupsSequence")[:1]
    frames = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    if len(frames) != (whole_of(dataset, "NumberOfFrames") or 1):
        raise UnreadableError("cannot be read: it does not say of each frame where it lies")
    return [[frame, *shared, dataset] for frame in frames]


def find_group(groups: Sequence[Dataset], key: str) -> Dataset:
    """The first item of the sequence `key` in the first of `groups` that has it; else the last, the file's header."""
    return next((items[0] for place in groups if (items := items_of(place, key))), groups[-1])


def read_plane(groups: Sequence[Dataset]) -> Plane | None:
    """Where a frame with these functional groups lies. Raises UnreadableError where that is damaged."""
    spacing = numbers_of(find_group(groups, "PixelMeasuresSequence"), "PixelSpacing", 2)
    orientation = numbers_of(find_group(groups, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    position = numbers_of(find_group(groups, "PlanePositionSequence"), "ImagePositionPatient", 3)
    if spacing is None or orientation is None or position is None:
        return None
    return Plane(position, orientation[:3], orientation[3:], *spacing)


def sides_of(dataset: Dataset) -> tuple[int, int]:
    """Rows and columns. Raises UnreadableError for a number that no scanner writes."""
    rows, columns = (whole_of(dataset, key) or 0 for key in ("Rows", "Columns"))
    for side in (rows, columns):
        if not 1 <= side <= MAX_SIDE:
            raise UnreadableError(f"claims to be {side} pixels wide or high; its header is damaged")
    return rows, columns


def _of_frame(base: ImageHeader, number: int, dataset: FileDataset, groups: Sequence[Dataset]) -> ImageHeader:
    rescale = find_group(groups, "PixelValueTransformationSequence")
    image_type = text_of(find_group(groups, "CTImageFrameTypeSequence"), "FrameType") or text_of(dataset, "ImageType")
    return replace(
        base,
        frame=number,
        is_localizer="LOCALIZER" in image_type,
        plane=read_plane(groups),
        thickness=number_of(find_group(groups, "PixelMeasuresSequence"), "SliceThickness"),
        slope=number_of(rescale, "RescaleSlope"),
        intercept=number_of(rescale, "RescaleIntercept"),
    )


def _fault(dataset: FileDataset, sop_class: str) -> str:
    """Why the pixels cannot be read as plain grey values; empty where they can."""
    if (whole_of(dataset, "SamplesPerPixel") or 1) != 1:
        return "is a coloured picture, not a CT image; leave it out"
    if (whole_of(dataset, "NumberOfFrames") or 1) != 1 and sop_class not in ENHANCED_CT:
        return "holds several frames, but is not an enhanced CT image; export it as single slices"
    allocated = whole_of(dataset, "BitsAllocated") or 0
    stored = whole_of(dataset, "BitsStored") or allocated
    high = whole_of(dataset, "HighBit")
    if allocated not in (8, 16, 32) or (high is not None and high != stored - 1):
        return "stores its pixels in a layout of bits that is not read; convert it with dcm2niix"
    if items_of(dataset, "ModalityLUTSequence"):
        return "maps stored values to Hounsfield units by a table, which is not read; convert it with dcm2niix"
    return ""
