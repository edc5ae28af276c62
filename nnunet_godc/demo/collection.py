"""Writing the phantoms as a collection in LiTS's layout: volume-N.nii and segmentation-N.nii, in several folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_godc.demo.phantom import Phantom, make_phantom

BATCHES = ("Training Batch 1", "Training Batch 2")
TEST_BATCH = "Test Batch"
TRAINING, HELD_OUT = 12, 3  # cases

# Stored orientations in turn: the two that scanners and converters write most, and both with the slices upside down.
ORIENTATIONS = ("LPS", "RAS", "LPI", "RAI")


@dataclass(frozen=True)
class Case:
    """What is to be drawn for one patient; see `make_phantom` for the units."""

    seed: int
    orientation: str
    spacing: tuple[float, float, float]
    lesion_radii: tuple[float, ...]

    def draw(self) -> Phantom:
        """Draw the patient on a grid of about 340 x 270 x 190 mm, stored in the case's orientation."""
        extent = (340.0, 272.0, 192.0)
        x, y, z = (round(length / step) for length, step in zip(extent, self.spacing, strict=True))
        phantom = make_phantom(self.seed, shape=(x, y, z), spacing=self.spacing, lesion_radii=self.lesion_radii)
        return phantom.reoriented(self.orientation)


def phantom_cases(count: int, *, seed: int) -> Iterator[Case]:
    """The first `count` cases of the collection that `seed` stands for.

    The first has no tumour, as some LiTS cases have none. Every other one has lesions from a few millimetres to a few
    centimetres, so that their volumes span more than two orders of magnitude within a patient.
    """
    for index in range(count):
        random = np.random.default_rng([seed, index])
        in_plane = round(float(random.uniform(3.3, 3.9)), 2)
        slices = round(float(random.uniform(4.4, 5.6)), 2)
        radii = np.geomspace(random.uniform(3.5, 5), random.uniform(32, 38), num=random.integers(4, 7))
        yield Case(
            seed=int(random.integers(2**31)),
            orientation=ORIENTATIONS[index % len(ORIENTATIONS)],
            spacing=(in_plane, in_plane, slices),
            lesion_radii=tuple(float(radius) for radius in radii) if index else (),
        )


def write_phantom_collection(folder: Path, *, training: int = TRAINING, test: int = HELD_OUT, seed: int = 0) -> None:
    """Write `training` cases and `test` held-out cases to `folder`, which must not exist yet, as LiTS is delivered.

    Images are int16 Hounsfield units, labels uint8 (1 liver, 2 tumour); orientations differ from case to case. The
    held-out cases come with segmentations, which LiTS's do not. The same arguments give the same voxels. The folder
    appears only when it is complete.

    Raises:
        FileExistsError: `folder` exists.
        ValueError: fewer than 5 training cases (nnU-Net's cross-validation has five folds), or a negative `test`.
    """
    if training < 5 or test < 0:
        raise ValueError(f"needed are at least 5 training and no negative number of test cases: {training}, {test}")
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; move it away or choose another folder")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for index, case in enumerate(phantom_cases(training + test, seed=seed)):
            held_out = index >= training
            batch = unfinished / (TEST_BATCH if held_out else BATCHES[2 * index // training])
            batch.mkdir(parents=True, exist_ok=True)
            number = index - training if held_out else index
            prefix = "test-" if held_out else ""
            phantom = case.draw()
            _write_volume(batch / f"{prefix}volume-{number}.nii", phantom.image, phantom.affine)
            _write_volume(batch / f"{prefix}segmentation-{number}.nii", phantom.labels, phantom.affine)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_volume(path: Path, voxels: NDArray[np.int16] | NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    volume = nibabel.Nifti1Image(voxels, affine)
    volume.header.set_xyzt_units("mm")
    # Both forms say the same: readers differ in which of them they believe.
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    nibabel.save(volume, path)
