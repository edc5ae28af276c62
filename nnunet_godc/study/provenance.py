"""What made a result: versions, command, trainer, data, machine and time. Loads no torch."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nnunet_godc
from nnunet_godc.study.folder import write_json
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.local import visible_gpus
from nnunet_godc.study.trainers import Code, package_version, sha256_of

PACKAGES = ("nnunet-godc", "nnunetv2", "dynamic-network-architectures", "batchgeneratorsv2", "torch", "numpy")


@dataclass
class Record:
    """The provenance of a job, written when an attempt at it begins and again when it ends.

    Every attempt keeps its own entry, since a training that was interrupted may have gone on with other versions or on
    another machine.

    Attributes:
        path: provenance.json.
        values: what the file says.
    """

    path: Path
    values: dict[str, Any]
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, job: Job, command: Sequence[str], path: Path, trainer: Code | None = None) -> Record:
        """Adds an attempt to the record, or starts it."""
        attempts = json.loads(path.read_text())["attempts"] if path.exists() else []
        versions: dict[str, str | None] = {"python": platform.python_version()}
        versions |= {name: package_version(name) for name in PACKAGES}
        attempts.append(
            {
                **{"start": _now(), "end": None, "seconds": None, "return_code": None, "command": list(command)},
                "host": socket.gethostname(),
                "gpus": list(visible_gpus().values()) if job.resources.gpus else [],
                "versions": versions,
                "commit": commit_of(Path(nnunet_godc.__file__).parent),
            }
        )
        about = ("dataset", "plans", "configuration", "trainer", "fold", "seed")
        values = {
            "job": job.id,
            **{name: getattr(job, name) for name in about if getattr(job, name) not in ("", None)},
            "trainer_code": trainer.to_json() if trainer else None,
            "environment": dict(job.environment),
            "plans_file": job.plans_file or None,
            "attempts": attempts,
        }
        record = cls(path, values)
        record._write()
        return record

    def finish(self, return_code: int) -> None:
        """Closes the attempt."""
        seconds = round(time.monotonic() - self._started, 3)
        self.values["attempts"][-1] |= {"end": _now(), "seconds": seconds, "return_code": return_code}
        self._write()

    def _write(self) -> None:
        # Planning writes both of these, so that they are read as late as possible.
        if plans := self.values["plans_file"]:
            self.values["plans_sha256"] = sha256_of(Path(plans))
            self.values["dataset_fingerprint_sha256"] = sha256_of(Path(plans).with_name("dataset_fingerprint.json"))
        write_json(self.path, self.values)


def commit_of(folder: Path) -> str | None:
    """The git commit of the checkout that `folder` is installed from, with `-dirty` where files differ from it."""
    if not (folder.parent / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
