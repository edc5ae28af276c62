"""Trainers by their names: any network, loss and LFAM in one, and any trainer of ours in a shorter schedule.

`nnUNetTrainerAttentionUNetGODCLFAM` and `nnUNetTrainerGODCLFAMPaper_50epochs` stand nowhere: a class is made when it is
asked for, here and by nnU-Net's search alike. A seed may follow.
"""

from __future__ import annotations

from functools import cache

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss

from nnunet_godc import trainers
from nnunet_godc.combined_names import PREFIX, parts_of, without_schedule
from nnunet_godc.training import with_epochs


def __getattr__(name: str) -> type[nnUNetTrainer]:
    combined = _combined(name)
    if combined is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return combined


@cache
def _combined(name: str) -> type[nnUNetTrainer] | None:
    """One class for a name, however often nnU-Net asks; None where there is no such trainer."""
    bare, schedule = without_schedule(name)
    trainer = None if without_schedule(bare)[1] else _unscheduled(bare)
    if trainer is None or not schedule:
        return trainer
    return with_epochs(trainer, int(schedule.removeprefix("_").removesuffix("epochs")), __name__)


@cache
def _unscheduled(name: str) -> type[nnUNetTrainer] | None:
    """The class of that name in the package, or a combination; None where it is neither."""
    if name in trainers.__all__:
        found: type[nnUNetTrainer] = getattr(trainers, name)
        return found
    parts = parts_of(name)
    if parts is None:
        return None
    # loss and LFAM before the network, whose layers and outputs they work on
    bases = [_part(part) for part in (parts.loss, parts.alignment, parts.network) if part]
    if len(bases) < 2:
        return bases[0] if bases else nnUNetTrainer
    if bases[0] is nnUNetTrainerDiceLoss:
        bases = [*bases[1:], bases[0]]  # nnU-Net's own, which knows no super()
    made = [f"{base.__name__.removeprefix(PREFIX)}" for base in bases]
    return type(name, tuple(bases), {"__module__": __name__, "__doc__": f"{', '.join(made)} in one trainer."})


def _part(part: str) -> type[nnUNetTrainer]:
    name = f"{PREFIX}{part}"
    found: type[nnUNetTrainer] = (
        nnUNetTrainerDiceLoss if name == nnUNetTrainerDiceLoss.__name__ else getattr(trainers, name)
    )
    return found
