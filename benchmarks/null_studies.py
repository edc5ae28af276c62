"""How often a report claims a difference between two methods that do not differ, by the number of its questions.

P-values are corrected over pairs of methods, not over labels and metrics: over many questions, claims by chance are the
rule, and reports say so. This says how often.
"""

from __future__ import annotations

import argparse

import numpy as np
from _measure import parse_cpu_arguments, write_report

from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.cube import Cube, Endpoint, Method
from nnunet_godc.evaluation.inference import compare_methods

METRICS = (
    *(metrics.DICE, metrics.IOU, metrics.PRECISION, metrics.RECALL, metrics.RELATIVE_VOLUME_ERROR),
    *(metrics.VOLUME_ERROR, metrics.HD95, metrics.ASSD, metrics.nsd(2), metrics.LESION_SENSITIVITY),
    *(metrics.LESION_DICE, metrics.LESION_F1, metrics.FALSE_POSITIVE_LESIONS),
)
ASKED = ((1, 1), (2, 1), (1, 13), (2, 13))  # labels and metrics
PATIENTS = 60
RESAMPLES = 1000
CORRELATION = 0.6  # of the differences of two metrics of one label


def draw_study(random: np.random.Generator, labels: int, asked: int) -> Cube:
    """Two methods whose differences are normal around 0, one case for each patient."""
    shape = (PATIENTS, labels, asked)
    shared, own = random.normal(size=(PATIENTS, labels, 1)), random.normal(size=shape)
    differences = 0.02 * (CORRELATION**0.5 * shared + (1 - CORRELATION) ** 0.5 * own)
    first = random.uniform(0.5, 0.7, shape)
    values = np.stack([first, first + differences]).reshape(2, PATIENTS, -1)
    return Cube(
        dataset="Dataset501_LiTS",
        cross_validated=True,
        methods=(Method("3d_fullres", "nnUNetPlans", "A"), Method("3d_fullres", "nnUNetPlans", "B")),
        endpoints=tuple(Endpoint(f"label {label}", metric) for label in range(labels) for metric in METRICS[:asked]),
        label_columns=(),
        patients=tuple(f"patient {number}" for number in range(PATIENTS)),
        cases=tuple(map(str, range(PATIENTS))),
        first_case=np.arange(PATIENTS),
        trainings=((0,), (1,)),
        seeds=(-1, -1),
        values=values,
        states=np.zeros(values.shape, np.uint8),
        fold_of=np.zeros((2, PATIENTS), np.int64),
    )


def claims(table: Cube, seed: int) -> int:
    """Differences that the report of a study claims."""
    compared = compare_methods(table, baseline="A", resamples=RESAMPLES, seed=seed)
    return sum(comparison.significant for comparison in compared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies for each figure")
    arguments = parse_cpu_arguments(parser)

    rows = []
    for labels, asked in ASKED:
        random = np.random.default_rng(1)
        claimed = [claims(draw_study(random, labels, asked), number) for number in range(arguments.studies)]
        rows.append(
            {
                "labels": labels,
                "metrics": asked,
                "studies with a claim, %": 100 * float(np.mean([number > 0 for number in claimed])),
                "claims of 100 questions": 100 * float(np.mean(claimed)) / (labels * asked),
            }
        )
        print(rows[-1], flush=True)
    names = list(rows[0])
    write_report(
        "null_studies",
        "Studies of two methods that do not differ: in how many of 100 the report claims at least one difference, and "
        "how many of 100 questions are answered with one.",
        [
            f"| {' | '.join(names)} |",
            f"|{' ---: |' * len(names)}",
            *(f"| {row['labels']} | {row['metrics']} | {row[names[2]]:.1f} | {row[names[3]]:.1f} |" for row in rows),
        ],
        rows,
        arguments,
        [
            f"{arguments.studies} simulated studies for each row, {PATIENTS} patients, {RESAMPLES} resamples",
            f"differences are normal and correlate with {CORRELATION:g} within a label",
        ],
    )


if __name__ == "__main__":
    main()
