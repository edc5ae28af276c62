"""A case to look at: read, cropped to what is labelled, drawn as a picture, and written for the page's viewer."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.evaluation.case import PLANAR, CaseProblem, Label, Labels, affine_of, read_segmentation
from nnunet_godc.evaluation.metrics import NOT_READABLE

MARGIN_MM = 20.0  # around everything that is labelled
MOST_VOXELS = 1_000_000  # of a case in the viewer: even of noise, 200 of them stay below 500 MB
NEAREST_MM, FARTHEST_MM = 15.0, 80.0  # a picture's reach from the point that it shows
REFERENCE, PREDICTION = "#56B4E9", "#FF9D00"  # Okabe's and Ito's: told apart by colour-blind readers, and from any grey
DOTS = 110  # per inch
BACKGROUND, TEXT, FAINT = "#161616", "#F2F2F2", "#A8A8A8"
PLANES = (("axial", 2, (0, 1)), ("coronal", 1, (0, 2)), ("sagittal", 0, (1, 2)))

Voxels = NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """One case.

    Attributes:
        name: of the case; `key` names its files.
        image: None where there is none.
        reference, predictions: files, the latter by number and name of their methods.
        reader: nnU-Net's class that reads them.
        labels: values of every label or region, by name; `ignore` is that of voxels that are not measured.
        shown: the labels to draw.
        window: lowest and highest intensity, where the dataset tells; else percentiles of the image.
        scores: what stands beside a method's name, by label and number of the method.
        folder: where the files are written.
    """

    key: str
    name: str
    image: Path | None
    reference: Path
    predictions: Sequence[tuple[int, str, Path]]
    reader: type[Any]
    labels: Mapping[str, Label]
    ignore: int | None
    shown: Sequence[str]
    window: tuple[float, float] | None
    scores: Mapping[tuple[str, int], str]
    folder: Path


class Picture(NamedTuple):
    """Names of the files, and width and height of the large one in pixels."""

    large: str
    small: str
    size: tuple[int, int]


@dataclass(frozen=True)
class View:
    """What was written: `pictures` by label; `problem` says why nothing was; without an image, labels alone."""

    key: str
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    volume: str = ""
    has_image: bool = True
    problem: str = ""


@dataclass(frozen=True)
class _Crop:
    """Everything in one orientation: indices grow to the patient's right, front and head (RAS)."""

    image: NDArray[np.float32] | None
    reference: Voxels
    predictions: Sequence[tuple[int, str, Voxels]]
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    step: int = 1


def make_view(task: Task) -> View:
    """Reads a case and writes its files; what cannot be shown is a problem in the outcome."""
    try:
        crop = _read(task)
        pictures: dict[str, Picture] = {}
        for label in task.shown:
            name = f"{task.key}-{len(pictures)}"
            size = _draw(crop, task, label, task.folder / f"{name}.png")
            _draw(crop, task, label, task.folder / f"{name}-small.png", small=True)
            pictures[label] = Picture(f"{name}.png", f"{name}-small.png", size)
        volume = f"{task.key}.js"
        _write_volume(crop, task, task.folder / volume)
    except CaseProblem as problem:
        return View(task.key, problem=str(problem))
    except MemoryError:
        return View(task.key, problem="it does not fit into memory; use fewer worker processes with -np")
    return View(task.key, pictures, volume, crop.image is not None)


def _read(task: Task) -> _Crop:
    segmentations, properties = _read_segmentations(task)
    spacing = [float(size) for size in properties["spacing"]]
    if len(segmentations[0]) == 1 and spacing[0] >= PLANAR * max(spacing[1:]):
        spacing[0] = 1.0
    box = _labelled_box(segmentations, spacing)
    image = None
    if task.image is not None:
        image = _read_image(task.image, task.reader)
        if image.shape != segmentations[0].shape:
            raise CaseProblem(f"image and reference differ in shape: {task.image}")
        image = np.nan_to_num(image[box].astype(np.float32), posinf=0, neginf=0)
    affine = ras_affine(properties, spacing).copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start or 0 for part in box][::-1]
    # from (z, y, x) to (x, y, z), then to RAS
    orientation = io_orientation(affine)
    affine = affine @ inv_ornt_aff(orientation, segmentations[0][box].T.shape)

    def reoriented(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(apply_orientation(array.T, orientation))

    reference, *predictions = (reoriented(own[box]) for own in segmentations)
    return _Crop(
        image=None if image is None else reoriented(image),
        reference=reference,
        predictions=[(number, name, own) for (number, name, _), own in zip(task.predictions, predictions, strict=True)],
        affine=affine,
        spacing=tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)),
    )


def _read_segmentations(task: Task) -> tuple[list[Voxels], dict[str, Any]]:
    """The reference, its ignored voxels as background, and the predictions, (z, y, x); what the reader says of it."""
    labels = Labels(task.labels, task.ignore)
    reference, properties = read_segmentation(task.reference, "reference", task.reader, labels.of_references)
    if max(labels.known) > 255:
        raise CaseProblem(f"label {max(labels.known)} cannot be shown; the viewer has labels up to 255")
    if task.ignore is not None:
        reference[reference == task.ignore] = 0
    segmentations = [reference.astype(np.uint8)]
    for _, _, path in task.predictions:
        own, _ = read_segmentation(path, "prediction", task.reader, labels.known)
        if own.shape != reference.shape:
            raise CaseProblem(f"prediction and reference differ in shape: {path}")
        segmentations.append(own.astype(np.uint8))
    return segmentations, properties


def _labelled_box(segmentations: Sequence[Voxels], spacing: Sequence[float]) -> tuple[slice, ...]:
    """What is labelled in any of them, with a margin; everything where nothing is."""
    labelled = np.any(segmentations, axis=0)
    box = []
    for axis, size in enumerate(spacing):
        places = np.flatnonzero(labelled.any(axis=tuple({0, 1, 2} - {axis})))
        margin = int(np.ceil(MARGIN_MM / size))
        box.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1) if len(places) else slice(None))
    return tuple(box)


def _read_image(path: Path, reader: type[Any]) -> NDArray[Any]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            image, _ = reader().read_images([str(path)])
    except MemoryError:
        raise
    except Exception as error:  # whatever the libraries behind nnU-Net's readers raise for a damaged file
        raise CaseProblem(f"its image cannot be read ({type(error).__name__}): {path}", NOT_READABLE) from None
    return np.asarray(image[0])


def ras_affine(properties: Mapping[str, Any], spacing: Sequence[float]) -> NDArray[np.float64]:
    """(4, 4), from voxels (x, y, z) to mm to the right, front and head."""
    affine = affine_of(properties)
    if affine is None:
        return np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    return affine if "nibabel_stuff" in properties else np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _mask(segmentation: Voxels, label: Label) -> NDArray[np.bool_]:
    return np.isin(segmentation, label)


def _window(crop: _Crop, task: Task) -> tuple[float, float]:
    if crop.image is None:
        return 0.0, 1.0
    low, high = task.window or np.percentile(crop.image, (1, 99))
    return float(low), float(max(high, low + 1e-6))


def _point(crop: _Crop, label: Label) -> tuple[int, ...]:
    """The voxel deepest within what any prediction has wrong; without an error, the middle of the label."""
    reference = _mask(crop.reference, label)
    deepest, at = 0.0, None
    for _, _, prediction in crop.predictions:
        wrong = reference ^ _mask(prediction, label)
        if wrong.any():
            depth = distance_transform_edt(np.pad(wrong, 1), sampling=crop.spacing)
            if depth.max() > deepest:
                deepest = float(depth.max())
                at = tuple(int(i) - 1 for i in np.unravel_index(depth.argmax(), depth.shape))
    if at is None and reference.any():
        depth = distance_transform_edt(np.pad(reference, 1), sampling=crop.spacing)
        at = tuple(int(i) - 1 for i in np.unravel_index(depth.argmax(), depth.shape))
    return at or tuple(size // 2 for size in crop.reference.shape)


def _reach(crop: _Crop, label: Label, point: Sequence[int]) -> list[slice]:
    """The part of the crop that a picture shows."""
    there = np.any([_mask(own, label) for own in (crop.reference, *(p for _, _, p in crop.predictions))], axis=0)
    part = []
    for axis, size in enumerate(crop.reference.shape):
        places = np.flatnonzero(there.any(axis=tuple({0, 1, 2} - {axis})))
        step = crop.spacing[axis]
        far = max((abs(places[[0, -1]] - point[axis]) * step).max() + 8, NEAREST_MM) if len(places) else NEAREST_MM
        reach = int(np.ceil(min(far, FARTHEST_MM) / step))
        part.append(slice(max(0, point[axis] - reach), min(size, point[axis] + reach + 1)))
    return part


class _Layout(NamedTuple):
    """Where things stand in a picture, in inches; a millimetre is as long in every panel.

    Attributes:
        planes: of `PLANES`, one below the other.
        panels: width and height of each.
        column: width of what belongs to a prediction; `gap` is between two.
        left, top: where the first panel begins.
        width, height: of the whole.
    """

    planes: Sequence[tuple[str, int, tuple[int, int]]]
    panels: Sequence[tuple[float, float]]
    column: float
    gap: float
    left: float
    top: float
    width: float
    height: float


def _layout(crop: _Crop, part: Sequence[slice], columns: int, *, small: bool) -> _Layout:
    planes = [plane for plane in PLANES if min(crop.reference.shape[axis] for axis in plane[2]) > 1][
        : 1 if small else 3
    ]
    sizes = [[(part[a].stop - part[a].start) * crop.spacing[a] for a in axes] for _, _, axes in planes]
    column = 2.2 if small else min(3.4, max(2.0, 11 / columns))
    scale = min(column / max(width for width, _ in sizes), column * 1.2 / max(height for _, height in sizes))
    panels = [(max(width * scale, 0.25), max(height * scale, 0.25)) for width, height in sizes]
    left, gap, top, bottom = (0.04, 0.04, 0.0, 0.0) if small else (0.66, 0.1, 0.95, 0.45)
    return _Layout(
        planes,
        panels,
        column,
        gap,
        left,
        top,
        width=max(left + columns * (column + gap), 0.0 if small else 6.6),
        height=top + sum(height for _, height in panels) + gap * len(panels) + bottom,
    )


def _draw(crop: _Crop, task: Task, label: str, path: Path, *, small: bool = False) -> tuple[int, int]:
    """Writes a picture: a column for each method, a row for each plane; returns its width and height in pixels.

    Args:
        small: shows one plane, of the predictions that are the furthest apart, with their names in it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    value = task.labels[label]
    point = _point(crop, value)
    part = _reach(crop, value, point)
    window = _window(crop, task)
    predictions = _extremes(crop, value) if small else crop.predictions
    layout = _layout(crop, part, len(predictions), small=small)
    figure = Figure(figsize=(layout.width, layout.height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    for at, (_, name, prediction) in enumerate(predictions):
        x, y = layout.left + at * (layout.column + layout.gap), layout.top
        for (_, across, axes), (wide, tall) in zip(layout.planes, layout.panels, strict=True):
            corner = ((x + (layout.column - wide) / 2) / layout.width, (layout.height - y - tall) / layout.height)
            panel = figure.add_axes((*corner, wide / layout.width, tall / layout.height))
            _draw_plane(panel, crop, (prediction, value), point, part, across, axes, window)
            if small:
                panel.text(0.02, 0.02, fitted(name, layout.column), color=TEXT, fontsize=8, transform=panel.transAxes,
                           parse_math=False)  # fmt: skip
            y += tall + layout.gap
    if not small:
        _write_around(figure, layout, crop, task, label, window)
    with atomic_write(path) as temporary:
        temporary.write_bytes(png_of(figure))
    return round(layout.width * DOTS), round(layout.height * DOTS)


def _write_around(
    figure: Any, layout: _Layout, crop: _Crop, task: Task, label: str, window: tuple[float, float]
) -> None:
    """The case, the methods with their scores, the planes' names, and what the colours mean."""
    from matplotlib.lines import Line2D

    def write(x: float, y: float, text: str, **how: Any) -> None:
        figure.text(x / layout.width, 1 - y / layout.height, text, parse_math=False, **how)

    write(layout.left, 0.12, f"{task.name}, {label}", color=TEXT, fontsize=11, va="top")
    for at, (number, name, _) in enumerate(crop.predictions):
        method = f"{fitted(name, layout.column)}\n{task.scores.get((label, number), '')}"
        write(layout.left + at * (layout.column + layout.gap), layout.top - 0.08, method, color=TEXT, fontsize=9)
    y = layout.top
    for (plane, _, _), (_, tall) in zip(layout.planes, layout.panels, strict=True):
        write(0.58, y + tall / 2, plane, color=FAINT, fontsize=8, ha="right", va="center")
        y += tall + layout.gap
    lines = [Line2D([], [], color=colour, lw=1.8) for colour in (REFERENCE, PREDICTION)]
    figure.legend(lines, ["reference", "prediction"], loc="lower left", ncols=2, frameon=False, fontsize=9,
                  labelcolor=TEXT, bbox_to_anchor=(layout.left / layout.width - 0.01, 0))  # fmt: skip
    shown = f"window {window[0]:.4g} to {window[1]:.4g}" if crop.image is not None else "without its image"
    about = f"planes through the largest error; {shown}"
    write(layout.width - layout.gap, layout.height - 0.16, about, color=FAINT, fontsize=8, ha="right")


def _extremes(crop: _Crop, label: Label) -> list[tuple[int, str, Voxels]]:
    """The predictions that share least and most with the reference; one where there is no other."""
    reference = _mask(crop.reference, label)
    wrong = [np.count_nonzero(reference ^ _mask(own, label)) for _, _, own in crop.predictions]
    return [crop.predictions[at] for at in sorted({int(np.argmax(wrong)), int(np.argmin(wrong))})]


def _draw_plane(
    panel: Any,
    crop: _Crop,
    shown: tuple[Voxels, Label],
    point: Sequence[int],
    part: Sequence[slice],
    across: int,
    axes: tuple[int, int],
    window: tuple[float, float],
) -> None:
    """One plane as radiologists look at it: the patient's right, or front, on the left; front, or head, at the top."""
    prediction, label = shown
    where: list[Any] = [part[0], part[1], part[2]]
    where[across] = point[across]
    place = tuple(where)
    size = [(part[axis].stop - part[axis].start) * crop.spacing[axis] for axis in axes]
    extent = (0.0, size[0], 0.0, size[1])

    def laid(plane: NDArray[Any]) -> NDArray[Any]:
        return plane.T[::-1, ::-1]

    panel.set_facecolor("black")
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    if crop.image is not None:
        panel.imshow(laid(crop.image[place]), cmap="gray", vmin=window[0], vmax=window[1], extent=extent,
                     interpolation="bilinear", aspect="equal")  # fmt: skip
    for segmentation, colour, width in ((crop.reference, REFERENCE, 1.6), (prediction, PREDICTION, 1.3)):
        mask = laid(_mask(segmentation, label)[place])
        if mask.any():
            draw_outline(panel, mask, extent, colour, width)
    panel.set_xlim(0, size[0])
    panel.set_ylim(0, size[1])
    panel.set_aspect("equal")
    sides = ("R", "L") if axes[0] == 0 else ("A", "P")
    for side, x, align in zip(sides, (0.02, 0.98), ("left", "right"), strict=True):
        panel.text(x, 0.98, side, color=FAINT, fontsize=7, ha=align, va="top", transform=panel.transAxes)


def draw_outline(panel: Any, mask: NDArray[np.bool_], extent: tuple[float, ...], colour: str, width: float) -> None:
    """Along the edges of voxels, so that a single voxel is seen and nothing is smoothed."""
    from matplotlib.collections import LineCollection

    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    across, down = extent[1] / columns, extent[3] / rows
    segments = []
    for r, c in np.argwhere(padded[:, 1:] != padded[:, :-1]):
        segments.append([(c * across, extent[3] - (r - 1) * down), (c * across, extent[3] - r * down)])
    for r, c in np.argwhere(padded[1:, :] != padded[:-1, :]):
        segments.append([((c - 1) * across, extent[3] - r * down), (c * across, extent[3] - r * down)])
    panel.add_collection(LineCollection(segments, colors=colour, linewidths=width, capstyle="round"))


def png_of(figure: Any) -> bytes:
    """Of a matplotlib figure; in grey levels and a few colours, it takes less than half of the room with a palette."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS, metadata={"Software": None})
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png")
    return small.getvalue()


def fitted(name: str, inches: float) -> str:
    """Its middle left out where it is too long: names differ at their ends."""
    room = int(inches * 11)
    return name if len(name) <= room else f"{name[: room // 2 - 1]}…{name[-(room // 2) :]}"


def _write_volume(crop: _Crop, task: Task, path: Path) -> None:
    """The crop as a script for the viewer: a page opened from disk may load scripts, but no other files."""
    small = _smaller(crop)
    low, high = _window(small, task)
    image = small.image if small.image is not None else np.zeros(small.reference.shape, np.float32)
    lowest, highest = np.percentile(image, (0.1, 99.9))
    lowest, highest = min(lowest, low), max(highest, high)
    slope = float(highest - lowest) / 255 or 1.0
    levels = np.clip(np.rint((image - lowest) / slope), 0, 255).astype(np.uint8)
    nifti: Any = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), small.affine)
    nifti.header.set_data_shape(levels.shape)
    nifti.header.set_zooms(small.spacing)
    nifti.header.set_slope_inter(slope, float(lowest))
    nifti.header["vox_offset"] = 352
    nifti.header["sform_code"] = nifti.header["qform_code"] = 1
    header = nifti.header.binaryblock + bytes(4)
    label = task.labels[task.shown[0]]
    content = {
        "header": base64.b64encode(header).decode(),
        "image": _packed(levels),
        "hasImage": small.image is not None,
        "window": [low, high],
        "range": [float(lowest), float(highest)],
        "reference": _packed(small.reference),
        "predictions": [
            {"method": number, "name": name, "voxels": _packed(own)} for number, name, own in small.predictions
        ],
        "labels": [{"name": name, "values": np.atleast_1d(value).tolist()} for name, value in task.labels.items()],
        "shown": task.shown[0],
        "point": _point(small, label),
        "size": list(levels.shape),
        "step": small.step,
    }
    script = f"nnunetGodcReport.volume({json.dumps(task.key)}, {json.dumps(content)});\n"
    with atomic_write(path) as temporary:
        temporary.write_text(script.replace("<", "\\u003c"), encoding="utf-8")


def _packed(voxels: Voxels) -> str:
    """As NIfTI orders voxels, compressed."""
    return base64.b64encode(gzip.compress(voxels.tobytes(order="F"), 6, mtime=0)).decode()


def _smaller(crop: _Crop) -> _Crop:
    """With no more than `MOST_VOXELS`: blocks of voxels become one, their mean, of labels the highest."""
    shape, blocks = np.array(crop.reference.shape), np.array([1, 1, 1])
    while np.prod(np.ceil(shape / blocks)) > MOST_VOXELS:
        blocks[np.argmin(np.where(shape > 1, blocks * crop.spacing, np.inf))] += 1
    if blocks.max() == 1:
        return crop

    def reduced(array: NDArray[Any], how: Any) -> NDArray[Any]:
        padding = [(0, int(-size % block)) for size, block in zip(array.shape, blocks, strict=True)]
        whole = np.pad(array, padding, mode="edge")
        split = [part for size, block in zip(whole.shape, blocks, strict=True) for part in (size // block, block)]
        return np.asarray(how(whole.reshape(split), axis=(1, 3, 5)))

    affine = crop.affine @ np.diag([*blocks, 1.0])
    affine[:3, 3] += crop.affine[:3, :3] @ [(block - 1) / 2 for block in blocks]
    return _Crop(
        image=None if crop.image is None else reduced(crop.image, np.mean).astype(np.float32),
        reference=reduced(crop.reference, np.max),
        predictions=[(number, name, reduced(own, np.max)) for number, name, own in crop.predictions],
        affine=affine,
        spacing=tuple(size * block for size, block in zip(crop.spacing, blocks, strict=True)),
        step=int(blocks.max()),
    )
