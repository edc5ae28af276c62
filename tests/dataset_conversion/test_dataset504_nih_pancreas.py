"""NIH Pancreas-CT: DICOM series with labels that run the other way in y."""

from pathlib import Path

import numpy as np
import pytest

from nnunet_godc.conversion.geometry import Grid, Volume
from tests.conversion.dicom_files import write_series
from tests.dataset_conversion.layouts import (
    Scan,
    assert_is,
    assert_one_grid,
    assert_same_in_space,
    make_scan,
    read_back,
    write_nifti,
)

UIDS = ("1.3.6.1.4.1.14519.5.2.1.7777.1", "1.3.6.1.4.1.14519.5.2.1.7777.2")


def make_healthy(seed: int, spacing: tuple[float, float, float] = (0.8, 0.8, 1.0)) -> Scan:
    return make_scan(seed, spacing=spacing).without_tumour()


def write_case(root: Path, number: int, scan: Scan, *, header: str) -> None:
    """A series as TCIA's retriever files it, and its label, whose rows run to the front.

    Args:
        header: of the label: ``"empty"`` knows nothing; ``"sizes"`` knows the voxels' sizes and no position;
            ``"honest"`` says where every voxel lies.
    """
    folder = root / "Pancreas-CT" / f"PANCREAS_{number:04d}" / UIDS[0] / UIDS[1]
    write_series(folder, scan.image.voxels, scan.grid, dtype="<i2")
    flipped = scan.label.reoriented("LAS")
    path = root / "TCIA_pancreas_labels-02-05-2017" / f"label{number:04d}.nii.gz"
    if header == "honest":
        write_nifti(path, flipped)
    elif header == "sizes":
        # To the left and to the front: NIfTI's -x and +y.
        write_nifti(path, flipped, affine=np.diag([-scan.grid.spacing[0], *scan.grid.spacing[1:], 1.0]))
    else:
        write_nifti(path, flipped, affine=np.eye(4), sform_code=0, qform_code=0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "NIH"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("header", ["honest", "sizes", "empty"])
def test_flipped_labels_end_where_the_pancreas_is(source: Path, convert, header: str):
    scans = {number: make_healthy(number) for number in (1, 2)}
    for number, scan in scans.items():
        write_case(source, number, scan, header=header)
    result = convert("nih-pancreas", source)
    assert result.status == 0, result.err
    assert result.folder.name == "Dataset504_NIHPancreas"
    assert sorted(result.cases) == ["NIH_0001", "NIH_0002"]
    for number, scan in scans.items():
        name = f"NIH_{number:04d}"
        assert_is(result, name, scan)
        assert_one_grid([result.image(name), result.label(name)])
        assert result.cases[name]["label"]["mean_hu"]["pancreas"] == pytest.approx(
            scan.image.voxels[scan.label.voxels > 0].mean(), abs=0.01
        )
        assert result.cases[name]["warnings"] == []
    assert result.json("dataset.json")["labels"] == {"background": 0, "pancreas": 1}


def test_slices_named_against_their_positions_come_in_the_order_of_positions(source: Path, convert):
    """`write_series` numbers instances and names files from the head downwards."""
    scan = make_healthy(1, spacing=(0.7, 0.7, 0.5))
    write_case(source, 1, scan, header="honest")
    result = convert("nih-pancreas", source, "--orientation", "RAS")
    assert result.status == 0, result.err
    assert_same_in_space(result.image("NIH_0001"), scan.image)
    assert read_back(result.image("NIH_0001")).grid.orientation == "RAS"
    assert read_back(result.image("NIH_0001")).grid.spacing == pytest.approx((0.7, 0.7, 0.5))


def test_a_label_that_lies_the_wrong_way_all_the_same_is_warned_of(source: Path, convert):
    scan = make_healthy(1)
    write_case(source, 1, scan, header="honest")
    # A label whose rows run to the back like the series' own, under a header that knows nothing.
    label = source / "TCIA_pancreas_labels-02-05-2017" / "label0001.nii.gz"
    write_nifti(label, scan.label, affine=np.eye(4), sform_code=0, qform_code=0)
    result = convert("nih-pancreas", source)
    assert result.status == 0, result.err
    assert "with the label mirrored" in result.out
    assert any("mirrored" in warning for warning in result.cases["NIH_0001"]["warnings"])


def test_cases_25_and_70_do_not_exist(source: Path, convert):
    write_case(source, 24, make_healthy(24), header="honest")
    write_case(source, 26, make_healthy(26), header="honest")
    result = convert("nih-pancreas", source)
    assert result.status == 0, result.err
    assert result.err.count("problem") == 0


@pytest.mark.parametrize("number", [25, 70])
def test_cases_that_the_authors_withdrew_are_left_out_with_a_word(source: Path, convert, number: int):
    write_case(source, 1, make_healthy(1), header="honest")
    write_case(source, number, make_healthy(number), header="honest")
    result = convert("nih-pancreas", source)
    assert result.status == 0, result.err
    assert sorted(result.cases) == ["NIH_0001"]
    assert f"case {number} was withdrawn" in result.out


def test_series_without_label_and_label_without_series_are_told(source: Path, convert):
    for number in (1, 2, 3):
        write_case(source, number, make_healthy(number), header="honest")
    (source / "TCIA_pancreas_labels-02-05-2017" / "label0002.nii.gz").unlink()
    (source / "Pancreas-CT" / "PANCREAS_0003").rename(source / "Pancreas-CT" / "elsewhere")
    result = convert("nih-pancreas", source)
    assert result.status == 1
    assert "PANCREAS_0002 has no label0002.nii.gz" in result.err
    assert "label0003 has no folder PANCREAS_0003" in result.err
    assert sorted(result.cases) == ["NIH_0001"]


def test_a_case_that_is_there_twice_is_told_and_none_of_the_two_taken(source: Path, convert):
    for number in (1, 2, 3):
        write_case(source, number, make_healthy(number), header="honest")
    write_series(source / "again" / "PANCREAS_0002", make_healthy(9).image.voxels, make_healthy(9).grid)
    write_nifti(source / "again" / "label0003.nii.gz", make_healthy(9).label)
    result = convert("nih-pancreas", source)
    assert result.status == 1
    assert "PANCREAS_0002 is there 2 times" in result.err
    assert "label 3 is there several times" in result.err
    assert "2 problems" in result.err
    assert sorted(result.cases) == ["NIH_0001"]


def test_a_label_of_another_number_of_slices_is_an_error(source: Path, convert):
    scan = make_healthy(1)
    write_case(source, 1, scan, header="honest")
    grid = Grid((40, 36, 23), scan.grid.spacing, scan.grid.origin, scan.grid.direction)
    short = Volume(scan.label.voxels[:, :, 1:], grid)
    write_nifti(source / "TCIA_pancreas_labels-02-05-2017" / "label0001.nii.gz", short.reoriented("LAS"))
    result = convert("nih-pancreas", source)
    assert result.status == 1
    assert "NIH_0001" in result.err
    assert "40 x 36 x 23" in result.err


def test_a_series_that_lacks_a_slice_is_an_error_and_the_others_go_on(source: Path, convert):
    for number in (1, 2):
        write_case(source, number, make_healthy(number), header="honest")
    sorted((source / "Pancreas-CT" / "PANCREAS_0002").rglob("*.dcm"))[10].unlink()
    result = convert("nih-pancreas", source)
    assert result.status == 1
    assert "NIH_0002: slices are missing" in result.err
    assert sorted(result.cases) == ["NIH_0001"]


def test_there_is_no_tumour_to_keep(source: Path, convert):
    write_case(source, 1, make_healthy(1), header="honest")
    for option in ("--tumour-only", "--regions"):
        result = convert("nih-pancreas", source, option)
        assert result.status == 1
        assert not result.folder.exists()


def test_names_of_dicom_files_and_their_uids_stay_out_of_the_record(source: Path, convert):
    write_case(source, 1, make_healthy(1), header="honest")
    result = convert("nih-pancreas", source)
    text = (result.folder / "conversion.json").read_text()
    assert not any(uid in text for uid in UIDS)
    assert "label0001.nii.gz" in text
