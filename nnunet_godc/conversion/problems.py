"""What goes wrong with one case, and what was mended on the way."""

from __future__ import annotations

from dataclasses import dataclass, field


class CaseError(Exception):
    """One sentence: why a case cannot be converted and what its user can do. The other cases go on.

    It is printed and logged, so that it holds no path, no UID and no other text out of a DICOM file. The names of
    segments and regions are the exception: without them nobody could write a label map.
    """


class UnknownGeometryError(CaseError):
    """The file does not say how large its voxels are, or looks as if nobody had filled that in."""


@dataclass
class Notes:
    """What is to be told of a case that can be converted; as private as a `CaseError`.

    Attributes:
        repairs: changes made to what the file says, one sentence each.
        warnings: what a person should look at, one sentence each.
    """

    repairs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
