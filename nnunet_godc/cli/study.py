"""Train variants on data sets over folds and seeds, here or on a Slurm cluster, and say what came out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nnunet_godc.cli import evaluate
from nnunet_godc.errors import UserError
from nnunet_godc.seeded_names import without_seed
from nnunet_godc.spelling import closest_match

if TYPE_CHECKING:
    from nnunet_godc.study.checks import Problem
    from nnunet_godc.study.definition import StudyConfig

WHAT = {
    "run": "run whatever of a study is not done yet",
    "status": "show what its jobs are doing",
    "collect": "evaluate what is there so far",
    "cancel": "end what runs; `run` goes on from there",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    for name, what in WHAT.items():
        command = commands.add_parser(name, help=what, description=what)
        of_folder = "" if name == "run" else ", or the study's folder"
        command.add_argument(
            "study", metavar="STUDY", help=f"a study file, or the name of a shipped one, such as table1{of_folder}"
        )
        command.add_argument("--out", type=Path, metavar="DIR", help="folder of the study, default: its name")
        if name == "run":
            command.add_argument("--executor", choices=("local", "slurm"), help="instead of what the study file says")
            command.add_argument("--dry-run", action="store_true", help="only show what is done and what would run")
            command.add_argument(
                "--retrain", action="store_true", help="make trainings anew where old and new results would mix"
            )
        if name == "status":
            command.add_argument("--once", action="store_true", help="print the table once and exit")
            command.add_argument(
                "--html", action="store_true", help="write a page with training curves instead, that renews itself"
            )


def run(arguments: argparse.Namespace) -> int:
    if os.name == "nt":
        raise UserError("a study runs on Linux and macOS only; on Windows, run it in the Windows Subsystem for Linux.")
    commands = {"run": _run, "status": _status, "collect": _collect, "cancel": _cancel}
    return commands[arguments.what](arguments)


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_godc.study.checks import class_problems
    from nnunet_godc.study.folder import read_trainers
    from nnunet_godc.study.run import dry_run, run_study
    from nnunet_godc.study.study_file import find_study_file, read_study
    from nnunet_godc.study.trainers import Code, look_up

    file = find_study_file(arguments.study)
    trainers: dict[str, Code] = {}

    def check(read: StudyConfig) -> Iterator[Problem]:
        known = read_trainers(arguments.out or Path(read.name or file.stem))
        planners = [plans.planner for plans in read.plans if plans.planner]
        answer = look_up([without_seed(trainer) for trainer in read.trainers], planners, known)
        trainers.update(answer.code)
        yield from class_problems(read, answer)
        yield from _evaluation_problems(read)

    study = read_study(file, check)
    if arguments.executor:
        definition = study.definition
        resources = definition.resources.model_copy(update={"executor": arguments.executor})
        study = study.model_copy(update={"definition": definition.model_copy(update={"resources": resources})})
    folder = (arguments.out or Path(study.name)).absolute()
    if arguments.dry_run:
        lines, refused = dry_run(study, folder, trainers=trainers, retrain=arguments.retrain)
        print("\n".join(lines))
        if refused:
            raise UserError("refused: " + "\n".join(refused))
        return 0
    return 0 if run_study(study, folder, trainers=trainers, retrain=arguments.retrain) else 1


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print before it exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _evaluation_problems(definition: StudyConfig) -> Iterator[Problem]:
    """Problems of the options for `nnunet-godc evaluate`, which would show only once everything is trained."""
    from nnunet_godc.study.checks import Problem
    from nnunet_godc.study.planning import option_words

    parser = _Parser(add_help=False)
    evaluate.add_arguments(parser)
    # what a study says of every evaluation by itself, and short options, which name what is evaluated
    known = [
        word.removeprefix("--")
        for action in parser._actions
        for word in action.option_strings
        if word.startswith("--") and word != "--out"
    ]
    for name, value in definition.evaluate.items():
        if name.replace("_", "-") not in known:
            near = closest_match(name.replace("_", "-"), known)
            hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}."
            yield Problem(("evaluate", name), f"{name!r} is unknown; {hint}", of_key=True)
            continue
        try:
            evaluate.check_values(parser.parse_args(["--out", "", *option_words(name, value)]))
        except (ValueError, UserError) as error:
            yield Problem(("evaluate", name), f"{error}.")


def _folder(arguments: argparse.Namespace) -> Path:
    """Of the study, as `run` would make it."""
    from nnunet_godc.study.study_file import find_study_folder

    folder: Path = arguments.out or find_study_folder(arguments.study)
    return folder.absolute()


def _status(arguments: argparse.Namespace) -> int:
    from nnunet_godc.study.status import show_status

    show_status(_folder(arguments), live=not arguments.once, html=arguments.html)
    return 0


def _collect(arguments: argparse.Namespace) -> int:
    from nnunet_godc.study.collect import collect

    print(f"Written: {collect(_folder(arguments))}")
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from nnunet_godc.study.run import cancel_study

    count = cancel_study(_folder(arguments))
    print(f"Ended {count} job{'' if count == 1 else 's'}; `nnunet-godc study run` goes on from there.")
    return 0
