"""Names of trainers that combine a network, a loss and LFAM: ``nnUNetTrainerAttentionUNetGODCLFAM_50epochs``.

The parts stand in this order, and each may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import permutations, product
from typing import NamedTuple

PREFIX = "nnUNetTrainer"
NETWORKS = ("UNet", "ResUNet", "UNetPlusPlus", "AttentionUNet", "CENet")
LOSSES = ("DiceLoss", "GODC", "GODCOnly", "GODCSquared", "GODCRunning")
ALIGNMENTS = ("LFAM", "LFAMShared", "LFAMGuided", "LFAMLite")

_SCHEDULE = re.compile(r"_([1-9]\d*)epochs$")


class Parts(NamedTuple):
    """What a trainer is made of; "" and None where a part is nnU-Net's own."""

    network: str
    loss: str
    alignment: str
    epochs: int | None

    @property
    def name(self) -> str:
        schedule = "" if self.epochs is None else f"_{self.epochs}epochs"
        return f"{PREFIX}{self.network}{self.loss}{self.alignment}{schedule}"


def parts_of(name: str) -> Parts | None:
    """The parts that a name consists of, in the right order and spelling; None if it is no such name."""
    groups = "".join(f"({'|'.join(sorted(group, reverse=True))})?" for group in (NETWORKS, LOSSES, ALIGNMENTS))
    match = re.fullmatch(f"{PREFIX}{groups}(?:_([1-9]\\d*)epochs)?", name)
    if match is None:
        return None
    network, loss, alignment, epochs = match.groups(default="")
    return Parts(network, loss, alignment, int(epochs) if epochs else None)


def names() -> Iterator[str]:
    """Every name without a schedule."""
    for network, loss, alignment in product(("", *NETWORKS), ("", *LOSSES), ("", *ALIGNMENTS)):
        yield Parts(network, loss, alignment, None).name


def without_schedule(name: str) -> tuple[str, str]:
    """The name without its number of epochs, and what was taken off."""
    ending = _SCHEDULE.search(name)
    return (name[: ending.start()], ending[0]) if ending else (name, "")


def in_order(name: str) -> str | None:
    """The right name where all parts are there in another order, without regard to case; None if they are not."""
    bare, schedule = without_schedule(name)
    asked = bare.lower().removeprefix(PREFIX.lower())
    for parts in product(("", *NETWORKS), ("", *LOSSES), ("", *ALIGNMENTS)):
        if len("".join(parts)) == len(asked) and any("".join(order).lower() == asked for order in permutations(parts)):
            return Parts(*parts, None).name + schedule
    return None
