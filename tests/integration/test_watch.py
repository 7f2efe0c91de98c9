"""The rendered files in a real Prometheus and Alertmanager.

They watch a service, a training and MLflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from projects import ROUTE, SETTINGS, write_made_table
from started import Service, serving, tool

from gleaner.model.store import Store
from gleaner.settings.load import load_settings
from gleaner.watching.render import render, write_tree

# 15 seconds between scrapes become 0.75, five minutes 15 seconds.
HURRY = 20.0
SERVICES = {"ml-app", "train-metrics", "mlflow", "prometheus"}

pytestmark = pytest.mark.timeout(900)


@dataclass
class Stack:
    """The service, its Prometheus and its Alertmanager, running."""

    folder: Path
    service: Service
    prometheus: str
    alertmanager: str
    seen_quiet: list[str] = field(default_factory=list)
    seen_failing: list[dict[str, Any]] = field(default_factory=list)

    def get(self, path: str, **parameters: Any) -> Any:
        response = httpx.get(f"{self.prometheus}/api/v1/{path}", params=parameters, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def alerts(self) -> list[str]:
        """Return the names of the alerts that fire or are pending.

        On a busy machine one failed scrape is no failure.
        """
        found = {(alert["labels"]["alertname"], alert["state"]) for alert in self.get("alerts")["alerts"]}
        return sorted(name for name, _ in found - {("TargetDown", "pending")})

    def dashboards(self) -> dict[str, Any]:
        paths = sorted((self.folder / "grafana" / "dashboards").glob("*.json"))
        return {path.stem: json.loads(path.read_text()) for path in paths}


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [held.getsockname()[1] for held in sockets]


@contextlib.contextmanager
def running(command: list[Any], folder: Path, log: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in its own group until the block ends."""
    with (folder / log).open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=os.environ | environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition, seconds: float, what: str, log: Path | None = None) -> Any:
    """Return the value of a condition once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if found := condition():
                return found
        time.sleep(0.2)
    raise AssertionError(f"{what}, in {seconds} s\n{log.read_text() if log else ''}")


@contextlib.contextmanager
def traffic(service: Service, *paths: str) -> Iterator[Counter[int]]:
    """Send about 40 good and bad requests per second.

    Counts the statuses until the block ends.
    """
    stop, statuses = threading.Event(), Counter[int]()

    def send() -> None:
        with httpx.Client(base_url=service.url, timeout=30) as client:
            while not stop.wait(0.05):
                for path in paths:
                    statuses[client.post(path, json=ROUTE).status_code] += 1
                statuses[client.post("/v1/predict", json={"time_spent": "long"}).status_code] += 1
                statuses[client.get("/livez").status_code] += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def stack(trained, tmp_path_factory) -> Iterator[Stack]:
    """Start a service, a lingering training, MLflow, Prometheus and Alertmanager.

    The service has a champion and no challenger.
    """
    prometheus, alertmanager = tool("prometheus"), tool("prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("watched")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    shutil.copytree(trained / ".gleaner" / "store", folder / ".gleaner" / "store")
    Store(folder / ".gleaner" / "store").point({"challenger": None})
    (trainer := folder / "trainer").mkdir()
    for name in ("gleaner.toml", "made.csv"):
        shutil.copy(folder / name, trainer)
    ports = dict(zip(("mlflow", "prometheus", "alertmanager", "train_metrics"), free_ports(4), strict=True))
    mlflow = [sys.executable, "-m", "mlflow", "server", "--port", ports["mlflow"], "--workers", 1]
    mlflow += ["--backend-store-uri", "sqlite:///mlflow.db", "--expose-prometheus", folder / "mlflow-metrics"]
    train = [sys.executable, "-m", "gleaner", "train", "--linger", "--metrics-port", ports["train_metrics"]]
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(mlflow, folder, "mlflow.log", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"))
        stack.enter_context(running(train, trainer, "train.log"))
        follows = f"http://127.0.0.1:{ports['mlflow']}"  # an empty registry, so that nothing changes
        service = stack.enter_context(serving(folder, GLEANER_TRACKING__URI=follows))
        wait_for(lambda: "metrics stay" in (trainer / "train.log").read_text(), 300, "trained", trainer / "train.log")
        metrics = f"http://127.0.0.1:{ports['mlflow']}/metrics"
        wait_for(lambda: httpx.get(metrics).status_code == 200, 300, "MLflow up", folder / "mlflow.log")
        # A busy machine may be slow; latency is not tested here.
        flags = {
            "ports": {**ports, "ml_app_metrics": service.metrics_port},
            "objectives": {"latency_seconds": 5},
        }
        write_tree(folder, render(load_settings(folder / "gleaner.toml", flags), "local", folder, HURRY))
        addresses = {name: f"127.0.0.1:{ports[name]}" for name in ("prometheus", "alertmanager")}
        data = [f"--storage.path={folder}/alertmanager-data", "--cluster.listen-address="]
        command = [alertmanager, f"--config.file={folder}/alertmanager/alertmanager.yml", *data]
        command.append(f"--web.listen-address={addresses['alertmanager']}")
        stack.enter_context(running(command, folder, "alertmanager.log"))
        command = [prometheus, f"--config.file={folder}/prometheus/prometheus.yml"]
        command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={addresses['prometheus']}"]
        stack.enter_context(running(command, folder, "prometheus.log"))
        urls = {name: f"http://{address}" for name, address in addresses.items()}
        ready = lambda: httpx.get(f"{urls['prometheus']}/-/ready").status_code == 200  # noqa: E731
        wait_for(ready, 120, "Prometheus ready", folder / "prometheus.log")
        watched = Stack(folder, service, **urls)
        quiet_then_failing(watched)
        yield watched


def quiet_then_failing(stack: Stack) -> None:
    """Ask a slot without a model until the alert fires.

    Ten shortened minutes without failures come first.
    """
    with traffic(stack.service, "/v1/predict") as statuses:
        end = time.monotonic() + 600 / HURRY
        while time.monotonic() < end:
            stack.seen_quiet += stack.alerts()
            time.sleep(1)
    assert {200, 422} == set(statuses)

    def firing() -> list[dict[str, Any]]:
        alerts = httpx.get(f"{stack.alertmanager}/api/v2/alerts").json()
        return [alert for alert in alerts if alert["labels"]["alertname"] == "HighErrorRate"]

    with traffic(stack.service, "/v1/predict", "/v2/predict") as statuses:
        stack.seen_failing = wait_for(firing, 300, "HighErrorRate at Alertmanager", stack.folder / "prometheus.log")
        time.sleep(5)
    assert {200, 422, 503} == set(statuses)


def test_every_target_is_up_and_labelled(stack):
    targets = stack.get("targets")["activeTargets"]

    assert dict.fromkeys(SERVICES, "up") == {t["labels"]["service"]: t["health"] for t in targets}, [
        target["lastError"] for target in targets
    ]
    assert {"ml-api", "train-metrics", "mlflow", "prometheus"} == {t["labels"]["job"] for t in targets}


def test_every_rule_is_loaded_and_healthy(stack):
    loaded = [rule for group in stack.get("rules")["groups"] for rule in group["rules"]]
    written = sum(text.count("expr:") for text in map(Path.read_text, (stack.folder / "prometheus/rules").iterdir()))

    assert written == len(loaded) > 20
    assert {"ok"} == {rule["health"] for rule in loaded}, [rule for rule in loaded if rule["health"] != "ok"]


def test_no_alert_fires_without_failures(stack):
    assert [] == stack.seen_quiet


def test_the_alert_reaches_its_receiver_with_its_summary(stack):
    (alert,) = stack.seen_failing

    assert "ml-app" == alert["labels"]["service"]
    assert "page" == alert["labels"]["severity"]
    assert [{"name": "page"}] == alert["receivers"]
    assert re.fullmatch(r"[\d.]+% of requests to ml-app fail\.", alert["annotations"]["summary"])
    assert "docs/alerts.md#higherrorrate" == alert["annotations"]["runbook_url"]


def test_every_query_of_every_panel_returns_series(stack):
    empty = []
    # As Grafana sets them: at least four scrapes.
    known = {"$__rate_interval": "4s", "$__interval": "1s", "$__range": "60s"}
    end = time.time()
    queries = []
    for name, dashboard in stack.dashboards().items():
        substitutes = dict(known)
        for variable in dashboard.get("templating", {}).get("list", []):
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            values = stack.get(f"label/{label}/values", **{"match[]": metric})
            assert values, f"{name}: ${variable['name']}"
            substitutes[f"${variable['name']}"] = "(" + "|".join(values) + ")"
        exprs = {a["name"]: a["expr"] for a in dashboard.get("annotations", {}).get("list", [])}
        for panel in dashboard["panels"]:
            exprs |= {f"{panel['title']} {t['refId']}": t["expr"] for t in panel.get("targets", [])}
        for where, expr in exprs.items():
            for variable, value in substitutes.items():
                expr = expr.replace(variable, value)
            assert "$" not in expr.replace('"$1"', ""), expr
            queries.append((f"{name}: {where}", expr))

    def query_range(query: tuple[str, str]) -> None:
        result = stack.get("query_range", query=query[1], start=end - 30, end=end, step=1)["result"]
        if not any(value not in {"NaN", "+Inf"} for series in result for _, value in series["values"]):
            empty.append(query)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(query_range, queries))

    assert [] == empty
    assert len(queries) > 40


def test_errors_are_counted_for_the_slot_without_a_model_only(stack):
    model = stack.get("query", query="model_info")["result"]
    query = 'sum by (model_version) (model_prediction_requests_total{status="error"})'
    failed = {r["metric"]["model_version"]: float(r["value"][1]) for r in stack.get("query", query=query)["result"]}

    assert [("v1", "1", "decision_tree")] == [
        (m["metric"]["slot"], m["metric"]["version"], m["metric"]["candidate"]) for m in model
    ]
    assert 0 == failed["v1"] < failed["v2"]
