"""conversion.json: what a conversion writes down of every case that it has converted."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_godc.errors import UserError
from nnunet_godc.json_files import read_json

RECORD = "conversion.json"
RECORD_FORMAT = 1  # a higher one is not compatible


def read_record(folder: Path) -> dict[str, Any]:
    """conversion.json of a converted dataset.

    Raises:
        UserError: there is none, or it is not readable.
    """
    path = folder / RECORD
    record = read_json(path, missing=f"{folder} has no {RECORD}: it was not written by nnunet-godc convert")
    if (
        not isinstance(record, dict)
        or record.get("format") != RECORD_FORMAT
        or not isinstance(record.get("cases"), dict)
    ):
        raise UserError(f"{path} is of another version of nnunet-godc; convert the collection again with --overwrite")
    return record


def also_in_other_datasets(records: Mapping[str, Mapping[str, Any]], target: Path) -> dict[str, list[str]]:
    """Cases whose scan another converted dataset beside `target` holds too: its folder's name, and our cases' names."""
    own = {record["image"]["fingerprint"]: name for name, record in records.items()}
    shared = {}
    for folder in sorted(target.parent.glob("Dataset*")):
        if folder != target and (folder / RECORD).exists():
            with contextlib.suppress(UserError, KeyError, TypeError):
                others = {record["image"]["fingerprint"] for record in read_record(folder)["cases"].values()}
                if both := sorted(own[fingerprint] for fingerprint in own.keys() & others):
                    shared[folder.name] = both
    return shared
