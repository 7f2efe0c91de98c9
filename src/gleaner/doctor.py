"""What is wrong on this machine, and the fix."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from gleaner import __version__
from gleaner.errors import GleanerError, PortTaken, Refused, environment_name
from gleaner.ports import check_port, find_holder
from gleaner.predictor import ENGINE
from gleaner.probes import Finding, NotIt, probe_mlflow, probe_prometheus
from gleaner.registry import Server, Trouble
from gleaner.running import Entry, Run, read_run, settings_of
from gleaner.settings import Settings, read_authorization
from gleaner.stack import LOOPBACK, MLFLOW_HOSTS, OURS, SYSTEMD, Stack
from gleaner.store import Store

_SERVING = ("granian", "onnxruntime", "numpy", "flask", "msgspec")
_TRAINING = ("mlflow", "scikit-learn", "onnx", "matplotlib")
_LEAST_FREE_BYTES = 1 << 30
# macOS listens on these itself, for AirPlay.
_AIRPLAY_PORTS = (5000, 7000)
_SWITCH_AIRPLAY_OFF = "switch macOS's AirPlay Receiver off: System Settings, General, AirDrop & Handoff"
_AIRPLAY = re.compile(r"ControlCe(nter)?\b|AirPlay")
_CONTAINER = re.compile(r"docker-proxy|com\.docker|conmon|rootlessport")
# What packages start as services, by the setting of its port; each under its own user, so that others may not see it.
_SERVICES = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager", "grafana": "grafana-server"}
_PACKAGED = re.compile(r"\((/usr/s?bin/|/usr/share/grafana/bin/)?(prometheus|grafana)")


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything that can be said about this machine and these settings, one finding at a time."""
    yield Finding(
        "OK", "versions", f"gleaner {__version__}, Python {platform.python_version()}, {_installed(_SERVING)}"
    )
    yield _extra()
    yield Finding("OK", "settings", str(settings.file.absolute()))
    yield _programs(settings)
    try:
        run = read_run(settings.state.absolute() / "run")
    except Refused as e:
        run = None
        yield Finding("FAIL", "up", str(e), "move it away; what it has started is ended by hand")
    else:
        yield from _run(run)
    moved = {name: port for entry in run.entries for name, port in entry.ports.items()} if run else {}
    for name in type(settings.ports).model_fields:
        yield _port(settings, name, run, moved)
    yield from _compose_port()
    yield from _mlflow(settings, run)
    yield from _prometheus(settings, run)
    if settings.alerts.webhook:
        yield _runbooks(settings)
    if settings.tracking.is_server:
        yield _registry(settings)
    yield from _store(settings)
    yield _sqlite(settings)
    yield _disk(settings)


def _programs(settings: Settings) -> Finding:
    stack = Stack(settings)
    missing = stack.explain_missing()
    if missing:
        said, _, fix = missing.partition("; to have them: ")
        return Finding("WARN", "programs", said, fix)
    return Finding("OK", "programs", f"{', '.join(stack.names)} can be run")


def _run(run: Run | None) -> Iterator[Finding]:
    """How what `gleaner up` runs here is."""
    if run is None:
        yield Finding("OK", "up", "not running here")
        return
    if not run.alive:
        names = ", ".join(entry.name for entry in run.entries)
        yield Finding("FAIL", "up", f"pid {run.pid} was killed and has left {names}", "gleaner down")
        return
    for entry in run.entries:
        if entry.state == "given up":
            fix = f"read the end of {entry.log} and mend that; then gleaner down, and gleaner up"
            yield Finding("FAIL", f"up {entry.name}", f"given up after {entry.restarts} restarts", fix)
        elif entry.health != "ok":
            detail = f"{entry.state}, {entry.health or 'not asked yet'}"
            yield Finding("WARN", f"up {entry.name}", detail, f"wait a minute; then read the end of {entry.log}")
    well = [entry.name for entry in run.entries if entry.health == "ok"]
    yield Finding("OK", "up", f"pid {run.pid} keeps {', '.join(well) or 'nothing yet'}")


def _port(settings: Settings, name: str, run: Run | None, moved: Mapping[str, int]) -> Finding:
    port, setting = getattr(settings.ports, name), f"ports.{name}"
    what, named = f"port {port}", f"{setting} ({environment_name(setting)})"
    twins = [other for other in type(settings.ports).model_fields if getattr(settings.ports, other) == port and port]
    if twins[1:] and name != twins[0]:
        return Finding("FAIL", what, f"{setting}: ports.{twins[0]} is {port}, too", f"set {named} to a free port")
    try:
        check_port(settings.serving.host if name in OURS else LOOPBACK, port, setting)
    except PortTaken as e:
        theirs = settings_of(_pid(e.holder))
        if _is_of(run, e.holder) or (theirs and theirs.resolve() == settings.file.resolve()):
            return Finding("OK", what, f"{setting}: held by Gleaner, {e.holder}")
        if setting in moved and moved[setting] != port:
            detail = f"{setting}: taken by {e.holder}; what runs now has {moved[setting]} instead"
            return Finding("WARN", what, detail, f"set {named} to {moved[setting]}")
        if theirs:
            fix = f"gleaner down in {theirs.parent}, or Ctrl-C where it was started by hand"
            fix += f"; or set {named} to a free port"
            return Finding("FAIL", what, f"{setting}: taken by the Gleaner of {theirs.parent}, {e.holder}", fix)
        fix = f"stop {e.holder}, or set {named} to a free port"
        if name in _SERVICES and SYSTEMD.is_dir() and (_PACKAGED.search(e.holder) or not _pid(e.holder)):
            fix = f"systemctl disable --now {_SERVICES[name]}, where it is the service of a package; else {fix}"
        if _CONTAINER.search(e.holder):
            fix = "see whose it is with `docker ps`; `docker-compose down` ends Gleaner's own"
            fix += f"; or set {named} to a free port"
        if _AIRPLAY.search(e.holder) or (sys.platform == "darwin" and port in _AIRPLAY_PORTS):
            fix = f"{_SWITCH_AIRPLAY_OFF}; or set {named} to a free port"
        return Finding("FAIL", what, f"{setting}: taken by {e.holder}", fix)
    return Finding("OK", what, f"{setting}: free")


def _compose_port(port: int = 5000) -> Iterator[Finding]:
    """Whether macOS holds the port on which compose publishes the API; any other holder may be that very API."""
    try:
        check_port(LOOPBACK, port, "")
    except PortTaken as e:
        if _AIRPLAY.search(e.holder) or sys.platform == "darwin":
            fix = f"{_SWITCH_AIRPLAY_OFF}; or for compose set ML_APP_PORT in .env"
            yield Finding("WARN", f"port {port}", f"where compose publishes the API: taken by {e.holder}", fix)


def _pid(holder: str) -> int:
    """The process id of the holder of a port; 0, which is nobody's, where it cannot be seen."""
    found = re.match(r"pid (\d+) ", holder)
    return int(found[1]) if found else 0


def _is_of(run: Run | None, holder: str) -> bool:
    """Whether the holder of a port is a process of a run, or one that such a process has started."""
    pid = _pid(holder)
    try:
        return bool(run and pid and os.getsid(pid) in {entry.pid for entry in run.entries})
    except ProcessLookupError:
        return False


def _answering(run: Run | None, name: str) -> Entry | None:
    """A process of this folder's run that holds its port. A stranger there is not asked for anything."""
    for entry in run.entries if run and run.alive else ():
        holders = [find_holder(port) for port in entry.ports.values()] if entry.name == name and entry.pid else []
        if holders and all(holder and _is_of(run, holder) for holder in holders):
            return entry
    return None


def _mlflow(settings: Settings, run: Run | None) -> Iterator[Finding]:
    """The server that was configured, or the one that runs here; `registry` says of the first whether it is there."""
    if settings.tracking.is_server:
        url = settings.tracking_uri.rstrip("/")
        with contextlib.suppress(NotIt):
            yield from probe_mlflow(url, [url.partition("://")[2].partition("/")[0]], read_authorization(settings))
    elif not settings.tracking.uri:
        entry = _answering(run, "mlflow")
        if entry is None:
            yield Finding("OK", "mlflow", "not running here")
            return
        hosts = [pattern.replace("*", str(entry.ports["ports.mlflow"])) for pattern in MLFLOW_HOSTS]
        try:
            yield from probe_mlflow(entry.address, hosts)
        except NotIt as e:
            yield Finding("WARN", "mlflow", str(e), f"wait a minute; then read the end of {entry.log}")


def _prometheus(settings: Settings, run: Run | None) -> Iterator[Finding]:
    entry = _answering(run, "prometheus")
    if entry is None:
        yield Finding("OK", "prometheus", "not running here")
        return
    services = ["ml-app", "train-metrics", "prometheus", *([] if settings.tracking.uri else ["mlflow"])]
    try:
        dashboards = settings.state / "run/monitoring/grafana/dashboards"
        yield from probe_prometheus(entry.address, settings, services, dashboards)
    except NotIt as e:
        yield Finding("WARN", "prometheus", str(e), f"wait a minute; then read the end of {entry.log}")


def _runbooks(settings: Settings) -> Finding:
    """Whether whoever is told of an alert can open what it says to do."""
    setting, runbooks = "alerts.runbooks", settings.alerts.runbooks
    if runbooks.startswith(("http://", "https://")):
        return Finding("OK", "alerts", f"a message has its runbook at {runbooks}")
    fix = f"set {setting} ({environment_name(setting)}) to where docs/alerts.md can be read, such as "
    fix += "https://example.org/gleaner/docs/alerts.md"
    return Finding("WARN", "alerts", f"{setting}: {runbooks!r} in a message is no address that one can open", fix)


def _registry(settings: Settings) -> Finding:
    server, what = Server(settings), "registry"
    try:
        found = {alias: server.version(alias) for alias in settings.serving.slots.values()}
    except Trouble as e:
        detail = f"{e.message}; serving goes on from the store"
        return Finding("WARN", what, detail, e.fix or "look at the server's log")
    said = (f"{alias} is version {at.number}" if at else f"no version is {alias}" for alias, at in found.items())
    return Finding("OK", what, f"{server.name}: {', '.join(said)}")


def _store(settings: Settings) -> Iterator[Finding]:
    store, what = Store(settings.store), "store"
    try:
        versions = store.versions()
    except OSError as e:
        fix = f"move it away, or set paths.state ({environment_name('paths.state')})"
        yield Finding("FAIL", what, f"{store.root} cannot be read: {e.strerror}", fix)
        return
    if not versions:
        yield Finding("WARN", what, f"{store.root} holds no version", "gleaner train DATA.csv")
        return
    try:
        aliases = store.aliases()
    except GleanerError as e:
        yield Finding("FAIL", what, str(e), f"move {store.root / 'aliases.json'} away, then `gleaner models promote`")
        return
    yield Finding("OK", what, f"{store.root}: {len(versions)} versions, the latest {versions[-1]}")
    for slot, alias in settings.serving.slots.items():
        pointed = aliases.get(alias)
        if pointed is None:
            yield Finding(
                "WARN", f"slot {slot}", f"no version is {alias}", f"gleaner models promote VERSION --alias {alias}"
            )
            continue
        try:
            artifact = store.read(pointed)
        except GleanerError as e:
            fix = f"gleaner models promote VERSION --alias {alias}, or train again"
            yield Finding("FAIL", f"slot {slot}", str(e), fix)
            continue
        tested = "passed" if store.has_passed(pointed, artifact.digest, ENGINE) else "not yet made"
        about = f"{alias} is version {pointed}, {artifact.manifest.candidate}; self-test {tested} under {ENGINE}"
        yield Finding("OK", f"slot {slot}", about)
        if artifact.manifest.schema.names != settings.schema_.names:
            columns = ", ".join(artifact.manifest.schema.names)
            fix = "train again, or keep the columns that the model was trained on"
            yield Finding("WARN", f"slot {slot}", f"version {pointed} takes {columns}, not gleaner.toml's columns", fix)


def _extra() -> Finding:
    missing = [name for name in _TRAINING if _version(name) is None]
    if missing:
        fix = "pip install 'gleaner[train]'"
        return Finding("WARN", "training", f"{', '.join(missing)} not installed; serving does without", fix)
    return Finding("OK", "training", _installed(_TRAINING))


def _sqlite(settings: Settings) -> Finding:
    """SQLite before 3.51.3 can corrupt a database in WAL mode that several connections write to."""
    what, number = "SQLite", sqlite3.sqlite_version
    parts = tuple(map(int, number.split(".")))
    if parts >= (3, 51, 3) or any(parts[:2] == branch[:2] and parts >= branch for branch in ((3, 50, 7), (3, 44, 6))):
        return Finding("OK", what, number)
    database = settings.state / "mlflow.db"
    try:
        with database.open("rb") as file:
            header = file.read(20)
    except OSError:
        header = b""
    if header[18:20] == b"\x02\x02":
        fix = f"with nothing running: sqlite3 {database} 'PRAGMA journal_mode=DELETE'; or a Python with SQLite 3.51.3"
        return Finding("WARN", what, f"{number} can corrupt {database}, which is in WAL mode", fix)
    return Finding("OK", what, f"{number}; what it can corrupt, a database in WAL mode, is not here")


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.state, *settings.state.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free under {folder}"
    if free < _LEAST_FREE_BYTES:
        return Finding("WARN", "disk", detail, f"make room, or set paths.state ({environment_name('paths.state')})")
    return Finding("OK", "disk", detail)


def _installed(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {_version(name) or 'missing'}" for name in names)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
