"""Numbers stay what they were before the evaluation was rebuilt."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_godc.evaluation import evaluate, read_tables
from tests.evaluation.frozen import FROZEN, write_frozen_study

KEYS = ["trainer", "fold", "seed", "case", "label", "metric", "state", "lesion"]
PATIENTS = [number if number < 8 else 8 + (number - 8) // 2 for number in range(14)]


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    text = table.assign(**{key: table[key].astype(object).fillna(-1).astype(str) for key in KEYS})
    return text.sort_values(KEYS).reset_index(drop=True)


def test_tables_of_version_0_1_0_are_what_is_measured_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = write_frozen_study(tmp_path, monkeypatch.setenv)
    patients = tmp_path / "patients.csv"
    rows = "".join(f"case_{number:02d},p{patient}\n" for number, patient in enumerate(PATIENTS))
    patients.write_text(f"case,patient\n{rows}")
    now = ordered(evaluate(folders, patients=patients, resamples=1000).measurements)
    before = ordered(read_tables([FROZEN / "measurements.csv.gz", FROZEN / "lesions.csv.gz"]))
    pd.testing.assert_frame_equal(now[KEYS], before[KEYS])
    assert list(now["patient"].astype(str)) == list(before["patient"].astype(str))
    np.testing.assert_allclose(now["value"], before["value"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(now["volume_ml"], before["volume_ml"], rtol=0, atol=1e-12)


def test_statistics_of_single_trainings_are_those_of_version_0_1_0():
    table = read_tables([FROZEN / "measurements.csv.gz", FROZEN / "lesions.csv.gz"])
    table = table[table["trainer"].isin(["nnUNetTrainer_seed1", "nnUNetTrainerGODC_seed1"])].copy()
    table["patient"] = table["case"]
    found = evaluate(table, resamples=1000, lesion_bins_ml=(0.005, 0.02))
    before = json.loads(gzip.decompress((FROZEN / "report.json.gz").read_bytes()))
    place = ["trainer", "label", "bin", "metric"]
    now = found.statistics.set_index(place)
    for row in before["statistics"]:
        own = now.loc[tuple(row[key] for key in place)]
        exact = {"mean": "mean", "median": "median", "median_low": "median_low", "cases": "cases"}
        for old, new in exact.items():
            assert own[new] == pytest.approx(np.nan if row[old] is None else row[old], abs=1e-12, nan_ok=True)
        # resamples are summed in single precision, in an order that depends on the columns beside them
        assert own["low"] == pytest.approx(
            np.nan if row["mean_low"] is None else row["mean_low"], abs=1e-6, nan_ok=True
        )
    compared = found.comparisons.set_index(place[1:])
    for row in before["comparisons"]:
        own = compared.loc[tuple(row[key] for key in place[1:])]
        for old, new in {"difference": "difference", "signed_rank_p": "wilcoxon_p", "effect_low": "effect_low"}.items():
            assert own[new] == pytest.approx(np.nan if row[old] is None else row[old], abs=1e-12, nan_ok=True)
        assert own["p"] == pytest.approx(row["sign_flip_p"], abs=1e-3)
