"""Tables and pictures of an evidence study, from the tables that `collect.py` wrote.

    python benchmarks/evidence/analyse.py docs/evidence/lung-nodules

Writes `results.md`, `dice-by-volume.png` and `training-curves.png` beside them. Methods are compared on the same folds
and seeds, those with fewer trainings apart; seeds are averaged case by case. Intervals are over patients, so they speak
of these trainings on other patients (docs/statistics.md); claims are `nnunet-godc evaluate`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from scipy import stats

from nnunet_godc.evaluation.intervals import mean_intervals

matplotlib.use("agg")
from matplotlib import pyplot as plt

PREFIX = "nnUNetTrainerEvidence"
# the upper end of each size: volumes of spheres of 6, 10 and 20 mm
SIZES = {"< 6 mm": 113.0, "6-10 mm": 524.0, "10-20 mm": 4189.0, "> 20 mm": np.inf}
BASELINES = ("SampleDice", "BatchDice")
PRIMARY = (*BASELINES, "GODC")
# Question 4: the network stands on the left; what it is to be compared with, on the right.
ALIGNMENT = (("LFAM", "BatchDice"), ("LFAMFrozen", "BatchDice"), ("LFAM", "LFAMFrozen"))
FOUND_IOU = 0.1
COLOURS = ("#000000", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#56B4E9", "#D55E00", "#999999")  # Okabe and Ito
STYLES = ("-", "--", "-.", ":")
CASE = ["seed", "fold", "case"]


def read(folder: Path, name: str) -> pd.DataFrame:
    table = pd.read_csv(folder / name)
    table["method"] = table["trainer"].str.removeprefix(PREFIX)
    table["seed"] = table["seed"].fillna(-1).astype(int)
    return table


def measured(cases: pd.DataFrame) -> pd.DataFrame:
    tp, fp, fn = cases["true_positive"], cases["false_positive"], cases["false_negative"]
    cases = cases.assign(
        dice=2 * tp / (2 * tp + fp + fn),
        precision=tp / (tp + fp).replace(0, np.nan),
        recall=tp / (tp + fn),
        found=(tp / (tp + fp + fn) >= FOUND_IOU).astype(float),
    )
    edges = [0.0, *SIZES.values()]
    cases["size"] = pd.cut(cases["reference_mm3"], edges, labels=list(SIZES), right=False)
    return cases


def trainings_of(cases: pd.DataFrame) -> dict[str, set[tuple[int, int]]]:
    """Seeds and folds of each method."""
    pairs = cases[["method", "seed", "fold"]].drop_duplicates()
    return {method: {*zip(own["seed"], own["fold"], strict=True)} for method, own in pairs.groupby("method")}


def complete(cases: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The trainings that all of `PRIMARY` have, of each method that has them, too; and the methods that do not."""
    trainings = trainings_of(cases)
    shared = set.intersection(*(trainings[method] for method in PRIMARY))
    fewer = [method for method in ordered(cases) if not trainings[method] >= shared]
    return within(cases[~cases["method"].isin(fewer)], shared), fewer


def within(cases: pd.DataFrame, trainings: set[tuple[int, int]]) -> pd.DataFrame:
    return cases[[pair in trainings for pair in zip(cases["seed"], cases["fold"], strict=True)]]


def over_patients(values: pd.Series, patients: pd.Series, digits: int = 1) -> str:
    """Mean in per cent with its interval; values and the patient of each."""
    defined = values.notna()
    grouped = values[defined].groupby(patients[defined])
    totals, counts = (np.asarray(column, dtype=float)[:, None] for column in (grouped.sum(), grouped.count()))
    interval = mean_intervals(totals, counts)
    mean, low, high = (100 * float(end[0]) for end in (interval.estimate, interval.low, interval.high))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def averaged(cases: pd.DataFrame, method: str) -> pd.DataFrame:
    """Each case once, its seeds averaged."""
    own = cases[cases["method"] == method]
    by_case = own.groupby("case").agg(
        {"patient": "first", "size": "first", "reference_mm3": "first"}
        | dict.fromkeys(("dice", "precision", "recall", "found"), "mean")
    )
    return by_case.sort_index()


def pooled_dice(cases: pd.DataFrame, method: str) -> float:
    own = cases[cases["method"] == method]
    tp, wrong = own["true_positive"].sum(), own["false_positive"].sum() + own["false_negative"].sum()
    return float(200 * tp / (2 * tp + wrong))


def table(rows: list[list[str]], header: list[str]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "| --- |" + " ---: |" * (len(header) - 1)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def results(cases: pd.DataFrame, epochs: pd.DataFrame) -> Iterator[str]:
    compared, fewer = complete(cases)
    methods = ordered(compared)
    of = {method: averaged(compared, method) for method in methods}
    first = of[methods[0]]
    trainings = trainings_of(cases)
    yield "# Results so far"
    yield ""
    yield "Made by `benchmarks/evidence/analyse.py`; what is asked stands in the [protocol](../protocol.md)."
    yield ""
    yield "Trainings: " + ", ".join(f"{method} {len(trainings[method])}" for method in ordered(cases)) + "."
    count = len(trainings_of(compared)[methods[0]])
    yield f"Tables: {len(first)} nodules of {first['patient'].nunique()} patients, {count} trainings of each method. In"
    yield "brackets: 95 % intervals over patients, for these trainings; what a new training would change is in none of"
    yield "them, but in the table by fold."
    yield ""
    yield "## Each method"
    yield ""
    yield "Per cent; mean over nodules. Found: IoU of at least 0.1. Pooled: Dice of all voxels together."
    yield ""
    rows = []
    for method in methods:
        own = of[method]
        columns = [over_patients(own[name], own["patient"]) for name in ("dice", "precision", "recall", "found")]
        rows.append([method, *columns, f"{pooled_dice(compared, method):.1f}"])
    yield from table(rows, ["", "Dice", "precision", "recall", "found", "pooled Dice"])
    yield "## Dice by size"
    yield ""
    rows = [
        [method, *(over_patients(part["dice"], part["patient"]) for part in by_size(of[method]))] for method in methods
    ]
    sizes = [f"{size} ({len(part)})" for size, part in zip(SIZES, by_size(first), strict=True)]
    yield from table(rows, ["", *sizes])
    for baseline in (name for name in BASELINES if name in methods):
        yield f"## Difference of the Dice from {baseline}, points"
        yield ""
        rows = [[name, *differences(of[name], of[baseline])] for name in methods if name != baseline]
        yield from table(rows, ["", "all", *SIZES])
    yield from by_fold(compared, methods)
    if fewer:
        yield f"## Methods with fewer trainings: difference from {methods[0]} on the same ones, points"
        yield ""
        rows = []
        for method in fewer:
            part = within(cases, trainings[method] & trainings[methods[0]])
            own, baseline = averaged(part, method), averaged(part, methods[0])
            rows.append([f"{method} ({len(trainings[method])} trainings)", *differences(own, baseline)])
        yield from table(rows, ["", "all", *SIZES])
    yield from alignment(cases)
    yield from yardstick(cases)
    yield from convergence(epochs, methods)


def differences(of: pd.DataFrame, baseline: pd.DataFrame) -> list[str]:
    """Of all cases, then by size."""
    both = of.assign(difference=of["dice"] - baseline["dice"])
    return [over_patients(part["difference"], part["patient"], 2) for part in (both, *by_size(both))]


def by_size(cases: pd.DataFrame) -> Iterator[pd.DataFrame]:
    return (cases[cases["size"] == size] for size in SIZES)


def by_fold(cases: pd.DataFrame, methods: list[str]) -> Iterator[str]:
    """Every fold is a training of its own, so their differences show what trainings add to chance."""
    yield "## Difference of the Dice in each fold, points"
    yield ""
    yield "Mean over folds with Student's interval, as if folds were independent; they share training cases, so that it"
    yield "is too narrow rather than too wide."
    yield ""
    means = cases.groupby(["method", "fold"])["dice"].mean().unstack()
    rows = []
    for baseline in (name for name in BASELINES if name in methods):
        for method in (name for name in methods if name not in BASELINES[: BASELINES.index(baseline) + 1]):
            values = 100 * (means.loc[method] - means.loc[baseline]).to_numpy()
            rows.append([f"{method} - {baseline}", *(f"{value:+.2f}" for value in values), student(values)])
    yield from table(rows, ["", *(f"fold {fold}" for fold in means.columns), "mean"])


def alignment(cases: pd.DataFrame) -> Iterator[str]:
    """LFAM, and its control, on the trainings that both sides of a comparison have."""
    trainings = trainings_of(cases)
    there = [pair for pair in ALIGNMENT if all(method in trainings for method in pair)]
    if not there:
        return
    yield "## LFAM: difference of the Dice on the trainings that both have, points"
    yield ""
    yield "All have batch Dice and cross-entropy; LFAMFrozen is LFAM whose offsets stay zero. Mean over folds as above."
    yield ""
    sizes, folds = [], []
    for method, against in there:
        shared = trainings[method] & trainings[against]
        part = within(cases, shared)
        name = f"{method} - {against} ({len(shared)} trainings)"
        sizes.append([name, *differences(averaged(part, method), averaged(part, against))])
        means = part.groupby(["method", "fold"])["dice"].mean().unstack()
        values = (100 * (means.loc[method] - means.loc[against])).dropna()
        each = [f"{values[fold]:+.2f}" if fold in values else "" for fold in range(5)]
        folds.append([name, *each, student(values.to_numpy())])
    yield from table(sizes, ["", "all", *SIZES])
    yield from table(folds, ["", *(f"fold {fold}" for fold in range(5)), "mean"])


def student(values: np.ndarray) -> str:
    """The mean with Student's interval, where there are two values or more."""
    if len(values) < 2:
        return f"{values.mean():.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.2f} [{values.mean() - half:.2f}, {values.mean() + half:.2f}]"


def yardstick(cases: pd.DataFrame) -> Iterator[str]:
    """How far two trainings of one method lie apart that differ in their seed alone."""
    yield "## The yardstick: two seeds of one method"
    yield ""
    rows = []
    for method in ordered(cases):
        means = cases[cases["method"] == method].groupby(["fold", "seed"])["dice"].mean().unstack()
        if means.shape[1] > 1:
            spread = means.std(axis=1, ddof=1).dropna()
            if len(spread):
                pooled = 100 * float(np.sqrt((spread**2).mean()))
                rows.append([method, str(len(spread)), f"{pooled:.2f}"])
    if rows:
        yield "Standard deviation between seeds of a fold's mean Dice, points."
        yield ""
        yield from table(rows, ["", "folds", "standard deviation"])
    else:
        yield "No method has two seeds of one fold yet, so nothing above can be told from chance of training."
        yield ""


def convergence(epochs: pd.DataFrame, methods: list[str]) -> Iterator[str]:
    yield "## Steps until the pseudo Dice is near its end"
    yield ""
    yield "First of three consecutive epochs whose mean reaches that share of the mean of the last three; mean over "
    yield "trainings [smallest, largest], in epochs of 50 steps. Seconds: median of an epoch, beside other work."
    yield ""
    rows = []
    for method in methods:
        own = epochs[epochs["method"] == method]
        runs = [run.sort_values("epoch") for _, run in own.groupby(["seed", "fold"])]
        columns = []
        for share in (0.9, 0.95):
            reached = [epochs_until(run["pseudo_dice"].to_numpy(), share) for run in runs]
            columns.append(f"{np.mean(reached):.1f} [{min(reached)}, {max(reached)}]")
        final = np.mean([run["pseudo_dice"].to_numpy()[-3:].mean() for run in runs])
        rows.append([method, f"{100 * final:.1f}", *columns, f"{own['seconds'].median():.0f}"])
    yield from table(rows, ["", "final pseudo Dice", "90 %", "95 %", "seconds"])


def epochs_until(dice: np.ndarray, share: float) -> int:
    smooth = np.convolve(dice, np.ones(3) / 3, mode="valid")
    return int(np.argmax(smooth >= share * smooth[-1])) + 1


def ordered(cases: pd.DataFrame) -> list[str]:
    methods = list(cases["method"].unique())
    return sorted(methods, key=lambda name: (BASELINES.index(name) if name in BASELINES else len(BASELINES), name))


def draw_by_volume(cases: pd.DataFrame, path: Path) -> None:
    """Dice against volume: a mean over a Gaussian of a fifth of a decade, and its difference from sample Dice."""
    compared, _ = complete(cases)
    methods = ordered(compared)
    of = {method: averaged(compared, method) for method in methods}
    grid = np.linspace(np.log10(20), np.log10(8000), 120)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for method, colour, style in zip(methods, COLOURS, STYLES * 2, strict=False):
        own = of[method]
        axes[0].plot(
            10**grid, 100 * smoothed(own["reference_mm3"], own["dice"], grid), style, color=colour, label=method
        )
        if method != BASELINES[0]:
            difference = own["dice"] - of[BASELINES[0]]["dice"]
            axes[1].plot(10**grid, 100 * smoothed(own["reference_mm3"], difference, grid), style, color=colour)
    axes[0].set(ylabel="Dice, %", title="Dice by volume of the nodule")
    axes[0].legend(frameon=False)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[1].set(ylabel="difference, points", title=f"Difference from {BASELINES[0]}")
    for axis in axes:
        axis.set(xscale="log", xlabel="volume, mm³")
        for edge in list(SIZES.values())[:-1]:
            axis.axvline(edge, color="0.85", linewidth=0.8, zorder=0)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def smoothed(volume: pd.Series, values: pd.Series, grid: np.ndarray, width: float = 0.2) -> np.ndarray:
    weight = np.exp(-0.5 * ((grid[:, None] - np.log10(volume.to_numpy())) / width) ** 2)
    return np.asarray(weight @ values.to_numpy() / weight.sum(axis=1))


def draw_curves(epochs: pd.DataFrame, path: Path) -> None:
    """Pseudo Dice against steps: each training thin, each method's mean thick."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    compared, _ = complete(epochs)
    for method, colour, style in zip(ordered(compared), COLOURS, STYLES * 2, strict=False):
        own = epochs[epochs["method"] == method]
        for _, run in own.groupby(["seed", "fold"]):
            axis.plot(50 * (run["epoch"] + 1), 100 * run["pseudo_dice"], style, color=colour, alpha=0.25, linewidth=0.7)
        mean = own.groupby("epoch")["pseudo_dice"].mean()
        axis.plot(50 * (mean.index + 1), 100 * mean, style, color=colour, label=method)
    axis.set(xlabel="steps", ylabel="pseudo Dice, %", title="Validation patches during training")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    cases, epochs = measured(read(folder, "cases.csv.gz")), read(folder, "epochs.csv.gz")
    (folder / "results.md").write_text("\n".join(results(cases, epochs)), encoding="utf-8")
    draw_by_volume(cases, folder / "dice-by-volume.png")
    draw_curves(epochs, folder / "training-curves.png")


if __name__ == "__main__":
    main()
