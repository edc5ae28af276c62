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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
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
)
from nnunet_godc.conversion.collection import Collection, CollectionListing, check_names, dataset_labels
from nnunet_godc.conversion.files import inside
from nnunet_godc.conversion.problems import CaseError, Problem, UnknownGeometryError
from nnunet_godc.conversion.splits import SPLITS, Folds
from nnunet_godc.conversion_record import RECORD, RECORD_FORMAT, read_record
from nnunet_godc.errors import UserError
from nnunet_godc.json_files import write_json
from nnunet_godc.workers import WorkerEnded, in_workers

PARTS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
Record = dict[str, Any]  # of a case, as `convert_case` returns it


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
            fixed later must not change the others' folds. None writes none.
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

    @property
    def identity(self) -> dict[str, Any]:
        """What two conversions must have in common for one to go on with the other's dataset."""
        return {**self.settings.identity(), "regions": self.regions, "collection": self.collection.title}


@dataclass
class ConversionResult:
    """What came of it.

    Attributes:
        records: of every case that is in the dataset, by name.
        problems: what could not be converted.
        skipped: cases left out as the user asked: of unknown voxel size, or of a scan that another dataset has.
        reused: how many cases an earlier run had converted already.
        complete: whether the dataset was put in its place. It is not where the source of a case changed since an
            earlier conversion, which only `Job.overwrite` replaces.
    """

    records: dict[str, Record] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    reused: int = 0
    complete: bool = False


class _TargetError(Exception):
    """The target cannot be written to: nothing more can be done for any case. Holds the error's number."""


class _ChangedSourceError(CaseError):
    """An earlier conversion made this case from other files."""


def convert_dataset(job: Job, *, progress: Callable[[str], None] = lambda name: None) -> ConversionResult:
    """Convert every case and put the dataset in its place; what cannot be converted is told together at the end.

    Args:
        progress: called with the name of every case that is done.

    Raises:
        UserError: the target is in use, is not to be overwritten, or cannot be written to; no case can be converted; or
            the folds that were asked for cannot be made.
    """
    check_names(job.found.cases)
    labels, regions_class_order = dataset_labels(job.collection.rules, regions=job.regions)
    unfinished = _beside(job.target, "unfinished")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with _only_one(unfinished):
            _restore(job.target)
            earlier = _earlier(job)
            for part in (*PARTS, "records"):
                (unfinished / part).mkdir(exist_ok=True)
            result, changed = _convert_cases(job, unfinished, earlier, progress)
            if changed:
                return result
            if not result.records:
                raise UserError("no case could be converted" + "".join(f"\n  {text}" for text in result.problems))
            _write_description(unfinished, job, result, labels, regions_class_order)
            _drop_leftovers(unfinished, result)
            _move_into_place(unfinished, job.target)
            result.complete = True
    except (OSError, _TargetError) as error:
        number = error.errno if isinstance(error, OSError) else error.args[0]
        remedy = "free some space" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "fix that"
        raise UserError(
            f"cannot write to {job.target.parent}: {os.strerror(number or 0)}; {remedy} and run the same command "
            "again, it goes on where it stopped"
        ) from error
    finally:
        # An empty folder that nobody converts into is of no use to anyone.
        with contextlib.suppress(OSError, UserError):
            if unfinished.exists() and not any(unfinished.glob("*/*")):
                with _only_one(unfinished):
                    shutil.rmtree(unfinished)
    return result


def _convert_cases(
    job: Job, unfinished: Path, earlier: Mapping[str, Record], progress: Callable[[str], None]
) -> tuple[ConversionResult, bool]:
    """What came of the cases; whether the source of some changed since a conversion that is not to be overwritten."""
    result = ConversionResult(
        problems=[Problem(text) if isinstance(text, str) else text for text in job.found.problems]
    )
    # Without all the other cases, which would go to the worker processes with each of them.
    convert = partial(_convert_or_reuse, replace(job, found=CollectionListing(()), leave_out=frozenset()), unfinished)
    tasks = [(case, earlier.get(case.name)) for case in job.found.cases]
    changed = False
    unknown: dict[str, UnknownGeometryError] = {}
    for (source, _), came_of_it in in_workers(convert, tasks, job.workers):
        name = source.name
        if isinstance(came_of_it, _TargetError):
            raise came_of_it
        progress(name)
        if isinstance(came_of_it, WorkerEnded):
            came_of_it = CaseError(WorkerEnded.SENTENCE)
        if isinstance(came_of_it, UnknownGeometryError):
            unknown[name] = came_of_it
        elif isinstance(came_of_it, CaseError):
            changed |= isinstance(came_of_it, _ChangedSourceError)
            result.problems.append(problem_of(source, came_of_it, job.root))
        elif came_of_it[0]["image"]["fingerprint"] in job.leave_out:
            result.skipped.append(name)
        else:
            result.records[name] = came_of_it[0]
            result.reused += came_of_it[1]
    result.records = dict(sorted(result.records.items()))
    if job.skip_bad_geometry:
        result.skipped += sorted(unknown)
    elif unknown:
        result.problems.append(
            Problem(
                f"{len(unknown)} cases of unknown voxel size ({', '.join(sorted(unknown))}): "
                f"{unknown[min(unknown)]}. Give the true sizes with --spacing-csv FILE (case,x,y,z in mm), leave the "
                "cases out with --skip-bad-geometry, or take the headers as they are with --trust-headers"
            )
        )
    result.problems.sort(key=str)
    return result, changed


def problem_of(source: CaseSource, error: CaseError, root: Path) -> Problem:
    """What is wrong with a case, and in which file as far as that is known."""
    return Problem(f"{source.name}: {error}", inside(error.file or source.image, root))


def _convert_or_reuse(
    job: Job, unfinished: Path, task: tuple[CaseSource, Record | None]
) -> tuple[Record, bool] | CaseError | _TargetError:
    """The case's record and whether an earlier run had made it. Errors are returned: they cross processes so."""
    source, earlier = task
    record_path = unfinished / "records" / f"{source.name}.json"
    interrupted = None
    try:
        hashes = source_hashes(source)
        inputs = inputs_digest(source, job.settings, hashes)
        with contextlib.suppress(FileNotFoundError, ValueError):
            interrupted = json.loads(record_path.read_text(encoding="utf-8"))
        for folder, record in ((unfinished, interrupted), (job.target, earlier)):
            if record and record["inputs"] == inputs and _is_whole(folder, record):
                if job.settings.strict and record["warnings"]:
                    raise CaseError(f"{'; '.join(record['warnings'])} (--strict)")
                if folder is not unfinished:
                    for part in _files(record):
                        link_or_copy(folder / part["file"], unfinished / part["file"], link=True)
                    write_json(record_path, record)
                return record, True
        record_path.unlink(missing_ok=True)
        if earlier and earlier["inputs"] != inputs and not job.overwrite:
            raise _ChangedSourceError(
                "its source or options changed since the dataset was converted; convert anew with --overwrite"
            )
        record = convert_case(source, job.settings, job.root, unfinished, hashes)
        write_json(record_path, record)
    except CaseError as error:
        return error
    except MemoryError:
        return CaseError("it does not fit into memory; use fewer worker processes with -np")
    except OSError as error:
        return _TargetError(error.errno)
    return record, False


def _is_whole(folder: Path, record: Record) -> bool:
    try:
        return all(file_sha256(folder / part["file"]) == part["sha256"] for part in _files(record))
    except CaseError:
        return False


def _files(record: Record) -> list[Record]:
    return [record[part] for part in ("image", "label") if record[part] is not None]


def _earlier(job: Job) -> dict[str, Record]:
    """Records of the dataset that is there, if it may be completed or replaced.

    Raises:
        UserError: it may not.
    """
    if not job.target.exists():
        return {}
    other = "choose another number with -d, or replace it with --overwrite"
    if not (job.target / RECORD).exists() and not job.overwrite:
        raise UserError(f"{job.target} exists already and was not written by nnunet-godc convert; {other}")
    try:
        record = read_record(job.target)
    except UserError:
        if job.overwrite:
            return {}
        raise
    cases: dict[str, Record] = record["cases"]
    if not job.overwrite:
        settings = record.get("settings", {})
        if differing := sorted(key for key, value in job.identity.items() if settings.get(key) != value):
            raise UserError(
                f"{job.target} exists already, converted with other options ({', '.join(differing)}); {other}"
            )
        if gone := sorted(set(cases) - {case.name for case in job.found.cases}):
            raise UserError(
                f"{job.target} holds {len(gone)} cases that the source does not have, such as {gone[0]}; {other}"
            )
    return cases


def _write_description(
    folder: Path,
    job: Job,
    result: ConversionResult,
    labels: dict[str, int | list[int]],
    regions_class_order: tuple[int, ...] | None,
) -> None:
    """dataset.json, conversion.json, and splits_final.json with those cases that came through."""
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    generate_dataset_json(
        str(folder),
        channel_names={0: "CT"},
        labels=labels,
        num_training_cases=sum(not record["test"] for record in result.records.values()),
        file_ending=job.settings.file_ending,
        regions_class_order=regions_class_order,
        dataset_name=job.target.name,
        reference=job.collection.reference,
        license=job.collection.licence,
        description=f"{job.collection.title}, converted by nnunet-godc {nnunet_godc.__version__}",
        converted_by="nnunet-godc",
    )
    record = {
        "format": RECORD_FORMAT,
        "version": nnunet_godc.__version__,
        "settings": job.identity,
        "left_out": sorted(result.skipped),
        "problems": [problem.sentence for problem in result.problems],
        "cases": result.records,
    }
    write_json(folder / RECORD, record)
    if job.folds is not None:
        folds = [
            {side: [name for name in fold[side] if name in result.records] for side in ("train", "val")}
            for fold in job.folds
        ]
        write_json(folder / SPLITS, folds)


def _drop_leftovers(unfinished: Path, result: ConversionResult) -> None:
    """Remove what belongs to no case of the result: records, files of cases that failed, empty folders."""
    kept = {unfinished / part["file"] for record in result.records.values() for part in _files(record)}
    shutil.rmtree(unfinished / "records")
    for part in PARTS:
        for path in set((unfinished / part).iterdir()) - kept:
            path.unlink()
        with contextlib.suppress(OSError):
            (unfinished / part).rmdir()


def _move_into_place(unfinished: Path, target: Path) -> None:
    (unfinished / "lock").unlink()
    replaced = _beside(target, "replaced")
    if target.exists():
        target.rename(replaced)
    unfinished.rename(target)
    _restore(target)


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


def _beside(target: Path, purpose: str) -> Path:
    return target.with_name(f".{target.name}.{purpose}")
