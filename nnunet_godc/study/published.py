"""A published table with the study's own numbers in it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nnunet_godc.evaluation.markup import Table, markdown_table
from nnunet_godc.evaluation.units import shown
from nnunet_godc.study.definition import Published

CAUTION = "Cases, splits, preparation and training differ between the two: a difference between them compares nothing."


def published_table(published: Published, evaluation: Path) -> str:
    """A section in Markdown, with the publication's rows in its order; what was not measured has empty cells.

    Args:
        evaluation: folder that `nnunet-godc evaluate` has written to.
    """
    numbers = {"mean": [""], "low": [""], "high": [""]}  # a trainer may be called NA
    measured = pd.read_csv(evaluation / "statistics.csv", keep_default_na=False, na_values=numbers)
    measured = measured[(measured["label"] == published.label) & (measured["bin"] == "")]
    metrics = list(dict.fromkeys(metric for method in published.methods.values() for metric in method.values))
    rows = []
    for name, method in published.methods.items():
        own = measured[measured["trainer"] == method.trainer]
        models = own[["configuration", "plans"]].drop_duplicates().to_numpy().tolist() or [["", ""]]
        for configuration, plans in models:
            of_model = own[(own["configuration"] == configuration) & (own["plans"] == plans)].set_index("metric")
            cells = []
            for metric in metrics:
                value = method.values.get(metric)
                cells.append("" if value is None else f"{value:g}")
                cells.append(_interval(metric, of_model.loc[metric]) if metric in of_model.index else "")
            rows.append([name, ", ".join(filter(None, (method.trainer, configuration, plans))), *cells])
    headings = [f"{metric}, {whose} (%)" for metric in metrics for whose in ("published", "here")]
    caption = f"{published.source}, {published.label}: as published, and as measured here [95 % interval]."
    table = markdown_table(Table(caption, ["Method", "trainer", *headings], rows, text=2))
    return f"## Beside published numbers\n\n{table}\n\n{CAUTION}"


def _interval(metric: str, row: pd.Series[float]) -> str:
    number = shown(metric).number
    mean, low, high = row[["mean", "low", "high"]]
    if pd.isna(mean):
        return ""
    return number(mean) + ("" if pd.isna(low) else f" [{number(low)}, {number(high)}]")
