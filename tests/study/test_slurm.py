"""A study on Slurm: what is submitted, and what becomes of it when jobs fail, are killed, preempted or run out of time.

`.ci/slurm COMMAND` starts a cluster of two nodes for a command.
"""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from nnunet_godc.commands import find_command
from nnunet_godc.errors import UserError
from nnunet_godc.study import slurm
from nnunet_godc.study.definition import Slurm
from nnunet_godc.study.folder import State, job_folder, read_state, write_jobs, write_state
from nnunet_godc.study.jobs import Job, Resources, Resume
from nnunet_godc.study.run import cancel_study, refresh_jobs
from nnunet_godc.study.slurm import SlurmExecutor
from nnunet_godc.study.status import job_statuses
from nnunet_godc.study.study_file import find_study_file
from tests.study.waiting import wait_until
from tests.study.workspace import EVALUATION, GODC, ON_SLURM, Workspace

HIPPOCAMPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "hippocampus"
CASES = 10

SECONDS_TO_WAIT = 300  # the machine may be busy
SECONDS_TO_WAIT_FOR_SMOKE = 3600  # minutes where nothing else runs
UNFINISHED = {"queued", "running", "interrupted"}


def ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Study:
    """Jobs in a folder, and an executor for them."""

    def __init__(self, folder: Path, jobs: Sequence[Job], options: Mapping[str, Any]) -> None:
        self.folder, self.jobs, self.executor = folder, jobs, SlurmExecutor(Slurm(**options))
        write_jobs(folder, jobs)

    def run(self) -> None:
        self.executor.run(self.folder, self.jobs)

    def state(self, name: str) -> State:
        return read_state(self.folder, name)

    def statuses(self) -> dict[str, str]:
        self.executor.refresh(self.folder, self.jobs)
        return {job.id: self.state(job.id).status for job in self.jobs}

    def log(self, name: str) -> str:
        return job_folder(self.folder, name).log.read_text()

    def slurm_id(self, name: str) -> str:
        return self.state(name).scheduler_id

    def wait(self) -> dict[str, str]:
        """Until nothing runs or waits any more."""
        return self.wait_until(lambda: not UNFINISHED & set(self.statuses().values()))

    def wait_until(self, condition: Callable[[], bool]) -> dict[str, str]:
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while not condition():
            assert time.monotonic() < deadline, {job.id: self.state(job.id) for job in self.jobs}
            time.sleep(0.2)
        return self.statuses()


@pytest.fixture(scope="session")
def cluster() -> None:
    try:
        subprocess.run(["scontrol", "ping"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no Slurm answers here; `.ci/slurm make test-slurm` starts one")


MakeStudy = Callable[..., Study]


@pytest.fixture
def make_study(cluster: None, tmp_path: Path) -> Iterator[MakeStudy]:
    """Makes a study of the given jobs, and cancels it at the end."""
    studies = []

    def make(*jobs: Job, **options: Any) -> Study:
        studies.append(Study(tmp_path / f"study{len(studies)}", jobs, options))
        return studies[-1]

    yield make
    for study in studies:
        study.executor.cancel(study.folder, study.jobs)


def make_job(name: str, script: str = "", *, kind: str = "train", **fields: Any) -> Job:
    fields.setdefault("resources", Resources(minutes=5))
    return Job(id=name, kind=kind, command=("python", "-c", script), **fields)  # type: ignore[arg-type]


def make_training(name: str, checkpoint: Path, **fields: Any) -> Job:
    """Writes its checkpoint at once and never ends, unless it goes on from the checkpoint."""
    script = (
        "import os, sys, time; print('on', os.environ['SLURMD_NODENAME'], flush=True); "
        f"'--c' in sys.argv or (open({str(checkpoint)!r}, 'w').close(), time.sleep(3600))"
    )
    return make_job(name, script, resume=(Resume(str(checkpoint), ("--c",)),), **fields)


@pytest.fixture
def half_trained(make_study: MakeStudy, tmp_path: Path) -> Study:
    """A study whose training has written a checkpoint and runs, and whose prediction waits for it."""
    checkpoint = tmp_path / "checkpoint"
    study = make_study(make_training("train", checkpoint), make_job("predict", kind="predict", depends_on=("train",)))
    study.run()
    study.wait_until(checkpoint.exists)
    return study


@pytest.mark.slurm
def test_a_failed_job_stops_its_dependents_and_no_others(make_study: MakeStudy, tmp_path: Path) -> None:
    repaired = tmp_path / "repaired"
    study = make_study(
        make_job("plan", kind="plan"),
        make_job("train-0", depends_on=("plan",)),
        make_job("train-1", f"open({str(repaired)!r})", depends_on=("plan",)),
        make_job("train-2", depends_on=("plan",)),
        make_job("predict-0", kind="predict", depends_on=("train-0",)),
        make_job("predict-1", kind="predict", depends_on=("train-1",)),
        make_job("evaluate-0", kind="evaluate", depends_on=("predict-0", "plan")),
        make_job("evaluate-1", kind="evaluate", depends_on=("predict-1", "plan")),
    )
    study.run()
    done = {"plan": "done", "train-0": "done", "train-2": "done", "predict-0": "done", "evaluate-0": "done"}
    assert study.wait() == {**done, "train-1": "failed", "predict-1": "not run", "evaluate-1": "not run"}
    assert "No such file" in study.log("train-1")
    assert not job_folder(study.folder, "predict-1").log.exists()

    repaired.touch()
    study.run()
    assert set(study.wait().values()) == {"done"}
    assert {name: study.state(name).attempts for name in ("plan", "train-0", "train-1", "predict-1")} == {
        "plan": 1,
        "train-0": 1,
        "train-1": 2,
        "predict-1": 1,
    }


@pytest.mark.slurm
def test_jobs_of_one_kind_and_need_make_one_array(make_study: MakeStudy) -> None:
    large = Resources(cpus=2, memory_gb=0.5, minutes=7)
    study = make_study(
        *(make_job(f"small-{index}") for index in range(3)),
        *(make_job(f"large-{index}", resources=large) for index in range(2)),
        parallel=1,
    )
    study.run()
    small = [study.slurm_id(f"small-{index}") for index in range(3)]
    array = small[0].removesuffix("_0")
    assert small == [f"{array}_0", f"{array}_1", f"{array}_2"]
    assert "ArrayTaskThrottle=1" in ask("scontrol", "show", "job", array)
    description = ask("scontrol", "show", "job", study.slurm_id("large-1"))
    assert not study.slurm_id("large-1").startswith(array)
    for asked in ("CPUs/Task=2", "MinMemoryNode=512M", "TimeLimit=00:07:00", "Requeue=1"):
        assert asked in description
    assert set(study.wait().values()) == {"done"}


@pytest.mark.slurm
def test_a_job_sees_the_cores_it_asked_for_and_what_the_set_up_set(make_study: MakeStudy) -> None:
    script = "import os; print(*(os.environ[name] for name in ('SLURM_CPUS_PER_TASK', 'SET_UP', 'OWN')))"
    study = make_study(
        make_job("job", script, resources=Resources(cpus=2, minutes=5), environment={"OWN": "own"}),
        setup=["export SET_UP=before"],
        extra={"comment": "asked for"},
    )
    study.run()
    assert study.wait() == {"job": "done"}
    assert "2 before own\n" in study.log("job")
    assert "Comment=asked for" in ask("scontrol", "show", "job", study.slurm_id("job"))


@pytest.mark.slurm
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_job_sees_as_many_gpus_as_it_asked_for(make_study: MakeStudy, gpus: int) -> None:
    if "gpu" not in ask("sinfo", "--noheader", "--format=%G"):
        pytest.skip("the cluster has no GPUs")
    script = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    study = make_study(make_job("train", script, resources=Resources(gpus=gpus, minutes=5)))
    study.run()
    assert study.wait() == {"train": "done"}
    assert len(study.log("train").splitlines()[-1].split(",")) == gpus


@pytest.mark.slurm
def test_a_requeued_training_goes_on_from_its_checkpoint(half_trained: Study) -> None:
    ask("scontrol", "requeue", half_trained.slurm_id("train"))
    assert half_trained.wait() == {"train": "done", "predict": "done"}
    assert half_trained.state("train").attempts == 2


@pytest.mark.slurm
def test_a_training_preempted_by_a_partition_of_higher_priority_goes_on_afterwards(half_trained: Study) -> None:
    if "urgent" not in ask("sinfo", "--noheader", "--format=%R").split():
        pytest.skip("the cluster has no partition `urgent` that preempts the others")
    training = half_trained.slurm_id("train")
    node = ask("squeue", "--noheader", "--format=%N", "--jobs", training).strip()
    options = ("--parsable", "--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null")
    urgent = ask("sbatch", *options, "--wrap=sleep 5")
    wait_until(lambda: "RUNNING" in ask("squeue", "--noheader", "--format=%T", "--jobs", urgent.strip()), seconds=60)
    assert half_trained.statuses() == {"train": "queued", "predict": "queued"}
    assert half_trained.wait() == {"train": "done", "predict": "done"}
    assert half_trained.state("train").attempts == 2


@pytest.mark.slurm
def test_a_killed_training_has_failed_and_the_next_run_goes_on_from_its_checkpoint(half_trained: Study) -> None:
    state = half_trained.state("train")
    assert state.pid
    assert state.group
    os.kill(state.pid, signal.SIGKILL)
    os.killpg(state.group, signal.SIGKILL)
    assert half_trained.wait() == {"train": "failed", "predict": "not run"}
    assert "FAILED" in half_trained.state("train").note
    half_trained.run()
    assert half_trained.wait() == {"train": "done", "predict": "done"}


@pytest.mark.slurm
def test_a_training_cancelled_behind_the_studys_back_goes_on_with_the_next_run(half_trained: Study) -> None:
    ask("scancel", "--signal=KILL", half_trained.slurm_id("train"))
    half_trained.wait_until(lambda: half_trained.statuses() == {"train": "interrupted", "predict": "pending"})
    half_trained.run()
    assert half_trained.wait() == {"train": "done", "predict": "done"}


@pytest.mark.slurm
def test_at_the_time_limit_only_what_can_go_on_is_requeued(make_study: MakeStudy, tmp_path: Path) -> None:
    one_minute = Resources(minutes=1)
    first = make_study(
        make_training("train", tmp_path / "first", resources=one_minute),
        make_job("preprocess", "import time; time.sleep(3600)", kind="preprocess", resources=one_minute),
    )
    second = make_study(make_training("train", tmp_path / "second", resources=one_minute), requeues=0)
    first.run()
    second.run()
    assert first.wait() == {"train": "done", "preprocess": "failed"}
    assert second.wait() == {"train": "failed"}
    assert first.state("train").attempts == 2
    assert "reached its time limit" in first.state("preprocess").note
    assert "too many times" in second.state("train").note


@pytest.mark.slurm
def test_a_training_whose_node_goes_down_goes_on_on_another(half_trained: Study) -> None:
    nodes = set(ask("sinfo", "--noheader", "--Node", "--format=%N").split())
    if len(nodes) < 2 or "slurm-for-tests" not in os.environ.get("SLURM_CONF", ""):
        pytest.skip("the cluster has one node only, or is not ours to take one of its nodes down")
    node = ask("squeue", "--noheader", "--format=%N", "--jobs", half_trained.slurm_id("train")).strip()
    daemon = Path(os.environ["SLURM_CONF"]).with_name(f"slurmd.{node}.pid")
    group, pid = half_trained.state("train").group, half_trained.state("train").pid
    assert group
    assert pid
    # as without power
    os.kill(int(daemon.read_text()), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    os.killpg(group, signal.SIGKILL)
    ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        assert half_trained.wait() == {"train": "done", "predict": "done"}
        assert half_trained.state("train").attempts == 2
        on = re.findall("^on (.*)", half_trained.log("train"), re.MULTILINE)
        assert len(set(on)) == 2
        assert on[0] == node
    finally:
        subprocess.run(["slurmd", "-N", node], check=True)


@pytest.mark.slurm
def test_trainers_and_folds_are_added_while_the_evaluation_waits(cluster: None, workspace: Workspace) -> None:
    small = ON_SLURM.replace("cpus: 2", "cpus: 1")
    (workspace.root / "wait").touch()
    try:
        assert workspace.run(small)
        wait_until(lambda: workspace.trained)
        waiting = read_state(workspace.out, EVALUATION).scheduler_id
        assert workspace.run(
            small.replace("[0, 1]", "[0, 1, 2]").replace("[nnUNetTrainer]", f"[nnUNetTrainer, {GODC}]")
        )
        assert read_state(workspace.out, EVALUATION).scheduler_id != waiting
        workspace.go_on()
        wait_until(lambda: {entry.state.status for entry in job_statuses(workspace.out)} == {"done"}, seconds=120)
    finally:
        cancel_study(workspace.out)
    assert sorted(workspace.trained) == sorted(
        f"{fold} {name}" for fold in (0, 1, 2) for name in ("nnUNetTrainer", GODC)
    )
    assert workspace.called.count("nnunet-godc") == 1


@pytest.mark.slurm
def test_a_second_run_submits_nothing_twice(half_trained: Study) -> None:
    before = [half_trained.slurm_id(job.id) for job in half_trained.jobs]
    half_trained.run()
    assert [half_trained.slurm_id(job.id) for job in half_trained.jobs] == before
    assert half_trained.statuses() == {"train": "running", "predict": "queued"}


@pytest.mark.slurm
def test_a_cancelled_study_goes_on_with_the_next_run(half_trained: Study) -> None:
    half_trained.executor.cancel(half_trained.folder, half_trained.jobs)
    assert half_trained.statuses() == {"train": "interrupted", "predict": "pending"}
    half_trained.run()
    assert half_trained.wait() == {"train": "done", "predict": "done"}
    assert half_trained.state("train").attempts == 2


@pytest.mark.slurm
def test_what_slurm_refuses_is_told_and_leaves_no_job(make_study: MakeStudy) -> None:
    study = make_study(make_job("train"), partition="nonesuch")
    with pytest.raises(UserError, match=r"train.*invalid partition"):
        study.run()
    assert study.statuses() == {"train": "pending"}


@pytest.mark.slurm
def test_without_a_time_limit_of_its_own_a_job_gets_the_partitions(make_study: MakeStudy) -> None:
    study = make_study(make_job("train", resources=Resources()))
    study.run()
    limit = ask("sinfo", "--noheader", "--format=%l").strip()
    described = ask("squeue", "--states=all", "--noheader", "--format=%l", "--jobs", study.slurm_id("train"))
    assert described.strip().lower() in (limit, "unlimited")


@pytest.mark.slurm
def test_a_partition_that_does_not_exist_is_told(make_study: MakeStudy) -> None:
    study = make_study(make_job("train", resources=Resources()), partition="nonesuch")
    with pytest.raises(UserError, match="no partition nonesuch"):
        study.run()


@pytest.mark.slurm
def test_ctrl_c_during_submission_loses_no_job(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(make_job("train"), make_job("predict", kind="predict", depends_on=("train",)))
    command = slurm._slurm

    def interrupted(*words: str) -> str:
        if words[:2] == ("scontrol", "release"):
            signal.raise_signal(signal.SIGINT)
        return command(*words)

    monkeypatch.setattr(slurm, "_slurm", interrupted)
    # a shell lets what it runs in the background ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        study.run()
    signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert study.state("train").status in ("queued", "running", "done")
    assert study.state("predict").status == "pending"
    study.run()
    assert study.wait() == {"train": "done", "predict": "done"}
    assert study.state("train").attempts == 1


@pytest.mark.slurm
def test_a_run_that_ended_before_its_jobs_were_released_is_gone_on_with(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(make_job("train"), make_job("predict", kind="predict", depends_on=("train",)))
    monkeypatch.setattr(slurm, "_release", lambda slurm_ids: None)
    study.run()
    monkeypatch.undo()
    held = {"train": "queued", "predict": "queued"}
    study.wait_until(lambda: study.statuses() == held and "JobHeldUser" in study.state("train").note)
    study.run()
    assert study.wait() == {"train": "done", "predict": "done"}


@pytest.mark.slurm
def test_a_study_can_be_submitted_from_inside_a_job(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    # srun ends at once where both of the last two are set
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "100", "SLURM_MEM_PER_NODE": "100"}.items():
        monkeypatch.setenv(name, value)
    study = make_study(make_job("train"))
    study.run()
    assert os.environ["SLURM_JOB_ID"] == "1"
    assert study.wait() == {"train": "done"}


@pytest.mark.slurm
def test_a_job_that_ends_before_it_begins_points_to_what_slurm_logged(make_study: MakeStudy) -> None:
    study = make_study(make_job("train"), setup=["module-that-does-not-exist || exit 3"])
    study.run()
    assert study.wait() == {"train": "failed"}
    (log,) = (study.folder / "slurm").glob("*_0_log.out")
    assert f"slurm/{log.name}" in study.state("train").note
    assert "module-that-does-not-exist" in log.read_text()


@pytest.mark.slurm
def test_the_accounts_understand_what_they_are_asked(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    command = slurm._slurm

    def record(*words: str) -> str:
        asked.append(words)
        return command(*words)

    monkeypatch.setattr(slurm, "_slurm", record)
    assert slurm._ask_slurm(["4000000"]) == {"4000000": (slurm.FORGOTTEN, "")}
    assert asked[-1][0] == "sacct"
    answer = subprocess.run(asked[-1], capture_output=True, text=True)
    assert answer.returncode == 0 or "accounting storage is disabled" in answer.stderr


def test_without_slurm_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    study = Study(tmp_path / "study", [make_job("train")], {})
    with pytest.raises(UserError, match="is not to be found"):
        study.run()


@pytest.mark.parametrize(
    ("word", "running", "queued"),
    [
        ("NODE_FAIL", "interrupted", "pending"),
        ("PREEMPTED", "interrupted", "pending"),
        ("OUT_OF_MEMORY", "failed", "failed"),
        ("TIMEOUT", "failed", "failed"),
        ("COMPLETING", "running", "queued"),
        ("SUSPENDED", "running", "queued"),
    ],
)
def test_what_slurm_says_of_a_job_becomes_its_state(
    tmp_path: Path, pretend: Callable[[str, str], None], word: str, running: str, queued: str
) -> None:
    study = Study(tmp_path / "study", [make_job("running"), make_job("queued"), make_job("done")], {})
    write_state(study.folder, "running", State("running", scheduler_id="7_0", attempts=1))
    write_state(study.folder, "queued", State("queued", scheduler_id="7_1"))
    write_state(study.folder, "done", State("done", scheduler_id="6"))
    pretend("squeue", f"echo '7_0|{word}|None'; echo '7_1|{word}|None'; echo '6|FAILED|None'")
    assert study.statuses() == {"running": running, "queued": queued, "done": "done"}


def test_what_the_queue_has_forgotten_is_looked_up_in_the_accounts(
    tmp_path: Path, pretend: Callable[[str, str], None]
) -> None:
    # As the cascade's second stage needs folds of the first that another study may have trained.
    first = make_job("first", depends_on=("trained elsewhere",))
    study = Study(tmp_path / "study", [first, make_job("second", depends_on=("first",))], {})
    write_state(study.folder, "first", State("running", scheduler_id="8", attempts=1))
    write_state(study.folder, "second", State("queued", scheduler_id="9"))
    pretend("squeue", "echo '10|RUNNING|None'")
    pretend("sacct", "echo '8|OUT_OF_MEMORY'; echo '9|CANCELLED by 1000'")
    assert study.statuses() == {"first": "failed", "second": "not run"}


def test_a_job_of_which_nothing_is_known_any_more_goes_on_with_the_next_run(
    tmp_path: Path, pretend: Callable[[str, str], None]
) -> None:
    study = Study(tmp_path / "study", [make_job("first"), make_job("second", depends_on=("first",))], {})
    write_state(study.folder, "first", State("running", scheduler_id="8", attempts=1))
    write_state(study.folder, "second", State("queued", scheduler_id="9"))
    pretend("squeue", "")
    pretend("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert study.statuses() == {"first": "interrupted", "second": "pending"}


def test_jobs_that_an_earlier_run_left_on_hold_are_released(
    tmp_path: Path, pretend: Callable[[str, str], None]
) -> None:
    study = Study(tmp_path / "study", [make_job("left"), make_job("waits"), make_job("held by others")], {})
    for number, job in enumerate(study.jobs):
        write_state(study.folder, job.id, State("queued", scheduler_id=f"7_{number}"))
    pretend("squeue", "echo '7_0|PENDING|JobHeldUser'; echo '7_1|PENDING|Priority'; echo '7_2|PENDING|JobHeldAdmin'")
    pretend("scontrol", f"echo $* >> {tmp_path}/told")
    study.statuses()
    assert "JobHeldUser, until the next `study run`" in study.state("left").note
    assert not (tmp_path / "told").exists()
    study.run()
    assert (tmp_path / "told").read_text() == "release 7_0\n"


def test_a_colleagues_jobs_are_looked_up_too(tmp_path: Path, pretend: Callable[[str, str], None]) -> None:
    study = Study(tmp_path / "study", [make_job("train")], {})
    write_state(study.folder, "train", State("running", scheduler_id="8", attempts=1))
    pretend("squeue", "case $1 in --jobs=8) echo '8|RUNNING|None';; esac")
    assert study.statuses() == {"train": "running"}


def test_a_job_that_runs_without_the_cluster_is_none_of_its_business(
    tmp_path: Path, pretend: Callable[[str, str], None]
) -> None:
    study = Study(tmp_path / "study", [make_job("here"), make_job("there")], {})
    write_state(study.folder, "here", State("running", host=socket.gethostname(), attempts=1))
    write_state(study.folder, "there", State("running", host=socket.gethostname(), scheduler_id="8", attempts=1))
    pretend("squeue", "echo '8|RUNNING|None'")
    refresh_jobs(study.folder, study.jobs)
    assert {job.id: study.state(job.id).status for job in study.jobs} == {"here": "interrupted", "there": "running"}


def test_a_failure_that_the_job_has_told_itself_is_kept(tmp_path: Path, pretend: Callable[[str, str], None]) -> None:
    study = Study(tmp_path / "study", [make_job("train")], {})
    write_state(study.folder, "train", State("running", scheduler_id="8", attempts=1))
    told = State("failed", scheduler_id="8", attempts=1, return_code=1, note="ended with exit status 1")
    write_jobs(tmp_path / "later", study.jobs)
    write_state(tmp_path / "later", "train", told)
    # It ends while the queue is being asked.
    pretend("squeue", f"cp {tmp_path}/later/jobs/train/state.json {study.folder}/jobs/train/; echo '8|FAILED|None'")
    study.statuses()
    assert study.state("train") == told


def test_no_array_is_larger_than_the_cluster_allows() -> None:
    jobs = [make_job(f"train-{index}") for index in range(5)]
    arrays = slurm._arrays(jobs, {job.id: frozenset[str]() for job in jobs}, 2)
    assert [[job.id for job in array] for array in arrays] == [
        ["train-0", "train-1"],
        ["train-2", "train-3"],
        ["train-4"],
    ]


def write_dataset(folder: Path) -> None:
    """The first cases of the hippocampus; blocks of two labels where it is not at hand."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    found = sorted((HIPPOCAMPUS / "imagesTr").glob("hippocampus_*.nii.gz"))[:CASES]
    for path in found:
        shutil.copy(path, folder / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copy(HIPPOCAMPUS / "labelsTr" / path.name, folder / "labelsTr")
    random = np.random.default_rng(0)
    for number in range(0 if found else CASES):
        labels = np.zeros((36, 50, 36), np.uint8)
        z, y, x = random.integers(4, 12, size=3)
        labels[z : z + 20, y : y + 15, x : x + 20] = 1
        labels[z : z + 20, y + 15 : y + 30, x : x + 20] = 2
        image = (100 * labels + random.normal(0, 30, labels.shape)).astype(np.float32)
        for kind, ending, voxels in (("images", "_0000", image), ("labels", "", labels)):
            nibabel.save(
                nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{kind}Tr" / f"block_{number}{ending}.nii.gz"
            )
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def submit_smoke(folder: Path, raw: Path) -> Path:
    """Submits the shipped study in folders of its own, two jobs at once; returns the study's."""
    shipped = find_study_file("smoke").read_text()
    assert "  cpus: 2\n" in shipped
    (folder / "smoke.yaml").write_text(shipped.replace("  cpus: 2\n", "  cpus: 1\n"))
    folders = {"nnUNet_raw": raw}
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        folders[name] = folder / name
        folders[name].mkdir()
    study = folder / "study"
    subprocess.run(
        [find_command("nnunet-godc"), "study", "run", "smoke.yaml", "--executor", "slurm", "--out", str(study)],
        check=True,
        cwd=folder,
        env={**os.environ, **{name: str(path) for name, path in folders.items()}},
    )
    return study


def has_checkpoint(job: Job) -> bool:
    # whole: one that is being written is no zip file yet
    return job.kind == "train" and zipfile.is_zipfile(Path(job.expected[0]).with_name("checkpoint_latest.pth"))


def left_by(training: Job) -> set[str]:
    """Names of what a training has left, but for its validation cases."""
    folder = Path(training.expected[0]).parent
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".nii.gz")}
    # nnU-Net names a log by the time, and begins one at each attempt
    return {name for name in files if not name.startswith("training_log")}


@pytest.mark.slurm
@pytest.mark.slow
def test_smoke_on_slurm_survives_a_requeue_which_changes_nothing_of_what_it_leaves(
    cluster: None, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "raw" / "Dataset004_Hippocampus")
    study = submit_smoke(tmp_path, tmp_path / "raw")
    requeued = None
    deadline = time.monotonic() + SECONDS_TO_WAIT_FOR_SMOKE
    statuses = job_statuses(study)
    while UNFINISHED & {entry.state.status for entry in statuses}:
        assert time.monotonic() < deadline, statuses
        halfway = [entry for entry in statuses if entry.state.status == "running" and has_checkpoint(entry.job)]
        if halfway and requeued is None:
            requeued = halfway[0].job.id
            ask("scontrol", "requeue", halfway[0].state.scheduler_id)
        time.sleep(1)
        statuses = job_statuses(study)

    assert {entry.state.status for entry in statuses} == {"done"}
    assert {entry.job.id: entry.state.attempts for entry in statuses if entry.state.attempts != 1} == {requeued: 2}
    assert requeued is not None
    first, second = re.split("^=== attempt 2", job_folder(study, requeued).log.read_text(), flags=re.MULTILINE)
    assert second.splitlines()[0].endswith("--c")
    epochs = [[int(epoch) for epoch in re.findall(r"Epoch (\d+)", attempt)] for attempt in (first, second)]
    assert 0 < epochs[1][0] <= epochs[0][-1] + 1, epochs

    trainings = [entry.job for entry in statuses if entry.job.kind == "train"]
    assert len(trainings) == 2 * 2  # trainers, folds
    (interrupted,) = (job for job in trainings if job.id == requeued)
    assert "checkpoint_final.pth" in left_by(interrupted)
    for job in trainings:
        assert left_by(job) == left_by(interrupted)
    (table,) = study.rglob("measurements.csv")
    with table.open(newline="") as file:
        of_cases = [row for row in csv.DictReader(file) if row["case"]]
    measured = {tuple(row[name] for name in ("trainer", "fold", "case", "label")) for row in of_cases}
    # each on two cases, two labels
    assert len(measured) == len(trainings) * 2 * 2
