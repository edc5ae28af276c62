"""Where the voxels of a volume lie, and turning volumes to one orientation without touching a value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import SimpleITK
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from nnunet_godc.conversion.problems import CaseError, CaseLog, IrregularError

Triple = tuple[float, float, float]
Matrix = tuple[Triple, Triple, Triple]
Voxel = TypeVar("Voxel", bound=np.generic)

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
ORIENTATIONS = ("LPS", "RAS")

# Axes that are this far from being perpendicular are taken for rounding in a header and are fixed; a gantry tilt or a
# shear of more would move voxels by centimetres, and only resampling can fix that.
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
        return "".join("LPS"[row] if upwards else "RAI"[row] for row, upwards in self._axes)

    @property
    def _axes(self) -> list[tuple[int, bool]]:
        """Of every array axis: which of x, y, z it runs along, and whether in its direction."""
        return [(int(row), sign > 0) for row, sign in io_orientation(self.affine)]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return math.prod(self.spacing) / 1000

    def matches(self, other: Grid, tolerance: float = 1e-2) -> bool:
        """Whether both grids put every voxel to the same place, within `tolerance` times the smallest spacing."""
        if self.shape != other.shape:
            return False
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape) - 1)
        apart = np.abs(np.column_stack([corners, np.ones(8)]) @ (self.affine - other.affine).T).max()
        return bool(apart <= tolerance * min(self.spacing))

    def is_shifted_from(self, other: Grid) -> bool:
        """Whether it is the other grid but for its origin."""
        return replace(self, origin=other.origin).matches(other)

    def reoriented(self, orientation: str) -> tuple[Grid, tuple[int, ...], tuple[slice, ...]]:
        """This grid with its axes along `orientation`, and how to bring an array there.

        Returns:
            The new grid, the transposition and the flips: ``voxels.transpose(order)[flips]``. No value changes.
        """
        axes = self._axes
        wanted = [divmod("LPSRAI".index(code), 3) for code in orientation]
        order = tuple([row for row, _ in axes].index(row) for _, row in wanted)
        flips = []
        origin, direction = np.array(self.origin), np.array(self.direction)
        for (downwards, _), axis in zip(wanted, order, strict=True):
            flip = axes[axis][1] == bool(downwards)
            flips.append(slice(None, None, -1 if flip else None))
            if flip:
                origin += direction[:, axis] * self.spacing[axis] * (self.shape[axis] - 1)
                direction[:, axis] *= -1
        i, j, k = order
        shape, spacing = self.shape, self.spacing
        reoriented = Grid(
            (shape[i], shape[j], shape[k]),
            (spacing[i], spacing[j], spacing[k]),
            _triple(origin),
            _matrix(direction[:, order]),
        )
        return reoriented, order, tuple(flips)

    def with_spacing(self, spacing: Triple | None, log: CaseLog, *, what: str) -> Grid:
        """The grid with the voxel sizes that a user gives, mm along i, j, k; its first voxel stays where it is.

        None leaves it as it is. A change is noted as a repair of `what`; what only rounding tells apart is none.
        """
        if spacing is None or np.allclose(self.spacing, spacing, rtol=1e-4):
            return self
        log.repairs.append(f"spacing of the {what} set from {times(self.spacing)} to {times(spacing)} mm, as given")
        return replace(self, spacing=spacing)

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


def grid_from_affine(shape: tuple[int, ...], affine: NDArray[np.float64], log: CaseLog, *, what: str = "image") -> Grid:
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
        raise CaseError(f"the {what}'s voxels are {times(spacing)} mm large, which cannot be; fix its header")
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
    i, j, k = shape
    if np.abs(nearest - cosines).max() > ROUNDING:
        moved = np.abs((nearest - cosines) * spacing * (i - 1, j - 1, k - 1)).sum(axis=1).max()
        log.repairs.append(
            f"direction matrix of the {what} replaced by the nearest orthonormal one: axes were skewed by "
            f"{skew:.3f} degrees, the farthest voxel moves by {moved:.2f} mm"
        )
    return Grid((i, j, k), _triple(spacing), _triple(affine[:3, 3]), _matrix(nearest))


def resampled_to(target: Grid, label: Volume[Any]) -> NDArray[np.uint8]:
    """Each voxel of `target` takes the value of `label` that its centre is nearest to, and 0 outside of it.

    Args:
        label: uint8 or bool.

    Returns:
        Shape of `target`.
    """

    def placed(image: SimpleITK.Image, grid: Grid) -> SimpleITK.Image:
        image.SetSpacing(grid.spacing)
        image.SetOrigin(grid.origin)
        image.SetDirection(np.ravel(grid.direction).tolist())
        return image

    voxels = label.voxels.transpose(2, 1, 0).astype(np.uint8, copy=False)
    resampled = SimpleITK.Resample(
        placed(SimpleITK.GetImageFromArray(voxels), label.grid),
        placed(SimpleITK.Image(list(target.shape), SimpleITK.sitkUInt8), target),
        SimpleITK.Transform(),
        SimpleITK.sitkNearestNeighbor,
    )
    return np.asarray(SimpleITK.GetArrayFromImage(resampled).transpose(2, 1, 0))


def times(sizes: Any) -> str:
    """``(0.8, 0.8, 2.5)`` as ``0.8 x 0.8 x 2.5``."""
    return " x ".join(f"{size:.4g}" for size in sizes)


def _triple(values: NDArray[np.float64]) -> Triple:
    # Adding zero turns -0.0 into 0.0, so that equal grids have equal bytes.
    x, y, z = (float(value) + 0.0 for value in values)
    return x, y, z


def _matrix(values: NDArray[np.float64]) -> Matrix:
    return _triple(values[0]), _triple(values[1]), _triple(values[2])
