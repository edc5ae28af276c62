"""The tables: one row per case, label and metric; one row per lesion. Writing them as CSV, and reading them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.case import CaseMeasures
from nnunet_godc.evaluation.results import Case, Results
from nnunet_godc.replacing import replacing

MODEL_COLUMNS = ("dataset", "configuration", "plans", "trainer")
MEASUREMENT_COLUMNS = (*MODEL_COLUMNS, "fold", "case", "patient", "label", "metric", "value", "state")
LESION_COLUMNS = (
    *(*MODEL_COLUMNS, "fold", "case", "patient", "label"),
    *("lesion", "volume_ml", "bin", "detected", "iou", "dice"),
)

Measured = Sequence[tuple[Case, CaseMeasures]]
Codes = NDArray[np.int32]


def measurement_table(
    measured: Iterable[tuple[Results, Measured]],
    patients: Mapping[tuple[str, str], str],
    *,
    nsd_tolerance_mm: float,
) -> pd.DataFrame:
    """Every metric of every label in every case.

    Args:
        measured: the cases of every trainer.
        patients: by dataset and case; a case that is not there is a patient of its own.
        nsd_tolerance_mm: at which NSD was measured.

    Returns:
        `MEASUREMENT_COLUMNS`; all text is categorical, `fold` a nullable integer, `value` NaN where the metric is not
        defined. What `state` says is told at `nnunet_godc.evaluation.metrics`.
    """
    rows = _Rows()
    for results, cases in measured:
        model = rows.model(results, cases, patients)
        for label in results.labels.values:
            _add_label(rows, model, label, cases, metrics.nsd(nsd_tolerance_mm))
    return rows.frame()


def lesion_table(
    measured: Iterable[tuple[Results, Measured]],
    patients: Mapping[tuple[str, str], str],
    *,
    bins: Mapping[str, tuple[float, float]],
) -> pd.DataFrame:
    """Every lesion of every reference, once for each trainer.

    Args:
        measured, patients: as for `measurement_table`.
        bins: of lesion volumes, as `metrics.volume_bins` gives them.

    Returns:
        `LESION_COLUMNS`; `lesion` numbers the lesions of a label in a case from 1.
    """
    rows = []
    for results, cases in measured:
        model = (results.dataset, results.configuration, results.plans, results.trainer)
        for case, measures in cases:
            patient = patients.get((results.dataset, case.name), case.name)
            for label, measure in measures.labels.items():
                for number, lesion in enumerate(measure.lesions.reference if measure.lesions else (), 1):
                    size = next((name for name, (low, high) in bins.items() if low <= lesion.volume_ml < high), "")
                    found = (lesion.volume_ml, size, lesion.detected, lesion.iou, lesion.dice)
                    rows.append((*model, case.fold, case.name, patient, label, number, *found))
    frame = pd.DataFrame(rows, columns=list(LESION_COLUMNS))
    return frame.astype({"fold": "Int64", "lesion": "int64", "detected": "bool"})


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; an undefined value is an empty field. Numbers come back as they were."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def read_measurements(path: Path) -> pd.DataFrame:
    """measurements.csv as `measurement_table` has made it.

    Raises:
        UserError: it cannot be read, or is no such table.
    """
    text = [column for column in MEASUREMENT_COLUMNS if column not in ("fold", "value")]
    types: dict[str, Any] = {"fold": "Int64", "value": "float64", **dict.fromkeys(text, "category")}
    return _read(path, MEASUREMENT_COLUMNS, types)


def read_lesions(path: Path) -> pd.DataFrame:
    """lesions.csv as `lesion_table` has made it.

    Raises:
        UserError: it cannot be read, or is no such table.
    """
    numbers = {"volume_ml": "float64", "iou": "float64", "dice": "float64", "lesion": "int64", "detected": "bool"}
    text = [column for column in LESION_COLUMNS if column not in numbers and column != "fold"]
    return _read(path, LESION_COLUMNS, {"fold": "Int64", **numbers, **dict.fromkeys(text, "str")})


def _read(path: Path, columns: Sequence[str], types: Mapping[str, Any]) -> pd.DataFrame:
    try:
        # A trainer or a case may be called NA: only numbers can be missing.
        missing = {column: [""] for column, kind in types.items() if kind in ("Int64", "float64")}
        frame = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); give a table that nnunet-godc evaluate has written"
        ) from None
    if list(frame.columns) != list(columns):
        raise UserError(f"{path} is no table of nnunet-godc evaluate: its columns have to be {', '.join(columns)}")
    return frame


def _add_label(rows: _Rows, model: _Model, label: str, cases: Measured, nsd: str) -> None:
    measures = [case.labels[label] for _, case in cases]
    counts = np.array([(m.true_positive, m.false_positive, m.false_negative) for m in measures], np.int64)
    tp, fp, fn = counts.reshape(-1, 3).T
    states = metrics.presence(tp, fp, fn)
    for metric, values in metrics.overlap_metrics(tp, fp, fn).items():
        rows.add(model, label, metric, np.arange(len(measures)), values, states)

    # What follows was measured on images, and not all cases of a trainer need have been.
    on_images = [(i, case.voxel_ml) for i, (_, case) in enumerate(cases) if case.voxel_ml is not None]
    if on_images:
        at, voxel_ml = np.array([i for i, _ in on_images]), np.array([volume for _, volume in on_images])
        absent = states[at] == metrics.STATES.index(metrics.ABSENT_IN_BOTH)
        rows.add(model, label, metrics.VOLUME_ERROR, at, np.where(absent, np.nan, (fp - fn)[at] * voxel_ml), states[at])
    surfaces = [(i, measure.surface) for i, measure in enumerate(measures) if measure.surface is not None]
    if surfaces:
        at = np.array([i for i, _ in surfaces])
        for metric, measured in {
            metrics.HD95: [surface.hd95 for _, surface in surfaces],
            metrics.ASSD: [surface.assd for _, surface in surfaces],
            nsd: [surface.nsd for _, surface in surfaces],
        }.items():
            rows.add(model, label, metric, at, measured, states[at])
    lesions = [(i, measure.lesions) for i, measure in enumerate(measures) if measure.lesions is not None]
    if lesions:
        at = np.array([i for i, _ in lesions])
        for metric, measured in {
            metrics.LESION_SENSITIVITY: [found.sensitivity for _, found in lesions],
            metrics.LESION_DICE: [found.dice for _, found in lesions],
            metrics.LESION_F1: [found.f1 for _, found in lesions],
        }.items():
            rows.add(model, label, metric, at, measured, states[at])
        false_positives = [found.false_positives for _, found in lesions]
        rows.add(model, label, metrics.FALSE_POSITIVE_LESIONS, at, false_positives, np.zeros(len(at)))  # "defined"


@dataclass(frozen=True)
class _Model:
    """A trainer's columns as codes: the first ones the same for all its rows, the others one for each of its cases."""

    fixed: Mapping[str, int]
    cases: Codes
    patients: Codes
    folds: Codes


class _Rows:
    """Columns that grow by blocks of one metric of one label. Text is held as codes: there may be millions of rows."""

    def __init__(self) -> None:
        text = [column for column in MEASUREMENT_COLUMNS if column not in ("fold", "value", "state")]
        self._codes: dict[str, dict[str, int]] = {column: {} for column in text}
        self._blocks: dict[str, list[Any]] = {column: [] for column in MEASUREMENT_COLUMNS}

    def model(self, results: Results, cases: Measured, patients: Mapping[tuple[str, str], str]) -> _Model:
        names = [case.name for case, _ in cases]
        return _Model(
            fixed={column: self._code(column, getattr(results, column)) for column in MODEL_COLUMNS},
            cases=np.array([self._code("case", name) for name in names], np.int32),
            patients=np.array(
                [self._code("patient", patients.get((results.dataset, name), name)) for name in names], np.int32
            ),
            folds=np.array([-1 if case.fold is None else case.fold for case, _ in cases], np.int32),
        )

    def add(self, model: _Model, label: str, metric: str, at: Any, values: Any, states: Any) -> None:
        """A metric of the cases `at` of a model, in their order."""
        fixed = {**model.fixed, "label": self._code("label", label), "metric": self._code("metric", metric)}
        for column, code in fixed.items():
            self._blocks[column].append(np.full(len(at), code, np.int32))
        self._blocks["case"].append(model.cases[at])
        self._blocks["patient"].append(model.patients[at])
        self._blocks["fold"].append(model.folds[at])
        self._blocks["value"].append(np.asarray(values, np.float64))
        self._blocks["state"].append(np.asarray(states, np.int8))

    def frame(self) -> pd.DataFrame:
        columns: dict[str, Any] = {}
        for column, blocks in self._blocks.items():
            array = np.concatenate(blocks) if blocks else np.empty(0, np.int32)
            if column == "value":
                columns[column] = array.astype(np.float64)
            elif column == "fold":
                columns[column] = pd.arrays.IntegerArray(array.astype(np.int64), array < 0)
            else:
                names = metrics.STATES if column == "state" else list(self._codes[column])
                columns[column] = pd.Categorical.from_codes(array, categories=pd.Index(names, dtype="str"))
        return pd.DataFrame(columns)

    def _code(self, column: str, name: str) -> int:
        codes = self._codes[column]
        return codes.setdefault(name, len(codes))
