"""Tables that users write of their cases."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nnunet_godc.conversion.collection import check_case_name
from nnunet_godc.conversion.grid import Triple
from nnunet_godc.errors import UserError
from nnunet_godc.spelling import nearest_name
from nnunet_godc.tables import Row, read_table, shortened


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
