"""From results to tables on disk: measurements.csv, lesions.csv, and evaluation.json, which says how they were made."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

import nnunet_godc
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.case import METHOD, Options
from nnunet_godc.evaluation.measurement import Measured, measure
from nnunet_godc.evaluation.patients import read_patients
from nnunet_godc.evaluation.results import Results
from nnunet_godc.evaluation.table import MODEL_COLUMNS, lesion_table, measurement_table, write_table
from nnunet_godc.replacing import replacing

MEASUREMENTS = "measurements.csv"
LESIONS = "lesions.csv"
RECORD = "evaluation.json"
CACHE = "measured"
PACKAGES = ("nnunetv2", "numpy", "pandas", "scipy", "scikit-image", "SimpleITK")

# What labels of lesions are called in the data sets that nnU-Net is trained on.
LESION_WORDS = ("tumour", "tumor", "lesion", "cancer", "carcinoma", "metasta", "nodule", "neoplasm", "cyst")


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        measurements, lesions: as `nnunet_godc.evaluation.table` describes them; lesions are None if none were matched.
        files: what was written.
        problems: what is missing or could not be measured, one sentence each.
        notes: what a reader of the numbers should know, one sentence each.
    """

    measurements: pd.DataFrame
    lesions: pd.DataFrame | None
    files: list[Path]
    problems: list[str]
    notes: list[str]


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
    results: Sequence[Results],
    out: Path,
    options: Options,
    *,
    lesion_bins_ml: Sequence[float] = (0.5, 2.0, 10.0),
    patients: Path | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure every case of `results` and write the tables.

    Args:
        out: folder for the tables; what was measured on images is kept below it.
        options: what is measured.
        lesion_bins_ml: edges between the bins of lesion volumes, increasing.
        patients: CSV ``case,patient``; by default what nnunet-godc convert has recorded.
        workers: processes; 0 measures in this one.
        progress: called with the number of cases on images that are done, and of those that there are.

    Raises:
        UserError: two results are of one trainer, plan and configuration; no case could be measured; the patients
            cannot be read; `out` cannot be written to.
    """
    _check_distinct(results)
    patient_of, about_patients = read_patients(results, patients)
    try:
        out.mkdir(parents=True, exist_ok=True)
        measured = measure(results, options, cache=out / CACHE, workers=workers, progress=progress)
        if not any(cases for _, cases in measured.cases):
            raise UserError("no case could be measured" + "".join(f"\n  {text}" for text in measured.problems))
        measurements = measurement_table(measured.cases, patient_of, nsd_tolerance_mm=options.nsd_tolerance_mm)
        write_table(measurements, out / MEASUREMENTS)
        lesions = None
        if options.lesions:
            bins = metrics.volume_bins(lesion_bins_ml)
            lesions = lesion_table(measured.cases, patient_of, bins=bins)
            write_table(lesions, out / LESIONS)
        else:
            (out / LESIONS).unlink(missing_ok=True)  # of an earlier run with other options
        notes = [note for result in results for note in result.notes]
        record = {
            **_how(options, lesion_bins_ml),
            "patients": about_patients,
            "results": [_about(result, measurements) for result in results],
            "cases": {"counted by nnU-Net": measured.counted, "measured": measured.read, "kept": measured.kept},
            "problems": measured.problems,
            "notes": notes,
        }
        with replacing(out / RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another folder with --out") from error
    return Evaluation(
        measurements,
        lesions,
        files=[out / MEASUREMENTS, *([out / LESIONS] if lesions is not None else []), out / RECORD],
        problems=measured.problems,
        notes=[*notes, about_patients, _about_cases(measured)],
    )


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
    }
    if options.surface:
        how["metrics"].append("surface")
        how["surface"] = {"nsd_tolerance_mm": options.nsd_tolerance_mm, "hausdorff_percentile": 95}
    if options.lesions:
        how["metrics"].append("lesions")
        how["lesions"] = {
            "labels": list(options.lesions),
            "minimum_iou": options.minimum_iou,
            "connectivity": "faces, edges and corners (26 in 3D, 8 in 2D)",
            "matching": "a predicted lesion belongs to the lesion of the reference with which it shares most voxels; "
            "all that belong to one are taken together",
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


def _about_cases(measured: Measured) -> str:
    parts = {
        "counted by nnU-Net (summary.json)": measured.counted,
        "measured on their images": measured.read,
        "measured on their images by an earlier run": measured.kept,
    }
    return "cases: " + ", ".join(f"{number} {what}" for what, number in parts.items() if number)
