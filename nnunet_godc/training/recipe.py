"""The paper's training recipe: optimiser, batch size and augmentation (section III.C)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim import Adam, Optimizer

from nnunet_godc.training.hyperparameters import HyperparametersMixin

BATCH_SIZE = 2
LEARNING_RATE = 2e-4
SCALING = (0.7, 1.3)
# "random translation ranges in [0.8, 1.2]" makes no sense for a translation: read as up to a fifth of the patch
TRANSLATION = 0.2

# they imitate the errors of a cascade's first stage, and are no augmentation of the image
_CASCADE = (ApplyRandomBinaryOperatorTransform, RemoveRandomConnectedComponentFromOneHotEncodingTransform)


class PaperRecipeMixin(HyperparametersMixin):
    """Adam at a constant 2e-4, batches of two, and scaling, translation and quarter turns as the only augmentation.

    The paper names no schedule, weight decay or deep supervision: the learning rate is constant, the decay zero, and
    deep supervision stays as nnU-Net has it. Nothing is mirrored, in training and in prediction.
    """

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        self.initial_lr = LEARNING_RATE
        self.weight_decay = 0.0
        planned = self.configuration_manager.batch_size
        self.configuration_manager.configuration["batch_size"] = BATCH_SIZE
        self.print_to_log_file(
            f"The paper's recipe: Adam, learning rate {LEARNING_RATE} throughout, batch size {BATCH_SIZE} (the plans "
            f"have {planned}), scaling {SCALING}, translation by up to {TRANSLATION:.0%} of the patch, quarter turns."
        )

    def configure_optimizers(self) -> tuple[Optimizer, Any]:
        optimizer = Adam(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        # an exponent of zero keeps the learning rate, and nnU-Net's epochs can go on setting it
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[Any, bool, Any, tuple[int, ...]]:
        rotation, dummy_2d, initial_patch_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        patch_size = np.array(self.configuration_manager.patch_size)
        # what the largest scale and translation reach; along the first axis nothing moves if it is kept 2D
        initial = np.ceil(patch_size * (SCALING[1] + 2 * TRANSLATION)).astype(int)
        if dummy_2d:
            initial[0] = initial_patch_size[0]
        return rotation, dummy_2d, initial, ()

    @staticmethod
    def get_training_transforms(
        patch_size: Sequence[int],
        rotation_for_DA: Any,  # noqa: N803
        deep_supervision_scales: list[Any] | tuple[Any, ...] | None,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: list[bool] | None = None,
        is_cascaded: bool = False,
        foreground_labels: tuple[int, ...] | list[int] | None = None,
        regions: list[Any] | None = None,
        ignore_label: int | None = None,
    ) -> BasicTransform:
        stock = nnUNetTrainer.get_training_transforms(
            patch_size,
            rotation_for_DA,
            deep_supervision_scales,
            mirror_axes,
            do_dummy_2d_data_aug,
            use_mask_for_norm,
            is_cascaded,
            foreground_labels,
            regions,
            ignore_label,
        )
        transforms = []
        for transform in stock.transforms:
            if isinstance(transform, SpatialTransform):
                # where nnU-Net has its own, between the changes to 2D and back if there are any
                transforms.append(_scaling_and_translation(transform.patch_size))
            elif not _is_augmentation(transform):
                transforms.append(transform)
        after_spatial = 1 + next(
            index for index, transform in enumerate(transforms) if isinstance(transform, SpatialTransform)
        )
        if do_dummy_2d_data_aug:
            after_spatial += 1
        transforms[after_spatial:after_spatial] = _quarter_turns(patch_size, in_plane=do_dummy_2d_data_aug)
        return ComposeTransforms(transforms)


def _is_augmentation(transform: BasicTransform) -> bool:
    """Whether nnU-Net changes the look of a patch by it; what prepares targets or a cascade's input stays."""
    if isinstance(transform, RandomTransform):
        return not isinstance(transform.transform, _CASCADE)
    return isinstance(transform, MirrorTransform)


def _scaling_and_translation(patch_size: Sequence[int]) -> SpatialTransform:
    # Its centre is drawn at least so far from the border of the loaded patch that it moves by up to TRANSLATION.
    loaded = [int(np.ceil(size * (SCALING[1] + 2 * TRANSLATION))) for size in patch_size]
    margin = [extent / 2 - TRANSLATION * size for extent, size in zip(loaded, patch_size, strict=True)]
    return SpatialTransform(
        patch_size,
        patch_center_dist_from_border=margin,
        random_crop=True,
        p_rotation=0,
        p_scaling=1,
        scaling=SCALING,
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )


def _quarter_turns(patch_size: Sequence[int], in_plane: bool) -> list[BasicTransform]:
    """Turns by multiples of 90 degrees in every plane whose sides are equal, of 180 degrees in the others."""
    axes = range(1, len(patch_size)) if in_plane else range(len(patch_size))
    return [
        Rot90Transform(
            num_axis_combinations=1,
            num_rot_per_combination=(0, 1, 2, 3) if patch_size[first] == patch_size[second] else (0, 2),
            allowed_axes={first, second},
        )
        for first, second in combinations(axes, 2)
    ]
