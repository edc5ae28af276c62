"""What a comparison allows to be said, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_godc.evaluation.case_table import MISSING, Method, Question
from nnunet_godc.evaluation.comparison import LIMIT, Comparison
from nnunet_godc.evaluation.metrics import ABSENT_IN_BOTH, ABSENT_IN_PREDICTION, better
from nnunet_godc.evaluation.units import shown

FEW_PATIENTS = 50
"""Below this, intervals of what a few of the patients decide cover less than 94 %: docs/statistics.md."""


def claim(comparison: Comparison) -> str:
    """A difference with its interval; or that none can be claimed, and what stays possible; and what is left out."""
    found, left_out = _finding(comparison), _left_out(comparison)
    if not left_out:
        return found
    if comparison.supported and comparison.selective:
        cases = _counted(comparison.cases, comparison.question)
        return (
            f"{found} The difference is one on these {cases} alone, not {_kind(comparison)}: left out are {left_out}."
        )
    return f"{found} Left out are {left_out}."


def _finding(comparison: Comparison) -> str:
    subject = subject_of(comparison.question)
    pair = f"{comparison.method.variant} and {comparison.against.variant}"
    patients = f"{comparison.patients} patient{'' if comparison.patients == 1 else 's'}"
    differing = comparison.wins + comparison.losses
    if comparison.patients == 0:
        return f"Nothing can be said about {subject} of {pair}: it is defined for both in no case."
    if differing == 0:
        return f"{pair} are equal in {subject} for {patients}."
    if not math.isfinite(comparison.low):
        return (
            f"No difference in {subject} between {pair} can be claimed: {differing} of {patients} "
            f"{'differs' if differing == 1 else 'differ'}, too few or too alike for an interval."
        )
    return _difference(comparison, subject) if comparison.supported else _no_difference(comparison, subject, pair)


def caveats(comparison: Comparison) -> list[str]:
    """What else has to be known to read the interval; alike for comparisons of one kind."""
    found = []
    if comparison.runs == (1, 1):
        found.append(
            "One training (per fold) stands behind either side: what another seed would change is not in the interval."
        )
    else:
        found.append(
            f"Averages over {comparison.runs[0]} and {comparison.runs[1]} trainings with different seeds: the interval "
            "is that of these trainings on other patients, and the spread over seeds is told beside the means."
        )
    if comparison.patients < FEW_PATIENTS:
        found.append(
            f"Fewer than {FEW_PATIENTS} patients: where a few of them carry a difference, its interval is too narrow."
        )
    return found


def multiplicity(comparisons: Sequence[Comparison]) -> str:
    """Over how many questions tests were made, for which nothing is corrected; "" without tests."""
    questions = tested_questions(comparisons)
    if questions <= 1:
        return "Tests were made for one question, a metric of a label." if questions else ""
    tests = max(entry.tests for entry in comparisons)
    corrected = (
        f"p-values are corrected for the methods that are compared in each (up to {tests} comparisons), not for the "
        "number of questions"
        if tests > 1
        else "with one comparison in each, no p-value is corrected"
    )
    return (
        f"Tests were made for {questions} questions (label, metric and lesion size): {corrected}. Where nothing "
        f"differs, about one question in twenty is claimed by chance, here {questions / 20:.1f} of {questions}. Name "
        "the primary question before looking; what the others show is to be confirmed."
    )


def tested_questions(comparisons: Sequence[Comparison]) -> int:
    """Each is corrected for on its own."""
    return len({(entry.dataset, entry.cross_validated, entry.question) for entry in comparisons if entry.tests})


def subject_of(question: Question) -> str:
    """Such as "Dice of tumour", or "Lesion Dice of tumour, below 1 ml"."""
    distance = " (distance from zero)" if better(question.metric) == "zero" else ""
    size = f", {question.bin}" if question.bin else ""
    return f"{shown(question.metric).name}{distance} of {question.label}{size}"


def p_value(p: float) -> str:
    """``p = 0.031``, or ``p < 0.001``; never rounded to the limit that decides."""
    if p < 0.001:
        return "p < 0.001"
    if p < 0.01:
        return f"p = {p:.2g}"
    decimals = 3 if p < 0.0995 else 2
    while round(p, decimals) == LIMIT != p and decimals < 9:
        decimals += 1
    return f"p = {p:.{decimals}f}"


def _difference(comparison: Comparison, subject: str) -> str:
    units = shown(comparison.question.metric).of_difference(comparison.difference, comparison.low, comparison.high)
    verb, sign = ("raises", 1) if comparison.difference > 0 else ("lowers", -1)
    low, high = sorted((sign * comparison.low, sign * comparison.high))
    where = (
        f"On the {_counted(comparison.cases, comparison.question)} that both define, " if comparison.selective else ""
    )
    sentence = (
        f"{where}{comparison.method.variant} {verb} {subject} by {units.difference(sign * comparison.difference)} "
        f"against {comparison.against.variant}{'' if comparison.selective else f', {_kind(comparison)}'} "
        f"(95 % CI {units.number(low)} to {units.number(high)}; {_corrected(comparison)}; "
        f"{comparison.patients} patients)."
    )
    if comparison.signed_rank_p_holm > LIMIT:
        sentence += (
            f" Wilcoxon's test does not see it ({p_value(comparison.signed_rank_p_holm)}): a part of the patients with "
            "large differences may carry it."
        )
    elif comparison.ranks_improve != comparison.improves:
        sentence += (
            f" Wilcoxon's test sees the opposite ({_favoured(comparison)}): a part of the patients carries the mean."
        )
    return sentence


def _no_difference(comparison: Comparison, subject: str, pair: str) -> str:
    units = shown(comparison.question.metric).of_difference(comparison.difference, comparison.low, comparison.high)
    low = units.number(comparison.low)
    beginning = f"No difference in {subject} between {pair} can be claimed"
    basis = f"{_corrected(comparison)}; {comparison.patients} patients"
    excludes_zero = comparison.low > 0 or comparison.high < 0
    if comparison.sign_flip_p_holm <= LIMIT:
        reason = (
            f"the test sees one ({basis}), but the interval from {low} to {units.difference(comparison.high)} has zero"
        )
    elif excludes_zero:
        reason = (
            f"the interval from {low} to {units.difference(comparison.high)} excludes zero, but the test does not "
            f"reject ({basis})"
        )
    else:
        reason = (
            f"anything from {low} to {units.difference(comparison.high)} is compatible with the data "
            f"(observed {units.number(comparison.difference)}; {basis})"
        )
    sentence = f"{beginning}: {reason}."
    if comparison.signed_rank_p_holm <= LIMIT < comparison.sign_flip_p_holm:
        sentence += (
            f" Wilcoxon's test does see a shift ({_favoured(comparison)}), from which no difference of the means "
            "follows."
        )
    return sentence


def _favoured(comparison: Comparison) -> str:
    """Which method the ranks of the differences favour, which need be neither that of most patients nor of the mean."""
    wins, losses, favoured = comparison.wins, comparison.losses, comparison.method
    if not comparison.ranks_improve:
        wins, losses, favoured = losses, wins, comparison.against
    return (
        f"{p_value(comparison.signed_rank_p_holm)}; the ranks of the differences favour {favoured.variant}, which is "
        f"better for {wins} patients, equal for {comparison.ties}, worse for {losses}"
    )


def _kind(comparison: Comparison) -> str:
    return "an improvement" if comparison.improves else "a deterioration"


def _left_out(comparison: Comparison) -> str:
    """Such as "40 cases in which B alone predicts no tumour"; "" if the two are defined in the same cases."""
    sides = (
        (comparison.method, comparison.runs[0], comparison.undefined_method),
        (comparison.against, comparison.runs[1], comparison.undefined_against),
    )
    parts = [
        f"{_counted(number, comparison.question)} {_reason(reason, method, runs, comparison.question.label)}"
        for method, runs, reasons in sides
        for reason, number in reasons.items()
    ]
    return " and ".join(parts)


def _reason(reason: str, method: Method, runs: int, label: str) -> str:
    """Why cases are defined for the other method only."""
    who = f"{method.variant} alone" if runs == 1 else f"a training of {method.variant}"
    if reason == ABSENT_IN_PREDICTION:
        return f"in which {who} predicts no {label}"
    if reason == ABSENT_IN_BOTH:
        return f"without {label}, in which {who} rightly predicts none"
    return f"at which {who} was not measured" if reason == MISSING else f"in which it is not defined for {who}"


def _counted(number: int, question: Question) -> str:
    unit = "lesion" if question.bin else "case"
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _corrected(comparison: Comparison) -> str:
    p = p_value(comparison.sign_flip_p_holm)
    return p if comparison.tests == 1 else f"{p} after Holm's correction for {comparison.tests} comparisons"
