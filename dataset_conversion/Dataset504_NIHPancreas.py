"""NIH Pancreas-CT: 80 CT scans of healthy pancreata as DICOM series, with NIfTI labels."""

import argparse
import re
import sys
from pathlib import Path

from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.collection import Collection, CollectionListing, matched_by_number
from nnunet_godc.conversion.command import Converter, main
from nnunet_godc.conversion.files import visible_files
from nnunet_godc.conversion.labels import LabelMap

COLLECTION = Collection(
    title="NIH Pancreas-CT",
    dataset_name="NIHPancreas",
    rules=LabelMap(names={1: "pancreas"}),
    tumour=None,
    # The labels run the other way in y than the series do, and their headers know no position.
    label_grid="axes",
    reference="https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU",
    licence="CC BY 3.0",
)

ABSENT = (25, 70)  # withdrawn by the authors


def find_cases(root: Path, arguments: argparse.Namespace | None = None) -> CollectionListing:
    """The cases under `root`: folders PANCREAS_NNNN with a DICOM series somewhere below, and labelNNNN.nii.gz."""
    files = visible_files(root)
    folders: dict[int, set[Path]] = {}
    for file in files:
        for folder in file.relative_to(root).parents:
            if match := re.fullmatch(r"PANCREAS_(\d+)", folder.name, re.IGNORECASE):
                folders.setdefault(int(match[1]), set()).add(root / folder)
    label = matched_by_number(files, r"label(\d+)\.nii(?:\.gz)?", what="label", root=root)
    problems = list(label.problems)
    series: dict[int, Path] = {}
    for number, found in sorted(folders.items()):
        if len(found) == 1:
            (series[number],) = found
        else:
            problems.append(f"PANCREAS_{number:04d} is there {len(found)} times; keep one and move the rest away")
    for number in sorted(series.keys() - label.files.keys() - label.several - set(ABSENT)):
        problems.append(f"PANCREAS_{number:04d} has no label{number:04d}.nii.gz; download it, or move the folder away")
    for number in sorted(label.files.keys() - folders.keys() - set(ABSENT)):
        problems.append(f"label{number:04d} has no folder PANCREAS_{number:04d}; download it, or move the label away")
    both = sorted(series.keys() & label.files.keys())
    warnings = [f"case {number} was withdrawn by the authors and is left out" for number in both if number in ABSENT]
    cases = [
        CaseSource(f"NIH_{number:04d}", series[number], label.files[number]) for number in both if number not in ABSENT
    ]
    return CollectionListing(tuple(cases), tuple(problems), tuple(warnings))


CONVERTER = Converter(lambda arguments: COLLECTION, 504, find_cases, __doc__)

if __name__ == "__main__":
    sys.exit(main(CONVERTER))
