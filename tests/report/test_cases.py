from __future__ import annotations

import numpy as np
import pytest

from nnunet_godc.report.cases import case_table, choose_cases
from nnunet_godc.report.charts import reference_volumes
from tests.report.conftest import BASELINE, HOSTILE_LABEL, Study


def test_every_training_case_and_label_has_one_row(study: Study) -> None:
    measurements = study.evaluation.measurements
    table = case_table(measurements, reference_volumes(measurements))
    assert len(table) == 4 * 14 * 2
    rows = measurements[(measurements["metric"] == "HD95 (mm)") & (measurements["case"] == "case_09")]
    for row in rows.itertuples():
        own = table[(table["trainer"] == row.trainer) & (table["case"] == "case_09") & (table["label"] == row.label)]
        np.testing.assert_equal(own["HD95 (mm)"].item(), row.value)
        assert own["fold"].item() == 1


def test_worst_and_best_of_each_method_and_the_largest_differences_are_chosen(study: Study) -> None:
    sections = [part.section for part in study.evaluation.parts if part.section is not None]
    choices = choose_cases(sections, BASELINE, 1000)
    statistics = study.evaluation.measurements.astype({"trainer": str, "case": str, "label": str})
    own = statistics[(statistics["metric"] == "Dice") & (statistics["label"] == "liver")]
    means = own.assign(method=own["trainer"].str.replace(r"_seed\d", "", regex=True)).pivot_table(
        index="case", columns="method", values="value"
    )
    reasons = {choice.case: " ".join(choice.reasons) for choice in choices if choice.label == "liver"}
    for method, name in ((BASELINE, "nnUNetTrainer"), (f"{BASELINE}GODC", "GODC")):
        assert f"among the worst of {name}" in reasons[means[method].idxmin()]
        assert f"among the best of {name}" in reasons[means[method].idxmax()]
    difference = (means[f"{BASELINE}GODC"] - means[BASELINE]).idxmax()
    assert "GODC is" in reasons[difference]
    assert {choice.label for choice in choices} == {"liver", HOSTILE_LABEL}


@pytest.mark.parametrize("most", [0, 1, 5])
def test_there_are_no_more_than_asked_for_and_each_once(most: int, study: Study) -> None:
    sections = [part.section for part in study.evaluation.parts if part.section is not None]
    choices = choose_cases(sections, None, most)
    assert len(choices) == most
    assert len({(choice.case, choice.label) for choice in choices}) == most
