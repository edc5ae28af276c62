"""Finding a collection's files, as they lie about on real disks."""

from __future__ import annotations

from pathlib import Path

from nnunet_godc.conversion.formats import ARCHIVE_ENDINGS, ending_of
from nnunet_godc.errors import UserError


def check_source_folder(folder: Path) -> None:
    """Refuse a source that no collection can lie in.

    Raises:
        UserError: `folder` is no folder that can be listed, or holds nothing but archives.
    """
    if not folder.exists():
        raise UserError(f"the source {folder} does not exist; give the collection's folder with -i")
    if not folder.is_dir():
        if ending_of(folder) in ARCHIVE_ENDINGS:
            raise UserError(f"the source {folder} is an archive; unpack it and give the folder with -i")
        raise UserError(f"the source {folder} is no folder; give the collection's folder with -i")
    try:
        inside = [path.name for path in folder.iterdir() if not is_hidden(path)]
    except OSError as error:
        raise UserError(f"the source {folder} cannot be listed: {error.strerror}") from error
    if inside and all(ending_of(Path(name)) in ARCHIVE_ENDINGS for name in inside):
        raise UserError(f"the source {folder} holds nothing but archives; unpack them first")


def visible_files(folder: Path) -> list[Path]:
    """All files under `folder`, sorted, links followed, without hidden ones (macOS leaves ``._a`` beside ``a``).

    Links that lead nowhere are among them, since a file is missing there; pipes, sockets and devices are not.
    """
    found = []
    pending, seen = [folder], set()
    while pending:
        current = pending.pop()
        resolved = current.resolve()
        if resolved in seen:  # a link to a folder above it would go round for ever
            continue
        seen.add(resolved)
        for path in sorted(current.iterdir()):
            if is_hidden(path):
                continue
            if path.is_dir():
                pending.append(path)
            elif path.is_file() or not path.exists():
                found.append(path)
    return sorted(found)


def files_below(path: Path) -> list[Path]:
    """`visible_files` of a folder; `path` itself where it is a file."""
    return visible_files(path) if path.is_dir() else [path]


def is_hidden(path: Path) -> bool:
    """Whether a file is one that systems leave behind: hidden, AppleDouble, a resource folder, a thumbnail cache."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "Thumbs.db", "desktop.ini")
