"""A drill for every alert: a stack of its own, a fault in it, the alert at Alertmanager, and the end of both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from gleaner.alerts import make_alerts
from gleaner.artifact import MODEL
from gleaner.errors import BadTraining, GleanerError, NoModel, Refused
from gleaner.events import Finished
from gleaner.lines import Lines
from gleaner.openapi import example_row
from gleaner.scores import Scores
from gleaner.settings import Settings
from gleaner.stack import Stack
from gleaner.store import Store
from gleaner.supervisor import Program, Supervisor
from gleaner.trainer import read_last, write_last

_HURRY = 20.0
_SCRAPE_SECONDS = 0.75
_ASK_SECONDS = 0.05
_LOOK_SECONDS = 0.2
_QUIET_SECONDS = 3.0  # beyond the alert's own `for:`
_READY_SECONDS = 90.0
_STEP_SECONDS = 300.0  # to make a fault, or to end it
PROGRAMS = ("ml-app", "train-metrics", "alertmanager", "prometheus")


class Failed(GleanerError):
    """An alert that did not do what the drill is there to show."""


def stage_settings(settings: Settings, state: Path, hurry: float) -> Settings:
    """The settings of a stage: all in which it differs from the real stack.

    Nobody is told of its alerts: they would be taken for real, and their end may come after that of Alertmanager.
    """
    changes: Mapping[str, Mapping[str, object]] = {
        "ports": dict.fromkeys(type(settings.ports).model_fields, 0),
        "paths": {"state": state},
        "serving": {"host": "127.0.0.1", "unready_seconds": 0.0},
        "tracking": {"uri": ""},
        "alerts": {"scrape_seconds": _SCRAPE_SECONDS * hurry, "webhook": "", "webhook_token_file": ""},
    }
    sections = {name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()}
    return settings.model_copy(update={"file": settings.file.absolute(), **sections})


def _hurry(settings: Settings) -> float:
    """What every window, `for:` and interval is divided by: five minutes are 15 seconds, with 20 scrapes in them."""
    windows: list[float] = [value for name, value in settings.alerts if name.endswith("_window_seconds")]
    return max(1.0, min(_HURRY, min(windows) / (4 * _SCRAPE_SECONDS)))


class Stage:
    """A small stack with nothing of the real one in it but copies: state, ports, rules and data are its own.

    folder: its state and its run, to be removed afterwards. data: the CSV file that a faulty training spoils.
    """

    def __init__(self, settings: Settings, folder: Path, data: Path | None) -> None:
        self.folder, self.data = folder, data
        self.state, self.run = folder / "state", folder / "run"
        self.hurry = _hurry(settings)
        own = stage_settings(settings, self.state, self.hurry)
        self.stack = Stack(own, only=PROGRAMS, variables=self._variables(self.state))
        self.stack.place(move=False)
        self.settings = self.stack.settings
        self.programs: dict[str, Program] = {}
        self.supervisor: Supervisor

    @asynccontextmanager
    async def playing(self, lines: Lines, lock: int) -> AsyncIterator[None]:
        """The stack, running and asked for predictions, until the block ends."""
        self.programs = {program.name: program for program in self.stack.programs(self.run)}
        self.supervisor = Supervisor(self.programs.values(), self.run, lines, lock=lock)
        settled = asyncio.Event()
        running = asyncio.create_task(self.supervisor.run(settled.set))
        traffic: asyncio.Task[None] | None = None
        try:
            await _within(_READY_SECONDS, settled.wait(), "the drill's own stack did not come up")
            bad = [name for name in self.programs if self.supervisor.entry(name).health != "ok"]
            if bad:
                raise Failed(f"the drill's own stack did not come up: {', '.join(bad)}")
            traffic = asyncio.create_task(self._ask())
            yield
        finally:
            if traffic:
                traffic.cancel()
            self.supervisor.stop()
            await running

    async def put(self, program: Program, *, seconds: float = _READY_SECONDS) -> None:
        """Run another program under its name."""
        await _within(seconds, self.supervisor.replace(program), f"{program.name} did not start")

    async def put_back(self, name: str) -> None:
        await self.put(self.programs[name])

    def faulty_service(self, fault: str) -> Program:
        ports = self.settings.ports
        return self._faulty("ml-app", "service", fault, ports.ml_app, ports.ml_app_metrics)

    def faulty_trainer(self, fault: str) -> Program:
        """A trainer with nothing in its store, so that it trains at once; on spoilt data."""
        if self.data is None or not self.data.exists():
            raise BadTraining(f"no data to spoil: {self.data or 'training.data is not set'}; --data names a CSV file")
        port = self.settings.ports.train_metrics
        program = self._faulty("train-metrics", "trainer", fault, port, self.data.absolute())
        return replace(program, environment=self.stack.environment(**self._variables(self.folder / "spoilt")))

    def with_state(self, name: str, state: Path, **more: str) -> Program:
        return replace(self.programs[name], environment=self.stack.environment(**(self._variables(state) | more)))

    def _faulty(self, name: str, role: str, fault: str, *rest: object) -> Program:
        command = (sys.executable, "-m", "gleaner.faults", role, fault, str(self.settings.file), *map(str, rest))
        return replace(self.programs[name], command=command)

    def _variables(self, state: Path) -> dict[str, str]:
        """The same for its programs, which read the real settings' file."""
        return {
            "GLEANER_PATHS__STATE": str(state),
            "GLEANER_SERVING__HOST": "127.0.0.1",
            "GLEANER_SERVING__UNREADY_SECONDS": "0",
            "GLEANER_TRACKING__URI": "",
            "GLEANER_TRAINING__EVERY": "",
        }

    async def _ask(self) -> None:
        """Ask for predictions all the time, whatever is answered."""
        slot = next(iter(self.settings.serving.slots))
        url, row = f"{self.programs['ml-app'].address}/{slot}/predict", example_row(self.settings.schema_)
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    await client.post(url, json=row)
                await asyncio.sleep(_ASK_SECONDS)


T = TypeVar("T")
Step = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Drill:
    """How one alert is made to fire. fault: in words. labels: which of the alerts of its name is waited for."""

    fault: str
    inject: Step
    mend: Step
    labels: Mapping[str, str] = field(default_factory=dict)


def _service(fault: str) -> tuple[Step, Step]:
    async def inject(stage: Stage) -> None:
        await stage.put(stage.faulty_service(fault))

    return inject, _back("ml-app")


def _trainer(fault: str) -> tuple[Step, Step]:
    async def inject(stage: Stage) -> None:
        await stage.put(stage.faulty_trainer(fault))

    return inject, _back("train-metrics")


def _back(name: str) -> Step:
    async def mend(stage: Stage) -> None:
        await stage.put_back(name)

    return mend


async def _memory(stage: Stage) -> None:
    wanted, there = 1.2 * stage.settings.alerts.memory_bytes, psutil.virtual_memory().available
    if there < 1.5 * wanted:
        raise Refused(f"this drill holds {wanted / 1e6:,.0f} MB, and this machine has {there / 1e6:,.0f} MB left")
    await stage.put(stage.faulty_service("memory"))


async def _empty_store(stage: Stage) -> None:
    program = stage.with_state("ml-app", stage.folder / "empty")
    await stage.put(replace(program, ready=""))


async def _down(stage: Stage) -> None:
    idle = (sys.executable, "-c", "import time; time.sleep(86400)")
    await stage.put(replace(stage.programs["ml-app"], command=idle, live="", ready="", ports={}))


async def _kill_again_and_again(stage: Stage) -> None:
    for _ in range(stage.settings.alerts.restarts + 2):
        while not (entry := stage.supervisor.entry("ml-app")).pid:  # 0 would be this process's own group
            await asyncio.sleep(_LOOK_SECONDS)
        os.kill(entry.pid, signal.SIGKILL)
        while stage.supervisor.entry("ml-app").pid in {0, entry.pid} or stage.supervisor.entry("ml-app").health != "ok":
            await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.sleep(3 * _SCRAPE_SECONDS)  # each start is to be seen


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


async def _follow_nobody(stage: Stage) -> None:
    """An API told to follow a registry at a port on which nobody answers."""
    await stage.put(stage.with_state("ml-app", stage.state, GLEANER_TRACKING__URI="http://127.0.0.1:9"))


async def _age(stage: Stage) -> None:
    """A trainer whose last training was long ago."""
    old = stage.folder / "old"
    last = read_last(stage.state)
    assert last
    write_last(old, replace(last, at=time.time() - 86_400 * (stage.settings.alerts.training_age_days + 1)))
    shutil.copytree(stage.settings.store, old / "store")
    await stage.put(stage.with_state("train-metrics", old))


DRILLS: Mapping[str, Drill] = {
    "HighErrorRate": Drill("every prediction raises", *_service("raising")),
    "ErrorBudgetBurn": Drill("every prediction raises", *_service("raising"), {"window": "1h"}),
    "SlowPredictions": Drill("every prediction takes twice as long as was promised", *_service("slow")),
    "NoModel": Drill("the API has an empty store", _empty_store, _back("ml-app")),
    "ModelLoadFailing": Drill("the alias points at a version with one wrong byte", _damage_a_version, _point_back),
    "RegistryNotFollowed": Drill("nobody answers where the registry should be", _follow_nobody, _back("ml-app")),
    "TargetDown": Drill("the API has ended, and nothing starts it", _down, _back("ml-app"), {"service": "ml-app"}),
    "RestartLoop": Drill("the API is killed again and again", _kill_again_and_again, _nothing, {"service": "ml-app"}),
    "HighMemoryUsage": Drill("the API holds more memory than it should", _memory, _back("ml-app")),
    "HighCPUUsage": Drill(
        "the API burns a CPU, the only one that it may use; this machine has one less meanwhile", *_service("cpu")
    ),
    "HighTrainingLoss": Drill("a training on targets that have nothing to do with their rows", *_trainer("noise")),
    "LowValidationAccuracy": Drill("a training on shuffled targets", *_trainer("shuffled")),
    "TrainingStale": Drill("the last training was too long ago", _age, _back("train-metrics")),
}


@dataclass(frozen=True, slots=True)
class Played:
    """What a drill has shown, in seconds: from the fault to the alert, and from its end to the alert's."""

    alert: str
    fired_seconds: float
    resolved_seconds: float
    summary: str


def prepare(settings: Settings, folder: Path, data: Path | None) -> Stage:
    """A stage with copies of what is served now. Raises NoModel where nothing is."""
    source = Store(settings.store)
    aliases = {alias: v for alias, v in source.aliases().items() if alias in settings.serving.slots.values()}
    first = next(iter(settings.serving.slots.values()))
    if first not in aliases:
        raise NoModel(f"{source.root} has no {first} to make a copy of; run `gleaner train DATA.csv`")
    stage = Stage(settings, folder, data or settings.data)
    missing = [name for name in PROGRAMS if name not in stage.stack.names]
    if missing:
        raise Refused(f"a drill needs {', '.join(missing)}; {stage.stack.explain_missing()}")
    store = Store(stage.settings.store)
    for version in set(aliases.values()):
        store.add(version, source.folder(version))
    store.point(aliases)
    write_last(stage.state, read_last(settings.state) or _last_of(source, aliases[first]))
    return stage


def _last_of(store: Store, version: int) -> Finished:
    """What the training of a version has left, from its manifest."""
    manifest = store.read(version).manifest
    scores = Scores(**{name: manifest.scores[name] for name in ("loss", "accuracy", "r2", "mae")})
    rows = (manifest.data.rows, manifest.data.refused)
    loss, seconds = manifest.training_loss, manifest.seconds
    return Finished({"champion": version}, manifest.candidate, scores, loss, *rows, seconds, time.time())


async def play(
    alert: str, stage: Stage, lines: Lines, lock: int, *, say: Callable[[str], object], limit_seconds: float
) -> Played:
    """Play one drill on a stage. Raises Failed where the alert does not come, or does not go."""
    drill = DRILLS[alert]
    async with stage.playing(lines, lock), httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
        told = _Told(client, stage, alert, drill.labels)
        await _within(_READY_SECONDS, told.until_watched(), "Prometheus did not see the API and the trainer")
        waits = (found.for_seconds for found in make_alerts(stage.settings, stage.hurry) if found.name == alert)
        await asyncio.sleep(max(waits) + _QUIET_SECONDS)
        if await told.look():
            raise Failed(f"{alert} fires already, with no fault but your settings and model: see docs/alerts.md")
        say(f"all is well; now the fault: {drill.fault}")
        began = time.monotonic()
        await _within(_STEP_SECONDS, drill.inject(stage), "the fault could not be made")
        alarm = await _within(limit_seconds, told.until(True), f"{alert} did not fire within {limit_seconds:.0f} s")
        fired = time.monotonic() - began
        summary = str(alarm["annotations"]["summary"])
        say(f"{alert} is at Alertmanager after {fired:.1f} s: {summary}")
        say("now the fault is taken away")
        began = time.monotonic()
        await _within(_STEP_SECONDS, drill.mend(stage), "the fault could not be ended")
        await _within(limit_seconds, told.until(False), f"{alert} still fires {limit_seconds:.0f} s after its fault")
        resolved = time.monotonic() - began
        say(f"{alert} is resolved after {resolved:.1f} s")
    return Played(alert, fired, resolved, summary)


class _Told:
    """What Prometheus and Alertmanager of a stage say of one alert."""

    def __init__(self, client: httpx.AsyncClient, stage: Stage, alert: str, labels: Mapping[str, str]) -> None:
        self._client, self._labels = client, {"alertname": alert, **labels}
        self._prometheus = stage.programs["prometheus"].address
        self._alertmanager = stage.programs["alertmanager"].address

    async def until_watched(self) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await self._client.get(f"{self._prometheus}/api/v1/targets")
                targets = answer.json()["data"]["activeTargets"]
                if len(targets) == 3 and all(target["health"] == "up" for target in targets):
                    return
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> dict[str, Any] | None:
        """The alert as Alertmanager has it; None where it has none."""
        alerts = (await self._client.get(f"{self._alertmanager}/api/v2/alerts")).json()
        return next((alert for alert in alerts if self._labels.items() <= alert["labels"].items()), None)

    async def until(self, firing: bool) -> dict[str, Any]:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                found = await self.look()
                if (found is not None) == firing:
                    return found or {}
            await asyncio.sleep(_LOOK_SECONDS)


async def _within(seconds: float, what: Awaitable[T], failure: str) -> T:
    try:
        return await asyncio.wait_for(what, seconds)
    except TimeoutError as e:
        raise Failed(failure) from e
