"""What nnU-Net's dataset.json says of a raw dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_godc.errors import UserError
from nnunet_godc.json_files import read_json

IGNORED = "ignore"  # nnU-Net's name for voxels that nobody has labelled


@dataclass(frozen=True)
class Description:
    """The part of dataset.json that tells how to read the dataset's files.

    Attributes:
        labels: name to the values in the label files, background left out; a region unites several.
        channel: name of the first channel, such as ``"CT"``.
        file_ending: of images and labels, such as ``".nii.gz"``.
        training_cases: how many there are.
    """

    labels: Mapping[str, tuple[int, ...]]
    channel: str
    file_ending: str
    training_cases: int

    @property
    def values(self) -> set[int]:
        """Every value that a label file may hold."""
        return {0}.union(*self.labels.values())


def read_description(folder: Path) -> Description:
    """dataset.json of a raw dataset.

    Raises:
        UserError: there is none, or it does not say what nnU-Net needs.
    """
    path = folder / "dataset.json"
    content = read_json(path, missing=f"{folder} has no dataset.json; give the folder of a raw nnU-Net dataset")
    try:
        labels = {str(name): _values(value) for name, value in content["labels"].items()}
        return Description(
            labels={name: values for name, values in labels.items() if values != (0,)},
            channel=str(content["channel_names"]["0"]),
            file_ending=_text(content["file_ending"]),
            training_cases=_whole_number(content["numTraining"]),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} lacks labels, channel_names, file_ending or numTraining as nnU-Net v2 has them; "
            "convert the collection again"
        ) from error


def _values(entry: Any) -> tuple[int, ...]:
    values = tuple(_whole_number(value) for value in entry) if isinstance(entry, list) else (_whole_number(entry),)
    if not values or not all(0 <= value <= 255 for value in values):
        raise TypeError
    return values


def _whole_number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(".") or "/" in value:
        raise TypeError
    return value
