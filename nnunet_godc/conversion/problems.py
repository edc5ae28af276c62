"""What goes wrong with one case, and what was fixed on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


class CaseError(Exception):
    """One sentence: why a case cannot be converted and what its user can do. The other cases go on.

    It goes into conversion.json, so that it holds no path, no UID and no other text out of a DICOM file. The names of
    segments and regions are the exception: without them nobody could write a label map.

    Attributes:
        file: the file at fault, which is told on the terminal alone.
    """

    def __init__(self, sentence: str, *, file: Path | None = None) -> None:
        super().__init__(sentence)
        self.file = file


class UnknownGeometryError(CaseError):
    """The file does not say how large its voxels are, or looks as if nobody had filled that in."""


class IrregularError(CaseError):
    """The slices are tilted against their stack, or at uneven distances: only resampling brings them onto a grid."""


@dataclass(frozen=True)
class Problem:
    """What could not be converted.

    Attributes:
        sentence: goes into conversion.json, and holds no name that may be a patient's.
        where: the files, for the terminal of their owner alone.
    """

    sentence: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.sentence} [{self.where}]" if self.where else self.sentence


@dataclass
class CaseLog:
    """What is to be told of a case that can be converted, in sentences as private as a `CaseError`.

    Attributes:
        repairs: changes made to what the file says.
        warnings: what a person should look at.
        remarks: what was passed over, and other things that need no attention.
    """

    repairs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def warn_once(self, warning: str) -> None:
        """Adds a warning, unless it is there: a region may be drawn several times."""
        if warning not in self.warnings:
            self.warnings.append(warning)


def listed(names: Iterable[object], at_most: int = 8) -> str:
    """The first of `names`, for a message, and how many there are more."""
    shown = list(map(str, names))
    more = f" and {len(shown) - at_most} more" if len(shown) > at_most else ""
    return ", ".join(shown[:at_most]) + more
