"""How far a training is, from nnU-Net's own log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nnunet_godc.study.progress import Progress, read_progress

EPOCH = """\
2026-01-01 00:00:00.000000: Epoch {epoch}
2026-01-01 00:00:00.000000: Current learning rate: 0.01
2026-01-01 00:00:10.000000: train_loss {loss}
2026-01-01 00:00:10.000000: val_loss 0.1
2026-01-01 00:00:10.000000: Pseudo dice [{dice}]
2026-01-01 00:00:10.000000: Epoch time: {seconds} s
"""


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    (tmp_path / "debug.json").write_text(json.dumps({"num_epochs": "4"}))
    return tmp_path


def epoch(
    number: int, loss: float = -0.5, dice: str = "np.float32(0.25), np.float32(0.75)", seconds: float = 10
) -> str:
    return EPOCH.format(epoch=number, loss=loss, dice=dice, seconds=seconds)


def test_nothing_is_known_before_it_begins(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == Progress()


def test_the_latest_epoch_is_told(fold: Path) -> None:
    (fold / "training_log_1.txt").write_text(epoch(0) + epoch(1, loss=-0.7, seconds=30) + "2026: Epoch 2\n")
    progress = read_progress(fold)
    assert (progress.epochs, progress.of, progress.loss, progress.pseudo_dice) == (2, 4, -0.7, 0.5)
    assert progress.seconds_left == 2 * 20


@pytest.mark.parametrize(("dice", "mean"), [("0.25, nan", 0.25), ("np.float64(nan)", None), ("1e-05", 1e-05)])
def test_a_class_that_is_not_there_is_left_out(fold: Path, dice: str, mean: float | None) -> None:
    (fold / "training_log_1.txt").write_text(epoch(0, dice=dice))
    assert read_progress(fold).pseudo_dice == mean


def test_a_training_that_went_on_counts_from_its_checkpoint(fold: Path) -> None:
    (fold / "training_log_1.txt").write_text(epoch(0) + epoch(1) + epoch(2))
    (fold / "training_log_2.txt").write_text(epoch(1, loss=-0.9))
    progress = read_progress(fold)
    assert (progress.epochs, progress.loss) == (2, -0.9)


def test_validation_is_counted_case_by_case(fold: Path) -> None:
    text = "".join(epoch(number) for number in range(4)) + "2026-01-01 00:00:00.000000: predicting case_1\n"
    (fold / "training_log_1.txt").write_text(text)
    progress = read_progress(fold)
    assert (progress.epochs, progress.validated, progress.seconds_left) == (4, 1, None)


def test_a_loss_that_is_not_a_number_is_shown_as_such(fold: Path) -> None:
    (fold / "training_log_1.txt").write_text(epoch(0, loss=math.nan))
    loss = read_progress(fold).loss
    assert loss is not None
    assert math.isnan(loss)
