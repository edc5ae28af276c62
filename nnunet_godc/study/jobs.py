"""The unit that a study is made of: one command, what it needs, what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

Kind = Literal["plan", "preprocess", "train", "predict", "ensemble", "evaluate"]


@dataclass(frozen=True)
class Resources:
    """What one job asks for.

    Attributes:
        gpus: devices; 0 runs on the CPU.
        cpus: cores.
        memory_gb: main memory in GB; None leaves it to the machine or the cluster.
        minutes: time limit of one attempt; None for none. A cluster ends a longer job and starts it again.
    """

    gpus: int = 0
    cpus: int = 1
    memory_gb: float | None = None
    minutes: int | None = None


@dataclass(frozen=True)
class Resume:
    """How a command goes on where an attempt before it has stopped.

    Attributes:
        file: path whose existence says that there is something to go on from. One that ends in `.pth` counts only if
            it is whole: nnU-Net may have been killed while it wrote.
        arguments: are added to the command then.
    """

    file: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One command of a study.

    Attributes:
        id: unique within the study, and the name of the job's folder.
        kind: what it does.
        command: program and arguments, as `nnunet_godc.commands.find_command` finds it.
        dataset: name.
        plans: identifier; empty where a job is about all of them, like those of the next three.
        configuration: of nnU-Net.
        trainer: as nnU-Net knows it, with a seed if there is one.
        fold: a number, or `all`.
        seed: of the training; None where it is not seeded.
        environment: variables set in addition to those of the process that runs it.
        depends_on: ids of the jobs that have to be done before.
        resources: what it asks for.
        expected: paths that exist once it is done.
        skip_if_output_exists: whether these paths alone say that it is done, so that plans and trainings which were
            there before the study are taken as they are.
        resume: the first of these whose file is there applies when it is started.
        lock: file that is locked while it runs, so that studies which write to the same place take turns; empty where
            it writes to its own study's folder alone.
        plans_file: nnU-Net's plans that it works with; empty for none.
    """

    id: str
    kind: Kind
    command: tuple[str, ...]
    dataset: str = ""
    plans: str = ""
    configuration: str = ""
    trainer: str = ""
    fold: str = ""
    seed: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    resources: Resources = Resources()
    expected: tuple[str, ...] = ()
    skip_if_output_exists: bool = False
    resume: tuple[Resume, ...] = ()
    lock: str = ""
    plans_file: str = ""

    @property
    def lasts(self) -> bool:
        """Whether other studies may use what it makes, so that it is not made anew by itself."""
        return self.kind in ("plan", "preprocess", "train")

    @property
    def fold_folder(self) -> Path:
        """nnU-Net's folder of a training."""
        return Path(self.expected[0]).parent

    @property
    def has_begun(self) -> bool:
        """Whether an attempt has left something to go on from."""
        return any(Path(entry.file).exists() for entry in self.resume)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        return cls(
            **{
                **{
                    _FORMER.get(name, name): value for name, value in values.items() if name in _FIELDS | _FORMER.keys()
                },
                "command": tuple(values["command"]),
                "depends_on": tuple(values["depends_on"]),
                "resources": Resources(**values["resources"]),
                "expected": tuple(values["expected"]),
                "resume": tuple(Resume(entry["file"], tuple(entry["arguments"])) for entry in values["resume"]),
            }
        )


_FIELDS = {entry.name for entry in fields(Job)}
_FORMER = {"adopted": "skip_if_output_exists"}  # as the jobs of version 0.1.0 name it


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """The jobs such that each stands after those it depends on; otherwise in the order given.

    Ids that are not among `jobs` are passed over: they may be done already.

    Raises:
        ValueError: they depend on each other in a circle.
    """
    remaining = {job.id: job for job in jobs}
    ordered: list[Job] = []
    while remaining:
        ready = [job for job in remaining.values() if not any(name in remaining for name in job.depends_on)]
        if not ready:
            raise ValueError(f"jobs depend on each other in a circle: {', '.join(remaining)}")
        for job in ready:
            ordered.append(remaining.pop(job.id))
    return ordered


def dependents(job_id: str, jobs: Iterable[Job]) -> Iterator[str]:
    """Ids of all jobs that cannot run without this one, directly or through others."""
    jobs = list(jobs)
    lost = {job_id}
    for job in in_order(jobs):
        if job.id not in lost and lost.intersection(job.depends_on):
            lost.add(job.id)
            yield job.id
