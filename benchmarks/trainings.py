"""Claims where trainings are random draws: how many of 100 studies of two equal methods claim a difference.

Patients and trainings are crossed: each training shifts all cases that it predicts (a fold, or a whole test set), each
patient has a difference of his own between the methods, and each prediction has a residual. All are normal, in points.
"""

from __future__ import annotations

import argparse

import numpy as np
from _measure import parse_cpu_arguments, write_report

from nnunet_godc.evaluation.bootstrap import ratios
from nnunet_godc.evaluation.cube import Cube, Endpoint, Method
from nnunet_godc.evaluation.inference import crossed_intervals, training_spread

PATIENTS = 60
SPREADS = (0.0, 0.2, 0.4, 0.8)  # standard deviation between trainings, points
OWN = (0.0, 2.0)  # standard deviation between patients of the difference of the methods
RESIDUAL = 1.41
DESIGNS = {"a fixed test set": 1, "five-fold cross-validation": 5}
BATCH = 500


def draw(
    random: np.random.Generator, studies: int, seeds: int, folds: int, spread: tuple[float, float], own: float
) -> Cube:
    """Studies are the questions of one cube: two methods, `seeds` trainings of each."""
    shape = (2, seeds, PATIENTS, studies)
    fold = np.arange(PATIENTS) % folds
    scale = np.array(spread)[:, None, None, None]
    values = random.normal(0, 1, (2, seeds, folds, studies))[:, :, fold] * scale
    values += random.normal(0, own / 2**0.5, (2, 1, PATIENTS, studies)) + random.normal(0, RESIDUAL, shape)
    return Cube(
        dataset="",
        cross_validated=folds > 1,
        methods=tuple(Method("", "", name) for name in "AB"),
        endpoints=tuple(Endpoint(str(number), "Dice") for number in range(studies)),
        label_columns=(),
        patients=tuple(map(str, range(PATIENTS))),
        cases=tuple(map(str, range(PATIENTS))),
        first_case=np.arange(PATIENTS),
        trainings=(tuple(range(seeds)), tuple(range(seeds, 2 * seeds))),
        seeds=tuple(range(2 * seeds)),
        values=values.reshape(2 * seeds, PATIENTS, studies),
        states=np.zeros((2 * seeds, PATIENTS, studies), np.uint8),
        fold_of=np.broadcast_to(fold, (2 * seeds, PATIENTS)),
    )


def claimed(cube: Cube) -> np.ndarray:
    """Whether the interval of each study excludes the true difference, 0."""
    a, b = (cube.side(method, cube.values) for method in (0, 1))
    totals, counts = cube.by_patient(a.values - b.values)
    estimate, error = ratios(totals, counts)
    both = np.isfinite(a.values)
    spread = training_spread(cube, a, cube.values, both) + training_spread(cube, b, cube.values, both)
    _, p, _ = crossed_intervals(estimate, error**2, np.full(len(estimate), PATIENTS), spread)
    return p <= 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=10_000, help="simulated studies for each figure")
    arguments = parse_cpu_arguments(parser)
    rows = []
    settings = [(own, (spread, spread)) for own in OWN for spread in SPREADS] + [(0.0, (0.2, 0.8))]
    for design, folds in DESIGNS.items():
        for seeds in (2, 3, 5):
            figures = []
            for own, spread in settings:
                random = np.random.default_rng(1)
                drawn = [
                    claimed(draw(random, BATCH, seeds, folds, spread, own)) for _ in range(arguments.studies // BATCH)
                ]
                figures.append(100 * float(np.mean(drawn)))
            rows.append({"design": design, "seeds": seeds, "claims": figures})
            print(rows[-1], flush=True)
    heads = [f"{own:g}, {' and '.join(f'{s:g}' for s in dict.fromkeys(spread))}" for own, spread in settings]
    write_report(
        "trainings",
        "How many of 100 studies of two equal methods claim a difference (5 of them should; 100 less that is the "
        "coverage of the 95 % interval). Columns: standard deviation between patients of the methods' difference, and "
        "between trainings, in points.",
        [
            f"| design | seeds a side | {' | '.join(heads)} |",
            f"| --- | ---: |{' ---: |' * len(heads)}",
            *(f"| {r['design']} | {r['seeds']} | {' | '.join(f'{c:.1f}' for c in r['claims'])} |" for r in rows),
        ],
        rows,
        arguments,
        [f"{arguments.studies} simulated studies for each figure, {PATIENTS} patients, residual {RESIDUAL} points"],
    )


if __name__ == "__main__":
    main()
