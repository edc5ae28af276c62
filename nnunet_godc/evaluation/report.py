"""The report: what was measured, summed up and compared, as tables for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from nnunet_godc import __version__
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.cube import ALL_STATES, OVER_LABELS, Cube, Endpoint, Method, cubes
from nnunet_godc.evaluation.inference import Comparison, Summary, compare_methods, summarise
from nnunet_godc.evaluation.intervals import LEVEL, RESAMPLES
from nnunet_godc.evaluation.markup import Bold, Table, latex_tables, markdown, markdown_table
from nnunet_godc.evaluation.sentences import FEW_PATIENTS, caveats, claim, multiplicity, p_value, subject_of
from nnunet_godc.evaluation.units import Shown, shown
from nnunet_godc.seeded_names import without_seed
from nnunet_godc.spelling import closest_match

Entry = TypeVar("Entry")

FEWEST_RESAMPLES = 1000
LONGEST = 40  # comparisons in a table for people; of more, it holds those that claim a difference
FEW_LABELS = 12  # of more, the tables label by label stand at the end
PAPER = ("dice", "precision", "recall")
COMPARISON_COLUMNS = (
    *("dataset", "cross_validated", "configuration", "plans", "trainer", "label", "bin", "metric", "against"),
    *("new_trainings", "patients", "cases", "only_method", "only_against", "selectively_missing", "difference", "low"),
    *("high", "freedom", "effect_size", "effect_low", "effect_high", "wins", "ties", "losses", "p", "p_holm"),
    *("wilcoxon_p", "tests", "trainings", "trainings_against", "significant", "sentence"),
)
_BOLD = (
    "Bold: better than every method that it was compared with, as claimed. W/T/L: patients for whom the method is "
    "better, equal (to 1e-6), worse."
)
_LATEX_HEAD = r"""% Written by nnunet-godc, for \input. Before \begin{document}:
% \usepackage{booktabs,graphicx}
% \usepackage[T1]{fontenc}

"""


@dataclass(frozen=True)
class Section:
    """The results of one dataset; `by_size` if it is about the lesions of bins of volumes."""

    cube: Cube
    summaries: Sequence[Summary]
    comparisons: Sequence[Comparison]
    asked: Sequence[str]

    @property
    def by_size(self) -> bool:
        return bool(self.cube.endpoints[-1].bin)

    @property
    def title(self) -> str:
        """The dataset, how it was predicted, and what all methods have in common."""
        methods = self.cube.methods
        configurations, plans = {method.configuration for method in methods}, {method.plans for method in methods}
        shared = [name for names in (configurations, plans) if len(names) == 1 for name in names if name]
        how = "cross-validation" if self.cube.cross_validated else "predictions without a fold"
        return ", ".join([self.cube.dataset, *shared, how, *(["by lesion volume"] if self.by_size else [])])

    @property
    def metrics(self) -> list[str]:
        """The columns of the tables: those asked for, or by lesion volume all."""
        present = _distinct(endpoint.metric for endpoint in self.cube.endpoints)
        return present if self.by_size else [metric for metric in self.asked if metric in present]

    def headline(self, metric: str) -> str:
        """The label, or the mean over labels, that stands for a metric."""
        return next(endpoint.label for endpoint in self.cube.endpoints if endpoint.metric == metric)


@dataclass(frozen=True)
class Part:
    """A part of the report for people.

    Attributes:
        title: "" for what stands before all others.
        blocks: tables, paragraphs and lists of sentences.
        details: tables that few look at.
        section: what it is about; None for what is about all.
    """

    title: str
    blocks: Sequence[Table | str | Sequence[str]]
    details: Sequence[Table] = ()
    section: Section | None = None

    @property
    def has_many_labels(self) -> bool:
        return self.section is not None and len({q.label for q in self.section.cube.endpoints}) > FEW_LABELS


@dataclass(frozen=True)
class Report:
    """Statistics and comparisons, one row each, the report for people, and the files' contents by their names."""

    statistics: pd.DataFrame
    comparisons: pd.DataFrame
    parts: Sequence[Part]
    files: Mapping[str, str]


def make_report(
    measurements: pd.DataFrame,
    *,
    baseline: str | None = None,
    table: Sequence[str] = PAPER,
    lesion_bins_ml: Sequence[float] = (0.5, 2.0, 10.0),
    notes: Sequence[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Report:
    """Every method of one configuration and plans compared with the baseline, or all with each other without one.

    Args:
        measurements: the long table, see `nnunet_godc.evaluation.table`.
        baseline: a trainer without its seed.
        table: metrics in the tables for people, by how their names begin.
        lesion_bins_ml: edges between bins of lesion volumes.
        notes: how it was measured, a sentence each.
        seed: of the resampling.
        resamples: of bootstrap and permutation test, at least 1000.

    Raises:
        UserError: the measurements contradict each other, or the baseline or a metric is not among them.
    """
    check_resamples(resamples)
    if baseline is not None:
        check_baseline(baseline, {without_seed(str(trainer)) for trainer in measurements["trainer"].unique()})
    asked = _asked_metrics(table, measurements)
    sections = [
        Section(
            cube,
            summarise(cube, resamples=resamples, seed=seed),
            compare_methods(cube, baseline=baseline, resamples=resamples, seed=seed),
            asked,
        )
        for cube in cubes(measurements, lesion_bins_ml)
    ]
    if not sections:
        raise UserError("no case could be measured, so there is nothing to report")
    statistics = pd.DataFrame([_statistics_row(entry) for section in sections for entry in section.summaries])
    rows = [_comparison_row(entry) for section in sections for entry in section.comparisons]
    comparisons = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))
    settings = {"baseline": baseline, "seed": seed, "resamples": resamples, "level": LEVEL, "version": __version__}
    content = {**settings, "statistics": statistics.to_dict("records"), "comparisons": rows}
    unmeasured = _unmeasured(measurements)
    parts = list(_parts(sections, settings, measurements, unmeasured, notes))
    files = {
        "statistics.csv": _csv(statistics),
        "comparisons.csv": _csv(comparisons),
        "report.json": json.dumps(_without_nan(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": "\n\n".join(_markdown(parts)) + "\n",
        "table.tex": _latex(sections, unmeasured, baseline),
    }
    return Report(statistics, comparisons, parts, files)


def check_resamples(resamples: int) -> None:
    """Raises:
    UserError: they are too few.
    """
    if resamples < FEWEST_RESAMPLES:
        raise UserError(f"{resamples} resamples do not settle an interval; take {FEWEST_RESAMPLES} or more")


def check_baseline(baseline: str, trainers: Set[str]) -> None:
    """Raises:
    UserError: it is none of the trainers without their seeds.
    """
    if baseline not in trainers:
        near = closest_match(baseline, trainers)
        hint = f"did you mean {near}?" if near else f"known are {', '.join(sorted(trainers))}"
        raise UserError(f"the baseline {baseline} was not measured; {hint}")


def _asked_metrics(asked: Sequence[str], measurements: pd.DataFrame) -> list[str]:
    apart = {"", metrics.HEADERS_DIFFER, *metrics.TRAINING_METRICS}
    known = [metric for metric in map(str, measurements["metric"].unique()) if metric not in apart]
    found = []
    for word in asked:
        wanted = word.casefold().replace("-", " ").replace("_", " ")
        fitting = [metric for metric in known if metric.casefold().startswith(wanted)]
        if not fitting and tuple(asked) != PAPER:
            raise UserError(f"no metric begins with {word!r}; measured are {', '.join(known)}")
        found += fitting
    return _distinct(found) or known[: len(PAPER)]


def _statistics_row(entry: Summary) -> dict[str, Any]:
    numbers = asdict(entry)
    for name in ("dataset", "cross_validated", "method", "endpoint", "undefined"):
        del numbers[name]
    left_out = {state: entry.undefined.get(state, 0) for state in ALL_STATES[1:]}
    return {**_place(entry), **left_out, **numbers, "seed_means": list(entry.seed_means)}


def _comparison_row(entry: Comparison) -> dict[str, Any]:
    numbers = {**_place(entry), **vars(entry), "against": entry.against.trainer}
    numbers |= {name: getattr(entry, name) for name in ("only_method", "only_against", "selectively_missing")}
    numbers |= {"trainings": entry.trainings[0], "trainings_against": entry.trainings[1]}
    numbers |= {"significant": entry.significant, "sentence": claim(entry)}
    return {name: numbers[name] for name in COMPARISON_COLUMNS}


def _place(entry: Summary | Comparison) -> dict[str, Any]:
    return {
        **{"dataset": entry.dataset, "cross_validated": entry.cross_validated},
        **asdict(entry.method),
        **asdict(entry.endpoint),
    }


def _csv(frame: pd.DataFrame) -> str:
    """What there is not is an empty field, and several numbers are separated by blanks."""
    if "seed_means" in frame:
        written = [" ".join(f"{mean:.10g}" for mean in means if math.isfinite(mean)) for means in frame["seed_means"]]
        frame = frame.assign(seed_means=written)
    return str(frame.to_csv(index=False, lineterminator="\n", float_format="%.10g"))


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _parts(
    sections: Sequence[Section],
    settings: Mapping[str, Any],
    measurements: pd.DataFrame,
    unmeasured: Table | None,
    notes: Sequence[str],
) -> Iterator[Part]:
    """What the report says, the notes last."""
    if unmeasured is not None:
        yield Part("", [unmeasured])
    baseline = settings["baseline"]
    for section in sections:
        blocks: list[Table | str | Sequence[str]] = [] if section.by_size else [_headline(section, baseline)]
        blocks.append(_told(section, sections, baseline))
        if (apart := _trainings(section)) is not None:
            blocks.append(apart)
        later = [_by_label(section, baseline), _distributions(section), *_compared(section)]
        yield Part(section.title, blocks, [table for table in later if table is not None and table.rows], section)
    if (costs := _costs(measurements)) is not None:
        yield Part("Trainings", [costs])
    yield Part("Notes", [[*_notes(sections, settings, measurements), *notes]])


def _markdown(parts: Sequence[Part]) -> Iterator[str]:
    yield "# Results"
    *before, notes = parts
    for part in before:
        if part.title:
            yield f"## {markdown(part.title)}"
        yield from map(_markdown_block, part.blocks)
        if not part.has_many_labels:
            yield from map(markdown_table, part.details)
    for part in before:
        if part.has_many_labels:
            yield f"## Details: {markdown(part.title)}"
            yield from map(markdown_table, part.details)
    yield f"## {markdown(notes.title)}"
    yield from map(_markdown_block, notes.blocks)


def _markdown_block(block: Table | str | Sequence[str]) -> str:
    if isinstance(block, Table):
        return markdown_table(block)
    return markdown(block) if isinstance(block, str) else "\n".join(f"- {markdown(sentence)}" for sentence in block)


def _headline(section: Section, baseline: str | None) -> Table:
    """One row per method: means over labels, and the difference in the first metric."""
    entries = {(entry.method, entry.endpoint): entry for entry in section.summaries}
    best = _winners(section.comparisons)
    several = len({endpoint.label for endpoint in section.cube.endpoints if endpoint.label != OVER_LABELS}) > 1
    endpoints = [Endpoint(section.headline(metric), metric) for metric in section.metrics]
    against = [entry for entry in section.comparisons if baseline is not None and entry.endpoint in endpoints[:1]]
    differences = {entry.method: f"{_difference(entry)}, {_p(entry.p_holm)}" for entry in against}
    rows = []
    for method in ordered_methods(section.cube.methods, baseline):
        cells = [_estimate(entries[method, endpoint], bold=(method, endpoint) in best) for endpoint in endpoints]
        trainings = next(entry.trainings for entry in section.summaries if entry.method == method)
        difference = [differences.get(method, "")] if differences else []
        rows.append([named(method, section.cube.methods), str(trainings), *cells, *difference])
    headings = ["Method", "trainings", *(_heading(endpoint.metric) for endpoint in endpoints)]
    headings += [f"{shown(endpoints[0].metric).name} against {baseline}"] if differences else []
    what = "mean over labels" if several else next(iter(endpoint.label for endpoint in endpoints), "")
    return Table(f"{section.title}: {what} [95 % interval].", headings, rows)


def _by_label(section: Section, baseline: str | None) -> Table | None:
    """One row per label (and bin of volumes) and method."""
    keys = _distinct((q.label, q.bin) for q in section.cube.endpoints if q.label != OVER_LABELS)
    if len(keys) == 1 and not section.by_size:
        return None
    entries = {(entry.method, entry.endpoint): entry for entry in section.summaries}
    best = _winners(section.comparisons)
    rows = []
    for label, size in keys:
        for method in ordered_methods(section.cube.methods, baseline):
            endpoints = [Endpoint(label, metric, size) for metric in section.metrics]
            cells = [
                _estimate(entries[method, endpoint], bold=(method, endpoint) in best)
                if (method, endpoint) in entries
                else ""
                for endpoint in endpoints
            ]
            number = max((entries[method, q].cases for q in endpoints if (method, q) in entries), default=0)
            rows.append(
                [", ".join(filter(None, (label, size))), named(method, section.cube.methods), str(number), *cells]
            )
    unit = "lesions" if section.by_size else "cases"
    headings = ["Label", "Method", unit, *(_heading(metric) for metric in section.metrics)]
    return Table(f"{section.title}: by label [95 % interval].", headings, rows, text=2)


def _distributions(section: Section) -> Table:
    """One row per metric, label and method: all that statistics.csv has for people."""
    rows = []
    order = {endpoint: number for number, endpoint in enumerate(section.cube.endpoints)}
    for entry in sorted(section.summaries, key=lambda entry: order[entry.endpoint]):
        if entry.endpoint.label == OVER_LABELS:
            continue
        units = shown(entry.endpoint.metric).telling(entry.mean, entry.median)
        left_out = "; ".join(f"{number} {reason}" for reason, number in entry.undefined.items())
        what = ", ".join(filter(None, (entry.endpoint.label, entry.endpoint.bin)))
        rows.append(
            [
                *(units.heading, what, named(entry.method, section.cube.methods), str(entry.cases), left_out),
                f"{_number(units, entry.median)} [{_number(units, entry.q1)}, {_number(units, entry.q3)}]",
                _interval(units, entry.median_low, entry.median_high),
                f"{_number(units, entry.mean)} ± {_number(units, entry.sd)}",
                _interval(units, entry.low, entry.high),
            ]
        )
    headings = ["Metric", "Label", "Method", "lesions" if section.by_size else "cases", "left out as undefined"]
    headings += ["median [IQR]", "its 95 % interval", "mean ± SD", "its 95 % interval"]
    return Table(f"{section.title}: all metrics.", headings, rows, text=3)


def _compared(section: Section) -> list[Table]:
    chosen = _shown_comparisons(section)
    if not chosen:
        return []
    rows = [
        [
            *(subject_of(entry.endpoint), named(entry.method, section.cube.methods), entry.against.trainer),
            *(_difference(entry), _p(entry.p_holm), f"{entry.wins}/{entry.ties}/{entry.losses}"),
            "trainings and patients" if entry.new_trainings else "patients",
        ]
        for entry in chosen
    ]
    headings = ["Metric", "Method", "against", "difference [95 % interval]", "p", "W/T/L", "holds for new"]
    left = len(section.comparisons) - len(chosen)
    more = f" Not shown are {left} for which no difference can be claimed." if left else ""
    return [Table(f"{section.title}: comparisons.{more}", headings, rows, text=3)]


def _trainings(section: Section) -> Table | None:
    """The yardstick: how far trainings of one method lie apart, which differ in their seed alone."""
    rows = []
    for entry in section.summaries:
        means = [mean for mean in entry.seed_means if math.isfinite(mean)]
        if len(means) < 2 or entry.endpoint.metric not in section.metrics or section.by_size:
            continue
        if entry.endpoint.label != section.headline(entry.endpoint.metric):
            continue
        units = shown(entry.endpoint.metric).telling(max(means) - min(means), entry.training_sd)
        each = ", ".join(units.number(mean) for mean in means)
        apart = units.difference(max(means) - min(means))
        name = named(entry.method, section.cube.methods)
        rows.append([name, subject_of(entry.endpoint), each, apart, units.number(entry.training_sd)])
    if not rows:
        return None
    headings = ["Method", "Metric", "mean of each training", "furthest apart", "SD"]
    caption = "The yardstick: how far trainings lie apart that differ in their seed alone, on the same cases."
    return Table(caption, headings, rows, text=2)


def _told(section: Section, sections: Sequence[Section], baseline: str | None) -> str | Sequence[str]:
    """The sentences that the comparisons allow."""
    if not section.comparisons:
        return _why_not_compared(section, sections, baseline)
    of_headline = [
        entry
        for entry in section.comparisons
        if entry.endpoint.metric in section.metrics and entry.endpoint.label == section.headline(entry.endpoint.metric)
    ]
    of_headline = [entry for entry in of_headline if entry.significant or len(of_headline) <= LONGEST]
    others = [entry for entry in section.comparisons if entry.significant and entry not in of_headline]
    lines = []
    for entry in (*of_headline, *others):
        context = named(entry.method, section.cube.methods).removeprefix(entry.method.trainer).strip()
        lines.append(f"{context} {claim(entry)}".strip())
    if left := len(section.comparisons) - len(lines):
        lines.append(f"For {left} other comparisons no difference can be claimed; comparisons.csv says why for each.")
    return lines


def _why_not_compared(section: Section, sections: Sequence[Section], baseline: str | None) -> str:
    methods = section.cube.methods
    names = ", ".join(named(method, methods) for method in methods)
    if len(methods) == 1:
        reason = f"{names} is the only method here."
    elif baseline is not None and baseline not in {method.trainer for method in methods}:
        reason = f"the baseline {baseline} is not here, but {names}."
    elif baseline is not None:
        reason = f"no other method has the configuration and plans of the baseline {baseline}; here are {names}."
    else:
        reason = f"methods are compared within one configuration and plans, and these differ: {names}."
    for other in sections:
        elsewhere = [method.trainer for method in other.cube.methods if method not in methods]
        alike = (other.cube.dataset, other.by_size) == (section.cube.dataset, section.by_size)
        if alike and elsewhere:
            reason += (
                f" {', '.join(elsewhere)}: see {other.title}; cross-validations and predictions without a fold are not "
                "compared with each other."
            )
    return f"Nothing is compared: {reason}"


def _unmeasured(measurements: pd.DataFrame) -> Table | None:
    """Cases in no number, or by nnU-Net's counts alone, by trainer and reason."""
    rows = measurements[measurements["state"].isin(metrics.UNMEASURED)]
    if rows.empty:
        return None
    own = measurements[measurements["case"] != ""]
    of = ["dataset", "trainer", "plans", "configuration"]
    total = own.groupby(of, observed=True, sort=False)["case"].nunique()
    counted = rows.groupby([*of, "state"], observed=True, sort=False)["case"].nunique()
    cells = [
        [
            str(dataset),
            str(trainer),
            str(state).removeprefix(f"{metrics.NOT_MEASURED}: "),
            str(number),
            str(total[dataset, trainer, plans, configuration]),
        ]
        for (dataset, trainer, plans, configuration, state), number in counted.items()
    ]
    caption = "Cases that could not be measured; what is known of them is at most the overlap that nnU-Net counted."
    return Table(caption, ["Dataset", "Trainer", "why", "cases", "of"], cells, text=3)


def _costs(measurements: pd.DataFrame) -> Table | None:
    rows = measurements[measurements["metric"].isin(metrics.TRAINING_METRICS)]
    if rows.empty:
        return None
    rows = rows.assign(method=rows["trainer"].map(lambda trainer: without_seed(str(trainer))).astype(str))
    cells = []
    for keys, own in rows.groupby(["dataset", "method", "plans", "configuration"], observed=True, sort=False):
        of = {metric: own.loc[own["metric"] == metric, "value"] for metric in metrics.TRAINING_METRICS}
        seconds, hours, added = (of[metric] for metric in metrics.TRAINING_METRICS)
        total = f"{hours.sum():.3g}" if len(hours) else ""
        parameters = f"{added.max():,.0f}" if len(added) else ""
        epoch = f"{seconds.median():.3g}" if len(seconds) else ""
        cells.append([*map(str, keys), str(max(len(seconds), len(added))), epoch, total, parameters])
    headings = ["Dataset", "Method", "Plans", "Configuration", "trainings", "seconds per epoch", "hours in all"]
    return Table("What the trainings took, by their logs.", [*headings, "parameters added"], cells, text=4)


def _notes(sections: Sequence[Section], settings: Mapping[str, Any], measurements: pd.DataFrame) -> list[str]:
    comparisons = [entry for section in sections for entry in section.comparisons]
    summaries = [entry for section in sections for entry in section.summaries]
    against = f"against {settings['baseline']}" if settings["baseline"] else "of all pairs"
    notes = [
        f"Intervals: 95 %, over patients, {settings['resamples']} resamples, seed {settings['seed']}; of a method with "
        "several trainings over patients and trainings. A method's trainings are averaged case by case.",
        f"Comparisons {against}, within one configuration and plans, on the cases where both are defined; a difference "
        "is claimed if the test, after Holm's correction over the methods, has p at most 0.05 and no interval includes "
        "zero. It is an improvement only where no case is left out because of what one of the two predicted.",
        *caveats(comparisons),
    ]
    differ = measurements.loc[measurements["metric"] == metrics.HEADERS_DIFFER, "value"]
    of_summaries: dict[str, Callable[[Summary], bool]] = {
        "No interval: fewer than four patients, or too few of them differ from the others to tell the spread.": (
            lambda entry: math.isfinite(entry.mean) and not math.isfinite(entry.low)
        ),
        f"Fewer than {FEW_PATIENTS} patients: intervals of the means of skewed metrics are too narrow.": (
            lambda entry: 0 < entry.patients < FEW_PATIENTS
        ),
        "Of distances the median stands in the tables: a mean distance is made by its largest ones, and its interval "
        "is too narrow even for a hundred patients.": lambda entry: shown(entry.endpoint.metric).unit == "mm",
        "Volume errors: the mean is signed and tells the bias; comparisons are of the distances from zero.": (
            lambda entry: metrics.better(entry.endpoint.metric) == "zero"
        ),
        "Mean over labels: of the labels' means over the cases where each is defined.": (
            lambda entry: entry.endpoint.label == OVER_LABELS
        ),
    }
    return [
        *notes,
        *filter(None, [multiplicity(comparisons)]),
        *([_BOLD] if comparisons else []),
        *(sentence for sentence, holds in of_summaries.items() if any(map(holds, summaries))),
        *([_headers_differ(differ)] if len(differ) else []),
        "comparisons.csv has a sentence for each comparison; docs/statistics.md says how numbers are made.",
    ]


def _headers_differ(distances_mm: pd.Series[float]) -> str:
    return (
        f"{len(distances_mm)} predictions were measured voxel by voxel although their headers differ from those of the "
        f"references, by up to {distances_mm.max():.3g} mm."
    )


def _latex(sections: Sequence[Section], unmeasured: Table | None, baseline: str | None) -> str:
    left_out = ""
    if unmeasured is not None:
        left_out = "Not measured: " + "; ".join(
            f"{row[3]} of {row[4]} of {row[1]} ({row[2]})" for row in unmeasured.rows
        )
    tables = []
    for section in sections:
        for table in ([] if section.by_size else [_headline(section, baseline)]) + [_by_label(section, baseline)]:
            if table is not None and table.rows and section.metrics:
                tables.append(latex_tables(table, left_out))
    return _LATEX_HEAD + "\n\n".join(tables) + "\n"


def _shown_comparisons(section: Section) -> list[Comparison]:
    if len(section.comparisons) <= LONGEST:
        return list(section.comparisons)
    return [entry for entry in section.comparisons if entry.significant]


def _winners(comparisons: Iterable[Comparison]) -> set[tuple[Method, Endpoint]]:
    won: dict[tuple[Method, Endpoint], list[bool]] = {}
    for entry in comparisons:
        for method in (entry.method, entry.against):
            won.setdefault((method, entry.endpoint), []).append(entry.winner == method)
    return {key for key, outcomes in won.items() if all(outcomes)}


def ordered_methods(methods: Sequence[Method], baseline: str | None) -> list[Method]:
    """The baseline first within its configuration and plans."""
    places = _distinct((method.configuration, method.plans) for method in methods)
    return sorted(methods, key=lambda m: (places.index((m.configuration, m.plans)), m.trainer != baseline))


def named(method: Method, methods: Sequence[Method]) -> str:
    """The trainer, with configuration and plans as far as they tell these methods apart."""
    parts = [
        getattr(method, name) or f"{name} unknown"
        for name in ("configuration", "plans")
        if len({getattr(other, name) for other in methods}) > 1
    ]
    return f"{method.trainer} ({', '.join(parts)})" if parts else method.trainer


def _heading(metric: str) -> str:
    units = shown(metric)
    return f"{units.heading}, median" if units.unit == "mm" else units.heading


def _estimate(entry: Summary, *, bold: bool) -> str:
    """The mean with its interval; of distances the median."""
    units = shown(entry.endpoint.metric)
    median = units.unit == "mm"
    value, low, high = (
        (entry.median, entry.median_low, entry.median_high) if median else (entry.mean, entry.low, entry.high)
    )
    units = units.telling(value)
    text = f"{_number(units, value)} {_interval(units, low, high)}".strip()
    return Bold(text) if bold and not median else text


def _difference(entry: Comparison) -> str:
    units = shown(entry.endpoint.metric).of_difference(entry.difference, entry.low, entry.high)
    return f"{_number(units, entry.difference)} {_interval(units, entry.low, entry.high)}".strip()


def _number(units: Shown, value: float) -> str:
    return units.number(value) if math.isfinite(value) else "-"


def _interval(units: Shown, low: float, high: float) -> str:
    return f"[{units.number(low)}, {units.number(high)}]" if math.isfinite(low) else ""


def _p(p: float) -> str:
    return p_value(p).removeprefix("p = ").removeprefix("p ") if math.isfinite(p) else "-"


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    return list(dict.fromkeys(entries))
