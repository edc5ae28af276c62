"""Locks between processes, each on a file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

# A file system that has no locks, as some clusters' have. There is the scheduler that starts a job but once.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Holds the lock within; yields its file descriptor.

    The lock belongs to the open file, so a child that inherits the descriptor keeps it when this process is killed.

    Args:
        path: of the lock's file, which is made where it is missing.
        wait: for as long as another process holds it.

    Raises:
        BlockingIOError: another process holds it, and it was not to be waited for.
        OSError: the file can neither be made nor opened.
    """
    descriptor = _open(path)
    try:
        _flock(descriptor, exclusive=True, wait=wait)
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; False also where the file system has none.

    Asks for a shared lock, so that two who ask do not take each other for the holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        _flock(descriptor, exclusive=False, wait=False)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _flock(descriptor: int, *, exclusive: bool, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # somebody else's; most file systems lock what can only be read, too
        return os.open(path, os.O_RDONLY)
    # NFS does not, hence whoever may write to the folder may write to the lock, whatever the umask is.
    with contextlib.suppress(OSError):
        path.chmod(path.parent.stat().st_mode & 0o666)
    return descriptor
