"""Writes DICOM series, segmentations and structure sets, whole or with a given defect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

from nnunet_godc.conversion.geometry import Grid

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
# What a patient is called in the files; no output may hold any of it.
PATIENT = {"PatientName": "Doe^Jane", "PatientID": "HOSPITAL-4711", "PatientBirthDate": "19520229"}
UIDS = "1.2.826.0.1.3680043.8.498."  # the start of all that are generated

Change = Callable[[FileDataset, int], None]


def make_grid(shape: tuple[int, int, int] = (6, 5, 4), **changes: Any) -> Grid:
    """A small anisotropic grid; `changes` are fields of `Grid`."""
    fields = {"spacing": (0.8, 0.9, 2.5), "origin": (-20.0, 10.0, -300.0), "direction": IDENTITY}
    return Grid(**{"shape": shape, **fields, **changes})


def rotation(*degrees: float) -> tuple[tuple[float, float, float], ...]:
    """Right-handed direction cosines: turned about x, then y, then z."""
    whole = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        a, b = [other for other in range(3) if other != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        whole = turn @ whole
    return tuple(tuple(float(value) for value in row) for row in whole)


def make_voxels(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.int16]:
    """Hounsfield units of noise from -1024 to 3000, no two slices alike."""
    return np.random.default_rng(seed).integers(-1024, 3000, shape, dtype=np.int16)


def _file(sop_class: str, modality: str, **header: Any) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    common = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": modality,
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Manufacturer": "",
        "PatientSex": "",
        **PATIENT,
    }
    for key, value in {**common, **header}.items():
        setattr(dataset, key, value)
    return dataset


def _pixels(dataset: Dataset, stored: NDArray[Any]) -> None:
    """Sets what describes the pixels; `stored` has shape (rows, columns) or (frames, rows, columns)."""
    bits = 8 * stored.dtype.itemsize
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"


def write_series(
    folder: Path,
    voxels: NDArray[Any],
    grid: Grid,
    *,
    change: Change | None = None,
    slope: float = 1,
    intercept: float = -1024,
    dtype: str = "<u2",
    number: int = 3,
    **header: Any,
) -> list[Path]:
    """Writes a CT series, one file per slice, with names and instance numbers in the opposite order of k.

    Args:
        folder: made if it is not there.
        voxels: shape (i, j, k), Hounsfield units.
        grid: where they lie.
        change: is given the data set of slice k and k before that is written; it may delete entries.
        slope, intercept, dtype: of the stored values.
        number: SeriesNumber; also part of the files' names.
        header: entries for all slices.

    Returns:
        The files in the order of k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    direction = np.array(grid.direction)
    files = []
    for k in range(voxels.shape[2]):
        dataset = _file(CTImageStorage, "CT", **{**uids, "SeriesNumber": number, **header})
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.InstanceNumber = voxels.shape[2] - k
        dataset.ImagePositionPatient = [float(x) for x in grid.affine @ (0, 0, k, 1)][:3]
        dataset.ImageOrientationPatient = [float(x) for x in direction[:, :2].T.ravel()]
        dataset.PixelSpacing = [grid.spacing[1], grid.spacing[0]]
        dataset.SliceThickness = 2 * grid.spacing[2]  # not the distance: overlapping slices
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        _pixels(dataset, np.rint((voxels[:, :, k].T.astype(np.float64) - intercept) / slope).astype(dtype))
        if change is not None:
            change(dataset, k)
        files.append(folder / f"series{number}-{voxels.shape[2] - k:04d}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def write_enhanced(path: Path, voxels: NDArray[Any], grid: Grid, order: Sequence[int]) -> None:
    """Writes an enhanced CT image: all slices in one file, frames in the order of k that `order` gives."""
    uids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    dataset = _file(EnhancedCTImageStorage, "CT", **uids, SeriesNumber=3, InstanceNumber=1)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = len(order)
    _pixels(dataset, np.stack([voxels[:, :, k].T + 1024 for k in order]).astype("<u2"))
    shared, measures, rescale, directions = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [grid.spacing[1], grid.spacing[0]], grid.spacing[2]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    directions.ImageOrientationPatient = [float(x) for x in np.array(grid.direction)[:, :2].T.ravel()]
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PixelValueTransformationSequence = DicomSequence([rescale])
    shared.PlaneOrientationSequence = DicomSequence([directions])
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    frames = []
    for k in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [float(x) for x in grid.affine @ (0, 0, k, 1)][:3]
        frame.PlanePositionSequence = DicomSequence([position])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    dataset.save_as(path, enforce_file_format=True)


def write_segmentation(
    path: Path,
    files: Sequence[Path],
    masks: Mapping[str, NDArray[Any]],
    *,
    kind: str = "BINARY",
    change: Callable[[Dataset], None] | None = None,
) -> None:
    """Writes a DICOM-SEG that refers to a series; frames without a voxel are left out.

    Args:
        files: of the series, in the order of k.
        masks: segment label -> shape (i, j, k); bool, or probabilities for ``"FRACTIONAL"``.
        kind: ``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``.
        change: is given the data set before that is written.
    """
    code = highdicom.sr.CodedConcept("91723000", "SCT", "Anatomical structure")
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=code,
            segmented_property_type=code,
            algorithm_type="MANUAL",
        )
        for number, label in enumerate(masks, start=1)
    ]
    stacked = np.stack([np.asarray(mask).transpose(2, 1, 0) for mask in masks.values()], axis=-1)  # (k, j, i, segment)
    if kind == "LABELMAP":
        stacked = (stacked * np.arange(1, stacked.shape[-1] + 1)).max(axis=-1)
    segmentation = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in files],
        pixel_array=stacked.astype(np.float32 if kind == "FRACTIONAL" else np.uint8),
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
    )
    if change is not None:
        change(segmentation)
    segmentation.save_as(path)


def write_structure_set(
    path: Path,
    files: Sequence[Path],
    contours: Mapping[str, Sequence[NDArray[np.float64]]] | Sequence[tuple[str, Sequence[NDArray[np.float64]]]],
    *,
    kind: str = "CLOSED_PLANAR",
    change: Callable[[Dataset], None] | None = None,
) -> None:
    """Writes an RTSTRUCT that refers to a series.

    Args:
        files: of the series, in the order of k.
        contours: name of a region -> contours of shape (points, 3), mm in LPS. Pairs where names repeat.
        kind: ContourGeometricType.
        change: is given the data set before that is written.
    """
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    first = sources[0]
    dataset = _file(
        RTStructureSetStorage,
        "RTSTRUCT",
        StudyInstanceUID=first.StudyInstanceUID,
        SeriesInstanceUID=generate_uid(),
        SeriesNumber=8,
        InstanceNumber=1,
        StructureSetLabel="regions",
        StructureSetDate="20200101",
        StructureSetTime="120000",
        FrameOfReferenceUID=first.FrameOfReferenceUID,
    )
    images = []
    for source in sources:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        images.append(image)
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = DicomSequence(images)
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = DicomSequence([series])
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = DicomSequence([study])
    dataset.ReferencedFrameOfReferenceSequence = DicomSequence([frame])

    # A contour names the slice that its plane is nearest to.
    normal = np.cross(first.ImageOrientationPatient[:3], first.ImageOrientationPatient[3:])
    along = np.array([normal @ np.array(source.ImagePositionPatient) for source in sources])
    regions, drawn, observed = [], [], []
    pairs = contours.items() if isinstance(contours, Mapping) else contours
    for number, (name, polygons) in enumerate(pairs, start=1):
        region, drawing, observation = Dataset(), Dataset(), Dataset()
        region.ROINumber, region.ROIName, region.ROIGenerationAlgorithm = number, name, "MANUAL"
        region.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        drawing.ReferencedROINumber, drawing.ROIDisplayColor = number, [255, 0, 0]
        drawing.ContourSequence = DicomSequence()
        for polygon in polygons:
            contour = Dataset()
            nearest = int(np.abs(along - normal @ np.mean(polygon, axis=0)).argmin())
            contour.ContourImageSequence = DicomSequence([images[nearest]])
            contour.ContourGeometricType = kind
            contour.NumberOfContourPoints = len(polygon)
            contour.ContourData = [f"{value:.6f}" for value in np.ravel(polygon)]
            drawing.ContourSequence.append(contour)
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        regions.append(region)
        drawn.append(drawing)
        observed.append(observation)
    dataset.StructureSetROISequence = DicomSequence(regions)
    dataset.ROIContourSequence = DicomSequence(drawn)
    dataset.RTROIObservationsSequence = DicomSequence(observed)
    if change is not None:
        change(dataset)
    dataset.save_as(path, enforce_file_format=True)
