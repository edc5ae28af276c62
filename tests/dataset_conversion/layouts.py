"""Small CT scans of which every voxel is known, written as the collections write theirs; comparison in the patient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from nnunet_godc.conversion.geometry import Grid, Triple, Volume, grid_from_affine
from nnunet_godc.conversion.problems import CaseLog

SHAPE = (40, 36, 24)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Scan:
    """What is in the patient: an organ (1) of about 100 HU, and in it a tumour (2) of about 40 HU.

    Attributes:
        image: int16, LPS; every voxel has noise, so that no flip or shift goes unnoticed.
        label: uint8, on the same grid.
    """

    image: Volume[np.int16]
    label: Volume[np.uint8]

    @property
    def grid(self) -> Grid:
        return self.image.grid

    def with_label(self, label: NDArray[Any]) -> Scan:
        return replace(self, label=Volume(label.astype(np.uint8), self.grid))

    def without_tumour(self) -> Scan:
        return self.with_label(np.minimum(self.label.voxels, 1))

    def on(self, grid: Grid) -> Scan:
        """The same arrays, said to lie elsewhere."""
        return Scan(Volume(self.image.voxels, grid), Volume(self.label.voxels, grid))

    def reoriented(self, orientation: str) -> Scan:
        return Scan(self.image.reoriented(orientation), self.label.reoriented(orientation))


def make_scan(seed: int, shape: tuple[int, int, int] = SHAPE, spacing: Triple = (0.8, 0.8, 2.5)) -> Scan:
    """A patient whose organ lies right, at the back and low, where no mirrored one would."""
    random = np.random.default_rng(seed)
    i, j, k = (
        np.arange(n).reshape([-1 if n_axis == axis else 1 for n_axis in range(3)]) / n for axis, n in enumerate(shape)
    )
    centre = np.array([0.3, 0.6, 0.35]) + random.uniform(-0.03, 0.03, 3)
    distance = np.sqrt((i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2)
    label = (distance < 0.24).astype(np.uint8) + (distance < 0.09)
    body = (i - 0.5) ** 2 + (j - 0.5) ** 2 < 0.22
    tissue = np.where(body, 0, -1000) + np.choose(label, (0, 100, 40))
    image = (tissue + random.integers(-20, 21, shape)).astype(np.int16)
    image[1, 2, 3], image[4, 3, 2] = -3024, 5475  # what LiTS has at its ends
    origin = tuple(random.uniform(-200, 200, 3).round(2).tolist())
    grid = Grid(shape, spacing, origin, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    return Scan(Volume(image, grid), Volume(label, grid))


def write_nifti(path: Path, volume: Volume[Any], *, affine: NDArray[Any] | None = None, **header: Any) -> Path:
    """Write a NIfTI file with nibabel.

    Args:
        affine: what the header says instead of the volume's grid, in NIfTI's RAS.
        header: fields to be set at the end, such as ``sform_code=0``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.voxels, _LPS_TO_RAS @ volume.grid.affine if affine is None else affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.header.set_slope_inter(1, 0)
    image.header["vox_offset"] = 352
    for field, value in header.items():
        image.header[field] = value
    # Straight to the file: nibabel.save would set the header right again.
    stored = image.header.binaryblock + b"\0" * 4 + np.asarray(volume.voxels).tobytes(order="F")
    with nibabel.openers.Opener(str(path), "wb") as file:
        file.write(stored)
    return path


def write_itk(path: Path, volume: Volume[Any], **metadata: str) -> Path:
    """Write NRRD, MetaImage or NIfTI with SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.voxels.transpose(2, 1, 0)))
    image.SetSpacing(volume.grid.spacing)
    image.SetOrigin(volume.grid.origin)
    image.SetDirection([value for row in volume.grid.direction for value in row])
    for key, value in metadata.items():
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


def read_back(path: Path) -> Volume[Any]:
    """A converted file as ITK, and so nnU-Net, sees it."""
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    return Volume(voxels, grid_from_affine(voxels.shape, affine, CaseLog()))


def assert_same_in_space(path: Path, truth: Volume[Any]) -> None:
    """Every voxel of `truth` is in the file, at the same position in the patient, and no other voxel is."""
    found = read_back(path)
    assert found.voxels.size == truth.voxels.size
    indices = np.indices(truth.grid.shape).reshape(3, -1)
    to_found = np.linalg.inv(found.grid.affine) @ truth.grid.affine
    positions = to_found[:3, :3] @ indices + to_found[:3, 3:]
    nearest = np.rint(positions).astype(int)
    assert np.abs(positions - nearest).max() < 0.01
    assert nearest.min() >= 0
    assert (nearest.max(axis=1) < found.voxels.shape).all()
    np.testing.assert_array_equal(found.voxels[tuple(nearest)], truth.voxels[tuple(indices)])


def assert_one_grid(paths: Iterable[Path]) -> None:
    """The files' headers describe the very same grid, to the last bit."""
    headers = []
    for path in paths:
        image = SimpleITK.ReadImage(str(path))
        headers.append((image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()))
    assert headers == headers[:1] * len(headers)


def assert_is(result: Any, case: str, scan: Scan) -> None:
    """A conversion's case is this scan: image and label, on one grid."""
    assert_same_in_space(result.image(case), scan.image)
    assert_same_in_space(result.label(case), scan.label)
    assert_one_grid([result.image(case), result.label(case)])


def write_lits_case(folder: Path, number: int, scan: Scan, *, label_folder: Path | None = None) -> None:
    """``volume-N.nii`` and ``segmentation-N.nii``."""
    write_nifti(folder / f"volume-{number}.nii", scan.image)
    write_nifti((label_folder or folder) / f"segmentation-{number}.nii", scan.label)


def write_decathlon_case(root: Path, name: str, scan: Scan, *, test: bool = False) -> None:
    """``imagesTr/NAME.nii.gz`` and ``labelsTr/NAME.nii.gz``."""
    write_nifti(root / ("imagesTs" if test else "imagesTr") / f"{name}.nii.gz", scan.image)
    if not test:
        write_nifti(root / "labelsTr" / f"{name}.nii.gz", scan.label)


def write_panorama_case(
    root: Path, case: str, scan: Scan, *, batch: str = "batch_1", labels: str = "automatic_labels"
) -> None:
    """``BATCH/PATIENT_STUDY_0000.nii.gz`` and ``LABELS/PATIENT_STUDY.nii.gz``; `scan` with PANORAMA's labels."""
    write_nifti(root / batch / f"{case}_0000.nii.gz", scan.image)
    write_nifti(root / labels / f"{case}.nii.gz", scan.label)
