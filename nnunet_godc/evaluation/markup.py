"""A table in Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
}
# What is wider than the page is made smaller.
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_MARKDOWN = re.compile(r"([\\`*_<|~]|(?<=\])\()")
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\d)")
_WORD_END = re.compile(r"(?<=[._])(?=\w)")  # where a long name may be broken
ROWS = 40  # of a page


class Bold(str):
    """A cell in bold."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it holds, a sentence.
        headings: of its columns.
        rows: their cells; what is not there is "".
        text: columns from the left that hold words, set to the left; the others hold numbers.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1


def markdown(text: str) -> str:
    """The text with what Markdown would take for markup escaped; line breaks become spaces."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def latex(text: str) -> str:
    """The text with LaTeX's special characters escaped, and minus signs before numbers."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return _NEGATIVE.sub("$-$", escaped)


def markdown_table(table: Table) -> str:
    """With pipes, below its caption."""
    rules = ["---" if column < table.text else "---:" for column in range(len(table.headings))]
    body = [
        [f"**{markdown(cell)}**" if isinstance(cell, Bold) else markdown(cell) for cell in row] for row in table.rows
    ]
    lines = [list(map(markdown, table.headings)), rules, *body]
    return "\n".join([f"**{markdown(table.caption)}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def html_table(table: Table) -> str:
    """With its caption; cells of numbers are of the class ``number``."""
    headings = "".join(_html_cell("th scope=col", text, table, at) for at, text in enumerate(table.headings))
    cells = [
        "".join(_html_cell("td" if at else "th scope=row", cell, table, at) for at, cell in enumerate(row))
        for row in table.rows
    ]
    rows = "\n".join(f"<tr>{row}</tr>" for row in cells)
    return (
        f"<table>\n<caption>{html.escape(table.caption)}</caption>\n<thead><tr>{headings}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>"
    )


def _html_cell(tag: str, text: str, table: Table, at: int) -> str:
    content = f"<strong>{html.escape(text)}</strong>" if isinstance(text, Bold) else html.escape(text)
    if tag == "th scope=row":
        content = _WORD_END.sub("<wbr>", content)
    return f"<{tag}{' class=number' if at >= table.text else ''}>{content}</{tag.partition(' ')[0]}>"


def latex_tables(table: Table, note: str = "") -> str:
    """As ``table*`` for booktabs and graphicx, in parts that fit a page each."""
    columns = "l" * table.text + "r" * (len(table.headings) - table.text)
    parts = [table.rows[start : start + ROWS] for start in range(0, len(table.rows), ROWS)]
    return "\n\n".join(
        "\n".join(
            [
                r"\begin{table*}[tp]",
                r"\centering\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
                rf"\caption{{{latex(table.caption)}{f' Part {number}.' if len(parts) > 1 else ''}}}",
                _FITTED,
                rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
                r"\toprule",
                _row(map(latex, table.headings)),
                r"\midrule",
                *(_row(rf"\textbf{{{latex(c)}}}" if isinstance(c, Bold) else latex(c) for c in row) for row in rows),
                r"\bottomrule",
                r"\end{tabular}}",
                *(
                    [r"", rf"\smallskip\begin{{minipage}}{{\linewidth}}\scriptsize {latex(note)}\end{{minipage}}"]
                    * bool(note)
                ),
                r"\end{table*}",
            ]
        )
        for number, rows in enumerate(parts, 1)
    )


def _row(entries: object) -> str:
    line = " & ".join(entries) + r" \\"  # type: ignore[arg-type]
    # Behind the end of a row, LaTeX would read a bracket or an asterisk as an argument of that end.
    return "{}" + line if line.startswith(("[", "*")) else line
