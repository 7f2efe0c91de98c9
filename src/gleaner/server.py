"""A WSGI callable on a socket: one process, many threads, and an orderly end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from granian.constants import HTTPModes, Interfaces, RuntimeModes
from granian.http import HTTP1Settings
from granian.net import SocketSpec  # type: ignore[attr-defined]
from granian.server.mt import MTServer
from prometheus_client import CollectorRegistry, start_http_server

from gleaner.errors import Refused
from gleaner.ports import check_port, is_loopback
from gleaner.settings import Serving

log = logging.getLogger(__name__)

# Connections, of which one may be idle, not requests: those are bounded in `app`.
_CONNECTIONS = 8_000
_BACKLOG = 2_048
_TRIES = 500


def check_host(host: str, *, insecure: bool) -> None:
    """Raises Refused for an address beyond loopback, unless the user said aloud that they mean it."""
    if not is_loopback(host) and not insecure:
        raise Refused(
            f"{host} can be reached from other machines, and nothing here asks who is calling; "
            "listen on 127.0.0.1, or say --insecure (GLEANER_SERVING__INSECURE=true) if something in front does"
        )


def serve_metrics(registry: CollectorRegistry, host: str, port: int, setting: str) -> int:
    """Expose a registry on a port and threads of its own; the port. It answers while every other thread is stuck.

    Raises PortTaken.
    """
    check_port(host, port, setting)
    server, _ = start_http_server(port, addr=host, registry=registry)
    return int(server.server_port)


def serve(
    app: Any,
    serving: Serving,
    port: int,
    *,
    on_listen: Callable[[int], object],
    on_stop: Callable[[], object],
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in flight; to be called from the main thread.

    on_listen: called with the port once it is listened on. on_stop: called when told to stop; listening goes on
    for `unready_seconds` more, so that a load balancer can look away.
    Raises PortTaken, Refused.
    """
    check_host(serving.host, insecure=serving.insecure)
    check_port(serving.host, port, "ports.ml_app")
    _OneProcess(app, serving, port, on_listen, on_stop).serve(target_loader=lambda *_: app, wrap_loader=False)


class _OneProcess(MTServer):
    """granian's threaded server, meant for builds of Python without a GIL, in the one process that there is.

    It is as fast with the GIL as granian's parent and worker are, and leaves no orphan serving when the
    parent is killed. The class is private, hence the pin of granian's version.
    """

    def __init__(
        self,
        app: Any,
        serving: Serving,
        port: int,
        on_listen: Callable[[int], object],
        on_stop: Callable[[], object],
    ) -> None:
        super().__init__(
            repr(app),
            address=serving.host,
            port=port,
            interface=Interfaces.WSGI,
            workers=1,
            runtime_threads=1,
            runtime_mode=RuntimeModes.mt,
            blocking_threads=serving.threads,
            blocking_threads_idle_timeout=5,
            backlog=_BACKLOG,
            backpressure=_CONNECTIONS,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=10_000, max_buffer_size=1 << 16),
            websockets=False,
            log_enabled=False,
        )
        self._serving, self._on_listen, self._on_stop = serving, on_listen, on_stop
        self._told = False

    def _check_gil(self) -> None:
        """Pass over granian's own check: see the class."""

    def _init_shared_socket(self) -> None:
        # As granian does where a port cannot be shared; then port 0 works, too.
        shared: Any = SocketSpec(self.bind_addr, self.bind_port, self.backlog).build()
        self._shd, self._sfd = shared, shared.get_fd()
        with socket.socket(fileno=os.dup(shared.get_fd())) as own:
            self._address = own.getsockname()

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        super()._spawn_workers(spawn_target, target_loader)  # type: ignore[no-untyped-call]
        # The socket is bound already, but it is the worker that listens.
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                socket.create_connection(self._address[:2], timeout=1).close()
                break
            time.sleep(0.01)
        self._on_listen(self._address[1])

    def signal_handler_interrupt(self, signum: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
        """Say that we are not ready, then stop listening and answer what is in flight, for a bounded time."""
        if self._told:
            return
        self._told = True
        self._on_stop()
        # A client that never finishes its body would hold granian's own stop for ever.
        bound = threading.Timer(self._serving.unready_seconds + self._serving.drain_seconds, _end)
        bound.daemon = True
        bound.start()
        if self._serving.unready_seconds and signum == signal.SIGTERM:
            stop = threading.Timer(self._serving.unready_seconds, self._stop_listening)
            stop.daemon = True
            stop.start()
        else:
            self._stop_listening()

    def _stop_listening(self) -> None:
        super().signal_handler_interrupt()  # type: ignore[no-untyped-call]


def _end() -> None:
    log.warning("stopped with requests unanswered", extra={"reason": "serving.drain_seconds passed"})
    logging.shutdown()
    os._exit(1)
