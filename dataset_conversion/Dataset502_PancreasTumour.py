"""An in-house collection of CT scans with masks of the pancreas or its tumour, in whatever formats it comes."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from nnunet_godc.conversion.collection import Collection, CollectionListing
from nnunet_godc.conversion.command import Converter, main
from nnunet_godc.conversion.dicom import SeriesChoice
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion.pairing import (
    new_names,
    new_patients,
    pairs_by_pattern,
    pairs_by_table,
    read_keys,
    series_choice,
    with_patients,
    write_keys,
)
from nnunet_godc.conversion.splits import draw_test_cases
from nnunet_godc.errors import UserError

PREFIX = "PANC"
OTHERS = "others"
DEFAULT_LABELS = ["1=tumour", "*tumo*r*=tumour"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pairs = parser.add_argument_group("which image goes with which mask")
    pairs.add_argument(
        "--csv", type=Path, metavar="FILE", help="table with columns image, mask and, if wanted, series, patient, test"
    )
    pairs.add_argument(
        "--image-pattern",
        default="images/{case}",
        metavar="PATTERN",
        help="path below SOURCE without ending, {case} and {patient} for parts of names, default: %(default)s",
    )
    pairs.add_argument(
        "--mask-pattern",
        default="masks/{case}",
        metavar="PATTERN",
        help="with {label} for a file of every label, such as 'masks/{case}/{label}'; default: %(default)s",
    )
    pairs.add_argument(
        "--series",
        type=_series,
        default="only",
        metavar="WHICH",
        help="of several DICOM series in a folder: only (that which the mask was drawn on, else refuse), largest, or a "
        "series number",
    )
    masks = parser.add_argument_group("what the masks mean")
    masks.add_argument(
        "--label-map",
        nargs="+",
        default=DEFAULT_LABELS,
        metavar="FROM=LABEL",
        help="a mask's value, or a pattern of a segment's name, and the label it becomes, such as 2=tumour "
        "'*pancreas*=pancreas'; labels are numbered as they appear; background is none; others stands for every value "
        "that is not named, which is refused else; default: " + " ".join(DEFAULT_LABELS),
    )
    masks.add_argument(
        "--label-grid",
        choices=("physical", "image"),
        default="physical",
        help="where a mask lies whose header disagrees with its image's: where the header says (resampled), or on the "
        "image's voxels; default: %(default)s",
    )
    privacy = parser.add_argument_group("test cases and names")
    privacy.add_argument(
        "--test-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the cases to set apart for testing, drawn by --seed, patients kept together (34 of 174 are 0.195); "
        "default: none",
    )
    privacy.add_argument(
        "--key-file", type=Path, metavar="FILE", help="write which case is whose; an earlier one keeps its names"
    )


def collection(arguments: argparse.Namespace) -> Collection:
    """The collection as the label map describes it.

    Raises:
        UserError: the label map is none.
    """
    names, entries = label_map(arguments.label_map)
    values = {value: entries[OTHERS] for value in range(1, 256) if OTHERS in entries}
    values |= {int(source): number for source, number in entries.items() if source.isdecimal()}
    segments = tuple((source, n) for source, n in entries.items() if source != OTHERS and not source.isdecimal())
    tumour = next((n for n, name in names.items() if fnmatchcase(name.lower(), "*tumo*r*") or name == "lesion"), None)
    pancreas = next((n for n, name in names.items() if name.lower() == "pancreas"), None)
    regions = {}
    if tumour and pancreas and len(names) == 2:
        regions = {names[pancreas]: (pancreas, tumour), names[tumour]: (tumour,)}
    return Collection(
        title="in-house pancreas collection",
        dataset_name="PancreasTumour",
        rules=LabelMap(names=names, values=values, segments=segments, region_of=regions),
        tumour=tumour,
        label_grid=arguments.label_grid,
        reference="",
        licence="not for distribution",
        private=True,
    )


def label_map(written: Sequence[str]) -> tuple[dict[int, str], dict[str, int]]:
    """The labels' names by their numbers, and the number that each FROM becomes, in the order in which they appear.

    Raises:
        UserError: an entry is not of the form FROM=LABEL or contradicts another one, or no label is named.
    """
    numbers: dict[str, int] = {}
    entries: dict[str, int] = {}
    for entry in written:
        source, equals, label = (part.strip() for part in entry.rpartition("="))
        if not (source and equals and label):
            raise UserError(f"--label-map {entry!r} is not of the form FROM=LABEL, such as 2=tumour")
        if source.isdecimal():
            source = str(int(source))
            if not 0 < int(source) < 256:
                raise UserError(f"--label-map {entry!r}: a mask's value lies between 1 and 255")
        number = 0 if label == "background" else numbers.setdefault(label, len(numbers) + 1)
        if entries.setdefault(source, number) != number:
            raise UserError(f"--label-map {entry!r}: an earlier entry gives {source} another label; keep one of them")
    if not numbers:
        raise UserError("--label-map leaves nothing but background; name at least one label")
    return {number: label for label, number in numbers.items()}, entries


def find_cases(root: Path, arguments: argparse.Namespace) -> CollectionListing:
    """The pairs under `root`, under new names; a share of the patients is set apart for testing.

    Raises:
        UserError: patterns, table or key file are no such thing.
    """
    if not 0 <= arguments.test_share < 1:
        raise UserError(
            f"--test-share {arguments.test_share} is not a share; give a number from 0 up to, not including, 1"
        )
    if arguments.csv:
        pairs, problems = pairs_by_table(root, arguments.csv)
    else:
        pairs, problems = pairs_by_pattern(root, arguments.image_pattern, arguments.mask_pattern)
    pairs, reported = with_patients(pairs)
    keys = read_keys(arguments.key_file) if arguments.key_file else {}
    names = new_names(pairs, PREFIX, keys, root)
    patients = new_patients(pairs, names)
    undecided = {name: patient for name, patient, pair in zip(names, patients, pairs, strict=True) if pair.test is None}
    drawn = set()
    if len(undecided) == len(pairs):
        drawn = draw_test_cases(undecided, share=arguments.test_share, seed=arguments.seed)
    tests = [pair.test if pair.test is not None else name in drawn for name, pair in zip(names, pairs, strict=True)]
    if arguments.key_file and not arguments.dry_run:
        write_keys(arguments.key_file, root, zip(names, patients, tests, pairs, strict=True), keys)
    cases = [
        replace(
            pair,
            name=name,
            test=test,
            patient=patient,
            series=arguments.series if pair.series == "only" else pair.series,
        )
        for name, pair, patient, test in zip(names, pairs, patients, tests, strict=True)
    ]
    warnings = [reported] if reported else []
    if not any(tests):
        warnings.append("no case is set apart for testing; --test-share SHARE draws some, or --csv names them")
    if not arguments.key_file:
        warnings.append("no table tells which case is which scan; --key-file FILE writes one, readable by you alone")
    if not any(pair.patient for pair in pairs):
        warnings.append(
            "every scan counts as a patient of its own; if some are of one patient, name patients in --csv or by "
            "{patient} in --image-pattern, or they may stand on both sides of a split"
        )
    return CollectionListing(tuple(sorted(cases, key=lambda case: case.name)), tuple(problems), tuple(warnings))


def _series(text: str) -> SeriesChoice:
    try:
        return series_choice(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


CONVERTER = Converter(collection, 502, find_cases, __doc__, add_arguments)

if __name__ == "__main__":
    sys.exit(main(CONVERTER))
