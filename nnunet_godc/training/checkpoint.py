"""Reading nnU-Net's checkpoints without executing what they hold, with an answer for one that does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_godc.errors import UserError

FINAL, LATEST, BEST = (f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))

# NumPy's numbers in nnU-Net's log, which PyTorch's safe loader does not know by itself. None of them executes anything.
_DTYPES = (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)
_NUMPY: list[Any] = [
    np.dtype,
    np.ndarray,
    *_DTYPES,
    *(type(np.dtype(kind)) for kind in _DTYPES),
    # NumPy moved it; a checkpoint names the place that the writing version had.
    *((np.float64(0).__reduce__()[0], f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    *((np.zeros(0).__reduce__()[0], f"numpy.{module}.multiarray._reconstruct") for module in ("core", "_core")),
]


def bare_network(network: nn.Module) -> nn.Module:
    """The network itself, without the wrappers of DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def read_checkpoint(path: str | Path, *, trusted: bool = False) -> dict[str, Any]:
    """A checkpoint as nnU-Net wrote it, on the CPU. Tensors are read from the file when they are used.

    Args:
        path: of the checkpoint.
        trusted: also unpickles what may execute code, as nnU-Net itself does with every checkpoint that it loads.

    Raises:
        UserError: if there is no such file, it is not whole or is no nnU-Net checkpoint, or it is not trusted and holds
            more than numbers, text and containers of them.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: there is no such file; give the path of an nnU-Net checkpoint (.pth).")
    # the archive's directory is at its end, where half a file has none
    if not is_zipfile(path):
        raise UserError(f"{path}: this file is not a checkpoint, or not a whole one; give one that nnU-Net wrote.")
    with torch.serialization.safe_globals(_NUMPY):
        try:
            if not trusted and (unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(path)):
                raise UserError(
                    f"{path}: beside numbers and text this file holds {', '.join(sorted(unsafe))}, which can execute "
                    "code when nnU-Net loads it; use it only if you trust where it comes from."
                )
            checkpoint = torch.load(path, map_location="cpu", weights_only=not trusted, mmap=True)
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, BadZipFile) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path}: this file cannot be read as a checkpoint ({reason}); give a whole one."
            ) from error
    if not isinstance(checkpoint, dict) or not {"network_weights", "init_args", "trainer_name"} <= checkpoint.keys():
        raise UserError(f"{path}: this is not a checkpoint of nnU-Net v2; give a checkpoint_final.pth that it wrote.")
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


def is_of_alignment(weight: str) -> bool:
    """Whether the weight of this name is one of LFAM's."""
    return "alignment" in weight.split(".")[:-1]


def describe_checkpoint(path: Path) -> list[str]:
    """What a checkpoint is, a line for each thing, without executing anything that it holds.

    Raises:
        UserError: it cannot be read, or not without executing something.
    """
    checkpoint = read_checkpoint(path)
    arguments, weights = checkpoint["init_args"], checkpoint["network_weights"]
    epochs = checkpoint.get("current_epoch")
    dice = checkpoint.get("logging", {}).get("ema_fg_dice")
    aligned = any(is_of_alignment(name) for name in weights)
    return [
        f"trainer: {checkpoint['trainer_name']}",
        f"dataset: {arguments['plans'].get('dataset_name')}",
        f"plans: {arguments['plans'].get('plans_name')}, {arguments['configuration']}, fold {arguments.get('fold')}",
        f"epochs: {'not told' if epochs is None else epochs}",
        *([f"pseudo Dice, moving average: {float(dice[-1]):.4f}"] if dice else []),
        f"weights: {sum(weight.numel() for weight in weights.values()):,} numbers in {len(weights)} tensors",
        f"LFAM: {'yes' if aligned else 'no'}",
        f"GODC's running mean: {'yes' if 'godc_state' in checkpoint else 'no'}",
        "holds numbers and text only: loading it executes nothing",
    ]
