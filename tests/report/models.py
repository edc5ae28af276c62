"""Models as nnU-Net leaves them, with the weights that chance gives: nothing has to be trained to look inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_godc.alignment import LateralFeatureAlignment
from tests.end_to_end.tiny_dataset import CASES, HELD_OUT, write_case
from tests.training.conftest import DATASET, plans

LABELS = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "organ": [1, 2], "lesion": 2}


def write_raw(raw: Path) -> None:
    """Four cases with labels, and one in imagesTs."""
    for seed, name in enumerate(CASES):
        write_case(raw / DATASET, "Tr", name, seed)
    write_case(raw / DATASET, "Ts", HELD_OUT, len(CASES))


def write_model(results: Path, trainer: str, configuration: str, labels: dict[str, Any] = LABELS, **more: Any) -> Path:
    """The folder of a model; LFAM's offsets, which begin at zero, are random. `more` goes into the checkpoint."""
    own_plans = {**plans(), "foreground_intensity_properties_per_channel": {"0": {}}}
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": labels,
        "regions_class_order": [1, 2],
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    folder = results / DATASET / f"{trainer}__nnUNetPlans__{configuration}"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(own_plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    manager = PlansManager(own_plans)
    torch.manual_seed(0)
    network = recursive_find_trainer_class_by_name(trainer).build_network_architecture(
        manager,
        manager.get_configuration(configuration),
        determine_num_input_channels(manager, configuration, dataset),
        manager.get_label_manager(dataset).num_segmentation_heads,
        False,
    )
    for module in network.modules():
        if isinstance(module, LateralFeatureAlignment):
            nn.init.normal_(module.offset.weight, std=0.1)
            nn.init.normal_(module.offset.bias, std=0.5)
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": trainer,
        "init_args": {"plans": own_plans, "configuration": configuration, "fold": 0, "dataset_json": dataset},
        "current_epoch": 2,
        "inference_allowed_mirroring_axes": (0, 1),
        **more,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder
