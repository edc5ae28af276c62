"""A study whose commands are stand-ins, in nnU-Net's folders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_godc.study import planning
from nnunet_godc.study.definition import Study
from nnunet_godc.study.folder import read_state, read_study_folder
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.run import dry_run, run_study
from nnunet_godc.study.study_file import read_study
from nnunet_godc.study.trainers import Code
from tests.study.waiting import wait_until

SMALL = """\
datasets: [901]
trainers: [nnUNetTrainer]
folds: [0, 1]
resources: {device: cpu, cpus: 2}
"""
ON_SLURM = SMALL.replace("device: cpu", "device: cpu, executor: slurm")
PREDICTED = SMALL + "predict: {images: imagesTs, references: labelsTs}\n"
VARIATION = SMALL + "plans: [{name: Small, from: nnUNetPlans, patch_size: [23, 40, 24], features: 8, stages: 3}]\n"
EVALUATION = "evaluate.Dataset901_Tiny"
TRAINING = "train.Dataset901_Tiny.nnUNetTrainer.nnUNetPlans.3d_fullres.fold"
GODC = "nnUNetTrainerGODC"
STAND_IN = Path(__file__).with_name("stand_in.py")

RUNNER = f"""
import signal, sys
from dataclasses import replace
from pathlib import Path
from nnunet_godc.study import planning, run
from nnunet_godc.study.study_file import read_study
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell makes its background jobs ignore
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
root = sys.argv[1]
run.jobs_of = lambda *of: [
    replace(job, command=("python", {str(STAND_IN)!r}, root, *job.command)) for job in planning.jobs_of(*of)
]
run.run_study(read_study(Path(root, "study.yaml")), Path(root, "out"))
"""


class Workspace:
    """nnU-Net's folders, a study file, and its folder `out`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        self.trainers: dict[str, Code] = {}

    def run(self, text: str = SMALL, *, retrain: bool = False) -> bool:
        return run_study(self.read(text), self.out, trainers=self.trainers, retrain=retrain)

    def dry_run(self, text: str) -> tuple[list[str], list[str]]:
        return dry_run(self.read(text), self.out, trainers=self.trainers)

    def read(self, text: str) -> Study:
        (self.root / "study.yaml").write_text(text)
        return read_study(self.root / "study.yaml")

    def files(self) -> dict[Path, str]:
        """All that the folder says of the study and its jobs."""
        return {path: path.read_text() for path in self.out.rglob("*.json") if path.name != "runner.json"}

    def start(self, text: str = SMALL) -> subprocess.Popen[str]:
        (self.root / "study.yaml").write_text(text)
        command = [sys.executable, "-c", RUNNER, str(self.root)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @contextmanager
    def training(self) -> Iterator[subprocess.Popen[str]]:
        """A run whose trainings last until `go_on` is called."""
        (self.root / "wait").touch()
        with self.start() as process:
            try:
                wait_until(lambda: self.trained)
                yield process
            except BaseException:
                process.terminate()  # or leaving `with` would wait for ever
                raise

    def go_on(self) -> None:
        (self.root / "wait").unlink()

    @property
    def called(self) -> list[str]:
        """The commands in the order of their calls, with the options that tell trainings apart."""
        diary = self.root / "diary"
        lines = [line.split() for line in diary.read_text().splitlines()] if diary.exists() else []
        return [
            " ".join((words[0], *words[3:6:2], *(word for word in words if word in ("--c", "--val"))))
            if words[0] == "nnUNetv2_train"
            else words[0]
            for words in lines
        ]

    @property
    def trained(self) -> list[str]:
        return [line.removeprefix("nnUNetv2_train ") for line in self.called if line.startswith("nnUNetv2_train")]

    def statuses(self) -> dict[str, str]:
        _, jobs = read_study_folder(self.out)
        return {job.id: read_state(self.out, job.id).status for job in jobs}


def stand_ins_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace in nnU-Net's folders below `root`, in which every command of a study is a stand-in."""

    def stand_ins(study: Study, folder: Path) -> list[Job]:
        jobs = planning.jobs_of(study, folder)
        return [replace(job, command=("python", str(STAND_IN), str(root), *job.command)) for job in jobs]

    monkeypatch.setattr("nnunet_godc.study.run.jobs_of", stand_ins)
    for name in ("imagesTs", "labelsTs"):
        (root / "raw/Dataset901_Tiny" / name).mkdir()
    return Workspace(root)
