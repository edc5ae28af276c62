"""The published table in a study's report, filled from a real evaluation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nnunet_godc.evaluation import evaluate
from nnunet_godc.study.definition import Published
from nnunet_godc.study.published import CAUTION, published_table
from tests.evaluation.measured import measured

PUBLISHED = Published.model_validate(
    {
        "source": "Table III of the paper",
        "label": "liver",
        "methods": {
            "U-Net": {"trainer": "nnUNetTrainerUNet", "values": {"Dice": 91.21, "Recall": 92.79}},
            "MSN-Net": {"values": {"Dice": 94.24}},
            "GODC": {"trainer": "nnUNetTrainerGODC", "values": {"Dice": 95.32}},
        },
    }
)


def rows_of(section: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """Two seeds of U-Net, with plans of two sizes; liver and tumour."""
    values = {"nnUNetTrainerUNet_seed1": [0.90, 0.92, 0.94, 0.96, 0.98], "nnUNetTrainerUNet_seed2": [0.92] * 5}
    frames = [
        measured(values, label="liver"),
        measured(values, label="liver", metric="Recall"),
        measured({"nnUNetTrainerUNet": [0.5] * 5}, label="liver", plans="Large"),
        measured(values, label="tumour"),
    ]
    evaluate(pd.concat(frames, ignore_index=True), tmp_path, resamples=1000)
    return tmp_path


def test_what_was_measured_stands_beside_what_was_published_in_the_published_order(evaluated: Path) -> None:
    section = published_table(PUBLISHED, evaluated)
    heading, _, *rows = rows_of(section)
    assert heading == [
        *("Method", "trainer", "Dice, published (%)", "Dice, here (%)", "Recall, published (%)", "Recall, here (%)")
    ]
    assert [row[:3] for row in rows] == [
        ["U-Net", "nnUNetTrainerUNet, 3d\\_fullres, nnUNetPlans", "91.21"],
        ["U-Net", "nnUNetTrainerUNet, 3d\\_fullres, Large", "91.21"],
        ["MSN-Net", "", "94.24"],
        ["GODC", "nnUNetTrainerGODC", "95.32"],
    ]
    assert rows[0][3].startswith("93.0 [")  # the mean over two trainings and five cases
    assert rows[0][5] == rows[0][3]
    assert [row[3:] for row in rows[1:]] == [["50.0", "92.79", ""], ["", "", ""], ["", "", ""]]
    assert "Table III of the paper, liver" in section
    assert section.endswith(CAUTION)


def test_a_label_that_was_not_measured_leaves_the_published_numbers_alone(evaluated: Path) -> None:
    _, _, *rows = rows_of(published_table(PUBLISHED.model_copy(update={"label": "kidney"}), evaluated))
    assert [row[2] for row in rows] == ["91.21", "94.24", "95.32"]
    assert {cell for row in rows for cell in (row[3], row[5])} == {""}
