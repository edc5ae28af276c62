"""All cases of a dataset in one picture, so that a flipped or shifted label is seen at a glance."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from scipy.ndimage import maximum_filter

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.conversion.files import is_hidden
from nnunet_godc.conversion.geometry import Volume
from nnunet_godc.conversion.labels import LabelMap, read_label
from nnunet_godc.conversion.problems import CaseError, CaseLog
from nnunet_godc.conversion.volumes import open_volume
from nnunet_godc.conversion_record import RECORD, read_record
from nnunet_godc.errors import UserError
from nnunet_godc.json_files import read_json

WINDOW = (-160.0, 240.0)  # HU: level 40, width 400
TUMOUR_NAMES = ("tumour", "tumor", "lesion", "cancer")
IGNORED = "ignore"  # nnU-Net's name for voxels that nobody has labelled
# Okabe's and Ito's colours, told apart by colour-blind readers and from any grey.
TUMOUR_COLOUR = "#FF9D00"
OTHER_COLOURS = ("#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#0072B2")
BACKGROUND, TEXT, FAINT, WARNING, PROBLEM = "#161616", "#F2F2F2", "#A8A8A8", "#FFD24A", "#FF6A4D"

TILE = 220  # pixels along a slice's longer side
CAPTION, GAP, MARGIN, LINE = 38, 8, 14, 18  # pixels: below a slice, between tiles, around the sheet, from line to line
NARROWEST = 3  # tiles: the legend needs room above a single case, too
LETTERS = 30  # of a case's name that fit above a tile
DPI = 100

_Value = Annotated[int, Field(ge=0, le=255)]


class _Description(BaseModel):
    """The part of dataset.json that tells how to read the dataset's files."""

    labels: dict[str, _Value | Annotated[list[_Value], Field(min_length=1)]]
    channel_names: dict[str, str]
    file_ending: Annotated[str, Field(pattern=r"^\.[^/]*$")]


@dataclass(frozen=True)
class _Style:
    """How cases are drawn.

    Attributes:
        labels: name to values in the files, wide regions first, `focus` last, as they are drawn.
        rules: every value that a label file may hold.
    """

    labels: Mapping[str, tuple[int, ...]]
    colours: Mapping[str, str]
    focus: str
    rules: LabelMap
    is_ct: bool


def write_preview(dataset: Path, out: Path, *, columns: int | None = None) -> tuple[str, ...]:
    """Write a contact sheet (PNG) of all cases that have a label: contours on the slice with the largest tumour.

    Slices are axial, whole, and shown as radiologists look at them, whatever the files' orientation: the patient's
    right on the left, front at the top, pixels square in millimetres. Labels are drawn where nnU-Net takes them to lie:
    on the voxels of the same indices. Without a label called tumour, the one with the highest value takes its place; a
    case without it is shown where its labels are largest.

    Args:
        dataset: a raw nnU-Net dataset, converted by us or not. Warnings are taken from conversion.json if it is there.
        out: overwritten; its folder is made. Nothing is left there if the picture cannot be finished.
        columns: tiles in a row.

    Returns:
        Cases that could not be drawn, one sentence each.

    Raises:
        UserError: no raw dataset, no case with a label, or `out` cannot be written.
    """
    style, ending = _read_style(dataset)
    warnings = _warnings(dataset)
    labels = [
        path
        for part in ("labelsTr", "labelsTs")
        for path in sorted((dataset / part).glob(f"*{ending}"))
        if not is_hidden(path)
    ]
    if not labels:
        raise UserError(f"{dataset} has no case with a label in labelsTr or labelsTs, so there is nothing to show")
    sheet = _Sheet(dataset.resolve().name, len(labels), style, columns)
    problems = []
    for number, label in enumerate(labels):
        name = label.name[: -len(ending)]
        image = dataset / label.parent.name.replace("labels", "images") / f"{name}_0000{ending}"
        try:
            sheet.add(number, name, warnings.get(name, 0), *_shown(image, label, style))
        except CaseError as error:
            sheet.add_problem(number, name, str(error))
            problems.append(f"{name}: {error}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as temporary:
            sheet.figure.savefig(temporary, format="png", facecolor=BACKGROUND)
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise UserError(f"cannot write {out}: {reason}; fix that, or choose another file") from error
    return tuple(problems)


def _read_style(dataset: Path) -> tuple[_Style, str]:
    """How to draw a dataset, and the ending of its files."""
    path = dataset / "dataset.json"
    content = read_json(path, missing=f"{dataset} has no dataset.json; give the folder of a raw nnU-Net dataset")
    try:
        description = _Description.model_validate(content, strict=True)
    except ValidationError:
        raise UserError(
            f"{path} lacks labels, channel_names or file_ending as nnU-Net v2 has them; convert the collection again"
        ) from None
    values = {name: (v,) if isinstance(v, int) else tuple(v) for name, v in description.labels.items()}
    labels = {name: v for name, v in values.items() if v != (0,) and name != IGNORED}
    if not labels:
        raise UserError("dataset.json names no label but the background, so there is nothing to show")
    named = [name for word in TUMOUR_NAMES for name in labels if word in name.casefold()]
    focus = named[0] if named else max(labels, key=lambda name: min(labels[name]))
    # A wide region first, or it would be drawn over the narrow ones inside it.
    ordered = sorted(labels, key=lambda name: (name == focus, -len(labels[name])))
    rules = LabelMap({value: str(value) for several in values.values() for value in several if value})
    colours = dict(zip(ordered, cycle(OTHER_COLOURS), strict=False)) | {focus: TUMOUR_COLOUR}
    is_ct = description.channel_names.get("0") == "CT"
    return _Style({name: labels[name] for name in ordered}, colours, focus, rules, is_ct), description.file_ending


def _warnings(dataset: Path) -> dict[str, int]:
    """How many warnings the conversion had about each case."""
    if not (dataset / RECORD).exists():
        return {}
    try:
        return {name: len(record["warnings"]) for name, record in read_record(dataset)["cases"].items()}
    except (KeyError, TypeError):
        raise UserError(f"{dataset / RECORD} is damaged; convert the collection again") from None


def _shown(image_path: Path, label_path: Path, style: _Style) -> tuple[Volume[Any], NDArray[np.uint8], str]:
    """The slice to show, as a volume of one slice, its label, and a caption. Raises CaseError."""
    image, label_file = open_volume(image_path), open_volume(label_path)
    if image.shape != label_file.shape:
        raise CaseError(f"the image has {image.shape} voxels and the label {label_file.shape}")
    grid, *_ = image.read_grids(CaseLog(), what="image", trust_header=True)
    label = Volume(read_label(label_file, style.rules, CaseLog()), grid).reoriented("LPS").voxels
    # A table look-up: several times faster than a comparison per value.
    of_focus, of_any = (
        np.isin(np.arange(256), values)[label].sum(axis=(0, 1))
        for values in (style.labels[style.focus], sum(style.labels.values(), ()))
    )
    if not of_any.any():
        k, what = len(of_any) // 2, "label is empty"
    elif of_focus.any():
        volume = int(of_focus.sum()) * grid.voxel_ml
        k, what = int(of_focus.argmax()), f"{style.focus} {f'{volume:.0f}' if volume >= 100 else f'{volume:.3g}'} ml"
    else:
        k, what = int(of_any.argmax()), f"no {style.focus}"
    whole = Volume(image.read(), grid).reoriented("LPS")
    i, j, _ = whole.grid.shape
    one_slice = replace(whole.grid, shape=(i, j, 1))
    return (
        Volume(whole.voxels[:, :, k : k + 1], one_slice),
        label[:, :, k],
        f"{what} \u00b7 slice {k + 1}/{len(of_any)}",
    )


class _Sheet:
    """The picture: a heading, and below it a tile for every case."""

    def __init__(self, title: str, cases: int, style: _Style, columns: int | None) -> None:
        # Eight fill a usual screen; of thousands of cases, viewers could not open a sheet that narrow and long.
        self.columns = columns or max(min(cases, 8), math.ceil(0.6 * math.sqrt(cases)))
        self.style = style
        self.width = 2 * MARGIN + max(self.columns, NARROWEST) * (TILE + GAP) - GAP
        window = "soft-tissue window, level 40, width 400 HU" if style.is_ct else "grey from 1st to 99th percentile"
        reading = textwrap.wrap(
            f"Axial slice with the largest area of {style.focus}; {window}. R and L: the patient's right and left; "
            "front at the top. \u26a0: warnings in conversion.json.",
            self.width // 7,
        )
        names = list(style.labels)[::-1]  # the focus leads
        across = max(1, self.width // (TILE + GAP))
        legend_rows = math.ceil(len(names) / across)
        self.head = MARGIN + LINE * (2 + legend_rows + len(reading))
        self.height = self.head + math.ceil(cases / self.columns) * (TILE + CAPTION) + MARGIN
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
        self._write(MARGIN, MARGIN, _shortened(f"{title} \u00b7 {cases} case{'s' if cases != 1 else ''}", 60), TEXT, 14)
        for n, name in enumerate(names):
            x, y = MARGIN + n % across * (TILE + GAP), MARGIN + LINE * (1.5 + n // across)
            colour = style.colours[name]
            line = Line2D(
                [x / self.width, (x + 20) / self.width], [1 - (y + 8) / self.height] * 2, lw=2.5, color=colour
            )
            self.figure.add_artist(line)
            self._write(x + 26, y, _shortened(name, LETTERS - 4), TEXT, 10)
        self._write(MARGIN, MARGIN + LINE * (1.5 + legend_rows), "\n".join(reading), FAINT, 9)

    def add(self, number: int, name: str, warnings: int, image: Volume[Any], label: NDArray[Any], caption: str) -> None:
        """A case: a slice in its window, with the contours of its labels, (columns to the left, rows to the back)."""
        x, y = self._corner(number)
        sides = np.multiply(label.shape, image.grid.spacing[:2])
        across, down = np.maximum(1, np.rint(sides / sides.max() * TILE))
        left, bottom = x + (TILE - across) // 2, self.height - y - (TILE + down) // 2
        axes = self.figure.add_axes((left / self.width, bottom / self.height, across / self.width, down / self.height))
        axes.set(xticks=[], yticks=[], facecolor="black")
        axes.spines[:].set_visible(False)
        grey = np.nan_to_num(image.voxels[:, :, 0].astype(np.float32), posinf=0, neginf=0)
        low, high = WINDOW if self.style.is_ct else np.percentile(grey, (1, 99))
        axes.imshow(grey.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect="auto")
        for label_name, values in self.style.labels.items():
            # Where voxels are finer than pixels, a single one would be lost.
            inside = maximum_filter(np.pad(np.isin(label, values), 1), 1 + 2 * (max(label.shape) // TILE)).T
            if inside.any():
                places = (np.arange(-1, n + 1) for n in label.shape)
                axes.contour(*places, inside, levels=[0.5], colors=[self.style.colours[label_name]], linewidths=1.5)
        for letter, place in (("R", 0.03), ("L", 0.97)):
            axes.text(place, 0.5, letter, color=TEXT, size=9, ha="center", va="center", transform=axes.transAxes)
        marker = f"\u26a0 {warnings}  " if warnings else ""
        self._write(x, y + TILE + 4, marker + _shortened(name, LETTERS - len(marker)), WARNING if marker else TEXT, 9)
        self._write(x, y + TILE + 4 + LINE - 2, _shortened(caption, LETTERS + 6), FAINT, 8)
        if warnings:
            self._frame(x, y, WARNING)

    def add_problem(self, number: int, name: str, problem: str) -> None:
        """A case that cannot be drawn, and why."""
        x, y = self._corner(number)
        self._frame(x, y, PROBLEM)
        lines = textwrap.wrap(f"Cannot be drawn: {problem}", LETTERS, max_lines=TILE // LINE)
        self._write(x + GAP, y + GAP, "\n".join(lines), PROBLEM, 9)
        self._write(x, y + TILE + 4, _shortened(name, LETTERS), TEXT, 9)

    def _corner(self, number: int) -> tuple[int, int]:
        row, column = divmod(number, self.columns)
        return MARGIN + column * (TILE + GAP), self.head + row * (TILE + CAPTION)

    def _frame(self, x: int, y: int, colour: str) -> None:
        corner = x / self.width, 1 - (y + TILE) / self.height
        size = TILE / self.width, TILE / self.height
        self.figure.add_artist(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=1.5))

    def _write(self, x: float, y: float, text: str, colour: str, size: int) -> None:
        # A dollar would begin a formula.
        shown = text.replace("$", r"\$")
        self.figure.text(x / self.width, 1 - y / self.height, shown, color=colour, size=size, va="top")


def _shortened(text: str, letters: int) -> str:
    """`text`, its middle left out where it is too long: names differ at their ends."""
    if len(text) <= letters:
        return text
    return f"{text[: letters - letters // 2]}\u2026{text[-(letters // 2) :]}"
