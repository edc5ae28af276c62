"""The Decathlon's Task07_Pancreas as its tar file leaves it, also on a disk that a Mac has written to."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.dataset_conversion.layouts import (
    assert_is,
    assert_one_grid,
    assert_same_in_space,
    make_scan,
    read_back,
    write_decathlon_case,
    write_nifti,
)

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(100)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "MSD" / "Task07_Pancreas"
    folder.mkdir(parents=True)
    return folder


def test_training_and_test_images_become_one_dataset(source: Path, convert):
    scans = {number: make_scan(number) for number in (1, 4, 280)}
    for number, scan in scans.items():
        write_decathlon_case(source, f"pancreas_{number:03d}", scan.reoriented("RAS"))
    test = make_scan(2)
    write_decathlon_case(source, "pancreas_002", test.reoriented("RAS"), test=True)
    result = convert("msd-pancreas", source.parent)
    assert result.status == 0, result.err
    assert result.folder.name == "Dataset503_MSDPancreas"
    assert sorted(result.cases) == ["pancreas_001", "pancreas_002", "pancreas_004", "pancreas_280"]
    assert sorted(path.name for path in (result.folder / "imagesTs").iterdir()) == ["pancreas_002_0000.nii.gz"]
    for number, scan in scans.items():
        name = f"pancreas_{number:03d}"
        assert_is(result, name, scan)
        assert_one_grid([result.image(name), result.label(name)])
        assert read_back(result.image(name)).grid.orientation == "LPS"
    assert_same_in_space(result.image("pancreas_002"), test.image)
    assert result.json("dataset.json")["labels"] == {"background": 0, "pancreas": 1, "tumour": 2}
    assert result.json("dataset.json")["numTraining"] == 3


def test_what_a_mac_leaves_behind_is_passed_over(source: Path, convert):
    scan = make_scan(1)
    write_decathlon_case(source, "pancreas_001", scan)
    for part in ("imagesTr", "labelsTr"):
        (source / part / "._pancreas_001.nii.gz").write_bytes(APPLE_DOUBLE)
        (source / part / "._pancreas_002.nii.gz").write_bytes(APPLE_DOUBLE)
        (source / part / ".DS_Store").write_bytes(b"\0")
        (source / "__MACOSX" / part).mkdir(parents=True)
        (source / "__MACOSX" / part / "pancreas_001.nii.gz").write_bytes(APPLE_DOUBLE)
    (source / "._dataset.json").write_bytes(APPLE_DOUBLE)
    (source / "dataset.json").write_text("{}")
    result = convert("msd-pancreas", source)
    assert result.status == 0, result.err
    assert sorted(result.cases) == ["pancreas_001"]
    assert_is(result, "pancreas_001", scan)


def test_an_archive_beside_its_content_is_passed_over(source: Path, convert):
    write_decathlon_case(source, "pancreas_001", make_scan(1))
    (source.parent / "Task07_Pancreas.tar").write_bytes(b"never opened")
    result = convert("msd-pancreas", source.parent)
    assert result.status == 0, result.err
    assert sorted(result.cases) == ["pancreas_001"]


def test_an_archive_alone_is_refused(tmp_path: Path, convert):
    archives = tmp_path / "downloads"
    archives.mkdir()
    (archives / "Task07_Pancreas.tar").write_bytes(b"never opened")
    for given in (archives, archives / "Task07_Pancreas.tar"):
        result = convert("msd-pancreas", given)
        assert result.status == 1
        assert "unpack" in result.err
    assert not (tmp_path / "raw").exists()


def test_label_on_another_grid_is_resampled_in_the_patient_and_recorded(source: Path, convert):
    """Labels at twice the image's resolution: every image voxel's centre is the centre of one of theirs."""
    scan = make_scan(1)
    fine = make_scan(1, shape=(79, 71, 47), spacing=(0.4, 0.4, 1.25))
    label = fine.on(replace(fine.grid, origin=scan.grid.origin)).label
    write_nifti(source / "imagesTr" / "pancreas_001.nii.gz", scan.image)
    write_nifti(source / "labelsTr" / "pancreas_001.nii.gz", label.reoriented("RAS"))
    result = convert("msd-pancreas", source)
    assert result.status == 0, result.err
    assert_same_in_space(result.image("pancreas_001"), scan.image)
    at_image_voxels = scan.with_label(label.voxels[::2, ::2, ::2])
    assert_same_in_space(result.label("pancreas_001"), at_image_voxels.label)
    assert any("resampled by nearest neighbour" in text for text in result.cases["pancreas_001"]["warnings"])


def test_label_of_another_patient_far_away_is_an_error(source: Path, convert):
    scan = make_scan(1)
    elsewhere = scan.grid.affine.copy()
    elsewhere[:3, 3] += 1000
    write_nifti(source / "imagesTr" / "pancreas_001.nii.gz", scan.image)
    write_nifti(source / "labelsTr" / "pancreas_001.nii.gz", scan.label, affine=elsewhere)
    result = convert("msd-pancreas", source)
    assert result.status == 1
    assert "outside the image" in result.err


def test_unpaired_and_doubled_files_are_told_together(source: Path, convert):
    for number in (1, 2, 3, 4, 5):
        write_decathlon_case(source, f"pancreas_{number:03d}", make_scan(number, shape=(12, 11, 10)))
    (source / "labelsTr" / "pancreas_002.nii.gz").unlink()
    (source / "imagesTr" / "pancreas_003.nii.gz").unlink()
    write_nifti(source / "labelsTr" / "pancreas_004.nii", make_scan(4, shape=(12, 11, 10)).label)
    write_decathlon_case(source, "pancreas_005", make_scan(5), test=True)
    result = convert("msd-pancreas", source)
    assert result.status == 1
    assert "imagesTr/pancreas_002.nii.gz has no segmentation" in result.err
    assert "labelsTr/pancreas_003.nii.gz has no image" in result.err
    assert "label 4 is there several times" in result.err
    assert "pancreas 5 is a training and a test image" in result.err
    assert "4 problems" in result.err
    assert sorted(result.cases) == ["pancreas_001"]


def test_regions_nest_the_tumour_in_the_pancreas(source: Path, convert):
    write_decathlon_case(source, "pancreas_001", make_scan(1))
    result = convert("msd-pancreas", source, "--regions")
    description = result.json("dataset.json")
    assert description["labels"] == {"background": 0, "pancreas": [1, 2], "tumour": 2}
    assert description["regions_class_order"] == [1, 2]


def test_tumour_only_makes_the_pancreas_background(source: Path, convert):
    scan = make_scan(1)
    write_decathlon_case(source, "pancreas_001", scan)
    result = convert("msd-pancreas", source, "--tumour-only", "--link")
    assert result.json("dataset.json")["labels"] == {"background": 0, "tumour": 1}
    assert_same_in_space(result.label("pancreas_001"), scan.with_label(scan.label.voxels == 2).label)
    # The image is linked all the same, the label is written anew.
    assert result.image("pancreas_001").samefile(source / "imagesTr" / "pancreas_001.nii.gz")


def test_a_second_run_takes_over_what_the_first_converted(source: Path, convert):
    write_decathlon_case(source, "pancreas_001", make_scan(1).reoriented("RAS"))
    first = convert("msd-pancreas", source)
    before = {path.name: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    write_decathlon_case(source, "pancreas_002", make_scan(2).reoriented("RAS"))
    second = convert("msd-pancreas", source)
    assert second.status == 0, second.err
    assert "1 of them taken over" in second.out
    assert sorted(second.cases) == ["pancreas_001", "pancreas_002"]
    for name in ("pancreas_001_0000.nii.gz", "pancreas_001.nii.gz"):
        (path,) = second.folder.rglob(name)
        assert path.read_bytes() == before[name]


def test_five_folds_are_written_where_nnunet_looks_for_them(source: Path, convert, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    for number in range(1, 8):
        write_decathlon_case(source, f"pancreas_{number:03d}", make_scan(number, shape=(12, 11, 10)))
    write_decathlon_case(source, "pancreas_008", make_scan(8, shape=(12, 11, 10)), test=True)
    result = convert("msd-pancreas", source, "--folds", "--seed", "3")
    assert result.status == 0, result.err
    folds = result.json("splits_final.json")
    there = tmp_path / "preprocessed" / "Dataset503_MSDPancreas" / "splits_final.json"
    assert there.read_bytes() == (result.folder / "splits_final.json").read_bytes()
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == [f"pancreas_{n:03d}" for n in range(1, 8)]
