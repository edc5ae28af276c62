"""CT-like phantoms of the upper abdomen: a liver with lesions of very different sizes among its neighbours.

The anatomy is a handful of ellipsoids in millimetres, in the patient's own axes (x to the right, y to the front, z to
the head), bent by one smooth random warp so that no two patients are alike. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

LIVER = 1
TUMOUR = 2

AIR, LUNG, FAT, MUSCLE, BONE = -1000.0, -820.0, -100.0, 50.0, 320.0

Field = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Phantom:
    """One patient: a CT volume and its reference segmentation on the same grid.

    Attributes:
        image: Hounsfield units, int16, shape (i, j, k).
        labels: 0 background, 1 liver, 2 tumour, uint8, same shape.
        affine: voxel index to millimetres in RAS+ space, float64, shape (4, 4); holds for both arrays.
    """

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]

    def reoriented(self, axis_codes: str) -> Phantom:
        """The same patient stored along other axes, for example ``"LPS"``; no voxel value changes.

        Raises:
            ValueError: `axis_codes` does not name three different anatomical axes.
        """
        if len(axis_codes) != 3 or [sorted(pair & set(axis_codes)) for pair in map(set, ("LR", "PA", "IS"))].count([]):
            raise ValueError(f"orientation {axis_codes!r} is not one of L/R, P/A and I/S in some order, such as 'LPS'")
        turn = ornt_transform(io_orientation(self.affine), axcodes2ornt(tuple(axis_codes)))
        return Phantom(
            image=np.ascontiguousarray(apply_orientation(self.image, turn)),
            labels=np.ascontiguousarray(apply_orientation(self.labels, turn)),
            affine=self.affine @ inv_ornt_aff(turn, self.image.shape),
        )


def make_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = (96, 80, 40),
    spacing: tuple[float, float, float] = (3.6, 3.6, 5.0),
    lesion_radii: Sequence[float] = (5.0, 9.0, 16.0, 28.0),
) -> Phantom:
    """Draw one patient, stored along RAS axes.

    Args:
        seed: decides everything that varies between patients.
        shape: voxels along x, y, z.
        spacing: millimetres between voxel centres along x, y, z.
        lesion_radii: mean radius of each lesion in millimetres; empty for a patient without tumour.

    Raises:
        ValueError: a lesion finds no room in the liver.
    """
    random = np.random.default_rng(seed)
    x, y, z = _bent_coordinates(random, shape, spacing)
    width, depth = random.uniform(145, 165), random.uniform(108, 124)  # half axes of the body, mm

    image = np.full(shape, AIR)
    body = _ellipsoid(x, y, 0 * z, radii=(width, depth, 1))
    cavity = _ellipsoid(x, y, 0 * z, radii=(width - 30, depth - 28, 1))
    _paint(image, body < 1, FAT)
    _paint(image, _ellipsoid(x, y, 0 * z, radii=(width - 16, depth - 14, 1)) < 1, MUSCLE)
    _paint_ribs(image, x, y, z, width, depth)
    # Bowel and fat: random lobules, so that the neighbourhood of the organs is not one flat grey.
    lobules = _smooth_noise(random, shape, coarse=9)
    _paint(image, (cavity < 1) & (lobules < 0.1), FAT)
    _paint(image, (cavity < 1) & (lobules >= 0.1), random.uniform(20, 45))
    _paint_spine(image, x, y, z, depth)
    _paint(image, _ellipsoid(x + 12, y + 0.22 * depth, 0 * z, radii=(10, 10, 1)) < 1, random.uniform(130, 170))
    for side in (-1, 1):
        kidney = _ellipsoid(x - side * 0.42 * width, y + 0.38 * depth, z + 50, radii=(26, 28, 48))
        _paint(image, kidney < 1, random.uniform(125, 160))
    _paint_stomach(image, x, y, z, width, depth)

    liver_attenuation = random.uniform(75, 100)
    spleen = _ellipsoid(x + 0.56 * width, y + 0.28 * depth, z - 25, radii=(0.2 * width, 0.36 * depth, 46))
    _paint(image, spleen < 1, liver_attenuation + random.uniform(15, 30))

    dome = 62 - 40 * ((x - 0.42 * width) / width) ** 2 - 30 * (y / depth) ** 2
    _paint(image, (cavity < 1) & (z > dome + 12), LUNG)

    liver = _liver(x, y, z, width, depth) & (cavity < 1) & (z < dome + 6)
    _paint(image, liver, liver_attenuation)
    tumour = np.zeros(shape, dtype=bool)
    for radius in sorted(lesion_radii, reverse=True):
        lesion = _lesion(random, liver & ~tumour, radius, spacing)
        _paint(image, lesion, liver_attenuation - random.uniform(32, 50))
        tumour |= lesion

    labels = np.where(tumour, TUMOUR, np.where(liver, LIVER, 0)).astype(np.uint8)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * (np.array(shape) - 1) * spacing + random.uniform(-40, 40, size=3)
    return Phantom(image=_scan(random, image), labels=labels, affine=affine)


def _paint(image: Field, where: Mask, attenuation: float) -> None:
    image[where] = attenuation


def _ellipsoid(x: Field, y: Field, z: Field, radii: tuple[float, float, float]) -> Field:
    """Squared distance from the centre in units of the radii: below 1 inside."""
    return (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2


def _smooth_noise(random: np.random.Generator, shape: tuple[int, ...], coarse: int) -> Field:
    """Random field of unit variance that varies over about 1/`coarse` of the volume."""
    knots = random.standard_normal((coarse, coarse, coarse))
    # Cubic splines are separable: one small matrix per axis costs a twentieth of ndimage.zoom on the volume.
    along = [ndimage.zoom(np.eye(coarse), (n / coarse, 1), order=3, mode="nearest", grid_mode=True) for n in shape]
    return np.asarray(np.einsum("xa,yb,zc,abc->xyz", *along, knots, optimize=True), dtype=np.float64)


def _bent_coordinates(
    random: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[Field, Field, Field]:
    """Millimetres from the centre of the volume along x, y and z, under a smooth warp of some millimetres."""
    axes = [(np.arange(n) - 0.5 * (n - 1)) * step for n, step in zip(shape, spacing, strict=True)]
    x, y, z = (
        axis + 5.0 * _smooth_noise(random, shape, coarse=5) + random.uniform(-6, 6)
        for axis in np.meshgrid(*axes, indexing="ij")
    )
    return x, y, z


def _paint_ribs(image: Field, x: Field, y: Field, z: Field, width: float, depth: float) -> None:
    wall = _ellipsoid(x, y, 0 * z, radii=(width - 23, depth - 21, 1))
    descent = z + 0.55 * y  # ribs run downwards from back to front
    _paint(image, (abs(wall - 1) < 0.1) & (np.mod(descent, 30) < 11) & (y < 0.75 * depth), BONE)


def _paint_spine(image: Field, x: Field, y: Field, z: Field, depth: float) -> None:
    centre = y + 0.5 * depth
    vertebra = _ellipsoid(x, centre, 0 * z, radii=(22, 17, 1)) < 1
    _paint(image, vertebra, 200)
    _paint(image, vertebra & (np.mod(z, 34) < 7), 85)  # intervertebral discs
    arch = _ellipsoid(x, centre + 24, 0 * z, radii=(17, 15, 1))
    _paint(image, arch < 1, BONE)
    _paint(image, _ellipsoid(x, centre + 23, 0 * z, radii=(9, 8, 1)) < 1, 25)  # spinal canal


def _paint_stomach(image: Field, x: Field, y: Field, z: Field, width: float, depth: float) -> None:
    stomach = _ellipsoid(x + 0.42 * width, y - 0.3 * depth, z - 12, radii=(0.26 * width, 0.27 * depth, 40)) < 1
    _paint(image, stomach, 15)
    # The patient lies on the back: air rises to the front.
    _paint(image, stomach & (y > 0.42 * depth), -900)


def _liver(x: Field, y: Field, z: Field, width: float, depth: float) -> Mask:
    right = _ellipsoid(x - 0.4 * width, y - 0.02 * depth, z + 4, radii=(0.37 * width, 0.62 * depth, 66))
    left = _ellipsoid(x + 0.02 * width, y - 0.36 * depth, z - 14, radii=(0.42 * width, 0.26 * depth, 40))
    # A smooth union, or the two lobes would meet in a crease.
    return np.asarray(np.exp(-3 * right) + np.exp(-3 * left) > np.exp(-3), dtype=np.bool_)


def _lesion(random: np.random.Generator, room: Mask, radius: float, spacing: Sequence[float]) -> Mask:
    """A lump of about `radius` millimetres inside `room`, at least one voxel large."""
    margin = ndimage.distance_transform_edt(room, sampling=spacing)
    candidates = np.argwhere(margin > min(0.8 * radius, 0.95 * float(margin.max())))
    if len(candidates) == 0:
        raise ValueError(f"no room for a lesion of radius {radius} mm; use a smaller radius")
    centre = candidates[random.integers(len(candidates))]
    radii = radius * random.uniform(0.85, 1.15, size=3)
    x, y, z = (
        (axis - middle) * step / half
        for axis, middle, step, half in zip(np.indices(room.shape), centre, spacing, radii, strict=True)
    )
    # The ripple stays below 1 at the centre, so that the smallest lesion still has a voxel.
    ripple = np.clip(0.15 * _smooth_noise(random, room.shape, coarse=12), -0.9, 0.9)
    return np.asarray((np.sqrt(x**2 + y**2 + z**2) + ripple < 1) & room, dtype=np.bool_)


def _scan(random: np.random.Generator, attenuation: Field) -> NDArray[np.int16]:
    """What a scanner makes of it: edges blurred by the partial volume effect, noise correlated in the slice."""
    blurred = ndimage.gaussian_filter(attenuation, sigma=(0.5, 0.5, 0.35))
    noise = ndimage.gaussian_filter(random.standard_normal(attenuation.shape), sigma=(0.6, 0.6, 0))
    noise *= 10.0 / noise.std()
    return np.asarray(np.clip(np.rint(blurred + noise), -1024, 3071), dtype=np.int16)
