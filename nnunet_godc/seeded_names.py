"""What a trainer with a seed is called, hence the folder of its results: ``nnUNetTrainerGODC_seed3``."""

from __future__ import annotations

import re

LIMIT = 10**9  # of seeds

_ENDING = re.compile(r"(?<=.)_seed(\d+)$")


def with_seed(trainer: str, seed: int) -> str:
    return f"{trainer}_seed{seed}"


def without_seed(trainer: str) -> str:
    """The trainer's name without the seed that it may end with."""
    return _ENDING.sub("", trainer)


def seed_of(trainer: str) -> int | None:
    """The seed that the trainer's name ends with, if it does."""
    ending = _ENDING.search(trainer)
    return int(ending[1]) if ending else None
