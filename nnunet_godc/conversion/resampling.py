"""Bringing labels onto another grid in the patient's space."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from nnunet_godc.conversion.geometry import Grid, Volume


def resampled_to(target: Grid, label: Volume[Any]) -> NDArray[np.uint8]:
    """Each voxel of `target` takes the value of `label` that its centre is nearest to, and 0 outside of it.

    Args:
        label: uint8 or bool.

    Returns:
        Shape of `target`.
    """
    resample = SimpleITK.ResampleImageFilter()
    resample.SetInterpolator(SimpleITK.sitkNearestNeighbor)
    resample.SetReferenceImage(_with_grid(SimpleITK.Image(list(target.shape), SimpleITK.sitkUInt8), target))
    resample.SetOutputPixelType(SimpleITK.sitkUInt8)
    voxels = label.voxels.transpose(2, 1, 0).astype(np.uint8, copy=False)
    image = resample.Execute(_with_grid(SimpleITK.GetImageFromArray(voxels), label.grid))
    return np.array(SimpleITK.GetArrayViewFromImage(image)).transpose(2, 1, 0)


def _with_grid(image: SimpleITK.Image, grid: Grid) -> SimpleITK.Image:
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection([value for row in grid.direction for value in row])
    return image
