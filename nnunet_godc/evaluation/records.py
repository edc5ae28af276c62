"""Results as rows for programs: CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from nnunet_godc.evaluation.case_table import ALL_STATES
from nnunet_godc.evaluation.claims import caveats, claim
from nnunet_godc.evaluation.comparison import Comparison
from nnunet_godc.evaluation.summary import Summary

Row = dict[str, Any]

_TOLD_OTHERWISE = (  # what a comparison holds, and a row has in columns of its own
    "dataset",
    "cross_validated",
    "question",
    "method",
    "against",
    "runs",
    "undefined_method",
    "undefined_against",
)


def statistics_row(entry: Summary) -> Row:
    """One method and one question; the cases that were left out are counted by the reason."""
    return {
        **_place(entry),
        "patients": entry.patients,
        "cases": entry.cases,
        **{state: entry.undefined.get(state, 0) for state in ALL_STATES[1:]},
        "mean": entry.mean,
        "mean_low": entry.low,
        "mean_high": entry.high,
        "median": entry.median,
        "median_low": entry.median_low,
        "median_high": entry.median_high,
        "seeds": len(entry.runs),
        "seed_means": list(entry.runs),
        "seed_standard_deviation": float(np.std(entry.runs, ddof=1)) if len(entry.runs) > 1 else math.nan,
    }


def comparison_row(entry: Comparison) -> Row:
    """One comparison, with the sentence that it allows."""
    numbers = asdict(entry)
    for name in _TOLD_OTHERWISE:
        del numbers[name]
    return {
        **_place(entry),
        "against": entry.against.variant,
        "only_method": entry.only_method,
        "only_against": entry.only_against,
        **numbers,
        "seeds": entry.runs[0],
        "seeds_against": entry.runs[1],
        "supported": entry.supported,
        "selective": entry.selective,
        "sentence": " ".join([claim(entry), *caveats(entry)]),
    }


def csv_text(rows: Sequence[Row]) -> str:
    """The rows with a header; what there is not is an empty field, and several numbers are separated by blanks."""
    frame = pd.DataFrame(rows)
    for name in frame:
        if frame[name].map(lambda entry: isinstance(entry, list)).any():
            frame[name] = frame[name].map(lambda numbers: " ".join(f"{number:.10g}" for number in numbers))
    return str(frame.to_csv(index=False, lineterminator="\n", float_format="%.10g"))


def json_text(content: Mapping[str, Any]) -> str:
    """Strict JSON, in which what there is not is null."""
    return json.dumps(_without_nan(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _place(entry: Summary | Comparison) -> Row:
    return {
        "dataset": entry.dataset,
        "cross_validated": entry.cross_validated,
        "configuration": entry.method.configuration,
        "plans": entry.method.plans,
        "trainer": entry.method.variant,
        "label": entry.question.label,
        "bin": entry.question.bin,
        "metric": entry.question.metric,
    }


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
