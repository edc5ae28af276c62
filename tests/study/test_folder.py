"""When a job counts as done."""

import json
import shutil
from pathlib import Path

import pytest

from nnunet_godc.study.folder import is_done, update_state
from nnunet_godc.study.jobs import Job


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
    (tmp_path / "jobs" / "preprocess").mkdir(parents=True)
    return tmp_path


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
