"""Masks of regions that DICOM files draw on a series: segmentations (DICOM-SEG) and structure sets (RTSTRUCT)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nnunet_godc.conversion.dicom import DicomSeries
from nnunet_godc.conversion.dicom_headers import (
    RTSTRUCT,
    SEGMENTATION,
    UnreadableError,
    has_preamble,
    quiet,
    read_dataset,
    sop_class_of,
)
from nnunet_godc.conversion.dicom_seg import read_segments
from nnunet_godc.conversion.files import files_below
from nnunet_godc.conversion.problems import CaseError, Notes
from nnunet_godc.conversion.regions import Mask
from nnunet_godc.conversion.rtstruct import read_regions


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


def read_masks(path: Path, series: DicomSeries, notes: Notes) -> Masks:
    """The masks that a file draws, on the grid of `series`.

    Args:
        path: a DICOM-SEG or RTSTRUCT file, or a folder with exactly one.
        series: what they were drawn on.
        notes: takes what was mended and what a person should look at, also while a mask is drawn.

    Returns:
        Name of the segment or region -> bool, shape (i, j, k) of ``series.grid``. Segments of one name are united.

    Raises:
        CaseError: there is no such file or more than one, it is damaged, or it lies elsewhere. Reading a mask out of
            the result raises it for what concerns that mask alone.
    """
    found = [file for file in files_below(path) if _is_mask(file)]
    if len(found) != 1:
        raise CaseError(
            f"{len(found) or 'no'} DICOM segmentations or structure sets where one is expected; name the one to use"
        )
    with quiet():
        try:
            if sop_class_of(found[0]) == RTSTRUCT:
                regions = read_regions(read_dataset(found[0], whole=True), series, notes)
            else:
                regions = read_segments(read_dataset(found[0]), series, notes)
        except UnreadableError as problem:
            raise CaseError(f"the DICOM mask {problem}") from None
    named: dict[str, list[Callable[[], Mask]]] = defaultdict(list)
    for name, draw in regions:
        named[name].append(draw)
    if len(named) < len(regions):
        notes.warnings.append(f"{len(regions) - len(named)} of the mask's regions have the name of another: united")
    return Masks({name: _united(draws) for name, draws in named.items()})


def _united(draws: list[Callable[[], Mask]]) -> Callable[[], Mask]:
    def draw() -> Mask:
        with quiet():
            try:
                mask = draws[0]()
                for other in draws[1:]:
                    mask |= other()
            except UnreadableError as problem:
                raise CaseError(f"the DICOM mask {problem}") from None
        return mask

    return draw


def _is_mask(file: Path) -> bool:
    return has_preamble(file) and sop_class_of(file) in (*SEGMENTATION, RTSTRUCT)
