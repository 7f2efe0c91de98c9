"""Secrets planted everywhere, and searched in every output: S7."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import traceback
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import httpx
import psutil
import pytest
from projects import SETTINGS, write_made_table
from pydantic import BaseModel
from started import all_end, free_ports, gleaner, responding, serving, tool, up, wait_for

from gleaner import redaction
from gleaner.client import Client
from gleaner.errors import GleanerError
from gleaner.serving.keys import add_key
from gleaner.settings.describe import show_settings
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.feature import Feature

# Every secret begins with this mark, so that a piece of one is found, too.
MARK = "zq7planted"


def plant(about: str) -> str:
    """Return a secret of its own for each place."""
    return f"{MARK}4{about}"


# Each setting that can hold a secret, with values that hold one. Some of them are refused.
HOLD: Mapping[str, tuple[str, ...]] = {
    "tracking.uri": (
        f"http://joe:{plant('uri')}@127.0.0.1:1",
        f"https://joe:{plant('uri')}%40x@127.0.0.1:1/prefix",
        f"http://joe:{plant('uri')}/x@127.0.0.1:1",
        f"http://joe:{plant('uri')} x@127.0.0.1:1",
        f"http://{plant('uri')}@127.0.0.1:1",
        f"http://127.0.0.1:{plant('uri')}",
        f"http://127.0.0.1:1/?token={plant('uri')}",
        f"postgresql://joe:{plant('uri')}@localhost/mlflow?password={plant('query')}",
        f"mysql://joe:a b{plant('uri')}@localhost/mlflow",
    ),
    "alerts.webhook": (
        f"https://hooks.example.org/services/{plant('hook')}",
        f"https://hooks.example.org/?token={plant('hook')}",
        f"https://joe:{plant('hook')}@hooks.example.org/",
        f"hooks.example.org/{plant('hook')}",
    ),
    "alerts.webhook_token_file": (plant("token"),),
    "serving.keys_file": (f"gleaner_0123abcd_{plant('key')}",),
    "serving.public_key": (f"-----BEGIN PUBLIC KEY-----{plant('public')}",),
    "serving.tls_key": (f"-----BEGIN PRIVATE KEY-----\n{plant('tls')}",),
    "training.signing_key": (f"-----BEGIN PRIVATE KEY-----\n{plant('signing')}",),
    "alerts.runbooks": (f"https://joe:{plant('link')}@docs.example.org/alerts.md",),
    "alerts.dashboards": (f"https://joe:{plant('link')}@grafana.example.org",),
}
# Each other setting with free text. Names, headers and folders appear in models, metrics, pages and logs.
PLAIN = {
    "model.name", "model.target", "model.target_sources", "model.unit", "model.date_sources",
    "model.date_formats", "training.group",
    "model.target_missing_values",
    "features.name", "features.unit", "features.sources", "features.values", "features.map", "features.description",
    "features.missing_values", "features.true_values", "features.false_values", "features.formats", "features.timezone",
    "features.decimal", "features.thousands", "features.strip",
    "table.encoding", "table.decimal", "table.thousands", "table.strip",
    "training.data", "training.every", "tracking.experiment", "paths.state",
    "serving.host", "serving.metrics_host", "serving.tls_certificate",
    "serving.allowed_hosts", "serving.trusted_proxies", "serving.slots",
}  # fmt: skip

# What a process of a real installation has in its environment.
VARIABLES = {
    "MLFLOW_TRACKING_USERNAME": "joe",
    "MLFLOW_TRACKING_PASSWORD": plant("password"),
    "GLEANER_API_KEY": f"gleaner_0123abcd_{plant('sent')}",
    "AWS_SECRET_ACCESS_KEY": plant("aws"),
    "HTTP_PROXY": f"http://joe:{plant('proxy')}@127.0.0.1:1",
    "NO_PROXY": "127.0.0.1,localhost",
}
WEBHOOK = HOLD["alerts.webhook"][0]


def spellings(secret: str) -> list[str]:
    """Return a secret plain, in base64, percent-encoding and hexadecimal."""
    encoded = secret.encode()
    shifted = [base64.b64encode(b"\0" * shift + encoded).decode() for shift in range(3)]
    whole = [text[{0: 0, 1: 2, 2: 3}[shift] : len(text.rstrip("=")) - 1] for shift, text in enumerate(shifted)]
    return [secret, *whole, "".join(f"%{byte:02X}" for byte in encoded), encoded.hex()]


_ANY = re.compile("|".join(re.escape(form) for form in spellings(MARK)).encode(), re.IGNORECASE)


class Outputs:
    """Everything that came out, searched for the mark."""

    def __init__(self) -> None:
        self.count = 0
        self.leaks: list[str] = []
        self.made: list[str] = []  # secrets without the mark, which Gleaner itself has made

    def add(self, name: str, content: str | bytes) -> None:
        data = content.encode("utf-8", "replace") if isinstance(content, str) else content
        self.count += 1
        for found in _ANY.finditer(data):
            near = data[max(0, found.start() - 80) : found.end() + 40]
            self.leaks.append(f"{name}: {near!r}")
        self.leaks += [f"{name}: a secret that was made" for secret in self.made if secret.encode() in data]

    def add_files(self, folder: Path, *, but: Collection[str]) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and str(path.relative_to(folder)) not in but:
                self.add(str(path), path.read_bytes())

    def add_arguments(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                self.add(f"arguments of {process.name()}", "\0".join(process.cmdline()))

    def run(self, *arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        done = gleaner(*arguments, folder=folder, **environment)
        self.add(f"gleaner {' '.join(map(str, arguments))}", done.stdout + done.stderr)
        return done


@pytest.fixture
def outputs(monkeypatch) -> Outputs:
    monkeypatch.setattr(redaction, "_known", set())
    monkeypatch.setattr(redaction, "_pattern", None)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    return Outputs()


def free_texts() -> Iterator[str]:
    """Yield each setting that takes texts or a path."""
    for section, info in Settings.model_fields.items():
        model = info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from (f"{section}.{name}" for name, field in model.model_fields.items() if takes(field.annotation))
    kinds = {field.name: str(field.type) for field in fields(Feature)}
    yield from (f"features.{name}" for name, kind in kinds.items() if "str" in kind or kind == "Map")


def takes(annotation: Any) -> bool:
    return annotation in {str, Path} or any(takes(part) for part in get_args(annotation) if not isinstance(part, str))


def test_every_setting_with_free_text_can_hold_a_secret_or_is_known_not_to():
    assert sorted([*HOLD, *PLAIN]) == sorted(free_texts())


@pytest.mark.parametrize(
    "write", [str, lambda s: base64.b64encode(b"joe:" + s.encode()).decode(), quote, lambda s: s[:12]]
)
def test_the_search_finds_a_secret_that_is_shown(write, outputs):
    """Show a secret on purpose, as a control."""
    outputs.add("control", f"error: the password {write(plant('shown'))} is wrong")
    outputs.add("control", "".join(f"%{ord(c):02x}" for c in plant("shown")))

    assert 2 == len(outputs.leaks)


def misplaced(key: str, value: str) -> Iterator[str]:
    """Yield TOML with a value in right, wrong and broken places."""
    section, _, name = key.partition(".")
    text = json.dumps(value)
    yield f"[{section}]\n{name} = {text}"
    yield f"[{section}]\n{name} = {text}\nunknown = 1"
    yield f"[{section}]\n{name} = [{text}]"
    yield f"[{section}]\n{name} = {{ address = {text} }}"
    yield f"[{section}]\n{name} = {text} x"
    yield f"[{section}]\n{name} = {value}"
    yield f"[{section}]\n{name} = {text[:-1]}\n"
    yield f"[{section}]\n{name} = {text}\n{name} = {text}"
    yield f"[{section}]\n{name}x = {text}"
    yield f"{section} = {text}"
    yield f"{section} = [{text}]"
    yield f"{section}.{name} = 1\n{section}.{name} = {text}"


def in_environment(key: str, value: str) -> Iterator[dict[str, str]]:
    section, _, name = key.upper().partition(".")
    yield {f"GLEANER_{section}__{name}": value}
    yield {f"GLEANER_{section}__{name}__X": value}
    yield {f"GLEANER_{section}__{name}X": value}
    yield {f"GLEANER_{section}": value}
    yield {f"GLEANER_{section}": json.dumps(value)}
    yield {f"GLEANER_{section}": json.dumps({name.lower(): [value]})}
    yield {f"GLEANER_{section}": f'{{"{name.lower()}": "{value}"'}
    yield {f"GLEANER_{section}X": value}
    if key == "serving.keys_file":
        yield {"GLEANER_API_KEYS_FILE": value}


def test_no_error_and_no_view_of_the_settings_repeats_a_secret(tmp_path, outputs, monkeypatch, figure):
    """Search without `redact`, so that each message is right by itself."""
    refused = 0

    def load(name: str, text: str, flags: Mapping[str, Any] | None = None) -> None:
        nonlocal refused
        (tmp_path / "gleaner.toml").write_text(text if text.startswith("[[") else f"{text}\n{SETTINGS}")
        try:
            settings = load_settings(tmp_path / "gleaner.toml", flags)
        except GleanerError as e:
            refused += 1
            outputs.add(name, "".join(traceback.format_exception(e)))
        else:
            shown = (show_settings(settings), settings.model_dump_json(), str(settings), repr(settings))
            outputs.add(
                name, "\n".join((*shown, repr(settings.tracking), f"{settings.alerts}", str(settings.model_dump())))
            )

    plants = 0
    for key, values in HOLD.items():
        section, _, name = key.partition(".")
        for value in values:
            plants += 1
            for text in misplaced(key, value):
                load(f"{key} by file: {text}", text)
            for wrong in (value, [value], {"a": value}):
                load(f"{key} by flag", "", {section: {name: wrong}})
            for variables in in_environment(key, value):
                with monkeypatch.context() as patch:
                    for variable, planted in variables.items():
                        patch.setenv(variable, planted)
                    load(f"{key} by {variables}", "")

    assert not outputs.leaks, "\n".join(sorted(outputs.leaks)[:40])
    assert refused > outputs.count / 2
    views = outputs.count - refused
    figure(
        "S7", f"{plants} values in {len(HOLD)} settings, by file, flag and variable: {refused} errors, {views} views"
    )


@pytest.mark.parametrize("url", [f"http://joe:{plant('url')}@127.0.0.1:1", f"http://joe:{plant('url')}/x@127.0.0.1:1"])
def test_the_client_shows_no_password_of_its_address(url, outputs):
    with pytest.raises(GleanerError) as caught, Client(url, retry_seconds=0) as client:
        client.columns()
    outputs.add("client", "".join(traceback.format_exception(caught.value)))

    assert not outputs.leaks, "\n".join(sorted(outputs.leaks)[:40])


def prepare(folder: Path, text: str = "") -> Path:
    folder.mkdir()
    (folder / "gleaner.toml").write_text(f"{SETTINGS}\n{text}")
    write_made_table(folder / "made.csv")
    return folder


def commands(tmp_path: Path, port: int) -> list[tuple[str, tuple[object, ...], dict[str, str]]]:
    """Return commands with what is planted for each: (settings, arguments, variables).

    port: of a server without TLS, which redirects.
    """
    hooked = f'[alerts]\nwebhook = "{WEBHOOK}"\nwebhook_token_file = "{tmp_path}/token.txt"\n'
    server = f'[tracking]\nuri = "http://joe:{plant("uri")}@127.0.0.1:1"\ntimeout_seconds = 1\n'
    secure = server.replace("http:", "https:")
    keys = f'[serving]\nkeys_file = "{tmp_path}/keys.json"\n'
    database = f'[tracking]\nuri = "postgresql://joe:{plant("uri")}@localhost:{plant("port")}/mlflow"\n'
    token = {"MLFLOW_TRACKING_PASSWORD": "", "MLFLOW_TRACKING_TOKEN": f"{plant('header')}\nX: y"}
    train = ("train", "--metrics-port", 0)
    return [
        (hooked + server, ("config", "show"), {}),
        (hooked + server, ("config", "show", "--json"), {}),
        (hooked, ("config", "render", "--for", "local", "--out", "local"), {}),
        (hooked, ("config", "render", "--for", "compose", "--out", "compose"), {}),
        (hooked + server, ("doctor",), {}),
        (secure, ("doctor", "--json"), {}),
        (server, ("models", "promote", 1), {}),
        (server.replace("127.0.0.1:1", "nowhere.invalid:1"), ("models", "promote", 1), {}),
        (server.replace(':1"', f':{port}"'), ("models", "promote", 1), {}),
        (secure.replace(':1"', f':{port}"'), ("models", "promote", 1), {}),
        (keys, ("keys", "list"), {}),
        (keys, ("serve", "--port", 0, "--metrics-port", 0), {}),
        ("", ("check", "--data", "{}", "--port", 1), {"GLEANER_API_KEY": f"{plant('sent')}\n"}),
        ("", ("check", "--data", "{}", "--port", 1), {}),
        (server, ("score", "made.csv", "--out", "scored.csv"), {}),
        (server, train, {}),
        (server.replace(f"joe:{plant('uri')}@", ""), train, token),
        (database, train, {}),
    ]


@pytest.fixture
def state(tmp_path: Path, trained: Path) -> Path:
    """Copy the trained state, since commands and the service write there."""
    return Path(shutil.copytree(trained / ".gleaner", tmp_path / "state"))


def test_no_command_shows_a_secret(tmp_path, state, outputs, figure):
    (tmp_path / "token.txt").write_text(plant("token"))
    (tmp_path / "keys.json").write_text(
        f'{{"format": 1, "keys": [{{"id": "{plant("id")}", "sha256": "{plant("hash")}"}}]}}'
    )

    def run(case: tuple[int, tuple[str, tuple[object, ...], dict[str, str]]]) -> str:
        i, (text, arguments, variables) = case
        folder = prepare(tmp_path / f"{i}", text)
        environment = VARIABLES | {"GLEANER_PATHS__STATE": str(state)} | variables
        done = outputs.run(*arguments, folder=folder, **environment)
        rendered = {f"{where}/alertmanager/alertmanager.yml" for where in ("local", "compose")}
        outputs.add_files(folder, but={"gleaner.toml", *rendered})
        return done.stdout + done.stderr

    with responding(lambda *_: (302, b"")) as port, ThreadPoolExecutor(3) as pool:
        given = commands(tmp_path, port)
        texts = list(pool.map(run, enumerate(given)))

    assert not outputs.leaks, "\n".join(sorted(outputs.leaks)[:40])
    assert "Traceback" in texts[-1]  # a library's own error, whose text has a piece of the address
    assert "MLFLOW_TRACKING_TOKEN" in texts[-2]
    for fault in ("a redirect", "SSL", "Connection refused"):
        assert any(fault in text for text in texts), fault
    (local,) = tmp_path.glob("*/local/alertmanager/alertmanager.yml")
    assert WEBHOOK in local.read_text()
    assert 0o600 == local.stat().st_mode & 0o777
    figure("S7", f"{len(given)} commands, {outputs.count} outputs searched")


# A long message of MLflow, cut in the middle of its database's password.
CUT = (
    "x" * 150
    + f" postgresql://joe:{plant('database')}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@localhost/mlflow is down"
)
RESPONSES = [
    (500, json.dumps({"error_code": "INTERNAL_ERROR", "message": CUT})),
    (302, f"http://joe:{plant('location')}@elsewhere.example.org"),
    (200, f"<html>{'x' * 30} postgresql://joe:{plant('database')}{'a' * 40}@localhost"),
    (401, f"postgresql://joe:{plant('database')}@localhost is down"),
    (200, json.dumps({"model_version": {"name": f"//joe:{plant('name')}@x", "version": "1", "source": ""}})),
]


def test_no_log_no_metric_and_no_response_of_the_service_shows_a_secret(tmp_path, state, outputs, figure):
    keys = tmp_path / "keys.json"
    outputs.made.append(key := add_key(keys, "planner", ["predict"])[1])
    asked = 0

    def reply(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        status, text = RESPONSES[asked // 2 % len(RESPONSES)]
        return status, text.encode()

    with responding(reply) as port:
        text = f'[alerts]\nwebhook = "{WEBHOOK}"\n[serving]\nkeys_file = "{keys}"\nlog = "json"\n'
        text += f'[tracking]\nuri = "http://joe:{plant("uri")}@127.0.0.1:{port}"\npoll_seconds = 0.05\n'
        folder = prepare(tmp_path / "service", text)
        own_state = {"GLEANER_PATHS__STATE": str(state)}
        with serving(folder, **VARIABLES, **own_state) as service, httpx.Client(base_url=service.url) as client:
            outputs.add_arguments([psutil.Process(service.process.pid)])
            for sent in (key, VARIABLES["GLEANER_API_KEY"]):
                for path in ("/health_status", "/metrics", "/openapi.json", "/nothing", "/v1/predict"):
                    outputs.add(path, client.post(path, headers={"X-Api-Key": sent}).text)
                    outputs.add(path, client.get(path, headers={"X-Api-Key": key}).text)
            seen: set[str] = set()
            while wait_for(lambda: len(seen) >= len(RESPONSES), 0.01) is False and asked < 400:
                health = client.get("/health_status", headers={"X-Api-Key": key})
                outputs.add("/health_status", health.text)
                seen.add(re.sub("[0-9.]+", "", str(health.json()["registry"]["detail"])))
            outputs.add("metrics", httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text)
            service.stop()
            assert service.process.stdout
            outputs.add("standard output", service.process.stdout.read())
            outputs.add("log", service.log.read_text())
        outputs.run("keys", "list", folder=folder, **VARIABLES, **own_state)
        outputs.run("keys", "list", "--json", folder=folder, **VARIABLES, **own_state)

    assert not outputs.leaks, "\n".join(sorted(outputs.leaks)[:40])
    assert len(seen) >= len(RESPONSES)
    figure("S7", f"a service beside an MLflow server whose errors hold passwords: {outputs.count} outputs searched")


def test_no_process_no_file_and_no_run_of_the_stack_shows_a_secret(tmp_path, outputs, figure):
    tool("prometheus")
    tool("prometheus-alertmanager")
    (tmp_path / "token.txt").write_text(plant("token"))
    text = f'[alerts]\nwebhook = "http://127.0.0.1:1/services/{plant("hook")}"\n'
    text += f'webhook_token_file = "{tmp_path}/token.txt"\nscrape_seconds = 1\n'
    folder = prepare(tmp_path / "stack", text)
    quick = {"GLEANER_TRAINING__CANDIDATES": '["linear"]', "GLEANER_TRAINING__FOLDS": "2"}
    once = {"GLEANER_TRAINING__CHAMPION": "linear", "GLEANER_TRAINING__CHALLENGER": "none"}
    with up(folder, **VARIABLES, **quick, **once, **free_ports()) as running:
        password = folder / ".gleaner/run/monitoring/alertmanager/password"
        log = folder / ".gleaner/run/logs/alertmanager.log"
        assert wait_for(lambda: "ready in" in running.text or running.process.poll() is not None, 300)
        assert running.process.poll() is None, running.text
        outputs.made.append(password.read_text())
        entries = running.status()
        alerts = f"{entries['alertmanager']['address']}/api/v2/alerts"
        labels = {"alertname": "Planted", "severity": "page"}
        with httpx.Client(auth=("gleaner", password.read_text()), trust_env=False) as client:
            assert 200 == client.post(alerts, json=[{"labels": labels}]).status_code
        assert wait_for(lambda: log.exists() and "otify" in log.read_text(), 60)  # the webhook cannot be reached
        assert wait_for(lambda: "training finished" in running.text, 120), running.text
        outputs.add_arguments([psutil.Process(running.process.pid), *running.everyone()])
        for arguments in (["status"], ["status", "--json"], ["doctor"], ["config", "show"], ["models", "list"]):
            outputs.run(*arguments, folder=folder, **running.environment)
        for name, port in {name: port for entry in entries.values() for name, port in entry["ports"].items()}.items():
            outputs.add(name, httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
        outputs.add("prometheus", httpx.get(f"{entries['prometheus']['address']}/api/v1/status/config").text)
        everyone = running.everyone()
        running.process.send_signal(signal.SIGTERM)
        assert all_end(everyone)
    outputs.add("terminal", running.text)
    # Alertmanager needs its webhook's address and its own password, each in a file for this user alone.
    needed = (folder / ".gleaner/run/monitoring/alertmanager/alertmanager.yml", password)
    outputs.add_files(folder, but={"gleaner.toml", *(str(path.relative_to(folder)) for path in needed)})

    assert not outputs.leaks, "\n".join(sorted(outputs.leaks)[:40])
    assert {0o600} == {path.stat().st_mode & 0o777 for path in needed}
    assert list(folder.glob(".gleaner/mlartifacts/**/settings.json"))
    figure("S7", f"`gleaner up` with a training and an alert that cannot be sent: {outputs.count} outputs searched")
