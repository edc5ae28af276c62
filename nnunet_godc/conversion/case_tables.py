"""Tables that users write of their cases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.collection import check_case_name
from nnunet_godc.conversion.geometry import Triple
from nnunet_godc.errors import UserError
from nnunet_godc.spelling import nearest_name
from nnunet_godc.tables import Row, read_table, shortened

Value = TypeVar("Value")


def case_name(row: Row) -> str:
    """The column `case`.

    Raises:
        UserError: it cannot name a case.
    """
    try:
        return check_case_name(row["case"])
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from None


def read_spacings(path: Path) -> dict[str, Triple]:
    """Voxel sizes by case from a CSV file ``case,x,y,z``: millimetres along the axes of the image's array.

    Whether there are such cases is for `check_known_cases` to say.

    Raises:
        UserError: as `read_table`, and for a case that is there twice or numbers that are not positive.
    """
    spacings: dict[str, Triple] = {}
    for row in read_table(path, required=("case", "x", "y", "z")):
        case = case_name(row)
        if case in spacings:
            raise UserError(f"{row.where}: {case} is there twice; keep one line for every case")
        spacings[case] = (row.positive_number("x"), row.positive_number("y"), row.positive_number("z"))
    return spacings


def by_case(values: Mapping[str, Value], cases: Sequence[CaseSource], *, where: str) -> dict[str, Value]:
    """`values` by the cases' own names, whatever a table calls them: LiTS_028, volume-28 (the image's file) or 28.

    Raises:
        UserError: a name is none of these, or two of them are one case's.
    """
    called: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        called[case.name] = [case.name]
    for case in cases:
        stem = case.image.name.removesuffix(case.image.suffix if case.image.suffix != ".gz" else "")
        stem = re.sub(r"\.(nii|hdr)\.gz$", "", stem)
        number = re.search(r"(\d+)$", case.name)
        for alias in {stem, str(int(number[1])) if number and not case.test else stem} - {case.name}:
            called[alias].append(case.name)
    found: dict[str, Value] = {}
    unknown = []
    for name, value in values.items():
        names = called.get(str(int(name)) if name.isdecimal() else name, [])
        if len(names) != 1:
            unknown.append(name)
        elif names[0] in found:
            raise UserError(f"{where}: {names[0]} is there twice, as {name} too; keep one line for every case")
        else:
            found[names[0]] = value
    check_known_cases(unknown, [case.name for case in cases], where=where)
    return found


def check_known_cases(names: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Refuse names that a table gives and that no case has.

    Args:
        where: the table, for the message.

    Raises:
        UserError: some of `names` are not `known`; the nearest known name is told.
    """
    candidates = set(known)
    unknown = sorted(set(names) - candidates)
    if not unknown:
        return
    several = f"{len(unknown)} cases that are not there, such as" if len(unknown) > 1 else "a case that is not there:"
    nearest = nearest_name(unknown[0], candidates)
    hint = f" (did you mean {nearest}?)" if nearest else ""
    example = min(candidates, default="")
    remedy = f"cases are called like {example}" if example and not nearest else "correct the names or take them out"
    raise UserError(f"{where} names {several} {shortened(unknown[0])}{hint}; {remedy}")
