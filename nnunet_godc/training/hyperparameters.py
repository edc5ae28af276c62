"""The one place where our trainers change what nnU-Net's constructor has set."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class HyperparametersMixin(nnUNetTrainer):
    """Calls `set_hyperparameters` when nnU-Net's constructor is done."""

    # nnU-Net looks up its own parameters by the names in this signature, so that no subclass may add any
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own default
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.set_hyperparameters()

    def set_hyperparameters(self) -> None:
        """Changes learning rate, number of epochs and the like. For subclasses; call `super()`."""
