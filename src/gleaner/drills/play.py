"""The drills: each injects one alert's fault and waits for that alert."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from gleaner.drills.stage import PROGRAMS, READY_SECONDS, SCRAPE_SECONDS, Failed, Stage, finish_within
from gleaner.errors import NoModel, Refused
from gleaner.model.manifest import MODEL
from gleaner.model.scores import Scores
from gleaner.model.store import Store
from gleaner.running.process_logs import Lines
from gleaner.running.program import read_password
from gleaner.settings.sections import Settings
from gleaner.settings.services import ALERTMANAGER, ML_APP, PROMETHEUS, TRAIN_METRICS
from gleaner.training.events import Finished
from gleaner.training.resident import read_last, write_last
from gleaner.watching.alerts import make_alerts

_LOOK_SECONDS = 0.2
_QUIET_SECONDS = 3.0  # beyond the alert's own `for:`
_STEP_SECONDS = 300.0  # to inject a fault, or to remove it

Step = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Drill:
    """An injected fault that makes one alert fire.

    injected: the fault in words.
    inject, remove: the steps that cause the fault and end it.
    labels: labels of the alert to wait for, where several share its name.
    """

    injected: str
    inject: Step
    remove: Step
    labels: Mapping[str, str] = field(default_factory=dict)


def _service(injected: str) -> tuple[Step, Step]:
    async def inject(stage: Stage) -> None:
        await stage.put(stage.faulty_service(injected))

    return inject, _back(ML_APP.name)


def _trainer(injected: str) -> tuple[Step, Step]:
    async def inject(stage: Stage) -> None:
        await stage.put(stage.faulty_trainer(injected))

    return inject, _back(TRAIN_METRICS.name)


def _back(name: str) -> Step:
    async def remove(stage: Stage) -> None:
        await stage.put_back(name)

    return remove


async def _memory(stage: Stage) -> None:
    # The API will hold 1.2 times the threshold; half of that again must stay free.
    needed, free = 1.8 * stage.settings.alerts.memory_bytes, psutil.virtual_memory().available
    if free < needed:
        raise Refused(f"this drill needs {needed / 1e6:,.0f} MB of free memory; this machine has {free / 1e6:,.0f} MB")
    await stage.put(stage.faulty_service("memory"))


async def _empty_store(stage: Stage) -> None:
    program = stage.with_state(ML_APP.name, stage.folder / "empty")
    await stage.put(replace(program, ready=""))


async def _down(stage: Stage) -> None:
    idle = (sys.executable, "-c", "import time; time.sleep(86400)")
    await stage.put(replace(stage.programs[ML_APP.name], command=idle, live="", ready="", ports={}))


async def _kill_repeatedly(stage: Stage) -> None:
    for _ in range(stage.settings.alerts.restarts + 2):
        while not (entry := stage.supervisor.entry(ML_APP.name)).pid:  # 0 would be this process's own group
            await asyncio.sleep(_LOOK_SECONDS)
        os.kill(entry.pid, signal.SIGKILL)
        while (now := stage.supervisor.entry(ML_APP.name)).pid in {0, entry.pid} or now.health != "ok":
            await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.sleep(3 * SCRAPE_SECONDS)  # a scrape must see each start


async def _nothing(stage: Stage) -> None:
    pass


async def _damage_a_version(stage: Stage) -> None:
    store = Store(stage.settings.store)
    alias = next(iter(stage.settings.serving.slots.values()))
    bad = max(store.versions()) + 1
    shutil.copytree(store.folder(store.aliases()[alias]), store.folder(bad))
    with (store.folder(bad) / MODEL).open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 0xFF]))
    (stage.folder / "before").write_text(str(store.aliases()[alias]))
    store.point({alias: bad})


async def _point_back(stage: Stage) -> None:
    alias = next(iter(stage.settings.serving.slots.values()))
    Store(stage.settings.store).point({alias: int((stage.folder / "before").read_text())})


async def _lose_registry(stage: Stage) -> None:
    """Let the API follow a registry at a port without a server."""
    await stage.put(stage.with_state(ML_APP.name, stage.state, GLEANER_TRACKING__URI="http://127.0.0.1:9"))


async def _age(stage: Stage) -> None:
    """Replace the trainer by one whose last training was long ago."""
    old = stage.folder / "old"
    last = read_last(stage.state)
    assert last
    write_last(old, replace(last, at=time.time() - 86_400 * (stage.settings.alerts.training_age_days + 1)))
    shutil.copytree(stage.settings.store, old / "store")
    await stage.put(stage.with_state(TRAIN_METRICS.name, old))


DRILLS: Mapping[str, Drill] = {
    "HighErrorRate": Drill("every prediction raises", *_service("raising")),
    "ErrorBudgetBurn": Drill("every prediction raises", *_service("raising"), {"window": "1h"}),
    "SlowPredictions": Drill("every prediction takes twice as long as the objective allows", *_service("slow")),
    "NoModel": Drill("the API has an empty store", _empty_store, _back(ML_APP.name)),
    "ModelLoadFailing": Drill("an alias points at a version with one wrong byte", _damage_a_version, _point_back),
    "RegistryNotFollowed": Drill("no server listens where the registry should be", _lose_registry, _back(ML_APP.name)),
    "TargetDown": Drill(
        "the API has exited, and nothing restarts it", _down, _back(ML_APP.name), {"service": ML_APP.name}
    ),
    "RestartLoop": Drill("the API is killed repeatedly", _kill_repeatedly, _nothing, {"service": ML_APP.name}),
    "HighMemoryUsage": Drill("the API holds 1.2 times alerts.memory_bytes", _memory, _back(ML_APP.name)),
    "HighCPUUsage": Drill(
        "the API, bound to one CPU, keeps that CPU busy; this machine has one less meanwhile", *_service("cpu")
    ),
    "HighTrainingLoss": Drill("a training on random targets", *_trainer("noise")),
    "LowValidationAccuracy": Drill("a training on shuffled targets", *_trainer("shuffled")),
    "TrainingStale": Drill("the last training was too long ago", _age, _back(TRAIN_METRICS.name)),
}


@dataclass(frozen=True, slots=True)
class Played:
    """The result of a drill.

    fired_seconds: from the injection of the fault to the alert.
    resolved_seconds: from the removal of the fault to the alert's end.
    """

    alert: str
    fired_seconds: float
    resolved_seconds: float
    summary: str


def prepare(settings: Settings, folder: Path, data: Path | None) -> Stage:
    """Prepare a stage with copies of the versions in service.

    Raises NoModel without a version in the first slot, and Refused without Prometheus or Alertmanager.
    """
    source = Store(settings.store)
    aliases = {alias: v for alias, v in source.aliases().items() if alias in settings.serving.slots.values()}
    first = next(iter(settings.serving.slots.values()))
    if first not in aliases:
        raise NoModel(f"{source.root} has no version with the alias {first}; run `gleaner train DATA.csv` first")
    stage = Stage(settings, folder, data or settings.data)
    missing = [name for name in PROGRAMS if name not in stage.stack.names]
    if missing:
        raise Refused(f"a drill needs {', '.join(missing)}; to install: {stage.stack.install_hint()}")
    store = Store(stage.settings.store)
    for version in set(aliases.values()):
        store.add(version, source.folder(version))
    store.point(aliases)
    write_last(stage.state, read_last(settings.state) or _last_of(source, aliases[first]))
    return stage


def _last_of(store: Store, version: int) -> Finished:
    """Restore the outcome of a version's training from its manifest."""
    manifest = store.read(version).manifest
    scores = Scores(**{name: manifest.scores[name] for name in ("loss", "accuracy", "r2", "mae")})
    rows = (manifest.data.rows, manifest.data.refused)
    loss, seconds = manifest.training_loss, manifest.seconds
    return Finished({"champion": version}, manifest.candidate, scores, loss, *rows, seconds, time.time())


async def play(
    alert: str, stage: Stage, lines: Lines, lock: int, *, say: Callable[[str], object], limit_seconds: float
) -> Played:
    """Play one drill on a stage.

    say: prints a line about the drill's progress.
    limit_seconds: bounds the wait for the alert, and the wait for its end.
    Raises Failed unless the alert fires and resolves.
    """
    drill = DRILLS[alert]
    async with stage.playing(lines, lock), httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
        observer = _Observer(client, stage, alert, drill.labels)
        await finish_within(READY_SECONDS, observer.until_scraped(), "Prometheus did not scrape every target")
        waits = (found.for_seconds for found in make_alerts(stage.settings, stage.hurry) if found.name == alert)
        await asyncio.sleep(max(waits) + _QUIET_SECONDS)
        if await observer.look():
            raise Failed(f"{alert} fires already, without an injected fault: see docs/alerts.md#{alert.lower()}")
        say(f"{alert} is quiet; injecting the fault: {drill.injected}")
        began = time.monotonic()
        await finish_within(_STEP_SECONDS, drill.inject(stage), "the fault was not injected")
        alarm = await finish_within(limit_seconds, observer.until(True), f"{alert} did not fire")
        fired = time.monotonic() - began
        summary = str(alarm["annotations"]["summary"])
        say(f"{alert} reached Alertmanager after {fired:.1f} s: {summary}")
        say("removing the injected fault")
        began = time.monotonic()
        await finish_within(_STEP_SECONDS, drill.remove(stage), "the injected fault was not removed")
        await finish_within(limit_seconds, observer.until(False), f"{alert} did not resolve")
        resolved = time.monotonic() - began
        say(f"{alert} resolved after {resolved:.1f} s")
    return Played(alert, fired, resolved, summary)


class _Observer:
    """One alert, as the Prometheus and Alertmanager of a stage show it."""

    def __init__(self, client: httpx.AsyncClient, stage: Stage, alert: str, labels: Mapping[str, str]) -> None:
        self._client, self._labels = client, {"alertname": alert, **labels}
        self._prometheus = stage.programs[PROMETHEUS.name].address
        alertmanager = stage.programs[ALERTMANAGER.name]
        self._alertmanager, self._password = alertmanager.address, read_password(alertmanager.password_file)

    async def until_scraped(self) -> None:
        """Wait until Prometheus scrapes the API, the trainer and itself."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                response = await self._client.get(f"{self._prometheus}/api/v1/targets")
                targets = response.json()["data"]["activeTargets"]
                if len(targets) == 3 and all(target["health"] == "up" for target in targets):
                    return
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> dict[str, Any] | None:
        """Return the alert as Alertmanager has it, or None."""
        alerts = (await self._client.get(f"{self._alertmanager}/api/v2/alerts", auth=self._password)).json()
        return next((alert for alert in alerts if self._labels.items() <= alert["labels"].items()), None)

    async def until(self, firing: bool) -> dict[str, Any]:
        """Wait until the alert fires or has resolved, and return it."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                found = await self.look()
                if (found is not None) == firing:
                    return found or {}
            await asyncio.sleep(_LOOK_SECONDS)
