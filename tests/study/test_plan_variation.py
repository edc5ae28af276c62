"""Plans under a name of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_godc.study.plan_variation import main

SIZES = {"patch_size": [8, 8, 8], "features": 4, "stages": 2}


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    """Plans of a U-Net with three stages."""
    network = {
        "n_stages": 3,
        "features_per_stage": [32, 64, 128],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    configuration = {"patch_size": [32, 32, 32], "batch_size": 9, "architecture": {"arch_kwargs": network}}
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}))
    return path


def vary(plans: Path, **sizes: Any) -> int:
    return main([str(plans), "Small", json.dumps(SIZES | sizes)])


def test_a_variation_has_its_own_name_and_sizes(plans: Path) -> None:
    before = plans.read_text()
    assert vary(plans) == 0
    varied = json.loads((plans.parent / "Small.json").read_text())
    assert varied["plans_name"] == "Small"
    assert varied["configurations"]["3d_fullres"]["patch_size"] == [8, 8, 8]
    assert varied["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8]
    assert plans.read_text() == before


def test_making_it_again_changes_nothing(plans: Path) -> None:
    assert vary(plans) == vary(plans) == 0


def test_other_plans_of_that_name_are_not_replaced(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vary(plans)
    before = (plans.parent / "Small.json").read_text()
    assert vary(plans, features=8) == 1
    assert "give the variation another name" in capsys.readouterr().err
    assert (plans.parent / "Small.json").read_text() == before


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [({"stages": 4}, "4 stages asked for"), ({"patch_size": [8, 8, 9]}, "must be a multiple of the stride 2")],
)
def test_what_cannot_be_made_is_told(
    plans: Path, capsys: pytest.CaptureFixture[str], sizes: dict[str, Any], problem: str
) -> None:
    assert vary(plans, **sizes) == 1
    assert problem in capsys.readouterr().err
    assert not (plans.parent / "Small.json").exists()


def test_plans_of_another_network_cannot_be_varied(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plans.read_text().replace("n_conv_per_stage", "n_blocks_per_stage")
    plans.write_text(text)
    assert vary(plans) == 1
    assert "only plans of a plain U-Net can be varied" in capsys.readouterr().err


def test_missing_plans_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vary(tmp_path / "nnUNetPlans.json") == 1
    assert "plan the dataset first" in capsys.readouterr().err
