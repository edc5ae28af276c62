"""Shrinking an nnU-Net plan to what two CPU cores can train in minutes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIGURATION = "3d_fullres"  # the one that is kept unless another is named


def shrink(
    plans: dict[str, Any],
    *,
    name: str,
    patch_size: Sequence[int],
    features: int,
    stages: int,
    batch_size: int = 2,
    spacing: Sequence[float] | None = None,
    configuration: str = CONFIGURATION,
) -> dict[str, Any]:
    """A copy of `plans` that holds one small configuration and nothing else.

    Kernel sizes, strides and everything about intensities stay nnU-Net's: the first `stages` stages are kept.

    Args:
        plans: what nnU-Net's planner wrote.
        name: identifier of the copy, for nnU-Net's option ``-p``.
        patch_size: voxels along the plan's axes.
        features: channels of the first stage; they double from stage to stage.
        stages: resolutions of the U-Net.
        batch_size: patches per step.
        spacing: target spacing in millimetres along the plan's axes; None keeps the planner's.
        configuration: nnU-Net's name of the one that is kept.

    Raises:
        ValueError: the plan has no such configuration or fewer stages, or the patch has another number of axes or is
            not divided by the strides.
    """
    if configuration not in plans.get("configurations", {}):
        hint = "; plan a 3D dataset" if configuration == CONFIGURATION else ""
        raise ValueError(f"plans {plans.get('plans_name')!r} hold no {configuration} configuration{hint}")
    small = copy.deepcopy(plans["configurations"][configuration])
    network = small["architecture"]["arch_kwargs"]
    if not 2 <= stages <= network["n_stages"]:
        raise ValueError(f"{stages} stages asked for, but the planned network allows 2 to {network['n_stages']}")
    network["n_stages"] = stages
    network["features_per_stage"] = [features * 2**stage for stage in range(stages)]
    for per_stage in ("kernel_sizes", "strides", "n_conv_per_stage"):
        network[per_stage] = network[per_stage][:stages]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
    axes = len(network["strides"][0])
    if len(patch_size) != axes:
        raise ValueError(f"patch size {list(patch_size)}: {configuration} has {axes} axes")
    for axis, voxels in enumerate(patch_size):
        stride = math.prod(strides[axis] for strides in network["strides"])
        if voxels % stride:
            raise ValueError(f"patch size {list(patch_size)}: axis {axis} must be a multiple of the stride {stride}")

    small["data_identifier"] = f"{name}_{configuration}"
    small["patch_size"] = list(patch_size)
    small["batch_size"] = batch_size
    if spacing is not None:
        small["spacing"] = list(spacing)
    shrunken = {key: copy.deepcopy(value) for key, value in plans.items() if key != "configurations"}
    return shrunken | {"plans_name": name, "configurations": {configuration: small}}


def write_shrunken_plans(planned: Path, *, name: str, **size: Any) -> Path:
    """Shrink the plans file `planned` into ``<name>.json`` beside it; keywords as for `shrink`."""
    shrunken = shrink(json.loads(planned.read_text()), name=name, **size)
    target = planned.with_name(f"{name}.json")
    target.write_text(json.dumps(shrunken, indent=4))
    return target
