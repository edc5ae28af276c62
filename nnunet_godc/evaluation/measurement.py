"""Measuring all cases: from nnU-Net's own counts where they suffice, else on the images, in parallel, and only once.

What was measured on images is kept, one file for each case, under a name that follows from everything it depends on:
both files (path, size, time of change) with what nnU-Net's reader reads beside them, the labels, the options, the
method. Whatever changes is measured again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.evaluation import metrics
from nnunet_godc.evaluation.case import (
    METHOD,
    CaseMeasures,
    CaseProblem,
    LabelMeasures,
    Labels,
    Options,
    SurfaceMeasures,
    measure_case,
)
from nnunet_godc.evaluation.lesions import Lesion, Lesions
from nnunet_godc.evaluation.results import Case, Results
from nnunet_godc.workers import WorkerEnded, in_workers


@dataclass
class Measured:
    """What came of measuring.

    Attributes:
        cases: of every trainer, those that could be measured.
        unmeasured: of every trainer, those that could not, or only by nnU-Net's counts, with one of
            `metrics.UNMEASURED`.
        problems: one sentence for each thing that is missing or could not be measured.
        counted: number of cases whose counts nnU-Net's summary.json has.
        kept: number of cases that an earlier run had measured.
        read: number of cases that were measured on their images now.
    """

    cases: list[tuple[Results, list[tuple[Case, CaseMeasures]]]]
    unmeasured: list[list[tuple[Case, str]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counted: int = 0
    kept: int = 0
    read: int = 0


@dataclass(frozen=True)
class _Task:
    position: tuple[int, int]  # of the trainer, and of the case among its cases
    prediction: Path
    reference: Path
    labels: Labels
    reader: type[Any]
    options: Options
    kept: Path | None


def measure(
    results: Sequence[Results],
    options: Options,
    *,
    cache: Path | None,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Measure every case; what cannot be measured is told together at the end.

    Args:
        options: where they ask for nothing that needs the images, the counts in summary.json are taken where there are
            any. They are also taken where the images cannot be measured, so that the cases behind a metric do not
            depend on what else is asked for.
        cache: folder where measures are kept; it is made. None keeps nothing.
        workers: processes; 0 measures in this one.
        progress: called with the number of cases on images that are done, and of those that there are.
    """
    found: dict[tuple[int, int], CaseMeasures] = {}
    outcome = Measured([], [[] for _ in results], [problem for result in results for problem in result.problems])

    def refuse(i: int, j: int, problem: CaseProblem) -> None:
        case = results[i].cases[j]
        instead = ""
        if case.counted is not None:
            found[i, j] = CaseMeasures(case.counted)
            outcome.counted += 1
            instead = "; its overlap is that of the counts in summary.json"
        outcome.unmeasured[i].append((case, problem.state))
        outcome.problems.append(f"{_where(results[i], case)}: {problem}{instead}")

    tasks = []
    positions = [(i, j) for i, result in enumerate(results) for j in range(len(result.cases))]
    for i, j in positions:
        case = results[i].cases[j]
        if case.counted is not None and not options.need_images:
            found[i, j] = CaseMeasures(case.counted)
            outcome.counted += 1
            continue
        try:
            task = _task((i, j), results[i], case, options, cache)
        except CaseProblem as problem:
            refuse(i, j, problem)
            continue
        kept = None if task.kept is None else _read_kept(task.kept)
        if kept is None:
            tasks.append(task)
        else:
            found[i, j] = kept
            outcome.kept += 1

    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    progress(0, len(tasks))
    for done, (task, measures) in enumerate(in_workers(_measure, tasks, workers), 1):
        progress(done, len(tasks))
        if isinstance(measures, CaseMeasures):
            if task.kept is not None:
                _keep(task.kept, measures)
            found[task.position] = measures
            outcome.read += 1
        else:
            ended = isinstance(measures, WorkerEnded)
            refuse(*task.position, CaseProblem(WorkerEnded.SENTENCE) if ended else measures)  # type: ignore[arg-type]
    outcome.cases = [
        (result, [(case, found[i, j]) for j, case in enumerate(result.cases) if (i, j) in found])
        for i, result in enumerate(results)
    ]
    return outcome


def _where(results: Results, case: Case) -> str:
    fold = "" if case.fold is None else f", fold {case.fold}"
    return f"{results.title}{fold}, case {case.name}"


def _task(position: tuple[int, int], results: Results, case: Case, options: Options, cache: Path | None) -> _Task:
    options = dataclasses.replace(options, lesions=tuple(n for n in options.lesions if n in results.labels.values))
    depends_on = [
        METHOD,
        _state(case.prediction, "its prediction is missing", metrics.PREDICTION_MISSING),
        _state(
            case.reference,
            "its reference is missing; give the folder of the references with -ref",
            metrics.REFERENCE_MISSING,
        ),
        *(_beside(path) for path in (case.prediction, case.reference)),
        results.reader.__name__,
        dataclasses.asdict(results.labels),
        dataclasses.asdict(options),
    ]
    name = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
    return _Task(
        position=position,
        prediction=case.prediction,
        reference=case.reference,
        labels=results.labels,
        reader=results.reader,
        options=options,
        kept=None if cache is None else cache / f"{name}.json",
    )


def _state(path: Path, missing: str, state: str = metrics.OTHER_REASON) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        raise CaseProblem(f"{missing}: {path}", state) from None
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _beside(path: Path) -> tuple[str, int, int] | None:
    """The state of the file that holds a TIFF's spacing, if there is one."""
    try:
        return _state(path.with_suffix(".json"), "") if path.suffix in (".tif", ".tiff") else None
    except CaseProblem:
        return None


def _measure(task: _Task) -> CaseMeasures | CaseProblem:
    """Problems are returned: they cross processes so."""
    try:
        return measure_case(task.prediction, task.reference, task.reader, task.labels, task.options)
    except CaseProblem as problem:
        return problem
    except MemoryError:
        return CaseProblem("it does not fit into memory; use fewer worker processes with -np")
    except Exception as error:  # a defect of ours or of a library must not cost the other cases
        return CaseProblem(f"it cannot be measured ({type(error).__name__}: {' '.join(str(error).split())})")


def _keep(path: Path, measures: CaseMeasures) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(measures)), encoding="utf-8")


def _read_kept(path: Path) -> CaseMeasures | None:
    """What was kept there; None where there is nothing, or nothing of use."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = {name: _label_measures(measures) for name, measures in content["labels"].items()}
        return CaseMeasures(labels, content["voxel_ml"], content["headers_differ_mm"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _label_measures(content: Mapping[str, Any]) -> LabelMeasures:
    surface, lesions = content["surface"], content["lesions"]
    return LabelMeasures(
        content["true_positive"],
        content["false_positive"],
        content["false_negative"],
        None if surface is None else SurfaceMeasures(**surface),
        None
        if lesions is None
        else Lesions(tuple(Lesion(**lesion) for lesion in lesions["reference"]), lesions["false_positives"]),
    )
