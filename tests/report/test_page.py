from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from nnunet_godc.cli import main
from nnunet_godc.report import assets
from nnunet_godc.report.page import FIGURES
from tests.report.conftest import HOSTILE_CASE, HOSTILE_LABEL, Study, log_of

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence" / "lung-nodules"


def test_the_page_holds_its_data_and_nothing_that_a_name_brought_in(study: Study) -> None:
    text = study.page.path.read_text(encoding="utf-8")
    assert "<script>window.hacked" not in text
    assert "<img src=x" not in text
    assert len(re.findall("<script", text)) == 2  # the data, and the page's own
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    entries = {column["name"]: column.get("entries") for column in data["cases"]["columns"]}
    assert HOSTILE_CASE in entries["case"]
    assert HOSTILE_LABEL in entries["label"]
    assert len(data["cases"]["seen"]) == 6
    assert "NaN" not in text.split('id="data">')[1].split("</script>")[0]


def test_pictures_volumes_and_figures_lie_beside_it(study: Study) -> None:
    folder = study.page.path.parent
    text = study.page.path.read_text(encoding="utf-8")
    named = re.findall(r'"(?:picture|small|volume)":"([^"]+)"', text)
    assert len(named) == 18
    assert all((folder / name).stat().st_size > 500 for name in named)
    endings = {path.suffix for path in (folder / FIGURES).iterdir()}
    assert endings == {".pdf", ".svg"}
    assert (folder / FIGURES / "training-curves.pdf").read_bytes().startswith(b"%PDF")


def test_no_name_of_a_machine_or_user_is_in_it(study: Study) -> None:
    text = study.page.path.read_text(encoding="utf-8")
    assert str(study.raw.parent.parent) not in text
    assert "nnUNet_raw" not in text


@pytest.mark.slow
def test_the_evidence_is_reported_from_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [str(path) for path in sorted(EVIDENCE.glob("*.csv.gz"))]
    assert len(tables) == 3
    assert main(["report", *tables, "--out", str(tmp_path), "--baseline", "nnUNetTrainerEvidenceSampleDice"]) == 0
    assert f"open {tmp_path / 'index.html'} in a browser" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / FIGURES).iterdir()}
    assert {"dice-by-volume-nodule.svg", "training-curves.svg", "strip-dice-nodule.svg", "differences.svg"} <= names
    assert not (tmp_path / "cases").exists()


def test_an_evaluation_is_reported_from_its_folder(study: Study, tmp_path: Path) -> None:
    assert main(["report", str(study.page.path.parent), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "index.html").exists()


def test_a_training_without_results_is_in_the_curves_alone(study: Study, tmp_path: Path) -> None:
    running = tmp_path / study.folders[0].parent.name / "nnUNetTrainerGODC_seed3__nnUNetPlans__3d_fullres"
    (running / "fold_1").mkdir(parents=True)
    (running / "fold_1" / "training_log_1.txt").write_text(log_of(range(17)))
    table = study.page.path.parent / "measurements.csv"
    assert main(["report", str(table), str(running), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert '"hint":"fold 1, seed 3"' in text
    assert main(["report", str(running), "--out", str(tmp_path / "out")]) == 1


def test_other_tables_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "epochs.csv"
    pd.DataFrame({"trainer": ["A"], "fold": [0], "epoch": [0], "training_loss": [0.5]}).to_csv(table, index=False)
    assert main(["report", str(table), "--out", str(tmp_path / "out")]) == 1
    assert "there are no measurements" in capsys.readouterr().err
    (tmp_path / "empty.csv").write_text("")
    assert main(["report", str(tmp_path / "empty.csv"), "--out", str(tmp_path / "out")]) == 1
    assert "is not a table that can be read" in capsys.readouterr().err


def test_a_missing_package_is_told_before_anything_is_measured(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> str:
        raise assets.PackageNotFoundError(name)

    monkeypatch.setattr(assets, "version", absent)
    assert assets.page_options() == []
    for command in (["report"], ["evaluate", "--html"]):
        assert main([*command, str(study.page.path.parent / "measurements.csv"), "--out", str(tmp_path / "out")]) == 1
        assert "pip install 'nnunet-godc[report]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_writes_the_page_too(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = study.page.path.parent / "measurements.csv"
    assert main(["evaluate", str(table), "--out", str(tmp_path), "--html", "--resamples", "1000", "-np", "0"]) == 0
    assert "index.html in a browser" in capsys.readouterr().out
    assert (tmp_path / "index.html").exists()


def test_the_viewer_comes_out_of_the_installed_package() -> None:
    scripts = assets.scripts()
    assert scripts["niivue.js"].startswith("/*! NiiVue, out of ipyniivue")
    assert "Redistribution and use" in scripts["niivue.js"][:3000]  # its licence
    assert re.search(r"window\.niivue=\{Niivue:[\w$]+,NVImage:[\w$]+\}", scripts["niivue.js"][-200:])
    assert "plotly.js" in scripts["plotly.min.js"][:300]


def test_a_bundle_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_read", lambda package, path: "export{Nothing as default};")
    with pytest.raises(assets.UserError, match=r"ipyniivue .* is not known here"):
        assets.scripts()


def test_patients_of_a_table_are_those_of_the_report(study: Study, tmp_path: Path) -> None:
    cases = sorted(case for case in study.evaluation.measurements["case"].dropna().unique() if case)
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f'"{case}",{index // 2}\n' for index, case in enumerate(cases)))
    command = ["report", *map(str, study.folders), "--patients", str(table), "--cases", "0", "-np", "0"]
    main([*command, "--out", str(tmp_path / "out")])
    measured = pd.read_csv(tmp_path / "out" / "measurements.csv")
    assert measured.dropna(subset="case")["patient"].nunique() == len(cases) // 2
