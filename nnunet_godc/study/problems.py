"""What is wrong with a study file, in a sentence and with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from nnunet_godc.spelling import nearest_name
from nnunet_godc.study.definition import Block, Definition
from nnunet_godc.study.yaml_positions import Document, Location


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a study file.

    Attributes:
        location: of the key or value.
        sentence: what is wrong and how to mend it.
        of_key: whether it is the key.
    """

    location: Location
    sentence: str
    of_key: bool = False


def invalid_value(details: Any, document: Document) -> Problem:
    """The problem that pydantic has with a value.

    Args:
        details: an entry of `ValidationError.errors()`.
        document: in which the value stands.
    """
    kind, location = details["type"], tuple(details["loc"])
    value = details["input"]
    if kind == "extra_forbidden":
        block = _block_at(location[:-1])
        known = [field.alias or name for name, field in block.model_fields.items()]
        near = nearest_name(str(location[-1]), known)
        hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}."
        return Problem(location, f"{location[-1]!r} is unknown; {hint}", of_key=True)
    if kind == "missing":
        return Problem(location, f"{location[-1]!r} is missing; add it.")
    # a value that may be of several types has an entry for each, which ends in the type's name
    while location and location not in document.places:
        location = location[:-1]
    name = next((str(part) for part in reversed(location) if isinstance(part, str)), "this")
    limits = details.get("ctx", {})
    wanted = {
        "list_type": f"needs a list, such as [{value}]",
        "dict_type": "needs a block of keys and values",
        "model_type": "needs a block of keys and values",
        "model_attributes_type": "needs a block of keys and values",
        "int_type": "needs a whole number",
        "float_type": "needs a number",
        "bool_type": "needs true or false",
        "string_type": "needs text",
        "too_short": "needs at least one entry",
        "greater_than": f"needs more than {limits.get('gt', 0):g}",
        "greater_than_equal": f"needs at least {limits.get('ge', 0):g}",
        "less_than": f"needs less than {limits.get('lt', 0):,}",
        "string_pattern_mismatch": "may hold letters, digits, and . _ - only",
    }.get(kind)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", limits["expected"])
        near = nearest_name(str(value), choices)
        wanted = f"is one of {', '.join(choices)}" + (f"; did you mean {near}?" if near else "")
        return Problem(location, f"{name} {wanted}, not {value!r}." if not near else f"{value!r}: {name} {wanted}")
    if wanted is None:
        return Problem(location, f"{details['msg']}, not {_shown(value)}.")
    return Problem(location, f"{name} {wanted}, not {_shown(value)}.")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a block"
    return "nothing" if value is None else repr(value)


def _block_at(location: Location) -> type[Block]:
    """The class of the block that a location lies in."""
    block: type[Block] = Definition
    for part in location:
        if isinstance(part, str) and part in block.model_fields:
            found = list(_classes_in(block.model_fields[part].annotation))
            block = found[0] if found else block
    return block


def _classes_in(annotation: Any) -> Iterator[type[Block]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation  # type: ignore[misc]
    for inner in get_args(annotation):
        yield from _classes_in(inner)
