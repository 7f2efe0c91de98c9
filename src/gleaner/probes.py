"""What the running processes answer when they are asked: MLflow its names and its files, Prometheus what it watches."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from gleaner.alerts import make_alerts, span
from gleaner.errors import GleanerError
from gleaner.settings import Settings

Verdict = Literal["OK", "WARN", "FAIL"]

_ANSWER_SECONDS = 5.0
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_METHODS = ("PUT", "GET", "DELETE")
_START_MLFLOW = "start it as `gleaner up` does: mlflow server"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` is what to do, empty where nothing is."""

    verdict: Verdict
    what: str
    detail: str
    fix: str = ""


class NotIt(GleanerError):
    """What answers is something else than was looked for, or nothing."""


class Answers:
    """What answers at one address, asked without any proxy. Its methods raise NotIt."""

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
        """The `data` of an answer of Prometheus's API."""
        response = self.ask("GET", f"/api/v1/{path}", params=parameters)
        try:
            answer = response.json()
            if answer["status"] == "success":
                return answer["data"]
            raise NotIt(f"{response.status_code}: {answer['error']}")
        except (ValueError, KeyError, TypeError) as e:
            raise NotIt(f"{self.url}/api/v1/{path} answers {response.status_code}, and not as Prometheus does") from e


def probe_mlflow(url: str, hosts: Sequence[str], authorization: str = "") -> Iterator[Finding]:
    """Whether a running MLflow server answers under the names by which it is asked, and keeps files.

    hosts: `Host` headers. Its /version answers to any name, so that proves nothing. Raises NotIt.
    """
    server = Answers(url, authorization)
    version = server.ask("GET", "/version")
    if version.status_code != 200 or not version.text.strip()[:1].isdigit():
        raise NotIt(f"what answers at {url} is not MLflow")
    for host in hosts:
        path = "/api/2.0/mlflow/experiments/search?max_results=1"
        status = server.ask("GET", path, headers={"Host": host}).status_code
        if status == 403:
            allowed = ",".join(_patterns(hosts))
            fix = f"{_START_MLFLOW} --allowed-hosts '{allowed}', which replaces what it allows by itself"
            yield Finding("FAIL", "mlflow hosts", f"{url} answers 403 to `Host: {host}`", fix)
            return
        if status != 200:
            fix = "look at MLflow's log; 401 means that it wants a user and a password"
            yield Finding("FAIL", "mlflow hosts", f"{url} answers {status} to a search for experiments", fix)
            return
    yield Finding("OK", "mlflow hosts", f"{version.text.strip()} at {url} answers to {', '.join(hosts)}")
    yield _round_trip(server)


def _patterns(hosts: Sequence[str]) -> list[str]:
    return [f"{urlsplit(f'//{host}').hostname}:*" for host in hosts]


def _round_trip(server: Answers) -> Finding:
    """A small file written into MLflow, read from it, and deleted there; whatever it answered in between."""
    what, path, content = "mlflow files", f"{_ARTIFACTS}/gleaner-doctor-{secrets.token_hex(8)}.txt", b"gleaner doctor"
    asked = {method: server.ask(method, path, content=content if method == "PUT" else None) for method in _METHODS}
    for method, answer in asked.items():
        if answer.status_code != 200 or (method == "GET" and answer.content != content):
            said = " ".join(answer.text.split())[:200]
            detail = f"{server.url} answers {answer.status_code} to {method} of a small file: {said}"
            fix = f"{_START_MLFLOW} --artifacts-destination FOLDER, which it may write to; MLflow's log says more"
            return Finding("FAIL", what, detail, fix)
    return Finding("OK", what, "a small file was written, read and deleted")


def probe_prometheus(url: str, settings: Settings, services: Sequence[str], dashboards: Path) -> Iterator[Finding]:
    """Whether a running Prometheus sees some services, has every rule, and understands every panel. Raises NotIt."""
    server = Answers(url)
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
            fix = "restart Prometheus with what `gleaner config render` writes; `gleaner up` does both"
            yield Finding("FAIL", what, "Prometheus does not look at it", fix)
        elif target["health"] == "unknown":
            yield Finding("OK", what, "not yet looked at")
        elif target["health"] != "up":
            error = str(target["lastError"])
            yield Finding("FAIL", what, f"{target['scrapeUrl']}: {error}", _target_fix(name, error))
    if well:
        yield Finding("OK", "targets", f"Prometheus sees {', '.join(well)}")


def _target_fix(name: str, error: str) -> str:
    if "403" in error:
        return f"{_START_MLFLOW} with the name in that address among its --allowed-hosts"
    if "404" in error:
        return f"{_START_MLFLOW} --expose-prometheus FOLDER" if name == "mlflow" else "see what listens on that port"
    if "refused" in error:
        return f"start {name}; where its port was moved, render again (`gleaner config render`) and restart Prometheus"
    return f"see whether {name} is stuck, or whether something between it and Prometheus is in the way"


def _rules(groups: Sequence[Mapping[str, Any]], settings: Settings) -> Iterator[Finding]:
    rules = [rule for group in groups for rule in group["rules"]]
    broken = [rule for rule in rules if rule["health"] == "err"]
    for rule in broken:
        yield Finding(
            "FAIL", f"rule {rule['name']}", str(rule.get("lastError", "cannot be computed")), "report it with this line"
        )
    missing = sorted({alert.name for alert in make_alerts(settings)} - {rule["name"] for rule in rules})
    if missing:
        fix = "restart Prometheus with what `gleaner config render` writes; `gleaner up` does both"
        yield Finding("FAIL", "rules", f"Prometheus has not loaded {', '.join(missing)}", fix)
    elif not broken:
        firing = sorted({rule["name"] for rule in rules if rule.get("state") == "firing"})
        detail = f"{len(rules)} rules, firing: {', '.join(firing) or 'none'}"
        fix = "docs/alerts.md has a section for each" if firing else ""
        yield Finding("WARN" if firing else "OK", "rules", detail, fix)


def _panels(server: Answers, settings: Settings, folder: Path) -> Finding:
    """Whether Prometheus can compute every panel of the dashboards in a folder; one without values is none to blame."""
    queries = panel_queries(folder, settings)
    if not queries:
        return Finding("OK", "dashboards", f"none are rendered in {folder}")
    empty = []
    for name, query in queries.items():
        try:
            if not server.data("query", query=query)["result"]:
                empty.append(name)
        except NotIt as e:
            return Finding("FAIL", "dashboards", f"{name}: {e}", "render again: gleaner config render")
    without = f"; nothing to show yet in {len(empty)}, such as {empty[0]}" if empty else ""
    return Finding("OK", "dashboards", f"{len(queries)} queries of panels can be computed{without}")


def panel_queries(folder: Path, settings: Settings) -> dict[str, str]:
    """Every query of the rendered dashboards in a folder, with Grafana's variables filled in, by its panel."""
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
