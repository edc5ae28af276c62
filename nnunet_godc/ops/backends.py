"""Which implementation runs a deformable convolution.

A backend computes the same function as the plain-PyTorch reference, for the tensors it supports, and the fastest usable
one is taken. Each is a module; adding one is adding it to `BACKENDS`, and removing it leaves a working project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nnunet_godc.ops import _cuda, _numba, _reference, _triton
from nnunet_godc.ops._geometry import Arguments


@dataclass(frozen=True)
class Backend:
    """One implementation of the operation.

    Attributes:
        name: as `nnunet-godc doctor` prints it.
        forward: as `_reference.forward`.
        backward: as `_reference.backward`.
        why_unusable: None where it can run on this machine, otherwise the reason in a sentence.
        supports: whether it takes this call.
    """

    name: str
    forward: Callable[[Arguments, Tensor | None], Tensor]
    backward: Callable[[Tensor, Arguments], tuple[Tensor, Tensor, Tensor, Tensor]]
    why_unusable: Callable[[], str | None]
    supports: Callable[[Arguments], bool]


# Fastest first; the reference comes last and takes everything.
BACKENDS = tuple(
    Backend(name, module.forward, module.backward, module.why_unusable, module.supports)
    for name, module in (("cuda", _cuda), ("triton", _triton), ("numba", _numba), ("reference", _reference))
)


def available_backends() -> dict[str, str | None]:
    """Names of all backends, fastest first, each with None if it is usable here or the reason why not."""
    return {backend.name: backend.why_unusable() for backend in BACKENDS}


def select(arguments: Arguments) -> Backend:
    """The fastest usable backend for this call."""
    return next(backend for backend in BACKENDS if backend.supports(arguments) and backend.why_unusable() is None)
