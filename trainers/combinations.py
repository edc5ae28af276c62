"""Every network with every loss, LFAM and schedule: `nnUNetTrainerAttentionUNetGODCLFAM_50epochs`.

The names stand nowhere: a class is made when it is asked for, here and by nnU-Net's search alike. A seed may follow.
"""

from __future__ import annotations

from functools import cache

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss

from nnunet_godc.combined_names import PREFIX, parts_of
from nnunet_godc.trainers import godc, lfam, networks
from nnunet_godc.training import with_epochs


def __getattr__(name: str) -> type[nnUNetTrainer]:
    combined = _combined(name)
    if combined is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return combined


@cache
def _combined(name: str) -> type[nnUNetTrainer] | None:
    """One class for a name, however often nnU-Net asks; None where there is no such trainer."""
    parts = parts_of(name)
    if parts is None:
        return None
    if parts.epochs is not None:
        trainer = _combined(parts._replace(epochs=None).name)
        return None if trainer is None else with_epochs(trainer, parts.epochs, __name__)
    # loss and LFAM before the network, whose layers and outputs they work on
    bases = [_trainer_of(part) for part in (parts.loss, parts.alignment, parts.network) if part]
    if len(bases) < 2:
        return bases[0] if bases else nnUNetTrainer
    if bases[0] is nnUNetTrainerDiceLoss:
        bases = [*bases[1:], bases[0]]  # nnU-Net's own, which knows no super()
    made = [f"{base.__name__.removeprefix(PREFIX)}" for base in bases]
    return type(name, tuple(bases), {"__module__": __name__, "__doc__": f"{', '.join(made)} in one trainer."})


def _trainer_of(part: str) -> type[nnUNetTrainer]:
    name = f"{PREFIX}{part}"
    if name == nnUNetTrainerDiceLoss.__name__:
        found: type[nnUNetTrainer] = nnUNetTrainerDiceLoss
    else:
        found = next(vars(module)[name] for module in (godc, lfam, networks) if name in vars(module))
    return found
