import errno
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.metrics import ABSENT_IN_BOTH, HD95, LESION_DICE, LESION_SENSITIVITY, RELATIVE_VOLUME_ERROR
from nnunet_godc.evaluation.reporting import write_report
from tests.evaluation.measured import STUDY, measured

NAN = float("nan")
FILES = ["statistics.csv", "comparisons.csv", "report.json", "report.md", "table.tex"]


@pytest.fixture
def random():
    return np.random.default_rng(23)


@pytest.fixture
def study(random):
    """A baseline, and a variant of it that is better for tumours and no better for livers; 30 patients."""
    tumour, liver = random.uniform(0.2, 0.9, 30), random.uniform(0.9, 0.98, 30)
    noise = random.normal(0, 0.03, (3, 30))
    return pd.concat(
        [
            measured({"nnUNetTrainer": liver, "nnUNetTrainerGODC_50epochs": liver + noise[0] / 10}, label="liver"),
            measured({"nnUNetTrainer": tumour, "nnUNetTrainerGODC_50epochs": tumour + 0.04 + noise[1]}),
        ],
        ignore_index=True,
    )


def report(out, *frames, **options):
    write_report(pd.concat(frames, ignore_index=True), out, resamples=1000, **options)
    return (out / "report.md").read_text(encoding="utf-8")


def table_line(text, beginning):
    return next(line for line in text.splitlines() if line.startswith(f"| {beginning} |"))


def lesions_of(detected, dice, *, bins, trainer="A"):
    rows = [
        {
            **STUDY,
            "trainer": trainer,
            "fold": 0,
            "case": f"case_{number // 2}",
            "patient": f"case_{number // 2}",
            "label": "tumour",
            "lesion": number % 2 + 1,
            "volume_ml": {"below 1 ml": 0.5, "1 ml or more": 4.0}[size],
            "bin": size,
            "detected": bool(found),
            "dice": overlap,
        }
        for number, (found, overlap, size) in enumerate(zip(detected, dice, bins, strict=True))
    ]
    return pd.DataFrame(rows).astype({"fold": "Int64"})


def test_five_files_are_written(study, tmp_path):
    paths = write_report(study, tmp_path / "deep" / "report", resamples=1000)
    assert paths == [tmp_path / "deep" / "report" / name for name in FILES]
    assert all(path.stat().st_size > 100 for path in paths)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(FILES)


def test_tables_for_programs_hold_the_numbers(study, tmp_path):
    report(tmp_path, study)
    statistics = pd.read_csv(tmp_path / "statistics.csv")
    assert len(statistics) == 4
    row = statistics[(statistics.trainer == "nnUNetTrainer") & (statistics.label == "tumour")].iloc[0]
    values = study[(study.trainer == "nnUNetTrainer") & (study.label == "tumour")].value
    assert row["mean"] == pytest.approx(values.mean())
    assert row["median"] == pytest.approx(values.median())
    assert row["mean_low"] < row["mean"] < row["mean_high"]
    assert (row.patients, row.cases, row.seeds) == (30, 30, 1)
    comparisons = pd.read_csv(tmp_path / "comparisons.csv").set_index("label")
    assert comparisons.supported["tumour"]
    assert not comparisons.supported["liver"]
    assert comparisons.sentence["tumour"].startswith("nnUNetTrainerGODC_50epochs raises Dice of tumour by ")
    assert "One training (per fold)" in comparisons.sentence["tumour"]


def test_json_says_the_same_and_how_it_was_made(study, tmp_path):
    report(tmp_path, study, baseline="nnUNetTrainer", seed=4)
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["seed"], content["resamples"], content["baseline"]) == (4, 1000, "nnUNetTrainer")
    assert [row["mean"] for row in content["statistics"]] == pytest.approx(
        list(pd.read_csv(tmp_path / "statistics.csv")["mean"])
    )
    assert len(content["comparisons"]) == 2


def test_what_there_is_not_is_null_in_json_and_empty_in_csv(tmp_path):
    report(tmp_path, measured({"A": [0.5, 0.6], "B": [NAN, NAN]}))
    content = (tmp_path / "report.json").read_text()
    rows = json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))["statistics"]
    assert (rows[0]["mean_low"], rows[1]["mean"]) == (None, None)
    lines = (tmp_path / "statistics.csv").read_text().splitlines()
    assert "nan" not in lines[1].lower()


def test_the_same_measurements_give_the_same_report(study, tmp_path):
    report(tmp_path / "one", study)
    report(tmp_path / "two", study)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_rows_are_methods_and_columns_labels_and_metrics(study, tmp_path):
    text = report(tmp_path, study)
    assert "| Method | liver Dice (%) | tumour Dice (%) |" in text
    line = table_line(text, "nnUNetTrainer")
    mean = study[(study.trainer == "nnUNetTrainer") & (study.label == "tumour")].value.mean()
    assert f" {100 * mean:.1f} [" in line


def test_only_a_supported_difference_makes_bold(study, tmp_path):
    text = report(tmp_path, study)
    better = table_line(text, r"nnUNetTrainerGODC\_50epochs")
    assert better.count("**") == 2
    assert better.rsplit("|", 2)[1].startswith(" **")
    assert "**" not in table_line(text, "nnUNetTrainer")
    assert "Bold: better than every method that it was compared with" in text


def test_a_method_that_misses_the_hard_cases_is_not_bold(random, tmp_path):
    distances = random.lognormal(1.5, 0.4, 40)
    nearer = distances * random.uniform(0.7, 0.9, 40)
    assert "**" in table_line(report(tmp_path, measured({"A": distances, "B": nearer}, metric=HD95)), "B")
    text = report(tmp_path, measured({"A": distances, "B": [NAN] * 10 + list(nearer[10:])}, metric=HD95))
    assert "**" not in table_line(text, "A") + table_line(text, "B")
    assert "not an improvement: left out are 10 cases in which B alone predicts no tumour." in text
    row = pd.read_csv(tmp_path / "comparisons.csv").iloc[0]
    assert (row.supported, row.selective, row.only_method, row.only_against) == (True, True, 0, 10)


def test_the_baseline_is_the_first_row(study, tmp_path):
    turned = study.iloc[::-1]
    text = report(tmp_path, turned, baseline="nnUNetTrainer")
    assert text.index("| nnUNetTrainer |") < text.index("| nnUNetTrainerGODC")
    text = report(tmp_path, turned)
    assert text.index("| nnUNetTrainer |") > text.index("| nnUNetTrainerGODC")


def test_volume_errors_are_said_to_be_signed(random, tmp_path):
    text = report(tmp_path, measured({"A": [-0.1, 0.2, 0.3]}, metric=RELATIVE_VOLUME_ERROR))
    assert "comparisons are of the distances from zero" in text


def test_a_dataset_without_the_baseline_is_reported_without_comparisons(study, tmp_path):
    other = measured({"A": [0.5, 0.6, 0.7], "B": [0.6, 0.7, 0.9]}, dataset="Other")
    text = report(tmp_path, study, other, baseline="nnUNetTrainer")
    assert "## Other, " in text
    assert "Nothing is compared: the baseline nnUNetTrainer is not here, but A, B.\n" in text
    assert set(pd.read_csv(tmp_path / "comparisons.csv").dataset) == {"Dataset501_LiTS"}


def test_why_nothing_is_compared_is_told(random, tmp_path):
    a, b = random.random((2, 9))
    unknown = measured({"other": b}, configuration="")
    text = report(tmp_path, measured({"A": a}), unknown)
    names = r"A (3d\_fullres), other (configuration unknown)."
    assert (
        f"Nothing is compared: methods are compared within one configuration and plans, and these differ: {names}\n"
        in text
    )
    assert table_line(text, "other (configuration unknown)")
    text = report(tmp_path, measured({"A": a}), unknown, baseline="A")
    assert f"no other method has the configuration and plans of the baseline A; here are {names}\n" in text
    text = report(tmp_path, measured({"A": a}), measured({"B": b}, fold=pd.NA))
    first, second = (line for line in text.splitlines() if line.startswith("Nothing is compared"))
    assert first.startswith("Nothing is compared: A is the only method here. B: see Dataset501")
    assert first.endswith(
        "predictions without a fold; cross-validations and predictions without a fold are not compared with each other."
    )
    assert "B is the only method here. A: see Dataset501" in second
    assert "## Dataset501\\_LiTS, nnUNetPlans, cross-validation" in report(tmp_path, unknown)


def test_without_a_baseline_bold_needs_a_win_over_every_other(random, tmp_path):
    base = random.uniform(0.2, 0.9, 40)
    noise = random.normal(0, 0.01, 40)
    frame = measured({"A": base, "B": base + 0.05 + noise, "C": base + 0.05 - noise + noise.mean() * 2})
    assert "**" not in table_line(report(tmp_path, frame), "B")
    assert "**" in table_line(report(tmp_path, frame, baseline="A"), "B")


def test_undefined_cases_are_counted_in_a_note(tmp_path):
    values = [0.5, 0.6, 0.7, 0.8, NAN]
    text = report(tmp_path, measured({"A": values, "B": [*values[:4], NAN]}, state=ABSENT_IN_BOTH))
    assert "<sup>1</sup> Cases left out as undefined: 1 absent in both." in text
    text = report(tmp_path, measured({"A": [*values, 0.9], "B": [0.1, NAN, NAN, 0.4, 0.5, 0.6]}))
    assert "1 absent in prediction: A; 2 absent in prediction: B." in text
    assert "2 only for the first" not in text
    assert "tumour, Dice (%), B and A: 1 only for the first, 2 only for the second" in text


def test_special_characters_in_names_do_no_harm(random, tmp_path):
    values = random.random(8)
    frame = measured({"nnUNetTrainer|x_1": values, "*b*&50%": values / 2}, label="tumour_#1", dataset="Data_{set}")
    text = report(tmp_path, frame)
    assert r"| nnUNetTrainer\|x\_1 |" in text
    assert r"| \*b\*&50% |" in text
    tex = (tmp_path / "table.tex").read_text()
    assert r"nnUNetTrainer\textbar{}x\_1" in tex
    assert r"*b*\&50\%" in tex
    assert r"Data\_\{set\}" in tex


def test_many_columns_are_split_by_label(random, tmp_path):
    metrics = ["Dice", "IoU", "Precision", "Recall"]
    frames = [
        measured({"A": random.random(5)}, label=label, metric=m) for label in ("liver", "tumour") for m in metrics
    ]
    text = report(tmp_path, *frames)
    assert "| Method | liver Dice (%) | liver IoU (%) | liver Precision (%) | liver Recall (%) |" in text
    assert (tmp_path / "table.tex").read_text().count(r"\begin{table*}") == 2


def test_one_method_is_reported_without_comparisons(tmp_path):
    text = report(tmp_path, measured({"A": [0.5, 0.6, 0.7, 0.8]}))
    assert "Nothing is compared: A is the only method here.\n" in text
    assert "Bold" not in text
    assert (tmp_path / "comparisons.csv").read_text().strip() == ""
    assert json.loads((tmp_path / "report.json").read_text())["comparisons"] == []


def test_many_comparisons_are_told_in_full_in_the_csv_alone(random, tmp_path):
    frame = measured({f"T{number:02d}": random.random(6) for number in range(10)})
    text = report(tmp_path, frame)
    assert "For 45 comparisons no difference can be claimed" in text
    assert len(pd.read_csv(tmp_path / "comparisons.csv")) == 45


def test_a_table_says_how_many_comparisons_it_does_not_show(random, tmp_path):
    same = np.tile([0.5, 0.4], 8)
    difference = random.normal(0.1, 0.01, 16)
    frames = [measured({"A": same, "B": same + difference * (number == 0)}, label=str(number)) for number in range(41)]
    text = report(tmp_path, *frames)
    note = "Not shown are 40 of 41 comparisons, for which no difference can be claimed; comparisons.csv has all."
    assert note in text
    assert note in (tmp_path / "table.tex").read_text()
    assert "For 40 more comparisons" in text
    text = report(tmp_path, *frames[:40])
    assert "Not shown" not in text + (tmp_path / "table.tex").read_text()


def test_report_and_table_say_over_how_many_questions_tests_were_made(study, random, tmp_path):
    third = measured({"C": random.random(30)})
    text = report(tmp_path, study)
    assert "Tests were made for 2 questions (label, metric and lesion size): with one comparison in each, no p" in text
    assert "here 0.1 of 2" in text
    note = "not corrected for the table's 2 questions"
    assert ", each of the only comparison in its metric and label, " + note in (tmp_path / "table.tex").read_text()
    assert "(up to 3 comparisons)" in report(tmp_path, study, third)
    assert "over all comparisons of the table in one metric and label, " + note in (tmp_path / "table.tex").read_text()


def test_seeds_are_one_row_with_their_spread(tmp_path):
    seeds = {"A_seed1": [0.5, 0.5, 0.6, 0.6], "A_seed2": [0.6, 0.6, 0.7, 0.7], "B": [0.5, 0.6, 0.6, 0.8]}
    text = report(tmp_path, measured(seeds))
    assert table_line(text, "A").startswith("| A | 60.0")
    assert "Lowest and highest mean of a seed" in text
    assert "| A | 2 | 55.0 to 65.0 |" in text
    assert "| B | 1 |" not in text
    row = pd.read_csv(tmp_path / "statistics.csv").iloc[0]
    assert (row.seeds, row.seed_means) == (2, "0.55 0.65")
    assert row.seed_standard_deviation == pytest.approx(np.std([0.55, 0.65], ddof=1))


def test_variants_may_be_named(tmp_path):
    frame = measured({"first": [0.5, 0.5], "second": [0.6, 0.6], "stock": [0.4, 0.5]})
    text = report(tmp_path, frame, variants={"first": "mine", "second": "mine"})
    assert table_line(text, "mine").startswith("| mine | 55.0")
    assert table_line(text, "stock")


def test_intervals_stay_within_what_a_metric_can_be(tmp_path):
    report(tmp_path, measured({"A": [0.99, 1.0, 1.0, 0.95, 1.0, 0.97]}))
    assert pd.read_csv(tmp_path / "statistics.csv")["mean_high"][0] <= 1


def test_plans_are_named_where_they_tell_methods_apart(random, tmp_path):
    frames = [measured({"A": random.random(9), "B": random.random(9)}, plans=plans) for plans in ("small", "large")]
    text = report(tmp_path, *frames)
    assert "## Dataset501\\_LiTS, 3d\\_fullres, cross-validation" in text
    assert table_line(text, "A (small)")
    assert table_line(text, "B (large)")
    assert "- (small) No difference in Dice of tumour between B and A" in text


def test_nothing_is_assumed_of_the_range_of_a_metric_of_ones_own(tmp_path):
    report(tmp_path, measured({"A": [-3, -1, -2, -2.5, 0.5]}, metric="Score"))
    row = pd.read_csv(tmp_path / "statistics.csv").iloc[0]
    assert row.mean_low < row["mean"] < row.mean_high


def test_distances_are_shown_in_their_unit(tmp_path):
    text = report(tmp_path, measured({"A": [3, 4, 5, 6.25]}, metric=HD95))
    assert "tumour HD95 (mm)" in text
    assert "| A | 4.6 [" in text
    assert "A mean distance is made by its largest ones" in text


def test_small_means_are_not_written_as_zero(random, tmp_path):
    near = random.uniform(0.003, 0.005, 40)
    text = report(tmp_path, measured({"A": near, "B_seed1": near * 0.7, "B_seed2": near * 0.8}, metric=HD95))
    assert f"| B | **{0.75 * near.mean():.3f}** [0.00" in text
    assert f"| B | 2 | {0.7 * near.mean():.3f} to {0.8 * near.mean():.3f} |" in text


def test_few_patients_are_a_reason_for_caution(random, tmp_path):
    assert "Fewer than 50 patients" in report(tmp_path, measured({"A": random.random(49)}))
    text = report(tmp_path, measured({"A": random.random(50)}))
    assert "Fewer than 50 patients" not in text
    assert "A mean distance" not in text


def test_where_there_is_no_interval_the_report_says_so_and_warns_of_none(tmp_path):
    three = measured({"A": [3.0, 4.0, 6.0]}, metric="HD95 (mm)")
    text = report(tmp_path, three)
    assert "Means over cases, 3 cases of 3 patients" in text
    assert "No interval: fewer than four patients" in text
    assert "Fewer than 50 patients" not in text
    assert "A mean distance" not in text


def test_where_there_are_intervals_nothing_is_said_of_none(random, tmp_path):
    assert "No interval" not in report(tmp_path, measured({"A": random.random(8)}))


def test_lesions_are_reported_by_volume(tmp_path):
    bins = ["below 1 ml", "1 ml or more"] * 10
    small, large = [1, 0, 0, 0, 1, 0, 0, 1, 0, 0], [1] * 10
    detected = [found for pair in zip(small, large, strict=True) for found in pair]
    dice = [0.8 * found if size == "below 1 ml" else 0.9 for found, size in zip(detected, bins, strict=True)]
    lesions = pd.concat([lesions_of(detected, dice, bins=bins), lesions_of(detected, dice, bins=bins, trainer="B")])
    text = report(tmp_path, measured({"A": [0.5] * 10, "B": [0.6] * 10}), lesions=lesions)
    rows = pd.read_csv(tmp_path / "statistics.csv").set_index(["trainer", "metric", "bin"]).sort_index()
    found = rows.loc[("A", LESION_SENSITIVITY)]
    assert dict(found["mean"]) == pytest.approx({"below 1 ml": 0.3, "1 ml or more": 1.0})
    assert list(found["cases"]) == [10, 10]
    assert found.mean_low["1 ml or more"] < 0.85  # all of ten: Wilson's interval leaves room
    assert rows.loc[("A", LESION_DICE, "below 1 ml"), "mean"] == pytest.approx(0.24)
    assert "Means over lesions" in text
    assert "tumour, Lesion Dice (%) below 1 ml | tumour, Lesion Dice (%) 1 ml or more |" in text
    assert "left out as undefined" not in text
    assert "Lesion sensitivity of tumour, below 1 ml for 10 patients" in text


def test_several_lesions_of_a_patient_are_one_patient(random, tmp_path):
    detected = random.random(40) < 0.5
    lesions = lesions_of(detected, detected * 0.7, bins=["below 1 ml"] * 40)
    report(tmp_path, measured({"A": [0.5] * 20}), lesions=lesions)
    row = pd.read_csv(tmp_path / "statistics.csv").set_index("metric").loc[LESION_SENSITIVITY]
    assert (row.cases, row.patients) == (40, 20)
    assert row["mean"] == pytest.approx(detected.mean())


def test_lesions_without_bins_are_of_any_volume(tmp_path):
    lesions = lesions_of([1, 0] * 4, [0.5, 0] * 4, bins=["below 1 ml"] * 8).assign(bin="")
    assert "any volume" in report(tmp_path, measured({"A": [0.5] * 4}), lesions=lesions)


def test_a_failure_leaves_the_former_report_as_it_was(study, tmp_path, monkeypatch):
    report(tmp_path, study)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    write_text = Path.write_text

    def full_disk(path, *arguments, **options):
        if "table.tex" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(UserError, match=r"cannot write the report to .*: No space left on device \(.*table\.tex"):
        report(tmp_path, study, seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_in_the_place_of_a_file_leaves_the_other_files_as_they_were(study, tmp_path):
    report(tmp_path, study)
    (tmp_path / "report.md").unlink()
    (tmp_path / "report.md").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"cannot write the report to .*report\.md"):
        write_report(study, tmp_path, resamples=1000, seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert (tmp_path / "report.md").is_dir()


def test_a_file_in_the_place_of_the_folder_is_told(study, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write the report to .*out: File exists"):
        write_report(study, tmp_path / "out", resamples=1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "nnUNetTrainr"}, r"nnUNetTrainr was not measured; did you mean nnUNetTrainer\?"),
        ({"variants": {"nnUNetTrainr": "stock"}}, r"nnUNetTrainr was not measured; did you mean nnUNetTrainer\?"),
        ({"resamples": 100}, "100 resamples"),
        ({"lesions": pd.DataFrame({"case": ["a"]})}, "the lesions lack the column dataset"),
    ],
)
def test_what_cannot_be_reported_is_refused_before_anything_is_written(study, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        write_report(study, tmp_path / "out", **{"resamples": 1000, **options})
    assert not (tmp_path / "out").exists()
