"""Series whose slices are tilted against their stack, or lie at uneven distances: onto a right-angled grid.

Masks are drawn on the slices as they are stored, whose pixels they were drawn on; image and mask are resampled together
afterwards. Until then, the slices stand in a stack that is even and upright, and `Straightening` knows where each of
them really lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_godc.conversion.dicom.headers import Plane
from nnunet_godc.conversion.geometry import Grid, grid_from_affine
from nnunet_godc.conversion.problems import CaseLog


@dataclass(frozen=True)
class Straightening:
    """Between the slices' true positions and the upright stack.

    Attributes:
        stack: the grid on which slice k is k times the usual distance above the first.
        plane: of the first slice.
        positions: of all slices, mm, shape (k, 3), in order along the normal.
    """

    stack: Grid
    plane: Plane
    positions: NDArray[np.float64]

    @property
    def _heights(self) -> NDArray[np.float64]:
        return np.asarray(self.positions @ self.plane.normal)

    @property
    def _aside(self) -> NDArray[np.float64]:
        """How far each slice lies aside from the first, in pixels along i and j, shape (k, 2)."""
        moved = self.positions - self.positions[0]
        along = np.array([self.plane.along_row, self.plane.along_column])
        return np.asarray(moved @ along.T / (self.plane.column_spacing, self.plane.row_spacing))

    def to_stack(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Moves points of one plane, mm, shape (points, 3), along with the slice that they lie on."""
        heights, distance = self._heights, self.stack.spacing[2]
        height = float(np.mean(points @ self.plane.normal))
        nearest = int(np.abs(heights - height).argmin())
        # Beyond the ends the stack goes on at its usual distance.
        ends = np.array([heights[0] - 1e3 * distance, *heights, heights[-1] + 1e3 * distance])
        at = np.array([-1e3, *range(len(heights)), len(heights) - 1 + 1e3])
        upright = heights[0] + distance * float(np.interp(height, ends, at))
        i, j = self._aside[nearest]
        aside = np.multiply(self.plane.along_row, i * self.plane.column_spacing) + np.multiply(
            self.plane.along_column, j * self.plane.row_spacing
        )
        return np.asarray(points - aside + (upright - height) * self.plane.normal)

    def resampled(self, voxels: NDArray[Any], *, nearest: bool) -> tuple[NDArray[Any], Grid]:
        """The stack's voxels, shape (i, j, k), at their true places on a right-angled grid that holds all of them.

        Args:
            nearest: take the nearest voxel, for labels; else linear between slices and within them.

        Returns:
            The voxels, of the same dtype, and the grid. What no slice covers takes the lowest value.
        """
        import scipy.ndimage

        heights, aside, distance = self._heights, self._aside, self.stack.spacing[2]
        low, high = np.floor(aside.min(axis=0) + 1e-6).astype(int), np.ceil(aside.max(axis=0) - 1e-6).astype(int)
        count = round((heights[-1] - heights[0]) / distance) + 1
        shape = (*(np.array(voxels.shape[:2]) + high - low), count)
        lowest = voxels.min()
        result = np.full(shape, lowest, voxels.dtype, order="F")
        places = np.interp(heights[0] + distance * np.arange(count), heights, np.arange(len(heights)))

        def slice_of(k: int) -> NDArray[np.float64]:
            canvas = np.full(shape[:2], lowest, np.float64)
            canvas[: voxels.shape[0], : voxels.shape[1]] = voxels[:, :, k]
            moved = aside[k] - low
            if not np.any(moved):
                return canvas
            return np.asarray(scipy.ndimage.shift(canvas, moved, order=0 if nearest else 1, cval=float(lowest)))

        for n, place in enumerate(places):
            if nearest:
                values = slice_of(round(float(place)))
            else:
                below, share = int(place), float(place) - int(place)
                values = slice_of(below)
                if share:
                    values = values * (1 - share) + slice_of(below + 1) * share
            result[:, :, n] = values if voxels.dtype.kind == "f" else np.rint(values)
        affine = self.plane.affine(self.plane.normal * distance)
        affine[:3, 3] += affine[:3, :2] @ low
        grid = grid_from_affine((int(shape[0]), int(shape[1]), count), affine, CaseLog(), what="DICOM series")
        return result, grid
