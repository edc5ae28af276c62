"""Masks of regions that DICOM files draw on a series: segmentations (DICOM-SEG) and structure sets (RTSTRUCT)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset

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
from nnunet_godc.conversion.dicom.regions import Mask
from nnunet_godc.conversion.dicom.rtstruct import read_regions
from nnunet_godc.conversion.dicom.segmentation import read_segments
from nnunet_godc.conversion.dicom.series import DicomSeries
from nnunet_godc.conversion.files import files_below
from nnunet_godc.conversion.problems import CaseError, CaseLog


class Masks(Mapping[str, Mask]):
    """Masks by name, each drawn when it is asked for: a file may hold a hundred, of which two are wanted.

    Only the last one is kept. Names are in the file's order.
    """

    def __init__(self, draw: Mapping[str, Callable[[], Mask]]) -> None:
        self._draw = draw
        self._last: tuple[str, Mask] | None = None

    def __getitem__(self, name: str) -> Mask:
        if self._last is None or self._last[0] != name:
            draw = self._draw[name]
            self._last = None
            self._last = (name, draw())
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._draw)

    def __len__(self) -> int:
        return len(self._draw)

    def __contains__(self, name: object) -> bool:
        return name in self._draw


def mask_files(path: Path) -> list[Path]:
    """The DICOM-SEG and RTSTRUCT files in a folder, or `path` itself where it is one."""
    return [file for file in files_below(path) if _is_mask(file)]


def drawn_on(path: Path) -> frozenset[str]:
    """UIDs of the series and images that a mask was drawn on; empty where it does not say."""
    found = mask_files(path)
    if len(found) != 1:
        return frozenset()
    with quiet():
        try:
            dataset = read_dataset(found[0], pixels=False)
            return frozenset(_references(dataset)) - {""}
        except UnreadableError:
            return frozenset()  # whoever reads the mask says so


def read_masks(path: Path, series: DicomSeries, notes: CaseLog) -> Masks:
    """The masks that a file draws, on the grid of `series`.

    Args:
        path: a DICOM-SEG or RTSTRUCT file, or a folder with exactly one.
        series: what they were drawn on.
        notes: takes what was fixed and what a person should look at, also while a mask is drawn.

    Returns:
        Name of the segment or region -> bool, shape (i, j, k) of ``series.grid``. Segments of one name are united.

    Raises:
        CaseError: there is no such file or more than one, it is damaged, or it lies elsewhere. Reading a mask out of
            the result raises it for what concerns that mask alone.
    """
    found = mask_files(path)
    if len(found) != 1:
        raise CaseError(
            f"{len(found) or 'no'} DICOM segmentations or structure sets where one is expected; name the one to use"
        )
    with quiet():
        try:
            dataset = read_dataset(found[0])
            if sop_class_of(dataset) == RTSTRUCT:
                regions = read_regions(read_dataset(found[0], whole=True), series, notes)
            else:
                regions = read_segments(dataset, series, notes)
        except UnreadableError as problem:
            raise CaseError(f"the DICOM mask {problem}", file=found[0]) from None
    named: dict[str, list[Callable[[], Mask]]] = defaultdict(list)
    for name, draw in regions:
        named[name].append(draw)
    if len(named) < len(regions):
        notes.warnings.append(f"{len(regions) - len(named)} of the mask's regions have the name of another: united")
    return Masks({name: _united(draws, found[0]) for name, draws in named.items()})


def region_names(path: Path) -> list[str]:
    """The names of a mask's segments or regions, in the file's order.

    Raises:
        CaseError: the file is damaged.
    """
    names = []
    for file in mask_files(path):
        with quiet():
            try:
                dataset = read_dataset(file, pixels=False)
                if sop_class_of(dataset) == RTSTRUCT:
                    names += [text_of(item, "ROIName") for item in items_of(dataset, "StructureSetROISequence")]
                else:
                    segments = items_of(dataset, "SegmentSequence")
                    names += [text_of(i, "SegmentLabel") for i in segments if text_of(i, "SegmentNumber") != "0"]
            except UnreadableError as problem:
                raise CaseError(f"the DICOM mask {problem}", file=file) from None
    return names


def _united(draws: list[Callable[[], Mask]], file: Path) -> Callable[[], Mask]:
    def draw() -> Mask:
        with quiet():
            try:
                mask = draws[0]()
                for other in draws[1:]:
                    mask |= other()
            except UnreadableError as problem:
                raise CaseError(f"the DICOM mask {problem}", file=file) from None
        return mask

    return draw


def _is_mask(file: Path) -> bool:
    if not is_dicom_file(file):
        return False
    with quiet():
        try:
            return sop_class_of(read_dataset(file, pixels=False, tags=["SOPClassUID"])) in (*SEGMENTATION, RTSTRUCT)
        except UnreadableError:
            return False


def _references(dataset: FileDataset) -> Iterator[str]:
    for series in items_of(dataset, "ReferencedSeriesSequence"):
        yield text_of(series, "SeriesInstanceUID")
        yield from _instances(series, "ReferencedInstanceSequence")
    for frame in items_of(dataset, "PerFrameFunctionalGroupsSequence"):
        for derivation in items_of(frame, "DerivationImageSequence"):
            yield from _instances(derivation, "SourceImageSequence")
    for reference in items_of(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in items_of(reference, "RTReferencedStudySequence"):
            for series in items_of(study, "RTReferencedSeriesSequence"):
                yield text_of(series, "SeriesInstanceUID")
                yield from _instances(series, "ContourImageSequence")
    for region in items_of(dataset, "ROIContourSequence"):
        for contour in items_of(region, "ContourSequence"):
            yield from _instances(contour, "ContourImageSequence")


def _instances(item: Dataset, key: str) -> Iterator[str]:
    for reference in items_of(item, key):
        yield text_of(reference, "ReferencedSOPInstanceUID")
