"""Distances between the surfaces of two masks, in millimetres: HD95, average symmetric distance, NSD.

The surface of a mask is the mesh that marching cubes lays half-way between the voxels inside and outside; what lies
outside the image counts as outside, so that an object ends where the image ends. Every triangle (in 2D: every segment
of the contour) stands at its centre with its area as its weight. Its distance to the other surface is that to the
nearest centre or corner of the other mesh: never below the true one, and above it by half a voxel's diagonal at most.

Weights by area matter where voxels are not cubes: with slices ten times as thick as pixels are wide, a rim of voxels
counts the faces between slices ten times as much as those across them. ``docs/metrics.md`` compares implementations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree
from skimage.measure import find_contours, marching_cubes

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

ROUNDING_MM = 1e-6  # three voxels of 0.1 mm are 0.30000000000000004 mm


class Surface(NamedTuple):
    """A surface in pieces.

    Attributes:
        centres: (pieces, dimensions), mm.
        corners: (corners, dimensions), mm.
        sizes: (pieces,), areas in mm^2; lengths in mm in 2D.
    """

    centres: Floats
    corners: Floats
    sizes: Floats


class SurfaceDistances(NamedTuple):
    """From every piece of one surface to the other surface, and the sizes of the pieces.

    Attributes:
        from_reference: (pieces of the reference,), mm.
        reference_sizes: (pieces of the reference,), mm^2 or mm.
        from_prediction: (pieces of the prediction,), mm.
        prediction_sizes: (pieces of the prediction,), mm^2 or mm.
    """

    from_reference: Floats
    reference_sizes: Floats
    from_prediction: Floats
    prediction_sizes: Floats

    def hausdorff(self, percentile: float = 95) -> float:
        """The larger of the two directed distances within which `percentile` per cent of a surface lie, mm."""
        return max(
            _percentile(self.from_reference, self.reference_sizes, percentile),
            _percentile(self.from_prediction, self.prediction_sizes, percentile),
        )

    def average_symmetric(self) -> float:
        """The mean distance over both surfaces together, mm."""
        distances = self.from_reference @ self.reference_sizes + self.from_prediction @ self.prediction_sizes
        return float(distances / (self.reference_sizes.sum() + self.prediction_sizes.sum()))

    def normalised(self, tolerance: float) -> float:
        """NSD (Nikolov et al. 2018): the share of both surfaces that lies within `tolerance` mm of the other one."""
        within = (
            self.reference_sizes[self.from_reference <= tolerance + ROUNDING_MM].sum()
            + self.prediction_sizes[self.from_prediction <= tolerance + ROUNDING_MM].sum()
        )
        return float(within / (self.reference_sizes.sum() + self.prediction_sizes.sum()))


def surface_distances(reference: Mask, prediction: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Distances between the surfaces of two masks of one shape, in 2D or 3D.

    Args:
        reference, prediction: neither may be empty.
        spacing: of the voxels along the axes of the masks, mm.

    Raises:
        ValueError: a mask is empty.
    """
    a, b = surface_of(reference, spacing), surface_of(prediction, spacing)
    return SurfaceDistances(_distances(a, b), a.sizes, _distances(b, a), b.sizes)


def surface_of(mask: Mask, spacing: Sequence[float]) -> Surface:
    """The surface of a mask.

    Raises:
        ValueError: the mask is empty.
    """
    boxes = find_objects(mask.view(np.uint8))
    if not boxes:
        raise ValueError("an empty mask has no surface")
    [box] = boxes
    # A rim of outside all around: marching cubes leaves a surface open where the array ends.
    cropped = np.pad(mask[box], 1).astype(np.float32)
    corners, pieces = _mesh(cropped) if mask.ndim == 3 else _contours(cropped)
    # In voxels the corners are whole or half numbers, without rounding. Only from here on are they in millimetres.
    corners = (corners.astype(np.float64) + [edge.start - 1 for edge in box]) * np.asarray(spacing, np.float64)
    points = corners[pieces]  # -> (pieces, points of a piece, dimensions)
    edges = points[:, 1:] - points[:, :1]
    sizes = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]) / 2 if mask.ndim == 3 else edges[:, 0], axis=-1)
    return Surface(points.mean(axis=1), corners, sizes)


def _mesh(padded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    corners, triangles, _, _ = marching_cubes(padded, 0.5)
    return corners, triangles


def _contours(padded: NDArray[np.float32]) -> tuple[Floats, NDArray[np.int64]]:
    contours = find_contours(padded, 0.5)
    lengths = [len(contour) for contour in contours]
    first = np.delete(np.arange(sum(lengths)), np.cumsum(lengths) - 1)  # of each contour, all points but the last
    return np.concatenate(contours), np.stack([first, first + 1], axis=1)


def _distances(surface: Surface, other: Surface) -> Floats:
    nearest: Floats = cKDTree(np.concatenate([other.centres, other.corners])).query(surface.centres)[0]
    return nearest


def _percentile(distances: Floats, sizes: Floats, percentile: float) -> float:
    order = np.argsort(distances)
    covered = np.cumsum(sizes[order])
    return float(distances[order][np.searchsorted(covered, percentile / 100 * covered[-1])])
