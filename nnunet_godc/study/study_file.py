"""Reading a study file, with errors that point at its lines."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from nnunet_godc.errors import UserError
from nnunet_godc.spelling import nearest_name
from nnunet_godc.study.definition import PLANNERS, Block, Definition, Study
from nnunet_godc.study.yaml_positions import Document, Location, YamlError, read_yaml

SHIPPED = resources.files("nnunet_godc.study") / "files"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
AS_TEXT = frozenset({"environment"})  # `off` and `007` reach a job's environment as they are written


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
    near = nearest_name(name, shipped_studies())
    hint = f"did you mean {near}?" if near else f"shipped are {', '.join(shipped_studies())}."
    raise UserError(f"there is no study file {name}, and no shipped study of that name; {hint}")


def read_definition(path: Path) -> tuple[Definition, Document]:
    """What a study file says, and where.

    Raises:
        UserError: with one line for each problem, which begins with its place.
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
    if document.duplicates:
        lines = [
            f"{path}, {place}: {location[-1]!r} stands twice; keep one." for location, place in document.duplicates
        ]
        raise UserError("\n".join(lines))
    try:
        definition = Definition.model_validate(document.values)
    except ValidationError as error:
        found = [_problem(details, document) for details in error.errors()]
        # one for each type that a value might have had
        _refuse(path, document, {problem.location: problem for problem in reversed(found)}.values())
    _refuse(path, document, list(_contradictions(definition)))
    return definition, document


def read_study(path: Path, check_classes: Callable[[Definition], list[Problem]] | None = None) -> Study:
    """The study in a file, with the folders that nnU-Net has here and the names of its datasets.

    Args:
        path: of the file.
        check_classes: tells which trainers and planners nnU-Net does not find.

    Raises:
        UserError: nnU-Net's folders are not set, or with one line for each problem of the file.
    """
    definition, document = read_definition(path)
    folders = nnunet_folders()
    datasets: list[str] = []
    problems: list[Problem] = []
    for index, dataset in enumerate(definition.datasets):
        found = sorted({name for folder in folders for name in _datasets_in(folder) if _is_called(name, dataset)})
        if len(found) == 1:
            datasets.append(found[0])
        else:
            problems.append(Problem(("datasets", index), _dataset_problem(dataset, found, folders)))
    if len(set(datasets)) < len(datasets):
        problems.append(Problem(("datasets",), "a dataset is listed twice; keep one."))
    if check_classes is not None:
        problems += check_classes(definition)
    study = Study(
        name=definition.name or path.stem,
        datasets=datasets,
        raw=str(folders[0]),
        preprocessed=str(folders[1]),
        results=str(folders[2]),
        definition=definition,
    )
    problems += _plans_problems(study)
    _refuse(path, document, problems)
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


def _refuse(path: Path, document: Document, problems: Iterable[Problem]) -> None:
    placed = sorted(
        ((document.place(problem.location, of_key=problem.of_key), problem.sentence) for problem in problems),
        key=lambda entry: (entry[0].line, entry[0].column),
    )
    if placed:
        raise UserError("\n".join(f"{path}, {place}: {sentence}" for place, sentence in placed))


def _problem(details: Any, document: Document) -> Problem:
    """A sentence for what pydantic says of a value."""
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


def _contradictions(definition: Definition) -> Iterator[Problem]:
    """What each block by itself allows and all together do not."""
    for key in ("configurations", "trainers", "folds", "seeds"):
        entries = getattr(definition, key)
        for index, entry in enumerate(entries):
            if entry in entries[:index]:
                yield Problem((key, index), f"{entry} stands twice in {key}; keep one.")
    for index, trainer in enumerate(definition.trainers):
        if definition.seeds and re.search(r"_seed\d+$", trainer):
            yield Problem(("trainers", index), f"{trainer} has a seed already; leave it out here or in seeds.")
    names = [plans.name for plans in definition.plans]
    for index, plans in enumerate(definition.plans):
        here = ("plans", index)
        if plans.name in names[:index]:
            yield Problem(here, f"{plans.name} stands twice in plans; keep one.")
        if plans.variation_of is None:
            for size in plans.sizes:
                yield Problem((*here, size), f"{size} needs `from: PLANS`, the plans that it is a variation of.")
        else:
            yield from _variation_problems(definition, index)
        if plans.gpu_memory_gb is not None and plans.name in PLANNERS:
            sentence = f"{plans.name} are nnU-Net's own; give plans for another gpu_memory_gb a name of their own."
            yield Problem((*here, "name"), sentence)
    if definition.predict is None and definition.ensemble:
        yield Problem(("ensemble",), "an ensemble needs predictions; add `predict: {images: imagesTs}`.")
    if definition.ensemble and len(definition.plans) * len(definition.configurations) < 2:
        yield Problem(("ensemble",), "an ensemble needs at least two plans or configurations.")
    if "3d_cascade_fullres" in definition.configurations:
        index = definition.configurations.index("3d_cascade_fullres")
        if "3d_lowres" not in definition.configurations or set(definition.folds) != {0, 1, 2, 3, 4}:
            sentence = "the cascade starts from 3d_lowres's predictions of all cases: add 3d_lowres, and folds 0 to 4."
            yield Problem(("configurations", index), sentence)


def _variation_problems(definition: Definition, index: int) -> Iterator[Problem]:
    plans, here = definition.plans[index], ("plans", index)
    for key in ("planner", "gpu_memory_gb"):
        if getattr(plans, key) is not None:
            yield Problem((*here, key), f"a variation of {plans.variation_of} has no {key} of its own; leave it out.")
    earlier = [other.name for other in definition.plans[:index]]
    if plans.variation_of not in {*PLANNERS, *earlier}:
        sentence = f"there are no plans {plans.variation_of} above this line to vary, and nnU-Net makes none so called."
        yield Problem((*here, "from"), sentence)
    missing = [key for key in ("patch_size", "features", "stages") if getattr(plans, key) is None]
    if missing:
        yield Problem(here, f"a variation also says {', '.join(missing)}.")
    for position, configuration in enumerate(definition.configurations):
        if configuration != "3d_fullres":
            sentence = f"{plans.name}, being a variation, have 3d_fullres only; leave {configuration} out."
            yield Problem(("configurations", position), sentence)


def _plans_problems(study: Study) -> Iterator[Problem]:
    """Plans that nobody makes and are not there, and those that are there and were made in another way."""
    for (index, plans), dataset in product(enumerate(study.definition.plans), study.datasets):
        file = study.plans_file(dataset, plans.name)
        if plans.variation_of is not None:
            continue
        if file.is_file() and plans.planner is not None:
            made_by = json.loads(file.read_text()).get("experiment_planner_used")
            if made_by not in (None, plans.planner):
                sentence = (
                    f"{dataset} has plans {plans.name} already, which {made_by} has made; give these another name."
                )
                yield Problem(("plans", index, "name"), sentence)
        elif not file.is_file() and plans.planner_class is None:
            near = nearest_name(plans.name, PLANNERS)
            hint = f"did you mean {near}?" if near else "say which `planner` makes them."
            yield Problem(("plans", index), f"{dataset} has no plans {plans.name} yet; {hint}")


def _datasets_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("Dataset[0-9][0-9][0-9]_*")] if folder.is_dir() else []


def _is_called(name: str, wanted: int | str) -> bool:
    return name == wanted if isinstance(wanted, str) and not wanted.isdigit() else int(name[7:10]) == int(wanted)


def _dataset_problem(wanted: int | str, found: list[str], folders: tuple[Path, Path, Path]) -> str:
    if found:
        return f"dataset {wanted} is ambiguous: there are {', '.join(found)}; give the name."
    known = sorted({name for folder in folders for name in _datasets_in(folder)})
    near = nearest_name(str(wanted), known) if isinstance(wanted, str) else None
    hint = f"did you mean {near}?" if near else "convert it first, for example with `nnunet-godc convert`."
    return f"there is no dataset {wanted} in {folders[0]} or {folders[1]}; {hint}"


def unknown_class_problems(definition: Definition, unknown: dict[str, dict[str, str | None]]) -> list[Problem]:
    """Problems for trainers and planners that nnU-Net does not find.

    Args:
        definition: what the file says.
        unknown: by `trainers` and `planners`, the names that were not found with the nearest that exists.
    """
    problems = []
    for index, trainer in enumerate(definition.trainers):
        if trainer in unknown["trainers"]:
            near = unknown["trainers"][trainer]
            hint = f"did you mean {near}?" if near else "a class of your own lies in a folder of nnUNet_extTrainer."
            problems.append(Problem(("trainers", index), f"nnU-Net finds no trainer {trainer}; {hint}"))
    for index, plans in enumerate(definition.plans):
        if plans.planner in unknown["planners"]:
            near = unknown["planners"][plans.planner]
            hint = f"did you mean {near}?" if near else "nnU-Net looks in its own experiment_planning."
            problems.append(Problem(("plans", index, "planner"), f"nnU-Net finds no planner {plans.planner}; {hint}"))
    return problems
