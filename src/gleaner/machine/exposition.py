"""A port on which Prometheus reads a registry of metrics."""

from __future__ import annotations

import sys
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from gleaner.machine.ports import check_port, resolve


def serve_metrics(registry: CollectorRegistry, host: str, port: int, setting: str) -> int:
    """Expose a registry on its own port and threads; return the port.

    The port responds even while every other thread is busy. Raises PortTaken, CannotListen.
    """
    check_port(host, port, setting)
    server, _ = start_http_server(port, addr=resolve(host), registry=registry)
    print_traceback = server.handle_error

    def handle_error(request: Any, client_address: Any) -> None:
        # A client that closes its connection early is no fault of this process.
        if not isinstance(sys.exception(), ConnectionError):
            print_traceback(request, client_address)

    server.handle_error = handle_error  # type: ignore[method-assign]
    return int(server.server_port)
