"""Which of the files that a report is made from are what: measurements, epochs, or volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import read_tables
from nnunet_godc.evaluation.evaluate import MEASUREMENTS
from nnunet_godc.evaluation.results import CROSS_VALIDATION
from nnunet_godc.report.curves import is_model, is_table_of_epochs, read_table_of_epochs
from nnunet_godc.report.inside import FACTS

VOLUMES = ["case", "label", "reference_mm3"]


@dataclass(frozen=True)
class Sources:
    """Attributes:
    results: folders and tables that `nnunet_godc.evaluation.evaluate` reads.
    running: folders of models that have no results yet.
    epochs: training curves, None without.
    volumes: of labels in the references, in ml, by dataset, case and label.
    explained: folders that `nnunet-godc explain` has written.
    """

    results: Sequence[Path]
    running: Sequence[Path]
    epochs: pd.DataFrame | None
    volumes: dict[tuple[str, str, str], float]
    explained: Sequence[Path]


def sort_sources(paths: Sequence[Path]) -> Sources:
    """Tables told apart by their columns; a folder that an evaluation was written to stands for its measurements.

    Raises:
        UserError: a file is none of these tables, or there are no measurements.
    """
    results: list[Path] = []
    running: list[Path] = []
    epochs, volumes, explained = [], [], []
    for path in paths:
        if (path / FACTS).is_file():
            explained.append(path)
            continue
        if (path / MEASUREMENTS).is_file():
            path = path / MEASUREMENTS
        if not path.is_file():
            is_running = is_model(path) and any(path.glob("fold_*")) and not any(path.glob("fold_*/validation/*"))
            (running if is_running and not any(path.glob(CROSS_VALIDATION)) else results).append(path)
            continue
        try:
            columns = list(pd.read_csv(path, nrows=0).columns)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a table that can be read ({' '.join(str(error).split())})") from None
        if is_table_of_epochs(columns):
            epochs.append(read_table_of_epochs(path))
        elif {*VOLUMES} <= {*columns}:
            volumes.append(path)
        else:
            results.append(path)
    if not results:
        why = f"; {running[0]} has no validation results yet" if running else ""
        raise UserError(f"there are no measurements{why}; give folders of results, or a measurements.csv as well")
    measured = [path for path in results if path.is_file()]
    found = _volumes(volumes, measured) if volumes and measured else {}
    return Sources(results, running, pd.concat(epochs) if epochs else None, found, explained)


def _volumes(paths: Sequence[Path], measured: Sequence[Path]) -> dict[tuple[str, str, str], float]:
    """Volumes of the measured labels. nnU-Net's summaries call labels by their values: a single one is told by that."""
    table = pd.concat([pd.read_csv(path, dtype={"case": "str", "label": "str"}) for path in paths])
    table = table.drop_duplicates(VOLUMES[:2])
    about = read_tables(measured)[["dataset", "case", "label"]].astype("str").drop_duplicates()
    about = about[about["label"] != ""]
    single = about["label"].nunique() == 1 and table["label"].nunique() == 1
    on = ["case"] if single else ["case", "label"]
    both = about.merge(table.drop(columns="label") if single else table, on=on)
    places = zip(both["dataset"], both["case"], both["label"], strict=True)
    return dict(zip(places, both["reference_mm3"].astype(float) / 1000, strict=True))
