"""Who may take a lock, and who may look at it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnunet_godc.locks import is_held, locked

ReadOnly = Callable[..., subprocess.CompletedProcess[str]]
LOOK = "import sys; from pathlib import Path; from nnunet_godc.locks import is_held, locked\n"


@pytest.fixture
def careful() -> Iterator[None]:
    """Files are made for oneself alone."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("careful")
def test_whoever_may_write_to_the_folder_may_write_to_the_lock(tmp_path: Path) -> None:
    for mode in (0o700, 0o755, 0o775):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        with locked(folder / "lock"):
            assert stat.S_IMODE((folder / "lock").stat().st_mode) == mode & 0o666


def test_who_may_only_read_a_lock_sees_whether_it_is_held(tmp_path: Path, read_only: ReadOnly) -> None:
    look = f"{LOOK}print(is_held(Path(sys.argv[1])))"
    lock = tmp_path / "lock"
    with locked(lock):
        assert read_only(tmp_path, "-c", look, str(lock)).stdout == "True\n"
    assert read_only(tmp_path, "-c", look, str(lock)).stdout == "False\n"


def test_who_may_only_read_a_lock_takes_it_all_the_same(tmp_path: Path, read_only: ReadOnly) -> None:
    take = f"{LOOK}with locked(Path(sys.argv[1]), wait=False): print(is_held(Path(sys.argv[1])))"
    lock = tmp_path / "lock"
    with locked(lock):
        assert "BlockingIOError" in read_only(tmp_path, "-c", take, str(lock)).stderr
    assert read_only(tmp_path, "-c", take, str(lock)).stdout == "True\n"
    assert not is_held(lock)
