"""Every trainer in the short schedules that nnU-Net has for its own: `..._50epochs`, `_100epochs`, `_250epochs`."""

from nnunet_godc.trainers import godc, godc_lfam, lfam
from nnunet_godc.training import with_epochs

__all__ = [
    f"{name}_{epochs}epochs"
    for module in (godc, lfam, godc_lfam)
    for name in vars(module)
    if name.startswith("nnUNetTrainer") and vars(module)[name].__module__ == module.__name__
    for epochs in (50, 100, 250)
]

for _name in __all__:
    _trainer, _, _schedule = _name.rpartition("_")
    _base = next(vars(module)[_trainer] for module in (godc, lfam, godc_lfam) if _trainer in vars(module))
    globals()[_name] = with_epochs(_base, int(_schedule.removesuffix("epochs")), __name__)
