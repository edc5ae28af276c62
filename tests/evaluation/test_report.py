import json

import numpy as np
import pandas as pd
import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.metrics import (
    ABSENT_IN_BOTH,
    GEOMETRY_DIFFERS,
    HD95,
    LESION_DICE,
    LESION_SENSITIVITY,
    PREDICTION_MISSING,
    RELATIVE_VOLUME_ERROR,
)
from nnunet_godc.evaluation.report import COMPARISON_COLUMNS, Report, make_report
from tests.evaluation.measured import measured

NAN = float("nan")
STOCK, GODC = "nnUNetTrainer", "nnUNetTrainerGODC_50epochs"


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(23)


@pytest.fixture
def study(random: np.random.Generator) -> pd.DataFrame:
    """A baseline, and a variant of it that is better for tumours and no better for livers; 30 patients."""
    tumour, liver = random.uniform(0.2, 0.9, 30), random.uniform(0.9, 0.98, 30)
    noise = random.normal(0, 0.03, (2, 30))
    return pd.concat(
        [
            measured({STOCK: liver, GODC: liver + noise[0] / 10 - noise[0].mean() / 10}, label="liver"),
            measured({STOCK: tumour, GODC: tumour + 0.04 + noise[1]}),
        ],
        ignore_index=True,
    )


def report(*frames: pd.DataFrame, **options: object) -> Report:
    return make_report(pd.concat(frames, ignore_index=True), resamples=1000, **options)  # type: ignore[arg-type]


def text(*frames: pd.DataFrame, **options: object) -> str:
    return report(*frames, **options).files["report.md"]


def line(text: str, beginning: str) -> str:
    """The first line of a table that begins like this."""
    return next(line for line in text.splitlines() if line.startswith(f"| {beginning} |"))


def test_csv_and_json_hold_the_same_numbers_and_how_they_were_made(study: pd.DataFrame):
    found = report(study, baseline=STOCK, seed=4)
    content = json.loads(found.files["report.json"])
    assert (content["seed"], content["resamples"], content["baseline"]) == (4, 1000, STOCK)
    rows = found.files["statistics.csv"].splitlines()
    assert len(rows) == 1 + 2 * 3
    own = found.statistics.query("trainer == @STOCK and label == 'tumour'").iloc[0]
    values = study.query("trainer == @STOCK and label == 'tumour'")["value"]
    assert own["mean"] == pytest.approx(values.mean())
    assert (own["patients"], own["cases"], own["trainings"]) == (30, 30, 1)
    assert [row["mean"] for row in content["statistics"]] == list(found.statistics["mean"])
    assert [row["sentence"] for row in content["comparisons"]] == list(found.comparisons["sentence"])
    assert found.comparisons.set_index("label")["significant"].to_dict()["tumour"]
    assert not found.comparisons.set_index("label")["significant"].to_dict()["liver"]


def test_what_there_is_not_is_null_in_json_and_empty_in_csv():
    files = report(measured({"A": [0.5, 0.6], "B": [NAN, NAN]})).files
    rows = json.loads(files["report.json"], parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert (rows["statistics"][0]["low"], rows["statistics"][1]["mean"]) == (None, None)
    assert "nan" not in files["statistics.csv"] + files["comparisons.csv"]
    assert "| B | 1 | - |" in files["report.md"]


def test_the_same_measurements_give_the_same_report(study: pd.DataFrame):
    assert report(study).files == report(study).files


def test_without_comparisons_their_table_is_its_header_and_the_report_says_why():
    files = report(measured({"A": [0.5, 0.6, 0.7, 0.8]})).files
    assert files["comparisons.csv"] == ",".join(COMPARISON_COLUMNS) + "\n"
    assert json.loads(files["report.json"])["comparisons"] == []
    assert "Nothing is compared: A is the only method here.\n" in files["report.md"]
    assert "Bold" not in files["report.md"]


def test_why_nothing_is_compared_is_told(study: pd.DataFrame, random: np.random.Generator):
    a, b = random.random((2, 9))
    unknown = measured({"other": b}, configuration="")
    told = text(measured({"A": a}), unknown)
    names = r"A (3d\_fullres), other (configuration unknown)."
    assert f"methods are compared within one configuration and plans, and these differ: {names}\n" in told
    assert line(told, "other (configuration unknown)")
    told = text(measured({"A": a}), unknown, baseline="A")
    assert f"no other method has the configuration and plans of the baseline A; here are {names}\n" in told
    told = text(measured({"A": a}), measured({"B": b}, fold=pd.NA))
    assert "A is the only method here. B: see Dataset501\\_LiTS, 3d\\_fullres, nnUNetPlans, predictions without" in told
    assert "B is the only method here. A: see Dataset501" in told
    other = measured({"A": a, "B": b}, dataset="Other")
    found = report(study, other, baseline=STOCK)
    assert "Nothing is compared: the baseline nnUNetTrainer is not here, but A, B.\n" in found.files["report.md"]
    assert set(found.comparisons["dataset"]) == {"Dataset501_LiTS"}


def test_bold_is_what_is_better_than_every_other(study: pd.DataFrame, random: np.random.Generator):
    told = text(study, table=["dice"])
    head = told[: told.index("by label")]
    assert "**" in line(head, GODC.replace("_", r"\_"))
    assert "**" not in line(head, STOCK)
    tex = report(study).files["table.tex"]
    assert r"\textbf{" in next(row for row in tex.splitlines() if row.startswith(r"tumour & nnUNetTrainerGODC\_50"))
    assert "Bold: better than every method that it was compared with" in told
    base, noise = random.uniform(0.2, 0.9, 40), random.normal(0, 0.01, 40)
    three = measured({"A": base, "B": base + 0.05 + noise, "C": base + 0.05 - noise + noise.mean() * 2})
    assert "**" not in line(text(three), "B")
    assert "**" in line(text(three, baseline="A"), "B")
    worse = text(measured({"A": base, "B": base - 0.05 + noise}), baseline="A")
    assert "**" in line(worse, "A")
    assert "**" not in line(worse, "B")


def test_selectively_missing_cases_leave_a_difference_that_is_neither_bold_nor_an_improvement(
    random: np.random.Generator,
):
    precision = random.uniform(0.3, 0.6, 40)
    better = precision + random.uniform(0.1, 0.2, 40)
    clear = report(measured({"A": precision, "B": better}, metric="Precision"))
    assert "**" in line(clear.files["report.md"], "B")
    assert "an improvement of this model over that one" in clear.files["report.md"]
    found = report(measured({"A": precision, "B": [NAN] * 10 + list(better[10:])}, metric="Precision"))
    assert "**" not in line(found.files["report.md"], "A") + line(found.files["report.md"], "B")
    assert r"\textbf" not in found.files["table.tex"]
    assert "- On the 30 cases that both define, the trained B is" in found.files["report.md"]
    assert "not an improvement: left out are 10 cases in which B alone predicts no tumour." in found.files["report.md"]
    row = found.comparisons.iloc[0]
    expected = (True, True, 0, 10)
    assert (row["significant"], row["selectively_missing"], row["only_method"], row["only_against"]) == expected


def test_distances_show_their_median_and_never_a_zero():
    told = text(measured({"A": [3, 4, 5, 6, 7, 8, 100]}, metric=HD95), table=["hd95"])
    assert "| Method | trainings | HD95 (mm), median |" in told
    assert line(told, "A").startswith("| A | 1 | 6.0 [")
    assert "a mean distance is made by its largest ones" in told
    small = text(measured({"A": [0.003, 0.004, 0.005, 0.0041]}, metric=HD95))
    assert line(small, "A").startswith("| A | 1 | 0.004")


def test_a_claimed_difference_is_written_with_as_many_decimals_as_it_takes():
    base = np.linspace(0.3, 0.6, 40)
    step = 0.00003 + 0.00001 * np.sin(np.arange(40))
    told = text(measured({"A": base, "B": base + step}), baseline="A")
    assert "| Dice (%) | Dice against A |" in told
    assert r"0.0030 [0.0028, 0.0033], \< 0.001 |" in told
    assert "is 0.0030 points higher in Dice of tumour than the trained A, an improvement" in told
    assert "[0.0, 0.0]" not in told


def test_unmeasured_cases_stand_in_report_and_latex_with_number_and_reason(study: pd.DataFrame):
    gone = study.query("trainer == @STOCK and label == 'liver'").iloc[:5].assign(label="", metric="", value=NAN)
    gone["case"] = gone["patient"] = [f"gone_{number}" for number in range(5)]
    gone["state"] = [PREDICTION_MISSING] * 3 + [GEOMETRY_DIFFERS] * 2
    files = report(study, gone).files
    assert "| Dataset501\\_LiTS | nnUNetTrainer | its prediction is missing | 3 | 35 |" in files["report.md"]
    assert "| nnUNetTrainer | prediction and reference differ in geometry | 2 | 35 |" in files["report.md"]
    told = "3 of 35 of nnUNetTrainer (its prediction is missing); 2 of 35 of nnUNetTrainer (prediction and reference d"
    assert f"Not measured: {told}" in files["table.tex"]
    assert "could not be measured" not in text(study)
    assert "Not measured" not in report(study).files["table.tex"]


def test_undefined_cases_are_counted_by_reason():
    told = text(measured({"A": [0.5, 0.6, 0.7, 0.8, NAN]}, state=ABSENT_IN_BOTH))
    assert "| Dice (%) | tumour | A | 4 | 1 absent in both | 65.0 [" in told
    [row] = report(measured({"A": [0.5, NAN, NAN]})).statistics.itertuples()
    assert (row.cases, row.patients) == (1, 1)
    assert report(measured({"A": [0.5, NAN, NAN]})).statistics["absent in prediction"].iloc[0] == 2


def test_special_characters_in_names_do_no_harm(random: np.random.Generator):
    values = random.random(8)
    frame = measured({"nnUNetTrainer|x_1": values, "*b*&50%": values / 2}, label="tumour_#1", dataset="Data_{set}")
    files = report(frame).files
    assert r"| nnUNetTrainer\|x\_1 | 1 |" in files["report.md"]
    assert r"| \*b\*&50% | 1 |" in files["report.md"]
    assert r"nnUNetTrainer\textbar{}x\_1 &" in files["table.tex"]
    assert r"{}*b*\&50\% &" in files["table.tex"]
    assert r"Data\_\{set\}" in files["table.tex"]
    assert r"tumour\_\#1" in files["table.tex"]


def test_the_metrics_of_the_tables_are_chosen_by_how_their_names_begin(random: np.random.Generator):
    names = ["Dice", "IoU", "Precision", "Recall", RELATIVE_VOLUME_ERROR, HD95]
    frames = [measured({"A": random.random(5)}, metric=metric) for metric in names]
    assert "| Method | trainings | Dice (%) | Precision (%) | Recall (%) |" in text(*frames)
    chosen = report(*frames, table=["relative_volume", "IOU", "hd95"])
    assert "| trainings | Relative volume error (%) | IoU (%) | HD95 (mm), median |" in chosen.files["report.md"]
    assert r"Method & trainings & Relative volume error (\%) & IoU (\%) & HD95" in chosen.files["table.tex"]
    assert len(chosen.statistics) == len(names)
    with pytest.raises(UserError, match="no metric begins with 'surface'; measured are Dice, IoU"):
        report(*frames, table=["dice", "surface"])


def test_many_comparisons_are_told_in_full_in_the_csv_alone(random: np.random.Generator):
    found = report(measured({f"T{number:02d}": random.random(6) for number in range(10)}))
    assert "For 45 other comparisons no difference can be claimed" in found.files["report.md"]
    assert len(found.comparisons) == 45


def test_seeds_are_one_row_with_their_spread_as_the_yardstick():
    runs = {"A_seed1": [0.5, 0.5, 0.6, 0.6], "A_seed2": [0.6, 0.6, 0.7, 0.7], "B": [0.5, 0.6, 0.6, 0.8]}
    found = report(measured(runs))
    assert line(found.files["report.md"], "A").startswith("| A | 2 | 60.0")
    assert "| A | Dice of tumour | 55.0, 65.0 | 10.0 points | 7.1 |" in found.files["report.md"]
    assert "| B | Dice of tumour |" not in found.files["report.md"]
    row = found.statistics.iloc[0]
    assert row["training_sd"] == pytest.approx(np.std([0.55, 0.65], ddof=1))
    assert found.files["statistics.csv"].splitlines()[1].count("0.55 0.65") == 1


def test_what_a_reader_has_to_know_is_told_where_it_holds_alone(random: np.random.Generator):
    few, enough = text(measured({"A": random.random(49)})), text(measured({"A": random.random(50)}))
    assert "Fewer than 50 patients" in few
    assert "Fewer than 50 patients" not in enough
    assert "No interval: fewer than four patients" in text(measured({"A": [0.3, 0.4, 0.6]}))
    assert "No interval" not in few
    signed = text(measured({"A": [-0.1, 0.2, 0.3]}, metric=RELATIVE_VOLUME_ERROR))
    assert "comparisons are of the distances from zero" in signed
    assert "distances from zero" not in few


def test_where_there_is_no_interval_none_is_written():
    assert "| A | 1 | 43.3 |" in text(measured({"A": [0.3, 0.4, 0.6]}))


def test_lesions_are_reported_by_volume_and_patients_counted_once():
    volumes, small = [0.5, 4.0] * 10, [1, 0, 0, 0, 1, 0, 0, 1, 0, 0]
    detected = [found for each in small for found in (each, 1)]
    cases = [f"case_{number // 4:03d}" for number in range(20)]  # two small and two large ones in each
    numbers = pd.array([number % 4 + 1 for number in range(20)], "Int64")
    about = {"case": cases, "patient": cases, "lesion": numbers, "volume_ml": volumes}
    lesions = [
        measured({"A": detected}, metric=LESION_SENSITIVITY).assign(**about),
        measured({"A": [0.8 * found for found in detected]}, metric=LESION_DICE).assign(**about),
    ]
    found = report(measured({"A": [0.5] * 5}), *lesions, lesion_bins_ml=(1.0,))
    rows = found.statistics.set_index(["metric", "bin"]).sort_index()
    sensitivity = rows.loc[LESION_SENSITIVITY]
    assert dict(sensitivity["mean"]) == pytest.approx({"below 1 ml": 0.3, "1 ml or more": 1.0})
    assert [*sensitivity["cases"], *sensitivity["patients"]] == [10, 10, 5, 5]
    assert sensitivity.loc["1 ml or more", "low"] < 0.85  # all of them: Wilson's interval leaves room
    assert rows.loc[(LESION_DICE, "below 1 ml"), "mean"] == pytest.approx(0.24)
    assert "by lesion volume" in found.files["report.md"]
    assert "| tumour, below 1 ml | A | 10 | 30.0 [" in found.files["report.md"]


def test_plans_are_named_where_they_tell_methods_apart(random: np.random.Generator):
    frames = [measured({"A": random.random(9), "B": random.random(9)}, plans=plans) for plans in ("small", "large")]
    told = text(*frames)
    assert "## Dataset501\\_LiTS, 3d\\_fullres, cross-validation" in told
    assert line(told, "A (small)")
    assert line(told, "B (large)")
    assert "- (small) No difference in Dice of tumour between these trained models of B and A" in told


def test_the_baseline_is_the_first_row(study: pd.DataFrame):
    turned = study.iloc[::-1]
    for baseline, first in ((STOCK, True), (None, False)):
        told = text(turned, baseline=baseline)
        assert (told.index(f"| {STOCK} |") < told.index("| nnUNetTrainerGODC")) == first


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"baseline": "nnUNetTrainr"}, r"nnUNetTrainr was not measured; did you mean nnUNetTrainer\?"),
        ({"baseline": "X"}, r"X was not measured; known are nnUNetTrainer, nnUNetTrainerGODC_50epochs"),
    ],
)
def test_a_baseline_that_was_not_measured_is_refused(options: dict[str, str], told: str, study: pd.DataFrame):
    with pytest.raises(UserError, match=told):
        report(study, **options)


def test_too_few_resamples_and_nothing_measured_are_refused(study: pd.DataFrame):
    with pytest.raises(UserError, match="999 resamples do not settle an interval; take 1000 or more"):
        make_report(study, resamples=999)
    with pytest.raises(UserError, match="no case could be measured"):
        report(study.assign(label="", metric="", value=NAN, state=PREDICTION_MISSING))
