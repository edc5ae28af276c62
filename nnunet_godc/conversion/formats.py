"""Opening a volume in whatever format it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from nnunet_godc.conversion.grid import Grid, Triple
from nnunet_godc.conversion.metaimage import open_metaimage
from nnunet_godc.conversion.nifti import open_nifti
from nnunet_godc.conversion.nrrd import open_nrrd
from nnunet_godc.conversion.problems import CaseError, Notes
from nnunet_godc.conversion.text_header import TextHeaderFile

NIFTI_ENDINGS = (".nii.gz", ".nii")
_TEXT_HEADERS: dict[str, Callable[[Path], TextHeaderFile]] = {
    ".nrrd": open_nrrd,
    ".nhdr": open_nrrd,
    ".mha": open_metaimage,
    ".mhd": open_metaimage,
}
VOLUME_ENDINGS = (*NIFTI_ENDINGS, *_TEXT_HEADERS)
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


class VolumeFile(Protocol):
    """A file with one 3D volume, its header read, its voxels not."""

    @property
    def path(self) -> Path: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def grid(self, notes: Notes, *, what: str, spacing: Triple | None = None, trust_header: bool = False) -> Grid:
        """Where the voxels lie; see `NiftiFile.grid`."""

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
    if ending in _TEXT_HEADERS:
        return _TEXT_HEADERS[ending](path)
    if ending in ARCHIVE_ENDINGS:
        raise CaseError("the file is an archive; unpack it first")
    return open_nifti(path)


def files_of(path: Path) -> list[Path]:
    """The files that a volume is made of: `path`, and another one with its voxels where its header names that.

    Raises:
        CaseError: as `open_volume`, for formats that may name another file.
    """
    if ending_of(path) not in (".nhdr", ".mhd"):
        return [path]
    data = _TEXT_HEADERS[ending_of(path)](path).data
    return [path] if data == path else [path, data]
