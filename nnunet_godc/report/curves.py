"""Training curves, from nnU-Net's logs or from a table of epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.costs import LOGS
from nnunet_godc.report.charts import Axis, Chart, Panel, Series
from nnunet_godc.seeded_names import seed_of, without_seed
from nnunet_godc.training_log import read_line

TRAINING = ["dataset", "configuration", "plans", "trainer", "seed", "fold"]
CURVES = {
    "training_loss": "training loss",
    "validation_loss": "validation loss",
    "pseudo_dice": "pseudo Dice (%)",
    "learning_rate": "learning rate",
    "seconds": "seconds per epoch",
}
_NUMBERS = {"loss": "training_loss", "validation loss": "validation_loss", "learning rate": "learning_rate"}


def is_table_of_epochs(columns: Sequence[str]) -> bool:
    return {"trainer", "fold", "epoch"} <= {*columns} and bool({*CURVES} & {*columns})


def read_table_of_epochs(path: Path) -> pd.DataFrame:
    """A CSV with one row for each epoch, of `TRAINING` what is known, and of `CURVES` any.

    Raises:
        UserError: it cannot be read, or holds text where numbers belong.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TRAINING, "str"), keep_default_na=False, na_values=[""])
        numbers = [name for name in ("epoch", *CURVES) if name in table]
        table = table.astype(dict.fromkeys(numbers, float))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a table of epochs ({' '.join(str(error).split())})") from None
    return table.reindex(columns=[*TRAINING, "epoch", *CURVES, "resumed"]).assign(resumed=False)


def read_logs(folders: Sequence[Path]) -> pd.DataFrame:
    """Every epoch of every fold that has a log; of one that was repeated after an interruption, the last.

    Args:
        folders: of models, ``DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``; others are passed over.
    """
    rows: list[dict[str, Any]] = []
    for folder in filter(is_model, folders):
        trainer, plans, configuration = folder.absolute().name.split("__")
        for fold in sorted(folder.glob("fold_*")):
            training = {
                **{"dataset": folder.absolute().parent.name, "configuration": configuration, "plans": plans},
                "trainer": without_seed(trainer),
                "seed": seed_of(trainer),
                "fold": fold.name.removeprefix("fold_"),
            }
            rows += ({**training, **epoch} for epoch in _epochs(fold))
    table = pd.DataFrame(rows, columns=[*TRAINING, "epoch", *CURVES, "resumed"])
    return table.astype(dict.fromkeys(TRAINING, "str")).astype({"epoch": float, **dict.fromkeys(CURVES, float)})


def is_model(folder: Path) -> bool:
    """Whether it is called like a model of nnU-Net."""
    return folder.absolute().name.count("__") == 2


def _epochs(fold: Path) -> Iterator[dict[str, Any]]:
    epochs: dict[int, dict[str, Any]] = {}
    current: dict[str, Any] = {}
    for log in sorted(fold.glob(LOGS)):  # nnU-Net begins a new one whenever a training goes on
        resumed = bool(epochs)
        for entry in filter(None, map(read_line, log.read_text(encoding="utf-8", errors="replace").splitlines())):
            if entry.kind == "epoch":
                if int(entry.text) == 0:  # begun anew
                    epochs, resumed = {}, False
                current = epochs[int(entry.text)] = {"epoch": int(entry.text), "resumed": resumed}
                resumed = False
            elif entry.kind == "pseudo dice":
                numbers = np.array(entry.numbers)
                current["pseudo_dice"] = float(np.nanmean(numbers)) if np.isfinite(numbers).any() else np.nan
            elif entry.kind == "epoch time":
                current["seconds"] = float(entry.text)
            elif entry.kind in _NUMBERS:
                current[_NUMBERS[entry.kind]] = float(entry.text)
    yield from (epochs[number] for number in sorted(epochs))


def curves_chart(epochs: pd.DataFrame, methods: Mapping[str, int], names: Sequence[str]) -> Chart | None:
    """All trainings overlaid, one panel for each kind of number.

    Args:
        epochs: as `read_logs` gives them.
        methods: number of each trainer, without its seed; others are left out.
        names: by number.
    """
    panels = []
    own = epochs[epochs["trainer"].isin(list(methods))]
    for column, label in CURVES.items():
        there = own[own[column].notna()]
        series = []
        for key, run in there.groupby([*TRAINING], sort=False, dropna=False, observed=True):
            training = dict(zip(TRAINING, key, strict=True))
            method = methods[training["trainer"]]
            run = run.sort_values("epoch")
            values = (run[column] * (100 if column == "pseudo_dice" else 1)).map(lambda value: float(f"{value:.5g}"))
            seed = (
                ""
                if pd.isna(training["seed"]) or training["seed"] in ("None", "<NA>")
                else f", seed {training['seed']}"
            )
            hint = f"fold {training['fold']}{seed}"
            series.append(Series(method, "line", run["epoch"].tolist(), values.tolist(), faint=True, hint=hint))
            at = run["resumed"].to_numpy(dtype=bool)
            if at.any():
                x, y = run["epoch"].to_numpy()[at].tolist(), values.to_numpy()[at].tolist()
                series.append(Series(method, "points", x, y, hint=f"{hint}: resumed here"))
        if series:
            panels.append(Panel(label, Axis("epoch"), Axis(label), series))
    note = "One line for each training (fold and seed). A dot marks where a training was resumed after an interruption."
    return Chart("training-curves", "Training curves", note, names, panels) if panels else None
