"""Measure nnU-Net's predictions, case by case and lesion by lesion, and compare trainers on the same cases."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_godc.errors import UserError
from nnunet_godc.workers import available_cores

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_godc.evaluation import Evaluation
    from nnunet_godc.evaluation.lesions import LesionRule
    from nnunet_godc.report.page import Page

GROUPS = ("overlap", "surface", "lesions", "all")
PROBLEMS_SHOWN = 50  # all of them stand in evaluation.json
CASES = 40  # with pictures and viewer
WITH_PROBLEMS = 3  # exit status: the report is written, but something is missing or could not be measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        type=Path,
        nargs="*",
        metavar="RESULTS",
        help="cross-validations: nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION, one or several; or "
        "tables that an earlier evaluation has written (measurements.csv), which are joined and not measured again",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for tables and report")
    add_workers_and_patients(parser)

    page = parser.add_argument_group("page to look at, as nnunet-godc report writes it")
    page.add_argument("--html", action="store_true", help="write index.html beside the tables")
    add_cases(page)

    predictions = parser.add_argument_group("predictions instead of cross-validations, as nnUNetv2_evaluate_folder")
    predictions.add_argument("-pred", type=Path, nargs="+", default=[], metavar="DIR", help="folders of predictions")
    predictions.add_argument("-ref", type=Path, metavar="DIR", help="folder of references; serves RESULTS as well")
    predictions.add_argument(
        "-djfile", type=Path, metavar="FILE", help="dataset.json, default: that beside the predictions"
    )
    predictions.add_argument("-pfile", type=Path, metavar="FILE", help="plans.json, default: that beside them")
    predictions.add_argument("--chill", action="store_true", help="references without a prediction are not a problem")

    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--metrics",
        nargs="+",
        choices=GROUPS,
        default=["all"],
        help="overlap: Dice, IoU, precision, recall, relative volume error, from nnU-Net's summary.json where it has "
        "them; surface: HD95, average surface distance, NSD, volume error; lesions: what was found; default: all",
    )
    what.add_argument(
        "--nsd-tolerance", type=float, default=2.0, metavar="MM", help="of the NSD, default: %(default)g mm"
    )
    what.add_argument(
        "--lesions", nargs="+", metavar="LABEL", help="labels that are lesions, default: those whose names say so"
    )
    what.add_argument(
        "--lesion-iou",
        type=float,
        default=0.1,
        metavar="IOU",
        help="from which a lesion counts as detected, default: %(default)g; 0: any overlap",
    )
    what.add_argument(
        "--lesion-minimum",
        type=float,
        default=0.0,
        metavar="ML",
        help="lesions below this volume are dropped, in the reference and predicted; default: none",
    )
    what.add_argument(
        "--lesion-matching",
        choices=("many-to-one", "one-to-one"),
        default="many-to-one",
        help="whether all predicted lesions of one are taken together, or only that of the largest overlap, as in "
        "panoptica; default: %(default)s",
    )
    what.add_argument(
        "--lesion-dilation",
        type=int,
        default=0,
        metavar="VOXELS",
        help="by which masks are dilated before lesions are told apart, as in BraTS; default: %(default)s",
    )
    what.add_argument(
        "--accept-headers",
        action="store_true",
        help="measure voxel by voxel where prediction and reference differ in their headers only",
    )
    what.add_argument(
        "--lesion-bins",
        type=float,
        nargs="+",
        default=[0.5, 2.0, 10.0],
        metavar="ML",
        help="edges between bins of lesion volumes, default: 0.5 2 10 ml",
    )
    statistics = parser.add_argument_group("statistics")
    statistics.add_argument(
        "--baseline", metavar="TRAINER", help="compare every trainer with this one, default: all with each other"
    )
    statistics.add_argument(
        "--table",
        nargs="+",
        default=["dice", "precision", "recall"],
        metavar="METRIC",
        help="columns of the tables, by how their names begin; default: dice precision recall. All else is below them",
    )
    statistics.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="of the bootstrap, default: %(default)s"
    )
    statistics.add_argument("--seed", type=int, default=0, help="of all that is drawn, default: %(default)s")


def add_workers_and_patients(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-np",
        type=int,
        default=available_cores(),
        metavar="N",
        help="worker processes, default: %(default)s; 0 for none",
    )
    parser.add_argument(
        "--patients", type=Path, metavar="FILE", help="CSV case,patient; default: as nnunet-godc convert has recorded"
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
    if not arguments.results and not arguments.pred:
        raise UserError(
            "nothing to evaluate; give folders of results, or predictions with -pred and references with -ref"
        )
    if arguments.pred and arguments.ref is None:
        raise UserError("-pred needs the references; give their folder with -ref")
    from nnunet_godc.evaluation import evaluate

    if arguments.html:
        from nnunet_godc.report.assets import check_packages

        check_packages()
    with progress_bar("measuring") as show:
        evaluation = evaluate(
            arguments.results,
            arguments.out,
            predictions=arguments.pred,
            references=arguments.ref,
            dataset_json=arguments.djfile,
            plans=arguments.pfile,
            only_predicted=arguments.chill,
            patients=arguments.patients,
            metrics=arguments.metrics,
            nsd_tolerance_mm=arguments.nsd_tolerance,
            accept_headers=arguments.accept_headers,
            lesions=arguments.lesions,
            lesion_rule=_lesion_rule(arguments),
            lesion_bins_ml=arguments.lesion_bins,
            baseline=arguments.baseline,
            table=arguments.table,
            resamples=arguments.resamples,
            seed=arguments.seed,
            workers=arguments.np,
            progress=show,
        )
    for note in evaluation.notes:
        print(note)
    print(f"written to {arguments.out}: {', '.join(path.name for path in evaluation.files)}")
    problems = list(evaluation.problems)
    if arguments.html:
        problems += write_page_of(evaluation, arguments).problems
    return show_problems(problems)


@contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, which the function that it gives moves on: called with cases that are done, and all."""
    from tqdm import tqdm

    with tqdm(unit="case", disable=None, desc=doing) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def write_page_of(
    evaluation: Evaluation,
    arguments: argparse.Namespace,
    *,
    epochs: pd.DataFrame | None = None,
    volumes: dict[tuple[str, str, str], float] | None = None,
    running: Sequence[Path] = (),
    explained: Sequence[Path] = (),
) -> Page:
    """Writes the page beside the tables, and says where it is."""
    from nnunet_godc.report.page import write_page

    with progress_bar("drawing") as show:
        page = write_page(
            evaluation,
            arguments.out,
            baseline=arguments.baseline,
            epochs=epochs,
            volumes=volumes,
            running=running,
            explained=explained,
            cases=arguments.cases,
            workers=arguments.np,
            progress=show,
        )
    if page.without_image:
        print(f"{page.without_image} of {page.cases} cases are shown without their images; set nnUNet_raw to find them")
    print(f"open {page.path} in a browser")
    return page


def check_values(arguments: argparse.Namespace) -> None:
    """Raises:
    UserError: the value of an option makes no sense.
    """
    from nnunet_godc.evaluation.evaluate import check_options

    check_options(
        arguments.nsd_tolerance, _lesion_rule(arguments), arguments.lesion_bins, arguments.np, arguments.resamples
    )


def _lesion_rule(arguments: argparse.Namespace) -> LesionRule:
    from nnunet_godc.evaluation.lesions import LesionRule

    one_to_one = arguments.lesion_matching == "one-to-one"
    return LesionRule(arguments.lesion_iou, arguments.lesion_minimum, one_to_one, arguments.lesion_dilation)


def show_problems(problems: Sequence[str]) -> int:
    if not problems:
        return 0
    print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:", file=sys.stderr)
    for problem in problems[:PROBLEMS_SHOWN]:
        print(f"  {problem}", file=sys.stderr)
    if len(problems) > PROBLEMS_SHOWN:
        print(f"  and {len(problems) - PROBLEMS_SHOWN} more: see evaluation.json", file=sys.stderr)
    return WITH_PROBLEMS
