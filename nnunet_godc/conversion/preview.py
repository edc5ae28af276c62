"""All cases of a dataset in one picture, so that a flipped or shifted label is seen at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nnunet_godc.conversion.description import IGNORED, Description, read_description
from nnunet_godc.conversion.files import is_hidden
from nnunet_godc.conversion.formats import VolumeFile, open_volume
from nnunet_godc.conversion.geometry import Grid, Volume
from nnunet_godc.conversion.labels import LabelMap, count_values, read_label
from nnunet_godc.conversion.problems import CaseError, CaseLog
from nnunet_godc.conversion_record import RECORD, read_record
from nnunet_godc.errors import UserError
from nnunet_godc.replacing import replacing

WINDOW = (-160.0, 240.0)  # HU: level 40, width 400
TUMOUR_NAMES = ("tumour", "tumor", "lesion", "cancer")
# Okabe's and Ito's colours, told apart by colour-blind readers and from any grey.
TUMOUR_COLOUR = "#FF9D00"
OTHER_COLOURS = ("#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#0072B2")
BACKGROUND, TEXT, FAINT, WARNING, PROBLEM = "#161616", "#F2F2F2", "#A8A8A8", "#FFD24A", "#FF6A4D"

THUMBNAIL = 220  # pixels along a slice's longer side
FINER = 2  # contours are drawn on so many times finer a grid, and so come out smooth
CONTOUR = 3  # pixels of the finer grid
GAP, LINE, MARGIN = 8, 17, 14  # pixels: between tiles, from line to line of a caption, around the sheet
NARROWEST = 3  # tiles: the legend needs room above a single case, too


@dataclass(frozen=True)
class PreviewSummary:
    """What the picture shows.

    Attributes:
        cases: how many.
        focus: the label whose largest slice is shown.
        without_focus: cases without a voxel of it.
        empty: those of them whose label is empty altogether.
        problems: cases that could not be drawn, one sentence each.
    """

    cases: int
    focus: str
    without_focus: tuple[str, ...]
    empty: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Tile:
    """One case's place on the sheet."""

    name: str
    picture: Image.Image | None = None
    caption: str = ""
    has_focus: bool = True
    is_empty: bool = False
    warnings: int = 0
    problem: str = ""


@dataclass(frozen=True)
class _Style:
    """How cases are drawn.

    Attributes:
        labels: name to values, in the order in which they are drawn: `focus` last.
        rules: every value that a label file may hold.
    """

    labels: dict[str, tuple[int, ...]]
    focus: str
    rules: LabelMap
    is_ct: bool

    @property
    def colours(self) -> dict[str, str]:
        others = [name for name in self.labels if name != self.focus]
        colours = {name: OTHER_COLOURS[index % len(OTHER_COLOURS)] for index, name in enumerate(others)}
        return {**colours, self.focus: TUMOUR_COLOUR}


def write_preview(dataset: Path, out: Path, *, columns: int | None = None) -> PreviewSummary:
    """Write a contact sheet (PNG) of all cases that have a label: contours on the slice with the largest tumour.

    Slices are axial, whole, and shown as radiologists look at them, whatever the files' orientation: the patient's
    right on the left, front at the top, pixels square in millimetres. Labels are drawn where nnU-Net takes them to lie:
    on the voxels of the same indices. Without a label called tumour, the one with the highest value takes its place; a
    case without it is shown where its labels are largest.

    Args:
        dataset: a raw nnU-Net dataset, converted by us or not. Warnings are taken from conversion.json if it is there.
        out: overwritten; its folder is made. Nothing is left there if the picture cannot be finished.
        columns: tiles in a row.

    Raises:
        UserError: no raw dataset, no case with a label, or `out` cannot be written.
    """
    description = read_description(dataset)
    style = _style(description)
    warnings = _warnings(dataset)
    tiles = []
    for label in _label_files(dataset, description):
        name = label.name[: -len(description.file_ending)]
        image = dataset / label.parent.name.replace("labels", "images") / f"{name}_0000{description.file_ending}"
        try:
            tiles.append(_tile(name, image, label, style, warnings.get(name, 0)))
        except CaseError as error:
            tiles.append(_Tile(name, warnings=warnings.get(name, 0), problem=str(error)))
    if not tiles:
        raise UserError(f"{dataset} has no case with a label in labelsTr or labelsTs, so there is nothing to show")
    sheet = _sheet(tiles, dataset.resolve().name, style, columns or _columns(len(tiles)))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            sheet.save(temporary, format="PNG")
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise UserError(f"cannot write {out}: {reason}; mend that, or choose another file") from error
    return PreviewSummary(
        cases=len(tiles),
        focus=style.focus,
        without_focus=tuple(tile.name for tile in tiles if not tile.has_focus),
        empty=tuple(tile.name for tile in tiles if tile.is_empty),
        problems=tuple(f"{tile.name}: {tile.problem}" for tile in tiles if tile.problem),
    )


def _style(description: Description) -> _Style:
    labels = {name: values for name, values in description.labels.items() if name != IGNORED}
    if not labels:
        raise UserError("dataset.json names no label but the background, so there is nothing to show")
    named = [name for word in TUMOUR_NAMES for name in labels if word in name.casefold()]
    focus = named[0] if named else max(labels, key=lambda name: min(labels[name]))
    # A wide region first, or it would be drawn over the narrow ones inside it.
    order = sorted(labels, key=lambda name: (name == focus, -len(labels[name])))
    rules = LabelMap(names={value: str(value) for value in description.values - {0}})
    return _Style({name: labels[name] for name in order}, focus, rules, description.channel == "CT")


def _warnings(dataset: Path) -> dict[str, int]:
    if not (dataset / RECORD).exists():
        return {}
    records = read_record(dataset)["cases"]
    try:
        return {name: len(record["warnings"]) for name, record in records.items()}
    except (KeyError, TypeError):
        raise UserError(f"{dataset / RECORD} is damaged; convert the collection again") from None


def _label_files(dataset: Path, description: Description) -> list[Path]:
    return [
        path
        for part in ("labelsTr", "labelsTs")
        for path in sorted((dataset / part).glob(f"*{description.file_ending}"))
        if not is_hidden(path)
    ]


def _tile(name: str, image_path: Path, label_path: Path, style: _Style, warnings: int) -> _Tile:
    image, label_file = open_volume(image_path), open_volume(label_path)
    if image.shape != label_file.shape:
        raise CaseError(f"the image has {image.shape} voxels and the label {label_file.shape}")
    grid = image.grid(CaseLog(), what="image", trust_header=True)
    label = Volume(read_label(label_file, style.rules, CaseLog()), grid).reoriented("LPS")
    counts = np.zeros((label.grid.shape[2], 256), dtype=np.int64)
    for k in range(label.grid.shape[2]):
        for value, count in count_values(label.voxels[:, :, k : k + 1]).items():
            counts[k, value] = count
    of_focus = counts[:, style.labels[style.focus]].sum(axis=1)
    of_any = counts[:, sorted({value for values in style.labels.values() for value in values})].sum(axis=1)
    has_focus, is_empty = bool(of_focus.any()), not bool(of_any.any())
    if is_empty:
        shown, what = len(counts) // 2, "label is empty"
    elif has_focus:
        shown, what = int(of_focus.argmax()), f"{style.focus} {_millilitres(int(of_focus.sum()) * grid.voxel_ml)}"
    else:
        shown, what = int(of_any.argmax()), f"no {style.focus}"
    picture = _draw(_axial(image, grid, shown), label.voxels[:, :, shown], label.grid.spacing[:2], style)
    return _Tile(name, picture, f"{what} \u00b7 slice {shown + 1}/{len(counts)}", has_focus, is_empty, warnings)


def _axial(file: VolumeFile, grid: Grid, index: int) -> NDArray[Any]:
    """Slice `index`, counted from the feet, as (columns to the patient's left, rows to the back).

    Slab by slab: an image of several hundred megabytes is never in memory as a whole.
    """
    _, order, flips = grid.reoriented("LPS")
    across = order[2]
    wanted = range(grid.shape[across])[flips[2]][index]
    parts = []
    for where, slab in file.slabs():
        if across != 2:
            parts.append(slab.take(wanted, axis=across))
        elif where.start <= wanted < where.stop:
            parts.append(slab[:, :, wanted - where.start])
            break
    plane = parts[0] if across == 2 else np.concatenate(parts, axis=1)
    return (plane if order[0] < order[1] else plane.T)[flips[:2]]


def _draw(plane: NDArray[Any], label: NDArray[np.uint8], spacing: Sequence[float], style: _Style) -> Image.Image:
    """A slice, (columns, rows), in its window, with the contours of its labels."""
    sides = [count * step for count, step in zip(plane.shape, spacing, strict=True)]
    pixels = [max(1, round(side / max(sides) * THUMBNAIL)) for side in sides]
    fine = (pixels[0] * FINER, pixels[1] * FINER)
    finite = np.nan_to_num(plane.astype(np.float32), posinf=0, neginf=0)
    low, high = WINDOW if style.is_ct else np.percentile(finite, (1, 99))
    grey = np.clip((finite - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    picture = Image.fromarray(grey.T.copy()).resize(fine, Image.Resampling.BICUBIC).convert("RGB")
    inside = {name: _covered(np.isin(label, values), fine) for name, values in style.labels.items()}
    for name, covered in inside.items():
        # Around the label: what it holds stays visible, the focus with all its neighbours' contours outside.
        grown = np.asarray(Image.fromarray(covered).filter(ImageFilter.MaxFilter(2 * CONTOUR + 1)))
        edge = grown & ~covered & ~inside[style.focus]
        picture.paste(style.colours[name], mask=Image.fromarray(edge))
    small = picture.resize((pixels[0], pixels[1]), Image.Resampling.BOX)
    drawing = ImageDraw.Draw(small)
    for letter, x, anchor in (("R", 4, "lm"), ("L", pixels[0] - 4, "rm")):
        drawing.text((x, pixels[1] / 2), letter, TEXT, _font(13), anchor=anchor, stroke_width=1, stroke_fill=BACKGROUND)
    return small


def _covered(label: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """255 at every pixel that a label, (columns, rows), touches: (rows, columns) of an image of that size.

    A single voxel stays visible, however much finer the voxels are than the pixels.
    """
    share = Image.fromarray(label.T.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    return np.where(np.asarray(share) > 0, 255, 0).astype(np.uint8)


def _sheet(tiles: Sequence[_Tile], title: str, style: _Style, columns: int) -> Image.Image:
    width = 2 * MARGIN + max(columns, NARROWEST) * (THUMBNAIL + GAP) - GAP
    heading = _heading(title, len(tiles), style, width - 2 * MARGIN)
    thumbnail_height = max((tile.picture.height for tile in tiles if tile.picture), default=THUMBNAIL)
    tile_height = thumbnail_height + 2 * LINE + 2 * GAP
    top = MARGIN + heading.height + GAP
    sheet = Image.new("RGB", (width, top + math.ceil(len(tiles) / columns) * tile_height + MARGIN), BACKGROUND)
    sheet.paste(heading, (MARGIN, MARGIN))
    drawing = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        x = MARGIN + index % columns * (THUMBNAIL + GAP)
        y = top + index // columns * tile_height
        _put_tile(sheet, drawing, tile, x, y, thumbnail_height)
    return sheet


def _put_tile(sheet: Image.Image, drawing: ImageDraw.ImageDraw, tile: _Tile, x: int, y: int, height: int) -> None:
    if tile.picture is not None:
        left = x + (THUMBNAIL - tile.picture.width) // 2
        sheet.paste(tile.picture, (left, y + (height - tile.picture.height) // 2))
    else:
        lines = _wrapped(f"Cannot be drawn: {tile.problem}", _font(12), THUMBNAIL - 2 * GAP)
        fitting = lines[: max(1, (height - 2 * GAP) // LINE)]
        drawing.multiline_text((x + GAP, y + GAP), "\n".join(fitting), PROBLEM, _font(12), spacing=4)
    if tile.problem or tile.warnings:
        drawing.rectangle((x, y, x + THUMBNAIL - 1, y + height - 1), outline=PROBLEM if tile.problem else WARNING)
    room = THUMBNAIL
    if tile.warnings:
        marker = f"\u26a0 {tile.warnings}"
        room -= int(_font(12).getlength(marker)) + GAP
        drawing.text((x + THUMBNAIL, y + height + 4), marker, WARNING, _font(12), anchor="ra")
    drawing.text((x, y + height + 4), _fitted(tile.name, _font(13), room), TEXT, _font(13))
    colour = WARNING if tile.is_empty else FAINT if tile.has_focus else TEXT
    drawing.text((x, y + height + 4 + LINE), _fitted(tile.caption, _font(12), THUMBNAIL), colour, _font(12))


def _heading(title: str, cases: int, style: _Style, width: int) -> Image.Image:
    """Title, legend and how to read the pictures."""
    window = "soft-tissue window, level 40, width 400 HU" if style.is_ct else "grey from 1st to 99th percentile"
    reading = (
        f"Axial slice with the largest area of {style.focus}; {window}. "
        "R and L: the patient's right and left; front at the top. \u26a0: warnings in conversion.json."
    )
    explanation = _wrapped(reading, _font(12), width)
    # The focus leads the legend.
    rows: list[list[tuple[int, str]]] = [[]]
    x = 0
    for name in reversed(style.labels):
        shown = _fitted(name, _font(14), width - 40)
        needed = 28 + int(_font(14).getlength(shown)) + 24
        if rows[-1] and x + needed - 24 > width:
            rows.append([])
            x = 0
        rows[-1].append((x, name))
        x += needed
    heading = Image.new("RGB", (width, 34 + 24 * len(rows) + LINE * len(explanation) + GAP), BACKGROUND)
    drawing = ImageDraw.Draw(heading)
    count = f"{cases} case{'s' if cases != 1 else ''}"
    drawing.text((0, 0), _fitted(f"{title} \u00b7 {count}", _font(20), width), TEXT, _font(20))
    for index, row in enumerate(rows):
        y = 34 + 24 * index
        for x, name in row:
            drawing.line((x, y + 9, x + 20, y + 9), style.colours[name], width=3)
            drawing.text((x + 28, y + 9), _fitted(name, _font(14), width - 40), TEXT, _font(14), anchor="lm")
    for index, line in enumerate(explanation):
        drawing.text((0, 34 + 24 * len(rows) + LINE * index), line, FAINT, _font(12))
    return heading


def _columns(tiles: int) -> int:
    """Eight fill a usual screen; of thousands of cases, viewers could not open a sheet that narrow and long."""
    return max(min(tiles, 8), math.ceil(0.6 * math.sqrt(tiles)))


def _millilitres(volume: float) -> str:
    return f"{volume:.0f} ml" if volume >= 100 else f"{volume:.3g} ml"


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fitted(line, font, width) for line in lines]


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, its middle left out where it is too long: names differ at their ends."""
    kept = len(text)
    fitted = text
    while kept > 1 and font.getlength(fitted) > width:
        kept -= 1
        fitted = f"{text[: kept - kept // 2]}\u2026{text[-(kept // 2) :]}"
    return fitted


_FONTS: dict[int, ImageFont.FreeTypeFont] = {}


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib brings along a font with every letter that a label's name may have.
    if size not in _FONTS:
        import matplotlib

        _FONTS[size] = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    return _FONTS[size]
