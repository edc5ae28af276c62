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
