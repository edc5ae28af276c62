"""What is wrong with a study that every block of its file by itself allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from nnunet_godc.plans import CONFIGURATION
from nnunet_godc.seeded_names import without_seed
from nnunet_godc.spelling import closest_match, closest_trainer
from nnunet_godc.study.definition import PLANNERS, Study, StudyConfig
from nnunet_godc.study.trainers import Answer

FOLDS = 5  # of nnU-Net's own splits


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a study file.

    Attributes:
        location: of the key or value: keys and list indices from the root.
        sentence: what is wrong and how to fix it.
        of_key: whether it is the key.
    """

    location: tuple[str | int, ...]
    sentence: str
    of_key: bool = False


Checks = tuple[tuple[tuple[str, ...], Callable[[StudyConfig], Iterator[Problem]]], ...]


def _repeated(definition: StudyConfig) -> Iterator[Problem]:
    names = [plans.name for plans in definition.plans]
    for key, entries in (
        *((key, getattr(definition, key)) for key in ("configurations", "trainers", "folds", "seeds")),
        ("plans", names),
    ):
        for index, entry in enumerate(entries):
            if entry in entries[:index]:
                yield Problem((key, index), f"{entry} stands twice in {key}; keep one.")


def _fold_all(definition: StudyConfig) -> Iterator[Problem]:
    if "all" in definition.folds and len(definition.folds) > 1:
        sentence = "fold all validates on the cases that it was trained on; train it in a study of its own."
        yield Problem(("folds", definition.folds.index("all")), sentence)


def _seeds(definition: StudyConfig) -> Iterator[Problem]:
    for index, trainer in enumerate(definition.trainers):
        if definition.seeds and without_seed(trainer) != trainer:
            yield Problem(("trainers", index), f"{trainer} has a seed already; leave it out here or in seeds.")


def _baseline(definition: StudyConfig) -> Iterator[Problem]:
    baseline = definition.evaluate.get("baseline")
    variants = {without_seed(trainer) for trainer in definition.trainers}
    if isinstance(baseline, str) and baseline not in variants:
        near = closest_trainer(baseline, variants)
        hint = f"did you mean {near}?" if near else f"they are {', '.join(sorted(variants))}."
        yield Problem(("evaluate", "baseline"), f"{baseline} is none of the trainers; {hint}")


def _plans(definition: StudyConfig) -> Iterator[Problem]:
    for index, plans in enumerate(definition.plans):
        here = ("plans", index)
        if plans.variation_of is None:
            for size in plans.sizes:
                yield Problem((*here, size), f"{size} needs `from: PLANS`, the plans that it is a variation of.")
        if plans.name in PLANNERS and (plans.gpu_memory_gb or plans.planner not in (None, PLANNERS[plans.name])):
            sentence = (
                f"{plans.name} are nnU-Net's own, made by its {PLANNERS[plans.name]}; give plans for another planner "
                "or gpu_memory_gb a name of their own."
            )
            yield Problem((*here, "name"), sentence)


def _variations(definition: StudyConfig) -> Iterator[Problem]:
    for index, plans in enumerate(definition.plans):
        if plans.variation_of is None:
            continue
        here = ("plans", index)
        for key in ("planner", "gpu_memory_gb"):
            if getattr(plans, key) is not None:
                sentence = f"a variation of {plans.variation_of} has no {key} of its own; leave it out."
                yield Problem((*here, key), sentence)
        if plans.variation_of not in {*PLANNERS, *(other.name for other in definition.plans[:index])}:
            sentence = f"there are no plans {plans.variation_of} above this line to vary, and nnU-Net makes none so "
            yield Problem((*here, "from"), f"{sentence}called.")
        missing = [key for key in ("patch_size", "features", "stages") if getattr(plans, key) is None]
        if missing:
            yield Problem(here, f"a variation also says {', '.join(missing)}.")
        kept = plans.configuration or CONFIGURATION
        for position, configuration in enumerate(definition.configurations):
            if configuration != kept:
                sentence = f"{plans.name}, being a variation, have {kept} only; leave {configuration} out."
                yield Problem(("configurations", position), sentence)


def _ensemble(definition: StudyConfig) -> Iterator[Problem]:
    if definition.predict is None and definition.ensemble:
        yield Problem(("ensemble",), "an ensemble needs predictions; add `predict: {images: imagesTs}`.")
    if definition.ensemble and len(definition.plans) * len(definition.configurations) < 2:
        yield Problem(("ensemble",), "an ensemble needs at least two plans or configurations.")


def _cascade(definition: StudyConfig) -> Iterator[Problem]:
    if "3d_cascade_fullres" in definition.configurations:
        index = definition.configurations.index("3d_cascade_fullres")
        if "3d_lowres" not in definition.configurations or not {*range(FOLDS)}.issubset(definition.folds):
            sentence = "the cascade starts from 3d_lowres's predictions of all cases: add 3d_lowres, and folds 0 to 4."
            yield Problem(("configurations", index), sentence)


# Each with the keys that it compares: where one of these is wrong by itself, nothing is said of the comparison.
OF_DEFINITION: Checks = (
    ((), _repeated),
    ((), _fold_all),
    ((), _seeds),
    (("trainers",), _baseline),
    ((), _plans),
    (("plans",), _variations),
    (("predict", "plans", "configurations"), _ensemble),
    (("folds", "configurations"), _cascade),
)


def data_problems(study: Study) -> Iterator[Problem]:
    """What a study needs of nnU-Net's folders and is not there, or is there and is something else."""
    yield from _plans_there(study)
    yield from _folds_there(study)
    predict = study.definition.predict
    for key, name in (("images", predict.images), ("references", predict.references)) if predict else ():
        missing = [Path(study.raw, dataset, name) for dataset in study.datasets] if name is not None else []
        for folder in [folder for folder in missing if not folder.is_dir()][:1]:
            remedy = "create it, or give a path from the dataset's raw folder or an absolute one."
            yield Problem(("predict", key), f"there is no folder {folder}; {remedy}")


def _plans_there(study: Study) -> Iterator[Problem]:
    for (index, plans), dataset in product(enumerate(study.definition.plans), study.datasets):
        file = study.plans_file(dataset, plans.name)
        if plans.variation_of is not None:
            continue
        if file.is_file() and plans.planner is not None:
            made_by = json.loads(file.read_text()).get("experiment_planner_used")
            if made_by not in (None, plans.planner):
                sentence = f"{dataset} has plans {plans.name} already, which {made_by} has made; "
                yield Problem(("plans", index, "name"), f"{sentence}give these another name.")
        elif not file.is_file() and plans.planner_class is None:
            near = closest_match(plans.name, PLANNERS)
            hint = f"did you mean {near}?" if near else "say which `planner` makes them."
            yield Problem(("plans", index), f"{dataset} has no plans {plans.name} yet; {hint}")


def _folds_there(study: Study) -> Iterator[Problem]:
    for dataset in study.datasets:
        splits = Path(study.preprocessed, dataset, "splits_final.json")
        count = len(json.loads(splits.read_text())) if splits.is_file() else FOLDS
        for index, fold in enumerate(study.definition.folds):
            if isinstance(fold, int) and fold >= count:
                sentence = f"{dataset} is split into folds 0 to {count - 1}; of fold {fold}, nnU-Net would train on a "
                yield Problem(("folds", index), f"{sentence}random split. Leave it out.")


def class_problems(definition: StudyConfig, answer: Answer) -> Iterator[Problem]:
    """Trainers and planners that nnU-Net does not find."""
    for index, trainer in enumerate(definition.trainers):
        if trainer in answer.unknown:
            near = answer.unknown[trainer]
            hint = f"did you mean {near}?" if near else "a class of your own lies in a folder of nnUNet_extTrainer."
            yield Problem(("trainers", index), f"nnU-Net finds no trainer {trainer}; {hint}")
    for index, plans in enumerate(definition.plans):
        if plans.planner is not None and plans.planner in answer.unknown:
            near = answer.unknown[plans.planner]
            hint = f"did you mean {near}?" if near else "nnU-Net looks in its own experiment_planning."
            yield Problem(("plans", index, "planner"), f"nnU-Net finds no planner {plans.planner}; {hint}")


def dataset_problem(wanted: int | str, found: list[str], known: list[str], folders: tuple[Path, ...]) -> str | None:
    """What is wrong with the name or id of a dataset, given those that it may mean and all that there are."""
    if not found:
        near = closest_match(str(wanted), known) if isinstance(wanted, str) else None
        hint = f"did you mean {near}?" if near else "convert it first, for example with `nnunet-godc convert`."
        return f"there is no dataset {wanted} in {folders[0]} or {folders[1]}; {hint}"
    if len(found) > 1:
        names = ", ".join(found)
        return f"dataset {wanted} is ambiguous: there are {names}, and nnU-Net goes by the number; rename all but one."
    others = [name for name in known if name[:10] == found[0][:10] and name != found[0]]
    if others:
        sentence = f"{found[0]} and {others[0]} have one number, which is all that nnU-Net's planning goes by; "
        return f"{sentence}rename one of them."
    return None


def moved(problem: Problem, kept: dict[str, list[int]]) -> Problem:
    """A problem of a list from which entries were left out, at its place in the whole one."""
    key, *rest = problem.location
    if key in kept and rest and isinstance(rest[0], int):
        return replace(problem, location=(key, kept[str(key)][rest[0]], *rest[1:]))
    return problem
