"""What training_gpu.py puts on top of a trainer: two epochs, every step timed, and a file with what came of it."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import OptimizedModule

from nnunet_godc.training import ScheduleMixin

MEASUREMENT = "NNUNET_GODC_BENCHMARK_MEASUREMENT"  # file to write
PREVIOUS = "NNUNET_GODC_BENCHMARK_PREVIOUS"  # file that says that the run before has left the device; empty for none
LEFT_DEVICE = "NNUNET_GODC_BENCHMARK_LEFT_DEVICE"  # file that says the same of this run


class MeasuredMixin(ScheduleMixin):
    """Trains two epochs, the first to compile and to warm up, the second to be timed.

    Imports, loaders and building the network overlap with the run before; its steps do not.
    """

    epochs = 2

    def on_train_start(self) -> None:
        super().on_train_start()
        self._step_milliseconds: list[float] = []
        if os.environ[PREVIOUS]:
            while not Path(os.environ[PREVIOUS]).exists():
                time.sleep(0.02)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._synchronise()
        start = time.perf_counter()
        result: dict[str, Any] = super().train_step(batch)
        self._synchronise()
        self._step_milliseconds.append((time.perf_counter() - start) * 1e3)
        return result

    def on_train_end(self) -> None:
        on_cuda = self.device.type == "cuda"
        measurement = {
            "batch_size": int(self.batch_size),
            "patch_size": [int(size) for size in self.configuration_manager.patch_size],
            "train_loss": [float(loss) for loss in self.logger.get_value("train_losses", step=None)],
            "validation_loss": [float(loss) for loss in self.logger.get_value("val_losses", step=None)],
            # a class that no batch held has none
            "pseudo_dice": [
                None if math.isnan(dice) else float(dice)
                for dice in self.logger.get_value("dice_per_class_or_region", step=-1)
            ],
            "step_ms": self._step_milliseconds[self.num_iterations_per_epoch :],
            "first_step_ms": self._step_milliseconds[0],
            "peak_memory_mib": torch.cuda.max_memory_allocated(self.device) / 2**20 if on_cuda else None,
            "compiled": isinstance(self.network, OptimizedModule),
        }
        super().on_train_end()
        Path(os.environ[MEASUREMENT]).write_text(json.dumps(measurement))
        Path(os.environ[LEFT_DEVICE]).touch()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Left out: it would cost every run another compilation, and prediction is measured by its own command."""

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
