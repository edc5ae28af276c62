"""Measurements for tests, written down as short as possible."""

import numpy as np
import pandas as pd

from nnunet_godc.evaluation.metrics import ABSENT_IN_PREDICTION, DEFINED
from nnunet_godc.seeded_names import seed_of

STUDY = {"dataset": "Dataset501_LiTS", "configuration": "3d_fullres", "plans": "nnUNetPlans"}


def measured(values, *, label="tumour", metric="Dice", patients=None, fold=0, state=ABSENT_IN_PREDICTION, **study):
    """Values by trainer and case; NaN is undefined because of `state`, and None was not measured."""
    rows = []
    for trainer, of_cases in values.items():
        for number, value in enumerate(of_cases):
            if value is None:
                continue
            rows.append(
                {
                    **STUDY,
                    **study,
                    "trainer": trainer,
                    "fold": fold,
                    "case": f"case_{number:03d}",
                    "patient": f"case_{number:03d}" if patients is None else patients[number],
                    "label": label,
                    "metric": metric,
                    "seed": seed_of(trainer),
                    "lesion": None,
                    "volume_ml": np.nan,
                    "value": float(value),
                    "state": state if np.isnan(value) else DEFINED,
                }
            )
    return pd.DataFrame(rows).astype({"fold": "Int64", "seed": "Int64", "lesion": "Int64"})
