"""LFAM's offsets as arrows over the image, on the finest and a deeper level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from torch import Tensor

from nnunet_godc.alignment.offsets import seen_offsets
from nnunet_godc.report.views import (
    BACKGROUND,
    DOTS,
    FAINT,
    MARGIN_MM,
    PREDICTION,
    REFERENCE,
    TEXT,
    draw_outline,
    fitted,
    png_of,
    ras_affine,
)

if TYPE_CHECKING:
    from nnunet_godc.report.explain import ExplainedCase

ARROW = "#B9F27C"
ARROWS = 22  # along the longer side
DEEPER = 2  # levels below the finest
PANEL = 4.6  # inches
NEAREST_MM = 30.0  # from the middle of what is labelled

Floats = NDArray[np.float64]


def draw_offsets(
    case: ExplainedCase, prediction: NDArray[Any], predictor: nnUNetPredictor
) -> tuple[bytes, Mapping[str, Any]]:
    """A picture of the plane that holds most of the label, or without one of the prediction.

    Args:
        case: as it was preprocessed.
        prediction: of the network, (z, y, x), on the same voxels.

    Returns:
        PNG; and `size`, width and height in pixels, and `levels`, those that are shown.
    """
    configuration = predictor.configuration_manager
    patch, spacing = list(configuration.patch_size), list(configuration.spacing)
    reference = case.segmentation[0] > 0
    if predictor.label_manager.has_ignore_label:
        reference &= case.segmentation[0] != predictor.label_manager.ignore_label
    foreground = next((mask for mask in (reference, prediction > 0) if mask.any()), np.ones_like(reference))
    plane = int(foreground.sum((1, 2)).argmax())
    middle = np.array([plane, *np.median(np.argwhere(foreground[plane]), axis=0).astype(int)])
    whole = [1] * (3 - len(patch)) + patch
    lower = middle - np.array(whole) // 2
    box = [[int(start), int(start) + size] for start, size in zip(lower, whole, strict=True)]
    sample = torch.from_numpy(_cropped(case.data, box)).reshape(len(case.data), *patch)
    fields: dict[int, Tensor] = {}
    with torch.no_grad(), seen_offsets(predictor.network, lambda level, own: fields.update({level: own[0]})):
        predictor.network(sample[None])

    in_plane = spacing[-2:]
    part = _shown_part(foreground[plane] | (prediction[plane] > 0), middle[1:], in_plane, box[1:])
    finest, *others = sorted(fields)
    deeper = [level for level in others if level >= finest + DEEPER][:1] or others[-1:]
    shown = [finest, *deeper]
    arrows = {level: _arrows(fields[level], patch, int(middle[0] - lower[0]), lower[1:], in_plane) for level in shown}
    image = case.data[0, plane][part]
    masks = [(mask[plane][part], colour) for mask, colour in ((reference, REFERENCE), (prediction > 0, PREDICTION))]
    affine = ras_affine(case.properties, [float(size) for size in case.properties["spacing"]])
    codes = [nibabel.aff2axcodes(affine)[2 - axis] for axis in predictor.plans_manager.transpose_forward][-2:]
    content, size = _draw(case.name, image, masks, in_plane, codes, arrows, part)
    return content, {"size": size, "levels": shown}


def _cropped(data: NDArray[np.float32], box: list[list[int]]) -> NDArray[np.float32]:
    """With zeros where the box is larger than the image, as nnU-Net pads it."""
    sizes = data.shape[1:]
    inside = tuple(slice(max(0, start), stop) for start, stop in box)
    padding = [(max(0, -start), max(0, stop - size)) for (start, stop), size in zip(box, sizes, strict=True)]
    return np.pad(data[(slice(None), *inside)], [(0, 0), *padding])


def _shown_part(mask: NDArray[np.bool_], middle: Floats, spacing: list[float], box: list[list[int]]) -> Any:
    """The part of the plane that is shown: what is labelled there with a margin, inside of the patch and the image."""
    parts = []
    for axis, (start, stop) in enumerate(box):
        places = np.flatnonzero(mask.any(axis=1 - axis))
        places = places[(places >= start) & (places < stop)]
        margin, near = MARGIN_MM / spacing[axis], NEAREST_MM / spacing[axis]
        low = min([middle[axis] - near, *(places[:1] - margin)])
        high = max([middle[axis] + near, *(places[-1:] + margin)])
        parts.append(slice(max(0, start, int(low)), min(mask.shape[axis], stop, int(high) + 1)))
    return tuple(parts)


def _arrows(
    offsets: Tensor, patch: list[int], plane: int, corner: Floats, spacing: list[float]
) -> tuple[Floats, Floats, Floats]:
    """Of one level in the plane: positions in voxels of the image, (2, h, w), and offsets in mm, (2, h, w), means over
    taps; and their mean length over taps in voxels of the level, (h, w).

    Args:
        offsets: (taps, axes, ...), of the patch.
        plane: of the patch, where it has depth.
        corner: of the patch in the image's plane.
    """
    own = offsets.double()
    lengths = torch.linalg.vector_norm(own, dim=1).mean(0)
    moved = own[:, -2:].mean(0)
    if len(patch) == 3:
        at = plane * lengths.shape[0] // patch[0]
        lengths, moved = lengths[at], moved[:, at]
    steps = [whole / size for whole, size in zip(patch[-2:], lengths.shape, strict=True)]
    axes = [
        start + (np.arange(size) + 0.5) * step - 0.5
        for start, size, step in zip(corner, lengths.shape, steps, strict=True)
    ]
    mm = moved.numpy() * np.array([step * size for step, size in zip(steps, spacing, strict=True)])[:, None, None]
    return np.stack(np.meshgrid(*axes, indexing="ij")), mm, lengths.numpy()


def _draw(
    name: str,
    image: NDArray[Any],
    masks: list[tuple[NDArray[np.bool_], str]],
    spacing: list[float],
    codes: list[str],
    arrows: Mapping[int, tuple[Floats, Floats, Floats]],
    part: tuple[slice, slice],
) -> tuple[bytes, list[int]]:
    """One panel for each level; front or head at the top, the patient's right, or front, on the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    flips = [code in kinds for code, kinds in zip(codes, ("AS", "RA"), strict=True)]
    tall, wide = (size * step for size, step in zip(image.shape, spacing, strict=True))
    across, down = PANEL * min(1.0, wide / tall), PANEL * min(1.0, tall / wide)
    gap, top, bottom = 0.12, 0.72, 0.62
    width, height = max(len(arrows) * (across + gap) + gap, 5.0), top + down + bottom
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    extent = (0.0, wide, 0.0, tall)

    def laid(plane: NDArray[Any]) -> NDArray[Any]:
        return plane[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]

    figure.text(
        gap / width, 1 - 0.12 / height, fitted(name, width * 0.9), color=TEXT, fontsize=11, va="top", parse_math=False
    )
    low, high = np.percentile(image, (1, 99))
    for number, (level, (places, mm, lengths)) in enumerate(arrows.items()):
        left = gap + number * (across + gap)
        panel = figure.add_axes((left / width, bottom / height, across / width, down / height))
        panel.set_axis_off()
        panel.imshow(
            laid(image), cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear", aspect="equal"
        )
        for mask, colour in masks:
            if mask.any():
                draw_outline(panel, laid(mask), extent, colour, 1.4)
        rows, columns = ((places[axis] - part[axis].start + 0.5) * spacing[axis] for axis in (0, 1))
        x, u = (wide - columns, -mm[1]) if flips[1] else (columns, mm[1])
        y, v = (rows, mm[0]) if flips[0] else (tall - rows, -mm[0])
        inside = (x > 0) & (x < wide) & (y > 0) & (y < tall)
        every = max(1, round(max(inside.any(axis).sum() for axis in (0, 1)) / ARROWS))
        chosen = np.zeros_like(inside)
        chosen[every // 2 :: every, every // 2 :: every] = True
        chosen &= inside
        length = np.hypot(u, v)[chosen]
        grid = max(tall, wide) / ARROWS
        # so that most arrows are as long as they are apart
        longest = float(np.percentile(length, 95)) if length.size else 0.0
        enlarged = _rounded(grid / longest) if longest > 1e-9 else 1.0
        panel.quiver(x[chosen], y[chosen], u[chosen], v[chosen], color=ARROW, angles="xy", scale_units="xy",
                     scale=1 / enlarged, width=0.0045, headwidth=3.6, headlength=4, minlength=0.1)  # fmt: skip
        panel.set_xlim(0, wide)
        panel.set_ylim(0, tall)
        sides = [[_OPPOSITE[code], code][:: -1 if flip else 1] for code, flip in zip(codes, flips, strict=True)]
        for side, place, align in (
            (sides[1][0], (0.02, 0.5), ("left", "center")), (sides[1][1], (0.98, 0.5), ("right", "center")),
            (sides[0][0], (0.5, 0.98), ("center", "top")), (sides[0][1], (0.5, 0.02), ("center", "bottom")),
        ):  # fmt: skip
            panel.text(*place, side, color=TEXT, fontsize=8, ha=align[0], va=align[1], transform=panel.transAxes)
        mean = lengths[inside].mean() if inside.any() else 0.0
        said = f"level {level}: {mean:.2g} voxels of its own on average; arrows {enlarged:g} times as long"
        if longest <= 1e-9:
            said = f"level {level}: no offsets"
        figure.text(left / width, 1 - 0.46 / height, said, color=FAINT, fontsize=8, va="top")
    handles = [Line2D([], [], color=colour, lw=1.8) for _, colour in masks] + [Line2D([], [], color=ARROW, lw=1.4)]
    figure.legend(handles, ["reference", "prediction", "mean offset of the taps"], loc="lower left", ncols=3,
                  frameon=False, fontsize=8.5, labelcolor=TEXT, bbox_to_anchor=(gap / width - 0.01, 0))  # fmt: skip
    return png_of(figure), [round(width * DOTS), round(height * DOTS)]


_OPPOSITE = dict(zip("LRAPIS", "RLPASI", strict=True))


def _rounded(factor: float) -> float:
    """To one digit, of 1, 2 and 5."""
    power = 10 ** np.floor(np.log10(factor))
    return float(power * max(step for step in (1, 2, 5) if step * power <= factor))
