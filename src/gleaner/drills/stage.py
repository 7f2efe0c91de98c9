"""A drill's private copy of the stack."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import httpx

from gleaner.errors import BadTraining, GleanerError, environment_name
from gleaner.running.process_logs import Lines
from gleaner.running.program import Program
from gleaner.running.stack import Stack
from gleaner.running.supervisor import Supervisor
from gleaner.settings.sections import Settings
from gleaner.settings.services import ALERTMANAGER, ML_APP, PROMETHEUS, TRAIN_METRICS
from gleaner.table.schema import example_row

T = TypeVar("T")

SCRAPE_SECONDS = 0.75
READY_SECONDS = 90.0
_MOST_HURRY = 20.0
_REQUEST_SECONDS = 0.05

PROGRAMS = tuple(service.name for service in (ML_APP, TRAIN_METRICS, ALERTMANAGER, PROMETHEUS))


class Failed(GleanerError):
    """A drill that did not prove its alert."""


def stage_settings(settings: Settings, state: Path, hurry: float) -> Settings:
    """Return the real settings with a stage's ports, state and notifications.

    A stage has no webhook: people would take its alerts for real, and Alertmanager may end before it sends their end.
    """
    changes: Mapping[str, Mapping[str, object]] = {
        **_overrides(state),
        "ports": dict.fromkeys(type(settings.ports).model_fields, 0),
        "alerts": {"scrape_seconds": SCRAPE_SECONDS * hurry, "webhook": "", "webhook_token_file": ""},
    }
    sections = {name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()}
    return settings.model_copy(update={"file": settings.file.absolute(), **sections})


def _overrides(state: Path) -> dict[str, dict[str, object]]:
    """Return the settings in which a stage's processes differ from `gleaner.toml`."""
    return {
        "paths": {"state": state},
        "serving": {
            "host": "127.0.0.1",
            "metrics_host": "",
            "keys_file": "",
            "tls_certificate": "",
            "tls_key": "",
            "unready_seconds": 0.0,
        },
        "tracking": {"uri": ""},
        "training": {"every": ""},
    }


def _variables(state: Path) -> dict[str, str]:
    """Write the overrides as environment variables, for the stage's processes."""
    sections = _overrides(state).items()
    return {environment_name(f"{name}.{key}"): str(value) for name, values in sections for key, value in values.items()}


def _hurry(settings: Settings) -> float:
    """Return the factor that divides every time.

    Every window keeps at least four scrapes. The largest factor, 20, makes 15 seconds with 20 scrapes of five minutes.
    """
    windows: list[float] = [value for name, value in settings.alerts if name.endswith("_window_seconds")]
    return max(1.0, min(_MOST_HURRY, min(windows) / (4 * SCRAPE_SECONDS)))


class Stage:
    """A private copy of the stack: own state, ports and rules.

    folder: the folder of its state and its processes' files, which the caller removes afterwards.
    data: the CSV file that a training with an injected fault spoils.
    """

    def __init__(self, settings: Settings, folder: Path, data: Path | None) -> None:
        self.folder, self.data = folder, data
        self.state, self.run = folder / "state", folder / "run"
        self.hurry = _hurry(settings)
        own = stage_settings(settings, self.state, self.hurry)
        self.stack = Stack(own, only=PROGRAMS, variables=_variables(self.state))
        self.stack.place(move=False)
        self.settings = self.stack.settings
        self.programs: dict[str, Program] = {}
        self.supervisor: Supervisor

    @asynccontextmanager
    async def playing(self, lines: Lines, lock: int) -> AsyncIterator[None]:
        """Run the stage, and request predictions, until the block ends."""
        self.programs = {program.name: program for program in self.stack.programs(self.run)}
        self.supervisor = Supervisor(self.programs.values(), self.run, lines, lock=lock)
        settled = asyncio.Event()
        running = asyncio.create_task(self.supervisor.run(settled.set))
        traffic: asyncio.Task[None] | None = None
        try:
            await finish_within(READY_SECONDS, settled.wait(), "the drill's processes did not start")
            bad = [name for name in self.programs if self.supervisor.entry(name).health != "ok"]
            if bad:
                raise Failed(f"the drill's processes did not start: {', '.join(bad)}")
            traffic = asyncio.create_task(self._request_predictions())
            yield
        finally:
            if traffic:
                traffic.cancel()
            self.supervisor.stop()
            await running

    async def put(self, program: Program, *, seconds: float = READY_SECONDS) -> None:
        """Replace the program of this name, and wait until it is ready."""
        await finish_within(seconds, self.supervisor.replace(program, seconds=seconds), f"{program.name} did not start")

    async def put_back(self, name: str) -> None:
        """Run the original program again."""
        await self.put(self.programs[name])

    def faulty_service(self, injected: str) -> Program:
        """Return an API with an injected fault."""
        ports = self.settings.ports
        return self._faulty(ML_APP.name, "service", injected, ports.ml_app, ports.ml_app_metrics)

    def faulty_trainer(self, injected: str) -> Program:
        """Return a trainer with spoilt data and an empty store.

        With an empty store, the trainer trains at once. Raises BadTraining without a file to train on.
        """
        if self.data is None or not self.data.exists():
            missing = f"{self.data} does not exist" if self.data else "training.data is not set"
            raise BadTraining(f"this drill trains on a CSV file, and {missing}: name one with --data")
        port = self.settings.ports.train_metrics
        program = self._faulty(TRAIN_METRICS.name, "trainer", injected, port, self.data.absolute())
        return replace(program, environment=self.stack.environment(**_variables(self.folder / "spoilt")))

    def with_state(self, name: str, state: Path, **more: str) -> Program:
        """Return a program with another state folder and further variables."""
        return replace(self.programs[name], environment=self.stack.environment(**(_variables(state) | more)))

    def _faulty(self, name: str, role: str, injected: str, *rest: object) -> Program:
        arguments = (role, injected, str(self.settings.file), *map(str, rest))
        return replace(self.programs[name], command=(sys.executable, "-m", "gleaner.drills.faulty", *arguments))

    async def _request_predictions(self) -> None:
        """Request predictions without end, and ignore the responses."""
        slot = next(iter(self.settings.serving.slots))
        address, row = self.programs[ML_APP.name].address, example_row(self.settings.schema_)
        is_learned = any(feature.values == "learn" for feature in self.settings.features)
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                    if is_learned:  # only the version knows its words
                        contract = (await client.get(f"{address}/openapi.json")).json()
                        row, is_learned = contract["components"]["schemas"][f"Row_{slot}"]["example"], False
                    await client.post(f"{address}/{slot}/predict", json=row)
                await asyncio.sleep(_REQUEST_SECONDS)


async def finish_within(seconds: float, step: Awaitable[T], failure: str) -> T:
    """Await a step. Raises Failed if the step takes longer.

    failure: what did not happen "within ... s", for the message.
    """
    try:
        return await asyncio.wait_for(step, seconds)
    except TimeoutError as e:
        raise Failed(f"{failure} within {seconds:.0f} s") from e
