"""NRRD: https://teem.sourceforge.net/nrrd/format.html"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nnunet_godc.conversion.grid import Matrix, Triple
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

# The format's own fields, without blanks; any other one is damage.
_FIELD = re.compile(
    "axis(max|min)s|blocksize|byteskip|center(ing)?s|content|datafile|dimension|encoding|endian|kinds|labels|lineskip|"
    "max|measurementframe|min|number|old(max|min)|sampleunits|sizes|space(dimension|directions|origin|units)?|spacings|"
    "thicknesses|type|units"
)
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_TYPE_OF = {name: code for code, names in _TYPES.items() for name in names}
# Signs that bring a space's axes to LPS.
_SPACES: dict[str, Triple] = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}


def open_nrrd(path: Path) -> TextHeaderFile:
    """Read the header of a .nrrd or .nhdr file.

    Raises:
        CaseError: it is missing, damaged, or no single 3D volume of numbers.
    """
    start = read_start(path)
    header, blank, _ = start.replace(b"\r\n", b"\n").partition(b"\n\n")
    fields, keys = _parsed(header)
    if not {"type", "dimension", "sizes", "encoding"} <= fields.keys():
        raise CaseError(DAMAGED_HEADER)
    sizes = whole_numbers(fields["sizes"])
    if [len(sizes)] != whole_numbers(fields["dimension"]):
        raise CaseError(DAMAGED_HEADER)
    data, offset = path, _end_of_header(start)
    if "datafile" in fields:
        data, offset = data_file(path, fields["datafile"]), 0
    elif not blank:
        raise CaseError(DAMAGED_HEADER)
    if fields.get("lineskip", "0") != "0" or fields.get("byteskip", "0") != "0":
        raise CaseError("the header says to skip bytes before the voxels; save the file again as a plain NRRD")
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gz", "gzip"):
        raise CaseError("the voxels are in an encoding that is not read; save the file again as raw or gzip")
    return TextHeaderFile(
        path,
        data,
        _shape(sizes, fields.get("kinds", "")),
        _dtype(fields),
        offset,
        encoding != "raw",
        _geometry(fields),
        _segments(keys),
    )


def _parsed(header: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """The format's own fields, names without blanks, and the keys that programs add."""
    first, *lines = header.decode("utf-8", errors="replace").rstrip("\n").split("\n")
    if not re.fullmatch(r"NRRD000[1-5]", first):
        raise CaseError("the file is empty, damaged or no NRRD file; fetch it again")
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in lines:
        if line.startswith("#"):
            continue
        if key := re.fullmatch(r"([^:]*):=(.*)", line):
            keys[key[1]] = key[2]
            continue
        name, colon, value = line.partition(":")
        name = name.replace(" ", "").lower()
        if not colon or not _FIELD.fullmatch(name) or name in fields:
            raise CaseError(DAMAGED_HEADER)
        fields[name] = value.strip()
    return fields, keys


def _end_of_header(start: bytes) -> int:
    blank = re.search(rb"\r?\n\r?\n", start)
    return blank.end() if blank else len(start)


def _shape(sizes: list[int], kinds: str) -> tuple[int, int, int]:
    """A list, a vector or a colour along the first axis counts as components."""
    first = kinds.split()[:1]
    if len(sizes) == 4 and first and first[0].lower() not in ("domain", "space", "time", "none", "???"):
        return three_dimensions(sizes[1:], sizes[0])
    return three_dimensions(sizes)


def _dtype(fields: Mapping[str, str]) -> np.dtype[np.generic]:
    code = _TYPE_OF.get(" ".join(fields["type"].lower().split()))
    if code is None:
        raise CaseError("the header names no known type of voxels; a CT volume of plain numbers is needed")
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if order is None and not code.endswith("1"):
        raise CaseError(DAMAGED_HEADER)
    return np.dtype(f"{order or '<'}{code}")


def _geometry(fields: Mapping[str, str]) -> Geometry:
    if "space" not in fields:
        if "spacedirections" in fields:
            raise CaseError("the header does not say in which space its directions are; save the file again as LPS")
        return Geometry(spacing=triple(fields["spacings"]) if "spacings" in fields else None)
    signs = _SPACES.get(fields["space"].lower())
    if signs is None:
        raise CaseError("the header's directions are not in the patient's space; save the file again as LPS")
    if not {"spacedirections", "spaceorigin"} <= fields.keys():
        raise CaseError(DAMAGED_HEADER)
    vectors = re.fullmatch(r"\s*\(([^()]*)\)\s*\(([^()]*)\)\s*\(([^()]*)\)\s*", fields["spacedirections"])
    origin = re.fullmatch(r"\(([^()]*)\)", fields["spaceorigin"])
    if not vectors or not origin:
        raise CaseError(DAMAGED_HEADER)
    columns = np.column_stack([_vector(text) for text in vectors.groups()]) * np.array(signs)[:, None]
    spacing = np.linalg.norm(columns, axis=0)
    if not (spacing > 0).all():
        raise CaseError("an axis of the image has no length; mend its header")
    x, y, z = (float(size) for size in spacing)
    rows = [(float(a), float(b), float(c)) for a, b, c in columns / spacing]
    direction: Matrix = (rows[0], rows[1], rows[2])
    left, back, up = (value * sign for value, sign in zip(_vector(origin[1]), signs, strict=True))
    return Geometry((x, y, z), (left, back, up), direction)


def _vector(text: str) -> list[float]:
    return numbers(text.replace(",", " "), 3)


def _segments(keys: Mapping[str, str]) -> dict[int, str]:
    """3D Slicer's names of the values."""
    named = {}
    for key, value in keys.items():
        if (match := re.fullmatch(r"Segment(\d+)_LabelValue", key)) and re.fullmatch(r"\d{1,9}", value):
            name = keys.get(f"Segment{match[1]}_Name")
            if name is not None:
                named[int(value)] = name
    return named
