import shutil
import subprocess

import pytest

from nnunet_godc.evaluation.markup import ROWS, Bold, Table, latex, latex_tables, markdown, markdown_table

TABLE = Table(
    "Dataset501_LiTS: by label.",
    ["Method", "Dice (%)", "Volume error (ml)"],
    [["a_b", "95.2", "-1.0 [-2.0, 0.1]"], ["c&d|e", Bold("96.0"), ""], ["[x]", "1", "2"]],
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nnUNetTrainer_seed1", r"nnUNetTrainer\_seed1"),
        ("a|b*c`d<e>f\\g~h", r"a\|b\*c\`d\<e>f\\g\~h"),
        ("[95.0, 97.0]", "[95.0, 97.0]"),
        ("[a](b)", r"[a]\(b)"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_takes_nothing_for_markup(text, expected):
    assert markdown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nnUNetTrainer_seed1", r"nnUNetTrainer\_seed1"),
        ("50 % & #1 $x^2$ {~}", r"50 \% \& \#1 \$x\textasciicircum{}2\$ \{\textasciitilde{}\}"),
        (r"C:\new", r"C:\textbackslash{}new"),
        ('a<b>c|"d"', r"a\textless{}b\textgreater{}c\textbar{}\textquotedbl{}d\textquotedbl{}"),
        ("[-1.5, 2.0] -3 ± 1 fold-1 sign-flip", r"[$-$1.5, 2.0] $-$3 $\pm$ 1 fold-1 sign-flip"),
    ],
)
def test_latex_escapes_what_is_special(text, expected):
    assert latex(text) == expected


def test_a_markdown_table_by_hand():
    assert markdown_table(TABLE) == (
        "**Dataset501\\_LiTS: by label.**\n"
        "\n"
        "| Method | Dice (%) | Volume error (ml) |\n"
        "| --- | ---: | ---: |\n"
        "| a\\_b | 95.2 | -1.0 [-2.0, 0.1] |\n"
        "| c&d\\|e | **96.0** |  |\n"
        "| [x] | 1 | 2 |"
    )


def test_a_latex_table_has_the_rules_of_booktabs_and_an_entry_for_every_column():
    lines = latex_tables(TABLE, "Not measured: 3 of 4 of a_b.").splitlines()
    start = lines.index(r"\begin{tabular}{@{}lrr@{}}")
    assert lines[start : start + 9] == [
        r"\begin{tabular}{@{}lrr@{}}",
        r"\toprule",
        r"Method & Dice (\%) & Volume error (ml) \\",
        r"\midrule",
        r"a\_b & 95.2 & $-$1.0 [$-$2.0, 0.1] \\",
        r"c\&d\textbar{}e & \textbf{96.0} &  \\",
        r"{}[x] & 1 & 2 \\",  # LaTeX reads a bracket behind the end of a row as its argument
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    assert r"\scriptsize Not measured: 3 of 4 of a\_b.\end{minipage}" in lines[-2]
    assert "minipage" not in latex_tables(TABLE)


def test_a_long_latex_table_is_split_over_pages_without_losing_a_row():
    rows = [[f"m{number}", "1"] for number in range(ROWS + 1)]
    text = latex_tables(Table("Long.", ["Method", "Dice"], rows))
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 2
    assert all(text.count(rf"{name} & 1 \\") == 1 for name, _ in rows)
    assert r"\caption{Long. Part 2.}" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(tmp_path):
    special = Table('"quoted"', [r"\ { } $ & # _ % ^ ~ < > |", "ä µ ± é"], [["[-1, 2]", "1"], ["*", Bold("2")]])
    document = "\n".join(
        [
            r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\usepackage[T1]{fontenc}",
            r"\begin{document}",
            *(latex_tables(table, "a_b & c") for table in (TABLE, special)),
            r"\end{document}",
        ]
    )
    (tmp_path / "tables.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "tables.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stdout[-2000:]
