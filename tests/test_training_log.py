import math

import pytest

from nnunet_godc.training_log import Entry, number_of_epochs, read_line


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
