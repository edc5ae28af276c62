"""What `nnunet_godc.report.explain` found, as files, and as a part of the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.markup import Table
from nnunet_godc.evaluation.report import Part
from nnunet_godc.json_files import write_json
from nnunet_godc.report.charts import Axis, Chart, Panel, Series, listed, slug

FACTS = "explain.json"
TABLES = ("objects", "offsets", "at_zero")
VERSION = 1
LOSSES = ("Dice", "batch Dice", "GODC", "GODC squared", "GODC as trained")
WEIGHED = ("GODC", "GODC as trained")
EXPONENTS = {"Dice": 0, "batch Dice": 1, "GODC": 1, "GODC squared": 2}  # of U over its mean; batch Dice has GODC's
THIRDS = ("smallest third", "middle third", "largest third")


@dataclass(frozen=True)
class Explanation:
    """What was found inside of one model; each table is a CSV of its name.

    Attributes:
        facts: what the model is, and how it was looked at.
        objects: one row for each batch, sample, class and loss: sizes, weight, and gradients per voxel.
        offsets: one row for each level that has LFAM; empty without.
        at_zero: one row for each case and label: Dice with and without offsets; empty without LFAM.
        pictures: PNG, by name of the file.
    """

    facts: dict[str, Any]
    objects: pd.DataFrame
    offsets: pd.DataFrame
    at_zero: pd.DataFrame
    pictures: Mapping[str, bytes]


@dataclass(frozen=True)
class InsidePart:
    """A part of the page: text and tables, then charts, then pictures, each with its file, size and what it shows."""

    part: Part
    charts: Sequence[Chart]
    pictures: Sequence[tuple[str, Sequence[int], str]] = ()


def write_explanation(found: Explanation, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        table = getattr(found, name)
        if table.empty:
            (folder / f"{name}.csv").unlink(missing_ok=True)  # of an earlier model
            continue
        with atomic_write(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")
    write_pictures(found, folder)
    write_json(folder / FACTS, {**found.facts, "version": VERSION})


def write_pictures(found: Explanation, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in found.pictures.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)


def read_explanation(folder: Path) -> Explanation:
    """Raises:
    UserError: a file is missing or damaged, or another version wrote them.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tables = {
            name: pd.read_csv(
                folder / f"{name}.csv", dtype={"case": "str", "label": "str"}, keep_default_na=False, na_values=[""]
            )
            if (folder / f"{name}.csv").exists()
            else pd.DataFrame()
            for name in TABLES
        }
        if facts["version"] != VERSION:
            raise UserError(f"{folder} was written by another version; run nnunet-godc explain again")
        pictures = {Path(own["file"]).name: (folder / Path(own["file"]).name).read_bytes() for own in facts["pictures"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} cannot be read ({error}); run nnunet-godc explain again") from None
    return Explanation(facts, **tables, pictures=pictures)


def inside_parts(found: Explanation, number: int) -> list[InsidePart]:
    """What the page shows of a model; `number` tells its charts from those of others."""
    return [*_gradients(found, number), *_offsets(found, number)]


def _heading(found: Explanation, what: str) -> str:
    return f"{what}: {found.facts['trainer']}, fold {found.facts['fold']}"


# Gradients


def _gradients(found: Explanation, number: int) -> Iterator[InsidePart]:
    if found.objects.empty:
        return
    facts, objects = found.facts, found.objects
    there = objects[objects["reference_voxels"] > 0]
    charts = [
        chart(own, label, f"{number}-{name}-{slug(str(label))}", f"inside-{number}-{name}", objects)
        for name, chart in (("gradients", _gradient_chart), ("weights", _weight_chart))
        for label, own in there.groupby("label", sort=False)
    ]
    epochs = "" if facts["epochs"] is None else f", after {facts['epochs']} epochs"
    trained = (
        f"It was trained with GODC: {', '.join(f'{name} {value}' for name, value in facts['godc'].items())}."
        if facts["godc"]
        else "It was not trained with GODC: this is what GODC would make of its predictions."
    )
    about = (
        f"{facts['dataset']}, {facts['configuration']}{epochs}. {facts['batches']} batches of {facts['batch_size']} "
        f"patches, drawn from {objects['case'].nunique()} cases as in training, without augmentation. {trained} "
        "An object is what a patch holds of a class. Of the loss, this is the term that GODC replaces, at full "
        "resolution, without cross-entropy."
    )
    blocks: list[Any] = [about]
    if not there.empty:
        blocks += [_by_size(there), list(_said(objects, there))]
    yield InsidePart(Part(_heading(found, "Gradients"), blocks), charts)


def _by_size(there: pd.DataFrame) -> Table:
    """Medians over the objects of each third."""
    losses = [loss for loss in LOSSES if loss in set(there["loss"])]
    key = ["batch", "sample", "label"]
    by_loss = {loss: there[there["loss"] == loss].set_index(key) for loss in losses}
    order = by_loss["Dice"].sort_values("union_voxels", kind="stable")
    rows = []
    for name, at in zip(THIRDS, np.array_split(np.arange(len(order)), len(THIRDS)), strict=True):
        own = order.iloc[at]
        if own.empty:
            continue
        low, high = own["union_voxels"].min(), own["union_voxels"].max()
        middles = {loss: by_loss[loss].loc[own.index].median(numeric_only=True) for loss in losses}
        weights = [f"{middles[loss]['weight']:.2f}" for loss in WEIGHED if loss in losses]
        gradients = [f"{1e6 * abs(middles[loss]['gradient_inside']):.0f}" for loss in losses]
        rows.append(
            [name, str(len(own)), f"{low:.0f} to {high:.0f}", f"{own['iou'].median():.2f}", *weights, *gradients]
        )
    weights = [f"weight, {loss}" for loss in WEIGHED if loss in losses]
    caption = "Objects by size, medians. Gradients are those of one voxel of the object, in millionths, by autograd."
    return Table(caption, ["objects", "number", "union (voxels)", "IoU", *weights, *losses], rows)


def _said(objects: pd.DataFrame, there: pd.DataFrame) -> Iterator[str]:
    # the gradient without what the IoU does to it: within a batch, it is to be one number under GODC
    corrected = there["gradient_inside"].abs() * (1 + there["iou"]) ** 2
    spread = corrected.groupby([there["loss"], there["batch"], there["label"]]).agg(["max", "min", "size"])
    spread = (spread["max"] / spread["min"])[spread["size"] > 1].groupby(level="loss").median()
    for loss in LOSSES:
        if loss in spread and loss != "batch Dice":
            factor = f"{spread[loss]:.2f}" if spread[loss] < 10 else f"{spread[loss]:.0f}"
            yield f"{loss}: at the same IoU, gradients per voxel in a batch differ by up to a factor of {factor}."
    deviation = (there["gradient_inside"] / there["theory_inside"] - 1).abs().max()
    if np.isfinite(deviation):
        yield f"Autograd and the theory agree to {deviation:.1g} of the gradient, over {_count(there)} objects."
    without = objects[(objects["reference_voxels"] == 0) & (objects["loss"] == "GODC")]
    if len(without):
        share = without["weight"].sum() / objects[objects["loss"] == "GODC"]["weight"].sum()
        yield (
            f"{len(without)} of {_count(objects)} pairs of a patch and a class hold no object. Together they have "
            f"{100 * share:.2g} % of GODC's weight, by their false positives."
        )


def _count(objects: pd.DataFrame) -> int:
    return int((objects["loss"] == "Dice").sum())


def _gradient_chart(own: pd.DataFrame, label: str, name: str, group: str, objects: pd.DataFrame) -> Chart:
    names = [loss for loss in LOSSES if loss in set(own["loss"])]
    cases = sorted(set(own["case"]))
    batch = objects[(objects["loss"] == "Dice") & (objects["label"] == label)]
    norm, iou = batch.groupby("batch")["union_voxels"].mean().median(), own["iou"].median()
    terms = objects["label"].nunique() * objects["sample"].nunique()  # C B
    grid = np.geomspace(own["union_voxels"].min(), own["union_voxels"].max(), 2)
    series = []
    for index, loss in enumerate(names):
        rows = own[own["loss"] == loss]
        at = [cases.index(case) for case in rows["case"]]
        series.append(
            Series(
                index,
                "points",
                listed(rows["union_voxels"]),
                listed(rows["gradient_inside"].abs()),
                at=at,
                faint=True,
                hint="by autograd",
            )
        )
        if loss in EXPONENTS:
            theory = 2 * (grid / norm) ** EXPONENTS[loss] / ((1 + iou) ** 2 * grid * terms)
            series.append(Series(index, "line", listed(grid), listed(theory), hint=f"theory at IoU {iou:.2f}"))
    panel = Panel(
        "",
        Axis("union with the prediction (voxels)", log=True),
        Axis("gradient of one voxel", log=True),
        series,
    )
    note = (
        f"Points: a voxel of the object, by autograd on this network's output. Lines: theory at the median IoU, "
        f"{iou:.2f}, in a batch whose mean union is {norm:.0f} voxels. GODC and batch Dice share a line: they differ "
        "in whose IoU counts."
    )
    return Chart(name, "Gradient per voxel by the size of the object", note, names, [panel], group, label, cases)


def _weight_chart(own: pd.DataFrame, label: str, name: str, group: str, objects: pd.DataFrame) -> Chart:
    every = objects[(objects["label"] == label) & objects["loss"].isin(WEIGHED)]
    cases = sorted(set(every["case"]))
    names: list[str] = []
    series, small = [], 0
    for loss in (loss for loss in WEIGHED if loss in set(every["loss"])):
        for there, what in ((True, "object in the patch"), (False, "none: false positives")):
            rows = every[(every["loss"] == loss) & ((every["reference_voxels"] > 0) == there)]
            seen = rows[rows["union_voxels"] >= 1]
            small += len(rows) - len(seen)
            if len(seen):
                at = [cases.index(case) for case in seen["case"]]
                series.append(Series(len(names), "points", listed(seen["union_voxels"]), listed(seen["weight"]), at=at))
                names.append(f"{loss}, {what}")
    panel = Panel("", Axis("union with the prediction (voxels)", log=True), Axis("weight", log=True), series)
    note = "Each point is a patch. A batch's weights lie on a line, which its mean union shifts."
    if small:
        note += f" Left out: {small} whose union is below a voxel."
    return Chart(name, "Weights of the objects of a batch", note, names, [panel], group, label, cases)


# Offsets


def _offsets(found: Explanation, number: int) -> Iterator[InsidePart]:
    if found.offsets.empty:
        return
    offsets, charts = found.offsets, [_further_chart(found.offsets, f"{number}-offsets")]
    rows = [
        [str(level), spacing, str(taps), f"{voxels:.3f}", f"{mm:.3f}", f"{100 * half:.1f}"]
        for level, spacing, taps, voxels, mm, half in offsets[
            ["level", "spacing_mm", "taps", "mean_voxels", "mean_mm", "above_0.5"]
        ].itertuples(index=False)
    ]
    headings = [
        "level",
        "spacing (mm)",
        "taps",
        "mean length (voxels)",
        "mean length (mm)",
        "moved by more than half a voxel (%)",
    ]
    caption = (
        "Offsets of each level, 0 the finest, over all taps and positions of the cases. Voxels are those of the level."
    )
    blocks: list[Any] = [
        f"Cases: {len(found.facts['cases'])}, predicted as nnU-Net predicts, without mirroring.",
        Table(caption, headings, rows),
        *_at_zero_blocks(found.at_zero),
    ]
    if chart := _at_zero_chart(found.at_zero, f"{number}-at-zero"):
        charts.append(chart)
    pictures = [
        (
            picture["file"],
            picture["size"],
            f"{picture['case']}: contours of reference and prediction, and offsets of "
            f"{' and '.join(f'level {level}' for level in picture['levels'])}",
        )
        for picture in found.facts["pictures"]
    ]
    yield InsidePart(Part(_heading(found, "LFAM's offsets"), blocks), charts, pictures)


def _further_chart(offsets: pd.DataFrame, name: str) -> Chart:
    columns = [column for column in offsets if column.startswith("above_")]
    limits = [float(column.removeprefix("above_")) for column in columns]
    names = [
        f"level {level} ({spacing} mm)" for level, spacing in zip(offsets["level"], offsets["spacing_mm"], strict=True)
    ]
    series = [
        Series(index, "line", limits, listed(100 * row)) for index, row in enumerate(offsets[columns].to_numpy(float))
    ]
    panel = Panel(
        "",
        Axis("length of the offset (voxels of the level)", log=True),
        Axis("longer than that (%)", limits=(0, 100)),
        series,
    )
    return Chart(
        name,
        "How far samples are moved",
        "Share of all samples, taps at positions, that are moved further than so many voxels.",
        names,
        [panel],
    )


def _at_zero_blocks(at_zero: pd.DataFrame) -> Iterator[Any]:
    rows = []
    for label, own in at_zero.groupby("label", sort=False):
        known = own.dropna(subset=["dice", "dice_at_zero"])
        numbers = [f"{100 * own['agreement'].mean():.2f}", "", "", "", "", ""]
        if len(known):
            difference = 100 * (known["dice"] - known["dice_at_zero"])
            numbers[1:] = [
                str(len(known)), f"{100 * known['dice'].mean():.2f}", f"{100 * known['dice_at_zero'].mean():.2f}",
                f"{difference.mean():+.2f}", f"{difference.min():+.2f} to {difference.max():+.2f}",
            ]  # fmt: skip
        rows.append([str(label), *numbers])
    headings = [
        "label",
        "Dice of the two predictions (%)",
        "cases",
        "Dice (%)",
        "with offsets at zero (%)",
        "difference",
        "of single cases",
    ]
    yield Table("What offsets do to the prediction, means over the cases; differences in points", headings, rows)
    yield (
        "With its offsets at zero, LFAM is a plain convolution on each skip connection, not a network without LFAM. "
        "The network was not trained to do without them: a drop says that it uses them, not that it is better for them."
    )


def _at_zero_chart(at_zero: pd.DataFrame, name: str) -> Chart | None:
    known = at_zero.dropna(subset=["dice", "dice_at_zero"])
    if len(known) < 3:
        return None
    labels, cases = list(dict.fromkeys(known["label"])), sorted(set(known["case"]))
    series = []
    for index, label in enumerate(labels):
        own = known[known["label"] == label]
        at = [cases.index(case) for case in own["case"]]
        series.append(
            Series(index, "points", listed(100 * own["dice_at_zero"]), listed(100 * own["dice"]), at=at, faint=True)
        )
    panel = Panel("", Axis("Dice with offsets at zero (%)"), Axis("Dice (%)"), series, "diagonal")
    return Chart(
        name,
        "Each case with and without offsets",
        "Each point is a case. Above the diagonal, offsets help it.",
        labels,
        [panel],
        cases=cases,
    )
