"""The server: one loop reads and writes, and threads compute."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import uvloop

from gleaner.errors import Overloaded
from gleaner.machine.ports import check_host, check_port, resolve
from gleaner.serving.connection import Connection
from gleaner.serving.exchange import Application, Request, Response
from gleaner.serving.proxied import ProxiedConnection
from gleaner.serving.proxies import Proxies
from gleaner.serving.tls import HANDSHAKE_SECONDS, SHUTDOWN_SECONDS, Tls
from gleaner.settings.sections import Serving

log = logging.getLogger(__name__)

_BACKLOG = 2_048
_MAX_CONNECTIONS = 16_000
_SPARE_FILES = 200  # for the store, the logs, the registry and the metrics
_SWEEP_SECONDS = 1.0
# Requests without a body, which are health, metrics and pages, never wait behind predictions.
_BODILESS_THREADS = 4


def serve(
    app: Application,
    serving: Serving,
    port: int,
    *,
    tls: Tls | None = None,
    on_listen: Callable[[int], object],
    on_stop: Callable[[], object],
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight.

    Call this from the main thread.

    tls: the certificate; None for plain HTTP.
    on_listen: called with the port once the server listens.
    on_stop: called at the signal; the server listens for `unready_seconds` more, so that a load balancer can look away.
    Raises PortTaken, Refused.
    """
    check_host(serving.host, insecure=serving.insecure or bool(serving.keys_file))
    check_port(serving.host, port, "ports.ml_app")
    uvloop.run(Server(app, serving, tls).run(port, on_listen, on_stop))


class Server:
    """All connections, the threads that answer, and the clock.

    now: `time.monotonic` at the last sweep, within a second.
    """

    def __init__(self, app: Application, serving: Serving, tls: Tls | None = None) -> None:
        self.app, self._serving, self._host = app, serving, resolve(serving.host)
        self._tls = tls
        # Of create_server and connect_accepted_socket.
        self._options: dict[str, Any] = {}
        if tls:
            waits = {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": SHUTDOWN_SECONDS}
            self._options = {"ssl": tls.context, **waits}
        self._proxies = Proxies(serving.trusted_proxies)
        self.connections: set[Connection] = set()
        self.max_connections = min(_MAX_CONNECTIONS, _allow_files() - _SPARE_FILES)
        self.is_stopping = False
        self._listening = True
        self._done = asyncio.Event()
        self._threads = ThreadPoolExecutor(serving.threads, "answer")
        self._bodiless = ThreadPoolExecutor(_BODILESS_THREADS, "answer-bodiless")
        self._working = 0
        self._tick()

    async def run(self, port: int, on_listen: Callable[[int], object], on_stop: Callable[[], object]) -> None:
        """Listen, and return once every response after the signal is written."""
        self.loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, port), family=family, backlog=_BACKLOG)
        self._socket.setblocking(False)
        host, port = self._socket.getsockname()[:2]
        self.environ = _environ(host, port, "https" if self._tls else "http")
        self._on_stop = on_stop
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._stop, number)
        self._server = await self.loop.create_server(
            self._connect, sock=self._socket.dup(), backlog=_BACKLOG, **self._options
        )
        sweep = self.loop.create_task(self._sweep())
        on_listen(port)
        await self._done.wait()
        sweep.cancel()

    def _connect(self) -> Connection:
        return ProxiedConnection(self, self._proxies) if self._serving.trusted_proxies else Connection(self)

    def submit(self, connection: Connection, request: Request) -> None:
        """Have a thread answer a request of a connection."""
        has_body = request.size > 0
        if has_body and self._working >= self._serving.threads:
            error = Overloaded("too many requests are in flight")
            self.loop.call_soon(connection.finish, request, self.app.refuse(request, error))
            return
        self._working += has_body

        def answer() -> None:
            response = self.app.respond(request)
            self.loop.call_soon_threadsafe(finish, response)

        def finish(response: Response) -> None:
            self._working -= has_body
            connection.finish(request, response)

        (self._threads if has_body else self._bodiless).submit(answer)

    def notice_end(self) -> None:
        """Note that a connection has ended.

        With the last one a stopping server ends, too.
        """
        if not self._listening and not self.connections:
            self._done.set()

    def _stop(self, number: int) -> None:
        if self.is_stopping:
            return
        self.is_stopping = True
        self._on_stop()
        unready = self._serving.unready_seconds if number == signal.SIGTERM else 0.0
        self.loop.call_later(unready, self._stop_listening)
        self.loop.call_later(unready + self._serving.drain_seconds, self._give_up)

    def _stop_listening(self) -> None:
        self._server.close()
        # A connection that the kernel has accepted for us would be reset with the socket.
        with self._socket:
            while True:
                try:
                    accepted, _ = self._socket.accept()
                except OSError:
                    break
                self.loop.create_task(self.loop.connect_accepted_socket(self._connect, accepted, **self._options))
        self.loop.call_soon(self._close_idle)

    def _close_idle(self) -> None:
        self._listening = False
        for connection in list(self.connections):
            connection.close_if_idle()
        self.notice_end()

    def _give_up(self) -> None:
        if any(connection.is_unanswered for connection in self.connections):
            log.warning("stopped with requests unanswered", extra={"reason": "serving.drain_seconds passed"})
            logging.shutdown()
            os._exit(1)  # a thread that still computes would hold the interpreter's own end
        for connection in list(self.connections):
            connection.abort()
        self._done.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._tick()
            if self._tls:
                self._tls.refresh()
            for connection in list(self.connections):
                connection.check_time(self.now)
            if not self._listening:
                self._close_idle()

    def _tick(self) -> None:
        self.now, self.date = time.monotonic(), formatdate(usegmt=True)


def _allow_files() -> int:
    """Raise the soft limit of open files; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_CONNECTIONS + _SPARE_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return wanted if soft == resource.RLIM_INFINITY else soft


def _environ(host: str, port: int, scheme: str) -> dict[str, object]:
    """Return the part that all WSGI environments share. Source: PEP 3333."""
    return {
        "SCRIPT_NAME": "",
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
