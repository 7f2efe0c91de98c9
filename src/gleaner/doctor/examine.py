"""The doctor: faults of a machine and its settings, with fixes."""

from __future__ import annotations

import contextlib
import platform
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from gleaner import __version__
from gleaner.doctor.finding import Finding, NotIt
from gleaner.doctor.locations import examine_locations
from gleaner.doctor.owners import running_entry
from gleaner.doctor.ports import examine_compose_port, examine_port
from gleaner.doctor.probes import probe_mlflow, probe_prometheus
from gleaner.errors import BadArtifact, GleanerError, MissingExtra, Refused, environment_name, explain_install
from gleaner.model.predictor import ENGINE
from gleaner.model.store import open_store
from gleaner.running.commands import MLFLOW_HOSTS
from gleaner.running.run_file import Entry, RunFile, read_run_file
from gleaner.running.stack import Stack
from gleaner.serving.registry import MlflowServer, Trouble
from gleaner.settings.environment import read_authorization
from gleaner.settings.sections import Settings
from gleaner.settings.services import MLFLOW, PROMETHEUS, scraped

_SERVING = ("httptools", "onnxruntime", "numpy", "flask", "msgspec")
_TRAINING = ("mlflow", "scikit-learn", "onnx", "matplotlib")
_LEAST_FREE_BYTES = 1 << 30


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield the findings on this machine and these settings."""
    versions = f"gleaner {__version__}, Python {platform.python_version()}, {_installed(_SERVING)}"
    yield Finding("OK", "versions", versions)
    yield _extra()
    yield Finding("OK", "settings", str(settings.file.absolute()))
    yield _programs(settings)
    try:
        run = read_run_file(settings.stack_folder)
    except Refused as e:
        run = None
        yield Finding("FAIL", "up", str(e), "move it away, then stop by hand the processes that it names")
    else:
        yield from _run(run)
    moved = {name: port for entry in run.entries for name, port in entry.ports.items()} if run else {}
    for name in type(settings.ports).model_fields:
        yield examine_port(settings, name, run, moved)
    yield from examine_compose_port()
    yield from _mlflow(settings, run)
    yield from _prometheus(settings, run)
    if settings.alerts.webhook:
        yield _runbooks(settings)
    if settings.tracking.is_server:
        yield _registry(settings)
    yield from _store(settings)
    yield from examine_locations(settings)
    yield _sqlite(settings)
    yield _disk(settings)


def _programs(settings: Settings) -> Finding:
    stack = Stack(settings)
    if stack.missing:
        detail = f"{', '.join(stack.missing)} not installed; predictions work without"
        return Finding("WARN", "programs", detail, stack.install_hint())
    return Finding("OK", "programs", f"installed: {', '.join(stack.names)}")


def _run(run: RunFile | None) -> Iterator[Finding]:
    """Yield the state of each service of this folder's stack."""
    if run is None:
        yield Finding("OK", "up", "not running here")
        return
    if not run.alive:
        names = ", ".join(entry.name for entry in run.entries)
        yield Finding("FAIL", "up", f"pid {run.pid} was killed and left {names} running", "gleaner down")
        return
    for entry in run.entries:
        if entry.state == "given up":
            fix = f"read the end of {entry.log} and fix the cause; then gleaner down, and gleaner up"
            yield Finding("FAIL", f"up {entry.name}", f"given up after {entry.restarts} restarts", fix)
        elif entry.health != "ok":
            detail = f"{entry.state}, {entry.health or 'not checked yet'}"
            yield Finding("WARN", f"up {entry.name}", detail, f"wait a minute, then read the end of {entry.log}")
    well = [entry.name for entry in run.entries if entry.health == "ok"]
    yield Finding("OK", "up", f"pid {run.pid} keeps {', '.join(well) or 'nothing yet'}")


def _mlflow(settings: Settings, run: RunFile | None) -> Iterator[Finding]:
    """Check the server in `tracking.uri`, or the stack's own.

    A configured server that does not respond is reported by `_registry`.
    """
    if settings.tracking.is_server:
        url = settings.tracking_uri.rstrip("/")
        with contextlib.suppress(NotIt):
            yield from probe_mlflow(url, [url.partition("://")[2].partition("/")[0]], read_authorization(settings))
    elif not settings.tracking.uri:

        def probe(entry: Entry) -> Iterator[Finding]:
            hosts = [pattern.replace("*", str(entry.ports["ports.mlflow"])) for pattern in MLFLOW_HOSTS]
            return probe_mlflow(entry.address, hosts)

        yield from _probe(run, MLFLOW.name, probe)


def _prometheus(settings: Settings, run: RunFile | None) -> Iterator[Finding]:
    services = [service.name for service in scraped(settings)]
    dashboards = settings.stack_folder / "monitoring/grafana/dashboards"
    return _probe(run, PROMETHEUS.name, lambda e: probe_prometheus(e.address, settings, services, dashboards))


def _probe(run: RunFile | None, name: str, probe: Callable[[Entry], Iterator[Finding]]) -> Iterator[Finding]:
    """Probe a service of this folder's stack, if it runs."""
    entry = running_entry(run, name)
    if entry is None:
        yield Finding("OK", name, "not running here")
        return
    try:
        yield from probe(entry)
    except NotIt as e:
        yield Finding("WARN", name, str(e), f"wait a minute, then read the end of {entry.log}")


def _runbooks(settings: Settings) -> Finding:
    """Check that people can open the runbook link in an alert."""
    setting, runbooks = "alerts.runbooks", settings.alerts.runbooks
    if runbooks.startswith(("http://", "https://")):
        return Finding("OK", "alerts", f"messages link to runbooks at {runbooks}")
    fix = f"set {setting} ({environment_name(setting)}) to the address of docs/alerts.md, such as "
    fix += "https://example.org/gleaner/docs/alerts.md"
    return Finding("WARN", "alerts", f"{setting}: messages link to {runbooks!r}, which is no address", fix)


def _registry(settings: Settings) -> Finding:
    server, what = MlflowServer(settings), "registry"
    try:
        found = {alias: server.version(alias) for alias in settings.serving.slots.values()}
    except Trouble as e:
        detail = f"{e.message}; the API goes on with the versions in its store"
        return Finding("WARN", what, detail, e.fix or "read the server's log")
    said = [f"{a} is version {at.number}" if at else f"no version has the alias {a}" for a, at in found.items()]
    return Finding("OK", what, f"{server.name}: {', '.join(said)}")


def _store(settings: Settings) -> Iterator[Finding]:
    what = "store"
    try:
        store = open_store(settings)
    except GleanerError as e:
        detail, fix = str(e), "set serving.public_key to the file of the public key, or delete it"
        if isinstance(e, MissingExtra):
            detail, fix = f"{e.module} is not installed, so no signature can be checked", explain_install(e.extra)
        yield Finding("FAIL", what, detail, fix)
        return
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
        fix = f"move {store.root / 'aliases.json'} away, then run `gleaner models promote`"
        yield Finding("FAIL", what, str(e), fix)
        return
    yield Finding("OK", what, f"{store.root}: {len(versions)} versions, the latest {versions[-1]}")
    for slot, alias in settings.serving.slots.items():
        what, promote = f"slot {slot}", f"gleaner models promote VERSION --alias {alias}"
        pointed = aliases.get(alias)
        if pointed is None:
            yield Finding("WARN", what, f"no version has the alias {alias}", promote)
            continue
        try:
            artifact = store.read(pointed)
        except GleanerError as e:
            is_unsigned = isinstance(e, BadArtifact) and e.reason == "signature"
            sign = f"gleaner models sign {pointed}, where the private key is"
            yield Finding("FAIL", what, str(e), sign if is_unsigned else f"{promote}, or train again")
            continue
        tested = "passed" if store.has_passed(pointed, artifact.digest, ENGINE) else "not yet run"
        about = f"{alias} is version {pointed}, {artifact.manifest.candidate}; self-test {tested} under {ENGINE}"
        yield Finding("OK", what, about)
        if artifact.manifest.schema.names != settings.schema_.names:
            columns = ", ".join(artifact.manifest.schema.names)
            fix = "gleaner train DATA.csv, or set [[features]] back to the columns that the model was trained on"
            yield Finding("WARN", what, f"version {pointed} takes {columns}; gleaner.toml has other columns", fix)


def _extra() -> Finding:
    missing = [name for name in _TRAINING if _version(name) is None]
    if missing:
        about = f"{', '.join(missing)} not installed; serving does without"
        return Finding("WARN", "training", about, explain_install("train"))
    return Finding("OK", "training", _installed(_TRAINING))


def _sqlite(settings: Settings) -> Finding:
    """Check for the corruption fault of SQLite before 3.51.3.

    It can corrupt a database in WAL mode while several connections write.
    """
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
        fix = f"gleaner down, then sqlite3 {database} 'PRAGMA journal_mode=DELETE'; or use a Python with SQLite 3.51.3"
        return Finding("WARN", what, f"{number} can corrupt {database}, which is in WAL mode", fix)
    return Finding("OK", what, f"{number}; it can corrupt a database in WAL mode, and there is none")


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.state, *settings.state.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free under {folder}"
    if free < _LEAST_FREE_BYTES:
        fix = f"free some space, or set paths.state ({environment_name('paths.state')})"
        return Finding("WARN", "disk", detail, fix)
    return Finding("OK", "disk", detail)


def _installed(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {_version(name) or 'missing'}" for name in names)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
