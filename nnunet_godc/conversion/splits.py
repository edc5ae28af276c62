"""Who is trained on, who validates, who tests: drawn by seed, a patient never on two sides."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.errors import UserError

SPLITS = "splits_final.json"


Folds = list[dict[str, list[str]]]


def draw_folds(patients: Mapping[str, str], *, seed: int, folds: int = 5) -> Folds:
    """Folds of a cross-validation, as nnU-Net's splits_final.json has them.

    Every case validates once, all cases of a patient in the same fold. The folds are of equal size as far as the
    patients allow: those with the most cases are dealt first, each to the smallest fold.

    Args:
        patients: the patient of every case.
        seed: equal seeds give equal folds, whatever the order of `patients`.

    Raises:
        UserError: fewer patients than folds.
    """
    cases_of = _in_drawn_order(patients, "folds", seed)
    if len(cases_of) < folds:
        raise UserError(
            f"{folds} folds need {folds} patients with a label or more, and there are {len(cases_of)}; "
            "convert more patients, or leave --folds away"
        )
    validation: list[list[str]] = [[] for _ in range(folds)]
    for cases in sorted(cases_of, key=len, reverse=True):
        min(validation, key=len).extend(cases)
    return [
        {
            "train": sorted(case for other in validation if other is not held_out for case in other),
            "val": sorted(held_out),
        }
        for held_out in validation
    ]


def draw_test_cases(patients: Mapping[str, str], *, share: float, seed: int) -> set[str]:
    """Cases to test on: whole patients, in drawn order, as long as they bring their number nearer to the share.

    Args:
        patients: the patient of every case.
        share: from 0 to below 1; somebody stays to train with.
        seed: equal seeds give equal cases, whatever the order of `patients`. Further patients may move others to the
            other side, since the share is kept.
    """
    chosen: set[str] = set()
    wanted = share * len(patients)
    for cases in _in_drawn_order(patients, "test", seed):
        with_them = len(chosen) + len(cases)
        if with_them < len(patients) and abs(with_them - wanted) < abs(len(chosen) - wanted):
            chosen.update(cases)
    return chosen


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
        with atomic_write(there) as temporary:
            temporary.write_bytes(folds)
    except OSError as error:
        raise UserError(
            f"the folds cannot be put into nnUNet_preprocessed, as {there}: {error.strerror}; fix that and run the "
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
