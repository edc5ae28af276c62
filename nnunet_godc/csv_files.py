"""Tables that users write: CSV with a header, as spreadsheets in any language save it."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_godc.errors import UserError
from nnunet_godc.spelling import closest_match

LARGEST = 2**24  # bytes: a hundred thousand cases; more is some other file, given by mistake
SEPARATORS = ",;\t"  # spreadsheets write ';' where the comma is the decimal mark
NUMBER = re.compile(r"\+?([0-9]+[.,]?[0-9]*|[.,][0-9]+)(e[+-]?[0-9]{1,2})?", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        where: the file and the line, for messages.
        line: the line's number in the file, from 1; the header is a line, too.
        values: column to text, without blanks around it; an optional column that is empty or not there is "".
    """

    where: str
    line: int
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def positive_number(self, column: str) -> float:
        """The number in a column, with a point or a comma as its decimal mark.

        Raises:
            UserError: it is none, or not positive and finite.
        """
        text = self[column]
        number = float(text.replace(",", ".")) if NUMBER.fullmatch(text) else 0.0
        if not (math.isfinite(number) and number > 0):
            raise UserError(f"{self.where}: {column} is {shortened(text)}; write a positive number, such as 0.75")
        return number


def read_text(path: Path) -> str:
    """A text file of UTF-8, whatever its line ends, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, is no such text, or is far larger than any table.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is not possible"
        raise UserError(f"{path} cannot be read: {reason}; give the path of a file that can") from None
    if len(content) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST // 2**20} MiB; is it the right file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{path} is not UTF-8 text; save it as 'CSV UTF-8', or give the right file")
    return text


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """The rows of a CSV file, whose columns may stand in any order; empty lines are left out.

    Separated by commas, semicolons or tabs. Capitals in the header do not matter.

    Args:
        required: columns that must be there, and filled in every row.
        optional: columns that may be there.

    Raises:
        UserError: the file cannot be read; columns are missing, unknown or there twice; a row has too few or too many
            fields or lacks a required one; there is no row.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    columns: list[str] | None = None
    rows = []
    try:
        for fields in reader:
            stripped = [field.strip() for field in fields]
            if not any(stripped):
                continue
            if columns is None:
                columns = _checked_header(path, stripped, required, optional)
                continue
            while len(stripped) > len(columns) and not stripped[-1]:
                stripped.pop()
            where = f"{path}, line {reader.line_num}"
            if len(stripped) != len(columns):
                raise UserError(f"{where}: {len(stripped)} fields where the header has {len(columns)}; fix that line")
            values = {**dict.fromkeys(optional, ""), **dict(zip(columns, stripped, strict=True))}
            empty = next((column for column in required if not values[column]), None)
            if empty is not None:
                raise UserError(f"{where}: {empty} is empty; fill it in, or take the line out")
            rows.append(Row(where, reader.line_num, values))
    except csv.Error:
        raise UserError(
            f"{path}, line {reader.line_num}: its quotation marks are not in order; fix that line"
        ) from None
    if not rows:
        raise UserError(f"{path} has no rows; write a header {_header(required)} and a line for every case")
    return rows


def _checked_header(path: Path, names: list[str], required: Sequence[str], optional: Sequence[str]) -> list[str]:
    known = (*required, *optional)
    columns = [name.casefold() for name in names]
    if not set(columns) & set(known):
        raise UserError(f"{path} has no header; its first line has to be {_header(required)}")
    for name, column in zip(names, columns, strict=True):
        if column not in known:
            nearest = closest_match(column, known)
            meant = f"did you mean {nearest}?" if nearest else f"known are {', '.join(known)}"
            raise UserError(f"{path}: unknown column {shortened(name)} in the header; {meant}")
        if columns.count(column) > 1:
            raise UserError(f"{path}: column {column} is there twice; take one out")
    missing = [column for column in required if column not in columns]
    if missing:
        raise UserError(f"{path}: the header lacks {', '.join(missing)}; it has to be {_header(required)}")
    return columns


def _header(required: Sequence[str]) -> str:
    return f"'{','.join(required)}'"


def shortened(text: str) -> str:
    """What a table says, in quotation marks, for a message."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
