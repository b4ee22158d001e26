"""An HTTP server that sends exactly the bytes it was given, for bodies that no well-behaved stand-in would send."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

ServeRaw = Callable[..., "RawServer"]


class RawServer:
    """A server on loopback with one answer for every request; `url` is its address, `calls` are the JSON bodies."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str]) -> None:
        self.calls: list[Any] = []
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_POST(self) -> None:
                calls.append(json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "null"))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST  # noqa: N815 - the name that the base class looks for

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and end the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve_raw() -> Iterator[ServeRaw]:
    """Start servers; all are closed after the test."""
    servers: list[RawServer] = []

    def serve(status: int, body: Any, **headers: str) -> RawServer:
        servers.append(RawServer(status, body, {"Content-Type": "application/json", **headers}))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
