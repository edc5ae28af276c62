"""What a comparison allows to be said, in plain words: of two trained models, or of the methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_godc.evaluation.cube import Endpoint, Method
from nnunet_godc.evaluation.inference import LIMIT, Comparison
from nnunet_godc.evaluation.metrics import ABSENT_IN_BOTH, ABSENT_IN_PREDICTION, NOT_MEASURED, better
from nnunet_godc.evaluation.units import shown

FEW_PATIENTS = 50
"""Below this, intervals of what a few of the patients decide cover less than 94 %: docs/statistics.md."""

THESE_MODELS = (
    "One training (per fold) stands behind a side: its sentence speaks of these trained models on new patients, and of "
    "no method. What another training changes may be as large as the difference; trainings with several seeds show it."
)
NEW_TRAININGS = (
    "With several trainings on both sides, interval and test hold for new trainings and new patients: trainings, one "
    "per fold and seed, and patients are crossed random effects."
)


def claim(comparison: Comparison) -> str:
    """A difference with its interval; or that none can be claimed, and what stays possible; and what is left out."""
    found, left_out = _finding(comparison), _left_out(comparison)
    if not left_out:
        return found
    if comparison.significant and comparison.selectively_missing:
        cases = _counted(comparison.cases, comparison.endpoint)
        return (
            f"{found} The difference is one on these {cases} alone, not {_kind(comparison)}: left out are {left_out}."
        )
    return f"{found} Left out are {left_out}."


def caveats(comparisons: Sequence[Comparison]) -> list[str]:
    """What else has to be known to read the intervals."""
    found = []
    if any(not entry.new_trainings for entry in comparisons):
        found.append(THESE_MODELS)
    if any(entry.new_trainings for entry in comparisons):
        found.append(NEW_TRAININGS)
    if any(0 < entry.patients < FEW_PATIENTS for entry in comparisons):
        found.append(
            f"Fewer than {FEW_PATIENTS} patients: where a few of them carry a difference, its interval is too narrow."
        )
    return found


def multiplicity(comparisons: Sequence[Comparison]) -> str:
    """Over how many questions tests were made, for which nothing is corrected; "" without tests."""
    endpoints = len({(entry.dataset, entry.cross_validated, entry.endpoint) for entry in comparisons if entry.tests})
    if endpoints <= 1:
        return "Tests were made for one question, a metric of a label." if endpoints else ""
    tests = max(entry.tests for entry in comparisons)
    corrected = (
        f"p-values are corrected for the methods that are compared in each (Holm, up to {tests} comparisons), not for "
        "the number of questions"
        if tests > 1
        else "with one comparison in each, no p-value is corrected"
    )
    return (
        f"Tests were made for {endpoints} questions (label, metric and lesion size): {corrected}. Where nothing "
        f"differs, about one question in twenty is claimed by chance, here {endpoints / 20:.1f} of {endpoints}. Name "
        "the primary question before looking; what the others show is to be confirmed."
    )


def subject_of(endpoint: Endpoint) -> str:
    """Such as "Dice of tumour", or "Lesion Dice of tumour, below 1 ml"."""
    distance = " (distance from zero)" if better(endpoint.metric) == "zero" else ""
    size = f", {endpoint.bin}" if endpoint.bin else ""
    return f"{shown(endpoint.metric).name}{distance} of {endpoint.label}{size}".replace(" of mean over", ", mean over")


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


def _finding(comparison: Comparison) -> str:
    subject = subject_of(comparison.endpoint)
    pair = f"{comparison.method.trainer} and {comparison.against.trainer}"
    models = pair if comparison.new_trainings else f"these trained models of {pair}"
    patients = f"{comparison.patients} patient{'' if comparison.patients == 1 else 's'}"
    if comparison.patients == 0:
        return f"Nothing can be said about {subject} of {pair}: it is defined for both in no case."
    if comparison.wins + comparison.losses == 0:
        return f"{models[0].upper() + models[1:]} are equal in {subject} for {patients}."
    if comparison.significant:
        return _difference(comparison, subject)
    if not math.isfinite(comparison.low):
        differing = comparison.wins + comparison.losses
        return (
            f"No difference in {subject} between {models} can be claimed: {differing} of {patients} "
            f"{'differs' if differing == 1 else 'differ'}, too few or too alike for an interval "
            f"({_corrected(comparison)})."
        )
    units = shown(comparison.endpoint.metric).of_difference(comparison.difference, comparison.low, comparison.high)
    low, high = units.number(comparison.low), units.difference(comparison.high)
    basis = f"{_corrected(comparison)}; {_basis(comparison)}"
    if comparison.p_holm <= LIMIT:
        reason = f"the test sees one ({basis}), but the interval from {low} to {high} has zero"
    elif comparison.low > 0 or comparison.high < 0:
        reason = f"the interval from {low} to {high} excludes zero, but the test does not reject ({basis})"
    else:
        observed = units.number(comparison.difference)
        reason = f"anything from {low} to {high} is compatible with the data (observed {observed}; {basis})"
    return f"No difference in {subject} between {models} can be claimed: {reason}."


def _difference(comparison: Comparison, subject: str) -> str:
    units = shown(comparison.endpoint.metric).of_difference(comparison.difference, comparison.low, comparison.high)
    sign = 1 if comparison.difference > 0 else -1
    amount = units.difference(sign * comparison.difference)
    where = (
        f"On the {_counted(comparison.cases, comparison.endpoint)} that both define, "
        if comparison.selectively_missing
        else ""
    )
    kind = "" if comparison.selectively_missing else f", {_kind(comparison)}"
    if comparison.new_trainings:
        verb = "raises" if sign > 0 else "lowers"
        said = f"{comparison.method.trainer} {verb} {subject} by {amount} against {comparison.against.trainer}{kind}"
    else:
        the = "the" if where else "The"
        said = (
            f"{the} trained {comparison.method.trainer} is {amount} {'higher' if sign > 0 else 'lower'} in {subject} "
            f"than the trained {comparison.against.trainer}{kind} of this model over that one"
        )
        said = said if kind else said.removesuffix(" of this model over that one")
    if math.isfinite(comparison.low):
        low, high = sorted((sign * comparison.low, sign * comparison.high))
        interval = f"95 % CI {units.number(low)} to {units.number(high)}"
    else:
        interval = "no interval, the patients' differences being too alike"
    return f"{where}{said} ({interval}; {_corrected(comparison)}; {_basis(comparison)})."


def _basis(comparison: Comparison) -> str:
    patients = f"{comparison.patients} patient{'' if comparison.patients == 1 else 's'}"
    if not comparison.new_trainings:
        return patients
    a, b = comparison.trainings
    return f"{patients}, {a} and {b} trainings{' per fold' if comparison.cross_validated else ''}"


def _kind(comparison: Comparison) -> str:
    return "an improvement" if comparison.improves else "a deterioration"


def _left_out(comparison: Comparison) -> str:
    """Such as "40 cases in which B alone predicts no tumour"; "" if the two are defined in the same cases."""
    sides = (
        (comparison.method, comparison.trainings[0], comparison.undefined_method),
        (comparison.against, comparison.trainings[1], comparison.undefined_against),
    )
    parts = [
        f"{_counted(number, comparison.endpoint)} {_reason(reason, method, runs, comparison.endpoint.label)}"
        for method, runs, reasons in sides
        for reason, number in reasons.items()
    ]
    return " and ".join(parts)


def _reason(reason: str, method: Method, runs: int, label: str) -> str:
    """Why cases are defined for the other method only."""
    who = f"{method.trainer} alone" if runs == 1 else f"a training of {method.trainer}"
    label = "a label" if label.startswith("mean over") else label
    if reason == ABSENT_IN_PREDICTION:
        return f"in which {who} predicts no {label}".replace("no a label", "nothing of a label")
    if reason == ABSENT_IN_BOTH:
        return f"without {label}, in which {who} rightly predicts none"
    return f"at which {who} was not measured" if reason == NOT_MEASURED else f"in which it is not defined for {who}"


def _counted(number: int, endpoint: Endpoint) -> str:
    unit = "lesion" if endpoint.bin else "case"
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _corrected(comparison: Comparison) -> str:
    if not math.isfinite(comparison.p_holm):
        return "no test"
    p = p_value(comparison.p_holm)
    return p if comparison.tests == 1 else f"{p} after Holm's correction for {comparison.tests} comparisons"
