"""What a study is: the blocks of a study file, and the study once its names are resolved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from nnunet_godc.seeded_names import LIMIT, with_seed
from nnunet_godc.workers import available_cores

CPUS_ON_A_CLUSTER = 8

Configuration = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]


def _is_fold(value: Any) -> Any:
    if value == "all" or (type(value) is int and value >= 0):
        return value
    raise PydanticCustomError("fold", "folds are numbers from 0, or all")


Fold = Annotated[int | str, BeforeValidator(_is_fold)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]

# nnU-Net's planners by the name that they give their plans.
PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetPlans": "ResEncUNetPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}


class ConfigModel(BaseModel):
    """Part of a study file: no unknown keys, no conversion of one type to another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Plans(ConfigModel):
    """Plans that trainings use: nnU-Net's planner makes them, or they are a small variation of others.

    Attributes:
        name: nnU-Net's plans identifier, for its option `-p`.
        planner: class that makes them; None for those that nnU-Net knows by name, or that exist already.
        gpu_memory_gb: what they are planned for; None for the planner's own.
        variation_of: name of the plans that these are made from; `from` in the file. One configuration alone is kept,
            with the sizes below.
        configuration: the one that a variation keeps; None for 3d_fullres.
        patch_size: voxels along the plans' axes.
        features: channels of the first stage, which double from stage to stage.
        stages: resolutions of the network, at least 3.
        batch_size: patches per step.
        spacing: target spacing in mm along the plans' axes; None keeps the planner's.
    """

    name: str
    planner: str | None = None
    gpu_memory_gb: PositiveFloat | None = None
    variation_of: str | None = Field(default=None, alias="from")
    configuration: Literal["2d", "3d_fullres", "3d_lowres"] | None = None
    patch_size: list[PositiveInt] | None = None
    features: PositiveInt | None = None
    # With two, deep supervision has one output, whose weight nnU-Net sets to 0 / 0.
    stages: Annotated[int, Field(ge=3)] | None = None
    batch_size: PositiveInt | None = None
    spacing: list[PositiveFloat] | None = None

    @property
    def planner_class(self) -> str | None:
        return self.planner or PLANNERS.get(self.name)

    @property
    def sizes(self) -> dict[str, Any]:
        """What a variation changes, as `shrink` of `nnunet_godc.plans` takes it."""
        included = {"configuration", "patch_size", "features", "stages", "batch_size", "spacing"}
        return self.model_dump(include=included, exclude_none=True)


class Predict(ConfigModel):
    """Images to predict with every model.

    Attributes:
        images: folder; one that is not absolute lies in each raw dataset.
        references: folder of their segmentations, by which the predictions are evaluated; None if there are none.
    """

    images: str = "imagesTs"
    references: str | None = None


class PublishedMethod(ConfigModel):
    """A row of a published table.

    Attributes:
        trainer: that of the study which stands for it; None if there is none.
        values: in %, by metric.
    """

    trainer: str | None = None
    values: Annotated[dict[Literal["Dice", "IoU", "Precision", "Recall"], float], Field(min_length=1)]


class Published(ConfigModel):
    """A published table, beside which the report puts what was measured.

    Attributes:
        source: where it stands.
        label: that it is about.
        methods: its rows, by the names that it gives them.
    """

    source: str
    label: str
    methods: Annotated[dict[str, PublishedMethod], Field(min_length=1)]


class Slurm(ConfigModel):
    """What the cluster wants to know; what is not described here are options of sbatch.

    Attributes:
        setup: lines of shell that run before a job.
        parallel: most jobs of one array at once.
        requeues: how often a training may reach its time limit and go on; None for 10. A preempted one always does.
        extra: further options of sbatch by their long names.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    setup: list[str] = []
    parallel: PositiveInt | None = None
    requeues: Annotated[int, Field(ge=0)] | None = None
    extra: dict[str, str | int | float | bool] = {}


class StudyResources(ConfigModel):
    """Where jobs run and what each asks for.

    Attributes:
        executor: this machine, or a Slurm cluster.
        device: of trainings and predictions.
        gpus: per training; more than one trains with nnU-Net's `-num_gpus`.
        cpus: per job, for nnU-Net's worker processes; None for what this machine has, or nnUNet_n_proc_DA and
            nnUNet_def_n_proc where they are set; on a cluster, for 8.
        memory_gb: per job, in GB.
        hours: time limit of one attempt at a job, which a cluster keeps.
        slots: on this machine, how many jobs that need no GPU run at once.
        slurm: what the cluster wants to know.
    """

    executor: Literal["local", "slurm"] = "local"
    device: Literal["cuda", "cpu", "mps"] = "cuda"
    gpus: PositiveInt = 1
    cpus: PositiveInt | None = None
    memory_gb: PositiveFloat | None = None
    hours: PositiveFloat | None = None
    slots: PositiveInt | None = None
    slurm: Slurm = Slurm()


def _plans_by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class StudyConfig(ConfigModel):
    """A study file.

    Attributes:
        name: of the study; default: the file's.
        datasets: nnU-Net's ids or names.
        configurations: of nnU-Net.
        plans: by name, or with how they are made.
        trainers: names for nnU-Net's `-tr`.
        folds: of the cross-validation, or `all`.
        seeds: of nine digits at most; every training runs once with each; empty for one run without a seed, as nnU-Net
            trains.
        predict: images to predict; None for none.
        ensemble: whether the predictions of all plans and configurations of a trainer are averaged, too.
        evaluate: options of `nnunet-godc evaluate` by their long names.
        published: a table of others, to compare with.
        environment: variables for all jobs, such as those of nnU-Net's W&B logger (nnUNet_wandb_enabled,
            nnUNet_wandb_project, nnUNet_wandb_mode). They go before those of the shell.
        resources: where jobs run and what each asks for.
    """

    name: str | None = Field(default=None, pattern=r"^[\w][\w.-]*$")
    datasets: Annotated[list[int | str], Field(min_length=1)]
    configurations: Annotated[list[Configuration], Field(min_length=1)] = ["3d_fullres"]
    plans: Annotated[list[Annotated[Plans, BeforeValidator(_plans_by_name)]], Field(min_length=1)] = [
        Plans(name="nnUNetPlans")
    ]
    trainers: Annotated[list[str], Field(min_length=1)]
    folds: Annotated[list[Fold], Field(min_length=1)] = [0, 1, 2, 3, 4]
    seeds: list[Annotated[int, Field(ge=0, lt=LIMIT)]] = []
    predict: Predict | None = None
    ensemble: bool = False
    evaluate: dict[str, Any] = {}
    published: Published | None = None
    environment: dict[str, str] = {}
    resources: StudyResources = StudyResources()


class Study(ConfigModel):
    """A study whose names are resolved: what the jobs follow from.

    Attributes:
        name: of the study.
        datasets: by name, in the order of the file.
        raw: nnU-Net's folder of that name.
        preprocessed: likewise.
        results: likewise.
        definition: what the file says.
    """

    name: str
    datasets: list[str]
    raw: str
    preprocessed: str
    results: str
    definition: StudyConfig

    @property
    def trainer_names(self) -> list[str]:
        """Every trainer, once with every seed in its name where there are seeds."""
        if not self.definition.seeds:
            return list(self.definition.trainers)
        return [with_seed(trainer, seed) for trainer in self.definition.trainers for seed in self.definition.seeds]

    @property
    def cpus(self) -> int:
        """Of each job, where the file does not say: all of this machine, but not all of the node that submits jobs."""
        asked = self.definition.resources
        return asked.cpus or (CPUS_ON_A_CLUSTER if asked.executor == "slurm" else available_cores())

    def model(self, dataset: str, trainer: str, plans: str, configuration: str) -> Path:
        """Where nnU-Net keeps the folds of one model."""
        return Path(self.results, dataset, f"{trainer}__{plans}__{configuration}")

    def plans_file(self, dataset: str, plans: str) -> Path:
        return Path(self.preprocessed, dataset, f"{plans}.json")
