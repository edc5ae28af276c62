import numpy as np
import pandas as pd
import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.case_table import ALL_STATES, MISSING, Question, case_tables, patient_means
from nnunet_godc.evaluation.metrics import ABSENT_IN_BOTH, ABSENT_IN_PREDICTION
from nnunet_godc.seeded_names import without_seed
from tests.evaluation.measured import measured

NAN = float("nan")


def tables(*frames, variant_of=lambda trainer: trainer):
    return case_tables(pd.concat(frames, ignore_index=True), variant_of)


def state(table, method, case, question=0):
    return ALL_STATES[table.states[method, case, question]]


def test_methods_and_questions_stand_in_the_order_of_the_measurements():
    [table] = tables(
        measured({"B": [0.1, 0.2], "A": [0.3, 0.4]}, label="tumour"), measured({"B": [1], "A": [2]}, label="liver")
    )
    assert [method.variant for method in table.methods] == ["B", "A"]
    assert table.questions == (Question("tumour", "Dice"), Question("liver", "Dice"))
    np.testing.assert_equal(table.values[:, :, 0], [[0.1, 0.2], [0.3, 0.4]])
    np.testing.assert_equal(table.values[:, :, 1], [[1, NAN], [2, NAN]])


@pytest.mark.parametrize("kind", ["object", "category"])
def test_text_may_be_categorical(kind):
    frame = measured({"B": [0.1, 0.2], "A": [0.3, 0.4]})
    text = ["dataset", "configuration", "plans", "trainer", "case", "patient", "label", "metric", "state"]
    [table] = tables(frame.astype(dict.fromkeys(text, kind)))
    assert [method.variant for method in table.methods] == ["B", "A"]
    np.testing.assert_equal(table.values[0, :, 0], [0.1, 0.2])


def test_cases_of_a_patient_stand_together():
    [table] = tables(measured({"A": [1, 2, 3, 4, NAN]}, patients=["p2", "p1", "p2", "p1", "p1"]))
    assert table.patients == ("p1", "p2")
    totals, counts = table.by_patient(table.values[0])
    np.testing.assert_equal(totals, [[6], [4]])
    np.testing.assert_equal(counts, [[2], [2]])
    np.testing.assert_equal(patient_means(totals, counts), [[3], [2]])


def test_a_patient_without_a_defined_case_has_no_mean():
    [table] = tables(measured({"A": [NAN, 2]}))
    np.testing.assert_equal(patient_means(*table.by_patient(table.values[0])), [[NAN], [2]])


def test_seeds_are_averaged_case_by_case_and_their_own_means_kept():
    [table] = tables(measured({"A_seed1": [0.2, 0.4], "A_seed2": [0.4, 0.8], "B": [0, 0]}), variant_of=without_seed)
    assert [method.variant for method in table.methods] == ["A", "B"]
    np.testing.assert_allclose(table.values[0, :, 0], [0.3, 0.6])
    np.testing.assert_allclose(table.runs[0], [[0.3], [0.6]])
    assert len(table.runs[1]) == 1


def test_a_case_counts_where_every_seed_defines_it():
    [table] = tables(
        measured({"A_seed1": [NAN, 0.5, 0.5, 0.1], "A_seed2": [0.4, None, 0.5, 0.3]}), variant_of=without_seed
    )
    np.testing.assert_allclose(table.values[0, :, 0], [NAN, NAN, 0.5, 0.2])
    assert state(table, 0, 0) == ABSENT_IN_PREDICTION
    assert state(table, 0, 1) == MISSING


def test_means_of_seeds_are_over_the_cases_that_all_of_them_define():
    easy, hard = [0.9, 0.8], [0.4, 0.3, 0.5]
    [table] = tables(
        measured({"A_seed1": easy + hard, "A_seed2": [*easy, None, NAN, 0.5], "B": easy + hard}),
        variant_of=without_seed,
    )
    np.testing.assert_allclose(table.runs[0], [[2.2 / 3], [2.2 / 3]])
    np.testing.assert_allclose(table.runs[1], [[2.9 / 5]])


def test_what_no_method_measured_is_missing_from_none():
    [table] = tables(measured({"A": [1, None], "B": [1, None]}), measured({"A": [1, 2], "B": [1, None]}, metric="IoU"))
    assert state(table, 1, 1, question=0) != MISSING
    assert state(table, 1, 1, question=1) == MISSING


def test_a_case_that_several_folds_predicted_counts_with_their_average():
    [table] = tables(measured({"A": [0.2, 0.4]}, fold=0), measured({"A": [0.4, NAN]}, fold=1))
    np.testing.assert_allclose(table.values[0, :, 0], [0.3, NAN])
    assert len(table.runs[0]) == 1


def test_cross_validation_and_predictions_without_a_fold_are_told_apart():
    first, second = tables(measured({"A": [0.2]}), measured({"A": [0.4]}, fold=pd.NA))
    assert (first.cross_validated, second.cross_validated) == (True, False)
    assert second.values[0, 0, 0] == 0.4


def test_datasets_have_tables_of_their_own():
    assert [table.dataset for table in tables(measured({"A": [1]}), measured({"A": [1]}, dataset="Other"))] == [
        "Dataset501_LiTS",
        "Other",
    ]


def test_a_value_counts_whatever_its_state():
    frame = measured({"A": [0, NAN]}, state=ABSENT_IN_BOTH)
    frame.loc[0, "state"] = ABSENT_IN_PREDICTION  # the Dice of a missed tumour
    [table] = tables(frame)
    assert table.values[0, 0, 0] == 0
    assert state(table, 0, 1) == ABSENT_IN_BOTH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="patient"), "lack the column patient"),
        (lambda frame: frame.iloc[:0], "no measurements"),
        (lambda frame: frame.assign(trainer=None), "row 0 .* has no trainer"),
        (lambda frame: frame.assign(state="gone"), "'gone' is not a state"),
        (lambda frame: frame.assign(value=np.inf), r"Dice of tumour in case_000 is inf; write a finite number"),
        (lambda frame: frame.assign(value=NAN), r"Dice of tumour in case_000 is nan"),
        (lambda frame: pd.concat([frame, frame]), "case_000 is there twice for A, 3d_fullres, nnUNetPlans"),
        (
            lambda frame: pd.concat([frame, frame.assign(patient="other", trainer="B")]),
            "case case_000 belongs to two patients",
        ),
    ],
    ids=["column", "empty", "trainer", "state", "infinite", "undefined", "twice", "two-patients"],
)
def test_measurements_that_cannot_be_right_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        tables(change(measured({"A": [0.5, 0.6]})))
