"""The metrics server: a connection closed early leaves no traceback."""

from __future__ import annotations

import socket
import struct

import httpx
import pytest
from prometheus_client import CollectorRegistry

from gleaner.machine.exposition import serve_metrics


@pytest.mark.parametrize("sent", [b"", b"GET /met"])
def test_a_client_that_closes_its_connection_early_leaves_no_traceback(capfd, sent):
    port = serve_metrics(CollectorRegistry(), "127.0.0.1", 0, "ports.x")

    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
            client.sendall(sent)
    response = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60)

    assert 200 == response.status_code
    assert "" == capfd.readouterr().err


def test_any_other_error_of_the_metrics_server_is_printed(capfd):
    class Broken(CollectorRegistry):
        def collect(self):
            raise ZeroDivisionError

    port = serve_metrics(Broken(), "127.0.0.1", 0, "ports.x")

    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).raise_for_status()

    assert "ZeroDivisionError" in capfd.readouterr().err
