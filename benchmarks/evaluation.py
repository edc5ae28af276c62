"""Time and memory of `nnunet-godc evaluate` on a study: 15 trainers, five folds of 1000 cases each, two labels."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _measure import parse_cpu_arguments, write_report

TRAINERS, FOLDS, CASES = 15, 5, 1000
DATASET = "Dataset501_LiTS"


def write_study(results: Path) -> list[Path]:
    """Folders of trainers with summaries as nnU-Net writes them, of drawn counts; a tenth of the tumours are absent."""
    random = np.random.default_rng(0)
    folders = []
    for trainer in range(TRAINERS):
        folder = results / DATASET / f"nnUNetTrainer{trainer:02d}__nnUNetPlans__3d_fullres"
        folders.append(folder)
        for fold in range(FOLDS):
            validation = folder / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            cases = [case(random, f"{validation}/LiTS_{fold * CASES + number:05d}") for number in range(CASES)]
            summary = {"foreground_mean": {}, "mean": {}, "metric_per_case": cases}
            (validation / "summary.json").write_text(json.dumps(summary, indent=4, sort_keys=True))
        labels = {"background": 0, "liver": 1, "tumour": 2}
        description = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
        (folder / "dataset.json").write_text(json.dumps(description))
        plans = {"dataset_name": DATASET, "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO"}
        (folder / "plans.json").write_text(json.dumps({**plans, "label_manager": "LabelManager"}))
    return folders


def case(random: np.random.Generator, path: str) -> dict[str, Any]:
    labels = {
        label: tuple(int(number) for number in random.integers(largest, size=3))
        for label, largest in {"1": 10**6, "2": 10**4}.items()
    }
    if random.random() < 0.1:
        labels["2"] = (0, 0, 0)
    metrics = {}
    for label, (tp, fp, fn) in labels.items():
        some = tp + fp + fn > 0
        metrics[label] = {
            "Dice": 2 * tp / (2 * tp + fp + fn) if some else float("nan"),
            "IoU": tp / (tp + fp + fn) if some else float("nan"),
            **{"TP": tp, "FP": fp, "FN": fn, "TN": 2 * 10**7, "n_pred": tp + fp, "n_ref": tp + fn},
        }
    return {"metrics": metrics, "prediction_file": f"{path}.nii.gz", "reference_file": f"{path}.nii.gz"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    arguments = parse_cpu_arguments(parser)
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_study(Path(scratch) / "nnUNet_results")
        out = Path(scratch) / "evaluation"
        command = [str(Path(sys.executable).with_name("nnunet-godc")), "evaluate", *map(str, folders)]
        command += ["--out", str(out), "--metrics", "overlap", "--baseline", "nnUNetTrainer00"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True)
        wall = time.perf_counter() - start
        size = (out / "measurements.csv").stat().st_size
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "seconds": wall,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
        "csv_mib": size / 2**20,
    }
    cells = f"{row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['peak_mib']:.0f} | {row['csv_mib']:.0f}"
    write_report(
        "evaluation",
        f"`nnunet-godc evaluate --metrics overlap --baseline` over {TRAINERS} trainers x {FOLDS} folds x {CASES} cases "
        "x 2 labels from summary.json, with the report and its 10 000 resamples.",
        [
            "| seconds | CPU seconds | peak memory, MiB | measurements.csv, MiB |",
            "| --- | --- | --- | --- |",
            f"| {cells} |",
        ],
        [row],
        arguments,
        ["imports of nnU-Net included"],
    )


if __name__ == "__main__":
    main()
