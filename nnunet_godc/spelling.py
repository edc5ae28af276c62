"""The nearest known name to a misspelt one."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache

from nnunet_godc import combined_names

_TRAINER_PREFIX = "nnunettrainer"  # in lower case: mistaken capitals are the commonest misspelling
_CUTOFF = 0.7


def closest_trainer(misspelt: str, known: Iterable[str]) -> str | None:
    """The name that `misspelt` most likely meant; None if none is near, or it is no trainer's name at all.

    It is one of `known` or a combination of parts (see `combined_names`). Only what follows `nnUNetTrainer` is
    compared, without regard to case: the long common beginning would make all names look alike.
    """

    def variant(name: str) -> str:
        return name.lower().removeprefix(_TRAINER_PREFIX)

    if not misspelt.lower().startswith(_TRAINER_PREFIX):
        return None
    if right := combined_names.in_order(misspelt):
        return right
    _, schedule = combined_names.without_schedule(misspelt)
    # nnU-Net's own trainer of the Dice loss is found before it comes to this
    ours = (name for name in combined_names.names() if name != f"{combined_names.PREFIX}DiceLoss")
    scheduled = (f"{name}{schedule}" for name in ours)
    names = {variant(name): name for name in (*scheduled, *known) if name.lower().startswith(_TRAINER_PREFIX)}
    nearest = get_close_matches(variant(misspelt), names, n=1, cutoff=_CUTOFF)
    return names[nearest[0]] if nearest else None


@cache
def point_out_misspelling(misspelt: str, known: frozenset[str]) -> None:
    """Names the nearest of `known` on stderr, if one is near; once for each name, however often nnU-Net looks."""
    nearest = closest_trainer(misspelt, known)
    if nearest is not None:
        print(f"nnunet-godc knows no trainer called {misspelt}; did you mean {nearest}?", file=sys.stderr)


def closest_match(misspelt: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `misspelt` most likely meant, without regard to case; None if none is near."""
    names = {name.lower(): name for name in sorted(known)}
    nearest = get_close_matches(misspelt.lower(), names, n=1, cutoff=_CUTOFF)
    return names[nearest[0]] if nearest else None


def names_of_subclasses(parent: type) -> set[str]:
    """The names of a class and of all that derive from it and were imported."""
    children: list[type] = parent.__subclasses__()
    return {parent.__name__}.union(*map(names_of_subclasses, children))
