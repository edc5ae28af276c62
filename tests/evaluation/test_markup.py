import shutil
import subprocess

import pytest

from nnunet_godc.evaluation.markup import Cell, Grid, Heading, latex, latex_table, markdown, markdown_table

GRID = Grid(
    "Dataset501_LiTS",
    "means [95 % interval].",
    [
        Heading("Method", numeric=False),
        Heading("Dice (%)", "liver"),
        Heading("HD95 (mm)", "liver", (1,)),
        Heading("Dice (%)", "tumour"),
    ],
    [
        [Cell("a_b"), Cell("95.2", "[94.1, 96.0]"), Cell("-1.0", "[-2.0, 0.1]"), Cell("61.0")],
        [Cell("c&d|e"), Cell("96.0", "[95.0, 97.0]", bold=True), Cell("-"), Cell("60.0")],
    ],
    ["3 absent in the prediction (a_b)."],
    ["Bold: better."],
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
        ("[-1.5, 2.0] -3 fold-1 sign-flip", "[$-$1.5, 2.0] $-$3 fold-1 sign-flip"),
    ],
)
def test_latex_escapes_what_is_special(text, expected):
    assert latex(text) == expected


def test_a_markdown_table_by_hand():
    assert markdown_table(GRID) == (
        "**Means [95 % interval].**\n"
        "\n"
        "| Method | liver Dice (%) | liver HD95 (mm) <sup>1</sup> | tumour Dice (%) |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a\\_b | 95.2 [94.1, 96.0] | -1.0 [-2.0, 0.1] | 61.0 |\n"
        "| c&d\\|e | **96.0** [95.0, 97.0] | - | 60.0 |\n"
        "\n"
        "<sup>1</sup> 3 absent in the prediction (a\\_b).\n"
        "\n"
        "Bold: better."
    )


def test_a_latex_table_has_the_rules_of_booktabs_and_an_entry_for_every_column():
    lines = latex_table(GRID).splitlines()
    assert r"\begin{tabular}{@{}lrrr@{}}" in lines
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in lines
    assert r" & \multicolumn{2}{c}{liver} & \multicolumn{1}{c}{tumour} \\" in lines
    assert r"c\&d\textbar{}e & \textbf{96.0} & - & 60.0 \\" in lines
    assert r" & {\scriptsize [94.1, 96.0]} & {\scriptsize [$-$2.0, 0.1]} &  \\" in lines
    assert [line for line in lines if line in (r"\toprule", r"\midrule", r"\bottomrule")] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]


def test_columns_without_groups_have_no_line_of_groups():
    plain = latex_table(Grid("t", "c", [Heading("a"), Heading("b")], [[Cell("1"), Cell("2")]]))
    assert "multicolumn" not in plain
    assert "minipage" not in plain


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(tmp_path):
    special = Grid(r"\ { } $ & # _ % ^ ~ < > |", '"quoted"', [Heading("ä µ ± é")], [[Cell("[-1, 2]")], [Cell("*")]])
    document = "\n".join(
        [
            r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\usepackage[T1]{fontenc}",
            r"\begin{document}",
            *map(latex_table, (GRID, special)),
            r"\end{document}",
        ]
    )
    (tmp_path / "tables.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "tables.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stdout[-2000:]
