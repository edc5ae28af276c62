"""JSON files of a dataset: written whole or not at all, and told of in a sentence where they cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.errors import UserError


def read_json(path: Path, *, missing: str) -> Any:
    """The content of a JSON file.

    Args:
        missing: what to say where there is no such file.

    Raises:
        UserError: there is none, or it cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(missing) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read or is damaged; convert the collection again") from error


def write_json(path: Path, content: Any) -> None:
    """Write `content`, with sorted keys: equal content gives equal bytes."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
