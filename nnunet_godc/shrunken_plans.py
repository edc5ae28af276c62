"""Shrinking an nnU-Net plan to what two CPU cores can train in minutes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIGURATION = "3d_fullres"


def shrink_plans(
    plans: dict[str, Any],
    *,
    name: str,
    patch_size: Sequence[int],
    features: int,
    stages: int,
    batch_size: int = 2,
    spacing: Sequence[float] | None = None,
) -> dict[str, Any]:
    """A copy of `plans` that holds a small 3d_fullres configuration and nothing else.

    Kernel sizes, strides and everything about intensities stay nnU-Net's: the first `stages` stages are kept.

    Args:
        plans: what nnU-Net's planner wrote.
        name: identifier of the copy, for nnU-Net's option ``-p``.
        patch_size: voxels along the plan's axes.
        features: channels of the first stage; they double from stage to stage.
        stages: resolutions of the U-Net.
        batch_size: patches per step.
        spacing: target spacing in millimetres along the plan's axes; None keeps the planner's.

    Raises:
        ValueError: the plan has no 3d_fullres configuration or fewer stages, or strides do not divide the patch.
    """
    if CONFIGURATION not in plans.get("configurations", {}):
        raise ValueError(f"plans {plans.get('plans_name')!r} hold no {CONFIGURATION} configuration; plan a 3D dataset")
    configuration = copy.deepcopy(plans["configurations"][CONFIGURATION])
    network = configuration["architecture"]["arch_kwargs"]
    if not 2 <= stages <= network["n_stages"]:
        raise ValueError(f"{stages} stages asked for, but the planned network allows 2 to {network['n_stages']}")
    network["n_stages"] = stages
    network["features_per_stage"] = [features * 2**stage for stage in range(stages)]
    for per_stage in ("kernel_sizes", "strides", "n_conv_per_stage"):
        network[per_stage] = network[per_stage][:stages]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
    for axis, voxels in enumerate(patch_size):
        stride = math.prod(strides[axis] for strides in network["strides"])
        if voxels % stride:
            raise ValueError(f"patch size {list(patch_size)}: axis {axis} must be a multiple of the stride {stride}")

    configuration["data_identifier"] = f"{name}_{CONFIGURATION}"
    configuration["patch_size"] = list(patch_size)
    configuration["batch_size"] = batch_size
    if spacing is not None:
        configuration["spacing"] = list(spacing)
    shrunken = {key: copy.deepcopy(value) for key, value in plans.items() if key != "configurations"}
    return shrunken | {"plans_name": name, "configurations": {CONFIGURATION: configuration}}


def write_shrunken_plans(planned: Path, *, name: str, **size: Any) -> Path:
    """Shrink the plans file `planned` into ``<name>.json`` beside it; keywords as for `shrink_plans`."""
    shrunken = shrink_plans(json.loads(planned.read_text()), name=name, **size)
    target = planned.with_name(f"{name}.json")
    target.write_text(json.dumps(shrunken, indent=4))
    return target
