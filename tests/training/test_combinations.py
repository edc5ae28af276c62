"""Trainers that are made when they are asked for: a network, a loss, LFAM and a schedule in one name."""

from __future__ import annotations

import pickle

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

from nnunet_godc import combined_names, trainers
from nnunet_godc.combined_names import Parts, in_order, names, parts_of
from nnunet_godc.trainers import combinations
from nnunet_godc.training import GODCMixin, LFAMMixin, SeededMixin


def test_nnunet_finds_a_network_with_loss_lfam_schedule_and_seed() -> None:
    found = find("nnUNetTrainerAttentionUNetGODCSquaredLFAMShared_37epochs_seed3")
    assert issubclass(found, trainers.nnUNetTrainerAttentionUNet)
    assert issubclass(found, (GODCMixin, LFAMMixin, SeededMixin))
    assert (found.seed, found.epochs) == (3, 37)
    assert found.godc == trainers.nnUNetTrainerGODCSquared.godc
    assert found.lfam == trainers.nnUNetTrainerLFAMShared.lfam
    assert find("nnUNetTrainerAttentionUNetGODCSquaredLFAMShared_37epochs_seed3") is found


def test_nnunets_own_dice_loss_goes_with_networks_and_lfam() -> None:
    found = find("nnUNetTrainerUNetDiceLossLFAM")
    assert found._build_loss is nnUNetTrainerDiceLoss._build_loss
    assert issubclass(found, (trainers.nnUNetTrainerUNet, LFAMMixin))


def test_every_combination_can_be_made_and_is_called_as_it_was_asked_for() -> None:
    every = list(names())
    assert len(every) == len(set(every)) == 6 * 6 * 5
    for name in every:
        made = getattr(combinations, name)
        assert made.__name__ == name
        assert pickle.loads(pickle.dumps(made)) is made
        assert made is nnUNetTrainer or made.__doc__ or made is nnUNetTrainerDiceLoss


def test_what_has_a_class_of_its_own_is_that_class() -> None:
    for name in ("nnUNetTrainerGODC", "nnUNetTrainerCENet", "nnUNetTrainerGODCLFAM_50epochs"):
        assert find(name) is getattr(trainers, name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nnUNetTrainer", Parts("", "", "", None)),
        ("nnUNetTrainerUNet", Parts("UNet", "", "", None)),
        ("nnUNetTrainerUNetPlusPlusGODCOnlyLFAMLite_5epochs", Parts("UNetPlusPlus", "GODCOnly", "LFAMLite", 5)),
        ("nnUNetTrainerResUNetLFAM", Parts("ResUNet", "", "LFAM", None)),
        ("nnUNetTrainerLFAMGODC", None),
        ("nnUNetTrainerGODC_05epochs", None),
        ("nnUNetTrainerGODC_0epochs", None),
        ("nnUNetTrainerUNetUNet", None),
        ("UNet", None),
    ],
)
def test_names_are_taken_apart(name: str, parts: Parts | None) -> None:
    assert parts_of(name) == parts
    assert parts is None or parts.name == name


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("nnUNetTrainerLFAMGODC", "nnUNetTrainerGODCLFAM"),
        ("nnUNetTrainerGODCAttentionUNet_50epochs", "nnUNetTrainerAttentionUNetGODC_50epochs"),
        ("nnunettrainerunetplusplusgodc", "nnUNetTrainerUNetPlusPlusGODC"),
        ("nnUNetTrainerGODCMine", None),
    ],
)
def test_parts_in_another_order_are_recognised(asked: str, meant: str | None) -> None:
    assert in_order(asked) == meant


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("nnUNetTrainerGODCUNetPlusPlus", "nnUNetTrainerUNetPlusPlusGODC"),
        ("nnUNetTrainerAtentionUnetGOCD_60epochs", "nnUNetTrainerAttentionUNetGODC_60epochs"),
        ("nnUNetTrainerUNet++", "nnUNetTrainerUNet"),
    ],
)
def test_the_nearest_right_name_is_pointed_out(misspelt: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"):
        find(misspelt)
    assert f"knows no trainer called {misspelt}; did you mean {meant}?" in capsys.readouterr().err


def test_a_misspelt_name_with_a_seed_is_pointed_out_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        find("nnUNetTrainerResUNetGODCLAFM_seed1")
    told = [line for line in capsys.readouterr().err.splitlines() if "nnunet-godc" in line]
    assert told == [
        "nnunet-godc knows no trainer called nnUNetTrainerResUNetGODCLAFM; did you mean nnUNetTrainerResUNetGODCLFAM?"
    ]


def test_every_part_has_a_trainer() -> None:
    for part in (*combined_names.NETWORKS, *combined_names.LOSSES, *combined_names.ALIGNMENTS):
        assert find(f"nnUNetTrainer{part}").__name__ == f"nnUNetTrainer{part}"
