"""Two methods on the same cases: what differs, how surely, and for how many patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nnunet_godc.evaluation.bootstrap import Floats
from nnunet_godc.evaluation.case_table import ALL_STATES, MISSING, CaseTable, Method, Question, patient_means
from nnunet_godc.evaluation.metrics import better
from nnunet_godc.evaluation.paired_tests import (
    holm,
    rank_biserial_correlations,
    sign_flip_p_values,
    signed_rank_p_values,
    wins_ties_losses,
)
from nnunet_godc.evaluation.statistics import mean_intervals, standardised_differences

COLUMNS_AT_ONCE = 640  # of differences: bounds the memory, and so many share one set of resamples
LIMIT = 0.05


@dataclass(frozen=True)
class Comparison:
    """`method` minus `against` on the cases where both are defined; NaN where there is none to be had.

    Where a metric is best at zero, the distances from zero are compared.

    Attributes:
        patients, cases: compared.
        undefined_method, undefined_against: cases left out because that one alone is not defined there, by the reason
            that `ALL_STATES` names.
        difference: of the means over cases, `low` and `high` its 95 % interval over patients.
        effect_size: Cohen's d_z over patients, with its interval.
        wins, ties, losses: patients for whom `method` is better, equal, worse.
        sign_flip_p: of the paired permutation test, and `sign_flip_p_holm` after Holm's correction.
        signed_rank_p: of Wilcoxon's test, and `signed_rank_p_holm` likewise.
        rank_biserial: which way the ranks of Wilcoxon's test lean, from -1 to 1, with the sign of `difference`.
        tests: size of the family that was corrected for: all comparisons of the table that answer this question.
        runs: trainings, with different seeds, that are averaged on either side.
    """

    dataset: str
    cross_validated: bool
    question: Question
    method: Method
    against: Method
    patients: int
    cases: int
    undefined_method: dict[str, int]
    undefined_against: dict[str, int]
    difference: float
    low: float
    high: float
    effect_size: float
    effect_low: float
    effect_high: float
    wins: int
    ties: int
    losses: int
    sign_flip_p: float
    sign_flip_p_holm: float
    signed_rank_p: float
    signed_rank_p_holm: float
    rank_biserial: float
    tests: int
    runs: tuple[int, int]

    @property
    def only_method(self) -> int:
        """Cases left out because they are defined for `method` only."""
        return sum(self.undefined_against.values())

    @property
    def only_against(self) -> int:
        """Cases left out because they are defined for `against` only."""
        return sum(self.undefined_method.values())

    @property
    def selective(self) -> bool:
        """Whether cases are left out because of what one of the two predicted, such as nothing where a label is."""
        return bool({*self.undefined_method, *self.undefined_against} - {MISSING})

    @property
    def supported(self) -> bool:
        """Whether a difference can be claimed: by the corrected sign-flip test, with an interval that excludes zero."""
        return self.sign_flip_p_holm <= LIMIT and (self.low > 0 or self.high < 0)

    @property
    def improves(self) -> bool:
        """Whether `method` has the better mean."""
        return self._better(self.difference)

    @property
    def ranks_improve(self) -> bool:
        """Whether the ranks of the differences favour `method`."""
        return self._better(self.rank_biserial)

    @property
    def winner(self) -> Method | None:
        """The one that may be called better: of a supported difference that leaves out no case selectively."""
        if not self.supported or self.selective:
            return None
        return self.method if self.improves else self.against

    def _better(self, difference: float) -> bool:
        return (difference > 0) == (better(self.question.metric) == "higher")


def compare_methods(table: CaseTable, *, baseline: str | None, resamples: int, seed: int) -> list[Comparison]:
    """Methods of one configuration and plans, each against the baseline, or all against all if none is named.

    Args:
        baseline: a variant; where it is not among the methods, there is nothing to compare.
    """
    pairs = _pairs(table, baseline)
    comparisons: list[Comparison] = []
    if pairs:
        step = max(1, COLUMNS_AT_ONCE // len(pairs))
        for start in range(0, len(table.questions), step):
            chosen = range(start, min(start + step, len(table.questions)))
            comparisons += _compare(table, pairs, chosen, resamples, seed)
    return comparisons


def _pairs(table: CaseTable, baseline: str | None) -> list[tuple[int, int]]:
    """Indices of methods to compare, each before what it is compared with."""
    pairs = []
    for first, second in combinations(range(len(table.methods)), 2):
        a, b = table.methods[first], table.methods[second]
        if (a.configuration, a.plans) != (b.configuration, b.plans):
            continue
        if baseline is None or a.variant == baseline:
            pairs.append((second, first))
        elif b.variant == baseline:
            pairs.append((first, second))
    return pairs


def _compare(
    table: CaseTable, pairs: Sequence[tuple[int, int]], chosen: Sequence[int], resamples: int, seed: int
) -> list[Comparison]:
    values = table.compared[:, :, chosen]
    method, against = (list(side) for side in zip(*pairs, strict=True))
    defined = np.isfinite(values)
    # (C, questions * pairs), the pairs of one question side by side
    differences = np.concatenate([(values[method, :, k] - values[against, :, k]).T for k in range(len(chosen))], axis=1)
    totals, counts = table.by_patient(differences)
    means = patient_means(totals, counts)
    flips = sign_flip_p_values(np.where(counts > 0, totals, np.nan), resamples=resamples, seed=seed)
    ranks = signed_rank_p_values(means)
    leanings = rank_biserial_correlations(means)
    effects = standardised_differences(means)
    counted = wins_ties_losses(_towards_better(means, table, pairs, chosen))
    intervals = mean_intervals(totals, counts, resamples=resamples, seed=seed)

    comparisons = []
    for position, k in enumerate(chosen):
        family = slice(position * len(pairs), (position + 1) * len(pairs))
        flips_holm, ranks_holm = holm(flips[family]), holm(ranks[family])
        tests = int(np.isfinite(flips_holm).sum())
        for number, (a, b) in enumerate(pairs):
            column = family.start + number
            comparisons.append(
                Comparison(
                    dataset=table.dataset,
                    cross_validated=table.cross_validated,
                    question=table.questions[k],
                    method=table.methods[a],
                    against=table.methods[b],
                    patients=int((counts[:, column] > 0).sum()),
                    cases=int(counts[:, column].sum()),
                    undefined_method=_reasons(table.states[a, defined[b, :, position] & ~defined[a, :, position], k]),
                    undefined_against=_reasons(table.states[b, defined[a, :, position] & ~defined[b, :, position], k]),
                    difference=float(intervals.estimate[column]),
                    low=float(intervals.low[column]),
                    high=float(intervals.high[column]),
                    effect_size=float(effects.estimate[column]),
                    effect_low=float(effects.low[column]),
                    effect_high=float(effects.high[column]),
                    wins=int(counted[0][column]),
                    ties=int(counted[1][column]),
                    losses=int(counted[2][column]),
                    sign_flip_p=float(flips[column]),
                    sign_flip_p_holm=float(flips_holm[number]),
                    signed_rank_p=float(ranks[column]),
                    signed_rank_p_holm=float(ranks_holm[number]),
                    rank_biserial=float(leanings[column]),
                    tests=tests,
                    runs=(len(table.runs[a]), len(table.runs[b])),
                )
            )
    return comparisons


def _reasons(states: NDArray[np.uint8]) -> dict[str, int]:
    return {
        ALL_STATES[state]: int(number) for state, number in zip(*np.unique(states, return_counts=True), strict=True)
    }


def _towards_better(
    differences: Floats, table: CaseTable, pairs: Sequence[tuple[int, int]], chosen: Sequence[int]
) -> Floats:
    """The differences, positive where the first of the pair is the better one."""
    signs = [1.0 if better(table.questions[k].metric) == "higher" else -1.0 for k in chosen]
    towards: Floats = differences * np.repeat(signs, len(pairs))
    return towards
