"""Which trainers and planners nnU-Net finds. It is asked in a process of its own, since it loads torch.

python -m nnunet_godc.study.find_classes TRAINER... -- PLANNER...
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nnunet_godc.combined_names import parts_of
from nnunet_godc.errors import UserError
from nnunet_godc.spelling import nearest_name, nearest_trainer_name
from nnunet_godc.study.definition import Definition
from nnunet_godc.study.problems import Problem


def check_classes(definition: Definition) -> list[Problem]:
    """Problems for trainers and planners that nnU-Net does not find.

    Raises:
        UserError: nnU-Net cannot be asked, as when a module in a folder of nnUNet_extTrainer fails.
    """
    written = _classes_in_source()
    trainers = [name for name in definition.trainers if name not in written and parts_of(name) is None]
    planners = [plans.planner for plans in definition.plans if plans.planner and plans.planner not in written]
    if not trainers and not planners:
        return []
    command = [sys.executable, "-m", "nnunet_godc.study.find_classes", *trainers, "--", *planners]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UserError(f"nnU-Net cannot look for trainers: {last[0]}; `nnunet-godc doctor` tells more.")
    return _problems(definition, json.loads(answer.stdout))


def _classes_in_source() -> set[str]:
    """Names of the classes that are written down where nnU-Net looks: most need no search, which takes many seconds."""
    nnunet = importlib.util.find_spec("nnunetv2")
    folders = [Path(place) for place in (nnunet.submodule_search_locations or ())] if nnunet else []
    folders = [folder / part for folder in folders for part in ("training/nnUNetTrainer", "experiment_planning")]
    ours = importlib.util.find_spec("nnunet_godc.trainers")
    folders += [Path(place) for place in (ours.submodule_search_locations or ())] if ours else []
    folders += [Path(place) for place in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if place.strip()]
    sources = (
        path.read_text(encoding="utf-8", errors="replace") for folder in folders for path in folder.rglob("*.py")
    )
    return {name for source in sources for name in re.findall(r"^class (\w+)", source, re.MULTILINE)}


def _problems(definition: Definition, unknown: dict[str, dict[str, str | None]]) -> list[Problem]:
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


def unknown_classes(trainers: list[str], planners: list[str]) -> dict[str, dict[str, str | None]]:
    """The names that nnU-Net does not find, each with the nearest that exists, if any is near."""
    import nnunetv2
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    folder = str(Path(nnunetv2.__path__[0], "experiment_planning"))

    def finds_trainer(name: str) -> bool:
        try:
            recursive_find_trainer_class_by_name(name)
        except RuntimeError:
            return False
        return True

    def finds_planner(name: str) -> bool:
        return recursive_find_python_class(folder, name, "nnunetv2.experiment_planning") is not None

    def unknown(names: list[str], finds: Callable[[str], bool]) -> list[str]:
        return [name for name in dict.fromkeys(names) if not finds(name)]

    # Looking imports all classes that there are, which are the candidates for what was meant.
    lost_trainers, lost_planners = unknown(trainers, finds_trainer), unknown(planners, finds_planner)
    known_trainers, known_planners = _names_below(nnUNetTrainer), _names_below(ExperimentPlanner)
    return {
        "trainers": {name: nearest_trainer_name(name, known_trainers) for name in lost_trainers},
        "planners": {name: nearest_name(name, known_planners) for name in lost_planners},
    }


def _names_below(parent: type) -> set[str]:
    children: list[type] = parent.__subclasses__()
    return {parent.__name__}.union(*(_names_below(child) for child in children))


def main(arguments: list[str]) -> None:
    separator = arguments.index("--")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        unknown = unknown_classes(arguments[:separator], arguments[separator + 1 :])
    print(json.dumps(unknown))


if __name__ == "__main__":
    main(sys.argv[1:])
