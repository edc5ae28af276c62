"""`nnunet-godc inspect`: what a file is, without executing anything in it."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from nnunet_godc.cli import main

CHECKPOINT = {
    "network_weights": {"encoder.weight": torch.zeros(2, 3), "decoder.alignment.levels.0.weight": torch.zeros(4)},
    "trainer_name": "nnUNetTrainerLFAM",
    "current_epoch": 50,
    "logging": {"ema_fg_dice": [np.float64(0.25), np.float64(0.5)]},
    "init_args": {
        "plans": {"dataset_name": "Dataset501_LiTS", "plans_name": "nnUNetPlans"},
        "configuration": "3d_fullres",
        "fold": 0,
        "device": torch.device("cpu"),
    },
}


class Executes:
    """Unpickling it makes the file `executed` in the working directory."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_checkpoint_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(CHECKPOINT, "checkpoint.pth")
    assert main(["inspect", "checkpoint.pth"]) == 0
    told = capsys.readouterr().out
    for line in (
        "trainer: nnUNetTrainerLFAM",
        "dataset: Dataset501_LiTS",
        "plans: nnUNetPlans, 3d_fullres, fold 0",
        "epochs: 50",
        "moving average: 0.5000",
        "10 numbers in 2 tensors",
        "LFAM: yes",
        "loading it executes nothing",
    ):
        assert line in told


def test_nothing_is_executed_and_what_would_be_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({**CHECKPOINT, "extra": Executes()}, "evil.pth")
    assert main(["inspect", "evil.pth"]) == 1
    assert not Path("executed").exists()
    told = capsys.readouterr().err
    assert "evil.pth: beside numbers and text this file holds " in told
    assert "Path" in told
    torch.load("evil.pth", weights_only=False)
    assert Path("executed").exists()  # what nnU-Net would have done


def test_every_checkpoint_of_an_exported_model_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(CHECKPOINT, "good.pth")
    torch.save({**CHECKPOINT, "extra": Executes()}, "evil.pth")
    with ZipFile("model.zip", "w") as archive:
        archive.write("good.pth", "Dataset501_LiTS/a/fold_0/checkpoint_final.pth")
        archive.write("evil.pth", "../../fold_1/checkpoint_final.pth")
        archive.writestr("Dataset501_LiTS/a/plans.json", "{}")
    assert main(["inspect", "model.zip"]) == 1
    told = capsys.readouterr()
    assert "model.zip, Dataset501_LiTS/a/fold_0/checkpoint_final.pth:" in told.out
    assert "model.zip, ../../fold_1/checkpoint_final.pth: beside numbers" in told.err
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "told"), [(b"text", "not a checkpoint, or not a whole one"), (None, "no such file")]
)
def test_what_is_no_checkpoint_is_told(capsys: pytest.CaptureFixture[str], content: bytes | None, told: str) -> None:
    if content is not None:
        Path("file.pth").write_bytes(content)
    assert main(["inspect", "file.pth"]) == 1
    assert f"file.pth: {'there is ' if content is None else 'this file is '}{told}" in capsys.readouterr().err
