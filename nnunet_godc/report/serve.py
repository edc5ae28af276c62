"""Serves a report on this machine alone."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOOPBACK = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        # a page elsewhere could have its own name lead here, and read what is served
        if self.headers.get("Host", "").rpartition(":")[0] not in (LOOPBACK, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return False
        return True

    def log_message(self, *_: object) -> None:
        pass


def server_of(folder: Path) -> ThreadingHTTPServer:
    """A server of a folder that nobody but this machine reaches, on a free port; `serve_forever` runs it."""
    return ThreadingHTTPServer((LOOPBACK, 0), partial(_Handler, directory=str(folder)))


def address_of(server: ThreadingHTTPServer) -> str:
    return f"http://{LOOPBACK}:{server.server_port}/"
