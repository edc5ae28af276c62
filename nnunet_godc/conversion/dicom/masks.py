"""Masks of regions that DICOM files draw on a series: segmentations (DICOM-SEG) and structure sets (RTSTRUCT)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from pydicom.dataset import FileDataset

from nnunet_godc.conversion.dicom.files import (
    RTSTRUCT,
    SEGMENTATION,
    UnreadableError,
    is_dicom_file,
    items_of,
    quiet,
    read_dataset,
    sop_class_of,
    text_of,
)
from nnunet_godc.conversion.dicom.rtstruct import Mask, read_regions
from nnunet_godc.conversion.dicom.segmentation import read_segments, segments_of
from nnunet_godc.conversion.dicom.series import DicomSeries
from nnunet_godc.conversion.files import visible_files
from nnunet_godc.conversion.problems import CaseError, CaseLog

# Where masks name what they were drawn on.
_SERIES = (
    ("ReferencedSeriesSequence",),
    ("ReferencedFrameOfReferenceSequence", "RTReferencedStudySequence", "RTReferencedSeriesSequence"),
)
_INSTANCES = (
    ("ReferencedSeriesSequence", "ReferencedInstanceSequence"),
    ("PerFrameFunctionalGroupsSequence", "DerivationImageSequence", "SourceImageSequence"),
    (*_SERIES[1], "ContourImageSequence"),
    ("ROIContourSequence", "ContourSequence", "ContourImageSequence"),
)


def mask_files(path: Path) -> list[Path]:
    """The DICOM-SEG and RTSTRUCT files in a folder, or `path` itself where it is one."""
    return [file for file in visible_files(path) if _is_mask(file)]


def drawn_on(path: Path) -> frozenset[str]:
    """UIDs of the series and images that a mask was drawn on; empty where it does not say."""
    found = mask_files(path)
    if len(found) != 1:
        return frozenset()
    with quiet():
        try:
            dataset = read_dataset(found[0], pixels=False)
            series = {text_of(item, "SeriesInstanceUID") for keys in _SERIES for item in items_of(dataset, *keys)}
            images = {
                text_of(item, "ReferencedSOPInstanceUID") for keys in _INSTANCES for item in items_of(dataset, *keys)
            }
        except UnreadableError:
            return frozenset()  # whoever reads the mask says so
    return frozenset(series | images) - {""}


def read_masks(path: Path, series: DicomSeries, log: CaseLog) -> dict[str, Callable[[], Mask]]:
    """What draws the masks of a file, on the grid of `series`: a file may hold a hundred, of which two are wanted.

    Args:
        path: a DICOM-SEG or RTSTRUCT file, or a folder with exactly one.
        series: what they were drawn on.
        log: takes what was fixed and what a person should look at, also while a mask is drawn.

    Returns:
        Name of the segment or region, in the file's order, to what gives its mask: bool, shape (i, j, k) of
        ``series.grid``. Segments of one name are united.

    Raises:
        CaseError: there is no such file or more than one, it is damaged, or it lies elsewhere. Drawing a mask raises it
            for what concerns that mask alone.
    """
    found = mask_files(path)
    if len(found) != 1:
        raise CaseError(
            f"{len(found) or 'no'} DICOM segmentations or structure sets where one is expected; name the one to use"
        )
    with quiet():
        try:
            dataset = read_dataset(found[0], whole=True)
            regions = (read_regions if sop_class_of(dataset) == RTSTRUCT else read_segments)(dataset, series, log)
            frames = {text_of(dataset, "FrameOfReferenceUID")} | {
                text_of(region, "ReferencedFrameOfReferenceUID")
                for region in items_of(dataset, "StructureSetROISequence")
            }
        except UnreadableError as problem:
            raise CaseError(f"the DICOM mask {problem}", file=found[0]) from None
    if (own := series.slices[0].frame_of_reference) and frames - {"", own}:
        log.warnings.append("the DICOM mask names another frame of reference than the series; look whether it fits")
    named: dict[str, list[Callable[[], Mask]]] = defaultdict(list)
    for name, draw in regions:
        named[name].append(draw)
    if len(named) < len(regions):
        log.warnings.append(f"{len(regions) - len(named)} of the mask's regions have the name of another: united")
    return {name: partial(_united, draws, found[0]) for name, draws in named.items()}


def region_names(path: Path) -> list[str]:
    """The names of a mask's segments or regions, in the file's order.

    Raises:
        CaseError: the file is damaged.
    """
    names: list[str] = []
    for file in mask_files(path):
        with quiet():
            try:
                dataset = read_dataset(file, pixels=False)
                names += [text_of(item, "ROIName") for item in items_of(dataset, "StructureSetROISequence")]
                names += segments_of(dataset).values()
            except UnreadableError as problem:
                raise CaseError(f"the DICOM mask {problem}", file=file) from None
    return names


def _united(draws: Iterable[Callable[[], Mask]], file: Path) -> Mask:
    with quiet():
        try:
            first, *others = draws
            mask = first()
            for other in others:
                mask |= other()
        except UnreadableError as problem:
            raise CaseError(f"the DICOM mask {problem}", file=file) from None
    return mask


def _is_mask(file: Path) -> bool:
    if not is_dicom_file(file):
        return False
    with quiet():
        try:
            dataset: FileDataset = read_dataset(file, pixels=False, tags=["SOPClassUID"])
            return sop_class_of(dataset) in (*SEGMENTATION, RTSTRUCT)
        except UnreadableError:
            return False
