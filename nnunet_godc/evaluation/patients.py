"""To which patient a case belongs: cases of one patient are no independent observations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_godc.conversion_record import RECORD, read_record
from nnunet_godc.csv_files import read_table
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.results import Results

Patients = dict[tuple[str, str], str]


def read_patients(results: Sequence[Results], table: Path | None) -> tuple[Patients, str]:
    """The patients of all cases, by dataset and case, and a sentence that says where they were found.

    Args:
        table: CSV ``case,patient``; it may hold further cases. Without it, what nnunet-godc convert has recorded beside
            the raw dataset; without that, every case is a patient.

    Raises:
        UserError: the table or the record cannot be read, or lacks cases.
    """
    if table is not None:
        return _from_table(results, table), f"patients: {table}"
    patients: Patients = {}
    found = {}
    for dataset in {result.dataset: None for result in results}:
        record = Path(os.environ.get("nnUNet_raw") or "", dataset)
        if os.environ.get("nnUNet_raw") and (record / RECORD).exists():
            try:
                cases = read_record(record)["cases"]
                patients.update({(dataset, case): entry["patient"] or case for case, entry in cases.items()})
            except (UserError, KeyError, TypeError) as error:
                raise UserError(
                    f"{record / RECORD} does not name the patients ({error}); --patients FILE does"
                ) from None
            names = {case.name for result in results if result.dataset == dataset for case in result.cases}
            if missing := sorted(name for name in names if (dataset, name) not in patients):
                raise UserError(
                    f"{record / RECORD} lacks {len(missing)} cases, such as {missing[0]}, so that their patients are "
                    "not known; --patients FILE names those of all cases"
                )
            found[dataset] = record / RECORD
    if not found:
        return patients, "patients: every case counts as one (--patients FILE says otherwise)"
    return patients, "patients: " + ", ".join(map(str, found.values()))


def _from_table(results: Sequence[Results], table: Path) -> Patients:
    patient_of: dict[str, str] = {}
    for row in read_table(table, required=("case", "patient")):
        if patient_of.setdefault(row["case"], row["patient"]) != row["patient"]:
            raise UserError(f"{row.where}: {row['case']} is of another patient above; keep one line for every case")
    cases = {(result.dataset, case.name) for result in results for case in result.cases}
    missing = sorted(name for _, name in cases if name not in patient_of)
    if missing:
        raise UserError(f"{table} lacks {len(missing)} cases, such as {missing[0]}; add a line for each of them")
    return {(dataset, name): patient_of[name] for dataset, name in cases}
