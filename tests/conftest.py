import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu` nothing is imported but files with tests for a GPU, where nnU-Net may not be installed."""
    if config.getoption("markexpr") != "gpu":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.gpu" in file.read_text() for file in files) else True


@pytest.fixture
def write_table(tmp_path):
    """Writes text or bytes to a table whose name is none of ASCII alone."""

    def write(content):
        path = tmp_path / "Größen der Schichten.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def read_only() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs Python with the given arguments where nothing in a folder may be written, as a colleague would."""
    closed: dict[Path, int] = {}
    # root may write everywhere by its capabilities, not by its name
    as_others = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if as_others and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv to prevent that")

    def run(folder: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        for path in (folder, *folder.rglob("*")):
            closed.setdefault(path, path.stat().st_mode)
            path.chmod(path.stat().st_mode & ~0o222)
        command = [*as_others, sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout)

    yield run
    for path, mode in closed.items():
        path.chmod(mode)
