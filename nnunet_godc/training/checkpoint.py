"""Reading nnU-Net's checkpoints, with an answer for one that does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_godc.errors import UserError


def bare_network(network: nn.Module) -> nn.Module:
    """The network itself, without the wrappers of DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint as nnU-Net wrote it, on the CPU.

    Raises:
        UserError: if there is no such file, or it is no nnU-Net checkpoint.
    """
    try:
        # nnU-Net stores plain Python objects beside the tensors, which the safe loader refuses
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the path of an nnU-Net checkpoint (.pth).") from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: this file cannot be read as a checkpoint ({reason}); give a whole one.") from error
    if not isinstance(checkpoint, dict) or not {"network_weights", "init_args", "trainer_name"} <= checkpoint.keys():
        raise UserError(f"{path}: this is no checkpoint of nnU-Net v2; give a checkpoint_final.pth that it wrote.")
    return checkpoint


def mismatch(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """How the names and shapes of two state dicts differ, in a few words; None if they do not."""
    missing = sorted(own.keys() - other.keys())
    unexpected = sorted(other.keys() - own.keys())
    reshaped = sorted(name for name in own.keys() & other.keys() if own[name].shape != other[name].shape)
    differences = [
        f"{len(names)} weights {what}, such as {names[0]}"
        for what, names in (("are missing", missing), ("are unknown", unexpected), ("differ in shape", reshaped))
        if names
    ]
    return "; ".join(differences) or None


class CheckedCheckpointMixin(nnUNetTrainer):
    """Says in one sentence that a checkpoint belongs to another variant, before anything of it is loaded."""

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        if not self.was_initialized:
            self.initialize()
        if isinstance(filename_or_checkpoint, str):
            checkpoint = read_checkpoint(filename_or_checkpoint)
            # nnU-Net strips the prefix of a wrapper, too
            weights = {name.removeprefix("module."): value for name, value in checkpoint["network_weights"].items()}
            difference = mismatch(bare_network(self.network).state_dict(), weights)
            if difference is not None:
                raise UserError(
                    f"{filename_or_checkpoint} was trained by {checkpoint['trainer_name']} and does not fit "
                    f"{type(self).__name__} ({difference}); use -tr {checkpoint['trainer_name']}, or start a new "
                    f"training from its weights with `nnunet-godc warm-start`."
                )
            self.load_own_state(checkpoint)
        super().load_checkpoint(filename_or_checkpoint)

    def load_own_state(self, checkpoint: dict[str, Any]) -> None:
        """Takes from a checkpoint what nnU-Net does not know of. For subclasses; call `super()`."""
