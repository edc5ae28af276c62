"""Bringing a label onto its image's grid: by its header where that tells the truth, else by its axes or indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_godc.conversion.geometry import Grid, Matrix, Volume, resampled_to, times
from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError
from nnunet_godc.conversion.volumes import VolumeFile

LabelGrid = Literal["physical", "image", "axes"]
Label = TypeVar("Label", np.uint8, np.bool_)

_LAS: Matrix = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
LOST = 0.2  # share of the labelled volume that may go when a label is brought onto another grid, before we speak up


def align_label(
    file: VolumeFile,
    stored: NDArray[Label],
    image_grids: Sequence[Grid],
    policy: LabelGrid,
    log: CaseLog,
    *,
    orientation: str,
    image: NDArray[Any],
    image_is_dicom: bool = False,
) -> tuple[NDArray[Label], Grid | None]:
    """The label as it lies on the image's grid, reoriented to `orientation`.

    Where both headers put every voxel to the same place, whatever the order of their axes, they are believed; a header
    may put it to two places (a NIfTI's sform and qform), of which the label fits whichever its program took. Else:

    - ``"physical"``: the label is resampled in physical space by nearest neighbour. A label whose header is unfilled,
      on an array of the image's shape, takes the image's geometry, unless that is a DICOM series, whose voxels have no
      order that another program must have kept.
    - ``"image"``: the label has the image's indices and takes its geometry; its header is known to be worth nothing.
    - ``"axes"``: the label's header tells the directions of its axes and no more; its position is the image's. Where it
      tells nothing, its rows run to the front and its slices to the head, against an LPS image flipped in y.

    Args:
        stored: the label in the file's order of axes.
        image_grids: where the image lies, and where else by other entries of its header.
        image: the image's voxels, reoriented to `orientation`: under an unsure label its tissue is looked at.

    Returns:
        The label, shape of the reoriented image, and the grid that its header describes (None if it describes none).

    Raises:
        CaseError: shapes that do not fit, a label that lies outside the image, or one that says nothing of its
            position on a DICOM series.
    """
    header_log = CaseLog()
    grids: list[Grid] = []
    try:
        grids = file.read_grids(header_log, what="label")
    except UnknownGeometryError:
        pass
    except CaseError:
        # A label's broken header matters only if it is to be believed.
        if policy == "physical":
            raise
    image_grid = image_grids[0]
    target = image_grid.reoriented(orientation)[0]
    grid = grids[0] if grids else None
    if grid is not None:
        if (fitting := _fitting(stored, grids, image_grids)) is not None:
            voxels, by_first = fitting
            log.repairs.extend(header_log.repairs)
            if not by_first:
                log.repairs.append("label fits its image by qform, not by sform: laid onto its voxels")
            return Volume(voxels, image_grid).reoriented(orientation).voxels, grid
        if policy == "physical":
            log.repairs.extend(header_log.repairs)
            return _resampled(Volume(stored, grid).reoriented(orientation), target, log), grid
    if policy == "axes":
        axes = grid or Grid(stored.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), _LAS)
        reoriented = Volume(stored, axes).reoriented(orientation)
        if reoriented.grid.shape == target.shape:
            by = "its header" if grid else "rule (rows to the front, slices to the head)"
            log.repairs.append(f"label turned along the axes of {by} and laid onto the image's grid")
            _compare_flips(reoriented.voxels, image, log)
            return reoriented.voxels, grid
    if policy == "physical" and image_is_dicom:
        raise CaseError(
            "the label's header says nothing of its position, and the voxels of a DICOM series have no order that it "
            "must have kept: it may be flipped or transposed. Export it with its position, or take columns, rows and "
            "slices in the order of their positions with --label-grid image and look at the preview"
        )
    if stored.shape != image_grid.shape:
        raise CaseError(
            f"image and label differ in shape: {times(image_grid.shape)} and {times(stored.shape)} voxels; "
            "they do not belong together"
        )
    says = "says nothing of its position" if grid is None else "puts it elsewhere"
    # A collection's own rule holds for all cases alike; what one header lacks is for a person to look at.
    reported = log.warnings if policy == "physical" else log.repairs
    reported.append(f"label takes the image's geometry: its own header {says}, and the shapes agree")
    placed = Volume(stored, image_grid).reoriented(orientation).voxels
    _compare_flips(placed, image, log)
    return placed, grid


def _fitting(
    stored: NDArray[Label], grids: Sequence[Grid], image_grids: Sequence[Grid]
) -> tuple[NDArray[Label], bool] | None:
    """The label in the image's order of axes, if one of its grids is one of the image's; and if these are the first."""
    for image_grid in image_grids:
        for grid in grids:
            on_image = Volume(stored, grid).reoriented(image_grid.orientation)
            if on_image.grid.matches(image_grid):
                return on_image.voxels, image_grid is image_grids[0] and grid is grids[0]
    return None


def _resampled(label: Volume[Label], target: Grid, log: CaseLog) -> NDArray[Label]:
    before = np.count_nonzero(label.voxels) * label.grid.voxel_ml
    placed = resampled_to(target, label)
    after = np.count_nonzero(placed) * target.voxel_ml
    if before and not after:
        raise CaseError(
            "the label lies outside the image; image and label do not belong together, or a header is wrong"
        )
    volumes = f"{before:.3g} ml became {after:.3g} ml"
    if label.grid.is_shifted_from(target):
        moved = ", ".join(f"{a - b:.4g}" for a, b in zip(label.grid.origin, target.origin, strict=True))
        log.warnings.append(
            f"label moved by ({moved}) mm, as its header says, though its shape and directions are the image's: "
            f"{volumes}. If it was drawn on this image, take the image's position with --label-grid image"
        )
    else:
        log.warnings.append(
            f"label on another grid ({times(label.grid.shape)} voxels) resampled by nearest neighbour onto the "
            f"image's ({times(target.shape)}): {volumes}"
        )
    if abs(after - before) > LOST * before:
        log.warnings.append(
            f"resampling changed the labelled volume from {before:.3g} to {after:.3g} ml; look at the preview"
        )
    return placed.astype(label.voxels.dtype, copy=False)


def _compare_flips(label: NDArray[Label], image: NDArray[Any], log: CaseLog) -> None:
    """Warn if the tissue under the label is far more uniform with the label mirrored: then it lies the wrong way."""
    points = np.nonzero(label)
    if not len(points[0]):
        return
    step = max(1, len(points[0]) // 20_000)
    spread = {}
    for mirrored, name in enumerate(("left-right", "front-back", "head-feet", "as it is")):
        where = tuple(
            n - 1 - index[::step] if axis == mirrored else index[::step]
            for axis, (index, n) in enumerate(zip(points, label.shape, strict=True))
        )
        spread[name] = float(np.ptp(np.percentile(image[where], (10, 90))))
    best = min(spread, key=lambda name: spread[name])
    if spread[best] < 0.5 * spread["as it is"]:
        log.warnings.append(
            f"the tissue under the label would be far more uniform with the label mirrored {best}: look at the preview"
        )
