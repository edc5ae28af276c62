"""Whether a converted dataset still is what conversion.json says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nnunet_godc.conversion.case import file_sha256
from nnunet_godc.conversion.problems import CaseError
from nnunet_godc.conversion_record import RECORD, read_record
from nnunet_godc.errors import UserError


def check_dataset(folder: Path) -> list[str]:
    """Compare a converted dataset with the record of its conversion: every byte of every file.

    Returns:
        What is not as recorded, one sentence each; empty if all is well.

    Raises:
        UserError: `folder` was not written by the conversion, or its record is damaged.
    """
    record = read_record(folder)
    try:
        files = {
            str(part["file"]): (str(name), str(part["sha256"]))
            for name, case in sorted(record["cases"].items())
            for part in (case["image"], case["label"])
            if part is not None
        }
    except (AttributeError, LookupError, TypeError):
        raise UserError(f"{folder / RECORD} is damaged; convert the collection again") from None
    return [
        *(
            f"{path.relative_to(folder).as_posix()} is not of the conversion; move it away"
            for path in sorted(_listed(folder) - {folder / file for file in files})
        ),
        *(
            f"{name}: {problem}"
            for file, (name, sha256) in files.items()
            for problem in _problems(folder, file, sha256)
        ),
    ]


def _listed(folder: Path) -> set[Path]:
    """Every file that nnU-Net may take for a case's."""
    parts = [*folder.glob("images*"), *folder.glob("labels*")]
    return {path for part in parts for path in part.rglob("*") if not path.is_dir()}


def _problems(folder: Path, file: str, sha256: str) -> Iterator[str]:
    if not (folder / file).is_file():
        yield f"{file} is missing; convert the collection again"
        return
    try:
        if file_sha256(folder / file) != sha256:
            yield f"{file} changed after the conversion; convert the collection again if nobody meant to change it"
    except CaseError:
        yield f"{file} cannot be read; look at its permissions and at the disk"
