"""An in-house collection in every format, whose files are named after patients."""

import csv
import os
import re
import shutil
import stat
import unicodedata
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_godc.cli.convert import load_converter
from nnunet_godc.conversion import command
from nnunet_godc.conversion.geometry import Volume
from tests.conversion.dicom_files import (
    PATIENT,
    UIDS,
    make_grid,
    rotation,
    write_segmentation,
    write_series,
    write_structure_set,
)
from tests.dataset_conversion.layouts import (
    Scan,
    assert_is,
    assert_same_in_space,
    make_scan,
    read_back,
    write_itk,
    write_nifti,
)

SMALL = (14, 12, 10)
ALL_TRAIN = ("--test-share", "0")
BOTH_LABELS = ("--label-map", "1=pancreas", "2=tumour")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "Klinikum Süd, Pankreas"
    folder.mkdir()
    return folder


def make_case(seed: int, **options) -> Scan:
    """A scan whose label is the tumour alone."""
    scan = make_scan(seed, **options)
    return scan.with_label(scan.label.voxels == 2)


def oblique(scan: Scan) -> Scan:
    grid = scan.grid
    return scan.on(make_grid(grid.shape, spacing=grid.spacing, origin=grid.origin, direction=rotation(8, -5, 11)))


def write_pair(root: Path, name: str, scan: Scan, ending: str = ".nii.gz") -> None:
    write_itk(root / "images" / f"{name}{ending}", scan.image)
    write_itk(root / "masks" / f"{name}{ending}", scan.label)


def find(root: Path, *options: str):
    """The cases that the converter finds, without converting any."""
    converter = load_converter("pancreas")
    parser = ArgumentParser()
    command.add_arguments(parser, converter)
    return converter.find(root, parser.parse_args(["-i", str(root), *options]))


def by_key(path: Path) -> dict[str, dict[str, str]]:
    """Lines of a key file by image."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr"])
def test_every_volume_format_is_read(source: Path, convert, ending: str):
    scan = oblique(make_case(1))
    write_pair(source, "Anna Schmidt", scan.reoriented("RAI"), ending)
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 0, result.err
    assert result.folder.name == "Dataset502_PancreasTumour"
    assert list(result.cases) == ["PANC_0001"]
    assert_is(result, "PANC_0001", scan)
    assert result.json("dataset.json")["labels"] == {"background": 0, "tumour": 1}


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_a_changed_file_of_voxels_is_noticed_though_its_header_is_the_same(source: Path, convert, ending: str):
    first, second = make_case(1), make_case(1)
    second.image.voxels[5, 5, 5] += 1
    write_pair(source, "a", first, ending)
    assert convert("pancreas", source, *ALL_TRAIN).status == 0
    header = (source / "images" / f"a{ending}").read_bytes()
    write_pair(source, "a", second, ending)
    assert (source / "images" / f"a{ending}").read_bytes().replace(b"\r", b"")[:100] == header[:100]
    refused = convert("pancreas", source, *ALL_TRAIN)
    assert refused.status == 1
    assert "changed since the dataset was converted" in refused.err
    result = convert("pancreas", source, *ALL_TRAIN, "--overwrite")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", second)


def test_formats_may_differ_between_cases_and_between_image_and_mask(source: Path, convert):
    scans = [make_case(seed) for seed in (1, 2, 3)]
    write_itk(source / "images" / "1.nrrd", scans[0].image.reoriented("RAS"))
    write_itk(source / "masks" / "1.mha", scans[0].label.reoriented("LPI"))
    write_nifti(source / "images" / "2.nii", scans[1].image)
    write_itk(source / "masks" / "2.nrrd", scans[1].label)
    write_series(source / "images" / "3", scans[2].image.voxels, scans[2].grid, dtype="<i2")
    write_nifti(source / "masks" / "3.nii.gz", scans[2].label.reoriented("RAS"))
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 0, result.err
    for number, scan in enumerate(scans, start=1):
        assert_is(result, f"PANC_{number:04d}", scan)
        assert read_back(result.image(f"PANC_{number:04d}")).grid.orientation == "LPS"


def test_image_and_mask_side_by_side_are_told_apart_by_the_longer_pattern(source: Path, convert):
    scans = [make_case(seed) for seed in (1, 2)]
    for name, scan in zip(("a", "b"), scans, strict=True):
        write_itk(source / f"{name}.nrrd", scan.image)
        write_itk(source / f"{name}_mask.nrrd", scan.label)
    result = convert("pancreas", source, *ALL_TRAIN, "--image-pattern", "{case}", "--mask-pattern", "{case}_mask")
    assert result.status == 0, result.err
    for number, scan in enumerate(scans, start=1):
        assert_is(result, f"PANC_{number:04d}", scan)


def slicer_header(**names: str) -> dict[str, str]:
    """3D Slicer's entries for segments, from ``v1="name of value 1"``."""
    header = {}
    for number, (value, name) in enumerate(names.items()):
        header[f"Segment{number}_Name"] = name
        header[f"Segment{number}_LabelValue"] = value[1:]
        header[f"Segment{number}_Layer"] = "0"
    return header


def test_slicers_segments_are_taken_by_their_names(source: Path, convert):
    scan = make_scan(1)
    swapped = np.choose(scan.label.voxels, (0, 2, 1)).astype(np.uint8)
    write_itk(source / "images" / "a.nrrd", scan.image)
    header = slicer_header(v1="PDAC Tumor", v2="Pancreas")
    write_itk(source / "masks" / "a.seg.nrrd", Volume(swapped, scan.grid), **header)
    patterns = ("--mask-pattern", "masks/{case}.seg")
    result = convert("pancreas", source, *ALL_TRAIN, *patterns, "--label-map", "pancreas=pancreas", "*tumo*r*=tumour")
    assert result.status == 0, result.err
    assert result.json("dataset.json")["labels"] == {"background": 0, "pancreas": 1, "tumour": 2}
    assert_is(result, "PANC_0001", scan)

    # The default knows the tumour alone, by its name and not by its value 1.
    result = convert("pancreas", source, *ALL_TRAIN, *patterns, "--overwrite")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan.with_label(scan.label.voxels == 2))
    assert any("left out: Pancreas" in warning for warning in result.cases["PANC_0001"]["warnings"])


def test_segments_whose_names_fit_nothing_are_an_error_not_an_empty_label(source: Path, convert):
    scan = make_case(1)
    write_itk(source / "images" / "a.nrrd", scan.image)
    write_itk(source / "masks" / "a.seg.nrrd", scan.label, **slicer_header(v1="Segment_1"))
    patterns = ("--mask-pattern", "masks/{case}.seg")
    result = convert("pancreas", source, *ALL_TRAIN, *patterns)
    assert result.status == 1
    assert "none of the mask's segments (Segment_1) fits the label map" in result.err
    result = convert("pancreas", source, *ALL_TRAIN, *patterns, "--label-map", "segment_*=tumour")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan)


def test_values_are_mapped_to_names_and_numbered_as_they_appear(source: Path, convert):
    scan = make_scan(1)
    stored = np.choose(scan.label.voxels, (0, 7, 3)).astype(np.uint8)
    stored[0, 0, 0] = 9
    write_itk(source / "images" / "a.nrrd", scan.image)
    write_itk(source / "masks" / "a.nrrd", Volume(stored, scan.grid))
    options = ("--label-map", "7=pancreas", "3=tumour", "9=background")
    result = convert("pancreas", source, *ALL_TRAIN, *options, "--regions")
    assert result.status == 0, result.err
    assert result.json("dataset.json")["labels"] == {"background": 0, "pancreas": [1, 2], "tumour": 2}
    assert_is(result, "PANC_0001", scan)


@pytest.mark.parametrize(
    ("others", "becomes"), [(("others=background", "3=tumour"), 0), (("3=tumour", "others=pancreas"), 2)]
)
def test_all_values_that_are_not_named_become_one_label(source: Path, convert, others: tuple[str, str], becomes: int):
    scan = make_scan(1)
    stored = np.choose(scan.label.voxels, (0, 7, 3)).astype(np.uint8)
    stored[0, 0, :2] = 1, 255
    write_itk(source / "images" / "a.nrrd", scan.image)
    write_itk(source / "masks" / "a.nrrd", Volume(stored, scan.grid))
    refused = convert("pancreas", source, *ALL_TRAIN, "--label-map", "3=tumour")
    assert "values that nothing explains" in refused.err
    result = convert("pancreas", source, *ALL_TRAIN, "--label-map", *others)
    assert result.status == 0, result.err
    expected = np.where(stored == 3, 1, np.where(stored == 0, 0, becomes)).astype(np.uint8)
    assert_is(result, "PANC_0001", scan.with_label(expected))


def test_tumour_only_of_a_collection_with_pancreas(source: Path, convert):
    scan = make_scan(1)
    write_pair(source, "a", scan)
    result = convert("pancreas", source, *ALL_TRAIN, *BOTH_LABELS, "--tumour-only")
    assert result.status == 0, result.err
    assert result.json("dataset.json")["labels"] == {"background": 0, "tumour": 1}
    assert_is(result, "PANC_0001", scan.with_label(scan.label.voxels == 2))


def test_tumour_only_where_a_segment_fits_the_pattern_of_another_label_first(source: Path, convert):
    """'pancreas tumour' is pancreas by this map, with and without --tumour-only; and there may be no tumour."""
    scan = make_case(1)
    write_itk(source / "images" / "a.nrrd", scan.image)
    write_itk(source / "masks" / "a.seg.nrrd", scan.label, **slicer_header(v1="pancreas tumour"))
    options = ("--mask-pattern", "masks/{case}.seg", "--label-map", "pancreas*=pancreas", "*tumour=tumour")
    result = convert("pancreas", source, *ALL_TRAIN, *options, "--tumour-only")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan.with_label(np.zeros_like(scan.label.voxels)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label-map", "tumour"), "not of the form FROM=LABEL"),
        (("--label-map", "300=tumour"), "between 1 and 255"),
        (("--label-map", "1=tumour", "01=pancreas"), "an earlier entry gives 1 another label"),
        (("--label-map", "1=background"), "nothing but background"),
        (("--label-map", "others=background"), "nothing but background"),
        (("--test-share", "1"), "not a share"),
        (("--image-pattern", "images/*"), "no {case} in it"),
        (("--mask-pattern", "labels/{case}"), "fits none"),
        (("--csv", "/nowhere/pairs.csv"), "cannot be read"),
        (("--label-map", "1=pancreas", "--tumour-only"), "no tumour label"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_in_a_sentence(source: Path, convert, options, message: str):
    write_pair(source, "a", make_case(1, shape=SMALL))
    result = convert("pancreas", source, *options)
    assert result.status == 1
    assert message in result.err
    assert not result.folder.exists()


def test_a_dicom_series_anywhere_below_the_cases_folder_is_found(source: Path, convert):
    scan = make_case(1)
    write_series(source / "images" / "Müller Jürgen" / "study" / "series", scan.image.voxels, scan.grid, dtype="<i2")
    write_itk(source / "masks" / "Müller Jürgen.nrrd", scan.label)
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan)


def test_dicom_segmentation_with_overlapping_segments_on_an_oblique_series(source: Path, convert):
    scan = oblique(make_scan(1))
    files = write_series(source / "images" / "a", scan.image.voxels, scan.grid, dtype="<i2")
    masks = {
        "Tumor": scan.label.voxels == 2,
        "Pancreas": scan.label.voxels > 0,
        "Spleen": np.roll(scan.label.voxels == 2, 9, axis=0),
    }
    (source / "masks" / "a").mkdir(parents=True)
    write_segmentation(source / "masks" / "a" / "seg.dcm", files, masks)
    options = ("--label-map", "pancreas=pancreas", "tumo*r=tumour")
    for mask_pattern in ("masks/{case}", "masks/{case}/seg"):
        result = convert("pancreas", source, *ALL_TRAIN, *options, "--mask-pattern", mask_pattern, "--overwrite")
        assert result.status == 0, result.err
        assert_is(result, "PANC_0001", scan)
        warnings = result.cases["PANC_0001"]["warnings"]
        assert any("overlap" in warning for warning in warnings)
        assert any("Spleen" in warning for warning in warnings)


def test_structure_set_beside_its_series(source: Path, convert):
    """A box whose contours run through the centres of its outermost voxels."""
    scan = oblique(make_scan(1))
    box = np.zeros(scan.grid.shape, dtype=bool)
    box[10:19, 14:22, 5:12] = True
    files = write_series(source / "Fälle" / "a", scan.image.voxels, scan.grid, dtype="<i2")
    corners = np.array([[10, 14], [18, 14], [18, 21], [10, 21]])
    contours = [
        (scan.grid.affine @ np.column_stack([corners, np.full(4, k), np.ones(4)]).T)[:3].T for k in range(5, 12)
    ]
    write_structure_set(source / "Fälle" / "a" / "RS.structures.dcm", files, {"GTV": contours})
    result = convert(
        "pancreas",
        source,
        *ALL_TRAIN,
        *("--image-pattern", "Fälle/{case}", "--mask-pattern", "Fälle/{case}/RS*", "--label-map", "gtv*=tumour"),
    )
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan.with_label(box))


def test_a_dicom_mask_on_an_image_that_is_no_series_is_an_error(source: Path, convert):
    scan = make_case(1)
    files = write_series(source / "dicom" / "a", scan.image.voxels, scan.grid, dtype="<i2")
    (source / "masks").mkdir()
    write_segmentation(source / "masks" / "a.dcm", files, {"tumour": scan.label.voxels > 0})
    write_itk(source / "images" / "a.nrrd", scan.image)
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 1
    assert "give the series as the image" in result.err


def test_of_several_series_in_a_folder_one_is_chosen_by_number_or_size(source: Path, convert):
    large, small = make_case(1), make_case(2, shape=SMALL)
    small = small.on(replace(small.grid, origin=large.grid.origin))
    folder = source / "images" / "a"
    write_series(folder, large.image.voxels, large.grid, dtype="<i2", number=3)
    write_series(folder, small.image.voxels, small.grid, dtype="<i2", number=5)
    write_itk(source / "masks" / "a.nrrd", small.label)
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 1
    assert "2 DICOM series in one folder" in result.err
    result = convert("pancreas", source, *ALL_TRAIN, "--series", "5")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", small)
    result = convert("pancreas", source, *ALL_TRAIN, "--series", "largest", "--overwrite")
    assert result.status == 0, result.err
    assert_same_in_space(result.image("PANC_0001"), large.image)


def test_masks_on_another_grid_are_resampled_or_laid_on_the_voxels_as_asked(source: Path, convert):
    scan = make_case(1)
    shifted = scan.grid.affine.copy()
    shifted[0, 3] += 3 * scan.grid.spacing[0]
    write_nifti(source / "images" / "a.nii", scan.image)
    # NIfTI's x runs against ours.
    write_nifti(source / "masks" / "a.nii", scan.label, affine=np.diag([-1, -1, 1, 1]) @ shifted)
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan.with_label(np.roll(scan.label.voxels, 3, axis=0)))
    assert any("label moved by (" in warning for warning in result.cases["PANC_0001"]["warnings"])
    assert "--label-grid image [masks/a.nii]" not in result.out
    assert "--label-grid image [images/a.nii]" in result.out
    result = convert("pancreas", source, *ALL_TRAIN, "--label-grid", "image", "--overwrite")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan)


def write_table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_gives_pairs_patients_names_and_parts(source: Path, convert, tmp_path: Path):
    scans = {name: make_case(seed) for seed, name in enumerate(("eins", "zwei", "drei"), start=1)}
    for name, scan in scans.items():
        write_itk(source / f"Ordner {name}" / "ct.nrrd", scan.image.reoriented("RAS"))
        write_itk(source / "Masken" / f"{name}.mha", scan.label)
    table = write_table(
        tmp_path / "Zuordnung.csv",
        "case;image;mask;patient;part",
        "first;Ordner eins/ct.nrrd;Masken/eins.mha;Müller;train",
        ";Ordner zwei/ct.nrrd;Masken/zwei.mha;Müller;train",
        f"third;{source / 'Ordner drei' / 'ct.nrrd'};Masken/drei.mha;Maier;test",
    )
    result = convert("pancreas", source, "--csv", table)
    assert result.status == 0, result.err
    assert sorted(result.cases) == ["PANC_0001", "first", "third"]
    assert_is(result, "first", scans["eins"])
    assert_is(result, "PANC_0001", scans["zwei"])
    assert_is(result, "third", scans["drei"])
    assert result.image("third").parent.name == "imagesTs"
    assert result.label("third").parent.name == "labelsTs"
    assert result.cases["PANC_0001"]["patient"] == result.cases["first"]["patient"] == "first"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "..", "a\\b", ".hidden", "x" * 300])
def test_names_that_leave_the_folder_are_refused(source: Path, convert, tmp_path: Path, name: str):
    write_pair(source, "a", make_case(1, shape=SMALL))
    table = write_table(tmp_path / "pairs.csv", "case,image,mask", f"{name},images/a.nii.gz,masks/a.nii.gz")
    before = sorted(tmp_path.rglob("*"))
    result = convert("pancreas", source, "--csv", table)
    assert result.status == 1
    assert "cannot name a case" in result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_given_to_two_cases_is_refused(source: Path, convert, tmp_path: Path):
    for name in ("a", "b"):
        write_pair(source, name, make_case(1, shape=SMALL))
    lines = [f"{case},images/{name}.nii.gz,masks/{name}.nii.gz" for case, name in (("one", "a"), ("ONE", "b"))]
    result = convert("pancreas", source, "--csv", write_table(tmp_path / "pairs.csv", "case,image,mask", *lines))
    assert result.status == 1
    assert "several cases would be called" in result.err
    assert not (tmp_path / "raw").exists()


def test_lines_without_files_and_files_without_partners_are_told_together(source: Path, convert, tmp_path: Path):
    scan = make_case(1, shape=SMALL)
    write_pair(source, "a", scan)
    write_itk(source / "images" / "Schmidt.nrrd", scan.image)
    write_itk(source / "masks" / "Maier.nrrd", scan.label)
    write_itk(source / "masks" / "Huber.nrrd", scan.label)
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 1
    assert "1 images have no mask" in result.err
    assert "2 masks have no image" in result.err
    assert "[images/Schmidt.nrrd]" in result.err  # for the eyes of whoever has the files
    assert "[masks/Huber.nrrd, masks/Maier.nrrd]" in result.err
    assert not re.search("Schmidt|Maier|Huber", (result.folder / "conversion.json").read_text(encoding="utf-8"))
    assert list(result.cases) == ["PANC_0001"]


def test_a_share_is_set_apart_for_testing_where_that_is_asked_for(source: Path):
    for number in range(174):
        for part in ("images", "masks"):
            (source / part).mkdir(exist_ok=True)
            (source / part / f"{number}.nii.gz").touch()
    listing = find(source)
    assert not any(case.test for case in listing.cases)
    assert any("no case is set apart for testing" in warning for warning in listing.warnings)
    share = ("--test-share", "0.195")
    cases = find(source, *share).cases
    assert (sum(not case.test for case in cases), sum(case.test for case in cases)) == (140, 34)
    drawn = [case.name for case in cases if case.test]
    assert [case.name for case in find(source, *share).cases if case.test] == drawn
    assert [case.name for case in find(source, *share, "--seed", "1").cases if case.test] != drawn


def test_scans_of_a_patient_stay_on_one_side(source: Path):
    for number in range(60):
        for part in ("images", "masks"):
            folder = source / part / f"patient {number % 23}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.nii.gz").touch()
    patterns = ("--image-pattern", "images/{patient}/{case}", "--mask-pattern", "masks/{patient}/{case}")
    cases = find(source, *patterns, "--test-share", "0.2").cases
    assert 0 < sum(case.test for case in cases) < 20
    assert len({case.patient for case in cases}) == 23
    assert {case.patient for case in cases if case.test}.isdisjoint(case.patient for case in cases if not case.test)


def test_folds_keep_the_scans_of_a_patient_together(source: Path, convert):
    for number in range(12):
        scan = make_case(number, shape=SMALL)
        write_nifti(source / "images" / f"P{number % 6}" / f"{number}.nii", scan.image)
        write_nifti(source / "masks" / f"{number}.nii", scan.label)
    result = convert("pancreas", source, *ALL_TRAIN, "--image-pattern", "images/{patient}/{case}", "--folds")
    assert result.status == 0, result.err
    patient = {name: record["patient"] for name, record in result.cases.items()}
    assert len(set(patient.values())) == 6
    folds = result.json("splits_final.json")
    assert len(folds) == 5
    for fold in folds:
        assert {patient[case] for case in fold["train"]}.isdisjoint(patient[case] for case in fold["val"])


def test_the_key_file_is_written_on_demand_for_its_owner_alone(source: Path, convert, tmp_path: Path):
    names = ["Anna Schmidt", "Jörg Müller"]
    for seed, name in enumerate(names):
        write_pair(source, name, make_case(seed, shape=SMALL))
    before = set(tmp_path.rglob("*"))
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 0, result.err
    assert all(path.is_relative_to(tmp_path / "raw") for path in set(tmp_path.rglob("*")) - before)
    assert "--key-file" in result.out

    keys = tmp_path / "keys.csv"
    assert convert("pancreas", source, *ALL_TRAIN, "--key-file", keys, "--dry-run").status == 0
    assert not keys.exists()
    assert convert("pancreas", source, *ALL_TRAIN, "--key-file", keys).status == 0
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert {image: row["case"] for image, row in by_key(keys).items()} == {
        "images/Anna Schmidt.nii.gz": "PANC_0001",
        "images/Jörg Müller.nii.gz": "PANC_0002",
    }


def test_a_key_file_that_is_there_keeps_names_stable(source: Path, convert, tmp_path: Path):
    keys = tmp_path / "keys.csv"
    scans = {name: make_case(seed, shape=SMALL) for seed, name in enumerate("bcad")}
    for name in "bc":
        write_pair(source, name, scans[name])
    assert convert("pancreas", source, *ALL_TRAIN, "--key-file", keys).status == 0
    write_pair(source, "a", scans["a"])
    result = convert("pancreas", source, *ALL_TRAIN, "--key-file", keys)
    assert result.status == 0, result.err
    assert "2 of them taken over" in result.out
    for case, name in (("PANC_0001", "b"), ("PANC_0002", "c"), ("PANC_0003", "a")):
        assert_is(result, case, scans[name])

    # A scan that is away for a while keeps its name, too.
    shutil.move(source / "images" / "b.nii.gz", tmp_path / "b.nii.gz")
    shutil.move(source / "masks" / "b.nii.gz", tmp_path / "b mask.nii.gz")
    write_pair(source, "d", scans["d"])
    assert convert("pancreas", source, *ALL_TRAIN, "--key-file", keys, "--overwrite").status == 0
    shutil.move(tmp_path / "b.nii.gz", source / "images" / "b.nii.gz")
    shutil.move(tmp_path / "b mask.nii.gz", source / "masks" / "b.nii.gz")
    result = convert("pancreas", source, *ALL_TRAIN, "--key-file", keys, "--overwrite")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scans["b"])
    assert_is(result, "PANC_0004", scans["d"])


def test_links_to_files_and_folders_are_followed(source: Path, convert, tmp_path: Path):
    scans = [make_case(seed) for seed in (1, 2)]
    store = tmp_path / "store ü"
    write_series(store / "series", scans[0].image.voxels, scans[0].grid, dtype="<i2")
    write_itk(store / "mask.nrrd", scans[0].label)
    write_nifti(store / "b.nii.gz", scans[1].image)
    for part in ("images", "masks"):
        (source / part).mkdir()
    (source / "images" / "a").symlink_to(store / "series")
    (source / "masks" / "a.nrrd").symlink_to(store / "mask.nrrd")
    (source / "images" / "b.nii.gz").symlink_to(Path(os.path.relpath(store, source / "images")) / "b.nii.gz")
    write_nifti(source / "masks" / "b.nii.gz", scans[1].label)
    (source / "images" / "round").symlink_to(source)
    (source / "images" / "nowhere.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "a way in").symlink_to(source)
    result = convert("pancreas", tmp_path / "a way in", *ALL_TRAIN)
    assert_is(result, "PANC_0001", scans[0])
    assert_is(result, "PANC_0002", scans[1])
    assert not result.image("PANC_0002").is_symlink()
    # The link that leads nowhere is an image without a mask.
    assert result.status == 1
    assert "1 images have no mask" in result.err


def test_broken_cases_are_told_with_their_files_on_the_terminal_alone_and_the_others_go_on(source: Path, convert):
    good = make_case(1)
    write_pair(source, "Anna Schmidt", good)
    write_pair(source, "Bert Huber", make_case(2), ".nrrd")
    whole = (source / "images" / "Bert Huber.nrrd").read_bytes()
    (source / "images" / "Bert Huber.nrrd").write_bytes(whole[:-500])
    files = write_series(source / "images" / "Carla Maier", good.image.voxels, good.grid, dtype="<i2")
    files[7].unlink()
    write_itk(source / "masks" / "Carla Maier.nrrd", good.label)
    result = convert("pancreas", source, *ALL_TRAIN)
    assert result.status == 1
    assert "PANC_0002: the file is damaged" in result.err
    assert "PANC_0003: slices are missing" in result.err
    assert "[images/Bert Huber.nrrd]" in result.err
    assert not re.search("Bert|Huber|Carla|Maier", (result.folder / "conversion.json").read_text(encoding="utf-8"))
    assert list(result.cases) == ["PANC_0001"]
    assert_is(result, "PANC_0001", good)


def test_the_record_knows_contents_but_no_names(source: Path, convert):
    scan = make_case(1)
    write_series(source / "images" / "Anna Schmidt", scan.image.voxels, scan.grid, dtype="<i2")
    write_itk(source / "masks" / "Anna Schmidt.nrrd", scan.label)
    result = convert("pancreas", source, *ALL_TRAIN)
    record = result.cases["PANC_0001"]
    assert len(record["source"]["image"]) == 24
    assert all(len(file["sha256"]) == 64 for file in record["source"]["image"])
    text = (result.folder / "conversion.json").read_text(encoding="utf-8")
    assert not any(told in text for told in ("Schmidt", "Anna", UIDS, *PATIENT.values()))


def test_an_archive_given_as_source_or_as_image_is_refused(source: Path, convert, tmp_path: Path):
    scan = make_case(1, shape=SMALL)
    write_pair(source, "a", scan)
    archive = shutil.make_archive(str(tmp_path / "scans"), "gztar", source / "images")
    result = convert("pancreas", Path(archive))
    assert result.status == 1
    assert "unpack" in result.err

    shutil.copy(archive, source / "images" / "b.tar.gz")
    table = write_table(tmp_path / "pairs.csv", "image,mask", "images/b.tar.gz,masks/a.nii.gz")
    result = convert("pancreas", source, *ALL_TRAIN, "--csv", table)
    assert result.status == 1
    assert "archive; unpack it first" in result.err
    assert not result.folder.exists()


def test_a_mask_for_every_label_in_a_file_of_its_own(source: Path, convert):
    scan = make_scan(1)
    write_itk(source / "images" / "a.nrrd", scan.image)
    folder = source / "masks" / "a"
    write_nifti(folder / "pancreas.nii.gz", Volume((scan.label.voxels > 0).astype(np.uint8), scan.grid))
    tumour = Volume(np.where(scan.label.voxels == 2, 255, 0).astype(np.float32), scan.grid)
    write_itk(folder / "Tumour.mha", tumour.reoriented("RAI"))
    write_nifti(folder / "spleen.nii", Volume(np.zeros_like(scan.label.voxels), scan.grid))
    options = ("--label-map", "pancreas=pancreas", "tumo*r=tumour")
    for number, pattern in enumerate(("masks/{case}/{label}", "{case}/{label}")):
        if number:
            (source / "masks" / "a").rename(source / "a")
        result = convert("pancreas", source, *options, "--mask-pattern", pattern, "--overwrite")
        assert result.status == 0, result.err
        assert_is(result, "PANC_0001", scan)
    table = write_table(source / "pairs.csv", "image,mask", "images/a.nrrd,a")
    result = convert("pancreas", source, *options, "--csv", table, "--overwrite")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan)
    assert len(result.cases["PANC_0001"]["source"]["label"]) == 3
    listed = convert("pancreas", source, *options, "--csv", table, "--overwrite", "--dry-run").out
    assert "masks pancreas, spleen" in listed or "masks Tumour, pancreas, spleen" in listed


def test_a_mask_of_one_label_with_several_values_is_refused(source: Path, convert):
    scan = make_scan(1)
    write_itk(source / "images" / "a.nrrd", scan.image)
    write_itk(source / "masks" / "a" / "tumour.nrrd", scan.label)
    result = convert("pancreas", source, "--mask-pattern", "masks/{case}/{label}")
    assert result.status == 1
    assert "a mask of one label holds several values ([1, 2])" in result.err


def test_overlapping_segments_of_slicer_lie_in_layers(source: Path, convert):
    import SimpleITK

    scan = make_scan(1)
    layers = np.stack([(scan.label.voxels > 0) * 1, (scan.label.voxels == 2) * 1], axis=-1).astype(np.uint8)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(layers.transpose(2, 1, 0, 3)), isVector=True)
    image.SetSpacing(scan.grid.spacing)
    image.SetOrigin(scan.grid.origin)
    for number, name in enumerate(("Pancreas", "Tumor")):
        for key, value in (("Name", name), ("LabelValue", "1"), ("Layer", str(number))):
            image.SetMetaData(f"Segment{number}_{key}", value)
    write_itk(source / "images" / "a.nrrd", scan.image)
    (source / "masks").mkdir()
    for compress in (False, True):
        SimpleITK.WriteImage(image, str(source / "masks" / "a.seg.nrrd"), compress)
        patterns = ("--mask-pattern", "masks/{case}.seg", "--label-map", "pancreas=pancreas", "*tumo*r*=tumour")
        result = convert("pancreas", source, *patterns, "--overwrite")
        assert result.status == 0, result.err
        assert_is(result, "PANC_0001", scan)


def test_masks_as_plain_dicom_series_one_folder_for_each_label(source: Path, convert):
    """As 3D-IRCADb has them, whose masks hold 0 and 255."""
    scan = oblique(make_scan(1))
    write_series(source / "images" / "a", scan.image.voxels, scan.grid, dtype="<i2")
    for name, inside in (("pancreas", scan.label.voxels > 0), ("tumour", scan.label.voxels == 2)):
        voxels = np.where(inside, 255, 0).astype(np.uint8)
        write_series(source / "masks" / "a" / name, voxels, scan.grid, intercept=0, dtype="u1", Modality="OT")
    options = ("--mask-pattern", "masks/{case}/{label}", "--label-map", "pancreas=pancreas", "tumour=tumour")
    result = convert("pancreas", source, *options)
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan)
    single = ("--mask-pattern", "masks/{case}/tumour", "--label-map", "255=tumour", "--overwrite")
    result = convert("pancreas", source, *single)
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan.with_label(scan.label.voxels == 2))


def test_nifti_pairs_are_no_less_a_cohort(source: Path, convert):
    import nibabel

    scan = make_case(1)
    for part, volume in (("images", scan.image), ("masks", scan.label)):
        (source / part).mkdir()
        affine = np.diag([-1, -1, 1, 1]) @ scan.grid.affine
        nibabel.save(nibabel.Nifti1Pair(volume.voxels, affine), source / part / "a.hdr")
    result = convert("pancreas", source)
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan)
    assert len(result.cases["PANC_0001"]["source"]["image"]) == 2
    (source / "images" / "a.img").unlink()
    result = convert("pancreas", source, "--overwrite")
    assert result.status == 1
    assert ".img file" in result.err


def test_a_table_names_series_and_test_cases(source: Path, convert, tmp_path: Path):
    scans = [make_case(1), make_case(2, shape=SMALL)]
    for number, scan in enumerate(scans, start=1):
        write_series(source / "ct", scan.image.voxels, scan.grid, dtype="<i2", number=number)
        write_itk(source / f"{number}.nrrd", scan.label)
    lines = ("image,mask,series,test", "ct,1.nrrd,1,no", "ct,2.nrrd,2,yes")
    result = convert("pancreas", source, "--csv", write_table(tmp_path / "pairs.csv", *lines))
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scans[0])
    assert_is(result, "PANC_0002", scans[1])
    assert result.image("PANC_0002").parent.name == "imagesTs"
    wrong = write_table(tmp_path / "pairs.csv", "image,mask,test", "ct,1.nrrd,perhaps")
    assert "it is yes or no" in convert("pancreas", source, "--csv", wrong).err


def test_patients_are_told_apart_by_the_patient_id_which_is_not_written(source: Path, convert):
    for number in range(4):
        scan = make_case(number, shape=SMALL)
        write_series(
            source / "images" / str(number), scan.image.voxels, scan.grid, dtype="<i2", PatientID=f"SECRET-{number % 3}"
        )
        write_itk(source / "masks" / f"{number}.nrrd", scan.label)
    result = convert("pancreas", source)
    assert result.status == 0, result.err
    patients = [result.cases[f"PANC_{number:04d}"]["patient"] for number in (1, 2, 3, 4)]
    assert patients == ["PANC_0001", "PANC_0002", "PANC_0003", "PANC_0001"]
    assert "4 DICOM scans told apart by their PatientID: 3 patients" in result.out
    assert "SECRET" not in result.out + (result.folder / "conversion.json").read_text(encoding="utf-8")


def test_a_patient_id_that_all_scans_share_tells_nothing(source: Path, convert):
    for number in range(3):
        scan = make_case(number, shape=SMALL)
        write_series(source / "images" / str(number), scan.image.voxels, scan.grid, dtype="<i2", PatientID="ANON-0")
        write_itk(source / "masks" / f"{number}.nrrd", scan.label)
    result = convert("pancreas", source)
    assert result.status == 0, result.err
    assert len({record["patient"] for record in result.cases.values()}) == 3
    assert "all DICOM scans name the same PatientID" in result.out


def test_strict_turns_warnings_into_errors(source: Path, convert):
    scan = make_case(1)
    write_nifti(source / "images" / "a.nii", scan.image)
    write_nifti(source / "masks" / "a.nii", scan.label, affine=np.eye(4))
    result = convert("pancreas", source, "--strict")
    assert result.status == 1
    assert "takes the image's geometry" in result.err
    assert not result.folder.exists()
    assert convert("pancreas", source).status == 0
    # What an earlier run let pass does not pass either.
    assert convert("pancreas", source, "--strict").status == 1


def test_a_label_without_position_on_a_series_is_refused_but_on_demand(source: Path, convert):
    """Whatever order its program gave the voxels: a transposed or flipped label would not be seen."""
    scan = make_case(1)
    write_series(source / "images" / "a", scan.image.voxels, scan.grid, dtype="<i2")
    write_nifti(source / "masks" / "a.nii", scan.label, affine=np.eye(4), sform_code=0, qform_code=0)
    result = convert("pancreas", source)
    assert result.status == 1
    assert "says nothing of its position" in result.err
    result = convert("pancreas", source, "--label-grid", "image")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan)


def test_a_source_is_not_changed_by_whoever_corrects_a_label_in_the_dataset(source: Path, convert):
    scan = make_case(1)
    image = write_nifti(source / "images" / "a.nii", scan.image)
    label = write_nifti(source / "masks" / "a.nii", scan.label)
    result = convert("pancreas", source, "--file-ending", ".nii")
    assert not result.image("PANC_0001").samefile(image)
    assert not result.label("PANC_0001").samefile(label)


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_one_character_or_two(source: Path, convert, tmp_path: Path, stored: str, asked: str):
    scan = make_case(1)
    names = [unicodedata.normalize(form, "Müller") for form in (stored, asked)]
    write_itk(source / "images" / f"{names[0]}.nrrd", scan.image)
    write_itk(source / "masks" / f"{names[1]}.nrrd", scan.label)
    result = convert("pancreas", source)
    assert result.status == 0, result.err
    table = write_table(tmp_path / "pairs.csv", "image,mask", f"images/{names[1]}.nrrd,masks/{names[0]}.nrrd")
    result = convert("pancreas", source, "--csv", table, "--overwrite")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan)


def test_a_dry_run_tells_series_regions_and_values(source: Path, convert):
    scan = make_scan(1)
    files = write_series(source / "images" / "a", scan.image.voxels, scan.grid, dtype="<i2", number=7)
    (source / "masks").mkdir()
    write_segmentation(source / "masks" / "a.dcm", files, {"Tumor [1]": scan.label.voxels == 2})
    write_itk(source / "images" / "b.nrrd", scan.image)
    write_itk(source / "masks" / "b.nrrd", scan.label)
    result = convert("pancreas", source, "--dry-run")
    assert "series 7, regions 'Tumor [1]'" in result.out
    assert "values 1 2" in result.out
    assert not result.folder.exists()
    result = convert("pancreas", source, "--label-map", "tumor [1]=tumour", "1=background", "2=tumour")
    assert result.status == 0, result.err
    assert_is(result, "PANC_0001", scan.with_label(scan.label.voxels == 2))
