"""YAML with the place of every key and value, so that an error can point at it.

Read through the nodes that PyYAML composes: it is there already, since nnU-Net's own libraries need it, and keeps line
and column of keys and values alike. ruamel.yaml keeps them for containers only and would be one more dependency;
strictyaml refuses lists in brackets, which folds and patch sizes want, and has had no release since 2023. Values mean
what YAML 1.2 says: `off` and `12:30` are text here, where PyYAML by itself reads a boolean and a number of seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

Location = tuple[str | int, ...]
"""Where a value stands in the document: keys and list indices from the root, as pydantic has them."""


class Place(NamedTuple):
    """Line and column, counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True)
class Document:
    """A YAML file as plain Python values, with the place of each.

    Attributes:
        values: what the file says.
        keys: place of the key that leads to a location.
        places: place of the value at a location.
        duplicates: keys that stand twice in one mapping, at their second place.
    """

    values: Any
    keys: dict[Location, Place] = field(default_factory=dict)
    places: dict[Location, Place] = field(default_factory=dict)
    duplicates: list[Location] = field(default_factory=list)

    def place(self, location: Location, *, of_key: bool = False) -> Place:
        """The place of a value, or of the nearest thing around it that stands in the file."""
        if of_key and location in self.keys:
            return self.keys[location]
        while location and location not in self.places:
            location = location[:-1]
        return self.places.get(location, Place(1, 1))


class YamlError(Exception):
    """The text is no YAML.

    Attributes:
        place: where.
    """

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


class _Loader(yaml.SafeLoader):
    """Knows the scalars of YAML 1.2's core schema, decimal numbers only."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first) + [""] * (_tag == "null")
    )


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": float,
}


def read_yaml(text: str, *, as_text: frozenset[str] = frozenset()) -> Document:
    """The document in `text`.

    Args:
        text: of the file.
        as_text: top-level keys below which every scalar is taken as it is written, such as `environment`.

    Raises:
        YamlError: it cannot be parsed.
    """
    try:
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        raise YamlError(error.problem or "this is no YAML", place) from None
    except yaml.YAMLError as error:
        raise YamlError(str(error), Place(1, 1)) from None
    document = Document({})
    if node is None:
        return document
    return Document(_value(node, (), document, as_text), document.keys, document.places, document.duplicates)


def _value(node: yaml.Node, location: Location, document: Document, as_text: frozenset[str]) -> Any:
    document.places[location] = _place(node)
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            inside = (*location, key)
            if key in values:
                document.duplicates.append(inside)
            document.keys[inside] = _place(key_node)
            values[key] = _value(value_node, inside, document, as_text)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*location, index), document, as_text) for index, item in enumerate(node.value)]
    if location and location[0] in as_text:
        return node.value
    return _SCALARS.get(node.tag.removeprefix("tag:yaml.org,2002:"), str)(node.value)


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)
