"""PANORAMA: 2238 CT scans with pancreatic cancer, pancreas, ducts and vessels."""

import argparse
import re
import sys
from pathlib import Path

from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.collection import Collection, Found
from nnunet_godc.conversion.command import Converter, main
from nnunet_godc.conversion.files import visible_files
from nnunet_godc.conversion.labels import LabelRules

COLLECTION = Collection(
    title="PANORAMA",
    dataset_name="PANORAMA",
    rules=LabelRules(
        names={
            1: "tumour",
            2: "veins",
            3: "arteries",
            4: "pancreas",
            5: "pancreatic duct",
            6: "common bile duct",
        },
        stray=frozenset({7, 8}),
        region_of={
            "pancreas": (4, 1, 5),
            "pancreatic duct": (5,),
            "tumour": (1,),
            "veins": (2,),
            "arteries": (3,),
            "common bile duct": (6,),
        },
    ),
    tumour=1,
    label_grid="physical",
    reference="https://doi.org/10.5281/zenodo.13715870",
    licence="CC BY-NC 4.0",
)

IMAGE = re.compile(r"(\d+)_(\d+)_0000\.nii(?:\.gz)?", re.IGNORECASE)
LABEL = re.compile(r"(\d+)_(\d+)\.nii(?:\.gz)?", re.IGNORECASE)


def find_cases(root: Path, arguments: argparse.Namespace | None = None) -> Found:
    """The cases under `root`: PATIENT_STUDY_0000.nii.gz in any batch, PATIENT_STUDY.nii.gz among the labels.

    Where a case has a label drawn by hand (in a folder called manual...) and one by a model, the first counts.
    """
    images: dict[tuple[str, str], Path] = {}
    labels: dict[tuple[str, str], Path] = {}
    problems, warnings = [], []
    for file in visible_files(root):
        for pattern, found, what in ((IMAGE, images, "image"), (LABEL, labels, "label")):
            if not (match := pattern.fullmatch(file.name)):
                continue
            key = (match[1], match[2])
            other = found.setdefault(key, file)
            if other == file:
                continue
            if what == "label" and _by_hand(file) != _by_hand(other):
                found[key] = file if _by_hand(file) else other
                warnings.append(f"{'_'.join(key)} has two labels: the one drawn by hand is taken")
            else:
                problems.append(f"the {what} of {'_'.join(key)} is there twice; move one away")
    problems += [
        f"{'_'.join(key)} has no label; fetch it, or move the image away" for key in sorted(images.keys() - labels)
    ]
    cases = [
        CaseSource(f"PANORAMA_{patient}_{study}", images[patient, study], labels[patient, study], patient=patient)
        for patient, study in sorted(images.keys() & labels.keys())
    ]
    unused = len(labels.keys() - images)
    if unused:
        warnings.append(f"{unused} labels have no image here: their batches are not in this folder")
    warnings.append(
        "194 of PANORAMA's scans are the Decathlon's: whoever tests on MSD must not train on them "
        "(--leave-out-scans-of DatasetXXX_MSDPancreas)"
    )
    return Found(tuple(cases), tuple(problems), tuple(warnings))


def _by_hand(file: Path) -> bool:
    return any("manual" in part.lower() for part in file.parts)


CONVERTER = Converter(lambda arguments: COLLECTION, 505, find_cases, __doc__)

if __name__ == "__main__":
    sys.exit(main(CONVERTER))
