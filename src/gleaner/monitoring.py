"""The files that Prometheus, Alertmanager and Grafana read: settings -> a tree of them. Rendered, never edited."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from gleaner.alerts import Group, hurried, make_alerts, make_records, span
from gleaner.cases import make_cases, make_times, write_pieces
from gleaner.dashboards import DATA_SOURCE, make_dashboards
from gleaner.errors import BadSetting
from gleaner.ports import reachable
from gleaner.settings import Settings

Where = Literal["compose", "local"]
# Where compose mounts the dashboards in Grafana's container.
_DASHBOARDS = Path("/etc/grafana/dashboards")
# Inside the containers' network, where nobody else has any: docker-compose.yml pins them, whatever `[ports]` says.
_INSIDE = {"ml-app": 8010, "train-metrics": 8003, "mlflow": 5000, "prometheus": 9090, "alertmanager": 9093}
# The folders of the tree in which every file is ours.
_FOLDERS = ("prometheus/rules", "prometheus/tests", "grafana/dashboards")


def render(
    settings: Settings, where: Where, folder: Path, hurry: float = 1.0, services: Collection[str] | None = None
) -> dict[str, str]:
    """Every file's text by its path in the tree; the same settings give the same bytes.

    where: `compose`, where services have names and ports of their own, or `local`, where all are on this machine, on
    `[ports]`.
    folder: where the tree is to stand; Grafana wants it in full, outside of compose.
    hurry: divides every `for:`, window and interval, so that an alert can be seen to fire without long waiting.
    services: the ones that Prometheus is to ask; None for all that are there.
    Raises BadSetting for a port that is 0, since nobody could be told where to look, and for a token's file that a
    container does not have.
    """
    at = hurried(settings.alerts, hurry)
    addresses = _addresses(settings, where)
    dashboards = _DASHBOARDS if where == "compose" else folder.absolute() / "grafana/dashboards"
    files = {
        "prometheus/prometheus.yml": _yaml(where, _prometheus(addresses, services, span(at.scrape_seconds))),
        "alertmanager/alertmanager.yml": _yaml(where, _alertmanager(settings, where, hurry), *_WHOM),
        "grafana/provisioning/datasources/prometheus.yml": _yaml(
            where, _data_source(addresses["prometheus"], span(at.scrape_seconds))
        ),
        "grafana/provisioning/dashboards/gleaner.yml": _yaml(where, _provider(dashboards)),
    }
    for group in get_args(Group):
        files[f"prometheus/rules/{group}.yml"] = _yaml(where, _rules(settings, group, hurry))
        files[f"prometheus/tests/{group}.yml"] = _yaml(where, _tests(settings, group, hurry))
    for name, text in make_dashboards(settings).items():
        files[f"grafana/dashboards/{name}.json"] = text
    return dict(sorted(files.items()))


def write_tree(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Write a rendered tree, each file whole or not at all; the paths of other files where only ours belong."""
    for name, text in files.items():
        _write(folder / name, text)
    return [
        str(path.relative_to(folder))
        for part in _FOLDERS
        for path in sorted((folder / part).iterdir())
        if str(path.relative_to(folder)) not in files
    ]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, half = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".half")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # Others read it, under users of their own.
        Path(half).chmod(0o644)
        Path(half).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(half).unlink()


def _addresses(settings: Settings, where: Where) -> dict[str, str]:
    """Where Prometheus finds each process, by its service's name."""
    if where == "compose":
        return {service: f"{service}:{port}" for service, port in _INSIDE.items()}
    host = reachable(settings.serving.host)
    addresses = {
        "ml-app": f"{host}:{_port(settings, 'ml_app_metrics')}",
        "train-metrics": f"{host}:{_port(settings, 'train_metrics')}",
        "mlflow": f"127.0.0.1:{_port(settings, 'mlflow')}",
        "prometheus": f"127.0.0.1:{_port(settings, 'prometheus')}",
        "alertmanager": f"127.0.0.1:{_port(settings, 'alertmanager')}",
    }
    if settings.tracking.uri:
        # Runs are recorded elsewhere: there is no MLflow of ours to look after.
        del addresses["mlflow"]
    return addresses


def _port(settings: Settings, name: str) -> int:
    port: int = getattr(settings.ports, name)
    if port == 0:
        raise BadSetting(
            str(settings.file), f"ports.{name}", "wanted a port to be found at; got 0, which is any free one"
        )
    return port


_WHOM = (
    "To tell somebody: alerts.webhook is an address that gets every alert as JSON. It is written below, so a token for",
    "it goes into a file, named by alerts.webhook_token_file. Without them alerts are shown here and in Grafana only.",
)
_JOBS = {"ml-app": "ml-api", "train-metrics": "train-metrics", "mlflow": "mlflow", "prometheus": "prometheus"}


def _prometheus(addresses: Mapping[str, str], services: Collection[str] | None, interval: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules/*.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [addresses["alertmanager"]]}]}]},
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [{"targets": [addresses[service]], "labels": {"service": service}}],
            }
            for service, job in _JOBS.items()
            if service in addresses and (services is None or service in services)
        ],
    }


def _rules(settings: Settings, group: Group, hurry: float) -> dict[str, Any]:
    records = make_records(hurry) if group == "budget" else {}
    rules: list[dict[str, Any]] = [{"record": name, "expr": expr} for name, expr in records.items()]
    for alert in make_alerts(settings, hurry):
        if alert.group == group:
            rules.append(
                {
                    "alert": alert.name,
                    "expr": alert.expr,
                    **({"for": span(alert.for_seconds)} if alert.for_seconds else {}),
                    "labels": alert.labels,
                    "annotations": alert.annotations(settings),
                }
            )
    return {"groups": [{"name": group, "rules": rules}]}


def _tests(settings: Settings, group: Group, hurry: float) -> dict[str, Any]:
    step, look = make_times(settings, group, hurry)
    tests = []
    for case in make_cases(settings, hurry):
        if case.alert.group != group:
            continue
        expected = [
            {
                "exp_labels": {**fires.labels, **fires.alert.labels},
                "exp_annotations": {k: fires.fill(v) for k, v in fires.alert.annotations(settings).items()},
            }
            for fires in case.firing
        ]
        tests.append(
            {
                "name": f"{case.alert.name}: {case.title}",
                "interval": span(step),
                "input_series": [{"series": n, "values": write_pieces(p, step)} for n, p in case.series.items()],
                "alert_rule_test": [
                    {"alertname": case.alert.name, "eval_time": span(case.at_seconds) if case.series else "0s"}
                    | ({"exp_alerts": expected} if expected else {})
                ],
            }
        )
    return {"rule_files": [f"../rules/{group}.yml"], "evaluation_interval": span(look), "tests": tests}


def _alertmanager(settings: Settings, where: Where, hurry: float) -> dict[str, Any]:
    receiver: dict[str, Any] = {}
    if settings.alerts.webhook:
        hook: dict[str, Any] = {"url": settings.alerts.webhook}
        if settings.alerts.webhook_token_file:
            hook["http_config"] = {"authorization": {"credentials_file": _token_file(settings, where)}}
        receiver = {"webhook_configs": [hook]}
    return {
        "route": {
            "receiver": "ticket",
            "group_by": ["alertname", "service"],
            "group_wait": span(30 / hurry),
            "group_interval": span(300 / hurry),
            "repeat_interval": span(86_400 / hurry),
            "routes": [
                {
                    "matchers": ['severity="page"'],
                    "receiver": "page",
                    "group_wait": span(10 / hurry),
                    "repeat_interval": span(3_600 / hurry),
                }
            ],
        },
        "receivers": [{"name": "page", **receiver}, {"name": "ticket", **receiver}],
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="TargetDown"'],
                "target_matchers": ['alertname!="TargetDown"'],
                "equal": ["service"],
            },
            {
                "source_matchers": ['severity="page"'],
                "target_matchers": ['severity="ticket"'],
                "equal": ["alertname", "service"],
            },
        ],
    }


def _token_file(settings: Settings, where: Where) -> str:
    """Where Alertmanager finds the webhook's token; it would take a relative path from the folder of its own file."""
    path = settings.alerts.webhook_token_file
    if where == "local":
        return str(settings.file.parent.absolute() / path)
    if not path.startswith("/"):
        wanted = (
            "wanted a path in Alertmanager's container, such as /secrets/webhook-token for deploy/secrets/webhook-token"
        )
        raise BadSetting(str(settings.file), "alerts.webhook_token_file", f"{wanted}; got {path!r}")
    return path


def _data_source(address: str, interval: str) -> dict[str, Any]:
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": DATA_SOURCE,
                "type": "prometheus",
                "access": "proxy",
                "url": f"http://{address}",
                "isDefault": True,
                "editable": False,
                "jsonData": {"httpMethod": "POST", "timeInterval": interval},
            }
        ],
    }


def _provider(dashboards: Path) -> dict[str, Any]:
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "gleaner",
                "folder": "Gleaner",
                "type": "file",
                "allowUiUpdates": False,
                "options": {"path": str(dashboards)},
            }
        ],
    }


class _Dumper(yaml.SafeDumper):
    """YAML as a person writes it: members in order, text of several lines as a block, lists a step in."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def _yaml(where: Where, value: object, *notes: str) -> str:
    made = f"Made by `gleaner config render --for {where}` of gleaner.toml: change that, and render again."
    head = "".join(f"# {note}\n" for note in (made, *notes))
    return head + yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
