"""The configuration of Prometheus, Alertmanager and Grafana, rendered from the settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from gleaner.errors import BadSetting
from gleaner.machine.files import replace_file
from gleaner.machine.ports import reachable
from gleaner.settings.file import PASSWORD, USER
from gleaner.settings.sections import Settings
from gleaner.settings.services import ALERTMANAGER, PROMETHEUS, SERVICES, scraped
from gleaner.watching.alerts import Group, hurried, make_alerts, make_records, span
from gleaner.watching.cases import make_cases, make_times
from gleaner.watching.dashboards import DATA_SOURCE, make_dashboards
from gleaner.watching.series import write_pieces

Where = Literal["compose", "local"]

# The mount point of the dashboards in Grafana's container.
_DASHBOARDS = Path("/etc/grafana/dashboards")

# The file with the webhook's address.
RECEIVERS = "alertmanager/alertmanager.yml"

# Folders in which every file is rendered.
_FOLDERS = ("prometheus/rules", "prometheus/tests", "grafana/dashboards")


def render(
    settings: Settings,
    where: Where,
    folder: Path,
    hurry: float = 1.0,
    services: Collection[str] | None = None,
    *,
    guarded: bool = False,
) -> dict[str, str]:
    """Render every file: {path: text}; equal settings give equal bytes.

    where: `compose` (each service is a host with its own ports) or `local` (this machine and the ports of `[ports]`).
    folder: the folder of the tree; its absolute path goes into Grafana's configuration for `local`.
    hurry: divides every `for:`, window and interval, so that an alert fires within seconds.
    services: the services that Prometheus scrapes; None for all.
    guarded: whether Alertmanager asks for the password of `watching.password`.
    Raises BadSetting for a port of 0, which has no fixed address, and for a token file that Alertmanager's container
    cannot see.
    """
    addresses = _addresses(settings, where)
    dashboards = _DASHBOARDS if where == "compose" else folder.absolute() / "grafana/dashboards"
    scrape = span(hurried(settings.alerts, hurry).scrape_seconds)
    source = _data_source(addresses[PROMETHEUS.name], scrape)
    files = {
        "prometheus/prometheus.yml": _yaml(where, _prometheus(addresses, services, scrape, guarded=guarded)),
        RECEIVERS: _yaml(where, _alertmanager(settings, where, hurry), *_NOTES),
        "grafana/provisioning/datasources/prometheus.yml": _yaml(where, source),
        "grafana/provisioning/dashboards/gleaner.yml": _yaml(where, _provider(dashboards)),
    }
    for group in get_args(Group):
        files[f"prometheus/rules/{group}.yml"] = _yaml(where, _rules(settings, group, hurry))
        files[f"prometheus/tests/{group}.yml"] = _yaml(where, _tests(settings, group, hurry))
    for name, text in make_dashboards(settings).items():
        files[f"grafana/dashboards/{name}.json"] = text
    return dict(sorted(files.items()))


def write_tree(folder: Path, files: Mapping[str, str], private: Collection[str] = ()) -> list[str]:
    """Write a rendered tree, each file atomically; return paths of foreign files.

    private: the files for this user alone; other users read the others.
    """
    for name, text in files.items():
        mode = 0o600 if name in private else 0o644
        replace_file(folder / name, text.encode(), mode=mode, durable=False)
    return [
        str(path.relative_to(folder))
        for part in _FOLDERS
        for path in sorted((folder / part).iterdir())
        if str(path.relative_to(folder)) not in files
    ]


def _addresses(settings: Settings, where: Where) -> dict[str, str]:
    """Return the address of each service's metrics: {service: host:port}."""
    if where == "compose":
        # docker-compose.yml pins these ports, whatever `[ports]` says.
        return {service.name: f"{service.name}:{service.inside}" for service in SERVICES if service.inside}
    return {
        service.name: f"{reachable(service.host(settings, service.ports[-1]))}:{_port(settings, service.ports[-1])}"
        for service in (*scraped(settings), ALERTMANAGER)
    }


def _port(settings: Settings, name: str) -> int:
    port: int = getattr(settings.ports, name)
    if port == 0:
        reason = "wanted a fixed port for Prometheus; got 0, which means any free port"
        raise BadSetting(str(settings.file), f"ports.{name}", reason)
    return port


_NOTES = (
    "alerts.webhook is the address that gets every alert as JSON. This file shows the address, so a token for it goes",
    "into a file of its own, alerts.webhook_token_file. Without a webhook, alerts appear only on the pages of",
    "Alertmanager and Grafana.",
)


def _prometheus(
    addresses: Mapping[str, str], services: Collection[str] | None, interval: str, *, guarded: bool
) -> dict[str, Any]:
    password = {"basic_auth": {"username": USER, "password_file": f"../{ALERTMANAGER.name}/{PASSWORD}"}}
    alertmanager = {**(password if guarded else {}), "static_configs": [{"targets": [addresses[ALERTMANAGER.name]]}]}
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules/*.yml"],
        "alerting": {"alertmanagers": [alertmanager]},
        "scrape_configs": [
            {
                "job_name": service.job,
                "static_configs": [{"targets": [addresses[service.name]], "labels": {"service": service.name}}],
            }
            for service in SERVICES
            if service.job and service.name in addresses and (services is None or service.name in services)
        ],
    }


def _rules(settings: Settings, group: Group, hurry: float) -> dict[str, Any]:
    records = [{"record": n, "expr": e} for n, e in make_records(hurry).items()] if group == "budget" else []
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            **({"for": span(alert.for_seconds)} if alert.for_seconds else {}),
            "labels": alert.labels,
            "annotations": alert.annotations(settings),
        }
        for alert in make_alerts(settings, hurry)
        if alert.group == group
    ]
    return {"groups": [{"name": group, "rules": [*records, *rules]}]}


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
    """Return the path of the webhook's token as Alertmanager sees it."""
    path = settings.alerts.webhook_token_file
    if where == "local":
        # Alertmanager would take a relative path from its own file's folder.
        return str(settings.file.parent.absolute() / path)
    if not path.startswith("/"):
        wanted = "a path in Alertmanager's container, such as /secrets/webhook-token for deploy/secrets/webhook-token"
        raise BadSetting(str(settings.file), "alerts.webhook_token_file", f"wanted {wanted}")
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
    """YAML as people write it: keys in order, block text, indented lists."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def _yaml(where: Where, value: object, *notes: str) -> str:
    made = f"Made by `gleaner config render --for {where}` from gleaner.toml. Edit gleaner.toml and render again."
    head = "".join(f"# {note}\n" for note in (made, *notes))
    return head + yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
