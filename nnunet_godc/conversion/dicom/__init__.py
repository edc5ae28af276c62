"""DICOM: series of CT images, and the masks that are drawn on them."""

from nnunet_godc.conversion.dicom.masks import drawn_on, mask_files, read_masks, region_names
from nnunet_godc.conversion.dicom.series import DicomSeries, SeriesChoice, is_dicom, open_series, patient_of

__all__ = [
    "DicomSeries",
    "SeriesChoice",
    "drawn_on",
    "is_dicom",
    "mask_files",
    "open_series",
    "patient_of",
    "read_masks",
    "region_names",
]
