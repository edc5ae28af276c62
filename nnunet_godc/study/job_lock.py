"""Two processes never run one job at once, and a command whose watcher was killed still counts as one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

# A file system that has no locks, as some clusters' have. There is the scheduler that starts a job but once.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def job_lock(path: Path, *, wait: bool = True) -> Iterator[int]:
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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # somebody else's; most file systems lock what can only be read, too
        return os.open(path, os.O_RDONLY)
    # NFS does not, hence whoever may write to the folder may write to the lock, whatever the umask is.
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
    return descriptor


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; False also where the file system has none.

    Asks for a shared lock, so that two who ask do not take each other for the holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
    return False
