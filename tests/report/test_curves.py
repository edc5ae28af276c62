from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.report.curves import curves_chart, read_logs, read_table_of_epochs
from tests.report.conftest import BASELINE, Study, log_of


def test_every_epoch_is_read_once_and_the_first_of_a_later_log_was_resumed(study: Study) -> None:
    curves = read_logs(study.folders)
    resumed = curves[(curves["trainer"] == BASELINE) & (curves["seed"] == "1") & (curves["fold"] == "0")]
    assert resumed["epoch"].tolist() == [0, 1, 2, 3, 4, 5]
    assert resumed["learning_rate"].tolist() == [0.01, 0.01, 0.005, 0.005, 0.005, 0.005]
    assert resumed["resumed"].tolist() == [False, False, True, False, False, False]
    assert resumed["validation_loss"].tolist() == pytest.approx([0, -0.05, -0.1, -0.15, -0.2, -0.25])
    assert set(resumed["pseudo_dice"]) == {0.5}  # without the class that was not there
    assert len(curves) == 6 + 3 * 4


def test_a_training_that_began_anew_is_not_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001_A" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "training_log_1.txt").write_text(log_of(range(3)))
    (folder / "training_log_2.txt").write_text(log_of(range(2)))
    curves = read_logs([folder.parent, tmp_path])
    assert curves["epoch"].tolist() == [0, 1]
    assert not curves["resumed"].any()
    assert set(curves["dataset"]) == {"Dataset001_A"}


def test_a_chart_has_a_panel_for_what_is_known(tmp_path: Path) -> None:
    table = tmp_path / "epochs.csv"
    table.write_text(
        "trainer,seed,fold,epoch,training_loss,seconds\nA,1,0,0,0.5,\nA,1,0,1,0.25,\nA,1,1,0,0.4,\nB,,0,0,0.1,\n"
    )
    epochs = read_table_of_epochs(table)
    chart = curves_chart(epochs, {"A": 0}, ["A"])
    assert chart is not None
    (panel,) = chart.panels
    assert panel.title == "training loss"
    assert [list(series.y) for series in panel.series] == [[0.5, 0.25], [0.4]]
    assert [series.hint for series in panel.series] == ["fold 0, seed 1", "fold 1, seed 1"]
    assert curves_chart(epochs, {"C": 0}, ["C"]) is None


def test_text_where_numbers_belong_is_told(tmp_path: Path) -> None:
    table = tmp_path / "epochs.csv"
    table.write_text("trainer,fold,epoch,training_loss\nA,0,first,0.5\n")
    with pytest.raises(UserError, match=r"epochs\.csv is not a table of epochs"):
        read_table_of_epochs(table)
    table.write_text("trainer,fold,epoch,training_loss\nA,0,0,nan\n")
    assert math.isnan(pd.to_numeric(read_table_of_epochs(table)["training_loss"]).iloc[0])
