"""A small study of drawn volumes, whose measurements of an earlier version are kept in `frozen/`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from tests.evaluation.results_folders import DATASET, write_results, write_segmentation

FROZEN = Path(__file__).with_name("frozen")
SHAPE = (12, 40, 36)
CASES = 14
TRAINERS = ("nnUNetTrainer_seed1", "nnUNetTrainer_seed2", "nnUNetTrainerGODC_seed1", "nnUNetTrainerGODC_seed2")


def write_frozen_study(root: Path, setenv: Callable[[str, str], None]) -> list[Path]:
    """Four trainings on two folds of drawn livers with several tumours each; some labels are missed or invented."""
    setenv("nnUNet_raw", str(root / "raw"))
    random = np.random.default_rng(20261126)
    fields = [_smooth(random) for _ in range(CASES)]
    for number, field in enumerate(fields):
        write_segmentation(root / "raw" / DATASET / "labelsTr" / f"case_{number:02d}.nii.gz", _labels(field, number))
    folders = []
    for index, trainer in enumerate(TRAINERS):
        folds: dict[int, dict[str, np.ndarray]] = {0: {}, 1: {}}
        for number, (liver, tumour) in enumerate(fields):
            other_liver, other_tumour = _smooth(random)
            noise = 0.25 - 0.04 * index
            predicted = liver + noise * other_liver, tumour + noise * other_tumour
            folds[number % 2][f"case_{number:02d}"] = _labels(predicted, _tumour_seen(number, index))
        folders.append(write_results(root / "results", trainer, folds))
    return folders


def _tumour_seen(number: int, index: int) -> int:
    """All miss the tumour of case 5, two that of case 6; one sees one in case 7, which has none."""
    return {5: 0, 6: 0 if index < 2 else 6, 7: 1 if index == 1 else 7}.get(number, number)


def _smooth(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    liver = gaussian_filter(random.normal(size=SHAPE), (2, 6, 6))
    tumour = gaussian_filter(random.normal(size=SHAPE), (1, 2, 2))
    return liver / liver.std(), tumour / tumour.std()


def _labels(fields: tuple[np.ndarray, np.ndarray], number: int) -> np.ndarray:
    """One case in seven has no tumour."""
    liver, tumour = fields
    voxels = np.where(liver > -0.3, 1, 0).astype(np.uint8)
    if number % 7:
        voxels[(tumour > 1.9) & (liver > -0.3)] = 2
    return voxels
