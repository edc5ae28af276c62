"""Writing a file so that nobody ever sees half of it."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place at the end; on any error it is removed and `path` stays.

    What an interrupted run left under the temporary name is removed first.
    """
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """As `atomic_write`, for files that belong together: on any error, all of `paths` stay, or come back."""
    temporaries = [_temporary(path) for path in paths]
    former = [path.with_name(f".{path.name}.former") for path in paths]
    replaced = []
    try:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
        yield temporaries
        for path, copy in zip(paths, former, strict=True):
            copy.unlink(missing_ok=True)
            if path.exists():
                shutil.copy2(path, copy)
        try:
            for path, temporary, copy in zip(paths, temporaries, former, strict=True):
                temporary.replace(path)
                replaced.append((path, copy))
        except BaseException:
            for path, copy in replaced:
                if copy.exists():
                    copy.replace(path)
                else:
                    path.unlink()
            raise
    finally:
        for left in (*temporaries, *former):
            left.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
