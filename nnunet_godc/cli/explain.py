"""Show what GODC does to a trained model's gradients, and what LFAM's offsets do to its predictions."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_godc.cli.evaluate import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION, whose first fold is taken, or a checkpoint "
        "in it (fold_X/checkpoint_final.pth)",
    )
    parser.add_argument(
        "cases",
        nargs="+",
        metavar="CASE",
        help="name of a case in nnUNet_raw, or path of its first channel (imagesTr/CASE_0000.nii.gz)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the page and its tables")


def run(arguments: argparse.Namespace) -> int:
    from nnunet_godc.report.assets import check_packages
    from nnunet_godc.report.explain import explain
    from nnunet_godc.report.page import write_inside_page

    check_packages()
    with progress_bar("explaining") as show:
        found = explain(arguments.model, arguments.cases, progress=show)
    print(f"open {write_inside_page(found, arguments.out)} in a browser")
    return 0
