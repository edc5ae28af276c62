"""From a study to its jobs: which commands of nnU-Net, in which order, and what each leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from nnunet_godc.seeded_names import seed_of, without_seed
from nnunet_godc.study.definition import PLANNERS, Plans, Study
from nnunet_godc.study.jobs import Job, Kind, Resources, Resume

# Of nnU-Net's own: more of its preprocessing workers fill the memory of most machines.
MOST_PREPROCESSING_WORKERS = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8, "3d_cascade_fullres": 4}
MOST_PREDICTING_WORKERS = 3  # to read images, and as many to write predictions
MOST_WORKERS = 8
HELD_OUT = "held_out"
LOCK = ".nnunet-godc.lock"


def jobs_of(study: Study, folder: Path) -> list[Job]:
    """All jobs of a study, each after those it depends on. No file is read.

    Args:
        study: what to train, on what.
        folder: of the study, absolute; predictions and evaluations are written there.
    """
    return list(_Planner(study, folder).jobs())


def prediction_folder(folder: Path, dataset: str, model: str) -> Path:
    """Where a study keeps the predictions of a model or an ensemble."""
    return folder / "predictions" / dataset / model


def evaluation_folder(folder: Path, dataset: str, *, held_out: bool = False) -> Path:
    """Where a study keeps the evaluation of a dataset's cross-validation, or of its held-out images."""
    return folder / "evaluation" / (f"{dataset}.{HELD_OUT}" if held_out else dataset)


class _Planner:
    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.definition = study.definition
        self.folder = folder
        asked, self.cpus = self.definition.resources, study.cpus
        minutes = None if asked.hours is None else max(1, round(60 * asked.hours))
        self.without_gpu = Resources(0, self.cpus, asked.memory_gb, minutes)
        gpus = asked.gpus if asked.device == "cuda" else 0
        self.with_gpu = Resources(gpus, self.cpus, asked.memory_gb, minutes)
        self.with_one_gpu = Resources(min(gpus, 1), self.cpus, asked.memory_gb, minutes)
        folders = {"nnUNet_raw": study.raw, "nnUNet_preprocessed": study.preprocessed, "nnUNet_results": study.results}
        workers = {"nnUNet_def_n_proc": str(min(self.cpus, MOST_WORKERS)), "nnUNet_n_proc_DA": str(self.cpus)}
        if asked.cpus is None:
            workers |= {name: os.environ[name] for name in workers if os.environ.get(name)}
        self.environment = workers | self.definition.environment | folders

    def jobs(self) -> Iterator[Job]:
        for dataset in self.study.datasets:
            yield from self._plans(dataset)
            yield from self._preprocessings(dataset)
        for dataset in self.study.datasets:
            yield from self._trainings(dataset)
        for dataset in self.study.datasets:
            if self.definition.predict is not None:
                yield from self._predictions(dataset)
            yield from self._evaluations(dataset)

    def _job(self, kind: Kind, *names: str, **fields: Any) -> Job:
        """A job of that name, about the dataset that it begins with."""
        environment = dict(self.environment)
        if kind != "train" and environment["nnUNet_n_proc_DA"] == "0":
            environment["nnUNet_n_proc_DA"] = "1"  # planning, too, takes it for a number of threads
        fields = {"resources": self.without_gpu, "environment": environment, **fields}
        return Job(id=_id(kind, *names), kind=kind, dataset=names[0], **fields)

    def _plans(self, dataset: str) -> Iterator[Job]:
        # One after the other: each reads the fingerprint that the first one takes, and writes to the same folder.
        previous: tuple[str, ...] = ()
        for plans in self._plans_to_make():
            file = self.study.plans_file(dataset, plans.name)
            job = self._job(
                "plan",
                dataset,
                plans.name,
                command=self._plan_command(dataset, plans),
                plans=plans.name,
                depends_on=previous,
                expected=(str(file),),
                skip_if_output_exists=plans.variation_of is None,
                lock=str(file.with_name(LOCK)),
                plans_file=str(file),
            )
            previous = (job.id,)
            yield job

    def _plans_to_make(self) -> list[Plans]:
        """All but those that exist already, and before a variation what it is made from."""
        made: dict[str, Plans] = {}
        for plans in self.definition.plans:
            if plans.variation_of is not None:
                made.setdefault(plans.variation_of, Plans(name=plans.variation_of))
            made[plans.name] = plans
        return [plans for plans in made.values() if plans.planner_class or plans.variation_of]

    def _plan_command(self, dataset: str, plans: Plans) -> tuple[str, ...]:
        if plans.variation_of is not None:
            source = self.study.plans_file(dataset, plans.variation_of)
            sizes = json.dumps(plans.sizes)
            return ("python", "-m", "nnunet_godc.study.steps", "vary", str(source), plans.name, sizes)
        own_name = () if plans.name in PLANNERS else ("-overwrite_plans_name", plans.name)
        memory = () if plans.gpu_memory_gb is None else ("-gpu_memory_target", str(plans.gpu_memory_gb))
        return (
            *("nnUNetv2_plan_and_preprocess", "-d", _number(dataset), "--verify_dataset_integrity", "--no_pp"),
            *("--no_pbar", "-npfp", str(min(self.cpus, MOST_WORKERS))),
            *("-pl", str(plans.planner_class)),
            *own_name,
            *memory,
        )

    def _preprocessings(self, dataset: str) -> Iterator[Job]:
        # One after the other, too: plans share folders of data, which nnU-Net removes before it writes them.
        previous: tuple[str, ...] = ()
        for configuration, plans in product(self._configurations_with_data(), self.definition.plans):
            workers = min(self.cpus, MOST_PREPROCESSING_WORKERS[configuration])
            planned = (_id("plan", dataset, plans.name),) if plans.planner_class or plans.variation_of else ()
            job = self._job(
                "preprocess",
                *(dataset, plans.name, configuration),
                command=(
                    *("python", "-m", "nnunet_godc.study.steps", "preprocess", dataset, plans.name, configuration),
                    *("-np", str(workers)),
                ),
                depends_on=(*planned, *previous),
                expected=(str(Path(self.study.preprocessed, dataset, "gt_segmentations")),),
                lock=str(Path(self.study.preprocessed, dataset, LOCK)),
                plans_file=str(self.study.plans_file(dataset, plans.name)),
                plans=plans.name,
                configuration=configuration,
            )
            previous = (job.id,)
            yield job

    def _configurations_with_data(self) -> list[str]:
        """Whose data the trainings read.

        The cascade's second stage trains on that of 3d_fullres, and the validation of 3d_lowres predicts for it. The
        latter comes last: what is not planned for small images fails, and holds up what follows.
        """
        needed = [name for names in map(_data_of, self.definition.configurations) for name in names]
        return sorted(dict.fromkeys(needed), key=lambda name: name == "3d_lowres")

    def _models(self) -> Iterator[tuple[str, str, str]]:
        """Trainer, plans and configuration of every model."""
        plans = [plans.name for plans in self.definition.plans]
        return product(self.study.trainer_names, plans, self.definition.configurations)

    def _trainings(self, dataset: str) -> Iterator[Job]:
        # Fold by fold, so that every model has a first result early.
        for fold, (trainer, plans, configuration) in product(self.definition.folds, self._models()):
            yield self._training(dataset, trainer, plans, configuration, str(fold))

    def _training(self, dataset: str, trainer: str, plans: str, configuration: str, fold: str) -> Job:
        folder = self.study.model(dataset, trainer, plans, configuration) / f"fold_{fold}"
        asked = self.definition.resources
        gpus = ("-num_gpus", str(asked.gpus)) if self.with_gpu.gpus > 1 else ()
        needed = [_id("preprocess", dataset, plans, data) for data in _data_of(configuration)]
        if configuration == "3d_cascade_fullres":
            needed += [_id("train", dataset, trainer, plans, "3d_lowres", f"fold{lower}") for lower in range(5)]
        final = str(folder / "checkpoint_final.pth")
        return self._job(
            "train",
            *(dataset, trainer, plans, configuration, f"fold{fold}"),
            command=(
                *("nnUNetv2_train", dataset, configuration, fold, "-tr", trainer, "-p", plans),
                *("-device", asked.device, *gpus),
            ),
            **_about(plans, configuration, trainer),
            fold=fold,
            seed=seed_of(trainer) if self.definition.seeds else None,
            depends_on=tuple(needed),
            resources=self.with_gpu,
            expected=(final, str(folder / "validation" / "summary.json")),
            skip_if_output_exists=True,
            resume=(
                Resume(final, ("--val",)),
                Resume(str(folder / "checkpoint_latest.pth"), ("--c",)),
                Resume(str(folder / "checkpoint_best.pth"), ("--c",)),
            ),
            lock=str(folder / LOCK),
            plans_file=str(self.study.plans_file(dataset, plans)),
        )

    def _predictions(self, dataset: str) -> Iterator[Job]:
        assert self.definition.predict is not None
        images = Path(self.study.raw, dataset, self.definition.predict.images)
        for trainer, plans, configuration in self._models():
            out = prediction_folder(self.folder, dataset, f"{trainer}__{plans}__{configuration}")
            cascade = configuration == "3d_cascade_fullres"
            lower = prediction_folder(self.folder, dataset, f"{trainer}__{plans}__3d_lowres")
            workers = str(min(self.cpus, MOST_PREDICTING_WORKERS))
            yield self._job(
                "predict",
                *(dataset, trainer, plans, configuration),
                command=(
                    *("nnUNetv2_predict", "-i", str(images), "-o", str(out), "-d", dataset, "-c", configuration),
                    *("-tr", trainer, "-p", plans, "-f", *map(str, self.definition.folds)),
                    *("-device", self.definition.resources.device, "--disable_progress_bar"),
                    *("-npp", workers, "-nps", workers),
                    *(("--save_probabilities",) if self.definition.ensemble else ()),
                    *(("-prev_stage_predictions", str(lower)) if cascade else ()),
                ),
                depends_on=(
                    *self._folds(dataset, trainer, plans, configuration),
                    *((_id("predict", dataset, trainer, plans, "3d_lowres"),) if cascade else ()),
                ),
                resources=self.with_one_gpu,
                expected=(str(out),),
                plans_file=str(self.study.plans_file(dataset, plans)),
                **_about(plans, configuration, trainer),
            )
        if self.definition.ensemble:
            for trainer in self.study.trainer_names:
                yield self._ensemble(dataset, trainer)

    def _ensemble(self, dataset: str, trainer: str) -> Job:
        members = [(plans, configuration) for other, plans, configuration in self._models() if other == trainer]
        folders = [prediction_folder(self.folder, dataset, f"{trainer}__{plans}__{name}") for plans, name in members]
        out = prediction_folder(self.folder, dataset, f"{trainer}__ensemble")
        return self._job(
            "ensemble",
            *(dataset, trainer),
            command=("nnUNetv2_ensemble", "-i", *map(str, folders), "-o", str(out)),
            depends_on=tuple(_id("predict", dataset, trainer, plans, name) for plans, name in members),
            expected=(str(out),),
            trainer=trainer,
        )

    def _evaluations(self, dataset: str) -> Iterator[Job]:
        trained = [name for model in self._models() for name in self._folds(dataset, *model)]
        models = [self.study.model(dataset, *model) for model in self._models()]
        if "all" not in self.definition.folds:  # which validates on the cases that it was trained on
            yield self._job(
                "evaluate",
                dataset,
                command=evaluation_command(self.study, self.folder, dataset, models),
                depends_on=tuple(trained),
                expected=(str(evaluation_folder(self.folder, dataset) / "report.md"),),
            )
        if self.definition.predict is not None and self.definition.predict.references is not None:
            made = list(self._predictions(dataset))
            folders = [Path(job.expected[0]) for job in made]
            yield self._job(
                "evaluate",
                *(dataset, HELD_OUT),
                command=evaluation_command(self.study, self.folder, dataset, folders, held_out=True),
                depends_on=tuple(job.id for job in made),
                expected=(str(evaluation_folder(self.folder, dataset, held_out=True) / "report.md"),),
            )

    def _folds(self, dataset: str, trainer: str, plans: str, configuration: str) -> Iterator[str]:
        for fold in self.definition.folds:
            yield _id("train", dataset, trainer, plans, configuration, f"fold{fold}")


def evaluation_command(
    study: Study, folder: Path, dataset: str, results: Sequence[Path], *, held_out: bool = False
) -> tuple[str, ...]:
    """Evaluates one dataset; against the baseline, if that is among the results.

    Args:
        study: whose `evaluate` block has the options.
        folder: of the study.
        dataset: name.
        results: nnU-Net's folders of models, or where `held_out`, folders of predictions.
        held_out: whether held-out images were predicted.
    """
    definition = study.definition
    what = tuple(map(str, results))
    if held_out:
        assert definition.predict is not None
        assert definition.predict.references is not None
        what = ("-pred", *what, "-ref", str(Path(study.raw, dataset, definition.predict.references)))
    asked = dict(definition.evaluate)
    if asked.get("baseline") not in {without_seed(path.name.partition("__")[0]) for path in results}:
        asked.pop("baseline", None)
    options = [word for name, value in asked.items() for word in option_words(name, value)]
    out = evaluation_folder(folder, dataset, held_out=held_out)
    workers = ("-np", str(study.cpus))
    return ("nnunet-godc", "evaluate", *what, "--out", str(out), *workers, *options)


def option_words(name: str, value: Any) -> list[str]:
    """A key of a study file on a command line: `metrics: [overlap, surface]` is `--metrics overlap surface`."""
    if value is False or value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [f"--{name.replace('_', '-')}", *(() if value is True else map(str, values))]


def _data_of(configuration: str) -> tuple[str, ...]:
    """The configurations whose preprocessed data a training reads."""
    return {
        "3d_cascade_fullres": ("3d_fullres",),
        "3d_lowres": ("3d_lowres", "3d_fullres"),
    }.get(configuration, (configuration,))


def _about(plans: str, configuration: str, trainer: str) -> dict[str, str]:
    return {"plans": plans, "configuration": configuration, "trainer": trainer}


def _id(kind: Kind, *names: str) -> str:
    return ".".join((kind, *names))


def _number(dataset: str) -> str:
    """nnU-Net's planning knows datasets by number alone."""
    return str(int(dataset[7:10]))
