"""The log of requests, as the shipped service writes it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from projects import NUMBER, ROUTE, SETTINGS
from started import Service, serving, wait_for


@pytest.fixture
def logging(project) -> Callable[..., Any]:
    @contextmanager
    def logging(**settings: str) -> Iterator[tuple[Service, httpx.Client]]:
        variables = {f"GLEANER_SERVING__{name.upper()}": value for name, value in settings.items()}
        with serving(project, GLEANER_SERVING__LOG="json", **variables) as service:
            with httpx.Client(base_url=service.url) as client:
                yield service, client
            assert 0 == service.stop()

    return logging


def requests(service: Service) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "request"]


def test_a_refused_request_is_logged_and_a_quick_success_is_not(logging):
    with logging() as (service, client):
        client.post("/v1/predict", json=ROUTE)
        client.post("/v1/predict", json={**ROUTE, "time_spent": "mark-7f3a"}, headers={"X-Request-Id": "mine-1"})
        client.get("/nothing/mark-7f3a?mark-7f3a")

    refused, unknown = requests(service)
    assert ("mine-1", "POST", "/v1/predict", 422) == tuple(
        refused[k] for k in ("request_id", "method", "route", "status")
    )
    assert ("BadRows", "127.0.0.1", "WARNING") == tuple(refused[k] for k in ("error", "client", "level"))
    assert 0 < refused["seconds"] < 60
    assert ("unmatched", 404) == (unknown["route"], unknown["status"])
    assert "mark-7f3a" not in service.log.read_text()


def test_probes_of_a_service_without_a_model_are_not_logged(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    with serving(tmp_path, GLEANER_SERVING__LOG="json") as service:
        with httpx.Client(base_url=service.url) as client:
            assert [503] * 3 == [client.get("/readyz").status_code for _ in range(3)]
            client.post("/v1/predict", json=ROUTE)
        assert 0 == service.stop()

    assert ["/v1/predict"] == [line["route"] for line in requests(service)]


def test_a_slow_request_is_logged_with_its_version(logging):
    with logging(slow_seconds="0.000001") as (service, client):
        own = client.post("/v1/predict", json=ROUTE).headers["X-Prediction-Id"]
        client.post("/v2/predict?detail=true", json=[ROUTE, ROUTE])

    first, second = requests(service)
    assert (own, "v1", "1", 1, "INFO") == tuple(first[k] for k in ("prediction_id", "slot", "version", "rows", "level"))
    assert ("v2", "2", 2, 200) == tuple(second[k] for k in ("slot", "version", "rows", "status"))


def test_every_request_is_logged_where_that_is_asked_for(logging):
    with logging(access_log="true") as (service, client):
        for _ in range(300):
            assert NUMBER == client.post("/v1/predict", json=ROUTE).json()["prediction"][0]
        client.get("/readyz")

    assert ["/v1/predict"] * 300 + ["/readyz"] == [line["route"] for line in requests(service)]
    assert 301 == len({line["request_id"] for line in requests(service)})


def test_a_flood_of_refused_requests_is_counted_and_not_written(logging):
    with logging() as (service, client):
        for _ in range(500):
            client.get("/nothing")
        assert wait_for(lambda: "requests not logged" in service.log.read_text())

    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    left_out = sum(line["count"] for line in lines if line["event"] == "requests not logged")
    assert 500 == left_out + len(requests(service))
    assert left_out > 300


def test_a_client_behind_a_trusted_proxy_is_named(logging):
    with logging(trusted_proxies='["127.0.0.1"]') as (service, client):
        client.get("/nothing", headers={"X-Forwarded-For": "203.0.113.7"})

    assert ["203.0.113.7"] == [line["client"] for line in requests(service)]


def test_a_proxy_may_tell_the_client_by_the_proxy_protocol(logging):
    with logging(trusted_proxies='["127.0.0.1"]') as (service, _):
        head = b"PROXY TCP4 203.0.113.8 192.0.2.1 4711 443\r\n"
        with socket.create_connection(("127.0.0.1", service.port), 30) as proxy:
            for piece in (head[:9], head[9:] + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"):
                proxy.sendall(piece)
            assert b" 404 " in proxy.recv(4_096)
        with socket.create_connection(("127.0.0.1", service.port), 30) as proxy:
            proxy.sendall(b"PROXY TCP4 nonsense\r\n")
            assert b" 400 " in proxy.recv(4_096)

    assert ["203.0.113.8"] == [line["client"] for line in requests(service) if line["status"] == 404]


def test_a_stranger_cannot_tell_an_address(logging):
    with logging() as (service, client):
        client.get("/nothing", headers={"X-Forwarded-For": "203.0.113.7"})
        with socket.create_connection(("127.0.0.1", service.port), 30) as stranger:
            stranger.sendall(b"PROXY TCP4 203.0.113.8 192.0.2.1 4711 443\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 400 " in stranger.recv(4_096)

    assert {"127.0.0.1"} == {line["client"] for line in requests(service)}
