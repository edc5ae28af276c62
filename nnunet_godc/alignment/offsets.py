"""What LFAM's offsets do in a trained network: how long they are, and what is left of it without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_godc.alignment.align_skips import alignment_of
from nnunet_godc.alignment.lfam import LateralFeatureAlignment

HALF_A_VOXEL = 0.5
LIMITS = tuple(float(limit) for limit in HALF_A_VOXEL * 2 ** np.arange(-4, 4.5, 0.5))  # voxels, 1/32 to 8


@contextmanager
def seen_offsets(network: nn.Module, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within, each pass of an aligned network calls `see` for each of its levels, finest 0, with its offsets.

    These are (B, taps, axes, ...), in voxels of that level's feature map, axes ordered (z, y, x), or (y, x) of offsets
    in the plane. They are computed once more for it, so that the network's own pass stays as it is.
    """
    alignment = alignment_of(network)
    level = -1

    def enters(own: int) -> Callable[..., None]:
        def note(*_: Any) -> None:
            nonlocal level
            level = own

        return note

    def look(module: LateralFeatureAlignment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        offsets, _ = module.offsets(*args, **kwargs)
        see(level, offsets.unflatten(1, (module.taps, -1)))

    # A module that levels share does not know for which of them it is called: the level is noted first.
    handles = [own.register_forward_pre_hook(enters(int(key))) for key, own in alignment.levels.items()]
    modules = [module for module in alignment.modules() if isinstance(module, LateralFeatureAlignment)]
    handles += [module.register_forward_pre_hook(look, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class OffsetLengths:
    """Lengths of the offsets of one level, over all taps and positions that were seen.

    Attributes:
        samples: how many there were.
        sum_voxels, sum_mm: of their lengths.
        above: how many are longer than each of `LIMITS`.
        spacing: of the level's feature map, in mm.
        taps: of each position.
    """

    samples: int = 0
    sum_voxels: float = 0.0
    sum_mm: float = 0.0
    above: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(LIMITS), np.int64))
    spacing: tuple[float, ...] = ()
    taps: int = 0

    def add(self, offsets: Tensor, spacing: Sequence[float]) -> None:
        """Offsets as `seen_offsets` gives them; the map's spacing in mm, (z, y, x) or (y, x)."""
        axes = offsets.shape[2]
        mm = offsets.new_tensor(spacing[-axes:]).reshape(-1, *[1] * (offsets.dim() - 3))
        lengths = torch.linalg.vector_norm(offsets, dim=2)
        self.samples += lengths.numel()
        self.sum_voxels += float(lengths.sum(dtype=torch.float64))
        self.sum_mm += float(torch.linalg.vector_norm(offsets * mm, dim=2).sum(dtype=torch.float64))
        self.above += np.array([int((lengths > limit).sum()) for limit in LIMITS])
        self.spacing, self.taps = tuple(spacing), offsets.shape[1]

    def row(self) -> dict[str, float | str]:
        """As a table has it: means, and shares of samples that are moved further than so many voxels."""
        return {
            "spacing_mm": " x ".join(f"{size:.4g}" for size in self.spacing),
            "taps": self.taps,
            "samples": self.samples,
            "mean_voxels": self.sum_voxels / self.samples,
            "mean_mm": self.sum_mm / self.samples,
            **{f"above_{limit:.4g}": count / self.samples for limit, count in zip(LIMITS, self.above, strict=True)},
        }


def weights_without_offsets(network: nn.Module) -> dict[str, Tensor]:
    """The weights of an aligned network, with those that predict offsets at zero.

    What is left is not a network without LFAM: each skip connection keeps its convolution, whose taps read where those
    of a plain one do, and its modulation.
    """
    weights = dict(network.state_dict())
    for name, module in network.named_modules():
        if isinstance(module, LateralFeatureAlignment):
            for own, _ in module.offset.named_parameters():
                full = f"{name}.offset.{own}"
                weights[full] = weights[full].clone()
                weights[full][: module.offset_channels] = 0
    return weights
