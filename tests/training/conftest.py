"""Trainers on plans written by hand: small enough for a step in a second, whole enough for all configurations."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

DATASET = "Dataset999_Tiny"


def architecture(dimensions: int, residual: bool = False) -> dict[str, Any]:
    in_plane = [[1, 3, 3], [3, 3, 3], [3, 3, 3]] if dimensions == 3 else [[3, 3]] * 3
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": in_plane,
            "strides": [[1] * dimensions, [2] * dimensions, [2] * dimensions],
            ("n_blocks_per_stage" if residual else "n_conv_per_stage"): [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(patch_size: list[int], batch_size: int = 2, **changes: Any) -> dict[str, Any]:
    resampling = {
        f"resampling_fn_{kind}{suffix}": value
        for kind, is_seg in (("data", False), ("seg", True), ("probabilities", False))
        for suffix, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": is_seg, "order": 1, "order_z": 0, "force_separate_z": None}),
        )
    }
    return {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": patch_size,
        "median_image_size_in_voxels": patch_size,
        "spacing": [1.0] * len(patch_size),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture(len(patch_size)),
        "batch_dice": True,
        **resampling,
        **changes,
    }


def plans() -> dict[str, Any]:
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [8, 16, 16],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "2d": configuration([16, 16]),
            "3d_fullres": configuration([8, 16, 16]),
            "3d_one_sample": configuration([8, 16, 16], batch_size=1, batch_dice=False),
            "3d_resenc": configuration([8, 16, 16], architecture=architecture(3, residual=True)),
            "3d_lowres": configuration([8, 16, 16], next_stage="3d_cascade_fullres"),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "continue_training": False,
    }


LABELS = {"background": 0, "liver": 1, "tumour": 2}
REGIONS = {"background": 0, "liver": [1, 2], "tumour": 2}


@pytest.fixture
def make_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nnUNetTrainer]:
    """Makes a trainer on the CPU, in folders of its own."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    data = tmp_path / "nnUNet_preprocessed" / DATASET / "tiny"
    data.mkdir(parents=True)
    (data / "case.b2nd").touch()  # by its files nnU-Net tells the kind of dataset

    def make(
        trainer: type[nnUNetTrainer],
        configuration: str = "3d_fullres",
        labels: dict[str, Any] = LABELS,
        **changes: Any,
    ) -> nnUNetTrainer:
        dataset = {
            "channel_names": {"0": "CT"},
            "labels": labels,
            "regions_class_order": [1, 2],
            "numTraining": 1,
            "file_ending": ".nii.gz",
        }
        every_plan = plans()
        every_plan["configurations"][configuration] |= changes
        return trainer(copy.deepcopy(every_plan), configuration, 0, dataset, torch.device("cpu"))

    return make


@pytest.fixture
def random_batch() -> Callable[[nnUNetTrainer], dict[str, Any]]:
    """A batch as nnU-Net's loader makes it, for every resolution of deep supervision if there is any."""

    def make(trainer: nnUNetTrainer) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        samples = trainer.batch_size
        patch = trainer.configuration_manager.patch_size
        # the ignore label comes after the others; for regions it is a channel after theirs
        channels = trainer.label_manager.num_segmentation_heads + trainer.label_manager.has_ignore_label
        data = torch.randn(samples, trainer.num_input_channels, *patch, generator=generator)
        targets = []
        for scale in trainer._get_deep_supervision_scales() or [[1.0] * len(patch)]:
            size = [round(extent * factor) for extent, factor in zip(patch, scale, strict=True)]
            if trainer.label_manager.has_regions:
                targets.append(torch.rand(samples, channels, *size, generator=generator) > 0.7)
            else:
                targets.append(torch.randint(channels, (samples, 1, *size), generator=generator).float())
        return {"data": data, "target": targets if trainer.enable_deep_supervision else targets[0]}

    return make
