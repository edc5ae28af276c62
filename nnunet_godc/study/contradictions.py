"""What every block of a study file by itself allows and all together do not."""

from __future__ import annotations

from collections.abc import Iterator

from nnunet_godc.seeded_names import without_seed
from nnunet_godc.shrunken_plans import CONFIGURATION
from nnunet_godc.spelling import nearest_trainer_name
from nnunet_godc.study.definition import PLANNERS, Definition
from nnunet_godc.study.problems import Problem


def contradictions(definition: Definition) -> Iterator[Problem]:
    for key in ("configurations", "trainers", "folds", "seeds"):
        entries = getattr(definition, key)
        for index, entry in enumerate(entries):
            if entry in entries[:index]:
                yield Problem((key, index), f"{entry} stands twice in {key}; keep one.")
    if "all" in definition.folds and len(definition.folds) > 1:
        sentence = "fold all validates on the cases that it was trained on; train it in a study of its own."
        yield Problem(("folds", definition.folds.index("all")), sentence)
    for index, trainer in enumerate(definition.trainers):
        if definition.seeds and without_seed(trainer) != trainer:
            yield Problem(("trainers", index), f"{trainer} has a seed already; leave it out here or in seeds.")
    baseline = definition.evaluate.get("baseline")
    variants = {without_seed(trainer) for trainer in definition.trainers}
    if isinstance(baseline, str) and baseline not in variants:
        near = nearest_trainer_name(baseline, variants)
        hint = f"did you mean {near}?" if near else f"they are {', '.join(sorted(variants))}."
        yield Problem(("evaluate", "baseline"), f"{baseline} is none of the trainers; {hint}")
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
        if plans.name in PLANNERS and (plans.gpu_memory_gb or plans.planner not in (None, PLANNERS[plans.name])):
            sentence = (
                f"{plans.name} are nnU-Net's own, made by its {PLANNERS[plans.name]}; give plans for another planner "
                "or gpu_memory_gb a name of their own."
            )
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
    kept = plans.configuration or CONFIGURATION
    for position, configuration in enumerate(definition.configurations):
        if configuration != kept:
            sentence = f"{plans.name}, being a variation, have {kept} only; leave {configuration} out."
            yield Problem(("configurations", position), sentence)
