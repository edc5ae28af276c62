"""Reading DICOM series that are written here with the defects of real ones."""

import os
import resource
import subprocess
import sys
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from nnunet_godc.conversion.dicom import pixels as dicom_codecs
from nnunet_godc.conversion.dicom.series import is_dicom, open_series
from nnunet_godc.conversion.problems import CaseError, CaseLog
from tests.conversion.dicom_files import (
    PATIENT,
    UIDS,
    make_grid,
    make_voxels,
    rotation,
    write_enhanced,
    write_segmentation,
    write_series,
)

GRID = make_grid()
VOXELS = make_voxels(GRID.shape)
CODINGS = {
    "j2k": (
        JPEG2000Lossless,
        lambda stored: imagecodecs.jpeg2k_encode(stored, codecformat="J2K", reversible=True, level=0, resolutions=1),
    ),
    "jpeg": (
        JPEGLosslessSV1,
        lambda stored: imagecodecs.jpeg8_encode(stored, lossless=True, predictor=1, bitspersample=16),
    ),
    "jpeg12": (
        JPEGLossless,
        lambda stored: imagecodecs.jpeg8_encode(stored, lossless=True, predictor=4, bitspersample=12),
    ),
    "jpegls": (JPEGLSLossless, imagecodecs.jpegls_encode),
    "rle": (RLELossless, None),
}
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "abdomen_ct"


@pytest.fixture
def notes():
    return CaseLog()


def read(folder, notes, **options):
    """The values and the grid of a series."""
    series = open_series(folder, notes, **options)
    return series.read(), series.grid


def assert_whole(folder, notes, voxels=VOXELS, grid=GRID, **options):
    found, found_grid = read(folder, notes, **options)
    np.testing.assert_array_equal(found, voxels)
    assert found_grid.matches(grid, tolerance=1e-4)
    np.testing.assert_allclose(found_grid.affine, grid.affine, atol=1e-4)


def failure(folder, **options):
    """The sentence that opening or reading a series ends with."""
    with pytest.raises(CaseError) as problem:
        open_series(folder, CaseLog(), **options).read()
    return str(problem.value)


@contextmanager
def memory():
    """What Python and NumPy allocate meanwhile, in bytes."""
    used = {}
    tracemalloc.start()
    try:
        yield used
        used["peak"] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Order and geometry


def test_slices_are_sorted_by_position_not_by_instance_number_or_name(tmp_path, notes):
    files = write_series(tmp_path, VOXELS, GRID)
    assert sorted(files) == files[::-1]
    assert_whole(tmp_path, notes)
    assert open_series(tmp_path, notes).files == tuple(files)
    assert notes == CaseLog()


@pytest.mark.parametrize(
    "direction",
    [
        rotation(0, 0, 0),
        rotation(20, -15, 30),
        rotation(180, 0, 0),
        ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)),
        ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    ],
    ids=["supine", "oblique", "feet first", "prone", "sagittal"],
)
def test_every_voxel_lies_where_its_slice_says(tmp_path, notes, direction):
    grid = make_grid(direction=direction)
    write_series(tmp_path, VOXELS, grid)
    assert_whole(tmp_path, notes, grid=grid)


def test_distance_between_slices_is_not_the_slice_thickness(tmp_path, notes):
    files = write_series(tmp_path, VOXELS, GRID)
    assert pydicom.dcmread(files[0]).SliceThickness == 5
    assert read(tmp_path, notes)[1].spacing == pytest.approx((0.8, 0.9, 2.5))


def test_missing_slice_is_named_by_its_neighbours_and_their_distance(tmp_path):
    write_series(tmp_path, make_voxels((6, 5, 8)), make_grid((6, 5, 8)))[3].unlink()
    assert "2.5 mm usually, but 5 mm between slices 3 and 4 (of 7" in failure(tmp_path)


def test_distance_that_changes_on_the_way_is_an_error(tmp_path):
    def change(dataset, k):
        dataset.ImagePositionPatient[2] = -300 + (2.5 * k if k < 4 else 2.0 * k + 2)

    write_series(tmp_path, make_voxels((6, 5, 8)), make_grid((6, 5, 8)), change=change)
    assert "uneven distances" in failure(tmp_path)


def test_positions_rounded_to_a_tenth_are_evened_and_noted(tmp_path, notes):
    grid = make_grid((6, 5, 8), spacing=(0.8, 0.9, 0.625))

    def change(dataset, k):
        dataset.ImagePositionPatient[2] = round(-300 + 0.625 * k, 1)

    write_series(tmp_path, make_voxels(grid.shape), grid, change=change)
    assert read(tmp_path, notes)[1].spacing[2] == pytest.approx(0.625, abs=0.01)
    assert "uneven slice positions" in notes.repairs[0]


@pytest.mark.parametrize(("degrees", "count"), [(12.0, 4), (1.5, 12)], ids=["obvious", "small but long"])
def test_gantry_tilt_is_an_error_that_names_the_angle(tmp_path, degrees, count):
    grid = make_grid((6, 5, count))

    def change(dataset, k):
        dataset.ImagePositionPatient[1] += 2.5 * k * np.tan(np.radians(degrees))

    write_series(tmp_path, make_voxels(grid.shape), grid, change=change)
    assert f"{degrees:.1f} degrees" in failure(tmp_path)


def test_direction_cosines_that_are_not_quite_orthonormal_are_mended_and_noted(tmp_path, notes):
    def change(dataset, k):
        dataset.ImageOrientationPatient = [1, 0.004, 0, 0.004, 1, 0]

    write_series(tmp_path, VOXELS, GRID, change=change)
    voxels, grid = read(tmp_path, notes)
    np.testing.assert_array_equal(voxels, VOXELS)
    direction = np.array(grid.direction)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    assert "direction matrix" in notes.repairs[0]


def test_direction_cosines_that_are_no_directions_are_an_error(tmp_path):
    def change(dataset, k):
        dataset.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]

    write_series(tmp_path, VOXELS, GRID, change=change)
    assert "direction cosines" in failure(tmp_path)


def test_single_slice_takes_its_thickness_for_the_distance(tmp_path, notes):
    grid = make_grid((6, 5, 1))
    write_series(tmp_path, VOXELS[:, :, :1], grid)
    voxels, found = read(tmp_path, notes)
    np.testing.assert_array_equal(voxels, VOXELS[:, :, :1])
    assert found.spacing == pytest.approx((0.8, 0.9, 5.0))
    assert "SliceThickness of 5 mm" in notes.warnings[0]


def test_single_slice_without_thickness_is_an_error(tmp_path):
    write_series(
        tmp_path, VOXELS[:, :, :1], make_grid((6, 5, 1)), change=lambda dataset, k: dataset.pop("SliceThickness")
    )
    assert "does not say how thick" in failure(tmp_path)


def test_slices_on_top_of_each_other_are_an_error(tmp_path):
    def change(dataset, k):
        dataset.ImagePositionPatient = [0, 0, 0]

    write_series(tmp_path, VOXELS, GRID, change=change)
    assert "share the position" in failure(tmp_path)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("number of rows and columns", {"Rows": 4, "PixelData": b"\0\0" * 24}),
        ("orientation", {"ImageOrientationPatient": [0.998, 0.0632, 0, -0.0632, 0.998, 0]}),
        ("pixel spacing", {"PixelSpacing": [0.95, 0.85]}),
    ],
)
def test_slices_that_differ_from_the_others_are_an_error(tmp_path, what, change):
    def of_one(dataset, k):
        for key, value in change.items() if k == 2 else ():
            setattr(dataset, key, value)

    write_series(tmp_path, VOXELS, GRID, change=of_one)
    assert f"differ in {what} (1 of 4" in failure(tmp_path)


@pytest.mark.parametrize("key", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_slices_that_do_not_say_where_they_lie_are_an_error(tmp_path, key):
    write_series(tmp_path, VOXELS, GRID, change=lambda dataset, k: dataset.pop(key))
    assert "only 4 images without position" in failure(tmp_path)


def test_one_slice_that_does_not_say_where_it_lies_is_an_error(tmp_path):
    write_series(tmp_path, VOXELS, GRID, change=lambda dataset, k: k == 1 and dataset.pop("PixelSpacing"))
    assert failure(tmp_path).startswith("1 of 4 slices do not say")


# Duplicates


def test_slice_that_is_there_twice_is_kept_once_and_noted(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID, SeriesInstanceUID=UIDS + "1", FrameOfReferenceUID=UIDS + "2")
    again = write_series(tmp_path / "again", VOXELS, GRID, SeriesInstanceUID=UIDS + "1")
    for file in again[2:]:
        file.unlink()
    assert_whole(tmp_path, notes)
    assert notes.repairs == ["left out 2 slices that another one repeats exactly"]


def test_different_slices_at_one_position_are_an_error(tmp_path):
    write_series(tmp_path, VOXELS, GRID, SeriesInstanceUID=UIDS + "1")
    write_series(tmp_path / "other", VOXELS + np.int16(1), GRID, SeriesInstanceUID=UIDS + "1")[2].unlink()
    assert "different pixels share the position of slice 1" in failure(tmp_path)


# Several series


def write_two_series(folder, **header):
    larger = make_grid((6, 5, 6), spacing=(0.8, 0.9, 1.25))
    write_series(folder, VOXELS, GRID, number=2, **header)
    write_series(folder / "below", make_voxels(larger.shape, seed=1), larger, number=4, **header)
    return larger


def test_several_series_are_an_error_that_lists_them(tmp_path):
    write_two_series(tmp_path)
    message = failure(tmp_path)
    assert "series 2: 4 slices of 0.8 x 0.9 x 2.5 mm; series 4: 6 slices of 0.8 x 0.9 x 1.25 mm" in message


def test_largest_of_several_series_is_taken_with_a_warning(tmp_path, notes):
    grid = write_two_series(tmp_path)
    assert_whole(tmp_path, notes, make_voxels(grid.shape, seed=1), grid, series="largest")
    assert notes.warnings == ["took the largest of 2 DICOM series: series 4: 6 slices of 0.8 x 0.9 x 1.25 mm"]


def test_series_is_chosen_by_its_number(tmp_path, notes):
    write_two_series(tmp_path)
    assert_whole(tmp_path, notes, series=2)
    assert "no series with series number 3 among: series 2" in failure(tmp_path, series=3)


def test_largest_series_has_to_be_the_only_one_of_its_size(tmp_path):
    write_series(tmp_path, VOXELS, GRID, number=2)
    write_series(tmp_path, VOXELS, GRID, number=4)
    assert "not the only one of its size" in failure(tmp_path, series="largest")


def test_series_without_uid_are_told_apart_by_what_else_differs(tmp_path, notes):
    write_two_series(tmp_path, SeriesInstanceUID="")
    assert failure(tmp_path).startswith("2 DICOM series in one folder")
    assert_whole(tmp_path, notes, series=2)


def test_series_without_uid_and_number_is_one_series(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID, SeriesInstanceUID="", SeriesNumber=None, StudyInstanceUID="", SOPClassUID="")
    assert_whole(tmp_path, notes)


def test_phases_without_series_uid_are_told_apart_by_acquisition(tmp_path):
    write_series(tmp_path, VOXELS, GRID, SeriesInstanceUID="", AcquisitionNumber=1, StudyInstanceUID=UIDS + "1")
    write_series(
        tmp_path / "2",
        VOXELS + np.int16(1),
        GRID,
        SeriesInstanceUID="",
        AcquisitionNumber=2,
        StudyInstanceUID=UIDS + "1",
    )
    assert failure(tmp_path).startswith("2 DICOM series in one folder")


def test_localizers_are_left_out_and_counted(tmp_path, notes):
    uid = UIDS + "1"
    write_series(tmp_path, VOXELS, GRID, SeriesInstanceUID=uid)
    scout = make_grid((9, 7, 1), direction=rotation(90, 0, 0))

    def change(dataset, k):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(tmp_path / "scout", make_voxels(scout.shape), scout, SeriesInstanceUID=uid, change=change)
    assert_whole(tmp_path, notes)
    assert notes.remarks == ["passed over 1 localizer image"]
    assert "only 1 localizer image" in failure(tmp_path / "scout")


def test_other_objects_and_files_in_the_folder_are_passed_over(tmp_path, notes):
    files = write_series(tmp_path, VOXELS, GRID)
    write_segmentation(tmp_path / "seg.dcm", files, {"liver": VOXELS > 0})
    write_series(tmp_path / "pet", VOXELS, GRID, number=7, Modality="PT")
    (tmp_path / "README").write_text("how it was made")
    (tmp_path / "report.txt").write_text("")
    (tmp_path / "._series3-0001.dcm").write_bytes(b"AppleDouble")
    assert_whole(tmp_path, notes)
    passed = "passed over 1 DICOM file without an image, 2 files of other kinds, 4 images of modality PT"
    assert notes == CaseLog(remarks=[passed])


def write_aliens(folder):
    """What a PACS exports along: each refused the whole case once."""
    folder.mkdir(exist_ok=True)

    def picture(dataset, k):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelData = 7, b"\0" * 90
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    def loop(dataset, k):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
        dataset.NumberOfFrames, dataset.PixelData = 2, dataset.PixelData * 2
        del dataset.ImagePositionPatient

    one = make_grid((6, 5, 1))
    write_series(folder, VOXELS[:, :, :1], one, number=501, change=picture)
    write_series(folder, VOXELS[:, :, :1], one, number=6, Modality="US", change=loop)
    write_series(folder, VOXELS, GRID, number=7, Modality="MR")
    (folder / "notes.1").write_text("seen by a colleague")
    os.mkfifo(folder / "pipe.dcm")


def test_aliens_in_the_folder_are_passed_over_and_counted(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID)
    write_aliens(tmp_path)
    assert_whole(tmp_path, notes)
    assert_whole(tmp_path, CaseLog(), series=3)
    assert not notes.warnings
    (remark,) = notes.remarks
    for passed in (
        "1 file of other kinds",
        "4 images of modality MR",
        "1 image of modality US",
        "1 image without a volume",
    ):
        assert passed in remark


def test_a_picture_of_the_screen_in_the_very_series_is_passed_over(tmp_path, notes):
    uid = UIDS + "1"
    write_series(tmp_path, VOXELS, GRID, SeriesInstanceUID=uid)

    def picture(dataset, k):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        del dataset.ImagePositionPatient

    write_series(tmp_path / "dose", VOXELS[:, :, :1], make_grid((6, 5, 1)), SeriesInstanceUID=uid, change=picture)
    assert_whole(tmp_path, notes)


def test_a_fault_in_the_chosen_series_names_series_and_file(tmp_path):
    def change(dataset, k):
        if k == 2:
            dataset.HighBit, dataset.BitsStored = 15, 12

    files = write_series(tmp_path, VOXELS, GRID, change=change)
    with pytest.raises(CaseError, match=r"^series 3: file 2 of 4 .* layout of bits") as problem:
        open_series(tmp_path, CaseLog())
    assert problem.value.file == files[2]


# Files without preamble


def without_preamble(file, *, meta=True):
    """Cuts off DICOM's first 132 bytes, and with them the meta information."""
    content = file.read_bytes()[132:]
    if not meta:
        content = content[12 + int.from_bytes(content[8:12], "little") :]
    bare = file.with_suffix("")
    bare.write_bytes(content)
    file.unlink()
    return bare


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("which", [[0], [3], [0, 1, 2, 3]])
def test_slices_without_preamble_and_suffix_are_read(tmp_path, notes, which, meta):
    """Once they were passed over, and a series without its last slice looks whole."""
    files = write_series(tmp_path, VOXELS, GRID)
    for k in which:
        without_preamble(files[k], meta=meta)
    assert is_dicom(tmp_path)
    assert_whole(tmp_path, notes)
    assert notes == CaseLog()


@pytest.mark.parametrize("meta", [True, False])
def test_a_bare_slice_that_is_cut_off_is_an_error(tmp_path, meta):
    files = write_series(tmp_path, VOXELS, GRID)
    bare = [without_preamble(file, meta=meta) for file in files]
    whole = bare[3].read_bytes()
    for size in (0, 1, 100, 300, len(whole) - 2):
        bare[3].write_bytes(whole[:size])
        assert failure(tmp_path), size


def test_a_deflated_series_is_read(tmp_path, notes):
    for file in write_series(tmp_path, VOXELS, GRID):
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(file)
    assert_whole(tmp_path, notes)


def test_a_transfer_syntax_that_is_not_read_is_named(tmp_path):
    def change(dataset, k):
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
        dataset.PixelData = encapsulate([b"\0" * 60])
        dataset["PixelData"].is_undefined_length = True

    write_series(tmp_path, VOXELS, GRID, change=change)
    message = failure(tmp_path)
    assert "transfer syntax that is not read (MPEG-4" in message
    assert "gdcmconv" in message


# Series


def test_a_series_uid_for_every_file_is_one_series(tmp_path, notes):
    def change(dataset, k):
        dataset.SeriesInstanceUID = f"{UIDS}7.{k + 1}"

    write_series(tmp_path, VOXELS, GRID, change=change)
    assert_whole(tmp_path, notes)
    assert "4 slices name a series each" in notes.remarks[0]


@pytest.mark.parametrize("key", ["AcquisitionNumber", "TemporalPositionIdentifier", "AcquisitionTime"])
def test_two_acquisitions_by_turns_are_an_error(tmp_path, key):
    grid = make_grid((6, 5, 12))
    write_series(
        tmp_path, make_voxels(grid.shape), grid, change=lambda dataset, k: setattr(dataset, key, f"10000{k % 2}")
    )
    assert "2 acquisitions lie interleaved in series 3" in failure(tmp_path)


@pytest.mark.parametrize("number", [lambda k: 1 + k // 6, lambda k: k, lambda k: k // 2])
def test_acquisitions_one_after_the_other_are_one_volume(tmp_path, notes, number):
    grid = make_grid((6, 5, 12))
    voxels = make_voxels(grid.shape)
    write_series(tmp_path, voxels, grid, change=lambda dataset, k: setattr(dataset, "AcquisitionNumber", number(k)))
    assert_whole(tmp_path, notes, voxels, grid)


def test_two_phases_by_turns_are_told_by_their_values_alone(tmp_path, notes):
    """Arterial and venous, in a body that becomes slimmer on the way; with one of them, nothing is amiss."""
    grid = make_grid((40, 40, 24))
    i, j, k = np.ogrid[:40, :40, :24]
    body = (i - 20) ** 2 + (j - 20) ** 2 < (18 - k / 4) ** 2
    noise = np.random.default_rng(0).normal(0, 15, grid.shape)
    one = np.rint(np.where(body, 40, -900) + noise).astype(np.int16)
    write_series(tmp_path / "one", one, grid)
    assert_whole(tmp_path / "one", notes, one, grid)
    both = one + np.int16(30) * (body & (k % 2 == 1))
    write_series(tmp_path / "both", both.astype(np.int16), grid)
    assert "two acquisitions seem to lie interleaved" in failure(tmp_path / "both")


def test_private_objects_are_passed_over_with_a_warning(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID)

    def change(dataset, k):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
        del dataset.Rows, dataset.Columns, dataset.PixelData

    write_series(tmp_path / "private", VOXELS[:, :, :1], make_grid((6, 5, 1)), number=5, change=change)
    assert_whole(tmp_path, notes)
    assert notes.warnings == ["passed over 1 DICOM file of unknown content"]


def test_folder_of_another_modality_is_an_error_that_names_it(tmp_path):
    write_series(tmp_path, VOXELS, GRID, Modality="MR")
    assert "no CT series here, only 4 images of modality MR" in failure(tmp_path)


def test_images_of_unknown_modality_are_passed_over_with_a_warning(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID)
    write_series(tmp_path / "other", VOXELS, GRID, number=5, Modality="DOE")
    assert_whole(tmp_path, notes)
    assert notes.warnings == ["passed over 4 images of unknown modality"]


def test_images_without_a_position_are_left_out_with_a_warning(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID)
    write_series(
        tmp_path / "dose", VOXELS, GRID, number=5, change=lambda dataset, k: dataset.pop("ImagePositionPatient")
    )
    assert_whole(tmp_path, notes)
    assert notes.warnings == ["passed over 4 images without position, direction or spacing"]


def test_missing_modality_is_taken_for_ct_with_a_warning(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID, Modality="")
    assert_whole(tmp_path, notes)
    assert "no modality" in notes.warnings[0]


def test_slice_whose_modality_was_damaged_is_not_passed_over(tmp_path):
    write_series(tmp_path, VOXELS, GRID, change=lambda dataset, k: k == 3 and setattr(dataset, "Modality", "CU"))
    assert "several modalities" in failure(tmp_path)


def test_links_lead_to_files_and_folders_and_not_in_circles(tmp_path, notes):
    real = tmp_path / "Ablage für Ärzte"
    files = write_series(real / "inner", VOXELS, GRID)
    case = tmp_path / "case"
    case.mkdir()
    (case / "folder").symlink_to(real)
    (real / "inner" / "around").symlink_to(real)
    assert_whole(case, notes)
    assert notes == CaseLog()
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in files:
        (linked / file.name).symlink_to(file)
    assert_whole(linked, notes)


def test_folder_without_dicom_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert failure(tmp_path) == "there is no DICOM image here"


def test_dicom_is_told_by_its_preamble(tmp_path):
    files = write_series(tmp_path / "a" / "b", VOXELS, GRID)
    bare = tmp_path / "image"
    bare.write_bytes(files[0].read_bytes())
    (tmp_path / "other.dcm").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert is_dicom(tmp_path / "a")
    assert is_dicom(bare)
    assert not is_dicom(tmp_path / "other.dcm")
    assert not is_dicom(tmp_path / "empty")
    assert not is_dicom(tmp_path / "is not there")


# Values


def test_rescale_that_differs_between_slices_is_applied_to_each(tmp_path, notes):
    def change(dataset, k):
        stored = VOXELS[:, :, k].T.astype(np.int32) + 1024 + 100 * k
        dataset.RescaleIntercept = -1024 - 100 * k
        dataset.PixelData = stored.astype("<u2").tobytes()

    write_series(tmp_path, VOXELS, GRID, change=change)
    assert_whole(tmp_path, notes)
    assert "differs between slices" in notes.warnings[0]


def test_missing_rescale_keeps_the_stored_values_with_a_warning(tmp_path, notes):
    def change(dataset, k):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    write_series(tmp_path, VOXELS, GRID, change=change)
    assert_whole(tmp_path, notes, VOXELS + np.int16(1024))
    assert "stored values taken for Hounsfield units" in notes.warnings[0]


def test_rescale_missing_in_some_slices_is_an_error(tmp_path):
    write_series(tmp_path, VOXELS, GRID, change=lambda dataset, k: k == 2 and dataset.pop("RescaleIntercept"))
    assert failure(tmp_path).startswith("1 of 4 slices (the first is slice 3) have no RescaleSlope")


def test_rescale_slope_of_zero_is_an_error(tmp_path):
    write_series(tmp_path, VOXELS, GRID, change=lambda dataset, k: setattr(dataset, "RescaleSlope", 0))
    assert "RescaleSlope is 0" in failure(tmp_path)


@pytest.mark.parametrize(
    ("slope", "intercept", "stored", "dtype"),
    [
        (1, -1024, "<u2", np.int16),
        (1, 0, "<i2", np.int16),
        (2, -1024, "<u2", np.int16),
        (1, -32768.0, "<u2", np.int16),
        (1, 100000, "<i2", np.int32),
        (0.5, 0, "<i2", np.float32),
        (0.1, -3.3, "<i2", np.float64),
        (1, 0, "<i4", np.int16),
        (1, 2**31, "<i4", np.float64),
    ],
)
def test_values_keep_every_bit_in_the_smallest_type_that_can(tmp_path, notes, slope, intercept, stored, dtype):
    values = np.random.default_rng(3).integers(0, 4096, GRID.shape).astype(stored)

    def change(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelData = np.ascontiguousarray(values[:, :, k].T).tobytes()

    write_series(tmp_path, VOXELS, GRID, change=change, dtype=stored)
    found = read(tmp_path, notes)[0]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values.astype(np.float64) * slope + intercept)


def test_nothing_is_clipped_and_one_large_slice_widens_the_volume(tmp_path, notes):
    voxels = VOXELS.astype(np.int32)
    voxels[0, 0, 2] = 40000
    voxels[1, 0, 0] = -3024
    write_series(tmp_path, voxels, GRID, intercept=-4000)
    found = read(tmp_path, notes)[0]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, voxels)


@pytest.mark.parametrize("signed", [0, 1])
def test_bits_beyond_those_stored_are_no_part_of_the_value(tmp_path, notes, signed):
    values = np.random.default_rng(4).integers(-2048 * signed, 2048, GRID.shape)

    def change(dataset, k):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, signed
        overlay = np.uint16(0xA000)  # of which old scanners used the four bits that are left
        dataset.PixelData = np.ascontiguousarray((values[:, :, k].T.astype(np.uint16) & 0x0FFF) | overlay).tobytes()

    write_series(tmp_path, VOXELS, GRID, change=change, intercept=0)
    np.testing.assert_array_equal(read(tmp_path, notes)[0], values)


def test_padding_is_kept_and_warned_about_where_it_is_absurd(tmp_path, notes):
    voxels = VOXELS.copy()
    voxels[0] = -32768
    write_series(tmp_path, voxels, GRID, intercept=0, dtype="<i2", change=lambda dataset, k: _pad(dataset, -32768))
    assert_whole(tmp_path, notes, voxels)
    assert "hold -32768; kept" in notes.warnings[0]


def test_usual_padding_is_no_warning(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID, dtype="<i2", change=lambda dataset, k: _pad(dataset, -2000))
    assert_whole(tmp_path, notes)
    assert notes == CaseLog()


def _pad(dataset, value):
    dataset.add_new("PixelPaddingValue", "SS", value)


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_compressed_series_have_the_same_values(tmp_path, notes, coding):
    grid = make_grid((24, 20, 3))
    voxels = make_voxels(grid.shape)
    write_series(tmp_path, voxels, grid, change=lambda dataset, k: compress(dataset, *coding))
    assert_whole(tmp_path, notes, voxels, grid)


def compress(dataset, syntax, encode):
    stored = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
    dataset.BitsStored, dataset.HighBit = 12, 11
    if encode is None:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([encode(np.ascontiguousarray(stored))])
        dataset["PixelData"].is_undefined_length = True


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 2, 1]])
def test_enhanced_image_holds_its_frames_by_position(tmp_path, notes, order):
    grid = make_grid(direction=rotation(10, 0, 20))
    write_enhanced(tmp_path / "enhanced.dcm", VOXELS, grid, order)
    assert_whole(tmp_path, notes, grid=grid)
    assert_whole(tmp_path / "enhanced.dcm", notes, grid=grid)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"SamplesPerPixel": 3}, "coloured"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"HighBit": 15, "BitsStored": 12}, "layout of bits"),
        ({"Columns": 60000}, "60000 pixels"),
    ],
)
def test_images_of_another_kind_are_an_error(tmp_path, changes, sentence):
    def change(dataset, k):
        for key, value in changes.items():
            setattr(dataset, key, value)

    write_series(tmp_path, VOXELS, GRID, change=change)
    assert sentence in failure(tmp_path)


def test_images_compressed_with_loss_are_warned_about(tmp_path, notes):
    write_series(tmp_path, VOXELS, GRID, LossyImageCompression="01")
    read(tmp_path, notes)
    assert "with loss" in notes.warnings[0]


# Damage


@pytest.mark.parametrize("size", [0, 1, 131, 400, 900])
def test_slice_that_is_not_whole_is_an_error(tmp_path, size):
    file = write_series(tmp_path, VOXELS, GRID)[3]
    file.write_bytes(file.read_bytes()[:size])
    assert len(failure(tmp_path)) > 20


def test_last_slice_without_its_last_pixel_is_an_error(tmp_path):
    file = write_series(tmp_path, VOXELS, GRID)[3]
    file.write_bytes(file.read_bytes()[:-2])
    assert failure(tmp_path).startswith("slice 4 of 4 cannot be decoded")


def test_broken_link_in_the_place_of_a_slice_is_an_error(tmp_path):
    file = write_series(tmp_path, VOXELS, GRID)[3]
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    assert "named like a DICOM slice" in failure(tmp_path)


def test_compressed_pixels_of_another_size_are_not_even_decoded(tmp_path, monkeypatch):
    def change(dataset, k):
        image = imagecodecs.jpeg2k_encode(np.zeros((400, 500), "u2"), codecformat="J2K", reversible=True, level=0)
        compress(dataset, JPEG2000Lossless, lambda stored: image)

    write_series(tmp_path, VOXELS, GRID, change=change)
    # Which would make room for whatever size the damaged stream claims.
    monkeypatch.setitem(dicom_codecs._DECODERS, JPEG2000Lossless, lambda stream: pytest.fail("decoded"))
    assert "slice 1 of 4 cannot be decoded" in failure(tmp_path)


@pytest.mark.parametrize("coding", ["j2k", "jpeg", "jpegls"])
def test_compressed_pixels_that_break_off_are_an_error(tmp_path, coding):
    """Decoders fill up what is missing, most without a word."""
    syntax, encode = CODINGS[coding]
    grid = make_grid((64, 64, 2))
    write_series(
        tmp_path,
        make_voxels(grid.shape),
        grid,
        change=lambda dataset, k: compress(dataset, syntax, lambda stored: encode(stored)[:-1000]),
    )
    assert "slice 1 of 2 cannot be decoded" in failure(tmp_path)


def test_length_that_a_damaged_header_claims_takes_no_memory(tmp_path):
    file = write_series(tmp_path, VOXELS[:, :, :1], make_grid((6, 5, 1)))[0]
    content = bytearray(file.read_bytes())
    length = content.rindex(b"OW\0\0") + 4
    content[length : length + 4] = (0xF0000000).to_bytes(4, "little")
    file.write_bytes(content)
    series = open_series(tmp_path, CaseLog())
    with memory() as used:
        np.testing.assert_array_equal(series.read(), VOXELS[:, :, :1])  # all of them are there
    assert used["peak"] < 10_000_000


THREE = make_grid((8, 8, 3))


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Three slices as bytes by transfer syntax, to be damaged."""
    voxels = make_voxels(THREE.shape)
    folder = tmp_path_factory.mktemp("intact")
    slices = {}
    for name, coding in {"plain": None, **CODINGS}.items():
        change = coding and (lambda dataset, k, coding=coding: compress(dataset, *coding))
        files = write_series(folder / name, voxels, THREE, change=change)
        slices[name] = [file.read_bytes() for file in files]
    return slices.__getitem__


@settings(max_examples=120, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_ends_in_an_error_or_changes_one_slice_alone(tmp_path, intact, data):
    coding = data.draw(st.sampled_from(["plain", *CODINGS]))
    slices = [bytearray(content) for content in intact(coding)]
    whole = len(slices[1])
    if data.draw(st.integers(0, 4)) == 0:
        del slices[1][data.draw(st.integers(0, whole)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            # Flips hit headers and pixels, and pixels alone.
            place = data.draw(st.integers(128, whole - 1) | st.integers(whole - 200, whole - 1))
            slices[1][place] ^= 1 << data.draw(st.integers(0, 7))
    for number, content in enumerate(slices):
        (tmp_path / f"{number}.dcm").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    notes = CaseLog()
    try:
        series = open_series(tmp_path, notes)
        voxels = series.read()
    except CaseError as problem:
        assert_private(str(problem), tmp_path)
    else:
        if any(warning.startswith(("passed over", "left out")) for warning in notes.warnings):
            return  # a person is told
        assert series.grid.matches(THREE)
        np.testing.assert_array_equal(voxels[:, :, ::2], make_voxels(THREE.shape)[:, :, ::2])
        assert np.isfinite(voxels).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def assert_private(text, folder):
    for value in (*PATIENT.values(), UIDS, str(folder), folder.name):
        assert value not in text


# Privacy and memory


def test_nothing_that_names_the_patient_or_the_place_is_told(tmp_path):
    """Neither what is returned, nor what is printed, logged or warned, with every kind of flaw at once."""
    folder = tmp_path / "Doe_Jane"

    def change(dataset, k):
        dataset.RescaleIntercept = -1024 - k
        dataset.add_new("StationName", "SH", "the station of " + PATIENT["PatientName"])  # too long: pydicom warns
        dataset.PixelData = dataset.PixelData + b"\0\0\0\0"  # too much: pydicom warns

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(folder, VOXELS, GRID, change=change)
    script = (
        "import logging, sys, warnings, traceback; from pathlib import Path\n"
        "logging.basicConfig(level=logging.DEBUG, stream=sys.stdout); warnings.simplefilter('always')\n"
        "from nnunet_godc.conversion.dicom.series import open_series\n"
        "from nnunet_godc.conversion.problems import CaseLog\n"
        "notes = CaseLog(); series = open_series(Path(sys.argv[1]), notes); series.read(); print(series, notes)\n"
        "file = series.files[1]; file.write_bytes(file.read_bytes()[:900])\n"
        "try: open_series(Path(sys.argv[1]), notes).read()\n"
        "except Exception: print(traceback.format_exc(limit=0))\n"
    )
    finished = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert "differs between slices" in finished.stdout
    assert "CaseError: " in finished.stdout
    assert finished.stderr == ""
    assert_private(finished.stdout, tmp_path)
    assert "Doe" not in finished.stdout
    assert "pydicom" not in finished.stdout


def test_warnings_and_logs_of_others_are_as_before_afterwards(tmp_path, notes):
    import logging

    write_series(tmp_path, VOXELS, GRID)
    filters, disabled = list(warnings.filters), logging.root.manager.disable
    mode = pydicom.config.settings.reading_validation_mode
    read(tmp_path, notes)
    assert list(warnings.filters) == filters
    assert logging.root.manager.disable == disabled
    assert pydicom.config.settings.reading_validation_mode == mode


def test_memory_stays_below_three_volumes(tmp_path, notes):
    grid = make_grid((128, 128, 40))
    voxels = make_voxels(grid.shape).astype(np.int32)
    voxels[0, 0, 39] = 50000  # the last slice turns the volume to 32 bits
    write_series(tmp_path, voxels, grid)
    series = open_series(tmp_path, notes)
    with memory() as used:
        found = series.read()
    assert found.dtype == np.int32
    assert used["peak"] < 3 * found.nbytes


# Real data


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/abdomen_ct is not there")
def test_real_series_has_liver_where_its_organ_map_has_it_in_space(notes):
    import nibabel

    series = open_series(REAL / "dicom_series", notes)
    assert series.grid.shape == (512, 512, 20)
    assert series.grid.spacing == pytest.approx((0.9765625, 0.9765625, 2.0))  # SliceThickness says 3
    organs = nibabel.load(REAL / "dicom_series_organs.nii.gz")
    to_lps = np.diag([-1, -1, 1, 1]) @ organs.affine
    liver = np.argwhere(np.asarray(organs.dataobj) == 5)
    voxels = np.column_stack([liver, np.ones(len(liver))]) @ (np.linalg.inv(series.grid.affine) @ to_lps).T
    values = series.read()
    assert values.dtype == np.int16
    assert 80 < values[tuple(np.rint(voxels[:, :3]).astype(int).T)].mean() < 100
    assert values[tuple(liver.T)].mean() < 0  # by array index it is somewhere else
