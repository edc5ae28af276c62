"""What made a result: versions, command, data, machine, time and energy. Loads no torch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nnunet_godc
from nnunet_godc.study.folder import write_json
from nnunet_godc.study.jobs import Job

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
    _energy: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, job: Job, command: Sequence[str], path: Path) -> Record:
        """Adds an attempt to the record, or starts it."""
        attempts = json.loads(path.read_text())["attempts"] if path.exists() else []
        devices = _devices(job)
        attempts.append(
            {
                "start": _now(),
                "end": None,
                "seconds": None,
                "return_code": None,
                "command": list(command),
                "host": socket.gethostname(),
                "gpus": [name for name, _ in devices.values()],
                "energy_joules": None,
                "versions": _versions(),
                "commit": commit_of(Path(nnunet_godc.__file__).parent),
            }
        )
        values = {
            "job": job.id,
            "seed": job.seed,
            "environment": dict(job.environment),
            "plans_file": job.plans_file or None,
            "plans_sha256": None,
            "dataset_fingerprint_sha256": None,
            "attempts": attempts,
        }
        record = cls(path, values, _energy={uuid: used for uuid, (_, used) in devices.items() if used is not None})
        record._write()
        return record

    def finish(self, return_code: int) -> None:
        """Closes the attempt."""
        attempt = self.values["attempts"][-1]
        attempt |= {
            "end": _now(),
            "seconds": round(time.monotonic() - self._started, 3),
            "return_code": return_code,
            "energy_joules": self._energy_used(),
        }
        self._write()

    def _write(self) -> None:
        # Planning writes both of these, so that they are read as late as possible.
        plans = self.values["plans_file"]
        if plans:
            self.values["plans_sha256"] = _sha256(Path(plans))
            self.values["dataset_fingerprint_sha256"] = _sha256(Path(plans).with_name("dataset_fingerprint.json"))
        write_json(self.path, self.values)

    def _energy_used(self) -> float | None:
        """Joules that the devices took during the attempt, other processes on them included; None if unknown."""
        if not self._energy:
            return None
        now = {uuid: used for uuid, (_, used) in _visible_devices().items()}
        differences = [used - before for uuid, before in self._energy.items() if (used := now.get(uuid)) is not None]
        return sum(differences) / 1000 if len(differences) == len(self._energy) else None


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


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _devices(job: Job) -> dict[str, tuple[str, int | None]]:
    return _visible_devices() if job.resources.gpus else {}


def _visible_devices() -> dict[str, tuple[str, int | None]]:
    """By UUID: name and energy counter (millijoules since the driver was loaded) of the GPUs that a job may use."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        devices = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            if not _is_visible(index, uuid):
                continue
            try:
                used = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            except pynvml.NVMLError:
                used = None  # older than Volta, or a slice of a shared device
            devices[uuid] = (pynvml.nvmlDeviceGetName(handle), used)
        return devices
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def _is_visible(index: int, uuid: str) -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return True
    # CUDA accepts any beginning of a UUID that is unique
    entries = [entry.strip() for entry in visible.split(",")]
    return any(entry == str(index) or (entry.startswith("GPU-") and uuid.startswith(entry)) for entry in entries)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
