"""Who is trained on, who validates, who tests: drawn by seed or read from a file, a patient never on two sides."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import accumulate
from pathlib import Path

from nnunet_godc.conversion.case_tables import case_name, check_known_cases
from nnunet_godc.conversion.collection import check_case_name
from nnunet_godc.errors import UserError
from nnunet_godc.replacing import replacing
from nnunet_godc.tables import read_table, read_text

Folds = list[dict[str, list[str]]]

SPLITS = "splits_final.json"


def draw_folds(patients: Mapping[str, str], *, seed: int, folds: int = 5) -> Folds:
    """Folds of a cross-validation, as nnU-Net's splits_final.json has them.

    Every case validates once, all cases of a patient in the same fold. The folds are of equal size as far as the
    patients allow: those with the most cases are dealt first, each to the smallest fold.

    Args:
        patients: the patient of every case.
        seed: equal seeds give equal folds, whatever the order of `patients`.

    Raises:
        UserError: fewer than two folds, or fewer patients than folds.
    """
    if folds < 2:
        raise UserError(f"cross-validation needs two folds or more, not {folds}")
    cases_of = _in_drawn_order(patients, "folds", seed)
    if len(cases_of) < folds:
        raise UserError(
            f"{folds} folds need {folds} patients with a label or more, and there are {len(cases_of)}; "
            "ask for fewer folds, or convert more patients"
        )
    validation: list[list[str]] = [[] for _ in range(folds)]
    for cases in sorted(cases_of, key=len, reverse=True):
        min(validation, key=len).extend(cases)
    return _complete(validation)


def draw_test_cases(patients: Mapping[str, str], *, share: float, seed: int) -> set[str]:
    """Cases to test on: whole patients, as near to `share` of all cases as whole patients come; somebody stays.

    Args:
        patients: the patient of every case.
        share: from 0 to below 1.
        seed: equal seeds give equal cases, whatever the order of `patients`. Further patients may move others to the
            other side, since the share is kept.

    Raises:
        UserError: no such share.
    """
    if not 0 <= share < 1:
        raise UserError(f"the share of test cases is {share:g}; it has to be at least 0 and below 1")
    cases_of = _in_drawn_order(patients, "test", seed)
    # within_reach[n]: the numbers of cases that the last n patients can add up to.
    within_reach = list(
        accumulate(reversed(cases_of), lambda sums, cases: sums | {n + len(cases) for n in sums}, initial={0})
    )
    possible = sorted(within_reach[-1] - {len(patients)}) or [0]
    missing = min(possible, key=lambda number: abs(number - share * len(patients)))
    chosen: set[str] = set()
    for left, cases in zip(reversed(range(len(cases_of))), cases_of, strict=True):
        if missing - len(cases) in within_reach[left]:
            chosen.update(cases)
            missing -= len(cases)
    return chosen


def read_folds(path: Path, cases: Collection[str], patients: Mapping[str, str]) -> Folds:
    """Folds from a file: nnU-Net's JSON (``[{"train": [...], "val": [...]}, ...]``), or CSV ``case,fold``.

    Args:
        cases: all training cases; each of them has to validate once.
        patients: the patient of every case.

    Raises:
        UserError: the file cannot be read or is of another format; it names cases that are not there, leaves some out
            or has some twice; a case or a patient stands on both sides of a fold.
    """
    text = read_text(path)
    folds = _from_json(path, text) if text.lstrip().startswith(("[", "{")) else _from_csv(path)
    named = {name for fold in folds for names in fold.values() for name in names}
    check_known_cases(named, cases, where=str(path))
    validating = Counter(name for fold in folds for name in fold["val"])
    twice = sorted(name for name, count in validating.items() if count > 1)
    if twice:
        raise UserError(f"{path}: {_listed(twice)} would validate twice; keep every case in one fold")
    missing = sorted(set(cases) - set(validating))
    if missing:
        raise UserError(f"{path}: {_listed(missing)} would never validate; put every case into a fold")
    for number, fold in enumerate(folds):
        _check_sides(f"{path}, fold {number}", fold, patients)
    return [{side: sorted(fold[side]) for side in ("train", "val")} for fold in folds]


def place_splits(target: Path, *, overwrite: bool) -> str:
    """Put a dataset's folds where nnU-Net looks for them, if nnUNet_preprocessed is set; says what was done.

    Folds that are there and differ stay unless `overwrite`.

    Raises:
        UserError: nnUNet_preprocessed cannot be written to.
    """
    preprocessed = os.environ.get("nnUNet_preprocessed")
    if not preprocessed:
        return f"folds: {target / SPLITS}; copy them to the dataset's folder in nnUNet_preprocessed before training"
    there = Path(preprocessed) / target.name / SPLITS
    folds = (target / SPLITS).read_bytes()
    try:
        if there.exists() and there.read_bytes() != folds and not overwrite:
            return f"folds: {target / SPLITS}; {there} has others and was left alone (--overwrite replaces it)"
        there.parent.mkdir(parents=True, exist_ok=True)
        with replacing(there) as temporary:
            temporary.write_bytes(folds)
    except OSError as error:
        raise UserError(
            f"the folds cannot be put into nnUNet_preprocessed, as {there}: {error.strerror}; mend that and run the "
            f"same command again, or copy {target / SPLITS} there before training"
        ) from error
    return f"folds: {there}"


def _in_drawn_order(patients: Mapping[str, str], purpose: str, seed: int) -> list[list[str]]:
    """The cases of every patient, in an order that the seed decides.

    By a hash: the standard library promises the same shuffle neither from version to version nor for all seeds.
    """
    cases_of: dict[str, list[str]] = {}
    for case, patient in sorted(patients.items()):
        cases_of.setdefault(patient, []).append(case)

    def drawn(patient: str) -> bytes:
        return hashlib.sha256(f"{purpose} {seed} {patient}".encode()).digest()

    return [cases_of[patient] for patient in sorted(cases_of, key=drawn)]


def _complete(validation: list[list[str]]) -> Folds:
    """nnU-Net's format from the cases that validate in each fold: all others train."""
    return [
        {
            "train": sorted(case for other in validation if other is not held_out for case in other),
            "val": sorted(held_out),
        }
        for held_out in validation
    ]


def _from_json(path: Path, text: str) -> Folds:
    try:
        folds = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: the JSON is damaged; mend it, or write it anew") from None
    if not isinstance(folds, list) or not folds or not all(map(_is_fold, folds)):
        raise UserError(f'{path} does not hold folds; nnU-Net\'s format is [{{"train": [...], "val": [...]}}, ...]')
    for number, fold in enumerate(folds):
        for side in ("train", "val"):
            where = f"{path}, fold {number}, {side}"
            for name in fold[side]:
                try:
                    check_case_name(name)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None
            twice = sorted(name for name, count in Counter(fold[side]).items() if count > 1)
            if twice:
                raise UserError(f"{where}: {_listed(twice)} stands there twice; keep one")
    return folds


def _is_fold(fold: object) -> bool:
    return (
        isinstance(fold, dict)
        and fold.keys() == {"train", "val"}
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in fold.values())
    )


def _from_csv(path: Path) -> Folds:
    fold_of: dict[str, int] = {}
    for row in read_table(path, required=("case", "fold")):
        case, fold = case_name(row), row["fold"]
        if not (fold.isascii() and fold.isdigit() and len(fold) <= 4):
            raise UserError(f"{row.where}: the fold is {fold[:60]!r}; write 0, 1, 2 and so on")
        if case in fold_of:
            raise UserError(f"{row.where}: {case} is there twice; keep one line for every case")
        fold_of[case] = int(fold)
    count = max(fold_of.values()) + 1
    empty = sorted(set(range(count)) - set(fold_of.values()))
    if empty:
        raise UserError(f"{path}: no case is in fold {empty[0]}; number the folds from 0 without a gap")
    return _complete([[case for case, fold in fold_of.items() if fold == number] for number in range(count)])


def _check_sides(where: str, fold: dict[str, list[str]], patients: Mapping[str, str]) -> None:
    for side, purpose in (("train", "train on"), ("val", "validate on")):
        if not fold[side]:
            raise UserError(f"{where} has no case to {purpose}; give it some, or take the fold out")
    both = sorted(set(fold["train"]) & set(fold["val"]))
    if both:
        raise UserError(f"{where}: {_listed(both)} would train and validate; keep every case on one side")
    trained_on = {patients[case]: case for case in sorted(fold["train"], reverse=True)}
    for case in sorted(fold["val"]):
        if patients[case] in trained_on:
            raise UserError(
                f"{where}: {trained_on[patients[case]]} and {case} are of one patient, and one trains where the other "
                "validates; put them on the same side"
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
