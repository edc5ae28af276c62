"""Every trainer that nnU-Net finds, with a seed: `nnUNetTrainerGODC_seed3` is `nnUNetTrainerGODC` with the seed 3.

The names stand nowhere: a class is made when it is asked for, here and by nnU-Net's search alike.
"""

from __future__ import annotations

from functools import cache

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_godc import seeded_names
from nnunet_godc.training.seeding import SeededMixin, with_seed


def __getattr__(name: str) -> type[nnUNetTrainer]:
    seeded = _seeded_trainer(name)
    if seeded is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return seeded


@cache
def _seeded_trainer(name: str) -> type[nnUNetTrainer] | None:
    """One class for a name, however often nnU-Net asks; None where there is no such trainer."""
    unseeded, seed = seeded_names.without_seed(name), seeded_names.seed_of(name)
    if seed is None or seed >= seeded_names.LIMIT or seeded_names.with_seed(unseeded, seed) != name:  # _seed03, say
        return None
    try:
        trainer = recursive_find_trainer_class_by_name(unseeded)
    except RuntimeError:
        return None
    return None if issubclass(trainer, SeededMixin) else with_seed(trainer, seed, __name__)
