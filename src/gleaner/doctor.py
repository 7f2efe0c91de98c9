"""What is wrong on this machine, and the fix."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from gleaner import __version__
from gleaner.errors import GleanerError, PortTaken, environment_name
from gleaner.ports import check_port
from gleaner.predictor import ENGINE
from gleaner.registry import Server, Trouble
from gleaner.settings import Settings
from gleaner.store import Store

Verdict = Literal["OK", "WARN", "FAIL"]

_SERVING = ("granian", "onnxruntime", "numpy", "flask", "msgspec")
_TRAINING = ("mlflow", "scikit-learn", "onnx", "matplotlib")
_LEAST_FREE_BYTES = 1 << 30
# The command `gleaner`, or a script of its old name; not whatever else runs in a folder called gleaner.
_OURS = re.compile(r"[ (/](gleaner|src/(predict|train)\.py)[ )]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` is what to do, empty where nothing is."""

    verdict: Verdict
    what: str
    detail: str
    fix: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything that can be said about this machine and these settings, one finding at a time."""
    yield Finding(
        "OK", "versions", f"gleaner {__version__}, Python {platform.python_version()}, {_installed(_SERVING)}"
    )
    yield _extra()
    yield Finding("OK", "settings", str(settings.file.absolute()))
    for name in type(settings.ports).model_fields:
        yield _port(settings, name)
    if settings.tracking.is_server:
        yield _registry(settings)
    yield from _store(settings)
    yield _disk(settings)


def _port(settings: Settings, name: str) -> Finding:
    port, setting = getattr(settings.ports, name), f"ports.{name}"
    try:
        check_port(settings.serving.host, port, setting)
    except PortTaken as e:
        if _OURS.search(e.holder):
            return Finding("OK", f"port {port}", f"{setting}: held by Gleaner, {e.holder}")
        fix = f"stop {e.holder}, or set {setting} ({environment_name(setting)}) to a free port"
        return Finding("FAIL", f"port {port}", f"{setting}: taken by {e.holder}", fix)
    return Finding("OK", f"port {port}", f"{setting}: free")


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
