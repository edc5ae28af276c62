"""The page: one file to open from disk, beside it two scripts, the cases and the figures to print."""

from __future__ import annotations

import html
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd

import nnunet_godc
from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import Evaluation
from nnunet_godc.evaluation.cube import Method
from nnunet_godc.evaluation.markup import Table, html_table
from nnunet_godc.evaluation.metrics import DICE
from nnunet_godc.evaluation.report import Part, Section, ordered_methods
from nnunet_godc.evaluation.results import Case, Results
from nnunet_godc.report.assets import scripts
from nnunet_godc.report.cases import Choice, case_table, choose_cases
from nnunet_godc.report.charts import Chart, Volumes, reference_volumes, section_charts, short_names, slug
from nnunet_godc.report.curves import curves_chart, read_logs
from nnunet_godc.report.figures import write_figures
from nnunet_godc.report.inside import (
    Explanation,
    InsidePart,
    inside_parts,
    read_explanation,
    write_explanation,
    write_pictures,
)
from nnunet_godc.report.views import Task, View, make_view
from nnunet_godc.seeded_names import without_seed
from nnunet_godc.workers import WorkerEnded, in_workers

PAGE = "index.html"
CASES = "cases"
INSIDE = "inside"
VIEWS = {"overview": "Overview", "cases": "Cases", "inside": "Inside the method", "notes": "Notes"}
FIGURES = "figures"
SENTENCES = 6  # of a list that are shown at once
ROWS = 6  # methods in the picture of a case
CT_WIDER = 0.25  # of the foreground's range of intensities, to either side


@dataclass(frozen=True)
class Page:
    """What was written: the cases that are shown, those among them whose images were not found, and those that cannot
    be shown, a sentence each."""

    path: Path
    cases: int
    without_image: int
    problems: Sequence[str]


def write_page(
    evaluation: Evaluation,
    out: Path,
    *,
    baseline: str | None = None,
    epochs: pd.DataFrame | None = None,
    volumes: Volumes | None = None,
    running: Sequence[Path] = (),
    explained: Sequence[Path] = (),
    cases: int = 40,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Page:
    """Writes ``index.html`` and what it needs into `out`, which is made if it is not there.

    Args:
        evaluation: what `nnunet_godc.evaluation.evaluate` has found; where it comes from folders of results, their
            training curves and pictures of their cases are shown, too.
        baseline: trainer that stands first.
        epochs: training curves, as `nnunet_godc.report.curves` reads them from tables.
        volumes: of labels in the references, where the measurements do not tell them.
        running: folders of models without results yet, whose training curves are shown with the others'.
        explained: folders of `nnunet-godc explain`, each a part of the tab about the inside of the method.
        cases: of how many pictures are drawn, and volumes written for the viewer.
        workers: processes that do so; 0 does it in this one.
        progress: called with the number of cases that are drawn, and of those that are to be.

    Raises:
        UserError: a package is missing that the page needs, or `out` cannot be written to.
    """
    sections = [part.section for part in evaluation.parts if part.section is not None]
    known = {**reference_volumes(evaluation.measurements), **(volumes or {})}
    logs = read_logs([*(result.folder for result in evaluation.results), *running])
    curves = logs if epochs is None else pd.concat([epochs, logs])
    explanations = list(map(read_explanation, explained))
    try:
        out.mkdir(parents=True, exist_ok=True)
        choices = choose_cases(sections, baseline, cases) if evaluation.results else []
        views, problems = _write_views(choices, evaluation, sections, baseline, out / CASES, workers, progress)
        charts = _charts(evaluation, sections, known, curves, baseline)
        inside = []
        for number, found in enumerate(explanations):
            write_pictures(found, out / INSIDE / str(number))
            inside += [(part, f"{INSIDE}/{number}") for part in inside_parts(found, number)]
        *parts, notes = evaluation.parts
        datasets = list(dict.fromkeys(section.cube.dataset for section in sections))
        _write(
            out,
            ", ".join(datasets),
            {"overview": _overview(parts, sections, charts), "notes": _notes(notes)},
            inside,
            {f"{number}-{chart.name}": chart for number, own in charts.items() for chart in own},
            _case_rows(case_table(evaluation.measurements, known), choices, views),
        )
    except OSError as error:
        raise _cannot_write(out, error) from error
    shown = [view for view in views.values() if not view.problem]
    return Page(out / PAGE, len(shown), sum(not view.has_image for view in shown), problems)


def _charts(
    evaluation: Evaluation, sections: Sequence[Section], volumes: Volumes, curves: pd.DataFrame, baseline: str | None
) -> dict[int, list[Chart]]:
    """By number of the section."""
    charts: dict[int, list[Chart]] = {}
    for number, section in enumerate(sections):
        if section.by_size:
            continue
        methods = ordered_methods(section.cube.methods, baseline)
        own = section_charts(section, evaluation.measurements, volumes, baseline)
        of_dataset = curves[curves["dataset"].isin([section.cube.dataset]) | curves["dataset"].isna()]
        trainers = {method.trainer: index for index, method in enumerate(methods)}
        names = [short_names(section.cube.methods)[method] for method in methods]
        if section.cube.cross_validated and (chart := curves_chart(of_dataset, trainers, names)):
            own.append(chart)
        charts[number] = own
    return charts


def _write_views(
    choices: Sequence[Choice],
    evaluation: Evaluation,
    sections: Sequence[Section],
    baseline: str | None,
    folder: Path,
    workers: int,
    progress: Callable[[int, int], None],
) -> tuple[dict[tuple[str, str], View], list[str]]:
    """Pictures and volumes of the chosen cases, by dataset and case."""
    if folder.exists():
        shutil.rmtree(folder)
    tasks: dict[tuple[str, str], Task] = {}
    for dataset, case in dict.fromkeys((choice.dataset, choice.case) for choice in choices):
        labels = [choice.label for choice in choices if (choice.dataset, choice.case) == (dataset, case)]
        task = _task(dataset, case, labels, evaluation.results, sections, baseline, folder, len(tasks))
        if task is not None:
            tasks[dataset, case] = task
    if tasks:
        folder.mkdir(parents=True)
    views, problems = {}, []
    progress(0, len(tasks))
    outcomes = in_workers(make_view, list(tasks.values()), workers)
    for done, (place, (task, view)) in enumerate(zip(tasks, outcomes, strict=True), 1):
        progress(done, len(tasks))
        if isinstance(view, WorkerEnded):
            view = View(task.key, problem=WorkerEnded.SENTENCE)
        views[place] = view
        if view.problem:
            problems.append(f"{place[0]}, case {place[1]}: {view.problem}")
    return views, problems


def _task(
    dataset: str,
    case: str,
    labels: Sequence[str],
    results: Sequence[Results],
    sections: Sequence[Section],
    baseline: str | None,
    folder: Path,
    number: int,
) -> Task | None:
    section = next(s for s in sections if s.cube.dataset == dataset and case in s.cube.cases and not s.by_size)
    cube, names = section.cube, short_names(section.cube.methods)
    methods = ordered_methods(cube.methods, baseline)
    found: dict[Method, tuple[Results, Case]] = {}
    for result in results:
        method = Method(result.configuration, result.plans, without_seed(result.trainer))
        for own in result.cases if result.dataset == dataset and method in methods else ():
            if own.name == case and (own.fold is not None) == cube.cross_validated and own.prediction.exists():
                found.setdefault(method, (result, own))
    shown = [method for method in methods if method in found][:ROWS]
    if not shown:
        return None
    result, first = found[shown[0]]
    at, scores = cube.cases.index(case), {}
    for column, endpoint in enumerate(cube.measured_endpoints):
        if endpoint.metric == DICE:
            for method in shown:
                value = cube.side(cube.methods.index(method), cube.values).values[at, column]
                scores[endpoint.label, methods.index(method)] = (
                    f"Dice {100 * value:.1f} %" if np.isfinite(value) else ""
                )
    return Task(
        key=f"{number:03d}-{slug(case)[:60]}",
        name=case,
        image=_image_of(first, result),
        reference=first.reference,
        predictions=[(methods.index(method), names[method], found[method][1].prediction) for method in shown],
        reader=result.reader,
        labels=dict(result.labels.values),
        ignore=result.labels.ignore,
        shown=labels,
        window=_ct_window(result),
        scores=scores,
        folder=folder,
    )


def _image_of(case: Case, results: Results) -> Path | None:
    """The first channel of a case, beside its reference or in nnUNet_raw."""
    ending = case.file.removeprefix(case.name)
    folders = []
    if case.references.name.startswith("labels"):
        folders.append(case.references.with_name(case.references.name.replace("labels", "images", 1)))
    if root := os.environ.get("nnUNet_raw"):
        folders += [Path(root, results.dataset, part) for part in ("imagesTr", "imagesTs")]
    paths = (folder / f"{case.name}_0000{ending}" for folder in folders)
    return next((path for path in paths if path.exists()), None)


def _ct_window(results: Results) -> tuple[float, float] | None:
    """Of a CT, somewhat wider than the intensities of what is labelled."""
    try:
        plans = json.loads((results.folder / "plans.json").read_text(encoding="utf-8"))
        schemes = plans["configurations"][results.configuration]["normalization_schemes"]
        intensities = plans["foreground_intensity_properties_per_channel"]["0"]
        low, high = float(intensities["percentile_00_5"]), float(intensities["percentile_99_5"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    wider = CT_WIDER * (high - low)
    return (low - wider, high + wider) if schemes[0] == "CTNormalization" and high > low else None


def write_inside_page(found: Explanation, out: Path) -> Path:
    """A page about the inside of a model alone, beside its pictures; with its tables.

    Raises:
        UserError: as `write_page`.
    """
    parts = inside_parts(found, 0)
    try:
        write_explanation(found, out)
        _write(out, str(found.facts["dataset"]), {}, [(part, ".") for part in parts], {}, None)
    except OSError as error:
        raise _cannot_write(out, error) from error
    return out / PAGE


def write_curves_page(
    out: Path, title: str, blocks: Sequence[Table | str], charts: Sequence[Chart], reload_seconds: int
) -> Path:
    """A page of text, tables and training curves that loads itself anew every so many seconds, 0 for never.

    Raises:
        UserError: as `write_page`.
    """
    content = ["<section class=part>", *map(_block, blocks), *_figures("live", charts), "</section>"]
    drawn = {f"live-{chart.name}": chart for chart in charts}
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out, title, {"overview": content}, [], drawn, None, reload_seconds, figures=False)
    except OSError as error:
        raise _cannot_write(out, error) from error
    return out / PAGE


def _cannot_write(out: Path, error: OSError) -> UserError:
    where = f" ({error.filename})" if error.filename else ""
    return UserError(f"cannot write the page to {out}: {error.strerror}{where}; choose another folder")


def _write(
    out: Path,
    title: str,
    content: Mapping[str, Iterable[str]],
    inside: Sequence[tuple[InsidePart, str]],
    charts: Mapping[str, Chart],
    cases: Mapping[str, Any] | None,
    reload_seconds: int = 0,
    *,
    figures: bool = True,
) -> None:
    """Scripts, figures and the page itself.

    Args:
        content: HTML of the parts "overview" and "notes".
        inside: each with the folder of its pictures.
        charts: by name, of the overview.
        cases: as `_case_rows` makes them; None for a page without.
    """
    charts = {**charts, **{f"{INSIDE}-{chart.name}": chart for part, _ in inside for chart in part.charts}}
    if figures:
        write_figures(list(charts.values()), out / FIGURES)
    for name, script in scripts(viewer=cases is not None).items():
        with atomic_write(out / name) as temporary:
            temporary.write_text(script, encoding="utf-8")
    html_of = {"overview": "\n".join(content.get("overview", ())), "notes": "\n".join(content.get("notes", ()))}
    html_of["inside"] = "\n".join(line for part, folder in inside for line in _inside(part, folder))
    shown = {**html_of, "cases": "" if cases is None else "yes"}
    page = files("nnunet_godc.report") / "template"
    data = {"charts": [_chart(name, chart) for name, chart in charts.items()], "cases": cases}
    text = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    rendered = Template((page / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        reload=f'<meta http-equiv="refresh" content="{reload_seconds}">' if reload_seconds else "",
        nav="\n".join(f'<a href="#{name}">{heading}</a>' for name, heading in VIEWS.items() if shown[name]),
        style=(page / "page.css").read_text(encoding="utf-8"),
        script=(page / "page.js").read_text(encoding="utf-8"),
        version=html.escape(nnunet_godc.__version__),
        data=text,
        **html_of,
    )
    with atomic_write(out / PAGE) as temporary:
        temporary.write_text(rendered, encoding="utf-8", newline="\n")


def _notes(part: Part) -> Iterable[str]:
    yield "<section class=part>\n<h2>Notes</h2>"
    yield from map(_block, part.blocks)
    yield "</section>"


def _inside(own: InsidePart, folder: str) -> Iterable[str]:
    yield f"<section class=part>\n<h2>{html.escape(own.part.title)}</h2>"
    yield from map(_block, own.part.blocks)
    yield from _figures(INSIDE, own.charts)
    if own.pictures:
        yield "<div class=pictures>"
        for file, (width, height), shows in own.pictures:
            source, text = html.escape(f"{folder}/{file}"), html.escape(shows)
            image = f'<img src="{source}" width={width} height={height} alt="{text}" loading=lazy>'
            yield f'<a href="{source}">{image}</a>'
        yield "</div>"
    yield "</section>"


def _overview(
    parts: Sequence[Part], sections: Sequence[Section], charts: Mapping[int, Sequence[Chart]]
) -> Iterable[str]:
    for part in parts:
        number = next((index for index, section in enumerate(sections) if section is part.section), None)
        yield "<section class=part>"
        if part.title:
            yield f"<h2>{html.escape(part.title)}</h2>"
        tables = [block for block in part.blocks if isinstance(block, Table)]
        yield from map(_block, tables[:1])
        yield from (_sentences(block) for block in part.blocks if not isinstance(block, Table))
        if number is not None:
            yield from _figures(number, charts.get(number, ()))
        yield from map(_block, tables[1:])
        if part.details:
            inside = "\n".join(map(_block, part.details))
            yield f"<details><summary>All labels, metrics and comparisons</summary>\n{inside}\n</details>"
        yield "</section>"


def _block(block: Table | str | Sequence[str]) -> str:
    return f"<div class=scroll tabindex=0>{html_table(block)}</div>" if isinstance(block, Table) else _sentences(block)


def _sentences(block: Any) -> str:
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    items = [f"<li>{html.escape(sentence)}</li>" for sentence in block]
    first = f"<ul class=sentences>{''.join(items[:SENTENCES])}</ul>"
    if len(items) <= SENTENCES + 1:
        return f"<ul class=sentences>{''.join(items)}</ul>"
    more = f"<summary>{len(items) - SENTENCES} more</summary><ul class=sentences>{''.join(items[SENTENCES:])}</ul>"
    return f"{first}<details>{more}</details>"


def _figures(prefix: int | str, charts: Sequence[Chart]) -> Iterable[str]:
    groups: dict[str, list[Chart]] = {}
    for chart in charts:
        groups.setdefault(chart.group or chart.name, []).append(chart)
    return (_figure(prefix, own) for own in groups.values())


def _figure(prefix: int | str, charts: Sequence[Chart]) -> str:
    """The place of a chart, or of several of which one is chosen; the page's script draws it when it is seen."""
    first = charts[0]
    names = " ".join(html.escape(f"{prefix}-{chart.name}") for chart in charts)
    choose = ""
    if len(charts) > 1:
        options = "".join(
            f"<option value={index}>{html.escape(chart.choice)}</option>" for index, chart in enumerate(charts)
        )
        choose = f"<label>Show <select>{options}</select></label>"
    return (
        f'<figure class=chart data-charts="{names}"><figcaption><h3>{html.escape(first.title)}</h3>{choose}'
        f"<p>{html.escape(first.note)}</p></figcaption><div class=legend></div><div class=panels></div></figure>"
    )


def _chart(name: str, chart: Chart) -> dict[str, Any]:
    def series(own: Any) -> dict[str, Any]:
        return {
            key: value for key, value in vars(own).items() if not (isinstance(value, (list, tuple, str)) and not value)
        }

    panels = [
        {**vars(panel), "x": vars(panel.x), "y": vars(panel.y), "series": list(map(series, panel.series))}
        for panel in chart.panels
    ]
    return {
        **{key: getattr(chart, key) for key in ("title", "note", "methods", "cases")},
        "name": name,
        "panels": panels,
    }


def _case_rows(table: pd.DataFrame, choices: Sequence[Choice], views: Mapping[tuple[str, str], View]) -> dict[str, Any]:
    """The table as columns, text as numbers of its entries; and what is to be seen of which cases."""
    columns: list[dict[str, Any]] = []
    for name in table.columns:
        own = table[name]
        if own.dtype.kind == "f":
            columns.append({"name": name, "values": [float(f"{v:.4g}") for v in own]})
        else:
            codes, entries = pd.factorize(own)
            columns.append({"name": name, "codes": codes.tolist(), "entries": list(map(str, entries))})
    seen = []
    for choice in choices:
        view = views.get((choice.dataset, choice.case))
        if view is not None:
            picture = view.pictures.get(choice.label)
            seen.append({
                **{"dataset": choice.dataset, "case": choice.case, "label": choice.label},
                **{"reasons": list(choice.reasons), "problem": view.problem, "key": view.key},
                "picture": f"{CASES}/{picture.large}" if picture else "",
                "small": f"{CASES}/{picture.small}" if picture else "",
                "size": picture.size if picture else (),
                "volume": f"{CASES}/{view.volume}" if view.volume else "",
            })  # fmt: skip
    return {"columns": columns, "seen": seen, "rows": len(table)}


def _plain(content: Any) -> Any:
    """As JSON knows it: numbers that are none become null."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content
