"""DICOM: image series as volumes, and the masks that DICOM-SEG and RTSTRUCT files draw on them."""
