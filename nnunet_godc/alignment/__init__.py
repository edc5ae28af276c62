"""LFAM, the lateral feature alignment module, and how it is put into a U-Net."""

from nnunet_godc.alignment.align_skips import AlignedUNetDecoder, SkipAlignment, align_skips
from nnunet_godc.alignment.lfam import LateralFeatureAlignment, LFAMConfig, ProjectedFeatureAlignment

__all__ = [
    "AlignedUNetDecoder",
    "LFAMConfig",
    "LateralFeatureAlignment",
    "ProjectedFeatureAlignment",
    "SkipAlignment",
    "align_skips",
]
