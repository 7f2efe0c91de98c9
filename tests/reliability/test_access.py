"""Requests without a key, and requests of strangers' pages: S1, S6."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from projects import NUMBER, ROUTE
from started import Service, serving

from gleaner.client import Client, Rejected
from gleaner.serving.access import HOW, OPEN
from gleaner.serving.keys import add_key, revoke_keys

ROW = json.dumps(ROUTE).encode()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys of every kind, in one file."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {scope: add_key(path, scope, [scope])[1] for scope in ("predict", "actuals", "admin")}
    made["expired"] = add_key(path, "expired", ["predict", "actuals", "admin"], timedelta(seconds=-1))[1]
    made["revoked"] = add_key(path, "revoked", ["predict", "actuals", "admin"])[1]
    revoke_keys(path, "revoked")
    made["unknown"] = made["predict"][:-4] + "AAAA"
    return {**made, "file": str(path)}


@pytest.fixture(scope="module")
def service(trained: Path, texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # The service notes the last use of keys in the state folder.
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("access") / "trained")
    with serving(
        folder, GLEANER_API_KEYS_FILE=texts["file"], GLEANER_SERVING__TRUSTED_PROXIES='["127.0.0.1"]'
    ) as service:
        yield service


def operations(service: Service, key: str) -> list[tuple[str, str]]:
    """Return every (method, path) of the contract, with real names."""
    document = httpx.get(f"{service.url}/openapi.json", headers={"X-Api-Key": key}).json()
    names = {"{name}": "made", "{version}": "1"}
    found = []
    for path, methods in document["paths"].items():
        for name, value in names.items():
            path = path.replace(name, value)
        found += [(method.upper(), path) for method in methods]
    return [*found, ("GET", "/docs/"), ("GET", "/nothing"), ("POST", "/nothing"), ("POST", "/actuals"), ("DELETE", "/")]


def counters(service: Service) -> dict[str, float]:
    """Return the service's counters of predictions and of refused requests."""
    lines = httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(("model_prediction", "http_access_refused")))
    return {name: float(value) for name, value in pairs}


def test_every_route_refuses_every_key_but_a_right_one(service, texts, figure):
    asked = 0
    with httpx.Client(base_url=service.url) as client:
        for method, path in operations(service, texts["admin"]):
            for kind in ("none", "unknown", "expired", "revoked"):
                # Every request comes from another client, so that none has to wait.
                headers = {"X-Forwarded-For": f"10.0.{asked // 250}.{asked % 250}"}
                headers |= {} if kind == "none" else {"X-Api-Key": texts[kind]}
                response = client.request(method, path, headers=headers, content=ROW if method == "POST" else None)
                asked += 1
                if path in OPEN:
                    assert 200 == response.status_code, (path, response.text)
                    continue
                assert 401 == response.status_code, (method, path, kind)
                assert HOW == response.json()["detail"]
                assert "Bearer" == response.headers["WWW-Authenticate"]
    figure("S1", f"{asked} requests without a live key: 401 at every route but probes")


def test_a_key_of_another_scope_gets_a_403_and_a_right_one_its_answer(service, texts):
    with httpx.Client(base_url=service.url, headers={"Content-Type": "application/json"}) as client:
        for path in ("/v1/predict", "/v2/predict", "/invocations", "/v2/models/made/infer"):
            for scope in ("actuals", "admin"):
                assert 403 == client.post(path, content=ROW, headers={"X-Api-Key": texts[scope]}).status_code
        body = {"content": ROW, "headers": {"Authorization": f"Bearer {texts['predict']}"}}
        assert NUMBER == client.post("/v1/predict", **body).json()["prediction"][0]


def test_without_the_check_a_stranger_is_answered(trained):
    """Send the same to a service without keys, as a control."""
    with serving(trained) as service, httpx.Client(base_url=service.url) as client:
        headers = {"Content-Type": "application/json", "X-Api-Key": "unknown"}
        assert 200 == client.post("/v1/predict", content=ROW, headers=headers).status_code


def test_no_byte_of_a_strangers_body_is_read_and_no_thread_held(service, texts, figure):
    process = psutil.Process(service.process.pid)
    before, threads = counters(service), process.num_threads()
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 60000000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 60)) for _ in range(200)]
        for stranger in strangers:
            stranger.sendall(head)
        for stranger in strangers:
            assert stranger.recv(4_096).startswith(b"HTTP/1.1 401 ")
        held = process.num_threads()
        with Client(service.url, key=texts["predict"]) as client:
            assert NUMBER == client.predict(ROUTE)[0]

    assert held <= threads + 1  # the client's own request may have started one
    changed = {name for name, value in counters(service).items() if value != before.get(name)}
    assert 'http_access_refused_total{reason="missing"}' in changed
    requests = [name for name in before if name.startswith("model_prediction_requests_total")]
    assert sum(counters(service)[name] - before[name] for name in requests) == 201  # one success, 200 invalid
    figure("S1", f"200 strangers with 60 MB announced: 401 before a byte of it, threads {threads} -> {held}")


def test_failures_of_one_address_wait_and_a_right_key_does_not(service, texts, figure):
    with httpx.Client(base_url=service.url, headers={"X-Forwarded-For": "203.0.113.9"}, timeout=60) as client:
        for _ in range(10):
            client.get("/health_status")
        began = time.monotonic()
        assert 401 == client.get("/health_status").status_code
        waited = time.monotonic() - began
        assert 200 == client.get("/health_status", headers={"X-Api-Key": texts["actuals"]}).status_code

    assert waited >= 1.0
    figure("S1", f"after 10 failures of an address each further one waits {waited:.1f} s")


def test_the_python_client_sends_its_key(service, texts):
    with Client(service.url, key=texts["predict"]) as client:
        assert NUMBER == client.predict(ROUTE)[0]
    with Client(service.url, retry_seconds=0) as client, pytest.raises(Rejected) as caught:
        client.predict(ROUTE)
    assert 401 == caught.value.status


EVIL = [
    ({"Host": "evil.example"}, 421),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), EVIL)
def test_a_page_of_a_stranger_can_send_nothing(trained, texts, headers, status, figure):
    asked = 0
    with serving(trained) as service, httpx.Client(base_url=service.url) as client:
        for method, path in operations(service, texts["predict"]):
            if method == "GET":
                continue
            response = client.request(method, path, content=ROW, headers={"Content-Type": "text/plain", **headers})
            assert status == response.status_code, (method, path)
            asked += 1
    figure("S6", f"{asked} POSTs with {next(iter(headers.items()))}: {status}")
