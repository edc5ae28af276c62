"""Write one page to look at: numbers, charts, training curves, and the cases with a viewer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_godc.cli.evaluate import show_problems
from nnunet_godc.workers import available_cores

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_godc.evaluation import Evaluation
    from nnunet_godc.report import Page

CASES = 40


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
    add_cases(parser)
    parser.add_argument(
        "-np",
        type=int,
        default=available_cores(),
        metavar="N",
        help="worker processes, default: %(default)s; 0 for none",
    )


def add_cases(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--cases",
        type=int,
        default=CASES,
        metavar="N",
        help="the page has pictures and a viewer of so many cases: the worst, median and best of each method, and "
        "those where two differ most; default: %(default)s",
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
            tables.results, arguments.out, baseline=arguments.baseline, workers=arguments.np, progress=show
        )
    page = write_page_of(evaluation, arguments, epochs=tables.epochs, volumes=tables.volumes)
    return show_problems([*evaluation.problems, *page.problems])


def write_page_of(
    evaluation: Evaluation,
    arguments: argparse.Namespace,
    *,
    epochs: pd.DataFrame | None = None,
    volumes: dict[tuple[str, str, str], float] | None = None,
) -> Page:
    """Writes the page beside the tables, and says where it is."""
    from tqdm import tqdm

    from nnunet_godc.report import write_page

    with tqdm(unit="case", disable=None, desc="drawing") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        page = write_page(
            evaluation,
            arguments.out,
            baseline=arguments.baseline,
            epochs=epochs,
            volumes=volumes,
            cases=arguments.cases,
            workers=arguments.np,
            progress=show,
        )
    print(f"open {page.path} in a browser", file=sys.stdout)
    return page
