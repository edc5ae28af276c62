"""LFAM, the lateral feature alignment module, and how it is put into a U-Net."""

from nnunet_godc.alignment.align_skips import AlignedUNetDecoder, SkipAlignment, align_skips, alignment_of
from nnunet_godc.alignment.lfam import LateralFeatureAlignment, LFAMConfig, ProjectedFeatureAlignment
from nnunet_godc.alignment.skips import Skip

__all__ = [
    "AlignedUNetDecoder",
    "LFAMConfig",
    "LateralFeatureAlignment",
    "ProjectedFeatureAlignment",
    "Skip",
    "SkipAlignment",
    "align_skips",
    "alignment_of",
]
