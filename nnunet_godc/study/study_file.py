"""Reading a study file. All of its mistakes are reported at once, each with its line and column."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from nnunet_godc.errors import UserError
from nnunet_godc.spelling import closest_match
from nnunet_godc.study.checks import OF_DEFINITION, Problem, data_problems, dataset_problem, moved
from nnunet_godc.study.definition import ConfigModel, Study, StudyConfig
from nnunet_godc.study.yaml_positions import Document, YamlError, read_yaml

SHIPPED = resources.files("nnunet_godc.study") / "files"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
AS_TEXT = frozenset({"environment"})  # `off` and `007` reach a job's environment as they are written
# In place of what a study cannot be without, so that the rest of its file can be checked.
_PLACEHOLDERS: dict[str, Any] = {"datasets": [0], "trainers": ["nnUNetTrainer"]}

Check = Callable[[StudyConfig], Iterable[Problem]]


def shipped_studies() -> list[str]:
    """Names of the study files that come with this package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def find_study_file(name: str) -> Path:
    """The file of that path, or the shipped one of that name.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped_studies():
        return Path(str(SHIPPED / f"{name}.yaml"))
    near = closest_match(name, shipped_studies())
    hint = f"did you mean {near}?" if near else f"shipped are {', '.join(shipped_studies())}."
    raise UserError(f"there is no study file {name}, and no shipped study of that name; {hint}")


def find_study_folder(name: str) -> Path:
    """The folder of a study, named as `study run` takes it (a file, a shipped name), or by its path.

    Raises:
        UserError: there is no such folder, file or shipped study.
    """
    path = Path(name)
    if path.is_dir() or (not path.is_file() and os.sep in name):
        return path.absolute()
    file = find_study_file(name)
    values = read_document(file).values
    return Path(str(values.get("name") or file.stem)).absolute()


def read_definition(path: Path) -> StudyConfig:
    """What a study file says, by itself.

    Raises:
        UserError: with one line for each problem, which begins with its place.
    """
    reading = _Reading(path)
    reading.refuse()
    return reading.definition


def read_study(path: Path, check: Check = lambda definition: ()) -> Study:
    """The study in a file, with the folders that nnU-Net has here and the names of its datasets.

    Args:
        path: of the file.
        check: further problems, such as trainers that nnU-Net does not find.

    Raises:
        UserError: nnU-Net's folders are not set, or with one line for each problem of the file.
    """
    reading = _Reading(path)
    folders = nnunet_folders()
    definition = reading.definition
    known = sorted({name for folder in folders for name in _datasets_in(folder)})
    datasets: list[str] = []
    for index, dataset in enumerate(definition.datasets):
        if dataset == 0 and "datasets" in reading.broken:
            continue
        found = [name for name in known if _is_called(name, dataset)]
        if problem := dataset_problem(dataset, found, known, folders):
            reading.add([Problem(("datasets", index), problem)])
        elif found[0] in datasets:
            reading.add([Problem(("datasets", index), "a dataset is listed twice; keep one.")])
        else:
            datasets.append(found[0])
    raw, preprocessed, results = map(str, folders)
    name = definition.name or path.stem
    study = Study(
        name=name, datasets=datasets, raw=raw, preprocessed=preprocessed, results=results, definition=definition
    )
    reading.add(data_problems(study))
    reading.add(check(definition))
    reading.refuse()
    return study


def nnunet_folders() -> tuple[Path, Path, Path]:
    """nnU-Net's raw, preprocessed and results folders, absolute.

    Raises:
        UserError: one is not set.
    """
    missing = [name for name in FOLDERS if not os.environ.get(name)]
    if missing:
        raise UserError(f"{' and '.join(missing)} not set: nnU-Net keeps its data there; `export {missing[0]}=FOLDER`.")
    raw, preprocessed, results = (Path(os.environ[name]).absolute() for name in FOLDERS)
    return raw, preprocessed, results


def read_document(path: Path) -> Document:
    """The YAML in a file.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    try:
        document = read_yaml(path.read_text(encoding="utf-8"), as_text=AS_TEXT)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give a study file in YAML.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except YamlError as error:
        raise UserError(f"{path}, {error.place}: {error}; correct the YAML there.") from None
    if not isinstance(document.values, dict):
        raise UserError(f"{path}, {document.place(())}: a study file is a mapping that begins like `datasets: [501]`.")
    return document


class _Reading:
    """A study file with what is wrong with it so far.

    What is invalid by itself is left out, so that the rest can be checked, too.

    Attributes:
        definition: what the file says, without what is invalid.
        broken: top-level keys of which something was left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document = read_document(path)
        self.broken: set[str] = set()
        self._kept: dict[str, list[int]] = {}  # of lists: the entries that are valid
        self._problems = [
            Problem(location, f"{location[-1]!r} stands twice; keep one.", of_key=True)
            for location in self.document.duplicates
        ]
        self.definition = self._valid_part(dict(self.document.values))
        for compared, check in OF_DEFINITION:
            if self.broken.isdisjoint(compared):
                self.add(check(self.definition))

    def add(self, problems: Iterable[Problem]) -> None:
        self._problems += [moved(problem, self._kept) for problem in problems]

    def refuse(self) -> None:
        """Raises:
        UserError: there are problems.
        """
        placed = sorted(
            (self.document.place(problem.location, of_key=problem.of_key), problem.sentence)
            for problem in self._problems
        )
        if placed:
            raise UserError("\n".join(f"{self.path}, {place}: {sentence}" for place, sentence in dict.fromkeys(placed)))

    def _valid_part(self, values: dict[str, Any]) -> StudyConfig:
        try:
            return StudyConfig.model_validate(values)
        except ValidationError as error:
            details = error.errors()
        # one for each type that a value might have had
        found = {problem.location: problem for problem in (_invalid(entry, self.document) for entry in details[::-1])}
        self._problems += found.values()
        entries: dict[str, set[int]] = {}
        for entry in details:
            key, *rest = entry["loc"]
            key = str(key)
            self.broken.add(key)
            if isinstance(values.get(key), list) and rest and isinstance(rest[0], int):
                entries.setdefault(key, set()).add(rest[0])
            else:
                values.pop(key, None)
        for key, invalid in entries.items():
            if key in values:
                self._kept[key] = [index for index in range(len(values[key])) if index not in invalid]
                values[key] = [values[key][index] for index in self._kept[key]]
        for key in self.broken & values.keys():
            if not values[key]:
                del values[key]
        return StudyConfig.model_validate(_PLACEHOLDERS | values)


def _invalid(details: Any, document: Document) -> Problem:
    """The problem that pydantic has with a value: an entry of `ValidationError.errors()`."""
    kind, location, value = details["type"], tuple(details["loc"]), details["input"]
    if kind == "extra_forbidden":
        block = _block_at(location[:-1])
        known = [field.alias or name for name, field in block.model_fields.items()]
        near = closest_match(str(location[-1]), known)
        hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}."
        return Problem(location, f"{location[-1]!r} is unknown; {hint}", of_key=True)
    if kind == "missing":
        return Problem(location, f"{location[-1]!r} is missing; add it.")
    # a value that may be of several types has an entry for each, which ends in the type's name
    while location and location not in document.places:
        location = location[:-1]
    name = next((str(part) for part in reversed(location) if isinstance(part, str)), "this")
    limits = details.get("ctx", {})
    shown = "a block" if isinstance(value, dict) else "nothing" if value is None else repr(value)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", limits["expected"])
        near = closest_match(str(value), choices)
        wanted = f"{name} is one of {', '.join(choices)}"
        return Problem(location, f"{value!r}: {wanted}; did you mean {near}?" if near else f"{wanted}, not {value!r}.")
    needed = {
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
    return Problem(location, f"{name} {needed}, not {shown}." if needed else f"{details['msg']}, not {shown}.")


def _block_at(location: tuple[str | int, ...]) -> type[ConfigModel]:
    """The class of the block that a location lies in."""
    block: type[ConfigModel] = StudyConfig
    for part in location:
        if isinstance(part, str) and part in block.model_fields:
            block = next(_classes_in(block.model_fields[part].annotation), block)
    return block


def _classes_in(annotation: Any) -> Iterator[type[ConfigModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation  # type: ignore[misc]
    for inner in get_args(annotation):
        yield from _classes_in(inner)


def _datasets_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("Dataset[0-9][0-9][0-9]_*")] if folder.is_dir() else []


def _is_called(name: str, wanted: int | str) -> bool:
    return name == wanted if isinstance(wanted, str) and not wanted.isdigit() else int(name[7:10]) == int(wanted)
