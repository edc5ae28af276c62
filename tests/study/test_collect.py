"""The report of a study, half-done ones included. The evaluation itself is tested where it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.study.collect import collect
from nnunet_godc.study.definition import Published
from nnunet_godc.study.folder import job_folder, update_state, write_json

TRAINING = "train.Dataset901_Tiny.{}.nnUNetPlans.3d_fullres.fold0"
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerGODC")
EVALUATION = """\
import os, sys
from pathlib import Path
words = sys.argv[1:]
out = Path(words[words.index("--out") + 1])
if not os.environ.get("NO_REPORT"):
    out.mkdir(parents=True, exist_ok=True)
    results = [Path(word).name for word in words[1 : words.index("--out")]]
    against = " against " + words[words.index("--baseline") + 1] if "--baseline" in words else ""
    (out / "report.md").write_text("Evaluated: " + ", ".join(results) + against)
sys.exit(int(os.environ.get("EXIT", "0")))
"""


@pytest.fixture
def study(nnunet: Path, study_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A written study whose evaluation is a stand-in."""
    stand_in = nnunet / "evaluate"
    stand_in.write_text(f"#!/usr/bin/env python3\n{EVALUATION}")
    stand_in.chmod(0o755)
    monkeypatch.setattr("nnunet_godc.study.collect.find_command", lambda name: str(stand_in))
    return study_folder("pancreas", trainers=list(TRAINERS), folds=[0], evaluate={"baseline": "nnUNetTrainer"})


@pytest.fixture
def train(study: Path, nnunet: Path) -> Callable[[str], None]:
    """Does what a training leaves."""

    def done(trainer: str) -> None:
        fold = nnunet / f"results/Dataset901_Tiny/{trainer}__nnUNetPlans__3d_fullres/fold_0"
        (fold / "validation").mkdir(parents=True)
        (fold / "checkpoint_final.pth").touch()
        (fold / "validation" / "summary.json").touch()
        name = TRAINING.format(trainer)
        update_state(study, name, status="done")
        attempt = {
            **{"seconds": 90.0, "gpus": ["NVIDIA H200"], "commit": "abc"},
            "versions": {"nnunetv2": "2.8.1", "python": "3.11.7"},
        }
        write_json(job_folder(study, name).provenance, {"attempts": [attempt]})

    return done


def test_a_half_done_study_is_evaluated_and_says_what_is_missing(study: Path, train: Callable[[str], None]) -> None:
    train("nnUNetTrainer")
    update_state(study, TRAINING.format("nnUNetTrainerGODC"), status="failed", note="x")
    page = collect(study).read_text()
    assert page.startswith("# pancreas\n\n1 of 2 trainings are done.\n")
    assert f"- {TRAINING.format('nnUNetTrainerGODC')} (failed: x)\n" in page
    assert page.endswith(
        "## Dataset901_Tiny\n\nEvaluated: nnUNetTrainer__nnUNetPlans__3d_fullres against nnUNetTrainer\n"
    )


def test_as_long_as_the_baseline_is_missing_the_others_are_compared_with_each_other(
    study: Path, train: Callable[[str], None]
) -> None:
    train("nnUNetTrainerGODC")
    page = collect(study).read_text()
    assert "nnUNetTrainer, the baseline, has no results yet: the others are compared with each other.\n" in page
    assert page.endswith("Evaluated: nnUNetTrainerGODC__nnUNetPlans__3d_fullres\n")
    train("nnUNetTrainer")
    assert "no results yet" not in collect(study).read_text()


def test_a_whole_study_says_what_made_it(study: Path, train: Callable[[str], None]) -> None:
    for trainer in TRAINERS:
        train(trainer)
    page = collect(study).read_text()
    assert "2 of 2 trainings are done." in page
    assert "train.Dataset901" not in page
    for line in (
        "- trained for 3 min 0 s in 2 attempts",
        "- GPU: NVIDIA H200",
        "- commit: abc",
        "- nnunetv2: 2.8.1",
    ):
        assert f"{line}\n" in page
    assert "nnUNetTrainer__nnUNetPlans__3d_fullres, nnUNetTrainerGODC__nnUNetPlans__3d_fullres" in page


def test_a_training_of_unknown_origin_is_named(study: Path, train: Callable[[str], None]) -> None:
    train("nnUNetTrainer")
    name = TRAINING.format("nnUNetTrainer")
    job_folder(study, name).provenance.unlink()
    assert (
        f"there before this study, so that nothing is known of how it was made: {name}\n" in collect(study).read_text()
    )


def test_before_the_first_training_there_is_nothing_to_collect(study: Path) -> None:
    with pytest.raises(UserError, match="no training is done yet"):
        collect(study)


def test_an_evaluation_with_missing_cases_counts_if_it_has_a_report(
    study: Path, train: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("nnUNetTrainer")
    monkeypatch.setenv("EXIT", "1")
    assert "Evaluated" in collect(study).read_text()
    monkeypatch.setenv("NO_REPORT", "1")
    with pytest.raises(UserError, match="the evaluation failed"):
        collect(study)


def test_a_published_table_follows_the_evaluation(
    study: Path, train: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    described = json.loads((study / "study.json").read_text())
    table = {"source": "Table III", "label": "liver", "methods": {"U-Net": {"values": {"Dice": 91.21}}}}
    described["definition"]["published"] = table
    write_json(study / "study.json", described)
    asked = []

    def stand_in(published: Published, evaluation: Path) -> str:
        asked.append((published.source, evaluation))
        return "## Beside published numbers"

    monkeypatch.setattr("nnunet_godc.study.collect.published_table", stand_in)
    train("nnUNetTrainer")
    assert collect(study).read_text().endswith(" against nnUNetTrainer\n\n#### Beside published numbers\n")
    assert asked == [("Table III", study / "evaluation" / "Dataset901_Tiny")]
