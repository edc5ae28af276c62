"""All trainers, under the names that `nnUNetv2_train -tr` takes.

nnU-Net finds them by itself once the package is installed.
"""

from nnunet_godc.compatibility import require_supported_nnunet

require_supported_nnunet()

# after the check, whose sentence would otherwise be a traceback out of an nnU-Net that is too old
from nnunet_godc.trainers import evidence  # noqa: E402
from nnunet_godc.trainers.demo import nnUNetTrainerGODCLFAMDemo  # noqa: E402
from nnunet_godc.trainers.evidence import *  # noqa: E402, F403
from nnunet_godc.trainers.godc import (  # noqa: E402
    nnUNetTrainerGODC,
    nnUNetTrainerGODCOnly,
    nnUNetTrainerGODCRunning,
    nnUNetTrainerGODCSquared,
)
from nnunet_godc.trainers.godc_lfam import (  # noqa: E402
    nnUNetTrainerGODCLFAM,
    nnUNetTrainerGODCLFAMGuided,
    nnUNetTrainerGODCLFAMLite,
    nnUNetTrainerGODCLFAMPaper,
    nnUNetTrainerGODCLFAMShared,
)
from nnunet_godc.trainers.lfam import (  # noqa: E402
    nnUNetTrainerLFAM,
    nnUNetTrainerLFAMGuided,
    nnUNetTrainerLFAMLite,
    nnUNetTrainerLFAMShared,
)
from nnunet_godc.trainers.networks import (  # noqa: E402
    nnUNetTrainerAttentionUNet,
    nnUNetTrainerCENet,
    nnUNetTrainerResUNet,
    nnUNetTrainerUNet,
    nnUNetTrainerUNetPlusPlus,
)
from nnunet_godc.trainers.safe import nnUNetTrainerSafe  # noqa: E402
from nnunet_godc.trainers.smoke import nnUNetTrainerGODCSmoke, nnUNetTrainerSmoke  # noqa: E402

__all__ = [
    "nnUNetTrainerAttentionUNet",
    "nnUNetTrainerCENet",
    "nnUNetTrainerGODC",
    "nnUNetTrainerGODCLFAM",
    "nnUNetTrainerGODCLFAMDemo",
    "nnUNetTrainerGODCLFAMGuided",
    "nnUNetTrainerGODCLFAMLite",
    "nnUNetTrainerGODCLFAMPaper",
    "nnUNetTrainerGODCLFAMShared",
    "nnUNetTrainerGODCOnly",
    "nnUNetTrainerGODCRunning",
    "nnUNetTrainerGODCSmoke",
    "nnUNetTrainerGODCSquared",
    "nnUNetTrainerLFAM",
    "nnUNetTrainerLFAMGuided",
    "nnUNetTrainerLFAMLite",
    "nnUNetTrainerLFAMShared",
    "nnUNetTrainerResUNet",
    "nnUNetTrainerSafe",
    "nnUNetTrainerSmoke",
    "nnUNetTrainerUNet",
    "nnUNetTrainerUNetPlusPlus",
    *evidence.__all__,
]

# In the schedules that nnU-Net has for its own; of any other length, and of combinations, they are there as well.
SHORT = [
    f"{name}_{epochs}epochs"
    for name in __all__
    if name.startswith(("nnUNetTrainerGODC", "nnUNetTrainerLFAM")) and not name.endswith(("Demo", "Smoke"))
    for epochs in (50, 100, 250)
]
__all__ += SHORT


def __getattr__(name: str) -> object:
    if name in SHORT:
        from nnunet_godc.trainers import combinations

        return getattr(combinations, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
