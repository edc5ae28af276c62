"""The demo from phantoms to pictures, through nnU-Net's own commands."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from nnunet_godc.commands import duration
from nnunet_godc.demo.collection import HELD_OUT, TRAINING, write_phantom_collection
from nnunet_godc.demo.commands import (
    TrainingWatcher,
    Watcher,
    nnunet_environment,
    run_command,
)
from nnunet_godc.demo.figure import draw_case
from nnunet_godc.demo.table import MEAN, format_table, score_table, write_csv
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation import read_tables
from nnunet_godc.evaluation.evaluate import MEASUREMENTS
from nnunet_godc.report.assets import page_options
from nnunet_godc.shrunken_plans import CONFIGURATION, write_shrunken_plans

DATASET_ID = 500
DATASET_NAME = f"Dataset{DATASET_ID}_LiTS"  # as the conversion calls what comes in LiTS's layout
FILE_ENDING = ".nii.gz"
TRAINER = "nnUNetTrainerGODCLFAMDemo"
PLANS = "nnUNetPlansDemo"
FOLDS = (0, 1)
LABELS = ("liver", "tumour")
LEARNT = 0.85  # liver Dice on the held-out cases that tells a network which learnt from one which did not

README = "README.txt"
README_TEXT = f"""Written by: nnunet-godc demo
Running the demo again with this folder writes all of the following anew and leaves other files alone.

metrics.txt          Dice, precision and recall on the held-out cases
metrics.csv          the same, for a spreadsheet
evaluation           everything that nnunet-godc evaluate measures; its index.html is a page to look at
figures              one picture per held-out case: image, reference, prediction
logs                 what nnU-Net's commands printed
predictions          of each fold, and of their ensemble
collection           the phantoms, in the layout in which LiTS is delivered
preview.png          every case's slice with the largest tumour, with the reference's contours
nnUNet_raw           the phantoms, converted to the raw dataset {DATASET_NAME}
nnUNet_preprocessed  plans and preprocessed cases
nnUNet_results       the trained networks
"""


@dataclass(frozen=True)
class DemoFolder:
    """Where the demo writes: everything lies under `out`."""

    out: Path

    @property
    def collection(self) -> Path:
        return self.out / "collection"

    @property
    def raw(self) -> Path:
        return self.out / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.out / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        return self.out / "nnUNet_results"

    @property
    def logs(self) -> Path:
        return self.out / "logs"

    @property
    def predictions(self) -> Path:
        return self.out / "predictions"

    @property
    def ensemble(self) -> Path:
        return self.predictions / "ensemble"

    def fold(self, fold: int) -> Path:
        return self.predictions / f"fold_{fold}"

    @property
    def figures(self) -> Path:
        return self.out / "figures"

    @property
    def metrics_text(self) -> Path:
        return self.out / "metrics.txt"

    @property
    def metrics_csv(self) -> Path:
        return self.out / "metrics.csv"

    @property
    def evaluation(self) -> Path:
        return self.out / "evaluation"

    @property
    def preview(self) -> Path:
        return self.out / "preview.png"

    @property
    def dataset(self) -> Path:
        return self.raw / DATASET_NAME

    @property
    def model(self) -> Path:
        return self.results / DATASET_NAME / f"{TRAINER}__{PLANS}__{CONFIGURATION}"

    def prepare(self) -> None:
        """Make the folder, or clear what an earlier demo left in it.

        Raises:
            UserError: the folder holds something else, is a file, or cannot be written.
        """
        readme = self.out / README
        try:
            if self.out.exists() and not self.out.is_dir():
                raise UserError(f"{self.out} is a file; name a folder for the demo with --out")
            if self.out.is_dir() and any(self.out.iterdir()):
                if not readme.is_file() or readme.read_text() != README_TEXT:
                    raise UserError(
                        f"{self.out} is not empty and not the folder of an earlier demo; nothing was touched, "
                        "name a new or empty folder with --out"
                    )
                print(f"{self.out} holds an earlier demo: its results are removed and made anew.", flush=True)
                self._clear()
            self.out.mkdir(parents=True, exist_ok=True)
            readme.write_text(README_TEXT)
            for folder in self._folders():
                folder.mkdir()
        except OSError as error:
            raise UserError(f"cannot write to {self.out} ({error}); name another folder with --out") from error

    def _clear(self) -> None:
        for folder in (self.collection, *self._folders()):
            if folder.exists():
                shutil.rmtree(folder)
        for file in (self.metrics_text, self.metrics_csv, self.preview):
            file.unlink(missing_ok=True)

    def _folders(self) -> tuple[Path, ...]:
        return self.raw, self.preprocessed, self.results, self.logs, self.predictions, self.evaluation, self.figures


def run_demo(out: Path) -> None:
    """Write phantoms, train two folds on the CPU, predict and evaluate held-out cases, draw pictures.

    Everything is written to `out`, a new or empty folder or that of an earlier demo; the user's own nnU-Net folders
    are neither read nor written. Progress goes to standard output.

    Raises:
        UserError: `out` is in use for something else, or one of nnU-Net's commands fails.
    """
    started = time.monotonic()
    folder = DemoFolder(out.resolve())
    folder.prepare()

    _heading("1/8  Writing CT-like phantoms with liver tumours, in the layout of LiTS")
    write_phantom_collection(folder.collection)
    print(f"    {TRAINING} cases to train with, {HELD_OUT} held out: {folder.collection}", flush=True)

    commands = _Commands(folder)
    _heading("2/8  Converting them to a raw nnU-Net dataset")
    commands.convert()
    _heading("3/8  Checking the dataset and planning, by nnU-Net")
    commands.plan()
    _heading("4/8  Preprocessing with a plan shrunken for the CPU")
    commands.preprocess()
    for fold in FOLDS:
        _heading(f"5/8  Training fold {fold} with {TRAINER}")
        commands.train(fold)
    for fold in FOLDS:
        _heading(f"6/8  Predicting the held-out cases with fold {fold}")
        commands.predict(fold)
    _heading("7/8  Averaging the folds and evaluating")
    commands.ensemble()
    commands.evaluate()

    _heading("8/8  Table and pictures")
    _write_results(folder)
    print(f"\nThe demo took {duration(time.monotonic() - started)}.", flush=True)


class _Commands:
    """nnU-Net's commands as the demo calls them."""

    def __init__(self, folder: DemoFolder) -> None:
        self.folder = folder
        self.environment = nnunet_environment(folder.raw, folder.preprocessed, folder.results)

    def convert(self) -> None:
        self._run(
            "convert",
            *("nnunet-godc", "convert", "lits", "-i", str(self.folder.collection), "-d", str(DATASET_ID), "-np", "0"),
        )
        self._run(
            "preview",
            *("nnunet-godc", "convert", "preview", str(self.folder.dataset), "-o", str(self.folder.preview)),
        )

    def plan(self) -> None:
        self._run(
            "plan",
            *("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "--verify_dataset_integrity", "--no_pp"),
            *("-npfp", "1"),
        )

    def preprocess(self) -> None:
        planned = self.folder.preprocessed / DATASET_NAME / "nnUNetPlans.json"
        # Coarser than the images, so that a patch sees the whole width of the body and a liver is told from a spleen by
        # its place; a step takes a third of a second.
        write_shrunken_plans(planned, name=PLANS, patch_size=(16, 40, 48), features=8, stages=4, spacing=(7, 6, 6))
        self._run(
            "preprocess",
            *("nnUNetv2_preprocess", "-d", str(DATASET_ID), "-plans_name", PLANS, "-c", CONFIGURATION),
            *("-np", "1"),
        )

    def train(self, fold: int) -> None:
        watch = TrainingWatcher(self.folder.model / f"fold_{fold}" / "debug.json", labels=LABELS)
        self._run(
            f"train_fold_{fold}",
            *("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, str(fold), "-tr", TRAINER, "-p", PLANS),
            *("-device", "cpu", "--npz"),
            watch=watch,
            # Augmenting a patch takes 30 ms. A worker process for it fights over the cores with the training threads:
            # with one a step took 0.36 s on two cores, without 0.21 s. (Planning stumbles over a 0 here.)
            nnUNet_n_proc_DA="0",
        )

    def predict(self, fold: int) -> None:
        self._run(
            f"predict_fold_{fold}",
            *("nnUNetv2_predict", "-i", str(self.folder.dataset / "imagesTs")),
            *("-o", str(self.folder.fold(fold)), "-d", str(DATASET_ID), "-c", CONFIGURATION),
            *("-f", str(fold), "-tr", TRAINER, "-p", PLANS, "-device", "cpu", "--save_probabilities"),
            # No worker processes: starting them costs more than they save on a few small cases.
            *("-npp", "0", "-nps", "0"),
        )

    def ensemble(self) -> None:
        folds = [str(self.folder.fold(fold)) for fold in FOLDS]
        self._run("ensemble", "nnUNetv2_ensemble", "-i", *folds, "-o", str(self.folder.ensemble), "-np", "1")

    def evaluate(self) -> None:
        plans = self.folder.preprocessed / DATASET_NAME / f"{PLANS}.json"  # nnU-Net puts none beside an ensemble
        self._run(
            "evaluate",
            *("nnunet-godc", "evaluate", "-pred", str(self.folder.ensemble)),
            *("-ref", str(self.folder.dataset / "labelsTs"), "-pfile", str(plans)),
            *("--out", str(self.folder.evaluation), "-np", "0"),
            *page_options(),
        )

    def _run(self, step: str, *command: str, watch: Watcher | None = None, **variables: str) -> None:
        environment = {**self.environment, **variables}
        run_command(command, log=self.folder.logs / f"{step}.txt", environment=environment, watch=watch)


def _write_results(folder: DemoFolder) -> None:
    scores = score_table(read_tables([folder.evaluation / MEASUREMENTS]))
    table = format_table(scores)
    folder.metrics_text.write_text(table + "\n")
    write_csv(folder.metrics_csv, scores)
    dice = scores["Dice"]
    for name in scores.index.unique("case").drop(MEAN):
        draw_case(
            folder.dataset / "imagesTs" / f"{name}_0000{FILE_ENDING}",
            folder.dataset / "labelsTs" / f"{name}{FILE_ENDING}",
            folder.ensemble / f"{name}{FILE_ENDING}",
            folder.figures / f"{name}.png",
            title=f"{name}, held out",
            score=", ".join(f"{label} Dice {dice[name, label]:.2f}" for label in LABELS),
        )

    print(f"\nHeld-out cases, ensemble of {len(FOLDS)} folds:\n\n{table}\n")
    liver = dice[MEAN, "liver"]
    if liver > LEARNT:
        print(f"The networks learnt: mean liver Dice {liver:.2f} is above {LEARNT}.")
    else:
        print(f"The networks did NOT learn as they should: mean liver Dice {liver:.2f} is not above {LEARNT}.")
    print(f"Pictures: {folder.figures}\nTable:    {folder.metrics_text} and {folder.metrics_csv.name}")
    print(f"Report:   {folder.evaluation / ('index.html' if page_options() else 'report.md')}")


def _heading(text: str) -> None:
    print(f"\n{text}", flush=True)
