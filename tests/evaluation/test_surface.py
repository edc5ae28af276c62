import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from skimage.measure import marching_cubes

from nnunet_godc.evaluation.surface import surface_distances, surface_of

Mask = NDArray[np.bool_]
SEEDS = st.integers(0, 2**32 - 1)


def box(shape: Sequence[int], low: Sequence[int], high: Sequence[int]) -> Mask:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = True
    return mask


def ball(shape: Sequence[int], spacing: Sequence[float], radius: float) -> Mask:
    """Around the middle of the volume."""
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    squares = sum(((axis - (size - 1) / 2) * step) ** 2 for axis, size, step in zip(axes, shape, spacing, strict=True))
    return np.asarray(squares <= radius**2)


def random_mask(random: np.random.Generator, shape: Sequence[int]) -> Mask:
    """Never empty; blobs, noise, a single voxel, a box that reaches to the border, or the whole volume."""
    kind = random.integers(5)
    if kind == 0:
        return np.ones(shape, bool)
    mask = random.random(shape) < (0.5 if kind == 1 else 0.03)
    if kind == 2:
        mask = np.zeros(shape, bool)
    if kind == 3:
        mask = box(shape, [0] * len(shape), [random.integers(1, size + 1) for size in shape])
    mask[tuple(random.integers(size) for size in shape)] = True
    return mask


def random_pair(seed: int) -> tuple[Mask, Mask, tuple[float, ...]]:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 8, size=3))
    return random_mask(random, shape), random_mask(random, shape), tuple(random.uniform(0.3, 5, size=3))


def brute_force(reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float) -> list[float]:
    """HD95, average distance and NSD from all pairs of points; the mesh alone is the library's."""
    surfaces = []
    for mask in (reference, prediction):
        corners, triangles, _, _ = marching_cubes(np.pad(mask, 2).astype(float), 0.5)
        corners = (corners - 2) * np.asarray(spacing)
        points = corners[triangles]
        a, b, c = (np.linalg.norm(points[:, i] - points[:, j], axis=1) for i, j in ((0, 1), (1, 2), (2, 0)))
        half = (a + b + c) / 2
        areas = np.sqrt(np.maximum(half * (half - a) * (half - b) * (half - c), 0))  # Heron
        surfaces.append((points.mean(axis=1), np.concatenate([points.mean(axis=1), corners]), areas))
    (a_points, a_all, a_areas), (b_points, b_all, b_areas) = surfaces
    directed = [(cdist(a_points, b_all).min(axis=1), a_areas), (cdist(b_points, a_all).min(axis=1), b_areas)]

    hausdorff = 0.0
    for distances, areas in directed:
        for candidate in sorted(distances):
            if areas[distances <= candidate].sum() >= 0.95 * areas.sum() * (1 - 1e-9):
                hausdorff = max(hausdorff, candidate)
                break
    total = a_areas.sum() + b_areas.sum()
    mean = sum(float((distances * areas).sum()) for distances, areas in directed) / total
    within = sum(float(areas[distances <= tolerance].sum()) for distances, areas in directed) / total
    return [hausdorff, mean, within]


def faces(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """The middle of every face between a voxel inside and one outside, (faces, 3), voxel by voxel."""
    inside = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    middles = [
        [(i + step / 2) * size for i, step, size in zip(voxel, direction, spacing, strict=True)]
        for voxel in inside
        for direction in steps
        if tuple(i + step for i, step in zip(voxel, direction, strict=True)) not in inside
    ]
    return np.array(middles)


@pytest.mark.parametrize("seed", range(200))
def test_distances_are_those_of_all_pairs_of_points(seed: int):
    reference, prediction, spacing = random_pair(seed)
    tolerance = 0.77 * max(spacing)
    distances = surface_distances(reference, prediction, spacing)
    found = [distances.hausdorff(95), distances.average_symmetric(), distances.normalised(tolerance)]
    assert found == pytest.approx(brute_force(reference, prediction, spacing, tolerance), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(0, 200, 4))
def test_the_surface_lies_half_way_between_voxels_inside_and_outside(seed: int):
    reference, prediction, spacing = random_pair(seed)
    ours = surface_distances(reference, prediction, spacing).hausdorff(100)
    a, b = faces(reference, spacing), faces(prediction, spacing)
    pairs = cdist(a, b)
    theirs = max(pairs.min(axis=0).max(), pairs.min(axis=1).max())
    # A point of the mesh and the middle of a face of its voxels are at most half a voxel's diagonal apart.
    assert abs(ours - theirs) <= 2 * np.linalg.norm(spacing) / 2


def test_area_of_a_box_with_thick_slices():
    surface = surface_of(box((12, 50, 50), (1, 5, 5), (11, 45, 45)), (5.0, 0.5, 0.5))
    # 50 x 20 x 20 mm; marching cubes cuts edges and corners off by half a voxel
    assert surface.sizes.sum() == pytest.approx(2 * (50 * 20 + 50 * 20 + 20 * 20), rel=0.03)


def test_a_shifted_box_with_thick_slices_counts_faces_by_their_area():
    low, high = box((12, 60, 60), (1, 10, 8), (11, 50, 48)), box((12, 60, 60), (1, 10, 14), (11, 50, 54))
    distances = surface_distances(low, high, (5.0, 0.5, 0.5))
    assert distances.hausdorff(95) == pytest.approx(3)
    # In each direction: the face that stands out is 3 mm away everywhere. The one that lies inside is min(3, t) away, t
    # being the distance to its rim of 140 mm. Of the four other faces a strip of 3 mm stands out, 1.5 mm on average.
    outside, inside, strips = 1000 * 3, 44 * 14 * 3 + (140 * 3**2 / 2 - 8 * 3**3 / 3), 140 * 3 * 1.5
    assert distances.average_symmetric() == pytest.approx((outside + inside + strips) / 4800, rel=0.02)


@pytest.mark.parametrize("axis", range(3))
def test_parallel_planes_are_as_far_apart_as_they_are(axis: int):
    spacing = (3.0, 1.0, 0.7)
    shape = [15, 15, 15]
    thin, thick = list(shape), list(shape)
    thin[axis], thick[axis] = 5, 9
    distances = surface_distances(box(shape, [0] * 3, thin), box(shape, [0] * 3, thick), spacing)
    # From the face of the thinner slab, which ends where the image ends, to that of the thicker one.
    assert distances.hausdorff(100) == pytest.approx(4 * spacing[axis])


def test_concentric_spheres():
    spacing = (1.25, 0.8, 0.8)
    inner, outer = ball((44, 70, 70), spacing, 20), ball((44, 70, 70), spacing, 24)
    distances = surface_distances(inner, outer, spacing)
    assert distances.hausdorff(95) == pytest.approx(4, abs=0.5)
    assert distances.average_symmetric() == pytest.approx(4, abs=0.2)
    assert distances.normalised(3) == pytest.approx(0, abs=0.02)
    assert distances.normalised(5) == 1
    assert surface_of(inner, spacing).sizes.sum() == pytest.approx(4 * math.pi * 20**2, rel=0.12)  # steps


def test_two_neighbouring_voxels():
    distances = surface_distances(box((9, 9, 9), (4, 4, 4), (5, 5, 5)), box((9, 9, 9), (5, 4, 4), (6, 5, 5)), (3, 1, 1))
    assert distances.hausdorff(100) <= 3


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_mask_is_at_no_distance_from_itself(seed: int):
    mask, _, spacing = random_pair(seed)
    distances = surface_distances(mask, mask.copy(), spacing)
    assert (distances.hausdorff(100), distances.average_symmetric(), distances.normalised(1e-3)) == (0, 0, 1)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_prediction_and_reference_may_be_swapped(seed: int):
    reference, prediction, spacing = random_pair(seed)
    there, back = surface_distances(reference, prediction, spacing), surface_distances(prediction, reference, spacing)
    assert there.hausdorff() == back.hausdorff()
    assert there.average_symmetric() == pytest.approx(back.average_symmetric())
    assert there.normalised(1.0) == pytest.approx(back.normalised(1.0))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, factor=st.floats(0.1, 10))
def test_distances_grow_with_the_voxels(seed: int, factor: float):
    reference, prediction, spacing = random_pair(seed)
    one = surface_distances(reference, prediction, spacing)
    other = surface_distances(reference, prediction, [factor * size for size in spacing])
    assert other.hausdorff(100) == pytest.approx(factor * one.hausdorff(100))
    assert other.average_symmetric() == pytest.approx(factor * one.average_symmetric())


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_where_an_object_lies_in_its_image_does_not_matter(seed: int):
    reference, prediction, spacing = random_pair(seed)
    one = surface_distances(reference, prediction, spacing)
    other = surface_distances(np.pad(reference, 3), np.pad(prediction, 3), spacing)
    assert other.hausdorff() == pytest.approx(one.hausdorff())
    assert other.average_symmetric() == pytest.approx(one.average_symmetric())


def test_a_distance_of_just_the_tolerance_lies_within_it():
    # 3 * 0.1 is a little more than 0.3.
    reference, prediction = box((12, 6, 6), (0, 0, 0), (4, 6, 6)), box((12, 6, 6), (0, 0, 0), (7, 6, 6))
    distances = surface_distances(reference, prediction, (0.1, 5.0, 5.0))
    assert distances.normalised(0.3) == 1
    assert distances.normalised(0.29) < 1


def test_contours_in_two_dimensions():
    reference, prediction = box((40, 40), (5, 5), (15, 25)), box((40, 40), (5, 9), (15, 29))
    distances = surface_distances(reference, prediction, (2.0, 0.5))
    assert surface_of(reference, (2.0, 0.5)).sizes.sum() == pytest.approx(2 * (20 + 10), rel=0.05)
    assert distances.hausdorff(100) == pytest.approx(2)
    assert surface_distances(reference, reference, (2.0, 0.5)).hausdorff(100) == 0


def test_several_contours_are_not_joined():
    two = box((30, 30), (2, 2), (6, 6)) | box((30, 30), (20, 20), (24, 24))
    assert surface_of(two, (1, 1)).sizes.sum() == pytest.approx(
        2 * surface_of(box((30, 30), (2, 2), (6, 6)), (1, 1)).sizes.sum()
    )


def test_an_empty_mask_has_no_surface():
    with pytest.raises(ValueError, match="empty"):
        surface_of(np.zeros((3, 3, 3), bool), (1, 1, 1))
