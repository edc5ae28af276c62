"""In which units metrics are shown."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from nnunet_godc.evaluation.metrics import (
    DICE,
    FALSE_POSITIVE_LESIONS,
    IOU,
    PRECISION,
    RECALL,
    RELATIVE_VOLUME_ERROR,
    better,
)

_SHARES = (DICE, IOU, PRECISION, RECALL, RELATIVE_VOLUME_ERROR, "NSD", "Lesion")
NEGLIGIBLE = 1e-9  # as shown: what is below is rounding
_NAMED_UNIT = re.compile(r"^(.*) \((mm|ml)\)$")


@dataclass(frozen=True)
class Shown:
    """How the numbers of one metric are written.

    Attributes:
        name: without its unit.
        unit: of the metric, "" if it has none.
        difference_unit: of differences: those between percentages are points.
        factor: by which numbers are multiplied first.
        decimals: after the point.
        lowest, highest: what the metric cannot leave, before it is multiplied.
    """

    name: str
    unit: str
    difference_unit: str
    factor: float
    decimals: int
    lowest: float
    highest: float

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def number(self, value: float) -> str:
        """A number without its unit; never minus zero."""
        return f"{round(value * self.factor, self.decimals) + 0.0:.{self.decimals}f}"

    def telling(self, *values: float) -> Shown:
        """With as many decimals as it takes to write none of these as zero that is not."""
        sizes = [abs(value) * self.factor for value in values if math.isfinite(value)]
        needed = [-math.floor(math.log10(size)) for size in sizes if NEGLIGIBLE < size <= 0.5 * 10.0**-self.decimals]
        return replace(self, decimals=max(needed)) if needed else self

    def of_difference(self, difference: float, low: float, high: float) -> Shown:
        """So that neither a difference, nor an end or the width of its interval, is written as zero."""
        narrow = (high - low) * self.factor < 20 * 10.0**-self.decimals
        finer = replace(self, decimals=self.decimals + 1) if narrow else self
        return finer.telling(difference, low, high, high - low)

    def difference(self, value: float) -> str:
        return f"{self.number(value)} {self.difference_unit}".rstrip()


def shown(metric: str) -> Shown:
    """Shares in per cent, as in the paper; what has its unit in its name in that; other metrics as they are."""
    floor = float("-inf") if better(metric) == "zero" else 0.0
    if metric.startswith(_SHARES):
        ceiling = float("inf") if better(metric) == "zero" else 1.0
        return Shown(metric, "%", "points", 100, 1, floor, ceiling)
    named = _NAMED_UNIT.match(metric)
    if named:
        return Shown(named[1], named[2], named[2], 1, 1, floor, float("inf"))
    known = metric == FALSE_POSITIVE_LESIONS
    return Shown(metric, "", "", 1, 2, 0.0 if known else float("-inf"), float("inf"))
