"""The report's tables: which rows and columns they have, and what is told below them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from nnunet_godc.evaluation.case_table import Method, Question
from nnunet_godc.evaluation.claims import FEW_PATIENTS, p_value
from nnunet_godc.evaluation.comparison import Comparison
from nnunet_godc.evaluation.markup import Cell, Grid, Heading
from nnunet_godc.evaluation.summary import Summary
from nnunet_godc.evaluation.units import shown

Entry = TypeVar("Entry")

WIDEST = 6  # columns of numbers that a page is wide enough for
NONE = "-"
BOLD = (
    "Bold: better than every method that it was compared with, by the corrected sign-flip test and an interval of the "
    "difference that excludes zero."
)
FEW = (
    f"Fewer than {FEW_PATIENTS} patients: intervals of the means of skewed metrics are too narrow, as nnunet-godc's "
    "docs/statistics.md measures."
)
DISTANCES = (
    "A mean distance is made by its largest ones, and its interval is too narrow even for a hundred patients; "
    "statistics.csv has medians, whose intervals are not."
)


def result_grids(title: str, summaries: Sequence[Summary], comparisons: Sequence[Comparison]) -> list[Grid]:
    """Methods by questions, in the paper's format, with intervals; several grids per label where one is too wide."""
    questions = _distinct(entry.question for entry in summaries)
    if len(questions) <= WIDEST:
        return [_result_grid(title, questions, summaries, comparisons)]
    grids = []
    for label in _distinct(question.label for question in questions):
        asked = [question for question in questions if question.label == label]
        width = math.ceil(len(asked) / math.ceil(len(asked) / WIDEST))
        for start in range(0, len(asked), width):
            grids.append(_result_grid(title, asked[start : start + width], summaries, comparisons))
    return grids


def comparison_grid(title: str, comparisons: Sequence[Comparison]) -> Grid:
    """One row per comparison."""
    against = _distinct(entry.against.variant for entry in comparisons)
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
    names = _method_names(_distinct(side for entry in comparisons for side in (entry.method, entry.against)))
    rows = []
    for entry in comparisons:
        effect = "" if math.isnan(entry.effect_low) else f"[{entry.effect_low:.2f}, {entry.effect_high:.2f}]"
        rows.append(
            [
                Cell(_question_name(entry.question)),
                Cell(names[entry.method]),
                *([Cell(names[entry.against])] if len(against) > 1 else []),
                Cell(_number(entry.question, entry.difference), _interval(entry.question, entry.low, entry.high)),
                Cell(_p(entry.sign_flip_p_holm)),
                Cell(_p(entry.signed_rank_p_holm)),
                Cell(NONE if math.isnan(entry.effect_size) else f"{entry.effect_size + 0.0:.2f}", effect),
                Cell(f"{entry.wins}/{entry.ties}/{entry.losses}"),
            ]
        )
    notes = [
        "Differences of means over cases [95 % interval over patients], in points or the metric's unit. Sign flip, "
        "Wilcoxon: p-values after Holm's correction over all comparisons of the table in one metric and label. d_z: "
        "mean of the patients' differences over their standard deviation. W/T/L: patients for whom the method is "
        "better, equal (to 1e-6), worse.",
        *_compared_notes(comparisons),
    ]
    caption = f"comparisons with {against[0]}." if len(against) == 1 else "comparisons."
    return Grid(title, caption, headings, rows, notes=notes)


def _result_grid(
    title: str,
    questions: Sequence[Question],
    summaries: Sequence[Summary],
    comparisons: Sequence[Comparison],
) -> Grid:
    asked = set(questions)
    entries = {(entry.method, entry.question): entry for entry in summaries if entry.question in asked}
    methods = _distinct(method for method, _ in entries)
    notes: list[str] = []
    marks = [_mark(notes, _left_out(question, methods, entries)) for question in questions]
    best = _supported_as_best(comparisons)
    names = _method_names(methods)
    rows = [
        [
            Cell(names[method]),
            *(_result(entries[method, question], bold=(method, question) in best) for question in questions),
        ]
        for method in methods
    ]
    headings = [Heading("Method", numeric=False)]
    for question, mark in zip(questions, marks, strict=True):
        text = question.bin or shown(question.metric).heading
        group = f"{question.label}, {shown(question.metric).heading}" if question.bin else question.label
        headings.append(Heading(text, group, mark))
    told = [*_seed_notes(entries), BOLD]
    if any(entry.patients < FEW_PATIENTS for entry in entries.values()):
        told.append(FEW)
    if any(shown(question.metric).unit == "mm" for question in questions):
        told.append(DISTANCES)
    return Grid(title, _caption(list(entries.values())), headings, rows, notes, told)


def _caption(entries: Sequence[Summary]) -> str:
    fewest, most = min(entry.patients for entry in entries), max(entry.patients for entry in entries)
    patients = f"{most}" if fewest == most else f"{fewest} to {most}"
    what = "lesions" if entries[0].question.bin else "cases"
    return f"means over {what} [95 % interval over patients], {patients} patients."


def _result(entry: Summary, *, bold: bool) -> Cell:
    return Cell(_number(entry.question, entry.mean), _interval(entry.question, entry.low, entry.high), bold)


def _supported_as_best(comparisons: Iterable[Comparison]) -> set[tuple[Method, Question]]:
    won: dict[tuple[Method, Question], list[bool]] = {}
    for entry in comparisons:
        won.setdefault((entry.method, entry.question), []).append(entry.supported and entry.improves)
        won.setdefault((entry.against, entry.question), []).append(entry.supported and not entry.improves)
    return {key for key, outcomes in won.items() if all(outcomes)}


def _left_out(question: Question, methods: Sequence[Method], entries: dict[tuple[Method, Question], Summary]) -> str:
    """Which cases are not in a column, by method; methods that agree stand together."""
    agreeing: dict[tuple[tuple[str, int], ...], list[Method]] = {}
    for method in methods:
        agreeing.setdefault(tuple(entries[method, question].undefined.items()), []).append(method)
    names = _method_names(methods)
    parts = []
    for reasons, who in agreeing.items():
        if reasons:
            counted = ", ".join(f"{number} {reason}" for reason, number in reasons)
            parts.append(counted if len(who) == len(methods) else f"{counted} ({', '.join(names[m] for m in who)})")
    what = "Lesions" if question.bin else "Cases"
    return f"{what} left out as undefined: {'; '.join(parts)}." if parts else ""


def _mark(notes: list[str], note: str) -> tuple[int, ...]:
    """The number of a note, which is added if it is new."""
    if not note:
        return ()
    if note not in notes:
        notes.append(note)
    return (notes.index(note) + 1,)


def _seed_notes(entries: dict[tuple[Method, Question], Summary]) -> list[str]:
    notes = []
    names = _method_names(_distinct(method for method, _ in entries))
    for method, name in names.items():
        spreads = [
            f"{shown(question.metric).name} of {question.label}{', ' + question.bin if question.bin else ''} "
            f"{_number(question, min(entry.runs))} to {_number(question, max(entry.runs))}"
            for (of, question), entry in entries.items()
            if of == method and len(entry.runs) > 1 and all(map(math.isfinite, entry.runs))
        ]
        if spreads:
            number = len(next(entry.runs for (of, _), entry in entries.items() if of == method))
            notes.append(f"{name}: averages over {number} seeds, whose own means reach from {'; '.join(spreads)}.")
    return notes


def _compared_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Cases that could not be compared, as they are defined for one of the two only."""
    parts = [
        f"{_question_name(entry.question)}, {entry.method.variant} and {entry.against.variant}: {entry.only_method} "
        f"only for the first, {entry.only_against} only for the second"
        for entry in comparisons
        if entry.only_method or entry.only_against
    ]
    return [f"Not compared, being defined for one of the two only: {'; '.join(parts)}."] if parts else []


def _method_names(methods: Sequence[Method]) -> dict[Method, str]:
    """As short as tells them apart: the variant, with configuration and plans where these differ."""
    configurations = {method.configuration for method in methods}
    plans = {method.plans for method in methods}
    return {
        method: ", ".join(
            part
            for part, needed in (
                (method.configuration, len(configurations) > 1),
                (method.plans, len(plans) > 1),
                (method.variant, True),
            )
            if needed
        )
        for method in methods
    }


def _question_name(question: Question) -> str:
    heading = shown(question.metric).heading
    return ", ".join(part for part in (question.label, question.bin, heading) if part)


def _number(question: Question, value: float) -> str:
    return shown(question.metric).number(value) if math.isfinite(value) else NONE


def _interval(question: Question, low: float, high: float) -> str:
    return f"[{_number(question, low)}, {_number(question, high)}]" if math.isfinite(low) else ""


def _p(p: float) -> str:
    return p_value(p).removeprefix("p = ").removeprefix("p ") if math.isfinite(p) else NONE


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    return list(dict.fromkeys(entries))
