"""What is said of one training per side, and of several. Fuller figures: benchmarks/trainings.py."""

import numpy as np
import pandas as pd
import pytest

from nnunet_godc.evaluation import evaluate
from tests.evaluation.measured import measured

trainings = pytest.importorskip("benchmarks.trainings", reason="the benchmarks are not in the source distribution")


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize("seeds", [2, 3])
def test_equal_methods_are_told_apart_in_5_of_100_studies(folds: int, spread: float, seeds: int):
    cube = trainings.draw(np.random.default_rng(0), 4000, seeds, folds, (spread, spread), 0.0)
    assert 0.03 < np.mean(trainings.claimed(cube)) < 0.065  # 0.04 to 0.06 in truth; standard error 0.0035


def study(seeds: int, spread: float, gain: float = 0.0) -> pd.DataFrame:
    random = np.random.default_rng(5)
    values = {}
    patients = random.uniform(0.5, 0.8, 60)
    for method, better in (("A", 0.0), ("B", gain)):
        for seed in range(1, seeds + 1):
            name = f"nnUNetTrainer{method}_seed{seed}"
            values[name] = patients + better + random.normal(0, spread) + random.normal(0, 0.01, 60)
    return measured(values)


def test_one_training_per_side_speaks_of_trained_models_and_not_of_methods():
    [row] = evaluate(study(1, 0.0, gain=0.05), resamples=1000).comparisons.itertuples()
    assert row.significant
    assert not row.new_trainings
    assert row.sentence.startswith(
        "The trained nnUNetTrainerB is 5.19 points higher in Dice of tumour than the trained"
    )
    found = evaluate(study(1, 0.0, gain=0.05), resamples=1000)
    assert "speaks of these trained models on new patients, and of no method" in found.report


def test_several_trainings_that_lie_apart_widen_the_interval_and_are_shown_as_the_yardstick():
    few, far = (evaluate(study(3, spread, gain=0.02), resamples=1000) for spread in (0.0, 0.03))
    near, wide = few.comparisons.iloc[0], far.comparisons.iloc[0]
    assert near["new_trainings"]
    assert near["significant"]
    assert near["sentence"].startswith("nnUNetTrainerB raises Dice of tumour by")
    assert "3 and 3 trainings per fold" in near["sentence"]
    assert wide["high"] - wide["low"] > 5 * (near["high"] - near["low"])
    assert not wide["significant"]
    assert "The yardstick" in far.report


def test_crossed_interval_of_one_group_is_the_two_sample_t_interval_where_patients_do_not_differ():
    table = study(3, 0.03)
    row = evaluate(table, resamples=1000).comparisons.iloc[0]
    means = table.groupby("trainer")["value"].mean().to_numpy().reshape(2, 3)
    error = np.sqrt(means.var(axis=1, ddof=1).sum() / 3)
    assert row["difference"] == pytest.approx(means[1].mean() - means[0].mean())
    assert row["freedom"] == pytest.approx(4, abs=0.1)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(2.776 * error, rel=0.02)


def test_one_point_in_59_of_60_patients_alike_is_a_claim():
    base = np.full(60, 0.5)
    better = base + 0.01
    better[7] = 0.5
    [row] = evaluate(measured({"A": base, "B": better}), resamples=1000).comparisons.itertuples()
    assert row.significant
    assert "no interval, the patients' differences being too alike" in row.sentence


def test_a_training_that_lacks_a_fold_does_not_take_its_cases_away():
    values = np.linspace(0.5, 0.9, 20)
    first = [measured({"A_seed1": values}), measured({"A_seed2": values})]
    second = measured({"A_seed1": values}, fold=1).assign(
        case=lambda t: "other" + t["case"], patient=lambda t: t["case"]
    )
    found = evaluate(pd.concat([*first, second], ignore_index=True), resamples=1000)
    assert found.statistics.iloc[0]["cases"] == 40


def test_the_headline_is_the_mean_over_labels_of_the_means_over_cases():
    liver = measured({"A": [0.9, 0.8, 1.0, 0.9], "B": [0.8, 0.8, 0.9, 0.9]}, label="liver")
    tumour = measured({"A": [0.5, np.nan, 0.7, 0.6], "B": [0.5, np.nan, 0.6, 0.6]})
    found = evaluate(pd.concat([liver, tumour], ignore_index=True), resamples=1000)
    first = found.statistics.query("label == 'mean over labels' and trainer == 'A'").iloc[0]
    assert first["mean"] == pytest.approx((0.9 + 0.6) / 2)
    assert found.comparisons.iloc[0]["difference"] == pytest.approx(-(0.05 + 0.1 / 3) / 2)


def test_without_comparisons_the_table_has_its_header():
    found = evaluate(measured({"A": [0.1, 0.2, 0.3, 0.4]}), resamples=1000)
    assert len(found.comparisons) == 0
    assert "sentence" in found.comparisons.columns


def test_an_unknown_metric_of_the_tables_is_an_error():
    with pytest.raises(Exception, match="no metric begins with 'hd95'; measured are Dice"):
        evaluate(measured({"A": [0.1, 0.2]}), table=["hd95"], resamples=1000)
