"""Masks from DICOM-SEG and RTSTRUCT files, against phantoms whose voxels are known."""

import copy
import zlib

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from nnunet_godc.conversion.dicom.masks import drawn_on, read_masks, region_names
from nnunet_godc.conversion.dicom.series import open_series
from nnunet_godc.conversion.problems import CaseError, CaseLog
from tests.conversion.dicom_files import (
    PATIENT,
    UIDS,
    make_grid,
    make_voxels,
    rotation,
    write_segmentation,
    write_series,
    write_structure_set,
)

SHAPE = (20, 16, 8)
GRID = make_grid(SHAPE)
DIRECTIONS = {
    "supine": rotation(0, 0, 0),
    "oblique": rotation(20, -15, 30),
    "prone": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)),
    "feet first": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    "sagittal": ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
}


@pytest.fixture
def notes():
    return CaseLog()


class Case:
    """A series in a folder, and masks beside it."""

    def __init__(self, folder, grid=GRID):
        self.grid = grid
        self.files = write_series(folder / "ct", make_voxels(grid.shape), grid)
        self.series = open_series(folder / "ct", CaseLog())
        self.mask = folder / "mask.dcm"

    def read(self, notes):
        masks = read_masks(self.mask, self.series, notes)
        return {name: draw() for name, draw in masks.items()}

    def failure(self):
        with pytest.raises(CaseError) as problem:
            self.read(CaseLog())
        return str(problem.value)

    def position(self, *ijk):
        return tuple(self.grid.affine @ (*ijk, 1))[:3]

    def contour(self, k, *corners):
        """Voxel coordinates (i, j) to a contour in mm on slice k."""
        return np.array([self.position(i, j, k) for i, j in corners])


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def box(i, j, k, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[slice(*i), slice(*j), slice(*k)] = True
    return mask


def rectangle(i, j):
    return (i[0], j[0]), (i[1], j[0]), (i[1], j[1]), (i[0], j[1])


# Both kinds


def test_folder_has_to_hold_exactly_one(tmp_path, case, notes):
    expected = box((2, 9), (3, 8), (1, 4))
    write_segmentation(case.mask, case.files, {"liver": expected})
    np.testing.assert_array_equal(read_masks(tmp_path, case.series, notes)["liver"](), expected)
    write_segmentation(tmp_path / "second.dcm", case.files, {"liver": expected})
    with pytest.raises(CaseError, match=r"^2 DICOM segmentations or structure sets"):
        read_masks(tmp_path, case.series, notes)
    with pytest.raises(CaseError, match=r"^no DICOM segmentations"):
        read_masks(tmp_path / "ct", case.series, notes)


def test_masks_are_drawn_when_asked_for(case, notes):
    """So that a broken region that nobody wants is no hindrance, and a hundred masks do not fill the memory."""
    inside = case.contour(2, *rectangle((2.5, 9.5), (3.5, 8.5)))
    outside = case.contour(2, *rectangle((200, 210), (3, 8)))
    write_structure_set(case.mask, case.files, {"liver": [inside], "couch": [outside]})
    masks = read_masks(case.mask, case.series, notes)
    assert list(masks) == ["liver", "couch"]
    assert masks["liver"]().sum() == 7 * 5
    with pytest.raises(CaseError, match="enclose no voxel"):
        masks["couch"]()


# DICOM-SEG


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_segment_lies_where_it_was_drawn(tmp_path, notes, direction):
    case = Case(tmp_path, make_grid(SHAPE, direction=direction))
    expected = box((2, 9), (3, 8), (2, 5))
    write_segmentation(case.mask, case.files, {"liver": expected})
    np.testing.assert_array_equal(case.read(notes)["liver"], expected)
    assert notes == CaseLog()


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_overlapping_segments_are_both_whole(case, notes, kind):
    masks = {"liver": box((2, 15), (3, 12), (1, 6)), "tumour": box((5, 8), (4, 9), (2, 4))}
    write_segmentation(case.mask, case.files, masks, kind=kind)
    found = case.read(notes)
    assert list(found) == ["liver", "tumour"]
    for name, expected in masks.items():
        np.testing.assert_array_equal(found[name], expected)


def test_fractional_segment_is_cut_at_one_half(case, notes):
    fractions = np.zeros(SHAPE)
    fractions[3, 4, 2:6] = 0.2, 0.49, 0.51, 1.0
    write_segmentation(case.mask, case.files, {"liver": fractions}, kind="FRACTIONAL")
    np.testing.assert_array_equal(np.argwhere(case.read(notes)["liver"]), [[3, 4, 4], [3, 4, 5]])
    assert "one half" in notes.repairs[0]


def test_label_map_holds_one_mask_for_each_of_its_values(case, notes):
    masks = {"liver": box((2, 9), (3, 8), (1, 4)), "tumour": box((12, 15), (4, 9), (2, 7))}
    write_segmentation(case.mask, case.files, masks, kind="LABELMAP")
    found = case.read(notes)
    for name, expected in masks.items():
        np.testing.assert_array_equal(found[name], expected)


def test_frames_are_placed_by_position_whatever_their_order(case, notes):
    expected = box((2, 9), (3, 8), (1, 7))
    expected[:, :, 3] = False  # a frame that is not there

    def reverse(dataset):
        frames = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
        frames = frames[: dataset.NumberOfFrames * 320].reshape(-1, 16, 20)
        dataset.PixelData = np.packbits(frames[::-1].ravel(), bitorder="little").tobytes()
        dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[::-1]

    expected[2, 3, 1] = False  # no two frames alike
    expected[2, 3:5, 2] = False
    write_segmentation(case.mask, case.files, {"liver": expected}, change=reverse)
    assert pydicom.dcmread(case.mask).NumberOfFrames == 5
    np.testing.assert_array_equal(case.read(notes)["liver"], expected)
    assert notes == CaseLog()


def test_segmentation_turned_against_its_series_lies_right(tmp_path, notes):
    """Drawn on a copy of the series with rows and slices in the opposite order, as NIfTI tools make it."""
    case = Case(tmp_path)
    turned = make_grid(
        SHAPE, direction=((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)), origin=case.position(0, 15, 7)
    )
    files = write_series(tmp_path / "turned", make_voxels(SHAPE), turned)
    drawn = box((2, 9), (3, 8), (1, 4))
    write_segmentation(case.mask, files, {"liver": drawn})
    np.testing.assert_array_equal(case.read(notes)["liver"], drawn[:, ::-1, ::-1])
    assert not notes.repairs


def test_segmentation_of_a_finer_series_is_resampled_by_nearest_neighbour(tmp_path, notes):
    case = Case(tmp_path)
    spacing = (0.8 / 3, 0.9 / 3, 2.5 / 3)
    fine_shape = (60, 48, 24)
    origin = np.array(GRID.origin) - np.array(GRID.spacing) / 3  # the middle one of three lies on a centre
    files = write_series(
        tmp_path / "fine", make_voxels(fine_shape), make_grid(fine_shape, spacing=spacing, origin=tuple(origin))
    )
    expected = box((2, 9), (3, 8), (1, 4))
    write_segmentation(case.mask, files, {"liver": expected.repeat(3, 0).repeat(3, 1).repeat(3, 2)})
    np.testing.assert_array_equal(case.read(notes)["liver"], expected)
    assert any("nearest neighbour" in warning for warning in notes.warnings)


def test_segmentation_on_an_oblique_grid_is_resampled_in_space(tmp_path, notes):
    grid = make_grid((30, 30, 30), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    case = Case(tmp_path, grid)
    direction = np.array(rotation(0, 0, 30))
    oblique = make_grid(
        (40, 40, 30),
        spacing=(1.0, 1.0, 1.0),
        direction=rotation(0, 0, 30),
        origin=tuple(np.array([14.5, 14.5, 0]) - direction @ [20, 20, 0]),
    )
    files = write_series(tmp_path / "oblique", make_voxels(oblique.shape), oblique)

    def ball(of):
        at = np.stack(np.meshgrid(*map(np.arange, of.shape), indexing="ij"), -1)
        return np.linalg.norm(at @ of.affine[:3, :3].T + of.affine[:3, 3] - (17, 11, 14), axis=-1) <= 8

    write_segmentation(case.mask, files, {"liver": ball(oblique)})
    found, expected = case.read(notes)["liver"], ball(grid)
    assert 2 * np.count_nonzero(found & expected) / (found.sum() + expected.sum()) > 0.95


def test_segmentation_of_part_of_the_series_is_no_other_grid(case, notes):
    expected = box((2, 9), (3, 8), (2, 5))
    write_segmentation(case.mask, case.files[1:6], {"liver": expected[:, :, 1:6]})
    np.testing.assert_array_equal(case.read(notes)["liver"], expected)
    assert not notes.repairs


def test_segmentation_that_reaches_beyond_the_series_is_cut_with_a_warning(tmp_path, notes):
    case = Case(tmp_path)
    longer = make_grid((20, 16, 12))
    files = write_series(tmp_path / "longer", make_voxels(longer.shape), longer)
    write_segmentation(case.mask, files, {"liver": box((2, 9), (3, 8), (6, 11), longer.shape)})
    np.testing.assert_array_equal(case.read(notes)["liver"], box((2, 9), (3, 8), (6, 8)))
    assert any("105 of 175 voxels" in warning for warning in notes.warnings)


def test_segmentation_beside_the_series_is_an_error(tmp_path):
    case = Case(tmp_path)
    far = make_grid(SHAPE, origin=(-20.0, 10.0, 200.0))
    files = write_series(tmp_path / "far", make_voxels(SHAPE), far)
    write_segmentation(case.mask, files, {"liver": box((2, 9), (3, 8), (2, 5))})
    assert "beside the series" in case.failure()


def test_other_frame_of_reference_is_a_warning(tmp_path, notes):
    case = Case(tmp_path)
    files = write_series(tmp_path / "other", make_voxels(SHAPE), GRID)
    expected = box((2, 9), (3, 8), (2, 5))
    write_segmentation(case.mask, files, {"liver": expected})
    np.testing.assert_array_equal(case.read(notes)["liver"], expected)
    assert "another frame of reference" in notes.warnings[0]


def test_segments_of_one_name_are_united_with_a_warning(case, notes):
    masks = {"tumour": box((2, 5), (3, 8), (1, 4)), "tumour 2": box((10, 13), (3, 8), (3, 6))}

    def rename(dataset):
        dataset.SegmentSequence[1].SegmentLabel = "tumour"

    write_segmentation(case.mask, case.files, masks, change=rename)
    found = case.read(notes)
    assert list(found) == ["tumour"]
    np.testing.assert_array_equal(found["tumour"], masks["tumour"] | masks["tumour 2"])
    assert notes.warnings == ["1 of the mask's regions have the name of another: united"]


def test_segment_without_a_voxel_is_empty(case, notes):
    write_segmentation(case.mask, case.files, {"liver": box((2, 9), (3, 8), (1, 4)), "tumour": np.zeros(SHAPE, bool)})
    assert not case.read(notes)["tumour"].any()


def test_compressed_segmentation_is_read(case, notes):
    expected = box((2, 9), (3, 8), (1, 4))
    write_segmentation(
        case.mask,
        case.files,
        {"liver": expected},
        kind="FRACTIONAL",
        change=lambda dataset: dataset.compress(RLELossless, generate_instance_uid=False),
    )
    np.testing.assert_array_equal(case.read(notes)["liver"], expected)


def test_background_of_a_label_map_is_not_a_segment(case, notes):
    masks = {"liver": box((2, 9), (3, 8), (1, 4))}

    def change(dataset):
        background = copy.deepcopy(dataset.SegmentSequence[0])
        background.SegmentNumber, background.SegmentLabel = 0, "Background"
        dataset.SegmentSequence = [background, *(i for i in dataset.SegmentSequence if i.SegmentNumber)]

    write_segmentation(case.mask, case.files, masks, kind="LABELMAP", change=change)
    assert list(case.read(notes)) == ["liver"]
    np.testing.assert_array_equal(case.read(notes)["liver"], masks["liver"])
    assert region_names(case.mask) == ["liver"]


def test_segmentation_without_what_its_voxels_do_not_need_is_read(case, notes):
    def change(dataset):
        for item in dataset.SegmentSequence:
            del item.SegmentedPropertyCategoryCodeSequence, item.SegmentedPropertyTypeCodeSequence, item.SegmentLabel
        del dataset.StudyInstanceUID
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness

    expected = box((2, 9), (3, 8), (1, 4))
    write_segmentation(case.mask, case.files, {"liver": expected}, change=change)
    np.testing.assert_array_equal(case.read(notes)["1"], expected)


def frames_of(dataset):
    """The frames as bytes of packed bits, each for itself."""
    size = dataset.Rows * dataset.Columns
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    return [np.packbits(bits[n * size :][:size], bitorder="little").tobytes() for n in range(dataset.NumberOfFrames)]


def encapsulated(dataset, syntax, frames):
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].is_undefined_length = True


def in_run_lengths(dataset):
    def run_lengths(packed):
        header = np.array([1, 64, *[0] * 14], "<u4").tobytes()
        return header + imagecodecs.packbits_encode(packed)

    encapsulated(dataset, RLELossless, [run_lengths(packed) for packed in frames_of(dataset)])


def deflated(dataset):
    def deflate(packed):
        packer = zlib.compressobj(wbits=-15)
        data = packer.compress(packed) + packer.flush()
        return data + b"\0" * (len(data) % 2)

    encapsulated(dataset, RLELossless, [deflate(packed) for packed in frames_of(dataset)])


def name_deflated_frames(path):
    """Changes the transfer syntax in a file to one of 2024, which pydicom cannot write yet."""
    content = path.read_bytes()
    old, new = (
        b"\x02\0\x10\0UI\x14\0" + RLELossless.encode() + b"\0",
        b"\x02\0\x10\0UI\x16\0" + b"1.2.840.10008.1.2.8.1\0",
    )
    assert old in content
    length = int.from_bytes(content[140:144], "little") + len(new) - len(old)
    path.write_bytes((content[:140] + length.to_bytes(4, "little") + content[144:]).replace(old, new))


@pytest.mark.parametrize("change", [in_run_lengths, deflated])
@pytest.mark.parametrize("grid", [GRID, make_grid((19, 15, 8))], ids=["whole bytes", "odd size"])
def test_packed_bits_are_read_in_every_compression(tmp_path, notes, change, grid):
    case = Case(tmp_path, grid)
    masks = {"liver": box((2, 9), (3, 8), (1, 4), grid.shape), "tumour": box((5, 8), (4, 9), (2, 7), grid.shape)}
    write_segmentation(case.mask, case.files, masks, change=change)
    if change is deflated:
        name_deflated_frames(case.mask)
    for name, expected in masks.items():
        np.testing.assert_array_equal(case.read(notes)[name], expected)
    assert notes == CaseLog()


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_big_endian_segmentation_is_read(tmp_path, notes, kind):
    case = Case(tmp_path, make_grid((19, 15, 8)))
    masks = {"liver": box((2, 9), (3, 8), (1, 4), (19, 15, 8)), "tumour": box((12, 15), (4, 9), (2, 7), (19, 15, 8))}
    write_segmentation(case.mask, case.files, masks, kind=kind)
    dataset = pydicom.dcmread(case.mask)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset["PixelData"].VR = "OB"
    pydicom.dcmwrite(case.mask, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    for name, expected in masks.items():
        np.testing.assert_array_equal(case.read(notes)[name], expected)


# Which series it was drawn on


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_the_mask_tells_which_series_it_was_drawn_on(tmp_path, notes, kind):
    """Arterial and venous phase have one frame of reference: either is a place where the mask lies."""
    frame = UIDS + "5"
    arterial, venous = (
        write_series(tmp_path / "ct", make_voxels(SHAPE, seed), GRID, number=seed, FrameOfReferenceUID=frame)
        for seed in (1, 2)
    )
    mask = tmp_path / "mask.dcm"
    if kind == "SEG":
        write_segmentation(mask, venous, {"liver": box((2, 9), (3, 8), (1, 4))})
    else:
        write_structure_set(mask, venous, {"liver": [np.array(GRID.affine[:3, 3] + [[1, 1, 5], [9, 1, 5], [9, 9, 5]])]})
    uids = drawn_on(mask)
    assert open_series(tmp_path / "ct", notes, drawn_on=uids).files == tuple(venous)
    assert not notes.warnings
    assert open_series(tmp_path / "ct", notes, series=1, drawn_on=uids).files == tuple(arterial)
    assert "the mask was drawn on another series, series 2: 8 slices" in notes.warnings[0]
    for file in venous:
        file.unlink()
    alone = CaseLog()
    assert open_series(tmp_path / "ct", alone, drawn_on=uids).files == tuple(arterial)
    assert "the mask was drawn on another series than the one that is converted" in alone.warnings[0]


# RTSTRUCT


def ellipse(centre, radii, count=90):
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [(centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)) for angle in angles]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_contours_enclose_the_voxels_whose_centres_are_inside(tmp_path, notes, direction, reverse):
    case = Case(tmp_path, make_grid(SHAPE, direction=direction))
    boxes = {
        "box": (1.6, 9.4, 2.6, 8.4),
        "just in": (2 - 0.01, 9.01, 3 - 0.01, 8.01),
        "just out": (1.01, 9.99, 2.01, 8.99),
    }
    contours = {
        name: [case.contour(k, *rectangle((left, right), (front, back))) for k in (2, 3, 4)]
        for name, (left, right, front, back) in boxes.items()
    }
    radii = {k: (7.3 * np.sqrt(1 - ((k - 4) / 3.5) ** 2), 5.2 * np.sqrt(1 - ((k - 4) / 3.5) ** 2)) for k in range(1, 8)}
    contours["ellipsoid"] = [case.contour(k, *ellipse((9.2, 7.6), pair)) for k, pair in radii.items()]
    if reverse:
        contours = {name: [contour[::-1] for contour in found[::-1]] for name, found in contours.items()}
    write_structure_set(case.mask, case.files, contours)
    found = case.read(notes)
    for name in boxes:
        np.testing.assert_array_equal(found[name], box((2, 10), (3, 9), (2, 5)), err_msg=name)
    i, j, k = np.ogrid[:20, :16, :8]
    expected = ((i - 9.2) / 7.3) ** 2 + ((j - 7.6) / 5.2) ** 2 + ((k - 4) / 3.5) ** 2 < 1
    assert np.count_nonzero(found["ellipsoid"] != expected) <= 2  # the polygons cut corners
    assert notes == CaseLog()


def test_contours_through_voxel_centres_include_them(tmp_path, notes):
    """So that contours which a program has traced around a mask give that mask, holes too."""
    case = Case(tmp_path, make_grid(SHAPE, direction=rotation(7, 8, 9), spacing=(0.77, 0.91, 2.5)))
    outer, hole = rectangle((2, 12), (3, 11)), rectangle((5, 8), (5, 9))
    write_structure_set(case.mask, case.files, {"ring": [case.contour(3, *outer), case.contour(3, *hole)]})
    expected = box((2, 13), (3, 12), (3, 4))
    expected[6:8, 6:9, 3] = False
    np.testing.assert_array_equal(case.read(notes)["ring"], expected)


def test_nested_contours_are_holes_and_islands_and_others_are_added(case, notes):
    nested = [
        ((1.5, 13.5), (1.5, 13.5)),
        ((3.5, 11.5), (3.5, 11.5)),
        ((6.5, 8.5), (6.5, 8.5)),
        ((15.5, 18.5), (2.5, 5.5)),
    ]
    write_structure_set(case.mask, case.files, {"nest": [case.contour(3, *rectangle(*pair)) for pair in nested]})
    outer, hole, island, beside = (
        box((int(i[0] + 0.5), int(i[1] + 0.5)), (int(j[0] + 0.5), int(j[1] + 0.5)), (3, 4)) for i, j in nested
    )
    np.testing.assert_array_equal(case.read(notes)["nest"], (outer & ~hole) | island | beside)


def test_contour_order_does_not_matter(case, notes):
    pairs = [((1.5, 13.5), (1.5, 13.5)), ((3.5, 11.5), (3.5, 11.5))]
    contours = [case.contour(k, *rectangle(*pair)) for k in (2, 5, 3, 4) for pair in pairs]
    shuffled = [contours[n] for n in np.random.default_rng(0).permutation(len(contours))]
    write_structure_set(case.mask, case.files, {"ordered": contours, "shuffled": shuffled})
    found = case.read(notes)
    assert found["ordered"].sum() == 4 * (144 - 64)
    np.testing.assert_array_equal(found["ordered"], found["shuffled"])


def test_keyhole_contour_has_its_hole(case, notes):
    outer, hole = rectangle((1.5, 13.5), (1.5, 13.5)), rectangle((4.5, 9.5), (4.5, 9.5))
    corners = [*outer, outer[0], *hole, hole[0]]
    write_structure_set(case.mask, case.files, {"ring": [case.contour(3, *corners)]})
    assert case.read(notes)["ring"].sum() == 144 - 25


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR"])
def test_a_region_whose_contours_enclose_nothing_is_an_error(case, kind):
    contour = case.contour(3, (4, 4)) if kind == "POINT" else case.contour(3, *rectangle((2, 9), (3, 8)))
    write_structure_set(case.mask, case.files, {"marker": [contour]}, kind=kind)
    assert "the 1 contours of marker enclose no voxel" in case.failure()


@pytest.mark.parametrize(
    "again",
    [
        lambda contour: contour,
        lambda contour: contour[::-1],
        lambda contour: np.roll(contour, 17, axis=0),
        lambda contour: np.vstack([contour, contour[:1]]),
        lambda contour: np.round(contour, 2)[::-1],
        lambda contour: np.vstack([contour, (contour + np.roll(contour, -1, axis=0)) / 2])[
            np.argsort([*range(90), *np.arange(90) + 0.5])
        ],
    ],
    ids=["same", "reversed", "from another start", "closed", "rounded and reversed", "with more points"],
)
def test_a_contour_that_is_stored_twice_does_not_erase_itself(case, notes, again):
    outer, hole = (case.contour(3, *ellipse((9.2, 7.6), radii)) for radii in ((7.3, 5.2), (3.1, 2.2)))
    write_structure_set(case.mask, case.files, {"liver": [outer, hole]})
    expected = case.read(notes)["liver"]
    assert expected.sum() > 80
    assert notes == CaseLog()
    write_structure_set(case.mask, case.files, {"liver": [outer, again(hole), again(outer), hole]})
    np.testing.assert_array_equal(case.read(notes)["liver"], expected)
    assert "2 contours of liver are stored more than once" in notes.warnings[0]


def test_contours_of_64_kilobytes_arrive_as_bytes_and_are_read(case, notes):
    contour = case.contour(3, *ellipse((9.2, 7.6), (7.3, 5.2), 4000))
    write_structure_set(case.mask, case.files, {"liver": [contour]})
    expected = case.read(notes)["liver"]

    def change(dataset):
        item = dataset.ROIContourSequence[0].ContourSequence[0]
        text = "\\".join(f"{value:.6f}" for value in np.ravel(contour)).encode()
        del item.ContourData
        item.add_new(0x30060050, "UN", text + b" " * (len(text) % 2))
        assert len(text) > 2**16

    write_structure_set(case.mask, case.files, {"liver": [contour]}, change=change)
    np.testing.assert_array_equal(case.read(notes)["liver"], expected)
    assert expected.any()


def test_contours_of_a_second_item_of_the_same_number_are_not_lost(case, notes):
    first, second = (case.contour(k, *rectangle((1.5, 9.5), (2.5, 8.5))) for k in (2, 3))

    def change(dataset):
        dataset.ROIContourSequence[1].ReferencedROINumber = 1
        del dataset.StructureSetROISequence[1]

    write_structure_set(case.mask, case.files, [("liver", [first]), ("liver", [second])], change=change)
    np.testing.assert_array_equal(case.read(notes)["liver"], box((2, 10), (3, 9), (2, 4)))


def test_contours_between_slices_go_to_the_nearest_one_and_do_not_cancel(case, notes):
    """Contours of a series with half the distance: two planes fall to one slice, where they must not cut holes."""
    contours = [case.contour(k, *rectangle((1.5, 9.5), (2.5, 8.5))) for k in (2, 2.4, 3, 3.4, 4.3)]
    write_structure_set(case.mask, case.files, {"liver": contours})
    np.testing.assert_array_equal(case.read(notes)["liver"], box((2, 10), (3, 9), (2, 5)))
    assert any("on 1 slices the nearest one was taken" in warning for warning in notes.warnings)
    assert any(
        "2 contours of a region lie between slices that have a nearer one" in warning for warning in notes.warnings
    )


def test_skipped_slices_stay_empty_and_are_warned_about(case, notes):
    write_structure_set(
        case.mask, case.files, {"liver": [case.contour(k, *rectangle((2, 9), (3, 8))) for k in (1, 3, 5)]}
    )
    assert list(np.flatnonzero(case.read(notes)["liver"].any(axis=(0, 1)))) == [1, 3, 5]
    assert "skips slices at 2 places" in notes.warnings[0]


def test_contours_beside_the_series_are_left_out_with_a_warning(case, notes):
    contours = [case.contour(k, *rectangle((1.5, 9.5), (2.5, 8.5))) for k in (6, 7, 8, 9)]
    write_structure_set(case.mask, case.files[:1], {"liver": contours})
    np.testing.assert_array_equal(case.read(notes)["liver"], box((2, 10), (3, 9), (6, 8)))
    assert "2 of 4 contours of a region of the DICOM mask lie beside" in notes.warnings[0]


def test_contours_that_all_lie_beside_the_series_are_an_error(case):
    write_structure_set(case.mask, case.files, {"liver": [case.contour(30, *rectangle((2, 9), (3, 8)))]})
    assert "all contours" in case.failure()


def test_contours_partly_beside_the_slices_are_cut(case, notes):
    write_structure_set(case.mask, case.files, {"liver": [case.contour(3, *rectangle((-5, 4.5), (10.5, 99)))]})
    np.testing.assert_array_equal(case.read(notes)["liver"], box((0, 5), (11, 16), (3, 4)))


def test_contours_across_the_slices_are_an_error(case):
    contour = np.array([case.position(2, 3, 1), case.position(9, 3, 5), case.position(9, 8, 5), case.position(2, 8, 1)])
    write_structure_set(case.mask, case.files, {"liver": [contour]})
    assert "across the slices" in case.failure()


def test_regions_of_one_name_are_united_and_empty_ones_kept(case, notes):
    first = [case.contour(2, *rectangle((1.5, 4.5), (2.5, 8.5)))]
    second = [case.contour(2, *rectangle((9.5, 12.5), (2.5, 8.5)))]
    write_structure_set(case.mask, case.files, [("tumour", first), ("liver", []), ("tumour", second)])
    found = case.read(notes)
    np.testing.assert_array_equal(found["tumour"], box((2, 5), (3, 9), (2, 3)) | box((10, 13), (3, 9), (2, 3)))
    assert not found["liver"].any()
    assert "have the name of another" in notes.warnings[0]


def test_structure_set_of_another_frame_of_reference_is_a_warning(case, notes):
    def change(dataset):
        dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = UIDS + "99"

    write_structure_set(case.mask, case.files, {"liver": [case.contour(3, *rectangle((2, 9), (3, 8)))]}, change=change)
    case.read(notes)
    assert "another frame of reference" in notes.warnings[0]


def test_structure_set_without_regions_is_an_error(case):
    write_structure_set(case.mask, case.files, {})
    assert "names no region" in case.failure()


# Damage


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A series, and one mask of each kind as bytes, to be damaged."""
    case = Case(tmp_path_factory.mktemp("intact"))
    masks = {"liver": box((2, 9), (3, 8), (1, 4)), "tumour": box((5, 8), (4, 9), (2, 7))}
    files = {}
    for kind in ("BINARY", "FRACTIONAL", "LABELMAP"):
        write_segmentation(case.mask, case.files, masks, kind=kind)
        files[kind] = case.mask.read_bytes()
    write_structure_set(
        case.mask, case.files, {"liver": [case.contour(k, *rectangle((2, 9), (3, 8))) for k in (1, 2, 3)]}
    )
    files["RTSTRUCT"] = case.mask.read_bytes()
    return case, files


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "RTSTRUCT"])
def test_mask_that_is_cut_off_anywhere_is_never_a_smaller_mask(intact, kind):
    case, files = intact
    case.mask.write_bytes(files[kind])
    whole = case.read(CaseLog())
    for size in {
        *range(140, len(files[kind]), 97),
        *range(len(files[kind]) - 30, len(files[kind])),
        *ends_of(case.mask),
    }:
        case.mask.write_bytes(files[kind][:size])
        try:
            found = case.read(CaseLog())
        except CaseError:
            continue
        assert all(np.array_equal(mask, whole[name]) for name, mask in found.items()), size
        assert len(found) == len(whole)


def ends_of(file):
    """Where the outermost entries of a file's data set may end: the least conspicuous places to cut."""
    # An entry begins 8 or 12 bytes before its value, which is what `file_tell` is the place of.
    return [element.file_tell - header for element in pydicom.dcmread(file) for header in (0, 8, 12)]


@settings(max_examples=120, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_masks_end_in_an_error_or_a_mask(intact, data):
    case, files = intact
    content = bytearray(files[data.draw(st.sampled_from(sorted(files)))])
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(128, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.integers(0, 4)) == 0:
        del content[data.draw(st.integers(0, len(content))) :]
    case.mask.write_bytes(content)
    notes = CaseLog()
    try:
        found = case.read(notes)
    except CaseError as problem:
        assert_private([str(problem)], case)
    else:
        assert_private([*notes.repairs, *notes.warnings], case)
        for mask in found.values():
            assert mask.shape == SHAPE
            assert mask.dtype == bool


@pytest.mark.parametrize("size", [0, 131, 400, 3000])
@pytest.mark.parametrize("kind", ["BINARY", "RTSTRUCT"])
def test_mask_that_is_not_whole_is_an_error(intact, kind, size):
    case, files = intact
    case.mask.write_bytes(files[kind][:size])
    assert_private([case.failure()], case)


def assert_private(texts, case):
    for text in texts:
        for value in (*PATIENT.values(), UIDS, str(case.mask), case.mask.name):
            assert value not in text
