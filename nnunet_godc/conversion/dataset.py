"""Converting a whole collection: beside the target, case by case in worker processes, and moved there at the end.

While it runs, everything lies in ``.DatasetXXX_Name.unfinished`` beside the target. Each case leaves a record there
when its files are whole; a run that was interrupted takes up what has a record and still fits it. At the end that
folder takes the target's name, so that nnU-Net never sees half a dataset.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

import nnunet_godc
from nnunet_godc.conversion.case import (
    CaseSettings,
    CaseSource,
    convert_case,
    file_sha256,
    inputs_digest,
    link_or_copy,
    source_hashes,
    source_paths,
)
from nnunet_godc.conversion.collection import Collection, CollectionListing, dataset_labels, inside, names_of
from nnunet_godc.conversion.problems import CaseError, Problem, UnknownGeometryError
from nnunet_godc.conversion.splits import SPLITS, Folds
from nnunet_godc.conversion_record import RECORD, RECORD_FORMAT, read_record
from nnunet_godc.errors import UserError
from nnunet_godc.json_files import write_json
from nnunet_godc.workers import WorkerEnded, in_workers

PARTS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


@dataclass(frozen=True)
class Job:
    """A conversion as a user asks for it.

    Attributes:
        collection, found: what is converted.
        root: the collection's folder.
        target: the dataset's folder, ``nnUNet_raw/DatasetXXX_Name``.
        settings: for every case.
        regions: train on regions (dataset.json), such as liver = liver and tumour.
        skip_bad_geometry: leave out cases whose voxel size is unknown.
        workers: processes; 0 converts in this one.
        overwrite: replace a dataset that is there.
        folds: for splits_final.json, over all training cases, not those alone that come through: a case that is
            mended later must not change the others' folds. None writes none.
        leave_out: fingerprints of scans that are not to be in the dataset.
    """

    collection: Collection
    found: CollectionListing
    root: Path
    target: Path
    settings: CaseSettings
    regions: bool = False
    skip_bad_geometry: bool = False
    workers: int = 2
    overwrite: bool = False
    folds: Folds | None = None
    leave_out: frozenset[str] = frozenset()


@dataclass
class ConversionResult:
    """What came of it.

    Attributes:
        records: of every case that is in the dataset, by name.
        problems: what could not be converted.
        skipped: cases left out as the user asked: of unknown voxel size, or of a scan that another dataset has.
        folds: what splits_final.json holds; None without.
        complete: whether the dataset was put in its place. It is not where the source of a case changed since an
            earlier conversion, which only `Job.overwrite` replaces.
        reused: how many cases an earlier run had converted already.
    """

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    reused: int = 0
    folds: Folds | None = None
    complete: bool = False


class TargetError(Exception):
    """The target cannot be written to: nothing more can be done for any case."""


class _ChangedSourceError(CaseError):
    """An earlier conversion made this case from other files."""


@dataclass(frozen=True)
class _Task:
    source: CaseSource
    settings: CaseSettings
    root: Path
    unfinished: Path
    target: Path
    earlier: dict[str, Any] | None
    overwrite: bool


def convert_dataset(job: Job, *, progress: Callable[[str, int], None] = lambda name, size: None) -> ConversionResult:
    """Convert every case and put the dataset in its place; what cannot be converted is told together at the end.

    Args:
        progress: called with the name and the source bytes of every case that is done.

    Raises:
        UserError: the target is in use, is not to be overwritten, or cannot be written to; no case can be converted; or
            the folds that were asked for cannot be made.
    """
    names_of(job.found.cases)
    labels, regions_class_order = dataset_labels(job.collection.rules, regions=job.regions)
    identity = {**job.settings.identity(), "regions": job.regions, "collection": job.collection.title}
    unfinished = _beside(job.target, "unfinished")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with _only_one(unfinished):
            _restore(job.target)
            earlier = _earlier(job, identity)
            for part in (*PARTS, "records"):
                (unfinished / part).mkdir(exist_ok=True)
            outcome = ConversionResult(
                problems=[Problem(text) if isinstance(text, str) else text for text in job.found.problems]
            )
            changed = _convert_cases(job, unfinished, earlier, outcome, progress)
            if changed:
                return outcome
            if not outcome.records:
                raise UserError("no case could be converted" + "".join(f"\n  {text}" for text in outcome.problems))
            _write_description(unfinished, job, outcome, labels, regions_class_order)
            write_json(unfinished / RECORD, _record(job, outcome, identity))
            if job.folds is not None:
                outcome.folds = _without_missing(job.folds, outcome)
                write_json(unfinished / SPLITS, outcome.folds)
            _drop_leftovers(unfinished, outcome)
            _move_into_place(unfinished, job.target)
            outcome.complete = True
    except (OSError, TargetError) as error:
        raise UserError(_cannot_write(job.target, error)) from error
    finally:
        # An empty folder that nobody converts into is of no use to anyone.
        _remove_if_unused(unfinished)
    return outcome


def _convert_cases(
    job: Job,
    unfinished: Path,
    earlier: Mapping[str, dict[str, Any]],
    outcome: ConversionResult,
    progress: Callable[[str, int], None],
) -> bool:
    """Fills `outcome`; whether some case's source changed since an earlier conversion that is not to be overwritten."""
    tasks = [
        _Task(case, job.settings, job.root, unfinished, job.target, earlier.get(case.name), job.overwrite)
        for case in job.found.cases
    ]
    changed = False
    unknown: list[tuple[str, str]] = []
    for task, result in _run_tasks(tasks, job.workers):
        name = task.source.name
        if isinstance(result, TargetError):
            raise result
        progress(name, source_bytes(task.source))
        if isinstance(result, UnknownGeometryError):
            unknown.append((name, str(result)))
        elif isinstance(result, CaseError):
            changed |= isinstance(result, _ChangedSourceError)
            outcome.problems.append(problem_of(task.source, result, job.root))
        else:
            record, reused = result
            if record["image"]["fingerprint"] in job.leave_out:
                outcome.skipped.append(name)
                continue
            outcome.records[name] = record
            outcome.reused += reused
    outcome.records = dict(sorted(outcome.records.items()))
    unknown.sort()
    if job.skip_bad_geometry:
        outcome.skipped += [name for name, _ in unknown]
    elif unknown:
        sentence = (
            f"{len(unknown)} cases of unknown voxel size ({', '.join(name for name, _ in unknown)}): "
            f"{unknown[0][1]}. Give the true sizes with --spacing-csv FILE (case,x,y,z in mm), leave the cases out "
            "with --skip-bad-geometry, or take the headers as they are with --trust-headers"
        )
        outcome.problems.append(Problem(sentence))
    outcome.problems.sort(key=str)
    return changed


def problem_of(source: CaseSource, error: CaseError, root: Path) -> Problem:
    """What is wrong with a case, and in which file as far as that is known."""
    return Problem(f"{source.name}: {error}", inside(error.file or source.image, root))


def _run_tasks(
    tasks: Sequence[_Task], workers: int
) -> Iterator[tuple[_Task, tuple[dict[str, Any], bool] | CaseError | TargetError]]:
    for task, result in in_workers(_convert_or_take_over, tasks, workers):
        yield task, CaseError(WorkerEnded.SENTENCE) if isinstance(result, WorkerEnded) else result


def _convert_or_take_over(task: _Task) -> tuple[dict[str, Any], bool] | CaseError | TargetError:
    """The case's record and whether an earlier run had made it. Errors are returned: they cross processes so."""
    record_path = task.unfinished / "records" / f"{task.source.name}.json"
    try:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            record = json.loads(record_path.read_text(encoding="utf-8"))
            if _still_fits(task, record) and _is_whole(task.unfinished, record):
                _check_strict(task, record)
                return record, True
        record_path.unlink(missing_ok=True)
        if task.earlier is not None:
            if _still_fits(task, task.earlier):
                if _is_whole(task.target, task.earlier):
                    _check_strict(task, task.earlier)
                    _take_over(task.target, task.unfinished, task.earlier)
                    write_json(record_path, task.earlier)
                    return task.earlier, True
            elif not task.overwrite:
                raise _ChangedSourceError(
                    "its source or options changed since the dataset was converted; convert anew with --overwrite"
                )
        record = convert_case(task.source, task.settings, task.root, task.unfinished)
        write_json(record_path, record)
    except CaseError as error:
        return error
    except MemoryError:
        return CaseError("it does not fit into memory; use fewer worker processes with -np")
    except OSError as error:
        return TargetError(*error.args)
    return record, False


def _check_strict(task: _Task, record: Mapping[str, Any]) -> None:
    if task.settings.strict and record["warnings"]:
        raise CaseError(f"{'; '.join(record['warnings'])} (--strict)")


def _still_fits(task: _Task, record: Mapping[str, Any]) -> bool:
    return bool(record["inputs"] == inputs_digest(task.source, task.settings, source_hashes(task.source)))


def _is_whole(folder: Path, record: Mapping[str, Any]) -> bool:
    try:
        return all(file_sha256(folder / part["file"]) == part["sha256"] for part in _files(record))
    except CaseError:
        return False


def _files(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [record[part] for part in ("image", "label") if record[part] is not None]


def _take_over(target: Path, unfinished: Path, record: Mapping[str, Any]) -> None:
    for part in _files(record):
        link_or_copy(target / part["file"], unfinished / part["file"], link=True)


def _earlier(job: Job, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Records of the dataset that is there, if it may be completed or replaced.

    Raises:
        UserError: it may not.
    """
    if not job.target.exists():
        return {}
    if not (job.target / RECORD).exists():
        if job.overwrite:
            return {}
        raise UserError(
            f"{job.target} exists already and was not written by nnunet-godc convert; choose another number with -d, "
            "or replace it with --overwrite"
        )
    try:
        record = read_record(job.target)
    except UserError:
        if job.overwrite:
            return {}
        raise
    cases: dict[str, dict[str, Any]] = record["cases"]
    if job.overwrite:
        return cases
    differing = sorted(key for key, value in identity.items() if record.get("settings", {}).get(key) != value)
    if differing:
        raise UserError(
            f"{job.target} exists already, converted with other options ({', '.join(differing)}); choose another "
            "number with -d, or replace it with --overwrite"
        )
    gone = sorted(set(cases) - {case.name for case in job.found.cases})
    if gone:
        raise UserError(
            f"{job.target} holds {len(gone)} cases that the source does not have, such as {gone[0]}; choose another "
            "number with -d, or replace it with --overwrite"
        )
    return cases


def _without_missing(folds: Folds, outcome: ConversionResult) -> Folds:
    return [
        {side: [name for name in names if name in outcome.records] for side, names in fold.items()} for fold in folds
    ]


def _write_description(
    folder: Path,
    job: Job,
    outcome: ConversionResult,
    labels: dict[str, int | list[int]],
    regions_class_order: list[int] | None,
) -> None:
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    generate_dataset_json(
        str(folder),
        channel_names={0: "CT"},
        labels=labels,
        num_training_cases=sum(not record["test"] for record in outcome.records.values()),
        file_ending=job.settings.file_ending,
        regions_class_order=tuple(regions_class_order) if regions_class_order else None,
        dataset_name=job.target.name,
        reference=job.collection.reference,
        license=job.collection.licence,
        description=f"{job.collection.title}, converted by nnunet-godc {nnunet_godc.__version__}",
        converted_by="nnunet-godc",
    )


def _record(job: Job, outcome: ConversionResult, identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": RECORD_FORMAT,
        "version": nnunet_godc.__version__,
        "settings": dict(identity),
        "left_out": sorted(outcome.skipped),
        "problems": [problem.sentence for problem in outcome.problems],
        "cases": outcome.records,
    }


def _drop_leftovers(unfinished: Path, outcome: ConversionResult) -> None:
    """Remove what belongs to no case of the outcome: records, files of cases that failed, empty folders."""
    kept = {part["file"] for record in outcome.records.values() for part in _files(record)}
    shutil.rmtree(unfinished / "records")
    for part in PARTS:
        for path in (unfinished / part).iterdir():
            if f"{part}/{path.name}" not in kept:
                path.unlink()
        with contextlib.suppress(OSError):
            (unfinished / part).rmdir()


def _move_into_place(unfinished: Path, target: Path) -> None:
    (unfinished / "lock").unlink()
    if target.exists():
        replaced = _beside(target, "replaced")
        target.rename(replaced)
        unfinished.rename(target)
        shutil.rmtree(replaced)
    else:
        unfinished.rename(target)


def _restore(target: Path) -> None:
    """Undo a replacement that was cut short between its two renamings; finish one that was cut short after them."""
    replaced = _beside(target, "replaced")
    if replaced.exists():
        if target.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(target)


@contextlib.contextmanager
def _only_one(unfinished: Path) -> Iterator[None]:
    lock = filelock.FileLock(unfinished / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"another conversion is writing to {unfinished}; wait for it, or choose another number with -d"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _remove_if_unused(unfinished: Path) -> None:
    with contextlib.suppress(OSError, filelock.Timeout):
        if unfinished.exists() and not any(unfinished.glob("*/*")):
            with filelock.FileLock(unfinished / "lock", timeout=0):
                shutil.rmtree(unfinished)


def _beside(target: Path, purpose: str) -> Path:
    return target.with_name(f".{target.name}.{purpose}")


def _cannot_write(target: Path, error: OSError | TargetError) -> str:
    code = error.errno if isinstance(error, OSError) else (error.args[0] if error.args else None)
    reason = os.strerror(code) if isinstance(code, int) else "unknown reason"
    remedy = "free some space" if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend that"
    return (
        f"cannot write to {target.parent}: {reason}; {remedy} and run the same command again, "
        "it goes on where it stopped"
    )


def source_bytes(source: CaseSource) -> int:
    """Size of everything that a case is made from; 0 where that cannot be told."""
    with contextlib.suppress(CaseError, OSError):
        return sum(path.stat().st_size for path in source_paths(source) if path.exists())
    return 0
