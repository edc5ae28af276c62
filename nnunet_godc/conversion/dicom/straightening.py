"""Series whose slices are tilted against their stack, or lie at uneven distances: onto a right-angled grid.

Masks are drawn on the slices as they are stored, whose pixels they were drawn on; image and mask are resampled together
afterwards. Until then, the slices stand in a stack that is even and upright, and `Straightening` knows where each of
them really lies.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        heights: of all slices along the normal, mm, ascending, shape (k,).
        aside: how far each slice lies aside from the first, in pixels along i and j, shape (k, 2).
    """

    stack: Grid
    plane: Plane
    heights: NDArray[np.float64]
    aside: NDArray[np.float64]

    @classmethod
    def of(cls, planes: Sequence[Plane], columns_and_rows: tuple[int, int]) -> Straightening:
        """Of slices in the order of their heights."""
        first = planes[0]
        positions = np.array([plane.position for plane in planes], np.float64)
        heights = positions @ first.normal
        step = first.normal * float(np.median(np.diff(heights)))
        stack = grid_from_affine((*columns_and_rows, len(planes)), first.affine(step), CaseLog(), what="DICOM series")
        along = np.array([first.along_row, first.along_column])
        aside = (positions - positions[0]) @ along.T / (first.column_spacing, first.row_spacing)
        return cls(stack, first, heights, np.asarray(aside))

    def to_stack(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Moves points of one plane, mm, shape (points, 3), along with the slice that they lie on."""
        heights, distance = self.heights, self.stack.spacing[2]
        height = float(np.mean(points @ self.plane.normal))
        # Beyond the ends the stack goes on at its usual distance.
        inside = float(np.clip(height, heights[0], heights[-1]))
        place = float(np.interp(inside, heights, np.arange(len(heights)))) + (height - inside) / distance
        aside = np.append(self.aside[np.abs(heights - height).argmin()], 0.0)
        upright = self.plane.normal * (heights[0] + distance * place - height)
        return np.asarray(points - self.plane.affine(self.plane.normal)[:3, :3] @ aside + upright)

    def resampled(self, voxels: NDArray[Any], *, nearest: bool) -> tuple[NDArray[Any], Grid]:
        """The stack's voxels, shape (i, j, k), at their true places on a right-angled grid that holds all of them.

        Args:
            nearest: take the nearest voxel, for labels; else linear between slices and within them.

        Returns:
            The voxels, of the same dtype, and the grid. What no slice covers takes the lowest value.
        """
        import scipy.ndimage

        heights, distance, lowest = self.heights, self.stack.spacing[2], voxels.min()
        low = np.floor(self.aside.min(axis=0) + 1e-6).astype(int)
        high = np.ceil(self.aside.max(axis=0) - 1e-6).astype(int)
        places = np.arange(heights[0], heights[-1] + distance / 2, distance)
        shape = (*(np.array(voxels.shape[:2]) + high - low), len(places))

        def slice_of(k: int) -> NDArray[np.float64]:
            canvas = np.full(shape[:2], lowest, np.float64)
            canvas[: voxels.shape[0], : voxels.shape[1]] = voxels[:, :, k]
            order = 0 if nearest else 1
            return np.asarray(scipy.ndimage.shift(canvas, self.aside[k] - low, order=order, cval=float(lowest)))

        result = np.empty(shape, voxels.dtype, order="F")
        for n, place in enumerate(np.interp(places, heights, np.arange(len(heights)))):
            below, share = divmod(float(round(place) if nearest else place), 1.0)
            values = slice_of(int(below))
            if share:
                values = values * (1 - share) + slice_of(int(below) + 1) * share
            result[:, :, n] = values if voxels.dtype.kind == "f" else np.rint(values)
        affine = self.plane.affine(self.plane.normal * distance)
        affine[:3, 3] += affine[:3, :2] @ low
        return result, grid_from_affine(shape, affine, CaseLog(), what="DICOM series")
