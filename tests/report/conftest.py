"""A report of a small study with hostile names, written once for all tests that look at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_godc.evaluation import Evaluation, evaluate
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
        page = write_page(evaluation, root / "page", baseline=BASELINE, cases=6)
        yield Study(raw, folders, evaluation, page)
