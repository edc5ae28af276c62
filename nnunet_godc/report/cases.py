"""Which cases there are, as one table, and which of them are worth a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nnunet_godc.evaluation.cube import OVER_LABELS, Method
from nnunet_godc.evaluation.metrics import DICE, HD95, PRECISION, RECALL
from nnunet_godc.evaluation.report import Section
from nnunet_godc.report.charts import Volumes, short_names

SHOWN = (DICE, PRECISION, RECALL, HD95)
MODEL = ["dataset", "configuration", "plans", "trainer"]
WORST, BEST, APART = 3, 1, 3  # cases of each kind, per label and method or pair of methods


@dataclass(frozen=True)
class Choice:
    """A case worth a picture, and why: one sentence for each reason."""

    dataset: str
    case: str
    label: str
    reasons: tuple[str, ...]


def case_table(measurements: pd.DataFrame, volumes: Volumes) -> pd.DataFrame:
    """One row for each training, case and label, with the metrics `SHOWN` and the reference's volume in ml."""
    key = [*MODEL, "fold", "seed", "case", "label"]
    rows = measurements[
        measurements["metric"].isin(SHOWN) & measurements["lesion"].isna() & (measurements["label"] != "")
    ]
    rows = rows.astype({**dict.fromkeys([*MODEL, "case", "label", "metric"], "str"), "fold": float, "seed": float})
    table = rows.fillna({"fold": -1, "seed": -1}).set_index([*key, "metric"])["value"].unstack("metric")
    table = table.reindex(columns=[*SHOWN]).reset_index()
    places = zip(table["dataset"], table["case"], table["label"], strict=True)
    table["volume_ml"] = [volumes.get(place, np.nan) for place in places]
    return table


def choose_cases(sections: Sequence[Section], baseline: str | None, most: int) -> list[Choice]:
    """The worst, median and best case of each method, and those where two methods differ most, by the Dice.

    Of each label and kind the most conspicuous come first, so that few cases show something of everything.
    """
    ranked: list[tuple[int, int, tuple[str, str, str], str]] = []
    for number, section in enumerate(section for section in sections if not section.by_size):
        cube = section.cube
        names = short_names(cube.methods)
        for column, endpoint in enumerate(cube.measured_endpoints):
            if endpoint.metric != DICE or endpoint.label == OVER_LABELS:
                continue
            values = {m: cube.side(i, cube.values).values[:, column] for i, m in enumerate(cube.methods)}
            picks = [
                *_of_each(values, {method: names[method] for method in values}),
                *_of_pairs(values, {method: names[method] for method in values}, baseline),
            ]
            for rank, case, reason in picks:
                ranked.append((rank, number, (cube.dataset, cube.cases[case], endpoint.label), reason))
    found: dict[tuple[str, str, str], list[str]] = {}
    for _, _, place, reason in sorted(ranked, key=lambda entry: entry[:2]):
        if place in found or len(found) < most:
            found.setdefault(place, []).append(reason)
    return [Choice(*place, tuple(reasons)) for place, reasons in found.items()]


def _of_each(values: dict[Method, Any], names: dict[Method, str]) -> list[tuple[int, int, str]]:
    picks = []
    for method, own in values.items():
        order = np.argsort(own, kind="stable")[: np.count_nonzero(np.isfinite(own))]  # NaN comes last
        if not len(order):
            continue

        def said(what: str, case: int, name: str = names[method], own: Any = own) -> str:
            return f"{what} of {name}: Dice {100 * own[case]:.1f} %"

        picks += [(rank, int(case), said("among the worst", case)) for rank, case in enumerate(order[:WORST])]
        middle = order[len(order) // 2]
        picks.append((1, int(middle), said("median", middle)))
        picks += [(1 + rank, int(case), said("among the best", case)) for rank, case in enumerate(order[::-1][:BEST])]
    return picks


def _of_pairs(values: dict[Method, Any], names: dict[Method, str], baseline: str | None) -> list[tuple[int, int, str]]:
    picks = []
    methods = list(values)
    for first, a in enumerate(methods):
        for b in methods[first + 1 :]:
            if baseline is not None and baseline not in (a.trainer, b.trainer):
                continue
            difference = values[b] - values[a]
            for sign, better, worse in ((1, b, a), (-1, a, b)):
                apart = np.where(np.isfinite(difference), sign * difference, -np.inf)
                for rank, case in enumerate(np.argsort(-apart, kind="stable")[:APART]):
                    if apart[case] > 0:
                        reason = f"{names[better]} is {100 * apart[case]:.1f} points above {names[worse]}"
                        picks.append((rank, int(case), reason))
    return picks
