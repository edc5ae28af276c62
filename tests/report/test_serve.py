"""A report that is served: to this machine, and to no page that comes by another name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from nnunet_godc.report.serve import address_of, server_of


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("the report")
    (tmp_path / "secret.txt").write_text("not of the report")
    with server_of(tmp_path / "page") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert address_of(server).startswith("http://127.0.0.1:")
        yield server.server_port
        server.shutdown()
        thread.join()


def answer(port: int, path: str, host: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    response = connection.getresponse()
    return response.status, response.read()


def test_this_machine_is_answered(port: int) -> None:
    assert answer(port, "/", "127.0.0.1") == (200, b"the report")
    assert answer(port, "/", "localhost") == (200, b"the report")


def test_another_name_is_refused(port: int) -> None:
    assert answer(port, "/", "elsewhere.example")[0] == 403


def test_nothing_outside_is_served(port: int) -> None:
    assert answer(port, "/../secret.txt", "127.0.0.1")[0] == 404
