"""Write one page to look at: numbers, charts, training curves, and the cases with a viewer."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_godc.cli.evaluate import add_cases, show_problems, write_page_of
from nnunet_godc.workers import available_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help="cross-validations: nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION, one or several; tables "
        "that nnunet-godc evaluate has written (measurements.csv); tables of epochs (trainer, fold, epoch, "
        "training_loss, ...), and of volumes (case, label, reference_mm3)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the page and its tables")
    parser.add_argument("--baseline", metavar="TRAINER", help="compare every trainer with this one, and show it first")
    parser.add_argument(
        "--patients", type=Path, metavar="FILE", help="CSV case,patient; default: as nnunet-godc convert has recorded"
    )
    add_cases(parser)
    parser.add_argument(
        "-np",
        type=int,
        default=available_cores(),
        metavar="N",
        help="worker processes, default: %(default)s; 0 for none",
    )


def run(arguments: argparse.Namespace) -> int:
    from nnunet_godc.evaluation import evaluate
    from nnunet_godc.report.assets import check_packages
    from nnunet_godc.report.tables import sort_tables

    check_packages()
    tables = sort_tables(arguments.results)
    from tqdm import tqdm

    with tqdm(unit="case", disable=None, desc="measuring") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        evaluation = evaluate(
            tables.results,
            arguments.out,
            patients=arguments.patients,
            baseline=arguments.baseline,
            workers=arguments.np,
            progress=show,
        )
    for folder in tables.running:
        print(f"{folder} has no validation results yet: it is in the training curves alone")
    page = write_page_of(evaluation, arguments, epochs=tables.epochs, volumes=tables.volumes, running=tables.running)
    return show_problems([*evaluation.problems, *page.problems])
