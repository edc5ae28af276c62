"""Makes nnU-Net's raw dataset of the evidence studies, with folds by patient.

    python benchmarks/evidence/prepare.py FOLDER 20 LungNodules

FOLDER holds imagesTr, labelsTr, dataset.json (the Decathlon's layout) and cases.csv, whose columns `case` and, where a
patient has several cases, `patient` are read. Written are `nnUNet_raw/Dataset020_LungNodules` and, for nnU-Net and for
`nnunet-godc evaluate --patients`, `splits_final.json` and `patients.csv` in nnUNet_preprocessed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np

FOLDS = 5
SEED = 2024


def splits_by_patient(patients: dict[str, str]) -> list[dict[str, list[str]]]:
    """Folds that keep a patient's cases together; shuffled patients are dealt out in turn."""
    names = sorted(set(patients.values()))
    order = np.random.default_rng(SEED).permutation(len(names))
    fold_of = {names[patient]: position % FOLDS for position, patient in enumerate(order)}
    folds = [sorted(case for case, patient in patients.items() if fold_of[patient] == fold) for fold in range(FOLDS)]
    return [{"train": sorted(set(patients) - set(held_out)), "val": held_out} for held_out in folds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("name")
    arguments = parser.parse_args()

    with (arguments.folder / "cases.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"]]
    patients = {row["case"]: row.get("patient") or row["case"] for row in rows}
    description = json.loads((arguments.folder / "dataset.json").read_text())

    dataset = f"Dataset{arguments.number:03d}_{arguments.name}"
    raw = Path(os.environ["nnUNet_raw"], dataset)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for case in sorted(patients):
        shutil.copy(arguments.folder / "imagesTr" / f"{case}.nii.gz", raw / "imagesTr" / f"{case}_0000.nii.gz")
        shutil.copy(arguments.folder / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    nnunet_description = {
        "channel_names": description["modality"],
        "labels": {name: int(value) for value, name in description["labels"].items()},
        "numTraining": len(patients),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(nnunet_description, indent=1))

    preprocessed = Path(os.environ["nnUNet_preprocessed"], dataset)
    preprocessed.mkdir(parents=True, exist_ok=True)
    (preprocessed / "splits_final.json").write_text(json.dumps(splits_by_patient(patients), indent=1))
    with (preprocessed / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("case", "patient"), *sorted(patients.items())])


if __name__ == "__main__":
    main()
