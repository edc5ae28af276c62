"""Turn a CT collection into a raw nnU-Net dataset; check and preview what was converted."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_godc.errors import UserError

if TYPE_CHECKING:
    from nnunet_godc.conversion.command import Converter

MODULES = {
    "lits": "Dataset501_LiTS",
    "pancreas": "Dataset502_PancreasTumour",
    "msd-pancreas": "Dataset503_MSDPancreas",
    "nih-pancreas": "Dataset504_NIHPancreas",
    "panorama": "Dataset505_PANORAMA",
}
WHAT = {
    "lits": "LiTS as downloaded, or the Decathlon's Task03_Liver",
    "pancreas": "an in-house collection: NIfTI, NRRD, MetaImage, DICOM; masks as DICOM-SEG or RTSTRUCT too",
    "msd-pancreas": "the Decathlon's Task07_Pancreas",
    "nih-pancreas": "NIH Pancreas-CT",
    "panorama": "PANORAMA",
    "check": "compare a converted dataset with what was recorded when it was converted",
    "preview": "one picture of all cases: contours on the slice with the largest tumour",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  {name:<14}{text}" for name, text in WHAT.items()]
    parser.epilog = "\n".join(["WHAT is one of", *lines, "", "Options: nnunet-godc convert WHAT --help"])
    parser.add_argument("what", choices=WHAT, metavar="WHAT", help="a collection, or check or preview; see below")
    # The options depend on the collection, whose module is loaded when it is asked for: --help stays quick.
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="its options")


def run(arguments: argparse.Namespace) -> int:
    prog = f"nnunet-godc convert {arguments.what}"
    if arguments.what == "check":
        return _check(arguments.options, prog)
    if arguments.what == "preview":
        return _preview(arguments.options, prog)
    from nnunet_godc.conversion import command

    converter = load_converter(arguments.what)
    parser = argparse.ArgumentParser(prog=prog, description=converter.description)
    command.add_arguments(parser, converter)
    try:
        return command.run(converter, parser.parse_args(arguments.options))
    except UserError:
        raise
    except Exception:
        print(
            "nnunet-godc: this is a defect of the converter, not of your files; please report it with the lines below, "
            "after taking out names that are nobody's business. What was converted is kept: the same command goes on.",
            file=sys.stderr,
        )
        raise


def load_converter(name: str) -> Converter:
    """What the script of a collection in `dataset_conversion` brings along."""
    module = importlib.import_module(f"nnunet_godc.dataset_conversion.{MODULES[name]}")
    converter: Converter = module.CONVERTER
    return converter


def _check(options: list[str], prog: str) -> int:
    from nnunet_godc.conversion.check import check_dataset

    parser = argparse.ArgumentParser(prog=prog, description=WHAT["check"])
    parser.add_argument("dataset", type=Path, metavar="DIR", help="a converted dataset, nnUNet_raw/DatasetXXX_Name")
    dataset = parser.parse_args(options).dataset
    problems = check_dataset(dataset)
    if problems:
        raise UserError(f"{dataset} is not as it was converted:" + "".join(f"\n  {problem}" for problem in problems))
    print(f"{dataset}: every file is as it was converted")
    return 0


def _preview(options: list[str], prog: str) -> int:
    from nnunet_godc.conversion.preview import write_preview

    parser = argparse.ArgumentParser(prog=prog, description=WHAT["preview"])
    parser.add_argument("dataset", type=Path, metavar="DIR", help="a converted dataset, nnUNet_raw/DatasetXXX_Name")
    parser.add_argument("-o", type=Path, metavar="FILE", help="the picture, default: DIR/preview.png")
    arguments = parser.parse_args(options)
    out = arguments.o or arguments.dataset / "preview.png"
    problems = write_preview(arguments.dataset, out)
    print(f"Written: {out}")
    if problems:
        raise UserError("not all cases could be drawn:" + "".join(f"\n  {problem}" for problem in problems))
    return 0
