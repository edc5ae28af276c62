"""PANORAMA: many labels, masks of all types, several scans of a patient, and scans that the Decathlon has too."""

from pathlib import Path

import numpy as np
import pytest

from nnunet_godc.conversion.geometry import Volume
from tests.dataset_conversion.layouts import (
    Scan,
    assert_is,
    assert_one_grid,
    assert_same_in_space,
    make_scan,
    read_back,
    write_decathlon_case,
    write_nifti,
    write_panorama_case,
)

SMALL = (14, 12, 10)


def make_panorama(seed: int, **options) -> Scan:
    """A scan with all labels: the parenchyma (4), the lesion (1), and small ducts and vessels beside them."""
    scan = make_scan(seed, **options)
    label = np.choose(scan.label.voxels, (0, 4, 1))
    for value, at in ((2, (0, 1, 1)), (3, (0, 1, 2)), (5, (0, 1, 3)), (6, (0, 1, 4))):
        label[at] = value
    return scan.with_label(label)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "PANORAMA"
    folder.mkdir()
    return folder


def test_batches_and_labels_become_one_dataset(source: Path, convert):
    scans = {"100001_00001": make_panorama(1), "100002_00001": make_panorama(2), "100002_00002": make_panorama(3)}
    for (case, scan), batch in zip(scans.items(), ("batch_1", "batch_1", "batch_2"), strict=True):
        write_panorama_case(source, case, scan, batch=batch)
    result = convert("panorama", source)
    assert result.status == 0, result.err
    assert result.folder.name == "Dataset505_PANORAMA"
    assert sorted(result.cases) == [f"PANORAMA_{case}" for case in scans]
    for case, scan in scans.items():
        assert_is(result, f"PANORAMA_{case}", scan)
        assert result.cases[f"PANORAMA_{case}"]["patient"] == case[:6]
    assert result.json("dataset.json")["labels"] == {
        "background": 0,
        "tumour": 1,
        "veins": 2,
        "arteries": 3,
        "pancreas": 4,
        "pancreatic duct": 5,
        "common bile duct": 6,
    }
    assert "--leave-out-scans-of" in result.out


def test_stray_values_become_background_and_are_recorded(source: Path, convert):
    scan = make_panorama(1)
    label = scan.label.voxels.copy()
    label[0, 0, :3], label[0, 1, 0] = 7, 8
    write_panorama_case(source, "100001_00001", scan.with_label(label))
    result = convert("panorama", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.label("PANORAMA_100001_00001"), scan.label)
    (repair,) = result.cases["PANORAMA_100001_00001"]["repairs"]
    assert "7 (3 voxels), 8 (1 voxels)" in repair


def test_other_unknown_values_are_an_error(source: Path, convert):
    scan = make_panorama(1)
    label = scan.label.voxels.copy()
    label[0, 0, 0] = 9
    write_panorama_case(source, "100001_00001", scan.with_label(label))
    result = convert("panorama", source)
    assert result.status == 1
    assert "9 (1 voxels)" in result.err


@pytest.mark.parametrize("dtype", [np.float64, np.uint16])
def test_masks_of_wide_types_become_bytes(source: Path, convert, dtype: type):
    scan = make_panorama(1)
    write_panorama_case(source, "100001_00001", scan)
    wide = Volume(scan.label.voxels.astype(dtype), scan.grid)
    write_nifti(source / "automatic_labels" / "100001_00001.nii.gz", wide)
    result = convert("panorama", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.label("PANORAMA_100001_00001"), scan.label)
    if dtype is np.float64:
        assert read_back(result.label("PANORAMA_100001_00001")).voxels.dtype == np.uint8


@pytest.mark.parametrize("own", ["LPS", "RAS", "LPI"])
def test_headers_with_qform_alone_are_believed(source: Path, convert, own: str):
    scan = make_panorama(1)
    stored = scan.reoriented(own)
    write_nifti(source / "batch_1" / "100001_00001_0000.nii.gz", stored.image, sform_code=0)
    write_nifti(source / "labels" / "100001_00001.nii.gz", stored.label, sform_code=0)
    result = convert("panorama", source)
    assert result.status == 0, result.err
    assert_is(result, "PANORAMA_100001_00001", scan)


def test_a_label_with_sform_code_0_beside_an_image_with_both_forms(source: Path, convert):
    scan = make_panorama(1)
    write_nifti(source / "batch_1" / "100001_00001_0000.nii.gz", scan.image.reoriented("RAS"))
    write_nifti(source / "labels" / "100001_00001.nii.gz", scan.label, sform_code=0)
    result = convert("panorama", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.label("PANORAMA_100001_00001"), scan.label)
    assert_one_grid([result.image("PANORAMA_100001_00001"), result.label("PANORAMA_100001_00001")])


def test_label_that_knows_no_position_takes_its_images(source: Path, convert):
    """Neither sform nor qform: on the image's array, in its order."""
    scan = make_panorama(1)
    write_nifti(source / "batch_1" / "100001_00001_0000.nii.gz", scan.image)
    write_nifti(source / "labels" / "100001_00001.nii.gz", scan.label, sform_code=0, qform_code=0)
    result = convert("panorama", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.label("PANORAMA_100001_00001"), scan.label)
    assert any("geometry" in warning for warning in result.cases["PANORAMA_100001_00001"]["warnings"])


def test_lps_and_ras_mixed_leave_in_one_orientation(source: Path, convert):
    stored = {"100001_00001": ("LPS", "RAS"), "100002_00001": ("RAS", "LPS"), "100003_00001": ("RAS", "RAS")}
    scans = {case: make_panorama(int(case[5])) for case in stored}
    for case, (image, label) in stored.items():
        write_panorama_case(
            source, case, Scan(scans[case].image.reoriented(image), scans[case].label.reoriented(label))
        )
    result = convert("panorama", source)
    assert result.status == 0, result.err
    for case, scan in scans.items():
        name = f"PANORAMA_{case}"
        assert_is(result, name, scan)
        assert read_back(result.image(name)).grid.orientation == "LPS"


def write_labels_of_both_kinds(source: Path) -> Scan:
    """One image, a model's label, and one drawn by hand; the scan with the latter."""
    scan = make_panorama(1)
    by_hand = scan.label.voxels.copy()
    by_hand[10, 10, 10] = 6
    write_panorama_case(source, "100001_00001", scan, labels="automatic_labels")
    drawn_by_hand = scan.with_label(by_hand)
    write_nifti(source / "manual_labels" / "100001_00001.nii.gz", drawn_by_hand.label)
    return drawn_by_hand


def test_labels_drawn_by_hand_win_over_those_of_a_model(source: Path, convert):
    drawn_by_hand = write_labels_of_both_kinds(source)
    result = convert("panorama", source)
    assert result.status == 0, result.err
    assert "100001_00001 has several labels: the one drawn by hand is taken" in result.out
    assert_same_in_space(result.label("PANORAMA_100001_00001"), drawn_by_hand.label)


def test_a_source_folder_called_manual_makes_no_label_drawn_by_hand(tmp_path: Path, convert):
    source = tmp_path / "manual downloads"
    drawn_by_hand = write_labels_of_both_kinds(source)
    result = convert("panorama", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.label("PANORAMA_100001_00001"), drawn_by_hand.label)


def test_two_labels_of_one_kind_are_an_error(source: Path, convert):
    write_panorama_case(source, "100001_00001", make_panorama(1))
    write_panorama_case(source, "100002_00001", make_panorama(2))
    write_nifti(source / "older" / "100001_00001.nii.gz", make_panorama(3).label)
    write_nifti(source / "older" / "100002_00001_0000.nii.gz", make_panorama(3).image)
    write_panorama_case(source, "100003_00001", make_panorama(3))
    result = convert("panorama", source)
    assert result.status == 1
    assert "the label of 100001_00001 is there several times" in result.err
    assert "the image of 100002_00001 is there several times" in result.err
    assert "2 problems" in result.err
    assert sorted(result.cases) == ["PANORAMA_100003_00001"]


def test_an_image_without_label_is_a_problem_and_a_label_without_image_a_note(source: Path, convert):
    write_panorama_case(source, "100001_00001", make_panorama(1))
    write_nifti(source / "batch_1" / "100002_00001_0000.nii.gz", make_panorama(2).image)
    write_nifti(source / "automatic_labels" / "100003_00001.nii.gz", make_panorama(3).label)
    result = convert("panorama", source)
    assert result.status == 1
    assert "100002_00001 has no label" in result.err
    assert "1 labels have no image here" in result.out
    assert sorted(result.cases) == ["PANORAMA_100001_00001"]


def test_folds_keep_patients_together(source: Path, convert):
    for patient in range(1, 8):
        for study in range(1, 1 + patient % 3 + 1):
            scan = make_panorama(10 * patient + study, shape=SMALL)
            write_panorama_case(source, f"10000{patient}_0000{study}", scan)
    result = convert("panorama", source, "--folds")
    assert result.status == 0, result.err
    folds = result.json("splits_final.json")
    assert len(folds) == 5
    validated = [case for fold in folds for case in fold["val"]]
    assert sorted(validated) == sorted(result.cases)
    for fold in folds:
        assert fold["val"]
        assert {name.split("_")[1] for name in fold["train"]}.isdisjoint(name.split("_")[1] for name in fold["val"])


def test_scans_that_an_msd_dataset_has_are_recognised_in_another_orientation(source: Path, convert, tmp_path: Path):
    shared, own = make_panorama(1), make_panorama(2)
    msd = tmp_path / "MSD"
    for number, scan in ((1, shared), (2, make_panorama(3))):
        label = np.choose(scan.label.voxels, (0, 2, 0, 0, 1, 0, 0))
        write_decathlon_case(msd, f"pancreas_{number:03d}", scan.with_label(label).reoriented("RAS"))
    as_float = Volume(shared.image.voxels.astype(np.float64), shared.grid)
    write_panorama_case(source, "100001_00001", Scan(as_float.reoriented("LPI"), shared.label))
    write_panorama_case(source, "100002_00001", own)
    other = convert("msd-pancreas", msd)
    assert other.status == 0, other.err

    warned = convert("panorama", source, "-d", "600")
    assert warned.status == 0
    assert "1 scans are in Dataset503_MSDPancreas too (PANORAMA_100001_00001)" in warned.out

    result = convert("panorama", source, "--leave-out-scans-of", other.folder)
    assert result.status == 0, result.err
    assert sorted(result.cases) == ["PANORAMA_100002_00001"]
    assert result.json("conversion.json")["left_out"] == ["PANORAMA_100001_00001"]
    assert "left out, as you asked: PANORAMA_100001_00001" in result.out
    assert sorted(path.name for path in (result.folder / "imagesTr").iterdir()) == ["PANORAMA_100002_00001_0000.nii.gz"]
    assert_same_in_space(result.image("PANORAMA_100002_00001"), own.image)


def test_regions_unite_what_belongs_to_the_pancreas(source: Path, convert):
    write_panorama_case(source, "100001_00001", make_panorama(1))
    result = convert("panorama", source, "--regions")
    assert result.status == 0, result.err
    description = result.json("dataset.json")
    assert sorted(description["labels"]["pancreas"]) == [1, 4, 5]
    # nnU-Net turns regions into values by writing them in this order: the pancreas before what lies in it.
    order = [name for name in description["labels"] if name != "background"]
    values = dict(zip(order, description["regions_class_order"], strict=True))
    assert values == {
        "pancreas": 4,
        "tumour": 1,
        "pancreatic duct": 5,
        "veins": 2,
        "arteries": 3,
        "common bile duct": 6,
    }
    assert order[0] == "pancreas"


def test_tumour_only_keeps_the_lesion(source: Path, convert):
    scan = make_panorama(1)
    label = scan.label.voxels.copy()
    label[0, 0, 0] = 7
    write_panorama_case(source, "100001_00001", scan.with_label(label).reoriented("RAS"))
    result = convert("panorama", source, "--tumour-only")
    assert result.status == 0, result.err
    assert result.json("dataset.json")["labels"] == {"background": 0, "tumour": 1}
    assert_same_in_space(result.label("PANORAMA_100001_00001"), scan.with_label(scan.label.voxels == 1).label)
