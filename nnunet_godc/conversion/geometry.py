"""Where the voxels of a volume lie, and turning volumes to one orientation without touching a value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_godc.conversion.problems import CaseError, CaseLog, IrregularError

Triple = tuple[float, float, float]
Matrix = tuple[Triple, Triple, Triple]
Voxel = TypeVar("Voxel", bound=np.generic)

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
ORIENTATIONS = ("LPS", "RAS")

# Axes that are this far from being perpendicular are taken for rounding in a header and are mended; a gantry tilt or a
# shear of more would move voxels by centimetres, and only resampling can mend that.
MAX_SKEW = 2.0  # degrees
ROUNDING = 1e-4  # of a direction cosine: what a header with four decimals leaves


@dataclass(frozen=True)
class Grid:
    """A regular grid in the patient's space, in DICOM's and ITK's axes: x to the left, y to the back, z to the head.

    Attributes:
        shape: number of voxels along the array's axes i, j, k.
        spacing: millimetres between voxel centres along i, j, k.
        origin: position of the centre of voxel (0, 0, 0), mm.
        direction: rows x, y, z; column c is the unit vector along array axis c. Orthonormal, possibly left-handed.
    """

    shape: tuple[int, int, int]
    spacing: Triple
    origin: Triple
    direction: Matrix

    @property
    def affine(self) -> NDArray[np.float64]:
        """Index (i, j, k, 1) to millimetres (x, y, z, 1), float64, shape (4, 4)."""
        affine = np.eye(4)
        affine[:3, :3] = np.array(self.direction) * self.spacing
        affine[:3, 3] = self.origin
        return affine

    @property
    def orientation(self) -> str:
        """The anatomical direction that each array axis runs towards, such as ``"LPS"``."""
        return "".join("LPS"[row] if value > 0 else "RAI"[row] for row, value in map(self._patient_axis, range(3)))

    def _patient_axis(self, axis: int) -> tuple[int, float]:
        """Which of x, y, z the array axis runs along, and its direction cosine there; no two axes share one."""
        row = _assignment(np.array(self.direction))[axis]
        return row, self.direction[row][axis]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return math.prod(self.spacing) / 1000

    def matches(self, other: Grid, tolerance: float = 1e-2) -> bool:
        """Whether both grids put every voxel to the same place, within `tolerance` times the smallest spacing."""
        if self.shape != other.shape:
            return False
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
        corners[:, :3] *= np.array(self.shape) - 1
        apart = np.abs(corners @ (self.affine - other.affine).T).max()
        return bool(apart <= tolerance * min(self.spacing))

    def is_shifted_from(self, other: Grid) -> bool:
        """Whether it is the other grid but for its origin."""
        return replace(self, origin=other.origin).matches(other)

    def reoriented(self, orientation: str) -> tuple[Grid, tuple[int, ...], tuple[slice, ...]]:
        """This grid with its axes along `orientation`, and how to bring an array there.

        Returns:
            The new grid, the transposition and the flips: ``voxels.transpose(order)[flips]``. No value changes.
        """
        rows = [row for row, _ in map(self._patient_axis, range(3))]
        order = tuple(rows.index("LPS".index(_axis_of(code))) for code in orientation)
        flips = []
        origin = np.array(self.origin)
        direction = np.array(self.direction)
        for code, axis in zip(orientation, order, strict=True):
            row = rows[axis]
            if (direction[row, axis] > 0) == (code in "LPS"):
                flips.append(slice(None))
            else:
                flips.append(slice(None, None, -1))
                origin = origin + direction[:, axis] * self.spacing[axis] * (self.shape[axis] - 1)
                direction[:, axis] *= -1
        turned = Grid(
            shape=(self.shape[order[0]], self.shape[order[1]], self.shape[order[2]]),
            spacing=(self.spacing[order[0]], self.spacing[order[1]], self.spacing[order[2]]),
            origin=_triple(origin),
            direction=_matrix(direction[:, order]),
        )
        return turned, order, tuple(flips)

    def with_spacing(self, spacing: Triple) -> Grid:
        """The same grid with other voxel sizes; its first voxel stays where it is."""
        return replace(self, spacing=spacing)

    def with_given_spacing(self, spacing: Triple | None, notes: CaseLog, *, what: str) -> Grid:
        """The grid with the voxel sizes that a user gives, mm along i, j, k; None leaves it as it is.

        A change is noted as a repair of `what`; what only rounding tells apart is none.
        """
        if spacing is None or np.allclose(self.spacing, spacing, rtol=1e-4):
            return self
        before, after = (" x ".join(f"{size:.4g}" for size in sizes) for sizes in (self.spacing, spacing))
        notes.repairs.append(f"spacing of the {what} set from {before} to {after} mm, as given")
        return self.with_spacing(spacing)

    def as_json(self) -> dict[str, Any]:
        """As conversion.json has it, with the orientation, which follows from the direction."""
        return {
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "origin": list(self.origin),
            "direction": [list(row) for row in self.direction],
            "orientation": self.orientation,
        }


@dataclass(frozen=True)
class Volume(Generic[Voxel]):
    """Voxels on a grid.

    Attributes:
        voxels: shape (i, j, k) of `grid`; a view, a memory map or an array of its own.
        grid: where they lie.
    """

    voxels: NDArray[Voxel]
    grid: Grid

    def __post_init__(self) -> None:
        if self.voxels.shape != self.grid.shape:
            raise ValueError(f"voxels of shape {self.voxels.shape} on a grid of shape {self.grid.shape}")

    def reoriented(self, orientation: str) -> Volume[Voxel]:
        """The same patient stored along other axes, for example ``"LPS"``: a view, no value changes."""
        grid, order, flips = self.grid.reoriented(orientation)
        return Volume(self.voxels.transpose(order)[flips], grid)


def is_default_affine(affine: NDArray[np.float64]) -> bool:
    """Whether an affine is what a program writes that knows nothing: the identity, perhaps with flipped axes."""
    return bool(np.array_equal(np.abs(affine), np.eye(4)))


def grid_from_affine(
    shape: tuple[int, int, int], affine: NDArray[np.float64], notes: CaseLog, *, what: str = "image"
) -> Grid:
    """The grid that an LPS `affine` (shape (4, 4), mm) describes.

    Axes that are not quite perpendicular are replaced by the nearest orthonormal ones (in the Frobenius norm: the
    orthogonal factor of the polar decomposition), which is noted as a repair of `what`.

    Raises:
        CaseError: an entry is not finite, a column vanishes, or the axes are skewed by more than `MAX_SKEW` degrees.
    """
    if not np.isfinite(affine).all():
        raise CaseError(f"the {what}'s position in space holds a value that is not a number; fix its header")
    columns = affine[:3, :3].astype(np.float64)
    spacing = np.linalg.norm(columns, axis=0)
    if spacing.min() <= 1e-6 or spacing.max() > 1e4:
        raise CaseError(f"the {what}'s voxels are {_mm(spacing)} mm large, which cannot be; fix its header")
    cosines = columns / spacing
    between_axes = np.abs(cosines.T @ cosines)[np.triu_indices(3, 1)]
    skew = float(np.degrees(np.arcsin(np.clip(between_axes, 0, 1)).max()))
    left, singular, right = np.linalg.svd(cosines)
    nearest = left @ right
    if skew > MAX_SKEW or singular.min() < 0.5:
        raise IrregularError(
            f"the {what}'s axes are skewed by {skew:.1f} degrees (a gantry tilt or a shear); resample it to a "
            "right-angled grid first: of dcm2niix's files, take the one whose name ends in _Tilt_1"
        )
    if np.abs(nearest - cosines).max() > ROUNDING:
        moved = np.abs((nearest - cosines) * spacing @ np.diag(np.array(shape) - 1)).sum(axis=1).max()
        notes.repairs.append(
            f"direction matrix of the {what} replaced by the nearest orthonormal one: axes were skewed by "
            f"{skew:.3f} degrees, the farthest voxel moves by {moved:.2f} mm"
        )
    return Grid(shape, _triple(spacing), _triple(affine[:3, 3]), _matrix(nearest))


def grid_from_axes(
    shape: tuple[int, int, int],
    spacing: Triple,
    origin: Triple,
    direction: NDArray[np.float64],
    notes: CaseLog,
    *,
    what: str = "image",
) -> Grid:
    """The grid of a header that gives spacing, origin (both in mm) and direction cosines each on its own, in LPS.

    Args:
        direction: shape (3, 3), rows x, y, z; column c belongs to array axis c.
        what: as in `grid_from_affine`.

    Raises:
        CaseError: as `grid_from_affine`, and for cosines that are far from unit length.
    """
    lengths = np.linalg.norm(direction, axis=0)
    if not np.isfinite(lengths).all() or np.abs(lengths - 1).max() > 0.05:
        raise CaseError(f"the {what}'s direction cosines are no unit vectors; fix its header")
    affine = np.eye(4)
    affine[:3, :3] = direction / lengths * spacing
    affine[:3, 3] = origin
    return grid_from_affine(shape, affine, notes, what=what)


def _assignment(direction: NDArray[np.float64]) -> tuple[int, int, int]:
    """The patient axis of every array axis: the permutation with the largest cosines."""
    best = max(_PERMUTATIONS, key=lambda rows: sum(abs(direction[row, axis]) for axis, row in enumerate(rows)))
    return best


_PERMUTATIONS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def _axis_of(code: str) -> str:
    return {"R": "L", "A": "P", "I": "S"}.get(code, code)


def _triple(values: NDArray[np.float64]) -> Triple:
    # Adding zero turns -0.0 into 0.0, so that equal grids have equal bytes.
    x, y, z = (float(value) + 0.0 for value in values)
    return x, y, z


def _matrix(values: NDArray[np.float64]) -> Matrix:
    return _triple(values[0]), _triple(values[1]), _triple(values[2])


def _mm(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
