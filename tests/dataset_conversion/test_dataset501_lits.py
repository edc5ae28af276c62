"""LiTS and Task03_Liver, with every defect that its users report, converted by the command."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_godc.conversion.geometry import Grid, Volume
from nnunet_godc.conversion.nifti import open_nifti
from tests.dataset_conversion.layouts import (
    Scan,
    assert_is,
    assert_one_grid,
    assert_same_in_space,
    make_scan,
    read_back,
    write_decathlon_case,
    write_itk,
    write_lits_case,
    write_nifti,
)

IDENTITY = np.eye(4)
WITHOUT_TUMOUR = (32, 34, 38, 41, 47, 87, 89, 91, 105, 106, 114, 115, 119)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "LiTS"
    folder.mkdir()
    return folder


def broken_geometry(scan: Scan) -> Scan:
    """Where the voxels lie for a program that believes an identity affine: x to the right, y to the front."""
    direction = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
    return scan.on(Grid(scan.grid.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction))


def test_batches_as_downloaded_become_one_dataset(source: Path, convert):
    scans = {number: make_scan(number) for number in (0, 5, 100)}
    write_lits_case(source / "Training Batch 1", 0, scans[0])
    write_lits_case(source / "Training Batch 1", 5, scans[5])
    write_lits_case(source / "Training Batch 2" / "nested", 100, scans[100])
    test = make_scan(70)
    write_nifti(source / "LITS-Challenge-Test-Data" / "test-volume-3.nii", test.image)
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert result.folder.name == "Dataset501_LiTS"
    assert sorted(result.cases) == ["LiTS_000", "LiTS_005", "LiTS_100", "LiTS_test_003"]
    for number, scan in scans.items():
        assert_is(result, f"LiTS_{number:03d}", scan)
        assert_one_grid([result.image(f"LiTS_{number:03d}"), result.label(f"LiTS_{number:03d}")])
    assert_same_in_space(result.folder / "imagesTs" / "LiTS_test_003_0000.nii.gz", test.image)
    assert not (result.folder / "labelsTs").exists()
    description = result.json("dataset.json")
    assert description["labels"] == {"background": 0, "liver": 1, "tumour": 2}
    assert description["channel_names"] == {"0": "CT"}
    assert description["numTraining"] == 3
    assert description["file_ending"] == ".nii.gz"


def test_volumes_apart_from_segmentations_are_paired_by_number(source: Path, convert):
    scan = make_scan(1)
    write_lits_case(source / "volumes", 7, scan, label_folder=source / "segmentations")
    result = convert("lits", source)
    assert result.status == 0
    assert_same_in_space(result.label("LiTS_007"), scan.label)


def test_task03_liver_is_read_as_lits(source: Path, convert):
    scans = {number: make_scan(number) for number in (0, 12)}
    for number, scan in scans.items():
        write_decathlon_case(source / "Task03_Liver", f"liver_{number}", scan)
    write_decathlon_case(source / "Task03_Liver", "liver_132", make_scan(132), test=True)
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert sorted(result.cases) == ["LiTS_000", "LiTS_012", "LiTS_test_132"]
    for number, scan in scans.items():
        assert_is(result, f"LiTS_{number:03d}", scan)


def test_both_layouts_in_one_folder_are_refused(source: Path, convert):
    write_lits_case(source, 0, make_scan(0))
    write_decathlon_case(source / "Task03_Liver", "liver_1", make_scan(1))
    result = convert("lits", source)
    assert result.status == 1
    assert "both" in result.err
    assert not result.folder.exists()


@pytest.fixture
def with_unknown_spacing(source: Path) -> tuple[Path, dict[int, Scan]]:
    """Cases 27 to 29, of which 28 and 29 say the identity at 1 mm, image and segmentation."""
    scans = {number: make_scan(number) for number in (27, 28, 29)}
    write_lits_case(source, 27, scans[27])
    for number in (28, 29):
        write_nifti(source / f"volume-{number}.nii", scans[number].image, affine=IDENTITY)
        write_nifti(source / f"segmentation-{number}.nii", scans[number].label, affine=IDENTITY)
    return source, scans


def test_unknown_spacing_is_an_error_that_names_the_cases_and_three_ways_on(with_unknown_spacing, convert):
    source, scans = with_unknown_spacing
    result = convert("lits", source)
    assert result.status == 1
    for text in ("LiTS_028", "LiTS_029", "--spacing-csv", "--skip-bad-geometry", "--trust-headers"):
        assert text in result.err
    assert "LiTS_027" not in result.err
    assert sorted(result.cases) == ["LiTS_027"]
    assert result.json("dataset.json")["numTraining"] == 1
    assert_same_in_space(result.image("LiTS_027"), scans[27].image)


def test_first_way_on_true_spacings_from_a_table(with_unknown_spacing, convert, tmp_path: Path):
    source, scans = with_unknown_spacing
    table = tmp_path / "spacings.csv"
    table.write_text("case,x,y,z\nLiTS_028,0.7,0.7,1.6\nLiTS_029,0.8,0.9,1.25\n")
    result = convert("lits", source, "--spacing-csv", table)
    assert result.status == 0, result.err
    for number, spacing in ((28, (0.7, 0.7, 1.6)), (29, (0.8, 0.9, 1.25))):
        told = broken_geometry(scans[number])
        told = told.on(replace(told.grid, spacing=spacing))
        assert_is(result, f"LiTS_{number:03d}", told)
        assert any("spacing" in repair for repair in result.cases[f"LiTS_{number:03d}"]["repairs"])
        ml = np.count_nonzero(scans[number].label.voxels == 2) * np.prod(spacing) / 1000
        assert result.cases[f"LiTS_{number:03d}"]["label"]["ml"]["tumour"] == pytest.approx(ml, abs=1e-3)


def test_a_table_of_spacings_for_some_leaves_the_others_an_error(with_unknown_spacing, convert, tmp_path: Path):
    table = tmp_path / "spacings.csv"
    table.write_text("case;x;y;z\nLiTS_028;0,7;0,7;1,6\n")
    result = convert("lits", with_unknown_spacing[0], "--spacing-csv", table)
    assert result.status == 1
    assert "LiTS_029" in result.err
    assert "LiTS_028" not in result.err
    assert sorted(result.cases) == ["LiTS_027", "LiTS_028"]


def test_second_way_on_leaving_those_cases_out(with_unknown_spacing, convert):
    result = convert("lits", with_unknown_spacing[0], "--skip-bad-geometry")
    assert result.status == 0, result.err
    assert sorted(result.cases) == ["LiTS_027"]
    assert "LiTS_028, LiTS_029" in result.out
    assert result.json("conversion.json")["left_out"] == ["LiTS_028", "LiTS_029"]
    assert sorted(path.name for path in (result.folder / "imagesTr").iterdir()) == ["LiTS_027_0000.nii.gz"]


def test_third_way_on_taking_the_headers_for_true(with_unknown_spacing, convert):
    source, scans = with_unknown_spacing
    result = convert("lits", source, "--trust-headers")
    assert result.status == 0, result.err
    assert_is(result, "LiTS_028", broken_geometry(scans[28]))
    assert any("preview" in warning for warning in result.cases["LiTS_028"]["warnings"])


@pytest.mark.parametrize(
    "affine",
    [IDENTITY, np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([-0.8, -0.8, 2.5, 1.0])],
    ids=["identity", "other spacing", "foreign origin"],
)
def test_segmentation_with_another_affine_takes_its_images_geometry(source: Path, convert, affine):
    """Case 53."""
    scan = make_scan(53)
    write_nifti(source / "volume-53.nii", scan.image)
    write_nifti(source / "segmentation-53.nii", scan.label, affine=affine)
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_is(result, "LiTS_053", scan)
    assert_one_grid([result.image("LiTS_053"), result.label("LiTS_053")])
    assert any("geometry" in repair for repair in result.cases["LiTS_053"]["repairs"])


def test_segmentation_of_another_shape_is_an_error_and_the_other_cases_go_on(source: Path, convert):
    good, bad = make_scan(1), make_scan(2)
    write_lits_case(source, 1, good)
    write_nifti(source / "volume-2.nii", bad.image)
    write_nifti(source / "segmentation-2.nii", make_scan(2, shape=(40, 36, 23)).label)
    result = convert("lits", source)
    assert result.status == 1
    assert "LiTS_002" in result.err
    assert "40 x 36 x 24" in result.err
    assert "40 x 36 x 23" in result.err
    assert sorted(result.cases) == ["LiTS_001"]
    assert result.json("conversion.json")["problems"]
    assert not list(result.folder.glob("*/*002*"))


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_mixed_orientations_leave_in_one_with_image_and_label_together(source: Path, convert, orientation: str):
    stored = {0: "LPS", 1: "RAS", 2: "LPI", 3: "RAI", 4: "SAR", 5: "PLS"}
    scans = {number: make_scan(number) for number in stored}
    for number, own in stored.items():
        write_lits_case(source, number, scans[number].reoriented(own))
    result = convert("lits", source, "--orientation", orientation)
    assert result.status == 0, result.err
    for number in stored:
        name = f"LiTS_{number:03d}"
        assert_is(result, name, scans[number])
        assert read_back(result.image(name)).grid.orientation == orientation
        assert read_back(result.label(name)).grid.orientation == orientation
        assert result.cases[name]["geometry"]["image"]["orientation"] == stored[number]
        assert result.cases[name]["geometry"]["after"]["orientation"] == orientation


def test_image_and_segmentation_stored_in_different_orientations_meet_in_the_patient(source: Path, convert):
    scan = make_scan(9)
    write_nifti(source / "volume-9.nii", scan.image.reoriented("LPI"))
    write_nifti(source / "segmentation-9.nii", scan.label.reoriented("RAS"))
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_is(result, "LiTS_009", scan)


def test_oblique_volumes_stay_oblique(source: Path, convert):
    angle = np.radians(12)
    direction = ((np.cos(angle), -np.sin(angle), 0.0), (np.sin(angle), np.cos(angle), 0.0), (0.0, 0.0, 1.0))
    scan = make_scan(4)
    scan = scan.on(replace(scan.grid, direction=direction))
    write_lits_case(source, 4, scan.reoriented("RAI"))
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_is(result, "LiTS_004", scan)


def test_a_direction_matrix_that_itk_refuses_is_repaired_and_recorded(source: Path, convert):
    """ "ITK only supports orthonormal direction cosines": axes skewed by half a degree."""
    scan = make_scan(4)
    skewed = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.grid.affine
    skewed[0, 1] = skewed[1, 1] * np.tan(np.radians(0.5))
    for name, volume in (("volume", scan.image), ("segmentation", scan.label)):
        path = write_nifti(source / f"{name}-4.nii", volume, affine=skewed, qform_code=0)
        with pytest.raises(RuntimeError, match="orthonormal"):
            SimpleITK.ReadImage(str(path))
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert any("nearest orthonormal" in repair for repair in result.cases["LiTS_004"]["repairs"])
    np.testing.assert_array_equal(read_back(result.image("LiTS_004")).voxels, scan.image.voxels)
    np.testing.assert_array_equal(read_back(result.label("LiTS_004")).voxels, scan.label.voxels)
    assert_one_grid([result.image("LiTS_004"), result.label("LiTS_004")])
    direction = np.array(read_back(result.image("LiTS_004")).grid.direction)
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_labels_a_little_beside_whole_numbers_are_rounded_and_recorded(source: Path, convert, dtype: str):
    scan = make_scan(3)
    label = scan.label.voxels.astype(dtype)
    label[label == 1] = 0.9999997
    write_nifti(source / "volume-3.nii", scan.image)
    write_nifti(source / "segmentation-3.nii", Volume(label, scan.grid))
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.label("LiTS_003"), scan.label)
    assert read_back(result.label("LiTS_003")).voxels.dtype == np.uint8
    assert any("rounded" in repair for repair in result.cases["LiTS_003"]["repairs"])


def test_a_header_that_says_the_voxels_begin_at_0_is_not_passed_on(source: Path, convert):
    """ITK would take the header for voxels, so the file is no candidate for a link, though all else fits."""
    scan = make_scan(3)
    write_nifti(source / "imagesTr" / "liver_3.nii.gz", scan.image, vox_offset=0)
    write_nifti(source / "labelsTr" / "liver_3.nii.gz", scan.label, vox_offset=0)
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_is(result, "LiTS_003", scan)


def test_images_that_nnunet_reads_as_they_are_are_linked_on_demand(source: Path, convert):
    write_decathlon_case(source, "liver_3", make_scan(3))
    result = convert("lits", source, "--link")
    assert result.status == 0, result.err
    assert result.image("LiTS_003").samefile(source / "imagesTr" / "liver_3.nii.gz")
    # Labels are corrected in nnUNet_raw, and the source must not change with them.
    label, stored = result.label("LiTS_003"), source / "labelsTr" / "liver_3.nii.gz"
    assert not label.samefile(stored)


@pytest.mark.parametrize("wrong", [0.5, 1.4, np.nan])
def test_labels_that_were_interpolated_are_an_error(source: Path, convert, wrong: float):
    scan = make_scan(3)
    label = scan.label.voxels.astype(np.float32)
    label[5, 5, 5] = wrong
    write_nifti(source / "volume-3.nii", scan.image)
    write_nifti(source / "segmentation-3.nii", Volume(label, scan.grid))
    result = convert("lits", source)
    assert result.status == 1
    assert "LiTS_003" in result.err
    assert "whole numbers" in result.err
    assert not result.folder.exists()


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "<i8"])
def test_integer_labels_of_any_width_and_byte_order(source: Path, convert, dtype: str):
    scan = make_scan(3)
    write_nifti(source / "volume-3.nii", scan.image)
    header = nibabel.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(np.dtype(dtype))
    affine = np.diag([-1, -1, 1, 1]) @ scan.grid.affine
    nibabel.save(nibabel.Nifti1Image(scan.label.voxels, affine, header), source / "segmentation-3.nii")
    assert open_nifti(source / "segmentation-3.nii").dtype == np.dtype(dtype)
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.label("LiTS_003"), scan.label)


def test_a_value_that_is_no_label_is_an_error_that_counts_it(source: Path, convert):
    scan = make_scan(3)
    label = scan.label.voxels.copy()
    label[0, 0, :4] = 3
    write_lits_case(source, 3, scan.with_label(label))
    result = convert("lits", source)
    assert result.status == 1
    assert "3 (4 voxels)" in result.err


@pytest.mark.parametrize("number", WITHOUT_TUMOUR)
def test_cases_without_tumour_are_legal(source: Path, convert, number: int):
    scan = make_scan(number, shape=(12, 11, 10)).without_tumour()
    write_lits_case(source, number, scan)
    result = convert("lits", source)
    assert result.status == 0, result.err
    record = result.cases[f"LiTS_{number:03d}"]
    assert record["label"]["voxels"]["tumour"] == 0
    assert record["label"]["voxels"]["liver"] > 0
    assert record["warnings"] == []


def test_segmentation_54_is_kept_with_a_warning(source: Path, convert):
    scan = make_scan(54)
    write_lits_case(source, 54, scan)
    result = convert("lits", source)
    assert result.status == 0
    assert "LiTS_054" in result.out
    assert "shifted" in result.out
    assert any("shifted" in warning for warning in result.cases["LiTS_054"]["warnings"])
    assert_same_in_space(result.label("LiTS_054"), scan.label)


@pytest.mark.parametrize("dtype", ["<i2", "<i4", "<f4", "<f8"])
@pytest.mark.parametrize("own", ["LPS", "RAI"])
def test_nothing_is_clipped(source: Path, convert, dtype: str, own: str):
    scan = make_scan(6)
    write_nifti(source / "volume-6.nii", Volume(scan.image.voxels.astype(dtype), scan.grid).reoriented(own))
    write_nifti(source / "segmentation-6.nii", scan.label.reoriented(own))
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.image("LiTS_006"), scan.image)
    voxels = read_back(result.image("LiTS_006")).voxels
    assert (voxels.min(), voxels.max()) == (-3024, 5475)


def test_scaled_integers_become_the_values_that_they_stand_for(source: Path, convert):
    scan = make_scan(6)
    stored = Volume((scan.image.voxels.astype(np.int32) + 1024).astype(np.int16), scan.grid)
    write_nifti(source / "volume-6.nii", stored, scl_inter=-1024)
    write_nifti(source / "segmentation-6.nii", scan.label)
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.image("LiTS_006"), scan.image)
    assert read_back(result.image("LiTS_006")).voxels.dtype == np.int16


def test_an_image_with_nan_is_an_error(source: Path, convert):
    scan = make_scan(6)
    voxels = scan.image.voxels.astype(np.float32)
    voxels[3, 3, 3] = np.nan
    write_nifti(source / "volume-6.nii", Volume(voxels, scan.grid))
    write_nifti(source / "segmentation-6.nii", scan.label)
    result = convert("lits", source)
    assert result.status == 1
    assert "not finite numbers" in result.err


def test_slices_from_0_7_to_5_mm_and_up_to_many_of_them(source: Path, convert):
    scans = {
        0: make_scan(0, shape=(12, 12, 186), spacing=(0.6, 0.6, 0.7)),
        1: make_scan(1, shape=(20, 20, 9), spacing=(0.98, 0.98, 5.0)),
    }
    for number, scan in scans.items():
        write_lits_case(source, number, scan.reoriented("RAS"))
    result = convert("lits", source)
    assert result.status == 0, result.err
    for number, scan in scans.items():
        assert_same_in_space(result.image(f"LiTS_{number:03d}"), scan.image)
        assert read_back(result.image(f"LiTS_{number:03d}")).grid.spacing == pytest.approx(scan.grid.spacing)


def test_files_without_their_partner_are_told_together(source: Path, convert):
    for number in (1, 2, 3):
        write_lits_case(source, number, make_scan(number))
    (source / "segmentation-2.nii").unlink()
    (source / "volume-3.nii").unlink()
    result = convert("lits", source)
    assert result.status == 1
    assert "volume-2.nii has no segmentation" in result.err
    assert "segmentation-3.nii has no image" in result.err
    assert sorted(result.cases) == ["LiTS_001"]


def test_a_volume_that_is_there_twice_is_told(source: Path, convert):
    write_lits_case(source / "Training Batch 1", 1, make_scan(1))
    write_lits_case(source / "Training Batch 2", 1, make_scan(2))
    write_lits_case(source, 4, make_scan(4))
    result = convert("lits", source)
    assert result.status == 1
    assert "Training Batch 1/volume-1.nii" in result.err
    assert "Training Batch 2/volume-1.nii" in result.err
    assert sorted(result.cases) == ["LiTS_004"]


def test_truncated_and_empty_files_do_not_lose_the_others(source: Path, convert):
    for number in (1, 2, 3):
        write_lits_case(source, number, make_scan(number))
    whole = (source / "volume-2.nii").read_bytes()
    (source / "volume-2.nii").write_bytes(whole[: len(whole) // 2])
    (source / "segmentation-3.nii").write_bytes(b"")
    result = convert("lits", source)
    assert result.status == 1
    assert "2 problems" in result.err
    assert "LiTS_002" in result.err
    assert "LiTS_003" in result.err
    assert sorted(result.cases) == ["LiTS_001"]


def test_regions_nest_the_tumour_in_the_liver(source: Path, convert):
    scan = make_scan(0)
    write_lits_case(source, 0, scan)
    result = convert("lits", source, "--regions")
    assert result.status == 0
    description = result.json("dataset.json")
    assert description["labels"] == {"background": 0, "liver": [1, 2], "tumour": 2}
    assert description["regions_class_order"] == [1, 2]
    assert_same_in_space(result.label("LiTS_000"), scan.label)


def test_tumour_only_leaves_the_liver_out(source: Path, convert):
    scan = make_scan(0)
    write_lits_case(source, 0, scan.reoriented("RAS"))
    result = convert("lits", source, "--tumour-only")
    assert result.status == 0
    assert result.json("dataset.json")["labels"] == {"background": 0, "tumour": 1}
    assert_same_in_space(result.label("LiTS_000"), scan.with_label(scan.label.voxels == 2).label)


def test_regions_and_tumour_only_exclude_each_other(source: Path, convert):
    write_lits_case(source, 0, make_scan(0))
    result = convert("lits", source, "--regions", "--tumour-only")
    assert result.status == 1
    assert "exclude" in result.err


def test_dry_run_tells_of_headers_and_writes_nothing(with_unknown_spacing, convert, tmp_path: Path):
    source, _ = with_unknown_spacing
    result = convert("lits", source, "--dry-run")
    assert result.status == 1
    assert "LiTS_027  train  40 x 36 x 24 voxels of 0.8 x 0.8 x 2.5 mm, LPS" in result.out
    assert "LiTS_028" in result.err
    assert not (tmp_path / "raw").exists()


def test_the_source_stays_as_it_was(source: Path, convert):
    write_lits_case(source, 0, make_scan(0).reoriented("RAS"))
    write_lits_case(source, 1, make_scan(1))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    assert convert("lits", source, "--file-ending", ".nii").status == 0
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()} == before


def test_a_target_inside_the_source_is_refused(source: Path, convert):
    write_lits_case(source, 0, make_scan(0))
    result = convert("lits", source, "-o", source / "raw")
    assert result.status == 1
    assert "lies in the source" in result.err
    assert sorted(path.name for path in source.iterdir()) == ["segmentation-0.nii", "volume-0.nii"]


def test_the_script_converts_as_the_command_does(source: Path, tmp_path: Path, run_script: Callable[..., str]):
    scan = make_scan(0)
    write_lits_case(source, 0, scan.reoriented("RAS"))
    run_script("Dataset501_LiTS", "-i", source, "-o", tmp_path / "raw", "-d", "17", "-np", "1")
    folder = tmp_path / "raw" / "Dataset017_LiTS"
    assert_same_in_space(folder / "imagesTr" / "LiTS_000_0000.nii.gz", scan.image)
    assert_same_in_space(folder / "labelsTr" / "LiTS_000.nii.gz", scan.label)


def test_a_single_case_written_by_itk_is_read_as_one_written_by_nibabel(source: Path, convert):
    scan = make_scan(0)
    write_itk(source / "volume-0.nii", scan.image.reoriented("RAI"))
    write_itk(source / "segmentation-0.nii", scan.label.reoriented("RAI"))
    result = convert("lits", source)
    assert result.status == 0, result.err
    assert_is(result, "LiTS_000", scan)


def test_archives_are_refused_with_a_remedy(source: Path, convert, tmp_path: Path):
    write_lits_case(source, 0, make_scan(0))
    archive = shutil.make_archive(str(tmp_path / "archives" / "Training_Batch1"), "zip", source)
    for given in (Path(archive), Path(archive).parent):
        result = convert("lits", given)
        assert result.status == 1
        assert "unpack" in result.err
    assert not (tmp_path / "raw").exists()
