"""MetaImage: https://itk.org/Wiki/ITK/MetaIO/Documentation"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nnunet_godc.conversion.grid import Matrix
from nnunet_godc.conversion.problems import CaseError
from nnunet_godc.conversion.text_header import (
    DAMAGED_HEADER,
    Geometry,
    TextHeaderFile,
    data_file,
    numbers,
    read_start,
    three_dimensions,
    triple,
    whole_numbers,
)

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LAST = "ElementDataFile"


def open_metaimage(path: Path) -> TextHeaderFile:
    """Read the header of a .mha or .mhd file.

    Raises:
        CaseError: it is missing, damaged, or no single 3D volume of numbers.
    """
    fields, end = _parsed(read_start(path))
    if not {"NDims", "DimSize", "ElementType", _LAST} <= fields.keys() or fields.get("ObjectType") != "Image":
        raise CaseError(DAMAGED_HEADER)
    sizes = whole_numbers(fields["DimSize"])
    if [len(sizes)] != whole_numbers(fields["NDims"]):
        raise CaseError(DAMAGED_HEADER)
    components = whole_numbers(fields.get("ElementNumberOfChannels", "1"))
    shape = three_dimensions(sizes, components[0] if len(components) == 1 else 0)
    if not _flag(fields, "BinaryData", default=True):
        raise CaseError("the voxels are written as text, which is not read; save the file again in binary")
    if fields["ElementType"] not in _TYPES:
        raise CaseError("the header names no known type of voxels; a CT volume of plain numbers is needed")
    big = _flag(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB", default=False)
    data, offset = path, end
    if fields[_LAST] not in ("LOCAL", "Local", "local"):
        data, offset = data_file(path, fields[_LAST]), 0
    if fields.get("HeaderSize", "0") != "0":
        raise CaseError("the header says to skip bytes before the voxels; save the file again as a plain MetaImage")
    return TextHeaderFile(
        path,
        data,
        shape,
        np.dtype(f"{'>' if big else '<'}{_TYPES[fields['ElementType']]}"),
        offset,
        _flag(fields, "CompressedData", default=False),
        _geometry(fields),
    )


def _parsed(start: bytes) -> tuple[dict[str, str], int]:
    """The fields, and where the line of the last one ends."""
    fields: dict[str, str] = {}
    place = 0
    while _LAST not in fields:
        end = start.find(b"\n", place)
        end = len(start) if end < 0 else end
        try:
            line = start[place:end].decode("utf-8")
        except UnicodeDecodeError:
            raise CaseError(DAMAGED_HEADER) from None
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or name in fields:
            raise CaseError(DAMAGED_HEADER)
        fields[name] = value.strip()
        place = end + 1
    return fields, place


def _flag(fields: Mapping[str, str], *names: str, default: bool) -> bool:
    for name in names:
        if name in fields:
            value = fields[name].lower()
            if value not in ("true", "false", "1", "0"):
                raise CaseError(DAMAGED_HEADER)
            return value in ("true", "1")
    return default


def _geometry(fields: Mapping[str, str]) -> Geometry:
    spacing = next((fields[name] for name in ("ElementSpacing", "ElementSize") if name in fields), None)
    origin = next((fields[name] for name in ("Offset", "Origin", "Position") if name in fields), None)
    turned = next((fields[name] for name in ("TransformMatrix", "Rotation", "Orientation") if name in fields), None)
    direction: Matrix | None = None
    if turned is not None:
        a = numbers(turned, 9)
        # The file has the direction of i, then of j and of k; ours are columns.
        direction = ((a[0], a[3], a[6]), (a[1], a[4], a[7]), (a[2], a[5], a[8]))
    return Geometry(triple(spacing) if spacing else None, triple(origin) if origin else None, direction)
