import json

import numpy as np
import pytest
from PIL import Image

from nnunet_godc.conversion import preview
from nnunet_godc.conversion.geometry import IDENTITY, Grid, Volume
from nnunet_godc.conversion.nifti import nifti_header, write_nifti
from nnunet_godc.conversion.preview import OTHER_COLOURS, PROBLEM, TUMOUR_COLOUR, WARNING, write_preview
from nnunet_godc.errors import UserError

# Columns to the left, rows to the back, slices to the head; 36 x 24 mm: a picture of 220 x 147 pixels.
GRID = Grid((48, 32, 10), (0.75, 0.75, 3.0), (-18.0, -12.0, 40.0), IDENTITY)
RIGHT_FRONT = np.s_[4:10, 3:8]
TUMOUR_SLICE = 7


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "Dataset900_Prüfung"
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True)
    describe(folder, {"background": 0, "liver": 1, "tumour": 2})
    return folder


def describe(folder, labels, channel="CT"):
    content = {"channel_names": {"0": channel}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def make_case():
    """Air, a bright block at the patient's right front in all slices; liver around it, a tumour on it in two slices."""
    image = np.full(GRID.shape, -1000, dtype=np.int16)
    image[RIGHT_FRONT] = 1000
    label = np.zeros(GRID.shape, dtype=np.uint8)
    label[2:16, 2:14, 2:9] = 1
    label[5:7, 4:6, TUMOUR_SLICE - 1] = 2
    label[(*RIGHT_FRONT, TUMOUR_SLICE)] = 2
    return image, label


def put(folder, name, image, label, orientation="LPS", part="Tr", grid=GRID):
    for kind, voxels, number in (("images", image, "_0000"), ("labels", label, "")):
        turned = Volume(voxels, grid).reoriented(orientation)
        path = folder / f"{kind}{part}" / f"{name}{number}.nii.gz"
        write_nifti(path, turned.voxels, nifti_header(turned.grid, voxels.dtype), compression=1)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def in_colour(picture, colour):
    """Where a picture has a colour, (rows, columns)."""
    rgb = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return np.abs(picture - rgb).max(axis=2) <= 6


def extent(mask):
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max(), columns.min(), columns.max()


def only_tile(dataset, out, **options):
    """The single case's picture, (rows, columns, 3)."""
    write_preview(dataset, out, **options)
    picture = pixels(out)
    # Air is black and the sheet is not.
    top, bottom, left, right = extent((picture == 0).all(axis=2))
    return picture[top : bottom + 1, left : right + 1]


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAI", "SPL", "PIR", "ASR"])
def test_patient_lies_the_same_way_whatever_the_stored_orientation(dataset, tmp_path, orientation):
    put(dataset, "case", *make_case(), orientation)
    tile = only_tile(dataset, tmp_path / "sheet.png")
    assert tile.shape == (147, 220, 3)
    bright = (tile > 128).all(axis=2)
    bright[60:90] = False  # the letters R and L
    top, bottom, left, right = extent(bright)
    pixel = 220 / 48
    # The right of the patient is on the left, the front at the top.
    assert (left, right + 1) == (pytest.approx(4 * pixel, abs=4), pytest.approx(10 * pixel, abs=4))
    assert (top, bottom + 1) == (pytest.approx(3 * pixel, abs=4), pytest.approx(8 * pixel, abs=4))


@pytest.mark.parametrize("orientation", ["LPS", "SPL"])
def test_contours_go_around_their_labels(dataset, tmp_path, orientation):
    put(dataset, "case", *make_case(), orientation)
    tile = only_tile(dataset, tmp_path / "sheet.png")
    pixel = 220 / 48
    for colour, box in ((TUMOUR_COLOUR, (3, 8, 4, 10)), (OTHER_COLOURS[0], (2, 14, 2, 16))):
        line = in_colour(tile, colour)
        assert extent(line) == pytest.approx([edge * pixel for edge in box], abs=2.5)
        middle = [round((box[0] + box[1]) / 2 * pixel), round((box[2] + box[3]) / 2 * pixel)]
        assert not line[middle[0], middle[1]]


def test_a_flipped_label_lies_elsewhere(dataset, tmp_path):
    image, label = make_case()
    put(dataset, "case", image, label[::-1])
    tile = only_tile(dataset, tmp_path / "sheet.png")
    assert in_colour(tile, TUMOUR_COLOUR).any()
    assert not in_colour(tile, TUMOUR_COLOUR)[:, :110].any()


def test_shown_is_the_slice_with_the_largest_tumour(dataset, tmp_path):
    image, label = make_case()
    image[..., TUMOUR_SLICE] = 1000
    put(dataset, "case", image, label)
    write_preview(dataset, tmp_path / "sheet.png")
    white = (pixels(tmp_path / "sheet.png") > 250).all(axis=2)
    assert white.sum() > 0.8 * 147 * 220


def test_a_single_voxel_of_tumour_is_seen(dataset, tmp_path):
    grid = Grid((512, 512, 2), (0.7, 0.7, 5.0), (0.0, 0.0, 0.0), IDENTITY)
    label = np.zeros(grid.shape, dtype=np.uint8)
    label[300, 100, 1] = 2
    put(dataset, "case", np.full(grid.shape, -1000, np.int16), label, grid=grid)
    tile = only_tile(dataset, tmp_path / "sheet.png")
    top, bottom, left, right = extent(in_colour(tile, TUMOUR_COLOUR))
    assert (top + bottom) / 2 == pytest.approx(100 / 512 * 220, abs=2)
    assert (left + right) / 2 == pytest.approx(300 / 512 * 220, abs=2)


def test_pixels_are_square_in_millimetres(dataset, tmp_path):
    grid = Grid((40, 40, 2), (1.0, 2.0, 5.0), (0.0, 0.0, 0.0), IDENTITY)
    put(dataset, "case", np.full(grid.shape, -1000, np.int16), np.ones(grid.shape, np.uint8), grid=grid)
    assert only_tile(dataset, tmp_path / "sheet.png").shape == (220, 110, 3)


def test_a_region_is_drawn_around_what_it_unites(dataset, tmp_path):
    describe(dataset, {"background": 0, "tumour": 2, "liver": [1, 2]})
    image, label = make_case()
    label[label == 1] = 0
    put(dataset, "case", image, label)
    tile = only_tile(dataset, tmp_path / "sheet.png")
    # Liver and tumour are the same voxels, and the tumour's contour lies on top.
    assert in_colour(tile, TUMOUR_COLOUR).any()
    assert not in_colour(tile, OTHER_COLOURS[0]).any()


def test_without_a_tumour_the_highest_label_is_looked_for(dataset, tmp_path):
    describe(dataset, {"background": 0, "pancreas": 1, "duct": 2, "ignore": 3})
    image, label = make_case()
    label[30:, :, 0] = 3
    put(dataset, "case", image, label)
    assert in_colour(only_tile(dataset, tmp_path / "sheet.png"), TUMOUR_COLOUR).any()  # the duct
    put(dataset, "case", *make_case())
    describe(dataset, {"background": 0, "PDAC lesion": 1, "veins": 2})
    tile = only_tile(dataset, tmp_path / "sheet.png")
    lesion = [edge * 220 / 48 for edge in (2, 14, 2, 16)]
    assert extent(in_colour(tile, TUMOUR_COLOUR)) == pytest.approx(lesion, abs=3)


def test_cases_without_tumour_without_label_and_with_damage_are_told(dataset, tmp_path):
    image, label = make_case()
    put(dataset, "whole", image, label)
    put(dataset, "no_tumour", image, np.minimum(label, 1))
    put(dataset, "empty", image, label * 0, part="Ts")
    for name in ("damaged", "alone", "other_shape", "stray"):
        put(dataset, name, image, label)
    damaged = dataset / "imagesTr" / "damaged_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (dataset / "imagesTr" / "alone_0000.nii.gz").unlink()
    small = Grid((48, 32, 9), GRID.spacing, GRID.origin, IDENTITY)
    write_nifti(
        dataset / "labelsTr" / "other_shape.nii.gz", label[..., 1:], nifti_header(small, label.dtype), compression=1
    )
    write_nifti(dataset / "labelsTr" / "stray.nii.gz", label * 3, nifti_header(GRID, label.dtype), compression=1)
    (dataset / "labelsTr" / "._whole.nii.gz").write_bytes(b"from another system")
    problems = write_preview(dataset, tmp_path / "sheet.png")
    told = dict(problem.split(": ", 1) for problem in problems)
    assert set(told) == {"damaged", "alone", "other_shape", "stray"}
    assert "damaged" in told["damaged"]
    assert "cannot be read" in told["alone"]
    assert "(48, 32, 9)" in told["other_shape"]
    assert "values that nothing explains" in told["stray"]
    assert in_colour(pixels(tmp_path / "sheet.png"), PROBLEM).any()


def test_cases_with_warnings_are_marked(dataset, tmp_path):
    put(dataset, "case", *make_case())
    write_preview(dataset, tmp_path / "without.png")
    record = {"format": 1, "cases": {"case": {"warnings": ["look at this"]}}}
    (dataset / "conversion.json").write_text(json.dumps(record))
    write_preview(dataset, tmp_path / "with.png")
    assert not in_colour(pixels(tmp_path / "without.png"), WARNING).any()
    assert in_colour(pixels(tmp_path / "with.png"), WARNING).any()
    (dataset / "conversion.json").write_text('{"format": 1, "cases": {"case": 3}}')
    with pytest.raises(UserError, match=r"conversion\.json is damaged"):
        write_preview(dataset, tmp_path / "damaged.png")


@pytest.mark.parametrize("columns", [1, 2, None])
def test_many_cases_stand_in_rows(dataset, tmp_path, columns):
    for number in range(11):
        put(dataset, f"case_{number:02}", *make_case())
    write_preview(dataset, tmp_path / "sheet.png", columns=columns)
    air = (pixels(tmp_path / "sheet.png") == 0).all(axis=2)
    assert air.sum() > 11 * 220 * 147 * 0.6
    starts = np.count_nonzero(np.diff(np.concatenate([[0], air.any(axis=1).astype(int)])) == 1)
    assert starts == {1: 11, 2: 6, None: 2}[columns]


def test_an_unfilled_header_does_not_keep_a_case_from_being_shown(dataset, tmp_path):
    grid = Grid(GRID.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    put(dataset, "case", *make_case(), grid=grid)
    assert write_preview(dataset, tmp_path / "sheet.png") == ()


def test_other_modalities_and_values_that_are_no_numbers_are_drawn(dataset, tmp_path):
    describe(dataset, {"background": 0, "tumour": 2, "liver": 1}, channel="MRI")
    image, label = make_case()
    image = image.astype(np.float32)
    image[20:30] = np.nan
    put(dataset, "case", image * 1e-4, label)
    tile = only_tile(dataset, tmp_path / "sheet.png")
    assert (tile[25, 30] > 250).all()


def test_an_axial_slice_is_found_in_whatever_slabs_a_file_is_read(dataset, tmp_path, monkeypatch):
    put(dataset, "case", *make_case(), "SPL")
    at_once = only_tile(dataset, tmp_path / "sheet.png")
    monkeypatch.setattr("nnunet_godc.conversion.nifti.SLAB_BYTES", 2000)
    np.testing.assert_array_equal(only_tile(dataset, tmp_path / "sheet.png"), at_once)


def test_no_half_picture_is_left(dataset, tmp_path, monkeypatch):
    put(dataset, "case", *make_case())
    out = tmp_path / "new folder" / "sheet.png"

    def fill_the_disk(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview.Figure, "savefig", fill_the_disk)
    with pytest.raises(UserError, match=r"cannot write .*sheet\.png: No space left"):
        write_preview(dataset, out)
    assert list(out.parent.iterdir()) == []


def test_a_picture_is_not_written_over_a_folder(dataset, tmp_path):
    put(dataset, "case", *make_case())
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_preview(dataset, tmp_path / "folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no dataset.json"),
        ("{", "is damaged"),
        ("[]", "lacks labels"),
        ('{"labels": {"0": "background"}}', "lacks labels"),
        (
            '{"channel_names": {"0": "CT"}, "labels": {"background": 0}, "numTraining": 1, "file_ending": ".nii"}',
            "no label",
        ),
        (
            '{"channel_names": {"0": "CT"}, "labels": {"a": 1}, "numTraining": 1, "file_ending": "/../x"}',
            "lacks labels",
        ),
    ],
)
def test_a_folder_without_a_dataset_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=message):
        write_preview(tmp_path, tmp_path / "sheet.png")


def test_a_dataset_without_labels_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="no case with a label"):
        write_preview(dataset, tmp_path / "sheet.png")


def test_names_are_fitted_to_their_tiles(dataset, tmp_path):
    put(dataset, "a" * 120, *make_case())
    describe(dataset, {"background": 0, **{f"région {number} " * 9: number for number in range(1, 9)}})
    assert write_preview(dataset, tmp_path / "sheet.png") == ()
    beside = pixels(tmp_path / "sheet.png")[:, -12:]
    assert (beside == beside[0, 0]).all()
