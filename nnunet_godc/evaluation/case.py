"""One case: read prediction and reference as nnU-Net does, check that they belong together, measure every label."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.lesions import LesionRule, Lesions, match_lesions
from nnunet_godc.evaluation.surface import surface_distances

Label = int | tuple[int, ...]
Mask = NDArray[np.bool_]

METHOD = 1  # raised when measured values change: what was kept of an earlier method is measured again
LARGEST_SHIFT = 0.1  # voxels by which prediction and reference may lie apart: headers round
PLANAR = 900  # nnU-Net gives 2D images 999 times the pixels' spacing along the axis that they lack
PLANAR_MM = 1.0
GIPL_HEADER = 256  # bytes


class CaseProblem(Exception):  # noqa: N818 it is told, and stops nothing
    """Why a case could not be measured.

    Attributes:
        sentence: stands after the case's name.
        state: one of `metrics.UNMEASURED`.
    """

    def __init__(self, sentence: str, state: str = metrics.OTHER_REASON) -> None:
        super().__init__(sentence, state)
        self.sentence, self.state = sentence, state

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Labels:
    """What a dataset's dataset.json says of its labels.

    Attributes:
        values: of every label or region but the background, by its name.
        ignore: voxels of the reference with this value are not measured.
    """

    values: Mapping[str, Label]
    ignore: int | None

    @property
    def known(self) -> frozenset[int]:
        """All values that a prediction may hold."""
        members = (value if isinstance(value, tuple) else (value,) for value in self.values.values())
        return frozenset({0}.union(*members))

    @property
    def of_references(self) -> frozenset[int]:
        """Those, and the value that says what is to be ignored."""
        return self.known if self.ignore is None else self.known | {self.ignore}


@dataclass(frozen=True)
class Options:
    """What is measured on the images, and how.

    Attributes:
        surface: HD95, average symmetric surface distance and NSD.
        nsd_tolerance_mm: of the NSD.
        lesions: the labels whose lesions are matched, by name.
        rule: by which they are matched.
        accept_headers: measures voxel by voxel where only the headers of prediction and reference differ.
    """

    surface: bool = True
    nsd_tolerance_mm: float = 2.0
    lesions: tuple[str, ...] = ()
    rule: LesionRule = field(default_factory=LesionRule)
    accept_headers: bool = False

    @property
    def need_images(self) -> bool:
        """Whether nnU-Net's counts of voxels do not suffice."""
        return self.surface or bool(self.lesions)


@dataclass(frozen=True)
class SurfaceMeasures:
    """Distances in mm; NaN where a surface is missing. `nsd` is a share, 0 where one is missing."""

    hd95: float
    assd: float
    nsd: float


@dataclass(frozen=True)
class LabelMeasures:
    """One label in one case: voxels that are right, too many, missed, and what else was asked for."""

    true_positive: int
    false_positive: int
    false_negative: int
    surface: SurfaceMeasures | None = None
    lesions: Lesions | None = None


@dataclass(frozen=True)
class CaseMeasures:
    """One case.

    Attributes:
        labels: by name.
        voxel_ml: volume of a voxel; None where only nnU-Net's summary.json was read, which does not tell it.
        headers_differ_mm: how far the two files lie apart by their headers, where that was accepted; else 0.
    """

    labels: Mapping[str, LabelMeasures]
    voxel_ml: float | None = None
    headers_differ_mm: float = 0.0


def measure_case(
    prediction_file: Path, reference_file: Path, reader: type[Any], labels: Labels, options: Options
) -> CaseMeasures:
    """Read and measure one case.

    Voxels that the reference marks to be ignored count as background in both, as nnU-Net leaves them out. A 2D image,
    and a volume of one slice, has contours for surfaces; 2D images are taken to be 1 mm thick, so that 1 ml stands for
    1000 mm^2.

    Args:
        reader: one of nnU-Net's reader classes.

    Raises:
        CaseProblem: a file is missing, unreadable or holds values that are no labels of the dataset; the two files are
            not of one geometry.
    """
    reference, reference_properties = read_segmentation(reference_file, "reference", reader, labels.of_references)
    prediction, prediction_properties = read_segmentation(prediction_file, "prediction", reader, labels.known)
    apart = _check_geometry(
        reference, prediction, reference_properties, prediction_properties, accept=options.accept_headers
    )
    if labels.ignore is not None:
        prediction[reference == labels.ignore] = 0
        reference[reference == labels.ignore] = 0

    spacing = [float(size) for size in reference_properties["spacing"]]
    if reference.shape[0] == 1:
        thickness = PLANAR_MM if spacing[0] >= PLANAR * max(spacing[1:]) else spacing[0]
        reference, prediction, spacing = reference[0], prediction[0], spacing[1:]
    else:
        thickness = 1.0
    voxel_ml = float(np.prod(spacing)) * thickness / 1000

    # Everything from here on is about foreground.
    boxes = find_objects(np.asarray((reference > 0) | (prediction > 0), np.uint8))
    box = boxes[0] if boxes else (slice(0),) * reference.ndim
    reference, prediction = reference[box], prediction[box]
    measures = {
        name: _measure_label(np.isin(reference, value), np.isin(prediction, value), spacing, voxel_ml, name, options)
        for name, value in labels.values.items()
    }
    return CaseMeasures(measures, voxel_ml, apart)


def _measure_label(
    reference: Mask, prediction: Mask, spacing: list[float], voxel_ml: float, name: str, options: Options
) -> LabelMeasures:
    # nnU-Net's own counting is not used: it is a line, and would bring torch into every worker.
    right = int(np.count_nonzero(reference & prediction))
    in_reference, in_prediction = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    surface = lesions = None
    if options.surface:
        if in_reference and in_prediction:
            distances = surface_distances(reference, prediction, spacing)
            surface = SurfaceMeasures(
                distances.hausdorff(95),
                distances.average_symmetric(),
                distances.normalised(options.nsd_tolerance_mm),
            )
        else:
            surface = SurfaceMeasures(np.nan, np.nan, 0.0 if in_reference or in_prediction else np.nan)
    if name in options.lesions:
        lesions = match_lesions(reference, prediction, voxel_ml=voxel_ml, rule=options.rule)
    return LabelMeasures(right, in_prediction - right, in_reference - right, surface, lesions)


def read_segmentation(
    path: Path, what: str, reader: type[Any], known: frozenset[int]
) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    """The segmentation, (z, y, x), and what nnU-Net's reader says of it.

    Args:
        what: it is, for messages.
        known: the values that it may hold.

    Raises:
        CaseProblem: it cannot be read, or holds another value.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the readers print warnings of their own
            image, properties = reader().read_seg(str(path))
            if "sitk_stuff" in properties and path.name.endswith((".nii", ".nii.gz")):
                # Where a NIfTI file breaks off, ITK puts zeros and goes on; nibabel raises an error.
                same: Any = nibabel.load(path)
                same.dataobj.get_unscaled()
            if path.suffix == ".gipl" and path.stat().st_size < GIPL_HEADER + image.size * _bytes_of_voxel(path):
                raise EOFError("it breaks off")  # ITK leaves in place what was in memory there
    except MemoryError:
        raise
    except Exception as error:  # whatever the libraries behind nnU-Net's readers raise for a damaged file
        raise CaseProblem(f"its {what} cannot be read ({type(error).__name__}): {path}", metrics.NOT_READABLE) from None
    if image.ndim != 4 or image.shape[0] != 1:
        raise CaseProblem(f"its {what} is not a segmentation of one channel: {path}", metrics.NOT_READABLE)
    labels = np.empty(image.shape[1:], np.uint16)
    seen: set[int] = set()
    for plane, values in zip(labels, image[0], strict=True):  # the reader's floats take memory enough
        with np.errstate(invalid="ignore"):
            plane[...] = values
        if not np.array_equal(plane, values):
            wrong = values[plane != values][0]
            raise CaseProblem(f"its {what} holds {wrong:.9g}, which is not a label: {path}", metrics.NOT_READABLE)
        seen.update(np.flatnonzero(np.bincount(plane.ravel())).tolist())
    if unknown := sorted(seen - known):
        sentence = f"its {what} holds {unknown[0]}, which is not a label in dataset.json: {path}"
        raise CaseProblem(sentence, metrics.NOT_READABLE)
    return labels, properties


def _bytes_of_voxel(path: Path) -> int:
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    voxel = SimpleITK.Image([1] * header.GetDimension(), header.GetPixelID())
    return int(SimpleITK.GetArrayViewFromImage(voxel).itemsize)


def _check_geometry(
    reference: NDArray[np.uint16],
    prediction: NDArray[np.uint16],
    reference_properties: dict[str, Any],
    prediction_properties: dict[str, Any],
    *,
    accept: bool,
) -> float:
    """How far the two lie apart by their headers, mm; 0 where they agree.

    Raises:
        CaseProblem: they differ in shape, or in their headers and that is not accepted.
    """
    shapes = [array.shape for array in (prediction, reference)]
    if shapes[0] != shapes[1]:
        sentence = f"prediction and reference differ in shape, {_by(shapes[0])} and {_by(shapes[1])} voxels"
        raise CaseProblem(sentence, metrics.GEOMETRY_DIFFERS)
    spacings = [np.asarray(p["spacing"], float) for p in (prediction_properties, reference_properties)]
    extent = np.asarray(reference.shape)
    apart = float((np.abs(spacings[0] - spacings[1]) * extent).max())
    sentence = ""
    if np.any(np.abs(spacings[0] - spacings[1]) * extent > LARGEST_SHIFT * spacings[1]):
        sentence = f"prediction and reference differ in spacing, {_by(spacings[0])} and {_by(spacings[1])} mm"
    affines = [affine_of(properties) for properties in (prediction_properties, reference_properties)]
    if not sentence and affines[0] is not None and affines[1] is not None:
        # Where the corners of the volume lie in space: (corners, 3).
        corners = np.stack(np.meshgrid(*[(0, size - 1) for size in extent[::-1]], indexing="ij"), -1).reshape(-1, 3)
        places = [corners @ affine[:3, :3].T + affine[:3, 3] for affine in affines if affine is not None]
        apart = float(np.linalg.norm(places[0] - places[1], axis=1).max())
        if apart > LARGEST_SHIFT * spacings[1].min():
            where = "in space (origin or direction in their headers)"
            sentence = f"prediction and reference lie up to {apart:.3g} mm apart {where}"
    if not sentence:
        return 0.0
    if not accept:
        raise CaseProblem(f"{sentence}; --accept-headers measures it voxel by voxel", metrics.GEOMETRY_DIFFERS)
    return apart


def affine_of(properties: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """(4, 4), from voxels (x, y, z) to mm; None where the format has none, or the image is a 2D one."""
    if "nibabel_stuff" in properties:
        affines = properties["nibabel_stuff"]
        return np.asarray(affines.get("reoriented_affine", affines["original_affine"]), float)
    stuff = properties.get("sitk_stuff")
    if stuff is None or len(stuff["spacing"]) != 3:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(stuff["direction"], (3, 3)) * np.asarray(stuff["spacing"])
    affine[:3, 3] = stuff["origin"]
    return affine


def _by(numbers: Any) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
