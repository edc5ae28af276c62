"""Small folders of results, as nnU-Net writes them, and readers that go wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import ArrayLike

DATASET = "Dataset999_Test"
LABELS = {"background": 0, "liver": 1, "tumour": 2}
SPACING = (2.0, 1.0, 0.5)  # along the axes of the arrays, (z, y, x)
SHAPE = (6, 8, 10)


def write_segmentation(
    path: Path,
    voxels: ArrayLike,
    *,
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
) -> Path:
    image = SimpleITK.GetImageFromArray(np.asarray(voxels))
    image.SetSpacing([float(size) for size in reversed(spacing)])
    image.SetOrigin([float(place) for place in origin])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return path


def segmentation(liver: slice = slice(1, 5), tumour: slice = slice(2, 4)) -> np.ndarray:
    """A liver of some slices with a tumour inside."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[liver, 1:7, 1:9] = 1
    voxels[tumour, 2:5, 2:5] = 2
    return voxels


def write_model(
    folder: Path,
    *,
    labels: Mapping[str, Any] = LABELS,
    regions_class_order: Sequence[int] | None = None,
    file_ending: str = ".nii.gz",
    reader: str = "SimpleITKIO",
) -> Path:
    """dataset.json and plans.json of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": file_ending}
    if regions_class_order is not None:
        description["regions_class_order"] = regions_class_order
    (folder / "dataset.json").write_text(json.dumps(description))
    plans = {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "label_manager": "LabelManager",
        "configurations": {},
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


def write_results(root: Path, trainer: str, predictions: Mapping[int, Mapping[str, np.ndarray]], **model: Any) -> Path:
    """A trainer's folder with the validation predictions of its folds, by fold and case."""
    folder = write_model(root / DATASET / f"{trainer}__nnUNetPlans__3d_fullres", **model)
    for fold, cases in predictions.items():
        for case, voxels in cases.items():
            write_segmentation(folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz", voxels)
    return folder


def write_summary(folder: Path, counts: Mapping[str, Mapping[str, tuple[int, int, int]]], references: Path) -> Path:
    """summary.json as nnU-Net writes it: by case and label key, TP, FP and FN."""
    cases = [
        {
            "prediction_file": str(folder / f"{case}.nii.gz"),
            "reference_file": str(references / f"{case}.nii.gz"),
            "metrics": {
                label: {"TP": tp, "FP": fp, "FN": fn, "TN": 100, "Dice": np.nan, "IoU": np.nan}
                for label, (tp, fp, fn) in labels.items()
            },
        }
        for case, labels in counts.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "summary.json"
    path.write_text(json.dumps({"metric_per_case": cases, "mean": {}, "foreground_mean": {}}))
    return path


class ReaderThatIsKilled:
    """Ends its process, as the system does when memory runs out, for the case `killed`."""

    def read_seg(self, path: str) -> tuple[np.ndarray, dict[str, Any]]:
        if Path(path).name.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return segmentation()[None].astype(np.float32), {"spacing": SPACING}
