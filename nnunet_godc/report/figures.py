"""The charts for print: PDF and SVG, told apart by colour-blind readers and in grey."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.report.charts import Chart, Panel, Series

# Okabe's and Ito's; dashes and markers differ, too.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1.5, 2)), (0, (1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FORMATS = ("pdf", "svg")
PANEL = (3.3, 2.9)  # inches
ABREAST = 4


def write_figures(charts: Sequence[Chart], folder: Path) -> None:
    """Of charts among which the page lets choose, the first one; one file for each of `FORMATS`."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    seen = set()
    with matplotlib.rc_context({"svg.hashsalt": "nnunet-godc", "pdf.fonttype": 42, "svg.fonttype": "path"}):
        for chart in charts:
            if chart.group and chart.group in seen:
                continue
            seen.add(chart.group)
            figure = draw(chart)
            for ending in FORMATS:
                metadata = {"Date": None} if ending == "svg" else {"CreationDate": None}
                with atomic_write(folder / f"{chart.name}.{ending}") as temporary:
                    figure.savefig(temporary, format=ending, metadata=metadata)


def draw(chart: Chart) -> Any:
    """A matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(len(chart.panels), ABREAST)
    rows = math.ceil(len(chart.panels) / columns)
    figure = Figure(figsize=(max(columns * PANEL[0], 4.6), rows * PANEL[1] + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.ravel(), chart.panels, strict=False):
        _draw_panel(axes, panel)
    for axes in grid.ravel()[len(chart.panels) :]:
        axes.set_visible(False)
    used = sorted({series.method for panel in chart.panels for series in panel.series})
    named = any(panel.x.ticks or panel.y.ticks for panel in chart.panels)
    if len(used) > 1 and not named:
        handles = [Line2D([], [], **_style(number), marker=MARKERS[number % len(MARKERS)], ms=4) for number in used]
        names = [chart.methods[number] for number in used]
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(used), 5), frameon=False, fontsize=8)
    figure.suptitle(chart.title, fontsize=10, parse_math=False)
    return figure


def _draw_panel(axes: Any, panel: Panel) -> None:
    for series in panel.series:
        _draw_series(axes, series)
    axes.set_title(panel.title, fontsize=9, parse_math=False)
    for axis, which in ((panel.x, "x"), (panel.y, "y")):
        getattr(axes, f"set_{which}label")(axis.label, fontsize=8, parse_math=False)
        if axis.log:
            getattr(axes, f"set_{which}scale")("log")
        if axis.limits:
            low, high = axis.limits
            getattr(axes, f"set_{which}lim")(low - 0.02 * (high - low), high + 0.02 * (high - low))
        if axis.ticks:
            getattr(axes, f"set_{which}ticks")(range(len(axis.ticks)), axis.ticks, parse_math=False)
            ends = (-0.6, len(axis.ticks) - 0.4)
            getattr(axes, f"set_{which}lim")(*(ends if which == "x" else ends[::-1]))
            if which == "x" and sum(map(len, axis.ticks)) > 30:
                axes.tick_params(axis="x", rotation=30)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.line == "diagonal":
        axes.axline((0, 0), slope=1, color="0.6", lw=0.8, zorder=0)
    elif panel.line:
        (axes.axvline if panel.line == "x" else axes.axhline)(0, color="0.6", lw=0.8, zorder=0)


def _style(method: int) -> dict[str, Any]:
    return {"color": COLOURS[method % len(COLOURS)], "ls": DASHES[method % len(DASHES)], "lw": 1.5}


def _draw_series(axes: Any, series: Series) -> None:
    style = _style(series.method)
    marker = MARKERS[series.method % len(MARKERS)]
    if series.kind == "line":
        axes.plot(series.x, series.y, **{**style, "lw": 0.8 if series.faint else 1.6}, alpha=0.7 if series.faint else 1)
    elif series.kind == "points":
        size, alpha = (3, 0.25) if series.faint else (22, 0.9)
        # many points are one picture in vector formats, too
        axes.scatter(series.x, series.y, s=size, c=style["color"], marker=marker, alpha=alpha, linewidths=0,
                     rasterized=len(series.x) > 2000)  # fmt: skip
    else:
        along = "xerr" if series.kind == "interval-x" else "yerr"
        middle = series.x if along == "xerr" else series.y
        spread = [
            [abs(m - low) for m, low in zip(middle, series.low, strict=True)],
            [abs(high - m) for m, high in zip(middle, series.high, strict=True)],
        ]
        axes.errorbar(series.x, series.y, **{along: spread}, fmt=marker, color=style["color"], ms=5, capsize=3, lw=1.5,
                      mec="white", mew=0.6, zorder=5)  # fmt: skip
