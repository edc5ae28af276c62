"""Writes down what the trainings of an evidence study left: small tables that are committed, since weights are not.

    python benchmarks/evidence/collect.py Dataset020_LungNodules docs/evidence/lung-nodules

Two tables in the target folder, gzipped CSV: `cases.csv.gz` has the voxels of every validated case as nnU-Net counted
them, `epochs.csv.gz` what the log tells of every epoch. Trainings that are not validated yet are passed over. Rows of
trainings that are there already and no longer here are kept, so that several machines can add to one table.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd

from nnunet_godc.seeded_names import seed_of, without_seed
from nnunet_godc.training_log import read_line

TRAINING = ["configuration", "plans", "trainer", "seed", "fold"]


def finished_folds(results: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    for summary in sorted(results.glob("*__*__*/fold_[0-9]/validation/summary.json")):
        fold = summary.parent.parent
        trainer, plans, configuration = fold.parent.name.split("__")
        names = {"configuration": configuration, "plans": plans, "trainer": without_seed(trainer)}
        yield {**names, "seed": seed_of(trainer), "fold": int(fold.name.removeprefix("fold_"))}, fold


def case_rows(training: dict[str, Any], fold: Path, patients: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One row for each case and label: voxels, and the volume of the reference in mm³."""
    for entry in json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]:
        reference = Path(entry["reference_file"])
        case = reference.name.removesuffix(".nii.gz")
        voxel_mm3 = float(np.prod(nibabel.load(reference).header.get_zooms()[:3]))
        for label, counts in entry["metrics"].items():
            tp, fp, fn = (int(counts[name]) for name in ("TP", "FP", "FN"))
            yield {
                **training,
                "case": case,
                "patient": patients[case],
                "label": label,
                "reference_mm3": round((tp + fn) * voxel_mm3, 1),
                **{"true_positive": tp, "false_positive": fp, "false_negative": fn},
            }


def epoch_rows(training: dict[str, Any], fold: Path) -> Iterator[dict[str, Any]]:
    """One row for each epoch; of one that was repeated after an interruption, the last."""
    epochs: dict[int, dict[str, Any]] = {}
    current: dict[str, Any] = {}
    for log in sorted(fold.glob("training_log_*.txt")):
        for entry in filter(None, map(read_line, log.read_text().splitlines())):
            if entry.kind == "epoch":
                current = epochs[int(entry.text)] = {**training, "epoch": int(entry.text)}
            elif entry.kind == "loss":
                current["training_loss"] = float(entry.text)
            elif entry.kind == "pseudo dice":
                current["pseudo_dice"] = round(float(np.nanmean(entry.numbers)), 4)
            elif entry.kind == "epoch time":
                current["seconds"] = float(entry.text)
    yield from (epochs[epoch] for epoch in sorted(epochs))


def add_to(table: Path, rows: list[dict[str, Any]], key: list[str]) -> None:
    frame = pd.DataFrame(rows)
    if table.exists():
        frame = pd.concat([pd.read_csv(table, dtype={"label": str}), frame])
    frame = frame.drop_duplicates([*TRAINING, *key], keep="last").sort_values([*TRAINING, *key])
    frame.to_csv(table, index=False, lineterminator="\n", compression={"method": "gzip", "mtime": 0})
    trainings = frame[TRAINING].drop_duplicates()
    print(f"{table}: {len(frame)} rows of {len(trainings)} trainings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()

    table = pd.read_csv(Path(os.environ["nnUNet_preprocessed"], arguments.dataset, "patients.csv"), dtype=str)
    patients = dict(zip(table["case"], table["patient"], strict=True))
    folds = list(finished_folds(Path(os.environ["nnUNet_results"], arguments.dataset)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    cases = [row for training, fold in folds for row in case_rows(training, fold, patients)]
    add_to(arguments.out / "cases.csv.gz", cases, ["case", "label"])
    epochs = [row for training, fold in folds for row in epoch_rows(training, fold)]
    add_to(arguments.out / "epochs.csv.gz", epochs, ["epoch"])


if __name__ == "__main__":
    main()
