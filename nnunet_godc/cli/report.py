"""Write one page to look at: numbers, charts, training curves, and the cases with a viewer."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from nnunet_godc.cli.evaluate import (
    add_cases,
    add_workers_and_patients,
    progress_bar,
    show_problems,
    write_page_of,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help="cross-validations: nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION, one or several; tables "
        "that nnunet-godc evaluate has written (measurements.csv); tables of epochs (trainer, fold, epoch, "
        "training_loss, ...), and of volumes (case, label, reference_mm3); folders of nnunet-godc explain",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the page and its tables")
    parser.add_argument("--baseline", metavar="TRAINER", help="compare every trainer with this one, and show it first")
    parser.add_argument(
        "--serve", action="store_true", help="then serve the page to this machine's browsers, until Ctrl-C"
    )
    add_workers_and_patients(parser)
    add_cases(parser)


def run(arguments: argparse.Namespace) -> int:
    from nnunet_godc.evaluation import evaluate
    from nnunet_godc.report.assets import check_packages
    from nnunet_godc.report.sources import sort_sources

    check_packages()
    sources = sort_sources(arguments.results)
    with progress_bar("measuring") as show:
        evaluation = evaluate(
            sources.results,
            arguments.out,
            patients=arguments.patients,
            baseline=arguments.baseline,
            workers=arguments.np,
            progress=show,
        )
    for folder in sources.running:
        print(f"{folder} has no validation results yet: it is in the training curves alone")
    page = write_page_of(
        evaluation,
        arguments,
        epochs=sources.epochs,
        volumes=sources.volumes,
        running=sources.running,
        explained=sources.explained,
    )
    status = show_problems([*evaluation.problems, *page.problems])
    if arguments.serve:
        _serve(arguments.out)
    return status


def _serve(folder: Path) -> None:
    from nnunet_godc.report.serve import address_of, server_of

    with server_of(folder) as server, contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how one ends it
        print(f"served at {address_of(server)} until Ctrl-C", flush=True)
        server.serve_forever()
