"""Tables and text in Markdown and in LaTeX, from one description of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}
# What is wider than the page is made smaller.
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_MARKDOWN = re.compile(r"([\\`*_<|~]|(?<=\])\()")
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\d)")


@dataclass(frozen=True)
class Cell:
    """One entry: a first line, and one below it in smaller type."""

    text: str
    below: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Heading:
    """The head of a column; columns beside each other in one `group` share that above them.

    Attributes:
        marks: numbers of notes, from 1.
        numeric: set to the right.
    """

    text: str
    group: str = ""
    marks: tuple[int, ...] = ()
    numeric: bool = True


@dataclass(frozen=True)
class Grid:
    """A table; the title says whose results it holds, the caption what they are."""

    title: str
    caption: str
    headings: Sequence[Heading]
    rows: Sequence[Sequence[Cell]]
    numbered_notes: Sequence[str] = ()
    notes: Sequence[str] = field(default=())


def markdown(text: str) -> str:
    """The text with what Markdown would take for markup escaped; line breaks become spaces."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def latex(text: str) -> str:
    """The text with LaTeX's special characters escaped, and minus signs before numbers."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return _NEGATIVE.sub("$-$", escaped)


def markdown_table(grid: Grid) -> str:
    """A table with pipes; a cell's second line follows its first."""
    titles = [
        markdown(f"{heading.group} {heading.text}".strip()) + _markdown_marks(heading.marks)
        for heading in grid.headings
    ]
    rules = ["---:" if heading.numeric else "---" for heading in grid.headings]
    lines = [f"**{markdown(grid.caption[:1].upper() + grid.caption[1:])}**", "", _piped(titles), _piped(rules)]
    lines += [_piped([_markdown_cell(cell) for cell in row]) for row in grid.rows]
    notes = [f"<sup>{number}</sup> {markdown(note)}" for number, note in enumerate(grid.numbered_notes, 1)]
    for note in (*notes, *(markdown(note) for note in grid.notes)):
        lines += ["", note]
    return "\n".join(lines)


def latex_table(grid: Grid) -> str:
    """A ``table*`` for booktabs and graphicx; a cell's second line stands below its first."""
    columns = "".join("r" if heading.numeric else "l" for heading in grid.headings)
    lines = [
        r"\begin{table*}[tp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{latex(grid.title)}: {latex(grid.caption)}}}",
        _FITTED,
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        *_latex_groups(grid.headings),
        _row([latex(heading.text) + _latex_marks(heading.marks) for heading in grid.headings]),
        r"\midrule",
    ]
    for number, row in enumerate(grid.rows):
        two_lines = any(cell.below for cell in row)
        if number and two_lines:
            lines.append(r"\addlinespace")
        lines.append(_row([_latex_cell(cell) for cell in row]))
        if two_lines:
            lines.append(_row([rf"{{\scriptsize {latex(cell.below)}}}" if cell.below else "" for cell in row]))
    lines += [r"\bottomrule", r"\end{tabular}}"]
    notes = [rf"\textsuperscript{{{number}}} {latex(note)}" for number, note in enumerate(grid.numbered_notes, 1)]
    notes += [latex(note) for note in grid.notes]
    if notes:
        lines += ["", r"\smallskip\begin{minipage}{\linewidth}\scriptsize", *(rf"{note}\par" for note in notes)]
        lines.append(r"\end{minipage}")
    return "\n".join([*lines, r"\end{table*}"])


def _piped(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{markdown(cell.text)}**" if cell.bold else markdown(cell.text)
    return f"{text} {markdown(cell.below)}".strip()


def _markdown_marks(marks: Sequence[int]) -> str:
    return f" <sup>{', '.join(map(str, marks))}</sup>" if marks else ""


def _latex_cell(cell: Cell) -> str:
    return rf"\textbf{{{latex(cell.text)}}}" if cell.bold else latex(cell.text)


def _latex_marks(marks: Sequence[int]) -> str:
    return rf"\textsuperscript{{{','.join(map(str, marks))}}}" if marks else ""


def _latex_groups(headings: Sequence[Heading]) -> list[str]:
    """The line above the headings that names their groups, with a rule below each; none if there are no groups."""
    if not any(heading.group for heading in headings):
        return []
    spans: list[tuple[str, int, int]] = []  # group, first and last column from 1
    for column, heading in enumerate(headings, 1):
        if spans and heading.group and spans[-1][0] == heading.group:
            spans[-1] = (heading.group, spans[-1][1], column)
        else:
            spans.append((heading.group, column, column))
    titles = [rf"\multicolumn{{{b - a + 1}}}{{c}}{{{latex(group)}}}" if group else "" for group, a, b in spans]
    rules = [rf"\cmidrule(lr){{{a}-{b}}}" for group, a, b in spans if group]
    return [_row(titles), "".join(rules)]


def _row(entries: Sequence[str]) -> str:
    line = " & ".join(entries) + r" \\"
    # Behind the end of a row, LaTeX would read a bracket or an asterisk as an argument of that end.
    return "{}" + line if line.startswith(("[", "*")) else line
