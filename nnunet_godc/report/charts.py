"""What is drawn, apart from how: charts as data, which the page and the printed figures draw alike.

Every number here comes from the evaluation: means, intervals and differences are those of its tables. Only a smooth
line through points is added, a mean over neighbours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_godc.evaluation.cube import OVER_LABELS, Endpoint, Method
from nnunet_godc.evaluation.metrics import (
    DICE,
    LESION_DICE,
    LESION_SENSITIVITY,
    RELATIVE_VOLUME_ERROR,
    VOLUME_ERROR,
)
from nnunet_godc.evaluation.report import Section, named, ordered_methods
from nnunet_godc.evaluation.sentences import subject_of
from nnunet_godc.evaluation.units import shown
from nnunet_godc.seeded_names import without_seed

Floats = NDArray[np.float64]

NEIGHBOURHOOD = 0.2  # decades of volume: standard deviation of the Gaussian that weights a smooth's neighbours
FEWEST_NEIGHBOURS = 10.0  # the smooth ends where its weights sum to less
SMOOTH_POINTS = 100
MOST_VALUES = 1_000_000  # in the charts of single labels and metrics, which bounds the page
GOLDEN = 0.618034  # multiples of it, modulo 1, spread evenly whatever their number


@dataclass(frozen=True)
class Series:
    """Points, a line, or points with intervals.

    Attributes:
        method: number of the method, which fixes colour, dash and marker; its name where the series has one in the
            legend.
        x, y: NaN interrupts a line.
        low, high: ends of intervals, along x or y.
        at: of each point, the number of the case in the chart's `cases`.
        faint: one of many, behind what sums them up.
    """

    method: int
    kind: Literal["points", "line", "interval-x", "interval-y"]
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    at: Sequence[int] = ()
    faint: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Axis:
    """Attributes:
    label: with the unit.
    log: logarithmic.
    ticks: names at 0, 1, 2 and so on, where the axis has no numbers.
    limits: lowest and highest value; as the data need it without.
    """

    label: str = ""
    log: bool = False
    ticks: Sequence[str] = ()
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `line` is "diagonal", or an axis at whose zero a line is drawn."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    line: Literal["", "diagonal", "x", "y"] = ""


@dataclass(frozen=True)
class Chart:
    """Panels side by side.

    Attributes:
        name: of its files, and in the page.
        title, note: above it; what it shows and how it is read.
        methods: names for the legend, by number.
        group, choice: charts of one group stand in one place, where one is chosen.
        cases: names of the cases that `Series.at` counts.
    """

    name: str
    title: str
    note: str
    methods: Sequence[str]
    panels: Sequence[Panel]
    group: str = ""
    choice: str = ""
    cases: Sequence[str] = field(default=(), repr=False)


def short_names(methods: Sequence[Method]) -> dict[Method, str]:
    """Methods as they tell each other apart, without what all trainers' names begin with."""
    trainers = sorted({method.trainer for method in methods})
    prefix = trainers[0] if len(trainers) > 1 else ""
    while prefix and not all(
        name == prefix or (name.startswith(prefix) and name[len(prefix)].isupper()) for name in trainers
    ):
        prefix = prefix[:-1]
    return {
        method: named(method, methods).replace(method.trainer, method.trainer.removeprefix(prefix) or method.trainer, 1)
        for method in methods
    }


def section_charts(section: Section, measurements: pd.DataFrame, volumes: Volumes, baseline: str | None) -> list[Chart]:
    """The charts of one dataset.

    Args:
        measurements: the long table, of all datasets.
        volumes: of the labels in the references.
        baseline: the trainer that comes first.
    """
    methods = ordered_methods(section.cube.methods, baseline)
    charts = [_differences(section, methods), _yardstick(section, methods)]
    charts += _by_volume(section, methods, measurements, volumes)
    charts += _case_by_case(section, methods)
    return [chart for chart in charts if chart is not None and chart.panels]


Volumes = Mapping[tuple[str, str, str], float]
"""Millilitres by dataset, case and label."""


def reference_volumes(measurements: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """The volumes of labels in the references, as far as the long table tells them.

    A volume error over its relative volume error is the volume; where a prediction has exactly the volume of the
    reference, another prediction of the case tells it, or the sum of the lesions.
    """
    key = ["dataset", "case", "label"]
    rows = measurements[
        measurements["metric"].isin((VOLUME_ERROR, RELATIVE_VOLUME_ERROR)) & (measurements["value"] != 0)
    ]
    errors = {
        metric: own.set_index([*key, "configuration", "plans", "trainer", "fold"])["value"]
        for metric, own in rows.astype(dict.fromkeys([*key, "trainer", "configuration", "plans"], "str")).groupby(
            rows["metric"].astype("str")
        )
    }
    found: dict[tuple[str, str, str], float] = {}
    lesions = measurements[(measurements["metric"] == LESION_SENSITIVITY) & measurements["lesion"].notna()]
    lesions = lesions.drop_duplicates([*key, "lesion"])
    found |= lesions.groupby(key, observed=True)["volume_ml"].sum().to_dict()
    if len(errors) == 2:
        both = pd.concat(errors, axis=1, join="inner")
        quotients = (both[VOLUME_ERROR] / both[RELATIVE_VOLUME_ERROR]).dropna()
        found |= quotients.groupby(level=key).median().to_dict()
    return {(str(dataset), str(case), str(label)): float(ml) for (dataset, case, label), ml in found.items()}


def smooth(log_volumes: Floats, values: Floats, grid: Floats) -> Floats:
    """Means over neighbours, with the weights of a Gaussian; NaN where too few are near.

    Args:
        log_volumes, values: of the points, (N,).
        grid: decimal logarithms of the volumes at which the smooth is wanted, (G,).
    """
    weights = np.exp(-0.5 * ((grid[:, None] - log_volumes) / NEIGHBOURHOOD) ** 2)  # (G, N)
    near = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(near >= FEWEST_NEIGHBOURS, weights @ values / near, np.nan)


def _differences(section: Section, methods: Sequence[Method]) -> Chart | None:
    """Differences with their intervals, one panel for each metric of the table."""
    names = short_names(section.cube.methods)
    panels = []
    for metric in section.metrics:
        label = section.headline(metric)
        compared = [c for c in section.comparisons if c.endpoint.metric == metric and c.endpoint.label == label]
        if not compared or len(compared) > 30:
            continue
        units = shown(metric)
        ticks = [
            names[c.method] if len({o.against for o in compared}) == 1 else f"{names[c.method]} - {names[c.against]}"
            for c in compared
        ]
        series = [
            Series(
                methods.index(entry.method),
                "interval-x",
                [entry.difference * units.factor],
                [place],
                [entry.low * units.factor],
                [entry.high * units.factor],
                hint=f"{entry.patients} patients, p = {entry.p_holm:.3g} (Holm)",
            )
            for place, entry in enumerate(compared)
        ]
        unit = f" ({units.difference_unit})" if units.difference_unit else ""
        panels.append(
            Panel(subject_of(Endpoint(label, metric)), Axis(f"difference{unit}"), Axis(ticks=ticks), series, "x")
        )
    if not panels:
        return None
    against = {c.against for c in section.comparisons}
    what = f"Difference from {names[next(iter(against))]}" if len(against) == 1 else "Differences between methods"
    note = "Mean difference on the same cases, with its 95 % interval. Intervals that cross the line leave it open."
    return Chart("differences", what, note, [names[m] for m in methods], panels)


def _yardstick(section: Section, methods: Sequence[Method]) -> Chart | None:
    """Means of single trainings that differ in their seed alone."""
    names = short_names(section.cube.methods)
    panels = []
    for metric in section.metrics:
        endpoint = Endpoint(section.headline(metric), metric)
        units = shown(metric)
        series = []
        for entry in section.summaries:
            means = [mean * units.factor for mean in entry.seed_means if math.isfinite(mean)]
            if entry.endpoint == endpoint and len(means) > 1:
                place = methods.index(entry.method)
                series.append(Series(place, "points", means, [place] * len(means), hint="one training"))
        if series:
            ticks = [names[method] for method in methods]
            panels.append(Panel(subject_of(endpoint), Axis(units.heading), Axis(ticks=ticks), series))
    note = (
        "Each point is one training, mean over the same cases. What lies within this spread may be chance of training."
    )
    return Chart("yardstick", "Seed against seed", note, [names[m] for m in methods], panels) if panels else None


def _case_by_case(section: Section, methods: Sequence[Method]) -> Iterator[Chart]:
    """For each label and metric, every case of the first method against another, and all cases of all methods."""
    cube = section.cube
    names = [short_names(cube.methods)[method] for method in methods]
    sides = [cube.side(cube.methods.index(method), cube.values).values for method in methods]
    summaries = {(entry.method, entry.endpoint): entry for entry in section.summaries}
    cases = list(cube.cases)
    headline = {(section.headline(metric), metric) for metric in section.metrics}
    columns = list(enumerate(cube.measured_endpoints))
    columns.sort(
        key=lambda item: (item[1].metric not in section.metrics, (item[1].label, item[1].metric) not in headline)
    )
    budget = MOST_VALUES
    for column, endpoint in columns:
        units = shown(endpoint.metric)
        values = [side[:, column] * units.factor for side in sides]
        budget -= 3 * sum(len(own) for own in values)
        if budget < 0:
            return
        is_share = (units.lowest, units.highest, units.factor) == (0.0, 1.0, 100)
        limits = _limits(np.concatenate(values)) if is_share else None
        first, panels = values[0], []
        for number, (name, own) in enumerate(zip(names, values, strict=True)):
            both = np.flatnonzero(np.isfinite(first) & np.isfinite(own))
            if number == 0 or not len(both):
                continue
            points = Series(number, "points", listed(first[both]), listed(own[both]), at=both.tolist(), faint=True)
            panels.append(Panel(name, Axis(names[0], limits=limits), Axis(name, limits=limits), [points], "diagonal"))
        subject = subject_of(endpoint)
        choice = f"{endpoint.label}: {units.heading}"
        if panels:
            yield Chart(
                slug(f"paired-{endpoint.metric}-{endpoint.label}"),
                f"{subject}: case by case",
                f"Each point is a case. Above the diagonal, the method has the higher value than {names[0]}.",
                names,
                panels,
                "paired",
                choice,
                cases,
            )
        series, typical = [], "median" if units.unit == "mm" else "mean"
        for number, own in enumerate(values):
            there = np.flatnonzero(np.isfinite(own))
            jitter = number + 0.7 * ((np.arange(len(there)) * GOLDEN) % 1 - 0.5)
            series.append(Series(number, "points", listed(jitter), listed(own[there]), at=there.tolist(), faint=True))
            entry = summaries[methods[number], endpoint]
            value = (entry.median, entry.median_low, entry.median_high)
            if typical == "mean":
                value = (entry.mean, entry.low, entry.high)
            middle, low, high = (end * units.factor for end in value)
            hint = f"{typical} with its 95 % interval, {entry.cases} cases"
            series.append(Series(number, "interval-y", [number], [middle], [low], [high], hint=hint))
        yield Chart(
            slug(f"strip-{endpoint.metric}-{endpoint.label}"),
            f"{subject}: all cases",
            f"Each point is a case; the large one is the {typical} with its 95 % interval.",
            names,
            [Panel(subject, Axis(ticks=names), Axis(units.heading, limits=limits), series)],
            "strip",
            choice,
            cases,
        )


def _by_volume(
    section: Section, methods: Sequence[Method], measurements: pd.DataFrame, volumes: Volumes
) -> Iterator[Chart]:
    """Dice, and whether a lesion was found, against its volume; of labels without lesions Dice of the case."""
    own = measurements[(measurements["dataset"] == section.cube.dataset) & (measurements["case"] != "")]
    own = own[own["fold"].notna() == section.cube.cross_validated]
    with_lesions = set(own.loc[own["lesion"].notna(), "label"].astype("str"))
    labels = dict.fromkeys(q.label for q in section.cube.endpoints if q.label != OVER_LABELS)
    for label in sorted(labels, key=lambda label: label not in with_lesions):
        rows = own[own["label"] == label]
        lesions = rows[rows["lesion"].notna()]
        for metric, subject, name in (
            (LESION_DICE if len(lesions) else DICE, "Dice", "dice-by-volume"),
            (LESION_SENSITIVITY, "Share that was found", "found-by-volume"),
        ):
            unit = "lesion" if len(lesions) else "case"
            chosen = (lesions if len(lesions) else rows)[lambda part, metric=metric: part["metric"] == metric]
            chosen = chosen.assign(trainer=chosen["trainer"].astype("str").map(without_seed))
            if not len(lesions):
                dataset = section.cube.dataset
                chosen["volume_ml"] = [volumes.get((dataset, str(case), label), np.nan) for case in chosen["case"]]
            chosen = chosen[(chosen["volume_ml"] > 0) & chosen["value"].notna()]
            if len(chosen):
                yield _volume_chart(section, methods, chosen, label, subject, unit, slug(f"{name}-{label}"))


def _volume_chart(
    section: Section, methods: Sequence[Method], rows: pd.DataFrame, label: str, subject: str, unit: str, name: str
) -> Chart:
    text = dict.fromkeys(("configuration", "plans", "trainer", "case"), "str")
    by = ["configuration", "plans", "trainer", "case", "lesion"]
    averaged = rows.astype(text).fillna({"lesion": 0}).groupby(by).agg({"value": "mean", "volume_ml": "first"})
    everything = np.log10(averaged["volume_ml"].to_numpy(dtype=np.float64))
    grid = np.linspace(everything.min(), everything.max(), SMOOTH_POINTS)
    names = short_names(section.cube.methods)
    cases = sorted(set(averaged.index.get_level_values("case")))
    number = {case: index for index, case in enumerate(cases)}
    points, lines, differences = [], [], []
    first: pd.Series[Any] | None = None
    for index, method in enumerate(methods):
        key = (method.configuration, method.plans, method.trainer)
        if key not in averaged.index.droplevel(["case", "lesion"]):
            continue
        own = averaged.loc[key]
        ml, values = own["volume_ml"].to_numpy(dtype=np.float64), 100 * own["value"].to_numpy(dtype=np.float64)
        at = [number[case] for case in own.index.get_level_values("case")]
        points.append(Series(index, "points", listed(ml), listed(values), at=at, faint=True))
        line = smooth(np.log10(ml), values, grid)
        if np.isfinite(line).any():  # not of a few lesions
            lines.append(Series(index, "line", listed(10**grid), listed(line), hint="smooth"))
        if first is None:
            first = own["value"]
            continue
        both = (100 * (own["value"] - first)).dropna()
        there = own.loc[both.index, "volume_ml"].to_numpy(dtype=np.float64)
        line = smooth(np.log10(there), both.to_numpy(dtype=np.float64), grid)
        if np.isfinite(line).any():
            differences.append(Series(index, "line", listed(10**grid), listed(line), hint="smooth"))
    if lines and subject != "Dice":
        points = []  # found or not: points on two lines tell nothing that the smooth ones do not
    limits = _limits(100 * averaged["value"].to_numpy(dtype=np.float64))
    volume = Axis(f"volume of the {unit} (ml)" if unit == "lesion" else f"volume of {label} in the case (ml)", log=True)
    panels = [Panel(subject, volume, Axis(f"{subject} (%)", limits=limits), [*points, *lines])]
    if differences:
        title = f"Difference from {names[methods[0]]}"
        panels.append(Panel(title, volume, Axis("difference (points)"), differences, "y"))
    each = f"Each point is a {unit}. " if points else f"Of the {unit}s of each volume, how many were found. "
    drawn = f"Lines: means over neighbours, weighted by a Gaussian of {NEIGHBOURHOOD:g} decades of volume."
    note = f"{each}{drawn if lines else ''}".rstrip()
    title = f"{subject} by volume, {label}"
    return Chart(name, title, note, [names[m] for m in methods], panels, subject, label, cases)


def _limits(values: Floats) -> tuple[float, float]:
    """From 0 to 100 per cent; from a higher ten where there is nothing in the lower half."""
    defined = values[np.isfinite(values)]
    lowest = float(defined.min()) if len(defined) else 0.0
    return (10 * math.floor(lowest / 10) if lowest > 50 else 0, 100)


def slug(text: str) -> str:
    """For names of files and in addresses."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def listed(values: Any) -> list[float]:
    """With five significant digits, which is more than a screen shows."""
    return [float(f"{value:.5g}") for value in np.asarray(values, dtype=np.float64)]
