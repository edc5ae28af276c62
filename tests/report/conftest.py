"""A report of a small study with hostile names, written once for all tests that look at it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK
import torch
from PIL import Image

from nnunet_godc.alignment.offsets import OffsetLengths
from nnunet_godc.evaluation import Evaluation, evaluate
from nnunet_godc.report.inside import EXPONENTS, Explanation, write_explanation
from nnunet_godc.report.page import Page, write_page
from tests.evaluation.frozen import write_frozen_study
from tests.evaluation.results_folders import DATASET, LABELS

HOSTILE_LABEL = "tumour </script><script>window.hacked = true</script>"
HOSTILE_CASE = "case_<img src=x onerror=hacked=true>"
NAMES = {"background": 0, "liver": 1, HOSTILE_LABEL: 2}
BASELINE = "nnUNetTrainer"


@dataclass(frozen=True)
class Study:
    """Folders of results, what was evaluated, and the page; `raw` is the dataset."""

    raw: Path
    folders: list[Path]
    evaluation: Evaluation
    page: Page


def log_of(epochs: range, rate: float = 0.01) -> str:
    return "".join(
        f"2026-01-01 00:00:00.000000: Epoch {epoch} \nCurrent learning rate: {rate} \ntrain_loss {-0.1 * epoch:.2f} \n"
        f"val_loss {-0.05 * epoch:.2f} \nPseudo dice [np.float32(0.5), np.float32(nan)] \nEpoch time: 3.5 s \n"
        for epoch in epochs
    )


def renamed(path: Path, old: str, new: str) -> None:
    for file in path.rglob(f"{old}*"):
        file.rename(file.with_name(file.name.replace(old, new)))


def hostile_explanation() -> Explanation:
    """Of a model with LFAM; as `explain` finds it, but for the numbers."""
    random = np.random.default_rng(7)
    rows: list[dict[str, object]] = []
    for batch, sample, label in itertools.product(range(2), range(8), ("liver", HOSTILE_LABEL)):
        size, iou = 10 ** random.uniform(1, 4), random.uniform(0.2, 0.9)
        for loss, exponent in EXPONENTS.items():
            gradient = -((size / 1000) ** exponent) / size
            about = {"batch": batch, "sample": sample, "case": HOSTILE_CASE, "label": label, "loss": loss}
            sizes = {"reference_voxels": size if sample else 0.0, "union_voxels": size, "iou": iou, "dice": iou}
            weight = {"weight": size / 1000, "gradient_inside": gradient, "gradient_outside": -iou * gradient}
            rows.append({**about, **sizes, **weight, "theory_inside": gradient, "theory_outside": -iou * gradient})
    offsets = []
    for level in range(2):
        lengths = OffsetLengths()
        lengths.add(torch.from_numpy(random.normal(0, 1, (1, 9, 2, 8, 8))), [1 + level] * 2)
        offsets.append({"level": level, **lengths.row()})
    at_zero = [
        {"case": case, "label": HOSTILE_LABEL, "agreement": 0.9, "dice": 0.8, "dice_at_zero": 0.7 + 0.01 * number}
        for number, case in enumerate((HOSTILE_CASE, "case_04", "case_05"))
    ]
    picture = io.BytesIO()
    Image.new("RGB", (40, 20), "#777").save(picture, format="png")
    facts = {
        **{"dataset": DATASET, "trainer": "nnUNetTrainerGODCLFAM", "plans": "nnUNetPlans", "configuration": "2d"},
        **{"fold": "0", "epochs": 3, "checkpoint": "checkpoint_final.pth", "cases": [HOSTILE_CASE], "lfam": True},
        **{"batch_size": 8, "batches": 2, "batch_dice": True, "godc": {"normalization": "mean"}, "without_label": []},
        "pictures": [{"case": HOSTILE_CASE, "file": "offsets-0.png", "size": [40, 20], "levels": [0, 1]}],
    }
    pictures = {"offsets-0.png": picture.getvalue()}
    return Explanation(facts, pd.DataFrame(rows), pd.DataFrame(offsets), pd.DataFrame(at_zero), pictures)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """Two trainers with two seeds each, two folds, 14 cases with images; one training was resumed."""
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        folders = write_frozen_study(root, patch.setenv)
        patch.delenv("nnUNet_preprocessed", raising=False)
        raw = root / "raw" / DATASET
        random = np.random.default_rng(5)
        for path in sorted((raw / "labelsTr").iterdir()):
            label = SimpleITK.ReadImage(str(path))
            voxels = SimpleITK.GetArrayFromImage(label)
            image = SimpleITK.GetImageFromArray((40.0 * voxels + random.normal(0, 6, voxels.shape)).astype(np.float32))
            image.CopyInformation(label)
            name = path.name.replace(".nii.gz", "_0000.nii.gz")
            (raw / "imagesTr").mkdir(exist_ok=True)
            SimpleITK.WriteImage(image, str(raw / "imagesTr" / name))
        for folder in (*folders, raw):
            renamed(folder, "case_03", HOSTILE_CASE)
        for folder in folders:
            description = (folder / "dataset.json").read_text()
            assert str(LABELS["tumour"]) in description
            hostile = HOSTILE_LABEL.replace('"', "")
            (folder / "dataset.json").write_text(description.replace('"tumour"', f'"{hostile}"'))
            (folder / "fold_0" / "training_log_2026_1.txt").write_text(log_of(range(4)))
        (folders[0] / "fold_0" / "training_log_2026_2.txt").write_text(log_of(range(2, 6), 0.005))
        evaluation = evaluate(folders, root / "page", baseline=BASELINE, resamples=1000)
        write_explanation(hostile_explanation(), root / "explained")
        explained = [root / "explained"]
        page = write_page(evaluation, root / "page", baseline=BASELINE, cases=6, explained=explained)
        yield Study(raw, folders, evaluation, page)
