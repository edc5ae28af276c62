import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from nnunet_godc.conversion.geometry import IDENTITY, Grid, Volume, grid_from_affine
from nnunet_godc.conversion.problems import CaseError, CaseLog


def affine_of(seed: int) -> np.ndarray:
    """A rotation, perhaps with two axes exchanged, times a spacing, and an origin."""
    random = np.random.default_rng(seed)
    directions = Rotation.random(random_state=random).as_matrix()[:, random.permutation(3)]
    affine = np.eye(4)
    affine[:3, :3] = directions * random.uniform(0.4, 5, size=3)
    affine[:3, 3] = random.uniform(-300, 300, size=3)
    return affine


def positions(volume: Volume) -> dict:
    affine = volume.grid.affine
    return {
        tuple(np.round(affine[:3, :3] @ index + affine[:3, 3], 4)): volume.voxels[index]
        for index in np.ndindex(volume.voxels.shape)
    }


@given(seed=st.integers(0, 2**32 - 1), orientation=st.sampled_from(["LPS", "RAS", "SAR", "ILA"]))
def test_turning_moves_no_voxel_in_space(seed, orientation):
    voxels = np.arange(24).reshape(2, 3, 4)
    volume = Volume(voxels, grid_from_affine(voxels.shape, affine_of(seed), CaseLog()))
    turned = volume.reoriented(orientation)
    assert turned.grid.orientation == orientation
    assert positions(turned) == positions(volume)


@given(seed=st.integers(0, 2**32 - 1))
def test_an_affine_of_right_angles_is_kept_without_a_word(seed):
    notes = CaseLog()
    affine = affine_of(seed)
    np.testing.assert_allclose(grid_from_affine((3, 4, 5), affine, notes).affine, affine, atol=1e-9)
    assert notes == CaseLog()


def test_turning_copies_nothing():
    voxels = np.zeros((2, 3, 4), dtype=np.int16)
    grid = Grid((2, 3, 4), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0), IDENTITY)
    assert np.shares_memory(Volume(voxels, grid).reoriented("RAS").voxels, voxels)


def test_left_handed_axes_stay_left_handed():
    affine = np.diag([1.0, 1.0, -2.0, 1.0])
    grid = grid_from_affine((2, 2, 2), affine, CaseLog())
    assert grid.orientation == "LPI"
    np.testing.assert_array_equal(grid.affine, affine)


def test_a_broken_direction_is_replaced_by_the_nearest_orthonormal_one():
    angle = np.radians(0.4)
    exact = Rotation.from_euler("z", 10, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = exact @ np.array([[1, np.sin(angle), 0], [0, np.cos(angle), 0], [0, 0, 1]])
    notes = CaseLog()
    grid = grid_from_affine((100, 100, 10), affine, notes)
    direction = np.array(grid.direction)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    # The polar factor turns both axes by half of the angle between them and the right angle.
    np.testing.assert_allclose(direction, exact @ Rotation.from_euler("z", -0.2, degrees=True).as_matrix(), atol=1e-9)
    assert len(notes.repairs) == 1
    assert "skewed by 0.400 degrees" in notes.repairs[0]


def test_rounding_to_four_decimals_needs_no_mention():
    affine = np.eye(4)
    affine[:3, :3] = np.round(Rotation.from_euler("xyz", [3, 20, 7], degrees=True).as_matrix(), 4)
    notes = CaseLog()
    grid_from_affine((5, 5, 5), affine, notes)
    assert notes == CaseLog()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.__setitem__((0, 1), np.tan(np.radians(15))), "skewed by 15.0 degrees"),
        (lambda a: a.__setitem__((1, 1), 0.0), "cannot be"),
        (lambda a: a.__setitem__((0, 0), np.nan), "not a number"),
        (lambda a: a.__setitem__((2, 3), np.inf), "not a number"),
        (lambda a: a.__setitem__((slice(0, 3), 1), a[:3, 0]), "skewed by 90.0 degrees"),
        (lambda a: a.__setitem__((0, 0), 1e6), "cannot be"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(change, message):
    affine = np.eye(4)
    change(affine)
    with pytest.raises(CaseError, match=message):
        grid_from_affine((3, 3, 3), affine, CaseLog())


def test_equal_grids_match_within_a_hundredth_of_the_smallest_spacing():
    grid = Grid((10, 10, 10), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), IDENTITY)
    assert grid.matches(Grid((10, 10, 10), (1.0, 1.0, 2.0), (0.001, 0.0, 0.0), IDENTITY))
    assert not grid.matches(Grid((10, 10, 10), (1.0, 1.0, 2.0), (0.1, 0.0, 0.0), IDENTITY))
    assert not grid.matches(Grid((10, 10, 10), (1.0, 1.0, 2.0), (0.015, 0.0, 0.0), IDENTITY))
    assert not grid.matches(Grid((10, 10, 9), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), IDENTITY))
    # A small error of the spacing adds up over the volume.
    assert not grid.matches(Grid((10, 10, 10), (1.0, 1.0, 2.02), (0.0, 0.0, 0.0), IDENTITY))


def test_the_spacing_of_a_single_slice_moves_no_voxel():
    thin, thick = (Grid((10, 10, 1), (1.0, 1.0, spacing), (0.0, 0.0, 0.0), IDENTITY) for spacing in (2.0, 5.0))
    assert thin.matches(thick)


def test_volume_of_a_voxel_is_told_in_millilitres():
    assert Grid((1, 1, 1), (0.5, 0.5, 4.0), (0.0, 0.0, 0.0), IDENTITY).voxel_ml == pytest.approx(0.001)


def test_voxels_and_grid_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="on a grid of shape"):
        Volume(np.zeros((2, 2, 2)), Grid((2, 2, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY))
