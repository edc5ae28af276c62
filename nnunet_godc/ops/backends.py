"""Which implementation runs a deformable convolution.

A backend computes the same function as the plain-PyTorch reference, for the tensors it supports, and the fastest usable
one is taken. Adding one is adding an entry to `BACKENDS`; removing it leaves a working project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nnunet_godc.ops import _numba, _reference, _triton


@dataclass(frozen=True)
class Backend:
    """One implementation of the operation.

    Attributes:
        name: as `nnunet-godc doctor` prints it.
        forward: with the signature of `_reference.forward`.
        backward: with the signature of `_reference.backward`.
        why_unusable: None where it can run on this machine, otherwise the reason in a sentence.
        supports: whether it takes this call; called with input, offset, weight and offset_groups.
    """

    name: str
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    why_unusable: Callable[[], str | None]
    supports: Callable[[Tensor, Tensor, Tensor, int], bool]


# Fastest first; the reference comes last and takes everything.
BACKENDS = (
    Backend(
        name="triton",
        forward=_triton.forward,
        backward=_triton.backward,
        why_unusable=_triton.why_unusable,
        supports=_triton.supports,
    ),
    Backend(
        name="numba",
        forward=_numba.forward,
        backward=_numba.backward,
        why_unusable=_numba.why_unusable,
        supports=_numba.supports,
    ),
    Backend(
        name="reference",
        forward=_reference.forward,
        backward=_reference.backward,
        why_unusable=lambda: None,
        supports=lambda input, offset, weight, offset_groups: True,
    ),
)


def available_backends() -> dict[str, str | None]:
    """Names of all backends, fastest first, each with None if it is usable here or the reason why not."""
    return {backend.name: backend.why_unusable() for backend in BACKENDS}


def select(input: Tensor, offset: Tensor, weight: Tensor, offset_groups: int) -> Backend:
    """The fastest usable backend for this call."""
    return next(
        backend
        for backend in BACKENDS
        if backend.supports(input, offset, weight, offset_groups) and backend.why_unusable() is None
    )
