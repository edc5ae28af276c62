"""Two epochs and a prediction with every trainer and with stock nnU-Net, by nnU-Net's own commands and defaults.

Needs the hippocampus data of the Medical Segmentation Decathlon (Task04). Per configuration, stock nnU-Net is trained
first and last. One run at a time uses the device; the next one's imports and loaders start meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  before all that imports the package
import torch
from _measure import check_device, load, save_report, stem
from _measured_training import LEFT_DEVICE, MEASUREMENT, PREVIOUS

from nnunet_godc import trainers
from nnunet_godc.commands import duration, find_command, run_visibly, small_environment
from nnunet_godc.errors import UserError
from nnunet_godc.plans import write_shrunken_plans

REPOSITORY = Path(__file__).resolve().parent.parent
STOCK = "nnUNetTrainer"
# The most important first: where the time does not suffice, the last ones are left out.
FIRST = ["nnUNetTrainerGODCLFAM", "nnUNetTrainerGODC", "nnUNetTrainerGODCLFAMLite", "nnUNetTrainerLFAM"]
OTHERS = [name for name in trainers.__all__ if name not in (*FIRST, *trainers.SHORT) and not name.endswith("Demo")]
TRAINERS = [*FIRST, *OTHERS]
CONFIGURATIONS = ["3d_fullres", "2d"]
DATASET_ID = 4
DATASET_NAME = "Dataset004_Hippocampus"
HELD_OUT = 4
NARROW = {"patch_size": (24, 32, 24), "features": 6, "stages": 3, "batch_size": 2}
LOG_LINES = 20  # of a failed run, kept in the results

# Imports are most of what the command does on a few small cases, and each is held to one core by them.
PREDICTIONS_AT_ONCE = max(1, min(4, (os.cpu_count() or 1) // 4))
OUT_OF_TIME = "left out: the time was used up"
NOT_PREDICTED = "first run's"
STOPPED = "left out: the benchmark was stopped"

USERS_MODULE = '''"""Written by benchmarks/training_gpu.py: the trainers to measure, in a user's own folder."""

from _measured_training import MeasuredMixin
from nnunet_godc import trainers
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class {stock}(MeasuredMixin, nnUNetTrainer):
    iterations_per_epoch = {iterations}
    validation_iterations_per_epoch = {validation}
'''
USERS_CLASS = """

class {name}(MeasuredMixin, trainers.{base}):
    iterations_per_epoch = {iterations}
    validation_iterations_per_epoch = {validation}
"""


@dataclass
class Run:
    """One training and its prediction, and what is known of it so far.

    Attributes:
        order: position among all runs.
        state: "done", or why there are no numbers.
        measurement: what the training wrote; losses, step times, memory.
        warnings: how often the compiler spoke up in the log, by matter.
        prediction_s: wall time of nnUNetv2_predict, its imports included.
        last_lines: of a failed command's log.
    """

    order: int
    configuration: str
    trainer: str
    state: str = STOPPED
    measurement: dict[str, Any] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    prediction: str = "left out: nothing was trained"
    prediction_s: float | None = None
    last_lines: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.order:02d}_{self.configuration}_{self.trainer}"

    @property
    def median_step_ms(self) -> float:
        step_ms: list[float] = self.measurement["step_ms"]
        return statistics.median(step_ms)

    @property
    def trained(self) -> bool:
        return self.state == "done"

    @property
    def failed(self) -> bool:
        return "failed" in (self.state, self.prediction)


def measured(trainer: str) -> str:
    """Name, in the user's folder, of the trainer to measure."""
    return f"{trainer}Measured"


class Benchmark:
    """nnU-Net's three folders, the user's folder of trainers, and the commands that use them."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder = folder
        self.arguments = arguments
        self.raw, self.preprocessed = folder / "nnUNet_raw", folder / "nnUNet_preprocessed"
        self.users_trainers = folder / "my_trainers"
        self.plans = "nnUNetPlansNarrow" if arguments.narrow else "nnUNetPlans"
        self.deadline: float = arguments.started + 60 * arguments.minutes
        self.configuration_deadline: float = self.deadline
        self.device_free_since = arguments.started
        self.processes: list[subprocess.Popen[bytes]] = []

    def environment(self, results: Path) -> dict[str, str]:
        environment = small_environment(self.raw, self.preprocessed, results)
        environment |= {
            "nnUNet_extTrainer": str(self.users_trainers),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))),
            "nnUNet_def_n_proc": str(min(8, os.cpu_count() or 1)),
            # what one run compiled, the next ones find
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "TORCH_LOGS": "graph_breaks,recompiles",
        }
        environment.pop("nnUNet_compile", None)
        if self.arguments.device == "cuda":
            del environment["nnUNet_n_proc_DA"]  # nnU-Net's default
        return environment

    def prepare(self) -> None:
        """Lays out the task as the Decathlon does, converts, plans and preprocesses it, and writes the trainers."""
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "logs", "markers", "runs", "my_trainers"):
            (self.folder / name).mkdir(parents=True)
        self._write_trainers()
        task = self._write_task()
        workers = str(min(8, os.cpu_count() or 1))
        configurations = self.arguments.configurations
        self._command("convert", "nnUNetv2_convert_MSD_dataset", "-i", str(task), "-np", workers)
        plan = ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-npfp", workers, "--verify_dataset_integrity"]
        if self.arguments.narrow:
            self._command("plan", *plan, "--no_pp")
            write_shrunken_plans(self.preprocessed / DATASET_NAME / "nnUNetPlans.json", name=self.plans, **NARROW)
            preprocess = ["nnUNetv2_preprocess", "-d", str(DATASET_ID), "-plans_name", self.plans]
            self._command("preprocess", *preprocess, "-c", *configurations, "-np", workers)
        else:
            self._command("plan", *plan, "-c", *configurations, "-np", workers)

    def measure(self, runs: Sequence[Run], save: Callable[[], None]) -> None:
        """Trains all runs of a configuration, then predicts with them, as long as there is time.

        Args:
            runs: of the configuration.
            save: called whenever something has been measured.
        """
        in_flight: deque[tuple[Run, subprocess.Popen[bytes], float]] = deque()
        seconds: list[float] = []
        previous: Path | None = None
        for run in runs:
            if self._time_for(run, runs, len(in_flight), seconds):
                in_flight.append((run, self._start_training(run, previous), time.monotonic()))
                previous = self._marker(run)
            else:
                run.state = OUT_OF_TIME
            if len(in_flight) == 2:
                self._finish_training(*in_flight.popleft(), seconds)
                save()
        while in_flight:
            self._finish_training(*in_flight.popleft(), seconds)
            save()
        if runs[-1].trained:
            runs[-1].prediction = NOT_PREDICTED
        self._predict([run for run in runs[:-1] if run.trained])

    def share_time(self, configurations_left: int) -> None:
        """Gives the next configuration its part of the time that is left."""
        now = time.monotonic()
        self.configuration_deadline = now + (self.deadline - now) / configurations_left

    @contextmanager
    def no_process_left_behind(self) -> Iterator[None]:
        try:
            yield
        finally:
            for process in self.processes:
                if process.poll() is None:
                    _end(process)

    def _time_for(self, run: Run, runs: Sequence[Run], in_flight: int, seconds: list[float]) -> bool:
        """Whether there is time for a run; stock nnU-Net's closing one and the predictions have theirs reserved."""
        left = self.configuration_deadline - time.monotonic()
        if run is runs[-1]:
            return self.deadline > time.monotonic()
        typical = statistics.median(seconds) if seconds else 0.0
        predictions = math.ceil((len(seconds) + in_flight + 1) / PREDICTIONS_AT_ONCE)
        return left > (in_flight + 2 + predictions) * typical

    def _start_training(self, run: Run, previous: Path | None) -> subprocess.Popen[bytes]:
        command = ["nnUNetv2_train", str(DATASET_ID), run.configuration, "0", "-tr", measured(run.trainer)]
        return self._start(
            [*command, "-p", self.plans, "-device", self.arguments.device],
            self._log(run, "train"),
            self.environment(self._results(run))
            | {
                MEASUREMENT: str(self._measurement(run)),
                PREVIOUS: str(previous) if previous else "",
                LEFT_DEVICE: str(self._marker(run)),
            },
        )

    def _finish_training(
        self, run: Run, process: subprocess.Popen[bytes], started: float, seconds: list[float]
    ) -> None:
        began = max(started, self.device_free_since)
        finished = self._wait(process)
        self._marker(run).touch()  # a failed run has not said so itself
        self.device_free_since = time.monotonic()
        log = self._log(run, "train")
        if not finished:
            run.state = f"{OUT_OF_TIME} while it ran"
        elif process.returncode != 0 or not self._measurement(run).exists():
            run.state, run.last_lines = "failed", self._last_lines(log)
        else:
            run.state, run.prediction = "done", STOPPED
            run.measurement = json.loads(self._measurement(run).read_text())
            run.warnings = compiler_warnings(log.read_text(errors="replace"))
            losses = [*run.measurement["train_loss"], *run.measurement["validation_loss"]]
            if not all(map(math.isfinite, losses)):
                run.state, run.last_lines = "failed", [f"not every loss is finite: {losses}"]
                run.measurement = {}
            seconds.append(self.device_free_since - began)
        shown = f"{run.median_step_ms:.1f} ms a step" if run.trained else run.state
        print(f"{run.configuration}  {run.trainer}: {shown}", flush=True)
        print("".join(f"    | {line}\n" for line in run.last_lines), end="", flush=True)

    def _predict(self, runs: Sequence[Run]) -> None:
        for first in range(0, len(runs), PREDICTIONS_AT_ONCE):
            started = time.monotonic()
            together = runs[first : first + PREDICTIONS_AT_ONCE]
            if started >= self.deadline:
                for run in together:
                    run.prediction = OUT_OF_TIME
                continue
            waiting = {run.order: (run, self._start_prediction(run)) for run in together}
            while waiting:
                for run, process in list(waiting.values()):
                    if process.poll() is not None or time.monotonic() > self.deadline:
                        self._finish_prediction(run, process, time.monotonic() - started)
                        del waiting[run.order]
                time.sleep(0.02)

    def _start_prediction(self, run: Run) -> subprocess.Popen[bytes]:
        command = ["nnUNetv2_predict", "-i", str(self.raw / DATASET_NAME / "imagesTs"), "-o", str(self._predicted(run))]
        command += ["-d", str(DATASET_ID), "-c", run.configuration, "-f", "0", "-tr", measured(run.trainer)]
        # a few small cases do not pay for worker processes
        command += ["-p", self.plans, "-device", self.arguments.device, "-npp", "0", "-nps", "0"]
        return self._start(command, self._log(run, "predict"), self.environment(self._results(run)))

    def _finish_prediction(self, run: Run, process: subprocess.Popen[bytes], seconds: float) -> None:
        if process.poll() is None:
            _end(process)
            run.prediction = f"{OUT_OF_TIME} while it ran"
        elif process.returncode == 0 and len(list(self._predicted(run).glob("*.nii.gz"))) == HELD_OUT:
            run.prediction, run.prediction_s = "done", seconds
        else:
            run.prediction, run.last_lines = "failed", self._last_lines(self._log(run, "predict"))
        shown = f"{seconds:.1f} s" if run.prediction == "done" else run.prediction
        print(f"{run.configuration}  {run.trainer}: prediction {shown}", flush=True)
        print("".join(f"    | {line}\n" for line in run.last_lines), end="", flush=True)

    def _write_trainers(self) -> None:
        iterations = {"iterations": self.arguments.iterations, "validation": max(1, self.arguments.iterations // 5)}
        text = USERS_MODULE.format(stock=measured(STOCK), **iterations)
        for base in self.arguments.trainers:
            text += USERS_CLASS.format(name=measured(base), base=base, **iterations)
        (self.users_trainers / "measured_trainers.py").write_text(text)

    def _write_task(self) -> Path:
        """The cases under the Decathlon's name for the task, the last ones without labels as those to predict."""
        data: Path = self.arguments.data
        description = json.loads((data / "dataset.json").read_text())
        names = sorted(path.name for path in (data / "imagesTr").glob("[!._]*.nii.gz"))
        training, held_out = names[:-HELD_OUT][: self.arguments.cases], names[-HELD_OUT:]
        task = self.folder / "Task04_Hippocampus"
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (task / folder).mkdir(parents=True)
        for name in training:
            for folder in ("imagesTr", "labelsTr"):
                shutil.copy(data / folder / name, task / folder / name)
        for name in held_out:
            shutil.copy(data / "imagesTr" / name, task / "imagesTs" / name)
        description["numTraining"], description["numTest"] = len(training), len(held_out)
        description["training"] = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in training]
        description["test"] = [f"imagesTs/{name}" for name in held_out]
        (task / "dataset.json").write_text(json.dumps(description))
        return task

    def _command(self, step: str, *command: str) -> None:
        environment = self.environment(self.folder / "runs")
        run_visibly(command, log=self.folder / "logs" / f"{step}.txt", environment=environment)

    def _start(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [find_command(command[0]), *command[1:]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # to end its workers with it
            )
        self.processes.append(process)
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the process ended by itself before the time was used up."""
        try:
            process.wait(timeout=max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(process)
            return False
        return True

    def _last_lines(self, log: Path) -> list[str]:
        text = log.read_text(errors="replace").replace(str(self.folder), "WORK").replace(sys.prefix, "PYTHON")
        return text.replace(str(REPOSITORY), "REPOSITORY").splitlines()[-LOG_LINES:]

    def _log(self, run: Run, step: str) -> Path:
        return self.folder / "logs" / f"{run.name}_{step}.txt"

    def _marker(self, run: Run) -> Path:
        return self.folder / "markers" / run.name

    def _measurement(self, run: Run) -> Path:
        return self.folder / "runs" / f"{run.name}.json"

    def _results(self, run: Run) -> Path:
        # stock nnU-Net runs twice: a folder of its own for each run
        return self.folder / "runs" / run.name

    def _predicted(self, run: Run) -> Path:
        return self.folder / "predicted" / run.name


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def compiler_warnings(log: str) -> dict[str, int]:
    """How often torch.compile reported a graph break, compiled anew, or gave up on it."""
    return {
        "graph breaks": len(re.findall(r"\[__graph_breaks\] Graph break", log)),
        "recompilations": len(re.findall(r"Recompiling function", log)),
        "recompile limit": len(re.findall(r"hit config\.(?:accumulated_)?(?:recompile|cache_size)_limit", log)),
    }


def report(runs: Sequence[Run], arguments: argparse.Namespace) -> None:
    """Writes the results so far, and lists what failed and what was left out."""
    table, measurements = [], []
    for configuration in dict.fromkeys(run.configuration for run in runs):
        of_configuration = [run for run in runs if run.configuration == configuration]
        stock = [run.median_step_ms for run in of_configuration if run.trainer == STOCK and run.trained]
        table += [
            f"{configuration}:",
            "",
            "| trainer | patch, batch | step in ms | to stock | peak memory in MiB | train loss | validation loss "
            "| pseudo Dice | compiled | graph breaks | compiled anew | recompile limit hit | prediction in s |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for run in of_configuration:
            ratio = run.median_step_ms / statistics.mean(stock) if stock and run.trained else None
            table.append(_row(run, ratio, "first" if run is of_configuration[0] else "last"))
            measurements.append(
                {
                    "configuration": configuration,
                    "trainer": run.trainer,
                    "state": run.state,
                    **({"median_step_ms": run.median_step_ms} if run.trained else {}),
                    "ratio_to_stock": ratio,
                    **run.measurement,
                    "compiler": run.warnings,
                    "prediction": run.prediction,
                    "prediction_s": run.prediction_s,
                    "last_lines": run.last_lines,
                }
            )
        table.append("")
    notes = [
        f"two epochs of {arguments.iterations} steps; the second is timed: median [quartiles] of train_step between "
        "two synchronisations, data loading left out",
        "ratio to the mean of stock nnU-Net's first and last run",
        f"prediction: wall time of nnUNetv2_predict for {HELD_OUT} cases, its imports included; "
        f"commands at a time: {PREDICTIONS_AT_ONCE}",
        "plans shrunken for a smoke check: these are no measurements" if arguments.narrow else "nnU-Net's own plans",
    ]
    missing = [f"{run.configuration} {run.trainer} ({run.state})" for run in runs if not run.trained]
    missing += [
        f"prediction of {run.configuration} {run.trainer} ({run.prediction})"
        for run in runs
        if run.trained and run.prediction not in ("done", NOT_PREDICTED)
    ]
    if missing:
        notes.append(f"without numbers: {', '.join(missing)}")
    save_report(
        "training_gpu",
        "Two epochs and a prediction each, on hippocampus MR.",
        table[:-1],
        measurements,
        arguments,
        notes,
    )


def _row(run: Run, ratio: float | None, which: str) -> str:
    trainer = f"{run.trainer}, {which}" if run.trainer == STOCK else run.trainer
    if not run.trained or ratio is None:
        return f"| {trainer} | {run.state} |{' |' * 11}"
    result = run.measurement
    quartiles = statistics.quantiles(result["step_ms"], n=4, method="inclusive")
    memory = result["peak_memory_mib"]
    prediction = run.prediction if run.prediction_s is None else f"{run.prediction_s:.1f}"
    cells = [
        trainer,
        f"{' x '.join(map(str, result['patch_size']))}, {result['batch_size']}",
        f"{run.median_step_ms:.1f} [{quartiles[0]:.1f}, {quartiles[2]:.1f}]",
        f"{ratio:.2f}",
        "-" if memory is None else f"{memory:.0f}",
        ", ".join(f"{loss:.3f}" for loss in result["train_loss"]),
        ", ".join(f"{loss:.3f}" for loss in result["validation_loss"]),
        ", ".join("-" if dice is None else f"{dice:.3f}" for dice in result["pseudo_dice"]),
        "yes" if result["compiled"] else "no",
        *(str(count) for count in run.warnings.values()),
        prediction,
    ]
    return f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu for a smoke check alone")
    parser.add_argument("--narrow", action="store_true", help="a small network instead of the plan's, for smoke checks")
    in_order = {"nargs": "+", "metavar": "NAME"}
    order = "in this order; what does not fit into the minutes is left out"
    parser.add_argument("--trainers", **in_order, default=TRAINERS, choices=TRAINERS, help=f"{order} (default: all)")
    parser.add_argument("--configurations", **in_order, default=CONFIGURATIONS, choices=CONFIGURATIONS, help=order)
    parser.add_argument("--iterations", type=int, default=16, help="training steps per epoch (default: 16)")
    parser.add_argument("--cases", type=int, help="so many training cases; all, without the option")
    parser.add_argument("--minutes", type=float, default=9.0, help="what does not fit is left out (default: 9)")
    default_data = REPOSITORY.parent / "shared" / "data" / "hippocampus"
    parser.add_argument("--data", type=Path, default=default_data, help="folder with imagesTr, labelsTr, dataset.json")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--work", type=Path, help="new folder for nnU-Net's own, logs included; else a temporary one")
    arguments = parser.parse_args()
    arguments.started = time.monotonic()
    arguments.load = load()
    check_device(parser, arguments.device, "--device cpu --narrow --configurations 3d_fullres is a smoke check")
    if arguments.narrow and arguments.configurations != ["3d_fullres"]:
        parser.error("--narrow shrinks 3d_fullres plans alone: add --configurations 3d_fullres")
    if arguments.iterations < 2:
        parser.error(f"--iterations {arguments.iterations}: quartiles need 2 steps or more")
    if arguments.cases is not None and arguments.cases < 5:
        parser.error(f"--cases {arguments.cases}: nnU-Net's five folds need 5 cases or more")
    if arguments.minutes <= 0:
        parser.error(f"--minutes {arguments.minutes}: give more than 0")
    if not all((arguments.data / name).exists() for name in ("dataset.json", "imagesTr", "labelsTr")):
        parser.error(
            f"--data {arguments.data}: no imagesTr, labelsTr and dataset.json there; name the folder of the "
            "Medical Segmentation Decathlon's hippocampus task with --data."
        )
    if arguments.work is not None and arguments.work.exists():
        parser.error(f"--work {arguments.work}: exists already; name a new folder")
    # as nnUNetv2_train has it
    torch.set_num_threads(1 if arguments.device == "cuda" else os.cpu_count() or 1)
    return arguments


def main() -> int:
    arguments = parse_arguments()
    # without it, a time limit set from outside would leave trainings running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    trainers_in_turn = [STOCK, *arguments.trainers, STOCK]
    runs = [
        Run(order, configuration, trainer)
        for order, (configuration, trainer) in enumerate(
            (configuration, trainer) for configuration in arguments.configurations for trainer in trainers_in_turn
        )
    ]
    with tempfile.TemporaryDirectory() as temporary:
        benchmark = Benchmark((arguments.work or Path(temporary)).resolve(), arguments)
        with benchmark.no_process_left_behind():
            try:
                benchmark.prepare()
            except UserError as error:
                print(error, file=sys.stderr)
                return 1
            try:
                for index, configuration in enumerate(arguments.configurations):
                    benchmark.share_time(len(arguments.configurations) - index)
                    of_configuration = [run for run in runs if run.configuration == configuration]
                    benchmark.measure(of_configuration, save=partial(report, runs, arguments))
            finally:
                report(runs, arguments)  # what there is, also when it is stopped from outside
    print(f"Written: {arguments.out / stem('training_gpu', arguments)}.json and .md")
    failed = [f"{run.configuration} {run.trainer}" for run in runs if run.failed]
    print(f"All of it took {duration(time.monotonic() - arguments.started)}.")
    if failed:
        print(f"Failed: {', '.join(failed)}; their last lines stand in the results.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
