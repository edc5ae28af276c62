"""Finding a collection's files, as they lie about on real disks, and telling them by their endings."""

from __future__ import annotations

from pathlib import Path

from nnunet_godc.errors import UserError

NIFTI_ENDINGS = (".nii.gz", ".nii")
PAIR_ENDINGS = (".hdr.gz", ".hdr")  # with the voxels in an .img of the same name
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_ENDINGS = (*NIFTI_ENDINGS, *PAIR_ENDINGS, *ITK_ENDINGS)
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


def ending_of(path: Path) -> str:
    """The file's ending as one of `VOLUME_ENDINGS` or `ARCHIVE_ENDINGS`; else an empty string. Case does not matter."""
    name = path.name.lower()
    return next((ending for ending in (*VOLUME_ENDINGS, *ARCHIVE_ENDINGS) if name.endswith(ending)), "")


def check_source_folder(folder: Path) -> None:
    """Refuse a source that no collection can lie in.

    Raises:
        UserError: `folder` is not a folder that can be listed, or holds nothing but archives.
    """
    if ending_of(folder) in ARCHIVE_ENDINGS and folder.is_file():
        raise UserError(f"the source {folder} is an archive; unpack it and give the folder with -i")
    try:
        inside = [path for path in folder.iterdir() if not is_hidden(path)]
    except FileNotFoundError:
        raise UserError(f"the source {folder} does not exist; give the collection's folder with -i") from None
    except OSError as error:
        raise UserError(f"the source {folder} is not a folder that can be listed: {error.strerror}") from error
    if inside and all(ending_of(path) in ARCHIVE_ENDINGS for path in inside):
        raise UserError(f"the source {folder} holds nothing but archives; unpack them first")


def visible_files(path: Path) -> list[Path]:
    """All files under a folder, sorted, links followed, without hidden ones; `path` itself where it is a file.

    Links that lead nowhere are among them, since a file is missing there; pipes, sockets and devices are not.
    """
    if not path.is_dir():
        return [path]
    found, pending, seen = [], [path], set()
    while pending:
        current = pending.pop()
        resolved = current.resolve()
        if resolved in seen:  # a link to a folder above it would go round for ever
            continue
        seen.add(resolved)
        for entry in current.iterdir():
            if is_hidden(entry):
                continue
            if entry.is_dir():
                pending.append(entry)
            elif entry.is_file() or not entry.exists():
                found.append(entry)
    return sorted(found)


def is_hidden(path: Path) -> bool:
    """Whether a file is one that systems leave behind: hidden, AppleDouble, a resource folder, a thumbnail cache."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def inside(path: Path, root: Path) -> str:
    """A path as it is told to its owner: below `root` where it lies there."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
