"""nnU-Net's own commands as subprocesses, in folders of their own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_godc.commands import find_command, small_environment
from tests.end_to_end.tiny_dataset import DATASET, PLANS, SPLITS, add_cascade, narrow, write_dataset

SHOWN_ON_FAILURE = 6000  # characters: a traceback, and what led to it


@dataclass
class Workspace:
    """nnU-Net's three folders and a user's folder of trainers.

    Attributes:
        folder: holds everything.
        trained: (dataset, configuration, fold, trainer, plans) of what has been trained.
    """

    folder: Path
    trained: set[tuple[str, ...]] = field(default_factory=set)

    @property
    def raw(self) -> Path:
        return self.folder / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        return self.folder / "nnUNet_results"

    @property
    def users_trainers(self) -> Path:
        return self.folder / "my_trainers"

    def environment(self, command: str, results: Path | None = None) -> dict[str, str]:
        variables = small_environment(self.raw, self.preprocessed, results or self.results)
        variables["nnUNet_extTrainer"] = str(self.users_trainers)
        if command in ("nnUNetv2_train", sys.executable):
            # The main process augments: a worker takes longer to start than these trainings take. The planner has no
            # use for 0.
            variables["nnUNet_n_proc_DA"] = "0"
        return variables

    def run(self, *command: str | Path, succeeds: bool = True, results: Path | None = None) -> str:
        """Runs a command to its end and returns what it printed.

        Args:
            command: a command's name and its arguments.
            succeeds: False where it has to fail.
            results: another folder of models than the workspace's.
        """
        finished = subprocess.run(
            self.arguments(*command),
            env=self.environment(str(command[0]), results),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if (finished.returncode == 0) != succeeds:
            line = " ".join(map(str, command))
            pytest.fail(
                f"{line}\nended with exit status {finished.returncode}; the end of what it printed:\n"
                f"{finished.stdout[-SHOWN_ON_FAILURE:]}"
            )
        return finished.stdout

    @contextmanager
    def start(self, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
        """Starts a command, to read what it prints line by line; ends it with the block."""
        with subprocess.Popen(
            self.arguments(*command),
            env=self.environment(str(command[0])),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def arguments(self, *command: str | Path) -> list[str]:
        name, *arguments = map(str, command)
        return [find_command(name), *arguments]

    def model(self, dataset: str, configuration: str, trainer: str, plans: str) -> Path:
        return self.results / dataset / f"{trainer}__{plans}__{configuration}"

    def train(self, dataset: str, configuration: str, fold: int, trainer: str, plans: str, *options: str) -> Path:
        """Trains on the CPU, unless that has been done, and returns the fold's folder."""
        what = (dataset, configuration, str(fold), trainer, plans)
        if what not in self.trained:
            self.run("nnUNetv2_train", *what[:3], "-tr", trainer, "-p", plans, "-device", "cpu", *options)
            self.trained.add(what)
        return self.model(dataset, configuration, trainer, plans) / f"fold_{fold}"

    def predict(
        self,
        images: Path,
        out: Path,
        *options: str | Path,
        folds: Sequence[int] = (0,),
        results: Path | None = None,
    ) -> Path:
        """Predicts on the CPU, without worker processes, and returns `out`."""
        self.run(
            *("nnUNetv2_predict", "-i", images, "-o", out, "-f", *map(str, folds), *options),
            *("-device", "cpu", "-npp", "0", "-nps", "0"),
            results=results,
        )
        return out


@pytest.fixture(scope="session")
def make_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """Makes a workspace with a module of trainers in the user's folder, given as its text."""

    def make(trainers: str) -> Workspace:
        workspace = Workspace(tmp_path_factory.mktemp("nnunet"))
        for folder in (workspace.raw, workspace.preprocessed, workspace.results, workspace.users_trainers):
            folder.mkdir()
        (workspace.users_trainers / "my_trainers.py").write_text(trainers)
        return workspace

    return make


@pytest.fixture(scope="session")
def tiny_workspace(make_workspace: Callable[[str], Workspace]) -> Workspace:
    """The tiny dataset, planned and preprocessed, split into two folds so that both together predict every case."""
    workspace = make_workspace("")
    write_dataset(workspace.raw / DATASET)
    workspace.run("nnUNetv2_plan_and_preprocess", "-d", "901", "--verify_dataset_integrity", "--no_pp", "-npfp", "1")
    preprocessed = workspace.preprocessed / DATASET
    add_cascade(preprocessed / f"{PLANS}.json", narrow(preprocessed / f"{PLANS}.json"))
    workspace.run(
        *("nnUNetv2_preprocess", "-d", "901", "-plans_name", PLANS, "-c", "2d", "3d_fullres", "3d_lowres", "-np", "1")
    )
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    return workspace


@pytest.fixture(scope="module")
def workspace(tiny_workspace: Workspace, request: pytest.FixtureRequest) -> Workspace:
    """The tiny one, with the trainers of a module's `USERS_TRAINERS`."""
    (tiny_workspace.users_trainers / f"{request.path.stem}.py").write_text(request.module.USERS_TRAINERS)
    return tiny_workspace


@pytest.fixture
def images(workspace: Workspace) -> Path:
    """The images of the held-out case."""
    return workspace.raw / DATASET / "imagesTs"


@pytest.fixture
def read_checkpoint() -> Callable[[Path], dict[str, Any]]:
    """Reads a checkpoint of nnU-Net whole."""

    def read(path: Path) -> dict[str, Any]:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        return checkpoint

    return read
