"""The long table, from measurement to report: its columns, writing it as CSV, reading it back, joining several.

One row per case, label and metric of every training. Rows are also about less, or more, than that; what a row is not
about is empty there:

- a case that could not be measured (no label and metric; `state` says why),
- a case as a whole (no label), as how far its headers differ,
- a training (no case), as the seconds of an epoch,
- a lesion of the reference (`lesion` numbers those of a label in a case from 1, `volume_ml` is its volume).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.case import CaseMeasures
from nnunet_godc.evaluation.costs import Cost
from nnunet_godc.evaluation.results import Case, Results
from nnunet_godc.seeded_names import seed_of

MODEL_COLUMNS = ("dataset", "configuration", "plans", "trainer")
COLUMNS = (
    *(*MODEL_COLUMNS, "fold", "seed", "case", "patient", "label", "metric", "value", "state"),
    *("lesion", "volume_ml"),
)
WHOLE, REAL = ("fold", "seed", "lesion"), ("value", "volume_ml")
TEXT = tuple(column for column in COLUMNS if column not in (*WHOLE, *REAL))
ALL_STATES = (*metrics.STATES, *metrics.UNMEASURED)
LATER = ("seed", "lesion", "volume_ml")  # columns that tables of version 0.1.0 lack
_LESIONS_OF_0_1_0 = {"detected": metrics.LESION_SENSITIVITY, "iou": metrics.LESION_IOU, "dice": metrics.LESION_DICE}

_OF_LESIONS = {
    metrics.LESION_SENSITIVITY: "sensitivity",
    metrics.LESION_DICE: "dice",
    metrics.LESION_F1: "f1",
    metrics.FALSE_POSITIVE_LESIONS: "false_positives",
}

Measured = Sequence[tuple[Case, CaseMeasures]]
Codes = NDArray[np.int32]


def long_table(
    measured: Sequence[tuple[Results, Measured]],
    unmeasured: Sequence[Sequence[tuple[Case, str]]],
    costs: Sequence[Sequence[Cost]],
    patients: Mapping[tuple[str, str], str],
    *,
    nsd_tolerance_mm: float,
) -> pd.DataFrame:
    """Everything that was measured.

    Args:
        measured: the cases of every trainer.
        unmeasured: those that could not be measured on their images, with one of `metrics.UNMEASURED`.
        costs: what its trainings took.
        patients: by dataset and case; a case that is not there is a patient of its own.
        nsd_tolerance_mm: at which NSD was measured.

    Returns:
        `COLUMNS`; text is categorical, `fold`, `seed` and `lesion` are nullable integers, `value` is NaN where the
        metric is not defined. What `state` says is told at `nnunet_godc.evaluation.metrics`.
    """
    rows = _Rows()
    for (results, cases), refused, spent in zip(measured, unmeasured, costs, strict=True):
        model = rows.model(results, [case for case, _ in cases], patients)
        for label in results.labels.values:
            _add_label(rows, model, label, cases, metrics.nsd(nsd_tolerance_mm))
        for label in results.labels.values:
            _add_lesions(rows, model, label, cases)
        apart = np.array([measures.headers_differ_mm for _, measures in cases])
        if (at := np.flatnonzero(apart > 0)).size:
            rows.add(model, "", metrics.HEADERS_DIFFER, at, apart[at], np.zeros(len(at)))
        if refused:
            missing = rows.model(results, [case for case, _ in refused], patients)
            states = [ALL_STATES.index(state) for _, state in refused]
            rows.add(missing, "", "", np.arange(len(refused)), np.full(len(refused), np.nan), states)
        for cost in spent:
            training = rows.model(results, [Case("", cost.fold, results.folder, results.folder, "")], {})
            rows.add(training, "", cost.metric, np.zeros(1, int), [cost.value], [0])
    return rows.frame()


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; an undefined value is an empty field. Numbers come back as they were."""
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def read_tables(paths: Sequence[Path]) -> pd.DataFrame:
    """Tables that nnunet-godc evaluate has written, joined.

    Tables of version 0.1.0 are read, too: their measurements.csv lacks the columns `LATER` (the seed follows from the
    trainer's name), and their lesions.csv, one row per lesion, is turned into rows of the long table.

    Raises:
        UserError: one cannot be read, or is no such table; its entries are missing or contradict each other.
    """
    frames = [_read(path) for path in paths]
    for path, own in zip(paths, frames, strict=True):
        if not own.empty:  # without a lesion, lesions.csv of version 0.1.0 is empty
            check_table(own, path)
    frame = frames[0] if len(frames) == 1 else pd.concat([part.astype(dict.fromkeys(TEXT, "str")) for part in frames])
    if frame.empty:
        raise UserError(f"{paths[0]} holds no measurements; evaluate at least one case first")
    return frame.astype(dict.fromkeys(TEXT, "category")).reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    types: dict[str, Any] = {
        **dict.fromkeys(TEXT, "str"),
        **dict.fromkeys(WHOLE, "Int64"),
        **dict.fromkeys(REAL, float),
    }
    types |= {"iou": float, "dice": float, "detected": "bool", "bin": "str"}
    try:
        # A trainer or a case may be called NA: only numbers can be missing.
        missing = {column: [""] for column in (*WHOLE, *REAL)}
        frame = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
        if set(_LESIONS_OF_0_1_0) <= set(frame.columns):
            frame = _lesions_of_0_1_0(frame)
    except (OSError, ValueError, TypeError) as error:  # TypeError: a fraction where whole numbers belong
        reason = _no_number(path) or " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read ({reason}); give a table that nnunet-godc evaluate has written"
        ) from None
    lacking = [column for column in COLUMNS if column not in frame.columns and column not in LATER]
    if lacking:
        raise UserError(f"{path} is not a table of nnunet-godc evaluate: it lacks the column {lacking[0]}")
    if "seed" not in frame.columns:
        frame["seed"] = frame["trainer"].map({trainer: seed_of(trainer) for trainer in frame["trainer"].unique()})
    return frame.reindex(columns=list(COLUMNS)).astype({**dict.fromkeys(WHOLE, "Int64"), **dict.fromkeys(REAL, float)})


def _no_number(path: Path) -> str:
    """The first entry that is text where a number belongs, and where it is; "" if it is not that."""
    try:
        text = pd.read_csv(path, dtype="str", keep_default_na=False)
    except (OSError, ValueError):
        return ""
    for column in (*WHOLE, *REAL):
        if column in text:
            numbers = pd.to_numeric(text[column], errors="coerce")
            wrong = numbers.isna() | ((numbers % 1 != 0) if column in WHOLE else False)
            if len(at := np.flatnonzero(wrong & (text[column] != ""))):
                kind = "whole number" if column in WHOLE else "number"
                return f"line {at[0] + 2}: {text[column].iloc[at[0]]!r} in the column {column} is not a {kind}"
    return ""


def _lesions_of_0_1_0(lesions: pd.DataFrame) -> pd.DataFrame:
    about = [*MODEL_COLUMNS, "fold", "case", "patient", "label", "lesion", "volume_ml"]
    parts = [
        lesions[about].assign(metric=metric, value=lesions[column].astype(float), state=metrics.DEFINED)
        for column, metric in _LESIONS_OF_0_1_0.items()
    ]
    return pd.concat(parts, ignore_index=True)


def check_table(measurements: pd.DataFrame, path: Path | None = None) -> None:
    """Refuse a table that cannot be right.

    Args:
        path: of the file that it was read from, whose lines are told.

    Raises:
        UserError: columns or entries are missing, or contradict each other.
    """
    missing = [name for name in COLUMNS if name not in measurements.columns]
    if missing:
        raise UserError(f"the measurements lack the column {missing[0]}; write them with nnunet-godc evaluate")
    if measurements.empty:
        raise UserError("there are no measurements; evaluate at least one case first")
    text = {name: measurements[name].astype("category") for name in TEXT}

    def first(wrong: Any) -> tuple[str, pd.Series[Any]] | None:
        at = np.flatnonzero(wrong)
        if not len(at):
            return None
        where = f"row {at[0]} of the measurements" if path is None else f"{path}, line {at[0] + 2}"
        return where, measurements.iloc[at[0]]

    if found := first(~text["state"].isin(ALL_STATES)):
        where, row = found
        raise UserError(f"{where}: {row['state']!r} is not a state of a measurement; known are {', '.join(ALL_STATES)}")
    needed = {"dataset": True, "trainer": True, "patient": text["case"] != "", "metric": text["label"] != ""}
    for name, there in needed.items():
        if found := first((text[name].isna() | (text[name] == "")) & there):
            raise UserError(f"{found[0]}: there is no {name}; fill it in, or leave the row out")
    values = measurements["value"].to_numpy(dtype=np.float64)
    if found := first(np.isinf(values) | (np.isnan(values) & (text["state"] == metrics.DEFINED).to_numpy())):
        where, row = found
        raise UserError(
            f"{where}: {row['metric']} of {row['label']} in {row['case']} is {row['value']}; write a finite number, or "
            "into the column state why it is not defined"
        )
    if found := first(text["state"].isin(metrics.UNMEASURED) & (text["label"] != "")):
        raise UserError(f"{found[0]}: a case that was not measured has no label and no metric; leave both empty")
    volumes = measurements["volume_ml"].to_numpy(dtype=np.float64)
    if found := first(measurements["lesion"].notna().to_numpy() & ~((volumes >= 0) & np.isfinite(volumes))):
        raise UserError(f"{found[0]}: a lesion has the volume_ml {found[1]['volume_ml']}; write 0 or more")


def _add_label(rows: _Rows, model: _Model, label: str, cases: Measured, nsd: str) -> None:
    measures = [case.labels[label] for _, case in cases]
    counts = np.array([(m.true_positive, m.false_positive, m.false_negative) for m in measures], np.int64)
    tp, fp, fn = counts.reshape(-1, 3).T
    states = metrics.presence(tp, fp, fn)
    for metric, values in metrics.overlap_metrics(tp, fp, fn).items():
        rows.add(model, label, metric, np.arange(len(measures)), values, states)

    # What follows was measured on images, and not all cases of a trainer need have been.
    on_images = [(index, case.voxel_ml) for index, (_, case) in enumerate(cases) if case.voxel_ml is not None]
    if on_images:
        at, voxel_ml = np.array([index for index, _ in on_images]), np.array([volume for _, volume in on_images])
        absent = states[at] == metrics.STATES.index(metrics.ABSENT_IN_BOTH)
        rows.add(model, label, metrics.VOLUME_ERROR, at, np.where(absent, np.nan, (fp - fn)[at] * voxel_ml), states[at])
    for part, names in (
        ("surface", {metrics.HD95: "hd95", metrics.ASSD: "assd", nsd: "nsd"}),
        ("lesions", _OF_LESIONS),
    ):
        measured = [(index, found) for index, m in enumerate(measures) if (found := getattr(m, part)) is not None]
        at = np.array([index for index, _ in measured], np.intp)
        for metric, name in names.items() if measured else ():
            always = metric == metrics.FALSE_POSITIVE_LESIONS  # is defined
            state = np.zeros(len(at), states.dtype) if always else states[at]
            rows.add(model, label, metric, at, [getattr(found, name) for _, found in measured], state)


def _add_lesions(rows: _Rows, model: _Model, label: str, cases: Measured) -> None:
    found = [
        (at, number, lesion.volume_ml, float(lesion.detected), lesion.dice, lesion.iou)
        for at, (_, case) in enumerate(cases)
        if (matched := case.labels[label].lesions) is not None
        for number, lesion in enumerate(matched.reference, 1)
    ]
    if not found:
        return
    at, numbers, ml, *values = (np.array(column) for column in zip(*found, strict=True))
    for metric, measured in zip(metrics.LESION_METRICS, values, strict=True):
        rows.add(model, label, metric, at, measured, np.zeros(len(at)), numbers, ml)


@dataclass(frozen=True)
class _Model:
    """A trainer's columns as codes: the first ones the same for all its rows, the others one for each of its cases."""

    fixed: Mapping[str, int]
    seed: int
    cases: Codes
    patients: Codes
    folds: Codes


class _Rows:
    """Columns that grow by blocks of one metric of one label. Text is held as codes: there may be millions of rows."""

    def __init__(self) -> None:
        self._codes: dict[str, dict[str, int]] = {column: {} for column in TEXT}
        self._blocks: dict[str, list[Any]] = {column: [] for column in COLUMNS}

    def model(self, results: Results, cases: Sequence[Case], patients: Mapping[tuple[str, str], str]) -> _Model:
        of = {(results.dataset, case.name): case.name for case in cases} | dict(patients)
        seed = seed_of(results.trainer)
        return _Model(
            fixed={column: self._code(column, getattr(results, column)) for column in MODEL_COLUMNS},
            seed=-1 if seed is None else seed,
            cases=np.array([self._code("case", case.name) for case in cases], np.int32),
            patients=np.array([self._code("patient", of[results.dataset, case.name]) for case in cases], np.int32),
            folds=np.array([-1 if case.fold is None else case.fold for case in cases], np.int32),
        )

    def add(
        self, model: _Model, label: str, metric: str, at: Any, values: Any, states: Any, lesions: Any = (), ml: Any = ()
    ) -> None:
        """A metric of the cases `at` of a model, in their order."""
        fixed = {**model.fixed, "label": self._code("label", label), "metric": self._code("metric", metric)}
        for column, code in {**fixed, "seed": model.seed}.items():
            self._blocks[column].append(np.full(len(at), code, np.int32))
        self._blocks["case"].append(model.cases[at])
        self._blocks["patient"].append(model.patients[at])
        self._blocks["fold"].append(model.folds[at])
        self._blocks["value"].append(np.asarray(values, np.float64))
        self._blocks["state"].append(np.asarray(states, np.int8))
        self._blocks["lesion"].append(np.asarray(lesions if len(lesions) else np.full(len(at), -1), np.int32))
        self._blocks["volume_ml"].append(np.asarray(ml if len(ml) else np.full(len(at), np.nan), np.float64))

    def frame(self) -> pd.DataFrame:
        columns: dict[str, Any] = {}
        for column, blocks in self._blocks.items():
            array = np.concatenate(blocks) if blocks else np.empty(0, np.int32)
            if column in REAL:
                columns[column] = array.astype(np.float64)
            elif column in WHOLE:
                columns[column] = pd.arrays.IntegerArray(array.astype(np.int64), array < 0)
            else:
                names = ALL_STATES if column == "state" else list(self._codes[column])
                columns[column] = pd.Categorical.from_codes(array, categories=pd.Index(names, dtype="str"))
        return pd.DataFrame(columns)

    def _code(self, column: str, name: str) -> int:
        codes = self._codes[column]
        return codes.setdefault(name, len(codes))
