"""The supervisor of all programs that `gleaner up` keeps running."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from gleaner.running.guarding import Guard
from gleaner.running.keeper import Keeper
from gleaner.running.process import Shared
from gleaner.running.process_logs import Lines
from gleaner.running.program import Pace, Program
from gleaner.running.run_file import Entry, write_run_file

UP = "up"  # the name before the supervisor's own lines


class Supervisor:
    """Programs that are kept running, in the order of their start.

    folder: holds the run file.
    lines: takes the output of the programs and of the supervisor.
    lock: the descriptor of the folder's lock, which the guard holds too.
    """

    def __init__(
        self, programs: Iterable[Program], folder: Path, lines: Lines, *, lock: int, pace: Pace | None = None
    ) -> None:
        self.folder, self.lines, self._since = folder, lines, time.time()
        pace = pace or Pace()
        # No proxy is used, and no connection is encrypted.
        http = httpx.AsyncClient(timeout=pace.response_seconds, trust_env=False, verify=False)
        guard = Guard(lock, self.say, pace.first_wait_seconds)
        self._shared = Shared(pace, lines, guard, http, self.say, self._write)
        self._keepers = {program.name: Keeper(program, self._shared) for program in programs}

    def stop(self) -> None:
        """End everything in order; a second call ends it at once."""
        if self._shared.stop.is_set():
            self._shared.hurry.set()
        self._shared.stop.set()

    async def run(self, on_settled: Callable[[], object] = lambda: None) -> list[str]:
        """Keep everything running until `stop`; return the names given up.

        It also returns when all programs are given up.

        on_settled: called once, when every program is ready or given up.
        """
        keepers = self._keepers.values()
        async with self._shared.guard.running(), self._shared.http:
            for keeper in keepers:
                keeper.task = asyncio.create_task(keeper.keep([self._keepers[name] for name in keeper.program.after]))
            settled = asyncio.create_task(self._settle(on_settled))
            ended = asyncio.gather(*(keeper.task for keeper in keepers if keeper.task))
            stop = asyncio.ensure_future(self._shared.stop.wait())
            either: list[asyncio.Future[Any]] = [stop, ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            settled.cancel()
            stop.cancel()
            # The last to start ends first, so that callers have the first, the API, for longest.
            for keeper in reversed(keepers):
                await keeper.stop()
            await ended
        return [name for name, keeper in self._keepers.items() if keeper.state == "given up"]

    async def replace(self, program: Program, *, seconds: float = 60.0) -> None:
        """Run another program under its name, and wait until it responds.

        The process that runs finishes its work first. Raises TimeoutError.

        seconds: the longest wait after that.
        """
        await self._keepers[program.name].replace(program, seconds)

    def entry(self, name: str) -> Entry:
        """Return the current state of one program."""
        return self._keepers[name].entry()

    def say(self, text: str) -> None:
        self.lines.add(UP, text)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the stack
            write_run_file(self.folder, tuple(keeper.entry() for keeper in self._keepers.values()), self._since)

    async def _settle(self, on_settled: Callable[[], object]) -> None:
        while any(keeper.health != "ok" and keeper.state != "given up" for keeper in self._keepers.values()):
            await asyncio.sleep(self._shared.pace.starting_look_seconds)
        on_settled()
