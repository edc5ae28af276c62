"""Measure nnU-Net's predictions, case by case and lesion by lesion, and compare trainers on the same cases."""

from __future__ import annotations

import argparse
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_godc.errors import UserError
from nnunet_godc.seeded_names import without_seed
from nnunet_godc.workers import available_cores

if TYPE_CHECKING:
    from nnunet_godc.evaluation.results import Results

GROUPS = ("overlap", "surface", "lesions", "all")
PROBLEMS_SHOWN = 50  # all of them stand in evaluation.json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        type=Path,
        nargs="*",
        metavar="RESULTS",
        help="cross-validations: nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION, one or several",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for tables and report")
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

    predictions = parser.add_argument_group("predictions instead of cross-validations, as nnUNetv2_evaluate_folder")
    predictions.add_argument("-pred", type=Path, nargs="+", default=[], metavar="DIR", help="folders of predictions")
    predictions.add_argument("-ref", type=Path, metavar="DIR", help="folder of references; serves RESULTS as well")
    predictions.add_argument(
        "-djfile", type=Path, metavar="FILE", help="dataset.json, default: that beside the predictions"
    )
    predictions.add_argument("-pfile", type=Path, metavar="FILE", help="plans.json, default: that beside them")
    predictions.add_argument("--chill", action="store_true", help="references without a prediction are no problem")

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
        "--resamples", type=int, default=10_000, metavar="N", help="of the bootstrap, default: %(default)s"
    )
    statistics.add_argument("--seed", type=int, default=0, help="of all that is drawn, default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from tqdm import tqdm

    from nnunet_godc.evaluation.case import Options
    from nnunet_godc.evaluation.evaluate import evaluate, lesion_labels
    from nnunet_godc.evaluation.reporting import check_baseline, write_report

    results = _find(arguments)
    if arguments.baseline is not None:
        check_baseline(arguments.baseline, {without_seed(result.trainer) for result in results})
    groups = set(GROUPS) if "all" in arguments.metrics else set(arguments.metrics)
    lesions = lesion_labels(results, arguments.lesions) if "lesions" in groups else ()
    options = Options(
        surface="surface" in groups,
        nsd_tolerance_mm=arguments.nsd_tolerance,
        lesions=lesions,
        minimum_iou=arguments.lesion_iou,
    )
    with tqdm(unit="case", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        evaluation = evaluate(
            results,
            arguments.out,
            options,
            lesion_bins_ml=arguments.lesion_bins,
            patients=arguments.patients,
            workers=arguments.np,
            progress=show,
        )
    for note in evaluation.notes:
        print(note)
    if "lesions" in groups:
        chosen = "as asked for" if arguments.lesions else "by their names; --lesions takes others"
        print(f"lesions: {', '.join(lesions) or 'no label'} ({chosen})")
    try:
        written = write_report(
            evaluation.measurements,
            arguments.out,
            lesions=evaluation.lesions,
            baseline=arguments.baseline,
            seed=arguments.seed,
            resamples=arguments.resamples,
        )
    except UserError as error:
        _tell_problems(evaluation.problems)
        earlier = "; the report that is there is of an earlier run" if (arguments.out / "report.md").exists() else ""
        raise UserError(f"measured, but not reported: {error}{earlier}") from error
    names = [path.name for path in (*evaluation.files, *written)]
    print(f"written to {arguments.out}: {', '.join(names)}")
    return _tell_problems(evaluation.problems)


def _check(arguments: argparse.Namespace) -> None:
    """Raises:
    UserError: options contradict each other, or their values make no sense.
    """
    if not arguments.results and not arguments.pred:
        raise UserError(
            "nothing to evaluate; give folders of results, or predictions with -pred and references with -ref"
        )
    if arguments.pred and arguments.ref is None:
        raise UserError("-pred needs the references; give their folder with -ref")
    check_values(arguments)


def check_values(arguments: argparse.Namespace) -> None:
    """Raises:
    UserError: the value of an option makes no sense.
    """
    from nnunet_godc.evaluation.reporting import check_resamples

    if arguments.np < 0:
        raise UserError(f"-np {arguments.np} is no number of worker processes; give 0 or more")
    if not (math.isfinite(arguments.nsd_tolerance) and arguments.nsd_tolerance > 0):
        raise UserError(f"--nsd-tolerance {arguments.nsd_tolerance:g} is no distance; give millimetres above 0")
    if not 0 <= arguments.lesion_iou <= 1:
        raise UserError(f"--lesion-iou {arguments.lesion_iou:g} is no IoU; give 0 to 1")
    edges = [0.0, *arguments.lesion_bins]
    if not all(low < high < math.inf for low, high in pairwise(edges)):
        raise UserError("--lesion-bins have to be volumes above 0 ml, each larger than the one before")
    check_resamples(arguments.resamples)


def _find(arguments: argparse.Namespace) -> list[Results]:
    from nnunet_godc.evaluation.results import predicted_results, trainer_results

    return [
        *(trainer_results(folder, arguments.ref) for folder in arguments.results),
        *(
            predicted_results(folder, arguments.ref, arguments.djfile, arguments.pfile, only_predicted=arguments.chill)
            for folder in arguments.pred
        ),
    ]


def _tell_problems(problems: list[str]) -> int:
    if not problems:
        return 0
    print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:", file=sys.stderr)
    for problem in problems[:PROBLEMS_SHOWN]:
        print(f"  {problem}", file=sys.stderr)
    if len(problems) > PROBLEMS_SHOWN:
        print(f"  and {len(problems) - PROBLEMS_SHOWN} more: see evaluation.json", file=sys.stderr)
    return 1
