"""The command line that all converters share: nnU-Net's way of naming options, one outcome, one report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nnunet_godc.conversion.case import CaseSettings, inspect_case
from nnunet_godc.conversion.collection import Collection, CollectionListing, by_case, read_spacings, tumour_only
from nnunet_godc.conversion.dataset import ConversionResult, Job, convert_dataset, problem_of
from nnunet_godc.conversion.files import NIFTI_ENDINGS, check_source_folder, inside
from nnunet_godc.conversion.geometry import ORIENTATIONS
from nnunet_godc.conversion.problems import CaseError, listed
from nnunet_godc.conversion.splits import draw_folds, place_splits
from nnunet_godc.conversion_record import also_in_other_datasets, read_record
from nnunet_godc.errors import UserError
from nnunet_godc.workers import available_cores

WARNINGS_SHOWN = 20  # all of them stand in conversion.json


@dataclass(frozen=True)
class Converter:
    """What a script in `dataset_conversion` brings along.

    Attributes:
        collection: its facts, from the arguments.
        dataset_id: nnU-Net's number unless the user gives one.
        find: looks at the source folder for cases.
        description: the first line of the help.
        add_arguments: options of this collection alone.
    """

    collection: Callable[[argparse.Namespace], Collection]
    dataset_id: int
    find: Callable[[Path, argparse.Namespace], CollectionListing]
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def add_arguments(parser: argparse.ArgumentParser, converter: Converter) -> None:
    """The options of `converter`: those of every conversion, then its own."""
    add = parser.add_argument
    add("-i", type=Path, required=True, metavar="SOURCE", help="the collection's folder; only read")
    add("-d", type=int, default=converter.dataset_id, help="nnU-Net dataset ID, default: %(default)s")
    add("-o", type=Path, metavar="DIR", help="folder of raw datasets, default: what the variable nnUNet_raw names")
    add("-np", type=int, default=available_cores(), help="worker processes, default: %(default)s; 0 for none")
    add("--overwrite", action="store_true", help="replace a dataset of that ID that is there")
    add("--dry-run", action="store_true", help="look at the headers, say what would be done, stop")
    add("--strict", action="store_true", help="refuse cases that a person would be warned of")

    add = parser.add_argument_group("labels").add_argument
    add("--regions", action="store_true", help="nested regions instead of labels (liver = 1 + 2)")
    add("--tumour-only", action="store_true", help="the tumour as the only label")

    add = parser.add_argument_group("geometry").add_argument
    add("--orientation", choices=ORIENTATIONS, default=ORIENTATIONS[0], help="of every case, default: %(default)s")
    add("--spacing-csv", type=Path, metavar="FILE", help="true voxel sizes: case,x,y,z in mm along the file's axes")
    add("--skip-bad-geometry", action="store_true", help="leave out cases of unknown voxel size")
    add("--trust-headers", action="store_true", help="take 1 x 1 x 1 mm for true")
    help_ = "resample tilted or uneven DICOM series together with the DICOM mask that was drawn on them"
    add("--resample-series", action="store_true", help=help_)

    add = parser.add_argument_group("files").add_argument
    help_ = "default: %(default)s; .nii takes two to four times the space, and none at all where it can be linked"
    add("--file-ending", choices=NIFTI_ENDINGS, default=NIFTI_ENDINGS[0], help=help_)
    help_ = (
        "link images that fit as they are to their source, which saves their space; whoever changes one then changes "
        "the other"
    )
    add("--link", action="store_true", help=help_)

    add = parser.add_argument_group("splits").add_argument
    help_ = "write splits_final.json: five folds by --seed, patients kept together"
    add("--folds", action="store_true", help=help_)
    add("--seed", type=int, default=0, help="of everything that is drawn, default: %(default)s")
    help_ = "converted dataset whose scans are not to be here too, since merging would leak; may be given again"
    add("--leave-out-scans-of", type=Path, action="append", default=[], metavar="DIR", help=help_)
    converter.add_arguments(parser)


def run(converter: Converter, arguments: argparse.Namespace) -> int:
    """Convert as `arguments` say, print what happened, and return the exit status: 1 if any case has a problem.

    Raises:
        UserError: nothing can be done as asked.
    """
    collection = converter.collection(arguments)
    if arguments.tumour_only:
        if arguments.regions:
            raise UserError("--regions and --tumour-only exclude each other: one label forms no nested regions")
        collection = tumour_only(collection)
    target = _target(arguments, collection)
    check_source_folder(arguments.i)
    source = arguments.i.resolve()
    if target.resolve().is_relative_to(source):
        raise UserError(f"the target {target} lies in the source, which is only read; choose another with -o")
    found = converter.find(source, arguments)
    if not found.cases:
        remedy = "".join(f"\n  {problem}" for problem in found.problems)
        raise UserError(
            f"no case of {collection.title} is to be found in {arguments.i}"
            + (remedy or "; give the folder of the collection as it was unpacked")
        )
    job = _job(collection, found, source, target, arguments)
    for warning in found.warnings:
        print(f"Note: {warning}")
    if arguments.dry_run:
        return _dry_run(job)
    with tqdm(total=len(found.cases), unit="case") as bar:
        result = convert_dataset(job, progress=lambda name: bar.update() and None)
    return _report(job, result)


def main(converter: Converter, argv: Sequence[str] | None = None) -> int:
    """A converter's script: parses `argv` (default: the process's own), converts, returns the exit status."""
    parser = argparse.ArgumentParser(description=converter.description)
    add_arguments(parser, converter)
    try:
        return run(converter, parser.parse_args(argv))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _target(arguments: argparse.Namespace, collection: Collection) -> Path:
    if not 1 <= arguments.d <= 999:
        raise UserError(f"nnU-Net's dataset IDs run from 1 to 999; -d {arguments.d} is none")
    raw = arguments.o or os.environ.get("nnUNet_raw")
    if not raw:
        raise UserError(
            "nnUNet_raw is not set; point it to the folder of raw datasets (export nnUNet_raw=...), or give one with -o"
        )
    target = Path(raw) / f"Dataset{arguments.d:03d}_{collection.dataset_name}"
    others = sorted({path.name for path in Path(raw).glob(f"Dataset{arguments.d:03d}_*")} - {target.name})
    if others:
        raise UserError(f"{raw} has a dataset of ID {arguments.d} already, {others[0]}; choose another with -d")
    return target


def _job(
    collection: Collection, found: CollectionListing, source: Path, target: Path, arguments: argparse.Namespace
) -> Job:
    if arguments.np < 0:
        raise UserError(f"-np {arguments.np} is not a number of worker processes; give 0 or more")
    spacings = {}
    if arguments.spacing_csv:
        spacings = by_case(read_spacings(arguments.spacing_csv), found.cases, where=str(arguments.spacing_csv))
    patients = {case.name: case.patient or case.name for case in found.cases if not case.test}
    leave_out = set()
    for folder in arguments.leave_out_scans_of:
        record = read_record(folder)
        if record["settings"]["orientation"] != arguments.orientation:
            raise UserError(f"{folder} is stored as {record['settings']['orientation']}; use the same --orientation")
        leave_out |= {case["image"]["fingerprint"] for case in record["cases"].values()}
    settings = CaseSettings(
        rules=collection.rules,
        label_grid=collection.label_grid,
        orientation=arguments.orientation,
        file_ending=arguments.file_ending,
        link=arguments.link,
        spacings=spacings,
        trust_headers=arguments.trust_headers,
        private=collection.private,
        strict=arguments.strict,
        resample_series=arguments.resample_series,
    )
    return Job(
        *(collection, found, source, target, settings),
        regions=arguments.regions,
        skip_bad_geometry=arguments.skip_bad_geometry,
        workers=arguments.np,
        overwrite=arguments.overwrite,
        folds=draw_folds(patients, seed=arguments.seed) if arguments.folds else None,
        leave_out=frozenset(leave_out),
    )


def _dry_run(job: Job) -> int:
    """Look at every header and tell what the conversion would meet; writes nothing."""
    problems = [str(problem) for problem in job.found.problems]
    for case in job.found.cases:
        try:
            print(f"{case.name}  {'test ' if case.test else 'train'}  {inspect_case(case, job.settings)}")
        except CaseError as error:
            problems.append(str(problem_of(case, error, job.root)))
    training = sum(not case.test for case in job.found.cases)
    print(f"{training} cases to train with and {len(job.found.cases) - training} for testing would go to {job.target}")
    return _tell_problems(problems)


def _report(job: Job, result: ConversionResult) -> int:
    problems = list(map(str, result.problems))
    sources = {case.name: inside(case.image, job.root) for case in job.found.cases}
    warned = [(name, text) for name, record in result.records.items() for text in record["warnings"]]
    for name, text in warned[:WARNINGS_SHOWN]:
        print(f"{name}: {text} [{sources[name]}]")
    if len(warned) > WARNINGS_SHOWN:
        print(f"and {len(warned) - WARNINGS_SHOWN} more warnings: see conversion.json")
    if repaired := sum(bool(record["repairs"]) for record in result.records.values()):
        print(f"{repaired} cases were repaired; conversion.json says how")
    if result.skipped:
        print(f"left out, as you asked: {', '.join(result.skipped)}")
    for other, names in also_in_other_datasets(result.records, job.target).items():
        print(
            f"{len(names)} scans are in {other} too ({listed(names, 5)}): training on one and testing on the other "
            "would leak; --leave-out-scans-of leaves them out here"
        )
    if not result.complete:
        print(f"Nothing was changed in {job.target}.")
        return _tell_problems(problems)
    training = sum(not record["test"] for record in result.records.values())
    again = f" ({result.reused} of them taken over from an earlier run)" if result.reused else ""
    print(f"{training} training and {len(result.records) - training} test cases{again}: {job.target}")
    if job.folds is not None:
        try:
            print(place_splits(job.target, overwrite=job.overwrite))
        except UserError as error:
            problems.append(str(error))
    print(f"Next: nnunet-godc convert preview {job.target}  (a flip is seen at a glance), then")
    print(f"      nnUNetv2_plan_and_preprocess -d {job.target.name[7:10]} --verify_dataset_integrity")
    return _tell_problems(problems)


def _tell_problems(problems: Sequence[str]) -> int:
    if not problems:
        return 0
    print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return 1
