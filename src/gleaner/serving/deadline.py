"""Connections for httpcore that stop all waiting at one moment."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpcore

_CONNECT_SECONDS = 3.0


class DeadlineBackend(httpcore.NetworkBackend):
    """Connections whose waiting ends at `until`, and earlier in a long silence.

    A timeout for each wait is not enough: it never expires if a server sends a byte a second.

    until: a reading of the monotonic clock.
    silence_seconds: the longest wait for the next bytes.
    ended: whether the server has closed the connection, as a stopping server does.
    """

    def __init__(self, silence_seconds: float) -> None:
        self.until, self.ended, self.silence_seconds = 0.0, False, silence_seconds
        self._sockets = httpcore.SyncBackend()

    def left(self) -> float:
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout
        return seconds

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        seconds = min(self.left(), _CONNECT_SECONDS)
        return _Connection(self, self._sockets.connect_tcp(host, port, seconds, local_address, socket_options))


@dataclass(eq=False)
class _Connection(httpcore.NetworkStream):
    backend: DeadlineBackend
    stream: httpcore.NetworkStream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        content = self.stream.read(max_bytes, min(self.backend.left(), self.backend.silence_seconds))
        self.backend.ended = not content
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self.backend.left())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Connection(self.backend, self.stream.start_tls(ssl_context, server_hostname, self.backend.left()))

    def close(self) -> None:
        self.stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)
