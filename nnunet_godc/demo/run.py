"""The demo from phantoms to pictures: a small study, whose jobs are run one after the other."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from nnunet_godc.commands import duration, run_visibly, small_environment
from nnunet_godc.demo.collection import HELD_OUT, TRAINING, write_phantom_collection
from nnunet_godc.demo.figure import draw_case
from nnunet_godc.demo.table import MEAN, format_table, score_table, write_csv
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import read_tables
from nnunet_godc.evaluation.evaluate import MEASUREMENTS
from nnunet_godc.locks import locked
from nnunet_godc.report.assets import page_options
from nnunet_godc.study.definition import Study
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.planning import jobs_of
from nnunet_godc.study.study_file import read_definition
from nnunet_godc.training_log import read_progress

DATASET_ID = 500
DATASET = f"Dataset{DATASET_ID}_LiTS"  # as the conversion calls what comes in LiTS's layout
FILE_ENDING = ".nii.gz"
LABELS = ("liver", "tumour")
LEARNT = 0.85  # liver Dice on the held-out cases that tells a network which learnt from one which did not
STEPS = {
    "plan": "3/8  Checking the dataset and planning, by nnU-Net and for the CPU",
    "preprocess": "4/8  Preprocessing",
    "train": "5/8  Training",
    "predict": "6/8  Predicting the held-out cases with both folds",
    "evaluate": "7/8  Evaluating",
}

STUDY = f"""\
# What the demo runs once its phantoms are converted.
datasets: [{DATASET_ID}]
plans:
  # Coarser than the images, so that a patch sees the whole width of the body and a liver is told from a spleen by its
  # place; a step takes a third of a second.
  - {{name: nnUNetPlansDemo, from: nnUNetPlans, patch_size: [16, 40, 48], features: 8, stages: 4, batch_size: 2,
     spacing: [7, 6, 6]}}
trainers: [nnUNetTrainerGODCLFAMDemo]
folds: [0, 1]
predict: {{images: imagesTs, references: labelsTs}}
environment:
  # Augmenting a patch takes 30 ms. A worker process for it fights over the cores with the training threads: with one a
  # step took 0.36 s on two cores, without 0.21 s.
  nnUNet_n_proc_DA: 0
resources: {{device: cpu, cpus: 1}}
"""

README = "README.txt"
README_TEXT = f"""Written by: nnunet-godc demo
Running the demo again with this folder writes all of the following anew and leaves other files alone.

metrics.txt          Dice, precision and recall on the held-out cases
metrics.csv          the same, for a spreadsheet
evaluation           everything that nnunet-godc evaluate measures, with a page to look at, index.html, for the
                     cross-validation and one for the held-out cases
figures              one picture per held-out case: image, reference, prediction
logs                 what nnU-Net's commands printed
predictions          of the held-out cases, by both folds together
collection           the phantoms, in the layout in which LiTS is delivered
preview.png          every case's slice with the largest tumour, with the reference's contours
demo.yaml            what was trained, as a file for nnunet-godc study
nnUNet_raw           the phantoms, converted to the raw dataset {DATASET}
nnUNet_preprocessed  plans and preprocessed cases
nnUNet_results       the trained networks
"""
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "logs", "predictions", "evaluation", "figures")
_FILES = ("metrics.txt", "metrics.csv", "preview.png", "demo.yaml")
_LOCK = ".lock"


def run_demo(out: Path) -> None:
    """Write phantoms, train two folds on the CPU, predict and evaluate held-out cases, draw pictures.

    Everything is written to `out`, a new or empty folder or that of an earlier demo; the user's own nnU-Net folders
    are neither read nor written. Progress goes to standard output.

    Raises:
        UserError: `out` is in use for something else, or one of nnU-Net's commands fails.
    """
    started = time.monotonic()
    out = out.resolve()
    claim(out)
    try:
        with locked(out / _LOCK, wait=False):
            _Demo(out).run()
    except BlockingIOError:
        raise UserError(f"another demo is writing to {out}; name another folder with --out") from None
    print(f"\nThe demo took {duration(time.monotonic() - started)}.", flush=True)


def claim(out: Path) -> None:
    """Makes the demo's folder, or makes sure that it is that of an earlier demo.

    Raises:
        UserError: the folder holds something else, is a file, or cannot be written.
    """
    readme = out / README
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; name a folder for the demo with --out")
        foreign = out.is_dir() and any(out.iterdir())
        if foreign and (not readme.is_file() or readme.read_text() != README_TEXT):
            raise UserError(
                f"{out} is not empty and not the folder of an earlier demo; nothing was touched, "
                "name a new or empty folder with --out"
            )
        out.mkdir(parents=True, exist_ok=True)
        readme.write_text(README_TEXT)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error}); name another folder with --out") from error


@dataclass(frozen=True)
class _Demo:
    """A demo in a folder of its own: everything lies under `out`."""

    out: Path

    def run(self) -> None:
        self._clear()
        _heading("1/8  Writing CT-like phantoms with liver tumours, in the layout of LiTS")
        write_phantom_collection(self.out / "collection")
        print(f"    {TRAINING} cases to train with, {HELD_OUT} held out: {self.out / 'collection'}", flush=True)
        _heading("2/8  Converting them to a raw nnU-Net dataset")
        collection, dataset = self.out / "collection", self.out / "nnUNet_raw" / DATASET
        self._run("convert", "convert", "lits", "-i", str(collection), "-d", str(DATASET_ID), "-np", "0")
        self._run("preview", "convert", "preview", str(dataset), "-o", str(self.out / "preview.png"))
        kind = ""
        jobs = jobs_of(self._study(), self.out)
        for job in jobs:
            if job.kind != kind:
                kind = job.kind
                _heading(STEPS[kind])
            watch = _Watch(job) if kind == "train" else None
            environment = {**small_environment(*self._nnunet), **job.environment}
            command = (*job.command, *(page_options() if kind == "evaluate" else ()))
            run_visibly(command, log=self._log(job.id), environment=environment, watch=watch)
        _heading("8/8  Table and pictures")
        predictions, evaluation = (
            Path(job.expected[0]) for job in jobs if job.kind == "predict" or job.id.endswith("held_out")
        )
        self._write_results(predictions, evaluation)

    @property
    def _nnunet(self) -> tuple[Path, Path, Path]:
        return self.out / "nnUNet_raw", self.out / "nnUNet_preprocessed", self.out / "nnUNet_results"

    def _log(self, step: str) -> Path:
        return self.out / "logs" / f"{step}.txt"

    def _run(self, step: str, *command: str) -> None:
        environment = small_environment(*self._nnunet)
        run_visibly(("nnunet-godc", *command), log=self._log(step), environment=environment)

    def _clear(self) -> None:
        if any((self.out / name).exists() for name in _FOLDERS):
            print(f"{self.out} holds an earlier demo: its results are removed and made anew.", flush=True)
        for name in ("collection", *_FOLDERS):
            shutil.rmtree(self.out / name, ignore_errors=True)
        for name in _FILES:
            (self.out / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            (self.out / name).mkdir()

    def _study(self) -> Study:
        file = self.out / "demo.yaml"
        file.write_text(STUDY)
        raw, preprocessed, results = map(str, self._nnunet)
        return Study(
            name="demo",
            datasets=[DATASET],
            raw=raw,
            preprocessed=preprocessed,
            results=results,
            definition=read_definition(file),
        )

    def _write_results(self, predictions: Path, report: Path) -> None:
        scores = score_table(read_tables([report.with_name(MEASUREMENTS)]))
        table = format_table(scores)
        (self.out / "metrics.txt").write_text(table + "\n")
        write_csv(self.out / "metrics.csv", scores)
        dice, dataset = scores["Dice"], self.out / "nnUNet_raw" / DATASET
        for name in scores.index.unique("case").drop(MEAN):
            draw_case(
                dataset / "imagesTs" / f"{name}_0000{FILE_ENDING}",
                dataset / "labelsTs" / f"{name}{FILE_ENDING}",
                predictions / f"{name}{FILE_ENDING}",
                self.out / "figures" / f"{name}.png",
                title=f"{name}, held out",
                score=", ".join(f"{label} Dice {dice[name, label]:.2f}" for label in LABELS),
            )
        print(f"\nHeld-out cases, both folds together:\n\n{table}\n")
        liver = dice[MEAN, "liver"]
        if liver > LEARNT:
            print(f"The networks learnt: mean liver Dice {liver:.2f} is above {LEARNT}.")
        else:
            print(f"The networks did NOT learn as they should: mean liver Dice {liver:.2f} is not above {LEARNT}.")
        print(f"Pictures: {self.out / 'figures'}\nTable:    {self.out / 'metrics.txt'} and metrics.csv")
        print(f"Report:   {report.with_name('index.html') if page_options() else report}")


class _Watch:
    """Prints a line for each epoch of a training, with the time left."""

    def __init__(self, training: Job) -> None:
        self.fold = training.fold_folder
        self.epochs = 0
        print(f"    fold {training.fold} with {training.trainer}", flush=True)

    def __call__(self) -> None:
        progress = read_progress(self.fold)
        if progress.epochs <= self.epochs or progress.loss is None:
            return
        self.epochs = progress.epochs
        dice = ", ".join(f"{name} {value:.2f}" for name, value in zip(LABELS, progress.dice, strict=False))
        left = f", about {duration(progress.seconds_left)} left" if progress.seconds_left else ""
        print(
            f"    epoch {progress.epochs} of {progress.of}: loss {progress.loss}, pseudo Dice {dice}{left}", flush=True
        )


def _heading(text: str) -> None:
    print(f"\n{text}", flush=True)
