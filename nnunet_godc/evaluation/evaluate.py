"""From results to the report: what the command does, as one function."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import nnunet_godc
from nnunet_godc.atomic_write import atomic_write, atomic_write_all
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.case import METHOD, Options
from nnunet_godc.evaluation.costs import training_costs
from nnunet_godc.evaluation.intervals import RESAMPLES
from nnunet_godc.evaluation.lesions import LesionRule
from nnunet_godc.evaluation.measurement import Measured, measure
from nnunet_godc.evaluation.patients import read_patients
from nnunet_godc.evaluation.report import PAPER, Part, Report, check_baseline, check_resamples, make_report
from nnunet_godc.evaluation.results import Results, predicted_results, trainer_results
from nnunet_godc.evaluation.table import MODEL_COLUMNS, check_table, long_table, read_tables, write_table
from nnunet_godc.seeded_names import without_seed

Group = Literal["overlap", "surface", "lesions", "all"]

MEASUREMENTS = "measurements.csv"
RECORD = "evaluation.json"
REPORT = "report.md"
CACHE = "measured"
PACKAGES = ("nnunetv2", "numpy", "pandas", "scipy", "scikit-image", "SimpleITK")

# What labels of lesions are called in the data sets that nnU-Net is trained on.
LESION_WORDS = ("tumour", "tumor", "lesion", "cancer", "carcinoma", "metasta", "nodule", "neoplasm", "cyst")


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        measurements: the long table, as `nnunet_godc.evaluation.table` describes it.
        statistics: one row per method, label and metric.
        comparisons: one row per comparison, with the sentence that it allows.
        report: the report, in Markdown.
        parts: what it is made of.
        results: what was found in folders, in the order in which they were given.
        files: what was written.
        problems: what is missing or could not be measured, one sentence each.
        notes: what a reader of the numbers should know, one sentence each.
    """

    measurements: pd.DataFrame
    statistics: pd.DataFrame
    comparisons: pd.DataFrame
    report: str
    parts: Sequence[Part]
    results: Sequence[Results]
    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def lesion_labels(results: Sequence[Results], asked_for: Sequence[str] | None) -> tuple[str, ...]:
    """The labels whose lesions are matched.

    Args:
        asked_for: by name; None takes all labels whose names say that they are lesions.

    Raises:
        UserError: no dataset has a label of that name.
    """
    names = list(dict.fromkeys(name for result in results for name in result.labels.values))
    if asked_for is None:
        return tuple(name for name in names if any(word in name.lower() for word in LESION_WORDS))
    unknown = [name for name in asked_for if name not in names]
    if unknown:
        raise UserError(f"no dataset has a label {unknown[0]!r}; labels are {', '.join(names)}")
    return tuple(asked_for)


def evaluate(
    results: Sequence[Path | str] | pd.DataFrame = (),
    out: Path | str | None = None,
    *,
    predictions: Sequence[Path | str] = (),
    references: Path | str | None = None,
    dataset_json: Path | None = None,
    plans: Path | None = None,
    only_predicted: bool = False,
    patients: Path | None = None,
    metrics: Sequence[Group] = ("all",),
    nsd_tolerance_mm: float = 2.0,
    accept_headers: bool = False,
    lesions: Sequence[str] | None = None,
    lesion_rule: LesionRule = LesionRule(),  # noqa: B008 it cannot change
    lesion_bins_ml: Sequence[float] = (0.5, 2.0, 10.0),
    baseline: str | None = None,
    table: Sequence[str] = PAPER,
    resamples: int = RESAMPLES,
    seed: int = 0,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure predictions, or take what was measured, and say what can be said; `nnunet-godc evaluate` as a function.

    Example:
        >>> found = evaluate(["measurements.csv"], baseline="nnUNetTrainer")
        >>> found.comparisons.query("significant")[["trainer", "label", "metric", "difference", "low", "high"]]
        >>> print(found.report)

    Args:
        results: cross-validations, ``nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``; and long tables
            (CSV), several of which are joined; or the long table itself.
        out: folder for tables and report, made if it is not there; what was measured on images is kept below it. None
            writes nothing.
        predictions, references: folders of predictions, and that of their references, which serves `results` as well.
        dataset_json, plans: of the predictions, by default those beside them.
        only_predicted: references without a prediction are not a problem.
        patients: CSV ``case,patient``; by default what nnunet-godc convert has recorded.
        metrics: groups of metrics that are measured.
        nsd_tolerance_mm: of the NSD.
        accept_headers: measures voxel by voxel where only the headers of prediction and reference differ.
        lesions: labels whose lesions are matched, by default those whose names say so.
        lesion_rule: how lesions are told apart and matched.
        lesion_bins_ml: edges between the bins of lesion volumes, increasing.
        baseline: trainer without its seed, with which the others are compared; by default all with each other.
        table: metrics in the tables for people, by how their names begin.
        resamples, seed: of bootstrap and permutation test.
        workers: processes that measure; 0 measures in this one.
        progress: called with the number of cases on images that are done, and of those that there are.

    Raises:
        UserError: an option makes no sense, two results are of one trainer, plan and configuration, nothing could be
            measured, something cannot be read, or `out` cannot be written to.
    """
    check_options(nsd_tolerance_mm, lesion_rule, lesion_bins_ml, workers, resamples)
    frames, found = _given(results, predictions, references, dataset_json, plans, only_predicted)
    if baseline is not None:
        trainers = {result.trainer for result in found}.union(
            *(map(str, frame["trainer"].unique()) for frame in frames)
        )
        check_baseline(baseline, {without_seed(trainer) for trainer in trainers})

    new = _New()
    written: list[Path] = []
    target = None if out is None else Path(out)
    try:
        if found:
            options = _options(found, metrics, nsd_tolerance_mm, lesions, lesion_rule, accept_headers)
            new = _measure(found, options, patients, target, workers, progress)
            frames.append(new.frame)
            new.notes += _about_lesions(options, lesions, metrics)
            new.record = {**_how(options, lesion_bins_ml), **new.record}
        measurements = frames[0] if len(frames) == 1 else _joined(frames)
        if target is not None and found:  # what took long to measure stays, whatever the report says
            written = _write_measured(measurements, target, new.record)
        try:
            report = make_report(
                measurements,
                baseline=baseline,
                table=table,
                lesion_bins_ml=lesion_bins_ml,
                notes=new.notes,
                seed=seed,
                resamples=resamples,
            )
        except UserError as error:
            if not found:
                raise
            raise UserError(_not_reported(error, new.problems, target)) from error
        if target is not None:
            if not found and not isinstance(results, pd.DataFrame):
                written = _write_measured(measurements, target)
            written += _write_report(report, target)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"cannot write to {out}: {error.strerror}{where}; choose another folder with --out") from error
    return Evaluation(
        measurements,
        report.statistics,
        report.comparisons,
        report.files[REPORT],
        report.parts,
        found,
        files=written,
        problems=new.problems,
        notes=new.notes,
    )


def check_options(
    nsd_tolerance_mm: float, rule: LesionRule, bins: Sequence[float], workers: int, resamples: int
) -> None:
    """Raises:
    UserError: the value of an option makes no sense.
    """
    check_resamples(resamples)
    if workers < 0:
        raise UserError(f"-np {workers} is not a number of worker processes; give 0 or more")
    if not (math.isfinite(nsd_tolerance_mm) and nsd_tolerance_mm > 0):
        raise UserError(f"--nsd-tolerance {nsd_tolerance_mm:g} is not a distance; give millimetres above 0")
    if not 0 <= rule.minimum_iou <= 1:
        raise UserError(f"--lesion-iou {rule.minimum_iou:g} is not an IoU; give 0 to 1")
    if not 0 <= rule.minimum_ml < math.inf:
        raise UserError(f"--lesion-minimum {rule.minimum_ml:g} is not a volume; give millilitres, 0 or more")
    if rule.dilation < 0:
        raise UserError(f"--lesion-dilation {rule.dilation} is not a number of voxels; give 0 or more")
    edges = [0.0, *bins]
    if not all(low < high < math.inf for low, high in pairwise(edges)):
        raise UserError("--lesion-bins have to be volumes above 0 ml, each larger than the one before")


def _given(
    results: Sequence[Path | str] | pd.DataFrame,
    predictions: Sequence[Path | str],
    references: Path | str | None,
    dataset_json: Path | None,
    plans: Path | None,
    only_predicted: bool,
) -> tuple[list[pd.DataFrame], list[Results]]:
    """What was measured before, and what is to be measured now."""
    if isinstance(results, pd.DataFrame):
        check_table(results)
        return [results], []
    paths = [Path(path) for path in results]
    tables = [path for path in paths if path.is_file() or path.suffix == ".csv"]
    frames = [read_tables(tables)] if tables else []
    referred = None if references is None else Path(references)
    found = [trainer_results(path, referred) for path in paths if path not in tables]
    for folder in predictions:
        if referred is None:
            raise UserError("predictions need their references; give the folder of these")
        found.append(predicted_results(Path(folder), referred, dataset_json, plans, only_predicted=only_predicted))
    if not frames and not found:
        raise UserError("nothing to evaluate; give folders of results, tables, or predictions and references")
    _check_distinct(found)
    return frames, found


@dataclass
class _New:
    """What was measured on images, or counted by nnU-Net, in this run: the long table, and what is told of it."""

    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    record: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _measure(
    found: Sequence[Results],
    options: Options,
    patients: Path | None,
    target: Path | None,
    workers: int,
    progress: Callable[[int, int], None],
) -> _New:
    patient_of, about_patients = read_patients(found, patients)
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
    cache = None if target is None else target / CACHE
    measured = measure(found, options, cache=cache, workers=workers, progress=progress)
    if not any(cases for _, cases in measured.cases):
        raise UserError("no case could be measured" + "".join(f"\n  {text}" for text in measured.problems))
    costs = [training_costs(result.folder) for result in found]
    tolerance = options.nsd_tolerance_mm
    frame = long_table(measured.cases, measured.unmeasured, costs, patient_of, nsd_tolerance_mm=tolerance)
    notes = [note for result in found for note in result.notes] + [about_patients, _about_cases(measured)]
    record = {
        "patients": about_patients,
        "results": [_about(result, frame) for result in found],
        "cases": {"counted by nnU-Net": measured.counted, "measured": measured.read, "kept": measured.kept},
        "problems": measured.problems,
        "notes": notes,
    }
    return _New(frame, record, measured.problems, notes)


def _options(
    found: Sequence[Results],
    groups: Sequence[Group],
    nsd_tolerance_mm: float,
    lesions: Sequence[str] | None,
    rule: LesionRule,
    accept_headers: bool,
) -> Options:
    everything = "all" in groups
    return Options(
        surface=everything or "surface" in groups,
        nsd_tolerance_mm=nsd_tolerance_mm,
        lesions=lesion_labels(found, lesions) if everything or "lesions" in groups else (),
        rule=rule,
        accept_headers=accept_headers,
    )


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    text = frames[0].select_dtypes("category").columns
    joined = pd.concat([frame.astype(dict.fromkeys(text, "str")) for frame in frames], ignore_index=True)
    return joined.astype(dict.fromkeys(text, "category"))


def _write_measured(measurements: pd.DataFrame, out: Path, record: Mapping[str, Any] | None = None) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    write_table(measurements, out / MEASUREMENTS)
    if not record:
        return [out / MEASUREMENTS]
    with atomic_write(out / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [out / MEASUREMENTS, out / RECORD]


def _write_report(report: Report, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in report.files]
    with atomic_write_all(paths) as temporaries:
        for temporary, content in zip(temporaries, report.files.values(), strict=True):
            temporary.write_text(content, encoding="utf-8", newline="\n")
    return paths


def _check_distinct(results: Sequence[Results]) -> None:
    seen: dict[str, Results] = {}
    for result in results:
        if result.title in seen:
            raise UserError(
                f"{seen[result.title].folder} and {result.folder} are both of {result.title}; evaluate them apart"
            )
        seen[result.title] = result


def _how(options: Options, bins: Sequence[float]) -> dict[str, Any]:
    how: dict[str, Any] = {
        "versions": {
            "nnunet-godc": nnunet_godc.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "method": METHOD,
        "metrics": ["overlap"],
        "accept_headers": options.accept_headers,
    }
    if options.surface:
        how["metrics"].append("surface")
        how["surface"] = {"nsd_tolerance_mm": options.nsd_tolerance_mm, "hausdorff_percentile": 95}
    if options.lesions:
        how["metrics"].append("lesions")
        how["lesions"] = {
            "labels": list(options.lesions),
            **dataclasses.asdict(options.rule),
            "connectivity": "faces, edges and corners (26 in 3D, 8 in 2D)",
            "bins_ml": list(bins),
        }
    return how


def _about(result: Results, measurements: pd.DataFrame) -> dict[str, Any]:
    """Where the results are, and how many cases lack a label, by state."""
    own = measurements[measurements["metric"] == metrics.DICE]
    for column in MODEL_COLUMNS:
        own = own[own[column] == getattr(result, column)]
    counts = own.groupby(["label", "state"], observed=False).size()
    return {
        "folder": str(result.folder),
        **{column: getattr(result, column) for column in MODEL_COLUMNS},
        "states": {
            label: {state: int(counts.get((label, state), 0)) for state in metrics.STATES}
            for label in result.labels.values
        },
    }


def _about_lesions(options: Options, asked_for: Sequence[str] | None, groups: Sequence[Group]) -> list[str]:
    if options.lesions:
        chosen = "as asked for" if asked_for else "by their names"
        return [f"lesions: {', '.join(options.lesions)} ({chosen}), {options.rule}"]
    if {"lesions", "all"} & set(groups):
        return ["lesions: no label is called like one; --lesions names those that are"]
    return []


def _not_reported(error: UserError, problems: Sequence[str], target: Path | None) -> str:
    reported = "".join(f"\n  {text}" for text in problems)
    earlier = target is not None and (target / REPORT).exists()
    return f"measured, but not reported: {error}{reported}" + (
        "; the report that is there is of an earlier run" if earlier else ""
    )


def _about_cases(measured: Measured) -> str:
    parts = {
        "counted by nnU-Net (summary.json)": measured.counted,
        "measured on their images": measured.read,
        "measured on their images by an earlier run": measured.kept,
    }
    return "cases: " + ", ".join(f"{number} {what}" for what, number in parts.items() if number)
