"""A server on a port of this machine that answers as it is told."""

from __future__ import annotations

import contextlib
import email.utils
import json
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextlib.contextmanager
def answering(
    answers: Mapping[str, tuple[int, Any]], *, ahead_s: float = 0.0, token: str | None = None
) -> Iterator[str]:
    """The URL of a server with these answers by path: status and JSON.

    ahead_s: of its clock; token: without it the answer is 401
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = answers.get(self.path, (404, {}))
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                status, content = 401, {}
            body = json.dumps(content).encode()
            self.send_response_only(status)
            self.send_header("Date", email.utils.formatdate(time.time() + ahead_s, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
