"""What is to be told of regions that a DICOM file draws on a series."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnunet_godc.conversion.dicom.series import DicomSeries
from nnunet_godc.conversion.problems import CaseError, CaseLog

Mask = NDArray[np.bool_]  # (i, j, k) of the series, Fortran order


def note_frame_of_reference(named: str, series: DicomSeries, notes: CaseLog) -> None:
    """Warns where the regions name another frame of reference than `series` has."""
    own = series.slices[0].frame_of_reference
    if named and own and named != own:
        notes.warn_once("the DICOM mask names another frame of reference than the series; look whether it fits")


def note_outside(outside: int, whole: int, what: str, notes: CaseLog) -> None:
    """Warns where `outside` of `whole` voxels or contours of a region lie beside the series.

    Raises:
        CaseError: all of them do.
    """
    if outside and outside == whole:
        raise CaseError(f"all {what} of a region of the DICOM mask lie beside the series; give the one it was drawn on")
    if outside:
        notes.warn_once(f"{outside} of {whole} {what} of a region of the DICOM mask lie beside the series: left out")
