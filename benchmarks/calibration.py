"""How often the intervals hold the truth and the tests reject it, on simulated metrics whose truth is known.

Each simulated study is a column for `nnunet_godc.evaluation.intervals`, so that thousands are one call. Studies of one
batch share their resamples; batches do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunet_godc.evaluation.bootstrap import ratios
from nnunet_godc.evaluation.intervals import (
    Interval,
    mean_intervals,
    median_intervals,
    proportion_intervals,
    standardised_differences,
)
from nnunet_godc.evaluation.paired_tests import sign_flip_p_values, signed_rank_p_values

Floats = NDArray[np.float64]
Study = tuple[Floats, Floats]  # totals and counts, (patients, studies)
Draw = Callable[[np.random.Generator, int, int], Study]

PATIENTS = (10, 20, 30, 50, 100, 200)
RESAMPLES = 2000
BATCHES = 20
TRUTH = 2_000_000  # patients that the truth is taken from, where there is no formula


def several_scans(random: np.random.Generator, shape: tuple[int, int], scan: Callable[[Floats], Floats]) -> Study:
    """One to four scans of each patient, who is as difficult each time."""
    difficulty = random.normal(0, 1, shape)
    counts = random.integers(1, 5, shape).astype(float)
    totals = sum(np.where(counts > number, scan(difficulty), 0) for number in range(4))
    return totals, counts


def tumour_scan(random: np.random.Generator, difficulty: Floats) -> Floats:
    """Dice of a tumour, which is missed where it is difficult."""
    logit = 1.0 + 1.1 * difficulty + random.normal(0, 0.5, difficulty.shape)
    return np.where(logit < -0.6, 0.0, 1 / (1 + np.exp(-logit)))


def tumour(random: np.random.Generator, patients: int, studies: int) -> Study:
    totals = tumour_scan(random, random.normal(0, 1, (patients, studies)))
    return totals, np.ones_like(totals)


def tumour_scans(random: np.random.Generator, patients: int, studies: int) -> Study:
    return several_scans(random, (patients, studies), lambda difficulty: tumour_scan(random, difficulty))


def liver(random: np.random.Generator, patients: int, studies: int) -> Study:
    """Dice of a liver: 0.96 for most, with a tail of failures."""
    totals = 1 - np.minimum(np.exp(random.normal(np.log(0.04), 0.7, (patients, studies))), 1)
    return totals, np.ones_like(totals)


def distance(random: np.random.Generator, patients: int, studies: int) -> Study:
    """HD95 in mm: lognormal, with a tail of distances ten times the median."""
    totals = np.exp(random.normal(2, 1, (patients, studies)))
    return totals, np.ones_like(totals)


def difference(random: np.random.Generator, patients: int, studies: int) -> Study:
    """Two methods that are exchangeable on the tumours of a patient."""
    difficulty = random.normal(0, 1, (patients, studies))
    totals = tumour_scan(random, difficulty) - tumour_scan(random, difficulty)
    return totals, np.ones_like(totals)


def difference_scans(random: np.random.Generator, patients: int, studies: int) -> Study:
    return several_scans(
        random,
        (patients, studies),
        lambda difficulty: tumour_scan(random, difficulty) - tumour_scan(random, difficulty),
    )


def improvement(random: np.random.Generator, patients: int, studies: int) -> Study:
    """One of the two is better, and more so where it is difficult."""
    difficulty = random.normal(0, 1, (patients, studies))
    totals = tumour_scan(random, 0.85 * difficulty + 0.1) - tumour_scan(random, difficulty)
    return totals, np.ones_like(totals)


def few_improved(random: np.random.Generator, patients: int, studies: int) -> Study:
    """One of the two is better by far for 15 % of the patients, and neither for the others."""
    shape = (patients, studies)
    totals = np.where(random.random(shape) < 0.15, random.normal(0.1, 0.1, shape), random.normal(0, 0.01, shape))
    return totals, np.ones_like(totals)


def lesions(random: np.random.Generator, patients: int, studies: int) -> Study:
    """Lesions detected, 80 % of them, in patients who have one or more; those of one patient resemble each other."""
    counts = 1 + random.poisson(1.5, (patients, studies))
    return random.binomial(counts, random.beta(3.2, 0.8, counts.shape)).astype(float), counts.astype(float)


@dataclass(frozen=True)
class Subject:
    """What is estimated from a simulated study.

    Attributes:
        estimate: the truth, if a study is large enough.
        interval: given a study and a seed.
    """

    estimate: Callable[[Study], Floats]
    interval: Callable[[Study, int], Interval]


def patient_means(study: Study) -> Floats:
    return study[0] / study[1]


MEAN = Subject(
    lambda study: ratios(*study)[0], lambda study, seed: mean_intervals(*study, resamples=RESAMPLES, seed=seed)
)
MEDIAN = Subject(
    lambda study: np.median(patient_means(study), axis=0), lambda study, _: median_intervals(patient_means(study))
)
PROPORTION = Subject(lambda study: ratios(*study)[0], lambda study, _: proportion_intervals(*study))
EFFECT = Subject(
    lambda study: standardised_differences(patient_means(study)).estimate,
    lambda study, _: standardised_differences(patient_means(study)),
)

COVERAGE: dict[str, tuple[Subject, Draw]] = {
    "mean tumour Dice": (MEAN, tumour),
    "mean tumour Dice, 1 to 4 scans a patient": (MEAN, tumour_scans),
    "mean liver Dice": (MEAN, liver),
    "mean HD95": (MEAN, distance),
    "mean difference, none in truth": (MEAN, difference),
    "mean difference, none in truth, 1 to 4 scans": (MEAN, difference_scans),
    "mean difference, an improvement": (MEAN, improvement),
    "mean difference, of 15 % of the patients": (MEAN, few_improved),
    "median tumour Dice": (MEDIAN, tumour),
    "d_z, no difference in truth": (EFFECT, difference),
    "d_z, an improvement": (EFFECT, improvement),
    "lesion sensitivity": (PROPORTION, lesions),
}
REJECTION: dict[str, tuple[Callable[[Study, int], Floats], Draw]] = {
    f"{name}{scans}": (test, draw)
    for scans, draw in (("", difference), (", 1 to 4 scans", difference_scans))
    for name, test in (
        ("sign flip", lambda study, seed: sign_flip_p_values(study[0], resamples=RESAMPLES, seed=seed)),
        ("Wilcoxon", lambda study, _: signed_rank_p_values(patient_means(study))),
    )
}


def coverage(subject: Subject, draw: Draw, patients: int, studies: int, seed: int) -> float:
    """Share of simulated studies whose interval holds the truth; one without an interval does not."""
    random = np.random.default_rng(seed)
    [truth] = subject.estimate(draw(np.random.default_rng(0), TRUTH, 1))
    held = 0
    for batch in range(BATCHES):
        interval = subject.interval(draw(random, patients, studies // BATCHES), seed + batch)
        held += int(((interval.low <= truth) & (truth <= interval.high)).sum())
    return held / (studies // BATCHES * BATCHES)


def rejection(test: Callable[[Study, int], Floats], draw: Draw, patients: int, studies: int, seed: int) -> float:
    """Share of simulated studies without a difference in which a test finds one at 5 %."""
    random = np.random.default_rng(seed)
    found = sum(
        int((test(draw(random, patients, studies // BATCHES), seed + batch) <= 0.05).sum()) for batch in range(BATCHES)
    )
    return found / (studies // BATCHES * BATCHES)


def other_intervals(study: Study, seed: int) -> dict[str, Interval]:
    """What else the bootstrap of a mean over single cases offers, and Student's interval."""
    values = study[0]
    patients = len(values)
    means, errors = ratios(*study)
    deviations = values - means
    random = np.random.default_rng(seed)
    drawn = random.integers(0, patients, (RESAMPLES, patients)) + np.arange(RESAMPLES)[:, None] * patients
    weights = np.bincount(drawn.ravel(), minlength=RESAMPLES * patients).reshape(RESAMPLES, patients)
    shifts = weights @ deviations / patients  # (resamples, studies)
    spread = np.maximum(weights @ deviations**2 / patients - shifts**2, 1e-12 * errors**2)
    pivots = shifts / np.sqrt(spread / (patients - 1))
    shifts.sort(axis=0)
    pivots.sort(axis=0)

    bias = stats.norm.ppf(np.clip((shifts < 0).mean(axis=0), 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    acceleration = stats.skew(values, axis=0) / (6 * np.sqrt(patients))
    ends = []
    for z in stats.norm.ppf([0.025, 0.975]):
        level = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        position = np.clip(np.rint(level * (RESAMPLES - 1)), 0, RESAMPLES - 1).astype(int)
        ends.append(np.take_along_axis(shifts, position[None], axis=0)[0])
    low, high = int(0.025 * RESAMPLES), int(0.975 * RESAMPLES)
    student = stats.t.ppf(0.975, patients - 1) * errors
    return {
        "Student": Interval(means, means - student, means + student),
        "percentile": Interval(means, means + shifts[low], means + shifts[high]),
        "BCa": Interval(means, means + ends[0], means + ends[1]),
        "studentised, equal tails": Interval(means, means - pivots[high] * errors, means - pivots[low] * errors),
    }


def method_table(studies: int, patients: int) -> list[dict[str, object]]:
    """Coverage of every method for means and differences, with the one that is used last."""
    draws = {name: draw for name, (subject, draw) in COVERAGE.items() if subject is MEAN and "scans" not in name}
    held: dict[str, dict[str, int]] = {}
    for name, draw in draws.items():
        random = np.random.default_rng(1)
        [truth] = MEAN.estimate(draw(np.random.default_rng(0), TRUTH, 1))
        for batch in range(BATCHES):
            study = draw(random, patients, studies // BATCHES)
            intervals = {**other_intervals(study, batch), "studentised, symmetric": MEAN.interval(study, batch)}
            for method, interval in intervals.items():
                row = held.setdefault(method, dict.fromkeys(draws, 0))
                row[name] += int(((interval.low <= truth) & (truth <= interval.high)).sum())
    shares = 100 / (studies // BATCHES * BATCHES)
    return [
        {"method": method, "patients": patients, **{name: shares * count for name, count in row.items()}}
        for method, row in held.items()
    ]


def main() -> None:
    from _measure import (
        parse_cpu_arguments,
        write_report,
    )  # here, since the tests use the functions above without torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=10_000, help="simulated studies for each figure")
    arguments = parse_cpu_arguments(parser)

    rows: list[dict[str, object]] = []
    for name, (subject, draw) in COVERAGE.items():
        figures = {str(n): 100 * coverage(subject, draw, n, arguments.studies, seed=1) for n in PATIENTS}
        rows.append({"of": f"interval of the {name}", **figures})
        print(rows[-1], flush=True)
    for name, (test, draw) in REJECTION.items():
        figures = {str(n): 100 * rejection(test, draw, n, arguments.studies, seed=1) for n in PATIENTS}
        rows.append({"of": f"rejections by {name}", **figures})
        print(rows[-1], flush=True)
    methods = [row for n in (30, 100) for row in method_table(arguments.studies, n)]
    names = [name for name in methods[0] if name not in ("method", "patients")]
    error = 100 * np.sqrt(0.05 * 0.95 / arguments.studies)
    write_report(
        "calibration",
        "How many of 100 intervals hold the truth (95 of them should), and how many of 100 tests of two methods that "
        "do not differ reject at 5 % (5 of them should), by the number of patients.",
        [
            f"| patients | {' | '.join(map(str, PATIENTS))} |",
            f"| --- |{' ---: |' * len(PATIENTS)}",
            *(f"| {row['of']} | {' | '.join(f'{row[str(n)]:.1f}' for n in PATIENTS)} |" for row in rows),
            "",
            f"| interval | patients | {' | '.join(names)} |",
            f"| --- | ---: |{' ---: |' * len(names)}",
            *(
                f"| {row['method']} | {row['patients']} | {' | '.join(f'{row[name]:.1f}' for name in names)} |"
                for row in methods
            ),
        ],
        [*rows, *methods],
        arguments,
        [f"{arguments.studies} simulated studies for each figure, {RESAMPLES} resamples; standard error {error:.2f}"],
    )


if __name__ == "__main__":
    main()
