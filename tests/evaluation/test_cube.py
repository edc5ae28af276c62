import numpy as np
import pandas as pd
import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.cube import ALL_STATES, OVER_LABELS, Cube, Endpoint, Side, cubes
from nnunet_godc.evaluation.metrics import (
    ABSENT_IN_BOTH,
    ABSENT_IN_PREDICTION,
    LESION_DICE,
    LESION_SENSITIVITY,
    NOT_MEASURED,
    PREDICTION_MISSING,
    VOLUME_ERROR,
)
from tests.evaluation.measured import measured

NAN = float("nan")


def cube(*frames: pd.DataFrame) -> Cube:
    [found] = cubes(pd.concat(frames, ignore_index=True), ())
    return found


def side(cube: Cube, method: int = 0) -> Side:
    return cube.side(method, cube.values)


def states(side: Side) -> list[str]:
    return [ALL_STATES[state] for state in side.states[:, 0]]


def test_methods_and_questions_stand_in_the_order_of_the_measurements():
    found = cube(
        measured({"B": [0.1, 0.2], "A": [0.3, 0.4]}), measured({"B": [1, None], "A": [2, None]}, label="liver")
    )
    assert [method.trainer for method in found.methods] == ["B", "A"]
    assert found.endpoints == tuple(Endpoint(label, "Dice") for label in (OVER_LABELS, "tumour", "liver"))
    np.testing.assert_equal(side(found, 0).values, [[0.1, 1], [0.2, NAN]])
    np.testing.assert_equal(side(found, 1).values, [[0.3, 2], [0.4, NAN]])


@pytest.mark.parametrize("kind", ["object", "category"])
def test_text_may_be_categorical(kind: str):
    frame = measured({"B": [0.1, 0.2], "A": [0.3, 0.4]})
    text = ["dataset", "configuration", "plans", "trainer", "case", "patient", "label", "metric", "state"]
    found = cube(frame.astype(dict.fromkeys(text, kind)))
    assert [method.trainer for method in found.methods] == ["B", "A"]
    np.testing.assert_equal(side(found).values[:, 0], [0.1, 0.2])


def test_cases_of_a_patient_stand_together_and_count_once():
    found = cube(measured({"A": [1, 2, 3, 4, NAN, NAN]}, patients=["p2", "p1", "p2", "p1", "p1", "p3"]))
    assert found.patients == ("p1", "p2", "p3")
    totals, counts = found.by_patient(side(found).values)
    np.testing.assert_equal(totals, [[6], [4], [0]])
    np.testing.assert_equal(counts, [[2], [2], [0]])


def test_means_over_labels_are_of_patients_values_whose_mean_they_are():
    found = cube(measured({"A": [0.5, NAN, 0.9]}), measured({"A": [0.8, 0.6, 0.7]}, label="liver"))
    totals, counts = found.by_patient(side(found).values)
    np.testing.assert_equal(counts[:, 0], [1, 1, 1])
    assert totals[:, 0].mean() == pytest.approx((0.7 + 0.7) / 2)
    # 0.7 + 3 / 2 times what a patient adds to both means: -0.2 / 2 + 0.1 / 3, -0.1 / 3 and 0.2 / 2
    np.testing.assert_allclose(totals[:, 0], [0.6, 0.65, 0.85])


def test_seeds_are_one_method_averaged_case_by_case():
    found = cube(measured({"A_seed1": [0.2, 0.4], "A_seed2": [0.4, 0.8], "B": [0, 0]}))
    assert [method.trainer for method in found.methods] == ["A", "B"]
    assert (found.trainings, found.seeds) == (((0, 1), (2,)), (1, 2, -1))
    np.testing.assert_allclose(side(found).values[:, 0], [0.3, 0.6])


def test_a_case_counts_where_every_seed_defines_it():
    found = side(cube(measured({"A_seed1": [NAN, 0.5, 0.5, 0.1], "A_seed2": [0.4, None, 0.5, 0.3]})))
    np.testing.assert_allclose(found.values[:, 0], [NAN, NAN, 0.5, 0.2])
    assert states(found)[:2] == [ABSENT_IN_PREDICTION, NOT_MEASURED]


def test_an_unmeasured_case_of_one_trainer_is_known_as_such():
    gone = measured({"B": [0, 0]}).iloc[1:].assign(label="", metric="", value=NAN, state=PREDICTION_MISSING)
    found = cube(measured({"A": [0.1, 0.2]}), measured({"B": [0.1]}), gone)
    assert states(side(found, 1)) == ["defined", NOT_MEASURED]
    assert cubes(gone, ()) == []


def test_a_case_that_several_folds_predicted_counts_with_their_average():
    found = cube(measured({"A": [0.2, 0.4]}, fold=0), measured({"A": [0.4, NAN]}, fold=1))
    np.testing.assert_allclose(side(found).values[:, 0], [0.3, NAN])


def test_distances_from_zero_are_taken_before_trainings_are_averaged():
    found = cube(
        measured({"B_seed1": [-0.3, 0.3], "B_seed2": [0.3, -0.3]}, metric=VOLUME_ERROR),
        measured({"B_seed1": [-0.3, 0.3], "B_seed2": [0.3, -0.3]}, metric="Score"),
    )
    np.testing.assert_allclose(found.side(0, found.compared).values, [[0.3, 0], [0.3, 0]])
    np.testing.assert_allclose(side(found).values, 0)


def test_cross_validation_other_predictions_and_datasets_are_cubes_of_their_own():
    frames = [measured({"A": [0.2]}), measured({"A": [0.4]}, fold=pd.NA), measured({"A": [0.6]}, dataset="Other")]
    found = cubes(pd.concat(frames, ignore_index=True), ())
    assert [(one.dataset, one.cross_validated, side(one).values[0, 0]) for one in found] == [
        ("Dataset501_LiTS", True, 0.2),
        ("Dataset501_LiTS", False, 0.4),
        ("Other", True, 0.6),
    ]


def test_a_value_counts_whatever_its_state():
    frame = measured({"A": [0, NAN]}, state=ABSENT_IN_BOTH)
    frame.loc[0, "state"] = ABSENT_IN_PREDICTION  # the Dice of a missed tumour
    found = side(cube(frame))
    assert found.values[0, 0] == 0
    assert states(found)[1] == ABSENT_IN_BOTH


def lesions(volumes: list[float], values: list[float], metric: str, trainer: str = "A") -> pd.DataFrame:
    """Two of each case."""
    frame = measured({trainer: values}, metric=metric)
    cases = [f"case_{number // 2:03d}" for number in range(len(values))]
    numbers = [number % 2 + 1 for number in range(len(values))]
    return frame.assign(case=cases, patient=cases, lesion=pd.array(numbers, "Int64"), volume_ml=volumes)


def test_lesions_are_told_apart_by_the_bins_of_their_volumes():
    volumes = [0.2, 1.0, 0.9999, 5.0]
    frame = pd.concat([lesions(volumes, [0, 1, 1, 1], LESION_SENSITIVITY), lesions(volumes, [0, 8, 6, 7], LESION_DICE)])
    [found] = cubes(frame, (1.0,))
    small, large = "below 1 ml", "1 ml or more"
    assert set(found.endpoints) == {
        Endpoint("tumour", metric, size) for metric in (LESION_SENSITIVITY, LESION_DICE) for size in (small, large)
    }
    totals, counts = found.by_patient(side(found).values)
    of = {endpoint: (list(totals[:, k]), list(counts[:, k])) for k, endpoint in enumerate(found.endpoints)}
    assert of[Endpoint("tumour", LESION_SENSITIVITY, small)] == ([0, 1], [1, 1])
    assert of[Endpoint("tumour", LESION_DICE, large)] == ([8, 7], [1, 1])
    [whole] = cubes(frame, ())
    assert {endpoint.bin for endpoint in whole.endpoints} == {"any volume"}


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        ([measured({"A": [0.5]})] * 2, "Dice of tumour in case_000 is there twice for A, 3d_fullres, nnUNetPlans"),
        (
            [measured({"A": [0.5, 0.6]}), measured({"B": [0.5, 0.6]}, patients=["case_000", "other"])],
            "case case_001 belongs to two patients; give it the same one",
        ),
    ],
)
def test_tables_that_contradict_each_other_are_refused(frames: list[pd.DataFrame], told: str):
    with pytest.raises(UserError, match=told):
        cube(*frames)
