"""Starting LFAM trainers from checkpoints of plain nnU-Net."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc import trainers
from nnunet_godc.cli import main
from nnunet_godc.errors import UserError
from nnunet_godc.training.checkpoint import read_checkpoint
from nnunet_godc.training.warm_start import warm_start

MakeTrainer = Callable[..., Any]


@pytest.fixture
def stock(make_trainer: MakeTrainer, tmp_path: Path) -> tuple[nnUNetTrainer, Path]:
    """A plain trainer, and a checkpoint of it."""
    torch.manual_seed(3)
    trainer = make_trainer(nnUNetTrainer)
    trainer.initialize()
    file = tmp_path / "stock.pth"
    trainer.save_checkpoint(str(file))
    return trainer, file


@pytest.mark.parametrize("name", ["nnUNetTrainerLFAM", "nnUNetTrainerGODCLFAMShared", "nnUNetTrainerGODCLFAMGuided"])
def test_the_warm_started_trainer_predicts_what_the_stock_one_did(
    make_trainer: MakeTrainer, stock: tuple[nnUNetTrainer, Path], tmp_path: Path, name: str
) -> None:
    trainer, file = stock
    out = tmp_path / "warm.pth"
    added = warm_start(file, out, name)
    warm = make_trainer(getattr(trainers, name))
    warm.initialize()
    assert added == sum(".alignment." in key for key in warm.network.state_dict())
    # nnU-Net's own loader leaves the segmentation layers out, as they may differ in classes
    load_pretrained_weights(warm.network, str(out))
    stock_layers = {key: value for key, value in trainer.network.state_dict().items() if ".seg_layers." in key}
    warm.network.load_state_dict(stock_layers, strict=False)
    patch = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        for ours, theirs in zip(warm.network(patch), trainer.network(patch), strict=True):
            assert ours.equal(theirs)


def test_the_axes_that_prediction_may_mirror_are_kept(stock: tuple[nnUNetTrainer, Path], tmp_path: Path) -> None:
    trainer, file = stock
    trainer.inference_allowed_mirroring_axes = (0, 2)
    trainer.save_checkpoint(str(file))
    warm_start(file, tmp_path / "warm.pth", "nnUNetTrainerLFAM")
    assert read_checkpoint(tmp_path / "warm.pth")["inference_allowed_mirroring_axes"] == (0, 2)


def test_nnunet_refuses_the_stock_checkpoint_itself(
    make_trainer: MakeTrainer, stock: tuple[nnUNetTrainer, Path]
) -> None:
    warm = make_trainer(trainers.nnUNetTrainerLFAM)
    warm.initialize()
    with pytest.raises(AssertionError, match=r"Key decoder\.alignment\."):
        load_pretrained_weights(warm.network, str(stock[1]))


def test_the_command_says_what_to_do_next(
    stock: tuple[nnUNetTrainer, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "warm.pth"
    assert main(["warm-start", str(stock[1]), str(out), "-tr", "nnUNetTrainerLFAM"]) == 0
    assert f"-tr nnUNetTrainerLFAM -pretrained_weights {out}" in capsys.readouterr().out
    assert out.exists()


def test_an_existing_file_is_not_overwritten(stock: tuple[nnUNetTrainer, Path], tmp_path: Path) -> None:
    out = tmp_path / "mine.pth"
    out.write_text("precious")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        warm_start(stock[1], out, "nnUNetTrainerLFAM")
    assert out.read_text() == "precious"


def test_a_missing_folder_is_named(stock: tuple[nnUNetTrainer, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such folder to write warm\.pth to"):
        warm_start(stock[1], tmp_path / "nowhere" / "warm.pth", "nnUNetTrainerLFAM")


def test_a_misspelt_trainer_is_named_with_the_nearest(
    stock: tuple[nnUNetTrainer, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "warm.pth"
    assert main(["warm-start", str(stock[1]), str(out), "-tr", "nnUNetTrainerLFAMM"]) == 1
    assert "nnU-Net finds no trainer called nnUNetTrainerLFAMM" in capsys.readouterr().err
    assert not out.exists()


def test_a_checkpoint_of_another_variant_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    shared = make_trainer(trainers.nnUNetTrainerLFAMShared)
    shared.initialize()
    file, out = tmp_path / "shared.pth", tmp_path / "warm.pth"
    shared.save_checkpoint(str(file))
    with pytest.raises(UserError, match="was trained by nnUNetTrainerLFAMShared, and nnUNetTrainerGODC has another"):
        warm_start(file, out, "nnUNetTrainerGODC")
    assert not list(tmp_path.glob("warm*"))


@pytest.mark.parametrize("content", [None, b"", b"something else"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "input.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(file))):
        warm_start(file, tmp_path / "warm.pth", "nnUNetTrainerLFAM")
