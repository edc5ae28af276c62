"""What goes wrong with one case, and what was mended on the way."""

from __future__ import annotations

from dataclasses import dataclass, field


class CaseError(Exception):
    """One sentence: why a case cannot be converted and what its user can do. The other cases go on.

    The text never holds a path, a UID or any other text read from a DICOM file: it is printed and logged.
    """


class UnknownGeometryError(CaseError):
    """The file does not say how large its voxels are or where they lie."""


@dataclass
class Notes:
    """What is to be told of a case that can be converted.

    Attributes:
        repairs: changes made to what the file says, one sentence each.
        warnings: what a person should look at, one sentence each.
    """

    repairs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
