"""PANORAMA: 2238 CT scans with pancreatic cancer, pancreas, ducts and vessels."""

import argparse
import re
import sys
from pathlib import Path

from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.collection import Collection, CollectionListing
from nnunet_godc.conversion.command import Converter, main
from nnunet_godc.conversion.files import visible_files
from nnunet_godc.conversion.labels import LabelMap

COLLECTION = Collection(
    title="PANORAMA",
    dataset_name="PANORAMA",
    rules=LabelMap(
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

Key = tuple[str, str]  # patient, study
IMAGE = re.compile(r"(\d+)_(\d+)_0000\.nii(?:\.gz)?", re.IGNORECASE)
LABEL = re.compile(r"(\d+)_(\d+)\.nii(?:\.gz)?", re.IGNORECASE)


def find_cases(root: Path, arguments: argparse.Namespace | None = None) -> CollectionListing:
    """The cases under `root`: PATIENT_STUDY_0000.nii.gz in any batch, PATIENT_STUDY.nii.gz among the labels.

    Where a case has a label drawn by hand (in a folder called manual...) and one by a model, the first counts.
    """
    found: dict[str, dict[Key, list[Path]]] = {"image": {}, "label": {}}
    for file in visible_files(root):
        for what, pattern in (("image", IMAGE), ("label", LABEL)):
            if match := pattern.fullmatch(file.name):
                found[what].setdefault((match[1], match[2]), []).append(file)
    problems, warnings = [], []
    for key, files in found["label"].items():
        by_hand = [file for file in files if _by_hand(file, root)]
        if 0 < len(by_hand) < len(files):
            found["label"][key] = by_hand
            warnings.append(f"{'_'.join(key)} has several labels: the one drawn by hand is taken")
    for what, of_case in found.items():
        problems += [
            f"the {what} of {'_'.join(key)} is there several times; keep one and move the rest away"
            for key, files in of_case.items()
            if len(files) > 1
        ]
    images, labels = (
        {key: files[0] for key, files in of_case.items() if len(files) == 1} for of_case in found.values()
    )
    problems += [
        f"{'_'.join(key)} has no label; download it, or move the image away"
        for key in sorted(images.keys() - found["label"].keys())
    ]
    cases = [
        CaseSource(f"PANORAMA_{patient}_{study}", images[patient, study], labels[patient, study], patient=patient)
        for patient, study in sorted(images.keys() & labels.keys())
    ]
    unused = len(found["label"].keys() - found["image"].keys())
    if unused:
        warnings.append(f"{unused} labels have no image here: their batches are not in this folder")
    warnings.append(
        "194 of PANORAMA's scans are the Decathlon's: whoever tests on MSD must not train on them "
        "(--leave-out-scans-of DatasetXXX_MSDPancreas)"
    )
    return CollectionListing(tuple(cases), tuple(problems), tuple(warnings))


def _by_hand(file: Path, root: Path) -> bool:
    return any("manual" in part.lower() for part in file.relative_to(root).parts)


CONVERTER = Converter(lambda arguments: COLLECTION, 505, find_cases, __doc__)

if __name__ == "__main__":
    sys.exit(main(CONVERTER))
