import json
import math
from pathlib import Path

import pytest

from nnunet_godc.training_log import TAIL, Entry, Progress, number_of_epochs, read_line, read_progress


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("2026-01-01 00:00:00.000000: Epoch 12 ", Entry("epoch", "12")),
        ("Epoch 0", Entry("epoch", "0")),
        ("2026-01-01 00:00:10.000000: train_loss -0.5\n", Entry("loss", "-0.5")),
        ("2026-01-01 00:00:10.000000: Epoch time: 10.02 s", Entry("epoch time", "10.02")),
        ("2026-01-01 00:00:10.000000: predicting case_1", Entry("predicting", "case_1")),
        ("2026-01-01 00:00:10.000000: val_loss 0.1", Entry("validation loss", "0.1")),
        ("2026-01-01 00:00:10.000000: Current learning rate: 0.0097 ", Entry("learning rate", "0.0097")),
        ("2026-01-01 00:00:10.000000: Yayy! New best EMA pseudo Dice: 0.0", None),
        ("Epoch", None),
        ("", None),
    ],
)
def test_a_line_tells_one_thing_with_or_without_its_time(line, entry):
    assert read_line(line) == entry


@pytest.mark.parametrize("written", ["[0.25, nan, 1e-05]", "[np.float32(0.25), np.float64(nan), np.float32(1e-05)]"])
def test_pseudo_dice_is_read_as_any_numpy_prints_it(written):
    entry = read_line(f"2026-01-01 00:00:10.000000: Pseudo dice {written}")
    assert entry is not None
    first, second, third = entry.numbers
    assert (first, third) == (0.25, 1e-05)
    assert math.isnan(second)


@pytest.mark.parametrize(("content", "number"), [('{"num_epochs": "4"}', 4), ("{}", None), ("{", None), (None, None)])
def test_the_number_of_epochs_is_known_once_nnunet_has_written_it(tmp_path, content, number):
    debug = tmp_path / "debug.json"
    if content is not None:
        debug.write_text(content)
    assert number_of_epochs(debug) == number


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
    assert (progress.epochs, progress.of, progress.loss, progress.mean_dice) == (2, 4, -0.7, 0.5)
    assert progress.seconds_left == 2 * 20


@pytest.mark.parametrize(("dice", "mean"), [("0.25, nan", 0.25), ("np.float64(nan)", None), ("1e-05", 1e-05)])
def test_a_class_that_is_not_there_is_left_out(fold: Path, dice: str, mean: float | None) -> None:
    (fold / "training_log_1.txt").write_text(epoch(0, dice=dice))
    assert read_progress(fold).mean_dice == mean


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


def test_of_a_long_log_the_end_is_read(fold: Path) -> None:
    text = epoch(0, seconds=1000) + "".join(epoch(number) for number in range(1, 2000))
    assert len(text) > 2 * TAIL
    (fold / "training_log_1.txt").write_text(text)
    progress = read_progress(fold)
    assert (progress.epochs, progress.mean_dice) == (2000, 0.5)
