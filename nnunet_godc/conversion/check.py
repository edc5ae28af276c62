"""Whether a converted dataset still is what conversion.json says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK

from nnunet_godc.conversion.case import file_sha256
from nnunet_godc.conversion.collection import check_case_name
from nnunet_godc.conversion.description import Description, read_description
from nnunet_godc.conversion.formats import open_volume
from nnunet_godc.conversion.geometry import Grid, Matrix, Triple
from nnunet_godc.conversion.labels import LabelMap, count_values, read_label
from nnunet_godc.conversion.problems import CaseError, CaseLog
from nnunet_godc.conversion.splits import SPLITS, read_folds
from nnunet_godc.conversion_record import RECORD, read_record
from nnunet_godc.errors import UserError

ANY_VALUE = LabelMap(names={value: str(value) for value in range(1, 256)})


@dataclass(frozen=True)
class _Recorded:
    """What conversion.json says of one case.

    Attributes:
        files: SHA-256 of every file, by its name relative to the dataset's folder: the image, then the label if any.
        counts: voxels of each value of the label that occurs; None without a label.
        grid: of image and label.
    """

    test: bool
    patient: str
    files: Mapping[str, str]
    counts: Mapping[int, int] | None
    grid: Grid


def check_dataset(folder: Path) -> list[str]:
    """Compare a converted dataset with the record of its conversion: files, headers, labels, dataset.json, folds.

    Reads every byte of every file, a volume at a time.

    Returns:
        What is not as recorded, one sentence each; empty if all is well.

    Raises:
        UserError: `folder` was not written by the conversion, or its record is damaged.
    """
    records = _recorded(folder)
    description, problems = _check_description(folder, records)
    problems += _check_folds(folder, records)
    problems += _check_listing(folder, records)
    for name, recorded in records.items():
        problems += [f"{name}: {problem}" for problem in _case_problems(folder, recorded, description)]
    return problems


def _recorded(folder: Path) -> dict[str, _Recorded]:
    content = read_record(folder)
    try:
        value_of = {name: int(value) for value, name in content["settings"]["labels"].items()} | {"background": 0}
        return {
            check_case_name(name): _parsed(name, record, value_of, content["settings"]["file_ending"])
            for name, record in sorted(content["cases"].items())
        }
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UserError):
        raise UserError(f"{folder / RECORD} is damaged; convert the collection again") from None


def _parsed(name: str, record: Mapping[str, Any], value_of: Mapping[str, int], ending: str) -> _Recorded:
    part = "Ts" if record["test"] else "Tr"
    files = {f"images{part}/{name}_0000{ending}": str(record["image"]["sha256"])}
    counts = None
    if record["label"] is not None:
        files[f"labels{part}/{name}{ending}"] = str(record["label"]["sha256"])
        counts = {value_of[label]: int(count) for label, count in record["label"]["voxels"].items() if count}
    if list(files) != [record[kind]["file"] for kind in ("image", "label") if record[kind] is not None]:
        raise ValueError("a file's name is not the case's")
    return _Recorded(bool(record["test"]), str(record["patient"]), files, counts, _grid(**record["geometry"]["after"]))


def _grid(shape: list[int], spacing: list[float], origin: list[float], direction: list[Any], orientation: str) -> Grid:
    rows = [_triple(row) for row in direction]
    i, j, k = (int(count) for count in shape)
    grid = Grid((i, j, k), _triple(spacing), _triple(origin), (rows[0], rows[1], rows[2]))
    if grid.orientation != orientation:
        raise ValueError("the orientation is not the direction's")
    return grid


def _triple(values: Any) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _check_description(folder: Path, records: Mapping[str, _Recorded]) -> tuple[Description | None, list[str]]:
    try:
        description = read_description(folder)
    except UserError as error:
        return None, [str(error)]
    training = sum(not recorded.test for recorded in records.values())
    problems = []
    if description.training_cases != training:
        problems.append(
            f"dataset.json says numTraining {description.training_cases}, and {training} training cases were converted"
        )
    endings = {file.endswith(description.file_ending) for recorded in records.values() for file in recorded.files}
    if False in endings:
        problems.append(f"dataset.json says file_ending {description.file_ending}, which the files do not have")
    return description, problems


def _check_folds(folder: Path, records: Mapping[str, _Recorded]) -> list[str]:
    patients = {name: recorded.patient for name, recorded in records.items() if not recorded.test}
    try:
        if (folder / SPLITS).exists():
            read_folds(folder / SPLITS, patients, patients)
    except UserError as error:
        return [str(error)]
    return []


def _check_listing(folder: Path, records: Mapping[str, _Recorded]) -> list[str]:
    """A sentence for every file that nnU-Net may take for a case and that no record names."""
    named = {folder / file for recorded in records.values() for file in recorded.files}
    parts = [*folder.glob("images*"), *folder.glob("labels*")]
    found = {path for part in parts if part.is_dir() for path in part.rglob("*") if not path.is_dir()}
    return [
        f"{path.relative_to(folder).as_posix()} is not of the conversion; move it away"
        for path in sorted(found - named)
    ]


def _case_problems(folder: Path, recorded: _Recorded, description: Description | None) -> Iterator[str]:
    as_read = {}
    for file, sha256 in recorded.files.items():
        if not (folder / file).is_file():
            yield f"{file} is missing; convert the collection again"
            continue
        try:
            digest = file_sha256(folder / file)
        except CaseError:
            yield f"{file} cannot be read; look at its permissions and at the disk"
            continue
        if digest != sha256:
            yield f"{file} changed after the conversion; convert the collection again if nobody meant to change it"
        try:
            as_read[file] = _grid_as_itk_reads_it(folder / file)
        except CaseError as error:
            yield f"{file}: {error}"
            continue
        if not as_read[file].matches(recorded.grid):
            yield f"{file} has another geometry than was recorded; convert the collection again"
    if len(set(as_read.values())) > 1:
        yield "image and label differ in their geometry as SimpleITK reads it; convert the collection again"
    if recorded.counts is not None:
        label = list(recorded.files)[1]
        if label in as_read:
            yield from _label_problems(folder, label, recorded.counts, description)


def _label_problems(
    folder: Path, label: str, recorded: Mapping[int, int], description: Description | None
) -> Iterator[str]:
    notes = CaseLog()
    try:
        counts = count_values(read_label(open_volume(folder / label), ANY_VALUE, notes))
    except CaseError as error:
        yield f"{label}: {error}"
        return
    if notes.repairs:
        yield f"{label} holds values that are no whole numbers; convert the collection again"
    unnamed = sorted(set(counts) - description.values) if description else []
    if unnamed:
        yield f"{label} holds values that dataset.json does not name: {', '.join(map(str, unnamed))}"
    if counts != recorded:
        differing = sorted(value for value in {*counts, *recorded} if counts.get(value, 0) != recorded.get(value, 0))
        listed = ", ".join(f"{counts.get(value, 0)} of {value}, not {recorded.get(value, 0)}" for value in differing)
        yield f"{label} holds other numbers of voxels than were recorded: {listed}"


def _grid_as_itk_reads_it(path: Path) -> Grid:
    open_volume(path)  # says in a sentence what ITK prints many lines about
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise CaseError("SimpleITK cannot read its header; convert the collection again") from error
    shape = tuple(int(count) for count in reader.GetSize())
    cosines = tuple(float(cosine) for cosine in reader.GetDirection())
    if len(shape) != 3:
        raise CaseError(f"SimpleITK reads an array of shape {shape}; convert the collection again")
    direction: Matrix = (_triple(cosines[:3]), _triple(cosines[3:6]), _triple(cosines[6:]))
    return Grid((shape[0], shape[1], shape[2]), _triple(reader.GetSpacing()), _triple(reader.GetOrigin()), direction)
