"""The demo's table: Dice, precision and recall of each held-out case."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nnunet_godc.evaluation.metrics import DICE, PRECISION, RECALL

MEAN = "mean"
_METRICS = {DICE: "Dice", PRECISION: "precision", RECALL: "recall"}


def score_table(measurements: pd.DataFrame) -> pd.DataFrame:
    """Every label in every case, then the means over the cases where a metric is defined.

    Args:
        measurements: of one training, as `nnunet_godc.evaluation.read_tables` gives them.

    Returns:
        One row per case and label, which are its index, and a column per metric; NaN where it is not defined.
    """
    text = dict.fromkeys(("case", "label", "metric"), "str")
    of_cases = measurements[measurements["metric"].isin(_METRICS) & measurements["lesion"].isna()]
    scores = of_cases.astype(text).pivot(index=["case", "label"], columns="metric", values="value")
    scores = scores[list(_METRICS)].rename(columns=_METRICS)
    means = scores.groupby("label").mean()
    return pd.concat([scores, pd.concat({MEAN: means}, names=["case"])])


def format_table(scores: pd.DataFrame) -> str:
    """The table as aligned text; an undefined metric is a dash."""
    width = max(len("case"), *(len(case) for case, _ in scores.index))
    lines = [f"{'case':<{width}} {'label':<8} " + " ".join(f"{metric:>9}" for metric in scores.columns)]
    for (case, label), numbers in scores.iterrows():
        shown = ("-" if pd.isna(number) else f"{number:.3f}" for number in numbers)
        lines.append(f"{case:<{width}} {label:<8} " + " ".join(f"{number:>9}" for number in shown))
    return "\n".join(lines)


def write_csv(path: Path, scores: pd.DataFrame) -> None:
    """The table as CSV with six decimals; an undefined metric is an empty field."""
    scores.rename(columns=str.lower).to_csv(path, float_format="%.6f", lineterminator="\n")
