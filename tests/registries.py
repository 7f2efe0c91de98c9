"""A small MLflow server whose faults tests choose."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


class Registry(http.server.ThreadingHTTPServer):
    """A small MLflow server.

    fault: a function that may respond instead, and returns whether it did.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.aliases: dict[str, int] = {}
        self.folders: dict[int, Path] = {}
        self.uris: dict[int, str] = {}
        self.fault: Callable[[Handler], bool] = lambda handler: False
        self.asked: list[str] = []
        self.authorizations: set[str | None] = set()
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self, name: str) -> int:
        """Return the number of requests for a file."""
        return sum(path.endswith(f"/{name}") for path in self.asked)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # half of these tests have a client that hangs up


class Handler(http.server.BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.authorizations.add(self.headers["Authorization"])
        if not self.server.fault(self):
            self.respond(*self.content())

    def content(self) -> tuple[int, bytes]:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/api/2.0/mlflow/registered-models/alias":
            version = self.server.aliases.get(query["alias"])
            if version is None:
                return 400, json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "not found."}).encode()
            source = f"models:/{self.server.folders[version]}"
            about = {"name": query["name"], "version": str(version), "source": source, "status": "READY"}
            return 200, json.dumps({"model_version": about}).encode()
        if parts.path == "/api/2.0/mlflow/model-versions/get-download-uri":
            version = int(query["version"])
            uri = self.server.uris.get(version, f"mlflow-artifacts:/1/models/{version}/artifacts")
            return 200, json.dumps({"artifact_uri": uri}).encode()
        number, name = re.fullmatch(rf"{ARTIFACTS}1/models/(\d+)/artifacts/gleaner/(.+)", unquote(self.path)).groups()
        path = self.server.folders[int(number)] / name
        if not path.is_file():
            return 404, json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No such artifact"}).encode()
        return 200, path.read_bytes()

    def respond(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def raw(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Send raw pieces with a pause after each, until a hang-up."""
        self.close_connection = True
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            if self.server.ended.wait(pause):
                return

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def registering(folders: dict[int, Path], aliases: dict[str, int], port: int = 0) -> Iterator[Registry]:
    """Run a registry until the block ends."""
    with Registry(port) as server:
        server.folders, server.aliases = folders, aliases
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PAGE = b"<!doctype html><title>Sign in</title>"


def reset(handler: Handler) -> bool:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    return True


def says(*pieces: bytes, pause: float = 0.0) -> Callable[[Handler], bool]:
    def fault(handler: Handler) -> bool:
        handler.raw(*pieces, pause=pause)
        return True

    return fault


def responds(status: int, content: bytes, **headers: str) -> Callable[[Handler], bool]:
    def fault(handler: Handler) -> bool:
        handler.respond(status, content, **headers)
        return True

    return fault


def only(part: str, fault: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    return lambda handler: part in handler.path and fault(handler)
