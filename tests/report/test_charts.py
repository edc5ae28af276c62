from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from nnunet_godc.evaluation import evaluate
from nnunet_godc.evaluation.cube import Method
from nnunet_godc.report.charts import Chart, Series, reference_volumes, section_charts, short_names, slug, smooth
from tests.report.conftest import BASELINE, HOSTILE_LABEL, Study

KEY = ["dataset", "case", "label"]


def methods(*trainers: str) -> list[Method]:
    return [Method("2d", "nnUNetPlans", trainer) for trainer in trainers]


@pytest.mark.parametrize(
    ("trainers", "names"),
    [
        (["nnUNetTrainer", "nnUNetTrainerGODC", "nnUNetTrainerLFAM"], ["nnUNetTrainer", "GODC", "LFAM"]),
        (["nnUNetTrainerGODC", "nnUNetTrainerGODCLFAM"], ["nnUNetTrainerGODC", "LFAM"]),
        (["nnUNetTrainerGODC"], ["nnUNetTrainerGODC"]),
        (["mine", "yours"], ["mine", "yours"]),
        (["nnUNetTrainerDemo", "nnUNetTrainerDice"], ["Demo", "Dice"]),  # not "emo" and "ice"
    ],
)
def test_short_names_leave_out_what_all_trainers_begin_with(trainers: list[str], names: list[str]) -> None:
    assert list(short_names(methods(*trainers)).values()) == names


def test_short_names_keep_what_else_tells_methods_apart() -> None:
    both = [Method("2d", "nnUNetPlans", "nnUNetTrainer"), Method("3d_fullres", "nnUNetPlans", "nnUNetTrainer")]
    assert list(short_names(both).values()) == ["nnUNetTrainer (2d)", "nnUNetTrainer (3d_fullres)"]


def test_a_smooth_is_a_mean_over_neighbours_and_ends_where_there_are_few() -> None:
    log_volumes = np.repeat([0.0, 2.0], 50)
    values = np.repeat([10.0, 30.0], 50)
    line = smooth(log_volumes, values, np.array([0.0, 1.0, 2.0, 5.0]))
    np.testing.assert_allclose(line[[0, 2]], [10, 30])
    assert np.isnan(line[[1, 3]]).all()  # five standard deviations from any point
    assert smooth(np.zeros(50), np.arange(50.0), np.zeros(1))[0] == pytest.approx(24.5)


def test_volumes_of_the_references_follow_from_the_long_table(study: Study) -> None:
    volumes = reference_volumes(study.evaluation.measurements)
    import nibabel

    voxels = np.asarray(nibabel.load(study.raw / "labelsTr" / "case_04.nii.gz").dataobj)
    for label, value in (("liver", 1), (HOSTILE_LABEL, 2)):
        expected = np.count_nonzero(voxels == value) * 2 * 1 * 0.5 / 1000
        assert volumes[study.evaluation.results[0].dataset, "case_04", label] == pytest.approx(expected)
    assert not any(case == "case_00" and label == HOSTILE_LABEL for _, case, label in volumes)  # it has no tumour


@pytest.fixture(scope="module")
def charts(study: Study) -> dict[str, Chart]:
    section = next(part.section for part in study.evaluation.parts if part.section is not None)
    measurements = study.evaluation.measurements
    found = section_charts(section, measurements, reference_volumes(measurements), BASELINE)
    return {chart.name: chart for chart in found}


def test_differences_are_those_of_the_comparisons(charts: dict[str, Chart], study: Study) -> None:
    rows = study.evaluation.comparisons
    row = rows[(rows["metric"] == "Dice") & (rows["label"] == "mean over labels")].iloc[0]
    panel = charts["differences"].panels[0]
    (interval,) = panel.series
    assert [*interval.x, *interval.low, *interval.high] == pytest.approx(
        [100 * row["difference"], 100 * row["low"], 100 * row["high"]]
    )
    assert list(panel.y.ticks) == ["GODC"]


def test_the_yardstick_has_a_point_for_each_seed(charts: dict[str, Chart], study: Study) -> None:
    rows = study.evaluation.statistics
    means = rows[(rows["metric"] == "Dice") & (rows["label"] == "mean over labels")]["seed_means"]
    drawn = [list(series.x) for series in charts["yardstick"].panels[0].series]
    assert drawn == [pytest.approx([100 * mean for mean in own]) for own in means]


def test_case_by_case_shows_means_over_seeds_where_both_are_defined(charts: dict[str, Chart], study: Study) -> None:
    chart = charts["paired-dice-liver"]
    (panel,) = chart.panels
    (points,) = panel.series
    rows = study.evaluation.measurements.astype({"trainer": str, "case": str})
    own = rows[(rows["metric"] == "Dice") & (rows["label"] == "liver") & (rows["case"] == chart.cases[points.at[0]])]
    for trainer, value in ((BASELINE, points.x[0]), (f"{BASELINE}GODC", points.y[0])):
        seeds = own[own["trainer"].isin([f"{trainer}_seed1", f"{trainer}_seed2"])]["value"]
        assert value == pytest.approx(100 * seeds.mean(), rel=1e-4)
    tumour = charts[slug(f"paired-dice-{HOSTILE_LABEL}")].panels[0].series[0]
    assert len(tumour.x) < len(points.x)  # where there is no tumour, there is no Dice
    assert not any(map(math.isnan, tumour.x))


def test_lesions_are_drawn_where_labels_have_them_and_cases_elsewhere(charts: dict[str, Chart]) -> None:
    liver, tumour = (charts[slug(f"dice-by-volume-{label}")] for label in ("liver", HOSTILE_LABEL))
    assert liver.panels[0].x.label.startswith("volume of liver in the case")
    assert tumour.panels[0].x.label == "volume of the lesion (ml)"
    points: Series = tumour.panels[0].series[0]
    assert len(points.x) > len(set(points.at))  # cases with several lesions
    assert list(charts).index(tumour.name) < list(charts).index(liver.name)
    assert charts[slug(f"found-by-volume-{HOSTILE_LABEL}")].panels[0].title == "Share that was found"


def test_tables_alone_are_enough(study: Study) -> None:
    table = study.evaluation.measurements
    overlap = table[table["lesion"].isna() & table["metric"].isin(["Dice", "Precision", "Recall", ""])]
    alone = evaluate(pd.DataFrame(overlap), baseline=BASELINE, resamples=1000)
    section = next(part.section for part in alone.parts if part.section is not None)
    names = [chart.name for chart in section_charts(section, alone.measurements, {}, BASELINE)]
    assert "paired-dice-liver" in names
    assert not any("by-volume" in name for name in names)
    assert any(
        chart.name == "dice-by-volume-liver"
        for chart in section_charts(
            section, alone.measurements, reference_volumes(study.evaluation.measurements), BASELINE
        )
    )


def test_no_panel_is_empty_where_lesions_are_few(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_godc.report.charts.FEWEST_NEIGHBOURS", 1000.0)
    measurements = study.evaluation.measurements
    section = next(part.section for part in study.evaluation.parts if part.section is not None)
    drawn = section_charts(section, measurements, reference_volumes(measurements), BASELINE)
    assert any("found-by-volume" in chart.name for chart in drawn)
    for chart in drawn:
        for panel in chart.panels:
            assert any(np.isfinite(np.asarray(series.y, dtype=float)).any() for series in panel.series), chart.name
