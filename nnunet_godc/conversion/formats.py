"""Opening a volume in whatever format it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from nnunet_godc.conversion.geometry import Grid, Triple
from nnunet_godc.conversion.itk import open_itk
from nnunet_godc.conversion.nifti import open_nifti, paired_file
from nnunet_godc.conversion.problems import CaseError, CaseLog

NIFTI_ENDINGS = (".nii.gz", ".nii")
PAIR_ENDINGS = (".hdr.gz", ".hdr")  # with the voxels in an .img of the same name
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_ENDINGS = (*NIFTI_ENDINGS, *PAIR_ENDINGS, *ITK_ENDINGS)
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


class VolumeFile(Protocol):
    """A file with one 3D volume, its header read, its voxels not."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def grid(self, notes: CaseLog, *, what: str, spacing: Triple | None = None, trust_header: bool = False) -> Grid:
        """Where the voxels lie; see `NiftiFile.grid`."""

    def other_grids(self, what: str) -> Sequence[Grid]:
        """Where the voxels lie by other entries of the header, which other programs believe."""

    def read(self) -> NDArray[Any]:
        """The values, shape (i, j, k), exactly."""

    def slabs(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The values some slices at a time."""


def ending_of(path: Path) -> str:
    """The file's ending as one of `VOLUME_ENDINGS` or `ARCHIVE_ENDINGS`; else an empty string. Case does not matter."""
    name = path.name.lower()
    return next((ending for ending in (*VOLUME_ENDINGS, *ARCHIVE_ENDINGS) if name.endswith(ending)), "")


def open_volume(path: Path) -> VolumeFile:
    """Read a volume's header.

    Raises:
        CaseError: the file is missing, damaged, of another format, or no single 3D volume of numbers.
    """
    ending = ending_of(path)
    if ending in ITK_ENDINGS:
        return open_itk(path)
    if ending in ARCHIVE_ENDINGS:
        raise CaseError("the file is an archive; unpack it first")
    return open_nifti(path)


def files_of(path: Path) -> list[Path]:
    """The files that a volume is made of: `path`, and another one with its voxels where its header names that.

    Raises:
        CaseError: as `open_volume`, for formats that may name another file.
    """
    ending = ending_of(path)
    if ending in PAIR_ENDINGS:
        data = paired_file(path)
        if not data.exists():
            raise CaseError("the .img file with the header's voxels is not there; put both into one folder", file=path)
        return [path, data]
    if ending not in (".nhdr", ".mhd"):
        return [path]
    data = open_itk(path).data
    return [path] if data == path else [path, data]
