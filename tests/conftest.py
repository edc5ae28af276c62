import pytest


@pytest.fixture
def write_table(tmp_path):
    """Writes text or bytes to a table whose name is none of ASCII alone."""

    def write(content):
        path = tmp_path / "Größen der Schichten.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
