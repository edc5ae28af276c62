import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_godc.evaluation.case import LabelMeasures, Labels, Options
from nnunet_godc.evaluation.measurement import Measured, measure
from nnunet_godc.evaluation.results import Case, Results
from tests.evaluation.results_folders import ReaderThatIsKilled, segmentation, write_segmentation

ALL = Options(lesions=("tumour",))
COUNTED = {"liver": LabelMeasures(1, 2, 3), "tumour": LabelMeasures(0, 0, 0)}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two cases, predicted perfectly."""
    for part in ("predictions", "references"):
        for case in ("a", "b"):
            write_segmentation(tmp_path / part / f"{case}.nii.gz", segmentation())
    cases = tuple(
        Case(name, 0, tmp_path / "predictions", tmp_path / "references", f"{name}.nii.gz") for name in ("a", "b")
    )
    labels = Labels({"liver": 1, "tumour": 2}, None)
    return Results(tmp_path, "D", "3d", "P", "T", labels, SimpleITKIO, cases)


def run(results: Results, options: Options = ALL, workers: int = 0) -> Measured:
    return measure([results], options, cache=results.folder / "cache", workers=workers)


def numbers(measured: Measured) -> tuple[int, int, int]:
    return measured.counted, measured.kept, measured.read


def test_what_was_measured_is_kept(results: Results):
    first = run(results)
    assert numbers(first) == (0, 0, 2)
    again = run(results)
    assert numbers(again) == (0, 2, 0)
    assert again.cases == first.cases


def test_what_has_changed_is_measured_again(results: Results):
    run(results)
    prediction = results.cases[0].prediction
    write_segmentation(prediction, segmentation(slice(1, 4)))
    os.utime(prediction, ns=(0, 0))
    changed = run(results)
    assert numbers(changed) == (0, 1, 1)
    assert changed.cases[0][1][0][1].labels["liver"].false_negative > 0
    assert numbers(run(results, replace(ALL, nsd_tolerance_mm=1))) == (0, 0, 2)
    assert numbers(run(replace(results, labels=Labels({"liver": (1, 2)}, None)), Options())) == (0, 0, 2)


def test_a_changed_spacing_beside_a_tiff_is_measured_again(results: Results, tmp_path: Path):
    cases = []
    for case in results.cases:
        for path in (case.prediction, case.reference):
            write_segmentation(path.with_name(f"{case.name}.tif"), segmentation())
            path.with_name(f"{case.name}.json").write_text('{"spacing": [1, 1, 1]}')
        cases.append(replace(case, file=f"{case.name}.tif"))
    tiff = replace(results, reader=Tiff3DIO, cases=tuple(cases))
    assert numbers(run(tiff)) == (0, 0, 2)
    for part in ("predictions", "references"):
        (tmp_path / part / "a.json").write_text('{"spacing": [5, 1, 1]}')
    changed = run(tiff)
    assert numbers(changed) == (0, 1, 1)
    assert [measures.voxel_ml for _, measures in changed.cases[0][1]] == [0.005, 0.001]


def test_a_damaged_entry_is_measured_again(results: Results):
    run(results)
    for path in (results.folder / "cache").iterdir():
        path.write_text(path.read_text()[:-5])
    assert numbers(run(results)) == (0, 0, 2)


def test_undefined_values_are_kept_too(results: Results):
    write_segmentation(results.cases[0].prediction, np.zeros_like(segmentation()))
    run(results)
    [(_, cases)] = run(results).cases
    assert np.isnan(cases[0][1].labels["tumour"].surface.hd95)


def test_images_stay_closed_where_the_counts_suffice(results: Results):
    counted = replace(results, cases=tuple(replace(case, counted=COUNTED) for case in results.cases))
    for case in counted.cases:
        case.prediction.unlink()
    measured = run(counted, Options(surface=False))
    assert numbers(measured) == (2, 0, 0)
    assert measured.cases[0][1][0][1].labels == COUNTED
    assert measured.cases[0][1][0][1].voxel_ml is None


def test_one_bad_case_does_not_cost_the_others(results: Results):
    results.cases[0].prediction.write_bytes(b"nothing")
    missing = replace(results.cases[0], name="c", file="c.nii.gz")
    measured = run(replace(results, cases=(*results.cases, missing), problems=("the summary is odd",)))
    assert [case.name for case, _ in measured.cases[0][1]] == ["b"]
    assert measured.problems[0] == "the summary is odd"
    told = sorted(measured.problems[1:])
    assert told[0].startswith("D T__P__3d, fold 0, case a: its prediction cannot be read (RuntimeError): ")
    assert told[1].startswith("D T__P__3d, fold 0, case c: its prediction is missing: ")


def test_a_killed_worker_is_told_and_the_others_go_on(results: Results):
    for part in ("predictions", "references"):
        write_segmentation(results.folder / part / "killed.nii.gz", segmentation())
    killed = replace(results.cases[0], name="killed", file="killed.nii.gz")
    measured = run(replace(results, reader=ReaderThatIsKilled, cases=(*results.cases, killed)), Options(), workers=1)
    assert [case.name for case, _ in measured.cases[0][1]] == ["a", "b"]
    [problem] = measured.problems
    assert "case killed: its worker process was ended from outside" in problem


def test_progress_counts_the_cases_on_images(results: Results):
    seen: list[tuple[int, int]] = []
    measure([results], ALL, cache=results.folder / "cache", workers=0, progress=lambda *told: seen.append(told))
    assert seen == [(0, 2), (1, 2), (2, 2)]
