"""When a job counts as done."""

import json
import shutil
from pathlib import Path

import pytest

from nnunet_godc.study.folder import State, current_states, update_state, write_state
from nnunet_godc.study.jobs import Job, Kind


@pytest.fixture
def preprocessing(tmp_path: Path) -> Job:
    """One that is done, of plans that share the data of others."""
    data = tmp_path / "dataset" / "nnUNetPlans_2d"
    data.mkdir(parents=True)
    (data / "case.pkl").touch()
    plans = data.with_name("nnUNetResEncUNetMPlans.json")
    plans.write_text(json.dumps({"configurations": {"2d": {"data_identifier": data.name}}}))
    job = Job("preprocess", "preprocess", ("true",), plans_file=str(plans), configuration="2d")
    update_state(tmp_path, job.id, status="done")
    return job


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    for name in ("preprocess", "train", "predict", "evaluate", "first", "later"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    return tmp_path


def is_done(folder: Path, job: Job, *needed: Job) -> bool:
    return current_states(folder, [*needed, job])[job.id].status == "done"


def test_preprocessing_is_done_as_long_as_its_data_is_there(folder: Path, preprocessing: Job) -> None:
    assert is_done(folder, preprocessing)
    data = folder / "dataset" / "nnUNetPlans_2d"
    (data / "case.pkl").unlink()
    assert not is_done(folder, preprocessing)
    shutil.rmtree(data)
    assert not is_done(folder, preprocessing)


def test_plans_that_do_not_say_where_their_data_is_are_believed(folder: Path, preprocessing: Job) -> None:
    Path(preprocessing.plans_file).write_text("{}")
    assert is_done(folder, preprocessing)


def job(name: str, kind: Kind, *needs: str, made: Path | None = None) -> Job:
    expected = () if made is None else (str(made),)
    return Job(
        id=name,
        kind=kind,
        command=("true",),
        depends_on=needs,
        expected=expected,
        skip_if_output_exists=kind == "train",
    )


@pytest.mark.parametrize(("kind", "done"), [("predict", False), ("ensemble", False), ("train", True)])
def test_only_what_lasts_outlives_what_it_was_made_from(tmp_path: Path, kind: Kind, done: bool) -> None:
    first, later = job("first", "train"), job("later", kind, "first")
    write_state(tmp_path, "later", State("done", start=1.0, end=2.0))
    for state, as_it_is in (
        (State("done", start=0.0, end=1.0), True),
        (State("done", start=3.0, end=4.0), done),
        (State("done", start=3.0), done),  # killed with its watcher
        (State("done"), True),  # there before the study
        (State("failed", start=0.0, end=1.0), done),
    ):
        write_state(tmp_path, "first", state)
        assert is_done(tmp_path, later, first) == as_it_is, state


def test_what_is_made_of_something_outdated_is_outdated(tmp_path: Path) -> None:
    jobs = [job("train", "train"), job("predict", "predict", "train"), job("evaluate", "evaluate", "predict")]
    for end, name in ((9.0, "train"), (2.0, "predict"), (3.0, "evaluate")):
        write_state(tmp_path, name, State("done", end=end))
    assert [state.status for state in current_states(tmp_path, jobs).values()] == ["done", "pending", "pending"]


def test_a_training_that_is_gone_outdates_its_predictions(tmp_path: Path) -> None:
    train, predict = job("train", "train", made=tmp_path / "made"), job("predict", "predict", "train")
    write_state(tmp_path, "predict", State("done", end=2.0))
    assert not is_done(tmp_path, predict, train)
    (tmp_path / "made").touch()
    assert is_done(tmp_path, predict, train)


def test_jobs_of_other_studies_are_not_asked(tmp_path: Path) -> None:
    predict = job("predict", "predict", "trained elsewhere")
    write_state(tmp_path, "predict", State("done", end=2.0))
    assert is_done(tmp_path, predict)
