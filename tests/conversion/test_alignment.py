import numpy as np
import pytest

from nnunet_godc.conversion.alignment import align_label
from nnunet_godc.conversion.geometry import grid_from_affine
from nnunet_godc.conversion.problems import CaseError, CaseLog
from nnunet_godc.conversion.volumes import open_volume

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
LPS = np.diag([-0.8, -0.8, 2.5, 1.0])
LPS[:3, 3] = (11.0, 7.0, 30.0)


@pytest.fixture
def place(tmp_path, nifti, ct):
    """Places a label with `affine` on an image with the LPS one."""

    def place(mask, affine, policy, notes=None, image=ct, srow_x=None, **options):
        path = nifti(tmp_path / "label.nii", mask, affine, **options)
        if srow_x is not None:  # nibabel would put the header right
            path.write_bytes(path.read_bytes()[:280] + np.array(srow_x, "<f4").tobytes() + path.read_bytes()[296:])
        file = open_volume(path)
        grid = grid_from_affine(image.shape, TO_LPS @ LPS, CaseLog())
        return align_label(file, mask, [grid], policy, notes or CaseLog(), orientation="LPS", image=image)

    return place


def flipped(mask, axis):
    """The label stored the other way along one axis, and the affine that says so."""
    affine = LPS.copy()
    affine[:3, 3] += LPS[:3, axis] * (mask.shape[axis] - 1)
    affine[:3, axis] *= -1
    return np.flip(mask, axis).copy(), affine


@pytest.mark.parametrize("policy", ["physical", "image", "axes"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_honest_header_is_believed(place, mask, policy, axis):
    notes = CaseLog()
    label, grid = place(*flipped(mask, axis), policy, notes)
    np.testing.assert_array_equal(label, mask)
    assert grid.orientation != "LPS"
    assert notes == CaseLog()


@pytest.mark.parametrize("affine", [np.eye(4), LPS + np.array([[0, 0, 0, 50.0]] * 3 + [[0] * 4])])
def test_image_policy_takes_the_indices(place, mask, affine):
    notes = CaseLog()
    label, _ = place(mask, affine, "image", notes)
    np.testing.assert_array_equal(label, mask)
    assert "label takes the image's geometry" in notes.repairs[0]


@pytest.mark.parametrize("policy", ["physical", "image"])
def test_a_shape_that_does_not_fit_is_refused(place, mask, policy):
    with pytest.raises(CaseError, match="12 x 10 x 6 and 12 x 10 x 5 voxels; they do not belong together"):
        place(mask[:, :, :5].copy(), np.eye(4), policy)


def test_physical_policy_takes_the_geometry_of_the_image_for_an_unfilled_header(place, mask):
    notes = CaseLog()
    label, grid = place(mask, np.eye(4), "physical", notes)
    np.testing.assert_array_equal(label, mask)
    assert grid is None
    assert "says nothing of its position" in notes.warnings[0]


@pytest.mark.parametrize(("entry", "message"), [(0.4, "skewed by 26.6 degrees"), (np.nan, "is not an affine matrix")])
def test_a_header_that_cannot_be_matters_only_where_it_would_be_believed(place, mask, entry, message):
    broken = {"qform": 0, "srow_x": (-0.8, entry, 0, 11)}
    with pytest.raises(CaseError, match=message):
        place(mask, LPS, "physical", **broken)
    for policy, stored in (("image", mask), ("axes", flipped(mask, 1)[0])):
        label, grid = place(stored, LPS, policy, **broken)
        np.testing.assert_array_equal(label, mask)
        assert grid is None


def test_physical_policy_resamples_by_nearest_neighbour(place, mask):
    fine = np.repeat(np.repeat(mask, 2, axis=0), 2, axis=1)
    affine = LPS.copy()
    affine[:3, :2] /= 2
    affine[:3, 3] -= affine[:3, 0] / 2 + affine[:3, 1] / 2
    notes = CaseLog()
    label, _ = place(fine, affine, "physical", notes)
    np.testing.assert_array_equal(label, mask)
    assert "resampled by nearest neighbour" in notes.warnings[0]
    assert len(notes.warnings) == 1


def test_a_shift_by_whole_voxels_is_followed(place, mask):
    affine = LPS.copy()
    affine[:3, 3] += 2 * LPS[:3, 0]
    label, _ = place(mask, affine, "physical")
    np.testing.assert_array_equal(label[2:], mask[:-2])


def test_a_label_outside_the_image_is_refused(place, mask):
    affine = LPS.copy()
    affine[0, 3] += 1000
    with pytest.raises(CaseError, match="lies outside the image"):
        place(mask, affine, "physical")


def test_a_label_half_outside_is_warned_about(place, mask):
    affine = LPS.copy()
    affine[:3, 3] += 8 * LPS[:3, 0]
    notes = CaseLog()
    place(mask, affine, "physical", notes)
    assert "changed the labelled volume" in notes.warnings[-1]


@pytest.mark.parametrize(("thickness", "warned"), [(1.5, True), (1.8, False)])
def test_a_label_that_grows_by_more_than_a_fifth_is_warned_about(place, thickness, warned):
    plane = np.ones((1, 10, 6), dtype=np.uint8)
    affine = LPS.copy()
    affine[0, 0] *= thickness
    affine[:3, 3] += 3.5 * LPS[:3, 0]  # between two of the image's planes: both are nearest to it
    notes = CaseLog()
    label, _ = place(plane, affine, "physical", notes)
    assert np.count_nonzero(label) == 2 * 60
    assert ("changed the labelled volume from 0.144 to 0.192 ml" in notes.warnings[-1]) == warned
    assert len(notes.warnings) == 1 + warned


def test_axes_policy_takes_directions_from_the_header_and_the_place_from_the_image(place, mask):
    stored, affine = flipped(mask, 1)
    affine[:3, 3] = 0
    notes = CaseLog()
    label, _ = place(stored, affine, "axes", notes)
    np.testing.assert_array_equal(label, mask)
    assert "along the axes of its header" in notes.repairs[0]


def test_axes_policy_flips_in_y_where_the_header_says_nothing(place, mask):
    notes = CaseLog()
    label, _ = place(flipped(mask, 1)[0], np.eye(4), "axes", notes)
    np.testing.assert_array_equal(label, mask)
    assert "rows to the front" in notes.repairs[0]


@pytest.mark.parametrize(("axis", "name"), [(0, "left-right"), (1, "front-back"), (2, "head-feet")])
def test_tissue_tells_of_a_label_that_lies_the_wrong_way(place, mask, axis, name):
    random = np.random.default_rng(0)
    image = random.integers(-1000, 1000, size=mask.shape).astype(np.int16)
    image[mask > 0] = random.integers(60, 80, size=np.count_nonzero(mask))
    notes = CaseLog()
    place(np.flip(mask, axis).copy(), np.eye(4), "image", notes, image=image)
    assert f"mirrored {name}" in notes.warnings[0]
    silent = CaseLog()
    place(mask, np.eye(4), "image", silent, image=image)
    assert not silent.warnings


def test_a_label_that_fits_the_qform_belongs_to_the_voxels(place, tmp_path, nifti, ct, mask):
    """Of an image whose forms differ, ITK's masks lie by the one and nibabel's by the other."""
    other = LPS.copy()
    other[:3, 3] += (8.0, -4.0, 0.0)
    path = nifti(tmp_path / "image.nii", ct, LPS, header=lambda header: header.set_qform(other, code=1))
    image = open_volume(path)
    for label_affine in (LPS, other):
        file = open_volume(nifti(tmp_path / "label.nii", mask, label_affine))
        notes = CaseLog()
        label, _ = align_label(
            file,
            mask,
            image.read_grids(CaseLog(), what="image"),
            "physical",
            notes,
            orientation="RAS",
            image=ct[::-1, ::-1],
        )
        np.testing.assert_array_equal(label, mask[::-1, ::-1])
        assert not notes.warnings


def test_a_label_that_is_moved_is_told_with_the_option_that_leaves_it(place, mask):
    affine = LPS.copy()
    affine[:3, 3] += 2 * LPS[:3, 0]
    notes = CaseLog()
    place(mask, affine, "physical", notes)
    assert "label moved by (1.6, 0, 0) mm" in notes.warnings[0]
    assert "--label-grid image" in notes.warnings[0]
