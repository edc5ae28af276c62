"""The report's tables: which rows and columns they have, and what is told below them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from nnunet_godc.evaluation.case_table import Method, Question
from nnunet_godc.evaluation.claims import FEW_PATIENTS, p_value, tested_questions
from nnunet_godc.evaluation.comparison import Comparison
from nnunet_godc.evaluation.markup import Cell, Grid, Heading
from nnunet_godc.evaluation.metrics import better
from nnunet_godc.evaluation.summary import Summary
from nnunet_godc.evaluation.units import Shown, shown

Entry = TypeVar("Entry")
Entries = Mapping[tuple[Method, Question], Summary]

WIDEST = 6  # columns of numbers that a page is wide enough for
NONE = "-"
BOLD = (
    "Bold: better than every method that it was compared with, by the corrected sign-flip test and an interval of the "
    "difference that excludes zero; and no case is left out of the comparison because of what one of the two predicted."
)
FEW = (
    f"Fewer than {FEW_PATIENTS} patients: intervals of the means of skewed metrics are too narrow, as nnunet-godc's "
    "docs/statistics.md measures."
)
DISTANCES = (
    "A mean distance is made by its largest ones, and its interval is too narrow even for a hundred patients; "
    "statistics.csv has medians, whose intervals hold."
)
WITHOUT = "No interval: fewer than four patients, or too few of them differ from the others to tell the spread."
SIGNED = "Volume errors: the mean is signed and tells the bias; comparisons are of the distances from zero."


def result_grids(
    title: str, summaries: Sequence[Summary], comparisons: Sequence[Comparison], *, baseline: str | None
) -> list[Grid]:
    """Methods by questions, in the paper's format, with intervals; several grids per label where one is too wide.

    The baseline, if there is one, is the first of its configuration and plans.
    """
    places = _distinct((entry.method.configuration, entry.method.plans) for entry in summaries)
    summaries = sorted(
        summaries,
        key=lambda entry: (
            places.index((entry.method.configuration, entry.method.plans)),
            entry.method.variant != baseline,
        ),
    )
    questions = _distinct(entry.question for entry in summaries)
    grids = []
    for asked in _parts(questions):
        entries = {(entry.method, entry.question): entry for entry in summaries if entry.question in asked}
        grids.append(_result_grid(title, asked, entries, comparisons))
        if any(len(entry.runs) > 1 for entry in entries.values()):
            grids.append(_seed_grid(title, asked, entries))
    return grids


def comparison_grid(title: str, comparisons: Sequence[Comparison], *, among: Sequence[Comparison]) -> Grid:
    """One row per comparison; `among` are all that were made."""
    against = _distinct(entry.against.variant for entry in comparisons)
    context = contexts(_distinct(entry.method for entry in comparisons))
    headings = [
        Heading("Metric", numeric=False),
        Heading("Method", numeric=False),
        *([Heading("against", numeric=False)] if len(against) > 1 else []),
        Heading("difference"),
        Heading("sign flip"),
        Heading("Wilcoxon"),
        Heading("d_z"),
        Heading("W/T/L"),
    ]
    rows = []
    for entry in comparisons:
        units = shown(entry.question.metric).of_difference(entry.difference, entry.low, entry.high)
        effect = "" if math.isnan(entry.effect_low) else f"[{entry.effect_low:.2f}, {entry.effect_high:.2f}]"
        rows.append(
            [
                Cell(_question_name(entry.question)),
                Cell(entry.method.variant, context[entry.method]),
                *([Cell(entry.against.variant)] if len(against) > 1 else []),
                Cell(_number(units, entry.difference), _interval(units, entry.low, entry.high)),
                Cell(_p(entry.sign_flip_p_holm)),
                Cell(_p(entry.signed_rank_p_holm)),
                Cell(NONE if math.isnan(entry.effect_size) else f"{entry.effect_size + 0.0:.2f}", effect),
                Cell(f"{entry.wins}/{entry.ties}/{entry.losses}"),
            ]
        )
    notes = [
        "Differences of means over cases [95 % interval over patients], in points or the metric's unit. Sign flip, "
        f"Wilcoxon: p-values{_corrected(among)}. d_z: mean of the patients' differences over their standard deviation. "
        "W/T/L: patients for whom the method is better, equal (to 1e-6), worse.",
        *_compared_notes(comparisons, context),
    ]
    if len(comparisons) < len(among):
        notes.append(
            f"Not shown are {len(among) - len(comparisons)} of {len(among)} comparisons, for which no difference can "
            "be claimed; comparisons.csv has all."
        )
    caption = f"comparisons with {against[0]}." if len(against) == 1 else "comparisons."
    return Grid(title, caption, headings, rows, notes=notes)


def contexts(methods: Sequence[Method]) -> dict[Method, str]:
    """Configuration and plans of each method, as far as they tell these methods apart; in parentheses, or ""."""
    configurations = {method.configuration for method in methods}
    plans = {method.plans for method in methods}
    parts = {
        method: [method.configuration or "configuration unknown"] * (len(configurations) > 1)
        + [method.plans or "plans unknown"] * (len(plans) > 1)
        for method in methods
    }
    return {method: f"({', '.join(part)})" if part else "" for method, part in parts.items()}


def _parts(questions: Sequence[Question]) -> list[list[Question]]:
    """The columns of each grid: all of them, or those of one label in parts of about one width."""
    if len(questions) <= WIDEST:
        return [list(questions)]
    parts = []
    for label in _distinct(question.label for question in questions):
        asked = [question for question in questions if question.label == label]
        width = math.ceil(len(asked) / math.ceil(len(asked) / WIDEST))
        parts += [asked[start : start + width] for start in range(0, len(asked), width)]
    return parts


def _result_grid(
    title: str, questions: Sequence[Question], entries: Entries, comparisons: Sequence[Comparison]
) -> Grid:
    methods = _distinct(method for method, _ in entries)
    notes: list[str] = []
    marks = [_mark(notes, _left_out(question, methods, entries)) for question in questions]
    best = _supported_as_best(comparisons)
    context = contexts(methods)
    rows = [
        [
            Cell(method.variant, context[method]),
            *(_result(entries[method, question], bold=(method, question) in best) for question in questions),
        ]
        for method in methods
    ]
    told = [BOLD] if comparisons else []
    with_interval = [entry for entry in entries.values() if math.isfinite(entry.low)]
    if any(math.isfinite(entry.mean) and not math.isfinite(entry.low) for entry in entries.values()):
        told.append(WITHOUT)
    if any(entry.patients < FEW_PATIENTS for entry in with_interval):
        told.append(FEW)
    if any(shown(entry.question.metric).unit == "mm" for entry in with_interval):
        told.append(DISTANCES)
    if any(better(question.metric) == "zero" for question in questions):
        told.append(SIGNED)
    return Grid(title, _caption(list(entries.values())), _headings(questions, marks), rows, notes, told)


def _seed_grid(title: str, questions: Sequence[Question], entries: Entries) -> Grid:
    """How far the seeds of each method lie apart."""
    methods = [method for method in _distinct(method for method, _ in entries) if _seeds(method, entries) > 1]
    context = contexts(methods)
    rows = []
    for method in methods:
        row = [Cell(method.variant, context[method]), Cell(str(_seeds(method, entries)))]
        for question in questions:
            runs = entries[method, question].runs
            units = shown(question.metric).telling(*runs)
            row.append(Cell(f"{_number(units, min(runs))} to {_number(units, max(runs))}"))
        rows.append(row)
    headings = _headings(questions, [()] * len(questions))
    headings.insert(1, Heading("seeds"))
    return Grid(title, "lowest and highest mean of a seed.", headings, rows)


def _seeds(method: Method, entries: Entries) -> int:
    return max(len(entry.runs) for (of, _), entry in entries.items() if of == method)


def _headings(questions: Sequence[Question], marks: Sequence[tuple[int, ...]]) -> list[Heading]:
    headings = [Heading("Method", numeric=False)]
    for question, mark in zip(questions, marks, strict=True):
        metric = shown(question.metric).heading
        if question.bin:
            headings.append(Heading(question.bin, f"{question.label}, {metric}", mark))
        else:
            headings.append(Heading(metric, question.label, mark))
    return headings


def _caption(entries: Sequence[Summary]) -> str:
    what = "lesions" if entries[0].question.bin else "cases"
    numbers = (_range(entry.cases for entry in entries), _range(entry.patients for entry in entries))
    interval = " [95 % interval over patients]" if any(math.isfinite(entry.low) for entry in entries) else ""
    return f"means over {what}{interval}, {numbers[0]} {what} of {numbers[1]} patients."


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]} to {found[-1]}" if len(found) > 1 else str(found[0])


def _result(entry: Summary, *, bold: bool) -> Cell:
    units = shown(entry.question.metric).telling(entry.mean)
    return Cell(_number(units, entry.mean), _interval(units, entry.low, entry.high), bold)


def _supported_as_best(comparisons: Iterable[Comparison]) -> set[tuple[Method, Question]]:
    won: dict[tuple[Method, Question], list[bool]] = {}
    for entry in comparisons:
        for method in (entry.method, entry.against):
            won.setdefault((method, entry.question), []).append(entry.winner == method)
    return {key for key, outcomes in won.items() if all(outcomes)}


def _left_out(question: Question, methods: Sequence[Method], entries: Entries) -> str:
    """Which cases are not in a column, by method; methods that agree stand together."""
    agreeing: dict[tuple[tuple[str, int], ...], list[Method]] = {}
    for method in methods:
        agreeing.setdefault(tuple(entries[method, question].undefined.items()), []).append(method)
    context = contexts(methods)
    parts = []
    for reasons, who in agreeing.items():
        if reasons:
            counted = ", ".join(f"{number} {reason}" for reason, number in reasons)
            names = ", ".join(f"{method.variant} {context[method]}".strip() for method in who)
            parts.append(counted if len(who) == len(methods) else f"{counted}: {names}")
    what = "Lesions" if question.bin else "Cases"
    return f"{what} left out as undefined: {'; '.join(parts)}." if parts else ""


def _mark(notes: list[str], note: str) -> tuple[int, ...]:
    """The number of a note, which is added if it is new."""
    if not note:
        return ()
    if note not in notes:
        notes.append(note)
    return (notes.index(note) + 1,)


def _corrected(comparisons: Sequence[Comparison]) -> str:
    """What p-values are corrected for, and what not."""
    methods = (
        " after Holm's correction over all comparisons of the table in one metric and label"
        if any(entry.tests > 1 for entry in comparisons)
        else ", each of the only comparison in its metric and label"
    )
    questions = tested_questions(comparisons)
    if questions <= 1:
        return methods
    return (
        f"{methods}, not corrected for the table's {questions} questions (label, metric and lesion size), of which one "
        "in twenty is claimed by chance where nothing differs"
    )


def _compared_notes(comparisons: Sequence[Comparison], context: Mapping[Method, str]) -> list[str]:
    """Cases that could not be compared, as they are defined for one of the two only."""
    parts = [
        f"{_question_name(entry.question)}, {entry.method.variant} and {entry.against.variant} "
        f"{context[entry.method]}".rstrip()
        + f": {entry.only_method} only for the first, {entry.only_against} only for the second"
        for entry in comparisons
        if entry.only_method or entry.only_against
    ]
    return [f"Not compared, being defined for one of the two only: {'; '.join(parts)}."] if parts else []


def _question_name(question: Question) -> str:
    return ", ".join(part for part in (question.label, question.bin, shown(question.metric).heading) if part)


def _number(units: Shown, value: float) -> str:
    return units.number(value) if math.isfinite(value) else NONE


def _interval(units: Shown, low: float, high: float) -> str:
    return f"[{units.number(low)}, {units.number(high)}]" if math.isfinite(low) else ""


def _p(p: float) -> str:
    return p_value(p).removeprefix("p = ").removeprefix("p ") if math.isfinite(p) else NONE


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    return list(dict.fromkeys(entries))
