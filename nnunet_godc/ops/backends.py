"""Which implementation runs a deformable convolution.

A backend computes the same function as the plain-PyTorch reference, for the tensors it supports, and the fastest usable
one is taken. Adding one is adding an entry to `BACKENDS`; removing it leaves a working project.
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
BACKENDS = (
    Backend(
        name="cuda",
        forward=_cuda.forward,
        backward=_cuda.backward,
        why_unusable=_cuda.why_unusable,
        supports=_cuda.supports,
    ),
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
        supports=lambda arguments: True,
    ),
)


def available_backends() -> dict[str, str | None]:
    """Names of all backends, fastest first, each with None if it is usable here or the reason why not."""
    return {backend.name: backend.why_unusable() for backend in BACKENDS}


def select(arguments: Arguments) -> Backend:
    """The fastest usable backend for this call."""
    return next(backend for backend in BACKENDS if backend.supports(arguments) and backend.why_unusable() is None)
