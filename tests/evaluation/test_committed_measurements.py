"""The committed measurements of the evidence studies: every later version has to read them, and find the same."""

from pathlib import Path

import pandas as pd
import pytest

from nnunet_godc.cli import main

FOLDER = Path(__file__).parents[2] / "docs" / "evidence" / "lung-nodules"
PREFIX = "nnUNetTrainerEvidence"


def test_they_are_evaluated_again(tmp_path: Path) -> None:
    options = ("--baseline", f"{PREFIX}SampleDice", "--resamples", "1000", "--out", str(tmp_path))
    assert main(["evaluate", str(FOLDER / "measurements.csv.gz"), *options]) == 0
    statistics = pd.read_csv(tmp_path / "statistics.csv").query("metric == 'Dice'").set_index("trainer")
    # voxels, as nnU-Net counted them
    cases = pd.read_csv(FOLDER / "cases.csv.gz")
    twice = 2 * cases["true_positive"]
    dice = (twice / (twice + cases["false_positive"] + cases["false_negative"])).groupby(cases["trainer"]).mean()
    for method in ("SampleDice", "BatchDice", "GODC", "GODCAttached", "LFAM", "LFAMFrozen"):
        assert statistics.loc[PREFIX + method, "mean"] == pytest.approx(dice[PREFIX + method], rel=1e-9)
        assert statistics.loc[PREFIX + method, "patients"] == 465
    comparisons = pd.read_csv(tmp_path / "comparisons.csv").query("metric == 'Dice'")
    comparisons = comparisons.set_index("trainer")
    assert comparisons["new_trainings"].all()
    assert comparisons.loc[PREFIX + "GODC", "significant"]  # what docs/evidence/README.md says
    assert comparisons.loc[PREFIX + "GODC", "difference"] == pytest.approx(
        dice[PREFIX + "GODC"] - dice[PREFIX + "SampleDice"], rel=1e-6
    )
