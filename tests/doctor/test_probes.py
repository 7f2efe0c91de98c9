"""Probes of small servers in place of MLflow and Prometheus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from projects import SETTINGS
from started import responding

from gleaner.doctor.finding import Finding, NotIt
from gleaner.doctor.probes import panel_queries, probe_mlflow, probe_prometheus
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.watching.alerts import make_alerts

SERVICES = ["ml-app", "mlflow"]


class Mlflow:
    """The probed part of MLflow.

    allowed: the host names that it accepts.
    broken: the method that fails.
    keep: whether it keeps files as they were sent.
    """

    def __init__(self, *allowed: str, broken: str = "", keep: bool = True) -> None:
        self.allowed, self.broken, self.keep = allowed, broken, keep
        self.files: dict[str, bytes] = {}
        self.authorizations: set[str | None] = set()

    def __call__(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        self.authorizations.add(headers.get("Authorization"))
        if path == "/version":
            return 200, b"3.17.2"
        if headers["Host"].split(":")[0] not in self.allowed:
            return 403, b"Invalid Host header"
        if path.startswith("/api/2.0/mlflow/experiments/search"):
            return 200, b'{"experiments": []}'
        if method == self.broken:
            return 500, b"disk full"
        if method == "PUT":
            self.files[path] = body if self.keep else b"other"
        elif method == "DELETE":
            self.files.pop(path, None)
        return 200, self.files.get(path, b"{}")


def mlflow(server: Mlflow, *hosts: str, authorization: str = "") -> list[Finding]:
    with responding(server) as port:
        found = list(probe_mlflow(f"http://127.0.0.1:{port}", hosts, authorization))
    assert all(bool(finding.fix) == (finding.verdict != "OK") for finding in found)
    return found


def test_a_server_that_accepts_its_names_and_keeps_files_is_ok_and_the_file_is_deleted():
    server = Mlflow("127.0.0.1", "localhost")

    names, files = mlflow(server, "127.0.0.1:5002", "localhost:5002", authorization="Bearer x")

    assert ["OK", "OK"] == [names.verdict, files.verdict]
    assert names.detail.startswith("3.17.2 at http://127.0.0.1:")
    assert {} == server.files
    assert {"Bearer x"} == server.authorizations


def test_a_refused_host_name_is_a_fault_with_the_option_that_allows_it():
    (found,) = mlflow(Mlflow("127.0.0.1"), "127.0.0.1:5002", "mlflow:5000")

    assert "FAIL" == found.verdict
    assert "responds 403 to `Host: mlflow:5000`" in found.detail
    assert "--allowed-hosts '127.0.0.1:*,mlflow:*'" in found.fix


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (Mlflow("127.0.0.1", broken="PUT"), "responds 500 to PUT of a small file: disk full"),
        (Mlflow("127.0.0.1", broken="GET"), "responds 500 to GET of a small file"),
        (Mlflow("127.0.0.1", broken="DELETE"), "responds 500 to DELETE of a small file"),
        (Mlflow("127.0.0.1", keep=False), "responds 200 to GET of a small file: other"),
    ],
)
def test_files_that_come_back_changed_are_a_fault(server, said):
    _, found = mlflow(server, "127.0.0.1")

    assert "FAIL" == found.verdict
    assert {} == server.files or server.broken == "DELETE"
    assert said in found.detail
    assert "--artifacts-destination" in found.fix


def test_a_closed_port_and_another_server_are_not_mlflow():
    with pytest.raises(NotIt, match=r"127\.0\.0\.1:9"):
        list(probe_mlflow("http://127.0.0.1:9", ["a"]))
    with responding(lambda *_: (200, b"<html>")) as port, pytest.raises(NotIt, match="is not MLflow"):
        list(probe_mlflow(f"http://127.0.0.1:{port}", ["a"]))


@pytest.fixture
def settings(tmp_path) -> Settings:
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    return load_settings(tmp_path / "gleaner.toml")


class Prometheus:
    """The probed part of Prometheus, without faults unless a test adds one."""

    def __init__(self, settings: Settings) -> None:
        self.targets: list[dict[str, Any]] = [
            {
                "labels": {"service": name, "job": "x"},
                "health": "up",
                "lastError": "",
                "scrapeUrl": f"http://{name}/metrics",
            }
            for name in SERVICES
        ]
        names = {alert.name for alert in make_alerts(settings)}
        self.rules: list[dict[str, Any]] = [{"name": name, "health": "ok", "state": "inactive"} for name in names]
        self.asked: list[str] = []

    def __call__(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        parts = urlsplit(path)
        if parts.path == "/api/v1/targets":
            return self.data({"activeTargets": self.targets})
        if parts.path == "/api/v1/rules":
            return self.data({"groups": [{"rules": self.rules}]})
        (query,) = parse_qs(parts.query)["query"]
        self.asked.append(query)
        if "(((" in query:
            return 400, json.dumps({"status": "error", "error": "unclosed left parenthesis"}).encode()
        return self.data({"result": [] if "nothing" in query else [1]})

    def data(self, data: object) -> tuple[int, bytes]:
        return 200, json.dumps({"status": "success", "data": data}).encode()


def prometheus(server: Prometheus, settings: Settings, folder: Path) -> dict[str, Finding]:
    with responding(server) as port:
        found = list(probe_prometheus(f"http://127.0.0.1:{port}", settings, SERVICES, folder))
    assert all(bool(finding.fix) == (finding.verdict != "OK") for finding in found)
    return {finding.what: finding for finding in found}


def write_dashboard(folder: Path, *queries: str) -> None:
    panels = [{"title": f"Panel {i}", "targets": [{"refId": "A", "expr": q}]} for i, q in enumerate(queries)]
    (folder / "service.json").write_text(json.dumps({"panels": [*panels, {"title": "A row"}]}))


def test_a_prometheus_with_every_target_rule_and_panel_is_ok(settings, tmp_path):
    write_dashboard(tmp_path, 'rate(x{slot=~"$slot"}[$__rate_interval])', "max_over_time(nothing[$__range])")
    server = Prometheus(settings)

    found = prometheus(server, settings, tmp_path)

    assert {"OK"} == {finding.verdict for finding in found.values()}
    assert "Prometheus sees ml-app, mlflow" == found["targets"].detail
    assert "firing: none" in found["rules"].detail
    assert "2 queries of panels can be computed; still empty: 1, such as" in found["dashboards"].detail
    assert ['rate(x{slot=~".*"}[1m])', "max_over_time(nothing[1h])"] == server.asked


@pytest.mark.parametrize(
    ("name", "error", "fix"),
    [
        ("ml-app", 'Get "http://ml-app": dial tcp: connect: connection refused', "start ml-app; if its port was moved"),
        ("mlflow", "server returned HTTP status 403 Forbidden", "--allowed-hosts"),
        ("mlflow", "server returned HTTP status 404 Not Found", "--expose-prometheus"),
        ("mlflow", "context deadline exceeded", "read the log of mlflow"),
    ],
)
def test_a_target_that_is_down_is_reported_with_its_error_and_its_fix(settings, tmp_path, name, error, fix):
    server = Prometheus(settings)
    (target,) = [target for target in server.targets if target["labels"]["service"] == name]
    target.update(health="down", lastError=error)

    found = prometheus(server, settings, tmp_path)

    assert ("FAIL", f"http://{name}/metrics: {error}") == (
        found[f"target {name}"].verdict,
        found[f"target {name}"].detail,
    )
    assert fix in found[f"target {name}"].fix
    assert name not in found["targets"].detail.split(", ")


def test_a_missing_target_means_another_configuration(settings, tmp_path):
    server = Prometheus(settings)
    server.targets.pop()

    assert "gleaner config render" in prometheus(server, settings, tmp_path)["target mlflow"].fix


def test_missing_broken_and_firing_rules_are_reported(settings, tmp_path):
    missing, broken, firing = Prometheus(settings), Prometheus(settings), Prometheus(settings)
    gone = missing.rules.pop()["name"]
    broken.rules[0].update(health="err", lastError="many-to-many matching")
    firing.rules[0].update(state="firing")

    name = broken.rules[0]["name"]
    assert f"has not loaded {gone}" in prometheus(missing, settings, tmp_path)["rules"].detail
    assert "many-to-many matching" == prometheus(broken, settings, tmp_path)[f"rule {name}"].detail
    found = prometheus(firing, settings, tmp_path)["rules"]
    assert ("WARN", True) == (found.verdict, found.detail.endswith(f"firing: {firing.rules[0]['name']}"))


def test_a_panel_that_prometheus_cannot_compute_is_named(settings, tmp_path):
    write_dashboard(tmp_path, "up", "rate(((")

    found = prometheus(Prometheus(settings), settings, tmp_path)["dashboards"]

    assert "FAIL" == found.verdict
    assert "service: Panel 1 A: 400: unclosed left parenthesis" == found.detail


def test_every_panel_of_the_committed_dashboards_is_queried_with_no_variable_left(settings):
    queries = panel_queries(Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards", settings)

    assert len(queries) > 40
    assert [] == [query for query in queries.values() if "$" in query.replace('"$1"', "")]
