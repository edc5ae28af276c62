"""Reading a study file, with errors that point at its lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from itertools import product
from pathlib import Path

from pydantic import ValidationError

from nnunet_godc.errors import UserError
from nnunet_godc.spelling import nearest_name
from nnunet_godc.study.contradictions import contradictions
from nnunet_godc.study.definition import PLANNERS, Definition, Study
from nnunet_godc.study.problems import Problem, invalid_value
from nnunet_godc.study.yaml_positions import Document, YamlError, read_yaml

SHIPPED = resources.files("nnunet_godc.study") / "files"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
AS_TEXT = frozenset({"environment"})  # `off` and `007` reach a job's environment as they are written


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
        found = [invalid_value(details, document) for details in error.errors()]
        # one for each type that a value might have had
        _refuse(path, document, {problem.location: problem for problem in reversed(found)}.values())
    _refuse(path, document, list(contradictions(definition)))
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
        if len(found) == 1 and (others := sorted(_of_same_number(found[0], folders))):
            sentence = f"{found[0]} and {others[0]} have one number, which is all that nnU-Net's planning goes by; "
            problems.append(Problem(("datasets", index), f"{sentence}rename one of them."))
        elif len(found) == 1:
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
    problems += _images_problems(study)
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


def _images_problems(study: Study) -> Iterator[Problem]:
    """Folders of images to predict, or of their references, that are not there."""
    predict = study.definition.predict
    if predict is None:
        return
    for key, name in (("images", predict.images), ("references", predict.references)):
        missing = [Path(study.raw, dataset, name) for dataset in study.datasets] if name is not None else []
        for folder in [folder for folder in missing if not folder.is_dir()][:1]:
            remedy = "create it, or give a path from the dataset's raw folder or an absolute one."
            yield Problem(("predict", key), f"there is no folder {folder}; {remedy}")


def _of_same_number(name: str, folders: Sequence[Path]) -> set[str]:
    return {other for folder in folders for other in _datasets_in(folder) if other[:10] == name[:10]} - {name}


def _datasets_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("Dataset[0-9][0-9][0-9]_*")] if folder.is_dir() else []


def _is_called(name: str, wanted: int | str) -> bool:
    return name == wanted if isinstance(wanted, str) and not wanted.isdigit() else int(name[7:10]) == int(wanted)


def _dataset_problem(wanted: int | str, found: list[str], folders: tuple[Path, Path, Path]) -> str:
    if found:
        names = ", ".join(found)
        return f"dataset {wanted} is ambiguous: there are {names}, and nnU-Net goes by the number; rename all but one."
    known = sorted({name for folder in folders for name in _datasets_in(folder)})
    near = nearest_name(str(wanted), known) if isinstance(wanted, str) else None
    hint = f"did you mean {near}?" if near else "convert it first, for example with `nnunet-godc convert`."
    return f"there is no dataset {wanted} in {folders[0]} or {folders[1]}; {hint}"
