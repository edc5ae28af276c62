"""Train variants on data sets over folds and seeds, here or on a Slurm cluster, and say what came out."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nnunet_godc.cli import evaluate
from nnunet_godc.errors import UserError
from nnunet_godc.spelling import nearest_name

if TYPE_CHECKING:
    from nnunet_godc.study.definition import Definition
    from nnunet_godc.study.problems import Problem

WHAT = {
    "run": "run whatever of a study is not done yet",
    "status": "show what its jobs are doing",
    "collect": "evaluate what is there so far",
    "cancel": "end what runs; `run` goes on from there",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    run_parser = commands.add_parser("run", help=WHAT["run"], description=WHAT["run"])
    run_parser.add_argument("study", metavar="STUDY", help="a study file, or the name of a shipped one, such as table1")
    run_parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study, default: its name")
    run_parser.add_argument("--executor", choices=("local", "slurm"), help="instead of what the study file says")
    run_parser.add_argument("--dry-run", action="store_true", help="only show the jobs and their commands")
    for name in ("status", "collect", "cancel"):
        other = commands.add_parser(name, help=WHAT[name], description=WHAT[name])
        other.add_argument("folder", type=Path, metavar="DIR", help="folder of the study")
        if name == "status":
            other.add_argument("--once", action="store_true", help="print the table once and exit")


def run(arguments: argparse.Namespace) -> int:
    if os.name == "nt":
        raise UserError("a study runs on Linux and macOS only; on Windows, run it in the Windows Subsystem for Linux.")
    commands = {"run": _run, "status": _status, "collect": _collect, "cancel": _cancel}
    return commands[arguments.what](arguments)


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_godc.study.find_classes import check_classes
    from nnunet_godc.study.planning import jobs_of
    from nnunet_godc.study.run import run_study
    from nnunet_godc.study.study_file import find_study_file, read_study

    study = read_study(find_study_file(arguments.study), lambda read: check_classes(read) + _check_evaluation(read))
    if arguments.executor:
        definition = study.definition
        resources = definition.resources.model_copy(update={"executor": arguments.executor})
        study = study.model_copy(update={"definition": definition.model_copy(update={"resources": resources})})
    folder = (arguments.out or Path(study.name)).absolute()
    if arguments.dry_run:
        for job in jobs_of(study, folder):
            print(f"{job.id}\n    {' '.join(job.command)}")
        return 0
    done = run_study(study, folder)
    if arguments.executor == "slurm" or study.definition.resources.executor == "slurm":
        print(f"Submitted; `nnunet-godc study status {folder}` shows how far it is.")
        return 0
    print(f"Everything is done: {folder}" if done else f"Not everything is done; run it again once mended: {folder}")
    return 0 if done else 1


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print before it exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _check_evaluation(definition: Definition) -> list[Problem]:
    """Problems of the options for `nnunet-godc evaluate`, which would show only once everything is trained."""
    from nnunet_godc.study.planning import option_words
    from nnunet_godc.study.problems import Problem

    parser = _Parser(add_help=False)
    evaluate.add_arguments(parser)
    # what a study says of every evaluation by itself, and short options, which name what is evaluated
    known = [
        word.removeprefix("--")
        for action in parser._actions
        for word in action.option_strings
        if word.startswith("--") and word != "--out"
    ]
    problems = []
    for name, value in definition.evaluate.items():
        if name.replace("_", "-") not in known:
            near = nearest_name(name.replace("_", "-"), known)
            hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}."
            problems.append(Problem(("evaluate", name), f"{name!r} is unknown; {hint}", of_key=True))
            continue
        try:
            evaluate.check_values(parser.parse_args(["--out", "", *option_words(name, value)]))
        except (ValueError, UserError) as error:
            problems.append(Problem(("evaluate", name), f"{error}."))
    return problems


def _status(arguments: argparse.Namespace) -> int:
    from nnunet_godc.study.status import show_status

    show_status(arguments.folder, live=not arguments.once)
    return 0


def _collect(arguments: argparse.Namespace) -> int:
    from nnunet_godc.study.collect import collect

    print(f"Written: {collect(arguments.folder)}")
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from nnunet_godc.study.run import cancel_study

    count = cancel_study(arguments.folder)
    print(f"Ended {count} job{'' if count == 1 else 's'}; `nnunet-godc study run` goes on from there.")
    return 0
