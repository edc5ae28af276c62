"""Small volumes, and files with the defects that real ones have."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

RAS = np.diag([0.8, 0.8, 2.5, 1.0])  # voxels along the RAS axes, as nibabel sees them
RAS[:3, 3] = (-11.0, -7.0, 30.0)
LPS = np.diag([-0.8, -0.8, 2.5, 1.0])
LPS[:3, 3] = (11.0, 7.0, 30.0)
SHAPE = (12, 10, 6)


@pytest.fixture
def ct() -> NDArray[np.int16]:
    """Every voxel has a value of its own, from -1024 upwards."""
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 300


@pytest.fixture
def mask() -> NDArray[np.uint8]:
    """A box of 1 that lies to no side's middle, with a smaller one of 2 in it."""
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[2:7, 3:8, 1:4] = 1
    label[3:5, 4:6, 2:3] = 2
    return label


def write_nifti(
    path: Path,
    voxels: NDArray[np.generic],
    affine: NDArray[np.float64] = LPS,
    *,
    sform: int = 1,
    qform: int = 1,
    header: Callable[[nibabel.Nifti1Header], None] | None = None,
    image_class: type = nibabel.Nifti1Image,
) -> Path:
    """Write with nibabel, then change the header as wanted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image_class(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    if header:
        header(image.header)
    nibabel.save(image, path)
    return path


def by_position(path: Path) -> dict[tuple[float, ...], float]:
    """Every voxel's value by its place in the patient (LPS, mm), as SimpleITK reads the file."""
    image = SimpleITK.ReadImage(str(path))
    values = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    return {
        tuple(round(x, 2) for x in image.TransformIndexToPhysicalPoint([int(n) for n in index])): values[index]
        for index in np.ndindex(values.shape)
    }


@pytest.fixture
def nifti() -> Callable[..., Path]:
    return write_nifti


@pytest.fixture
def positions() -> Callable[[Path], dict[tuple[float, ...], float]]:
    return by_position
