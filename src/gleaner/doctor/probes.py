"""Probes of the running MLflow and Prometheus servers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from gleaner.doctor.finding import Finding, NotIt
from gleaner.redaction import hide_userinfo, redact
from gleaner.settings.sections import Settings
from gleaner.watching.alerts import make_alerts, span

_ANSWER_SECONDS = 5.0
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_METHODS = ("PUT", "GET", "DELETE")
_START_MLFLOW = "start it as `gleaner up` does: mlflow server"
_RENDER_AGAIN = "restart Prometheus with what `gleaner config render` writes; `gleaner up` does both"


class ProbedServer:
    """One server, asked without a proxy; its methods raise NotIt."""

    def __init__(self, url: str, authorization: str = "") -> None:
        self.url = url
        headers = {"Authorization": authorization} if authorization else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_ANSWER_SECONDS, trust_env=False)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **more)
        except httpx.HTTPError as e:
            raise NotIt(f"{self.url}{path}: {e or type(e).__name__}") from e

    def data(self, path: str, **parameters: str) -> Any:
        """Return the `data` of a response of Prometheus's API."""
        response = self.ask("GET", f"/api/v1/{path}", params=parameters)
        try:
            body = response.json()
            if body["status"] == "success":
                return body["data"]
            raise NotIt(f"{response.status_code}: {body['error']}")
        except (ValueError, KeyError, TypeError) as e:
            raise NotIt(f"{self.url}/api/v1/{path} responds {response.status_code}, but not as Prometheus does") from e


def probe_mlflow(url: str, hosts: Sequence[str], authorization: str = "") -> Iterator[Finding]:
    """Check that MLflow accepts its host names and keeps files.

    Its /version accepts every name, so it proves nothing about names.

    hosts: values of the `Host` header.
    authorization: value of the header `Authorization`; empty for none.
    Raises NotIt.
    """
    server = ProbedServer(url, authorization)
    version = server.ask("GET", "/version")
    if version.status_code != 200 or not version.text.strip()[:1].isdigit():
        raise NotIt(f"the server at {url} is not MLflow")
    for host in hosts:
        path = "/api/2.0/mlflow/experiments/search?max_results=1"
        status = server.ask("GET", path, headers={"Host": host}).status_code
        if status == 403:
            allowed = ",".join(f"{urlsplit(f'//{host}').hostname}:*" for host in hosts)
            fix = f"{_START_MLFLOW} --allowed-hosts '{allowed}', which replaces its default names"
            yield Finding("FAIL", "mlflow hosts", f"{url} responds 403 to `Host: {host}`", fix)
            return
        if status != 200:
            fix = "read MLflow's log"
            if status == 401:
                fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or put them into tracking.uri"
            yield Finding("FAIL", "mlflow hosts", f"{url} responds {status} to a search for experiments", fix)
            return
    yield Finding("OK", "mlflow hosts", f"{version.text.strip()} at {url} accepts the host {', '.join(hosts)}")
    yield _round_trip(server)


def _round_trip(server: ProbedServer) -> Finding:
    """Write a small file into MLflow, read it and delete it.

    It is deleted even if MLflow refused to write or read it.
    """
    what, path, content = "mlflow files", f"{_ARTIFACTS}/gleaner-doctor-{secrets.token_hex(8)}.txt", b"gleaner doctor"
    responses = {method: server.ask(method, path, content=content if method == "PUT" else None) for method in _METHODS}
    for method, response in responses.items():
        if response.status_code != 200 or (method == "GET" and response.content != content):
            said = " ".join(hide_userinfo(redact(response.text)).split())[:200]
            detail = f"{server.url} responds {response.status_code} to {method} of a small file: {said}"
            fix = "--artifacts-destination FOLDER, a folder that it may write to; MLflow's log says more"
            return Finding("FAIL", what, detail, f"{_START_MLFLOW} {fix}")
    return Finding("OK", what, "a small file was written, read and deleted")


def probe_prometheus(url: str, settings: Settings, services: Sequence[str], dashboards: Path) -> Iterator[Finding]:
    """Check that Prometheus has every target, rule and panel.

    services: names of the services to find among its targets.
    dashboards: the folder of the rendered dashboards.
    Raises NotIt.
    """
    server = ProbedServer(url)
    targets = server.data("targets")["activeTargets"]
    yield from _targets(targets, services)
    yield from _rules(server.data("rules")["groups"], settings)
    yield _panels(server, settings, dashboards)


def _targets(targets: Sequence[Mapping[str, Any]], services: Sequence[str]) -> Iterator[Finding]:
    found = {str(target["labels"].get("service", target["labels"]["job"])): target for target in targets}
    well = [name for name in services if found.get(name, {}).get("health") == "up"]
    for name in services:
        what, target = f"target {name}", found.get(name)
        if target is None:
            yield Finding("FAIL", what, "Prometheus does not scrape it", _RENDER_AGAIN)
        elif target["health"] == "unknown":
            yield Finding("OK", what, "not scraped yet")
        elif target["health"] != "up":
            error = str(target["lastError"])
            yield Finding("FAIL", what, f"{target['scrapeUrl']}: {error}", _target_fix(name, error))
    if well:
        yield Finding("OK", "targets", f"Prometheus sees {', '.join(well)}")


def _target_fix(name: str, error: str) -> str:
    if "403" in error:
        return f"{_START_MLFLOW} --allowed-hosts with the host name in that address"
    if "404" in error:
        return f"{_START_MLFLOW} --expose-prometheus FOLDER" if name == "mlflow" else "see what listens on that port"
    if "refused" in error:
        return f"start {name}; if its port was moved, run `gleaner config render` and restart Prometheus"
    return f"read the log of {name}; if it responds here, look at the network between it and Prometheus"


def _rules(groups: Sequence[Mapping[str, Any]], settings: Settings) -> Iterator[Finding]:
    rules = [rule for group in groups for rule in group["rules"]]
    broken = [rule for rule in rules if rule["health"] == "err"]
    for rule in broken:
        error = str(rule.get("lastError", "cannot be computed"))
        yield Finding("FAIL", f"rule {rule['name']}", error, "report it, with this line")
    missing = sorted({alert.name for alert in make_alerts(settings)} - {rule["name"] for rule in rules})
    if missing:
        yield Finding("FAIL", "rules", f"Prometheus has not loaded {', '.join(missing)}", _RENDER_AGAIN)
    elif not broken:
        firing = sorted({rule["name"] for rule in rules if rule.get("state") == "firing"})
        detail = f"{len(rules)} rules, firing: {', '.join(firing) or 'none'}"
        fix = "read the section of each in docs/alerts.md" if firing else ""
        yield Finding("WARN" if firing else "OK", "rules", detail, fix)


def _panels(server: ProbedServer, settings: Settings, folder: Path) -> Finding:
    """Check that Prometheus can compute every panel; a panel may be empty."""
    queries = panel_queries(folder, settings)
    if not queries:
        return Finding("OK", "dashboards", f"none in {folder}")
    empty = []
    for name, query in queries.items():
        try:
            if not server.data("query", query=query)["result"]:
                empty.append(name)
        except NotIt as e:
            return Finding("FAIL", "dashboards", f"{name}: {e}", "gleaner config render, then restart Prometheus")
    without = f"; still empty: {len(empty)}, such as {empty[0]}" if empty else ""
    return Finding("OK", "dashboards", f"{len(queries)} queries of panels can be computed{without}")


def panel_queries(folder: Path, settings: Settings) -> dict[str, str]:
    """Return every query of a folder's dashboards by its panel.

    Grafana's variables are filled in.
    """
    scrape = settings.alerts.scrape_seconds
    known = {"$__rate_interval": span(4 * scrape), "$__interval": span(scrape), "$__range": "1h", "$slot": ".*"}
    queries = {}
    for path in sorted(folder.glob("*.json")):
        for panel in json.loads(path.read_bytes())["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"]
                for variable, value in known.items():
                    query = query.replace(variable, value)
                queries[f"{path.stem}: {panel['title']} {target['refId']}"] = query
    return queries
