"""A real CT in the layouts of all collections, converted and taken by nnU-Net; a real series and its organ map."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_godc.conversion.geometry import Volume, grid_from_affine
from nnunet_godc.conversion.problems import CaseLog
from tests.conversion.dicom_files import write_segmentation, write_series
from tests.dataset_conversion.layouts import (
    Scan,
    assert_same_in_space,
    read_back,
    write_decathlon_case,
    write_itk,
    write_lits_case,
    write_nifti,
    write_panorama_case,
)
from tests.end_to_end.conftest import Workspace

ABDOMEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "abdomen_ct"
SERIES, SERIES_ORGANS = ABDOMEN / "dicom_series", ABDOMEN / "dicom_series_organs.nii.gz"
LIVER, PANCREAS = 5, 7  # in the organ maps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ABDOMEN.is_dir(), reason=f"there is no data in {ABDOMEN}"),
]


def load(path: Path) -> Volume[Any]:
    image = nibabel.load(path)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return Volume(np.asarray(image.dataobj), grid_from_affine(image.shape, lps, CaseLog()))


def with_lesion(ct: Volume[Any], organs: Volume[Any], organ: int, radius: float) -> Scan:
    """The CT with a ball of 30 HU painted into the organ (1), where it is thickest; the ball is 2."""
    inside = organs.voxels == organ
    centre = np.array(np.nonzero(inside)).mean(axis=1)
    corner = np.array(np.nonzero(inside)).T
    nearest = corner[np.argmin(((corner - centre) ** 2).sum(axis=1))]
    distance = np.sqrt(
        sum(
            ((np.arange(n) - at).reshape([-1 if a == axis else 1 for a in range(3)]) * ct.grid.spacing[axis]) ** 2
            for axis, (n, at) in enumerate(zip(ct.grid.shape, nearest, strict=True))
        )
    )
    lesion = inside & (distance < radius)
    assert 20 < np.count_nonzero(lesion) < np.count_nonzero(inside)
    image = np.where(lesion, 30, ct.voxels).astype(np.int16)
    return Scan(Volume(image, ct.grid), Volume(inside.astype(np.uint8) + lesion, ct.grid))


@pytest.fixture(scope="module")
def scans() -> dict[int, list[Scan]]:
    """By organ: the CT, and a part of it, each with a lesion."""
    ct, organs = load(ABDOMEN / "ct_3mm.nii.gz"), load(ABDOMEN / "organs_3mm.nii.gz")
    assert ct.grid == organs.grid
    grid = replace(
        ct.grid,
        shape=(ct.grid.shape[0], ct.grid.shape[1], 90),
        origin=tuple((ct.grid.affine @ (0, 0, 12, 1))[:3].tolist()),
    )
    parts = [(ct, organs), (Volume(ct.voxels[:, :, 12:102], grid), Volume(organs.voxels[:, :, 12:102], grid))]
    return {
        organ: [with_lesion(image, label, organ, radius).reoriented("LPS") for image, label in parts]
        for organ, radius in ((LIVER, 20.0), (PANCREAS, 10.0))
    }


def write_lits(root: Path, scans: list[Scan]) -> None:
    whole, part = scans
    write_lits_case(root / "Training Batch 1", 3, whole.reoriented("RAS"))
    write_nifti(root / "Training Batch 2" / "volume-53.nii", part.image.reoriented("LPI"))
    write_nifti(root / "Training Batch 2" / "segmentation-53.nii", part.label.reoriented("LPI"), affine=np.eye(4))


def write_in_house(root: Path, scans: list[Scan]) -> None:
    whole, part = (tumour_of(scan) for scan in scans)
    write_itk(root / "images" / "a.nrrd", whole.image.reoriented("RAI"))
    write_itk(root / "masks" / "a.mha", whole.label)
    files = write_series(root / "images" / "b", part.image.voxels, part.grid, dtype="<i2")
    write_segmentation(root / "masks" / "b.dcm", files, {"Tumor": part.label.voxels > 0})


def write_msd(root: Path, scans: list[Scan]) -> None:
    for number, scan in enumerate(scans, start=1):
        write_decathlon_case(root / "Task07_Pancreas", f"pancreas_{number:03d}", scan.reoriented("RAS"))


def write_nih(root: Path, scans: list[Scan]) -> None:
    for number, scan in enumerate(scans, start=1):
        folder = root / f"PANCREAS_{number:04d}" / "study" / "series"
        write_series(folder, scan.image.voxels, scan.grid, dtype="<i2")
        label = root / "labels" / f"label{number:04d}.nii.gz"
        flipped = scan.without_tumour().label.reoriented("LAS")
        write_nifti(label, flipped, affine=np.eye(4), sform_code=0, qform_code=0)


def write_panorama(root: Path, scans: list[Scan]) -> None:
    for patient, (scan, own) in enumerate(zip(scans, ("LPS", "RAS"), strict=True), start=100001):
        write_panorama_case(root, f"{patient}_00001", scan.reoriented(own))
        label = as_panorama(scan).label.voxels.astype(np.float64)
        label[0, 0, 0] = 7
        path = root / "automatic_labels" / f"{patient}_00001.nii.gz"
        write_nifti(path, Volume(label, scan.grid).reoriented("RAS"), sform_code=0)


def write_real_series(root: Path, scans: list[Scan]) -> None:
    write_organs(root / "masks" / "a.nii.gz")
    (root / "images").mkdir()
    (root / "images" / "a").symlink_to(SERIES)


def write_real_series_as_nih(root: Path, scans: list[Scan]) -> None:
    """The label's header is emptied: its rows run to the front all the same, the series' to the back."""
    values, affine = write_organs(root / "organs.nii.gz")
    assert nibabel.aff2axcodes(affine) == ("L", "A", "S")
    (root / "labels").mkdir()
    label = nibabel.Nifti1Image((values == LIVER).astype(np.uint8), None)
    nibabel.save(label, root / "labels" / "label0001.nii.gz")
    (root / "PANCREAS_0001").symlink_to(SERIES)


def write_organs(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Liver and pancreas alone of the real organ map, under its own header; its values and affine."""
    organs = nibabel.load(SERIES_ORGANS)
    values = np.asarray(organs.dataobj)
    values = np.where(np.isin(values, (LIVER, PANCREAS)), values, 0).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, organs.affine), path)
    return values, organs.affine


def tumour_of(scan: Scan) -> Scan:
    return scan.with_label(scan.label.voxels == 2)


def as_panorama(scan: Scan) -> Scan:
    return scan.with_label(np.choose(scan.label.voxels, (0, 4, 1)))


TWO_ORGANS = ("--label-map", f"{LIVER}=liver", f"{PANCREAS}=pancreas")
# Dataset's name, what writes its source, the organ with the lesion, and how it is converted.
COLLECTIONS = [
    ("Dataset501_LiTS", write_lits, LIVER, ("lits",)),
    ("Dataset502_PancreasTumour", write_in_house, PANCREAS, ("pancreas", "--test-share", "0")),
    ("Dataset503_MSDPancreas", write_msd, PANCREAS, ("msd-pancreas", "--regions")),
    ("Dataset504_NIHPancreas", write_nih, PANCREAS, ("nih-pancreas",)),
    ("Dataset505_PANORAMA", write_panorama, PANCREAS, ("panorama", "--orientation", "RAS")),
]
REAL_SERIES = [
    ("Dataset512_PancreasTumour", write_real_series, LIVER, ("pancreas", "--test-share", "0", *TWO_ORGANS)),
    ("Dataset514_NIHPancreas", write_real_series_as_nih, LIVER, ("nih-pancreas",)),
]


@pytest.fixture(scope="module")
def raw(
    scans: dict[int, list[Scan]], make_workspace: Callable[[str], Workspace], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """nnUNet_raw with all datasets, which nnU-Net has verified and planned with: one start of it for all."""
    workspace = make_workspace("")
    for dataset, write, organ, (what, *options) in COLLECTIONS + REAL_SERIES:
        source = tmp_path_factory.mktemp("source")
        write(source, scans[organ])
        workspace.run(
            *("nnunet-godc", "convert", what, "-i", source, "-d", dataset[7:10], "-np", "1"),
            *options,
        )
    printed = workspace.run(
        *("nnUNetv2_plan_and_preprocess", "-d", *(dataset[7:10] for dataset, *_ in COLLECTIONS)),
        *("--verify_dataset_integrity", "--no_pp", "-npfp", "1"),
    )
    assert printed.count("verify_dataset_integrity Done") == len(COLLECTIONS)
    # Of an origin or a direction that differs between image and label, nnU-Net only warns.
    assert "warning" not in printed.lower(), printed
    for dataset, *_ in COLLECTIONS:
        plans = json.loads((workspace.preprocessed / dataset / "nnUNetPlans.json").read_text())
        assert "3d_fullres" in plans["configurations"]
    return workspace.raw


def assert_converted(folder: Path, case: str, scan: Scan) -> None:
    assert_same_in_space(folder / "imagesTr" / f"{case}_0000.nii.gz", scan.image)
    assert_same_in_space(folder / "labelsTr" / f"{case}.nii.gz", scan.label)


@pytest.mark.parametrize(
    ("dataset", "organ", "names", "change"),
    [
        ("Dataset501_LiTS", LIVER, ("LiTS_003", "LiTS_053"), lambda scan: scan),
        ("Dataset502_PancreasTumour", PANCREAS, ("PANC_0001", "PANC_0002"), tumour_of),
        ("Dataset503_MSDPancreas", PANCREAS, ("pancreas_001", "pancreas_002"), lambda scan: scan),
        ("Dataset504_NIHPancreas", PANCREAS, ("NIH_0001", "NIH_0002"), Scan.without_tumour),
        ("Dataset505_PANORAMA", PANCREAS, ("PANORAMA_100001_00001", "PANORAMA_100002_00001"), as_panorama),
    ],
)
def test_every_layout_of_a_real_ct_ends_in_a_dataset_that_nnunet_plans_with(
    raw: Path,
    scans: dict[int, list[Scan]],
    dataset: str,
    organ: int,
    names: tuple[str, str],
    change: Callable[[Scan], Scan],
):
    for name, scan in zip(names, scans[organ], strict=True):
        assert_converted(raw / dataset, name, change(scan))


def test_the_liver_of_a_real_series_is_where_its_flipped_organ_map_says(raw: Path):
    folder = raw / "Dataset512_PancreasTumour"
    image = read_back(folder / "imagesTr" / "PANC_0001_0000.nii.gz")
    label = read_back(folder / "labelsTr" / "PANC_0001.nii.gz")
    assert image.grid == label.grid
    assert image.grid.shape == (512, 512, 20)
    assert image.grid.spacing == pytest.approx((0.9765625, 0.9765625, 2.0))
    assert 80 < image.voxels[label.voxels == 1].mean() < 100
    # The map fits in physical space without resampling, so that no voxel is lost.
    values = np.asarray(nibabel.load(SERIES_ORGANS).dataobj)
    assert np.count_nonzero(label.voxels == 1) == np.count_nonzero(values == LIVER)
    assert np.count_nonzero(label.voxels == 2) == np.count_nonzero(values == PANCREAS)


def test_the_same_series_and_map_as_nih_delivers_them(raw: Path):
    folder = raw / "Dataset514_NIHPancreas"
    image = read_back(folder / "imagesTr" / "NIH_0001_0000.nii.gz")
    label = read_back(folder / "labelsTr" / "NIH_0001.nii.gz")
    assert 80 < image.voxels[label.voxels == 1].mean() < 100
