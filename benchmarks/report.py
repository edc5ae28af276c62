"""The report of a large study: 15 trainers, five folds of 1,000 cases, two labels, six metrics; time and peak memory.

Measured in a process of its own each, with all pairs of trainers compared, and with a baseline.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_godc.evaluation.metrics import DICE, HD95, PRECISION, RECALL, RELATIVE_VOLUME_ERROR, STATES, nsd
from nnunet_godc.evaluation.report import make_report

TRAINERS, CASES = 15, 5000
LABELS = ("liver", "tumour")
METRICS = (DICE, PRECISION, RECALL, RELATIVE_VOLUME_ERROR, HD95, nsd(2))


def draw_measurements() -> pd.DataFrame:
    """A tenth of the cases has no tumour, and of the others every trainer misses some."""
    random = np.random.default_rng(0)
    shape = (TRAINERS, CASES, len(LABELS), len(METRICS))
    logits = random.normal(1.5, 1, (1, CASES, len(LABELS), 1)) + random.normal(0, 0.3, shape)
    values = 1 / (1 + np.exp(-logits))
    states = np.zeros(shape, dtype=np.int8)
    values[:, : 100 * CASES // 1000, 1] = np.nan
    states[:, : 100 * CASES // 1000, 1] = STATES.index("absent in both")
    missed = (random.random((TRAINERS, CASES)) < 0.03) & (states[:, :, 1, 0] == 0)
    for metric in (PRECISION, HD95):
        values[:, :, 1, METRICS.index(metric)][missed] = np.nan
    states[:, :, 1][missed] = STATES.index("absent in prediction")

    trainer, case, label, metric = (index.ravel() for index in np.indices(shape, dtype=np.int32))
    cases = pd.Categorical.from_codes(case, [f"case_{number:04d}" for number in range(CASES)])
    once = np.zeros(values.size, dtype=np.int8)
    return pd.DataFrame(
        {
            "dataset": pd.Categorical.from_codes(once, ["Dataset501_LiTS"]),
            "configuration": pd.Categorical.from_codes(once, ["3d_fullres"]),
            "plans": pd.Categorical.from_codes(once, ["nnUNetPlans"]),
            "trainer": pd.Categorical.from_codes(trainer, [f"nnUNetTrainer{number}" for number in range(TRAINERS)]),
            "fold": pd.array(case % 5, dtype="Int64"),
            "seed": pd.array([None] * values.size, dtype="Int64"),
            "case": cases,
            "patient": cases,
            "label": pd.Categorical.from_codes(label, LABELS),
            "metric": pd.Categorical.from_codes(metric, METRICS),
            "value": values.ravel(),
            "state": pd.Categorical.from_codes(states.ravel(), STATES),
            "lesion": pd.array([None] * values.size, dtype="Int64"),
            "volume_ml": np.nan,
        }
    )


def measure(baseline: str | None) -> dict[str, object]:
    """One report in this process."""
    measurements = draw_measurements()
    wall, cpu = time.perf_counter(), time.process_time()
    comparisons = len(make_report(measurements, baseline=baseline).comparisons)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "compared": "with a baseline" if baseline else "all pairs",
        "rows": len(measurements),
        "comparisons": comparisons,
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # the process that is measured
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.baseline)))
        return

    from _measure import load
    from _measure import write_report as write_results  # here, since the measured processes need no torch

    arguments.device, arguments.load = "cpu", load()
    rows = []
    for options in ([], ["--baseline", "nnUNetTrainer0"]):
        command = [sys.executable, __file__, "--alone", *options]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
    write_results(
        "report",
        __doc__.splitlines()[0],
        [
            "| comparisons | rows | time | CPU time | peak memory of the process |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(
                f"| {row['comparisons']} ({row['compared']}) | {row['rows']} | {row['wall_s']:.1f} s "
                f"| {row['cpu_s']:.1f} s | {row['peak_memory_mib']:.0f} MiB |"
                for row in rows
            ),
        ],
        rows,
        arguments,
        ["10,000 resamples; the threads of NumPy's BLAS as they are by default"],
    )


if __name__ == "__main__":
    main()
