"""The keeper of one program: starts, watches and restarts it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable

from gleaner.machine.processes import describe_exit
from gleaner.running.process import Process, Shared
from gleaner.running.program import Program
from gleaner.running.run_file import Entry, Health, State


class Keeper:
    """One program, kept running.

    settled: set once the program has responded or is given up; the programs after it wait for that.
    task: runs `keep`, once the supervisor has begun.
    """

    def __init__(self, program: Program, shared: Shared) -> None:
        self.program, self._shared = program, shared
        self.state: State = "waiting"
        self.health: Health = ""
        self.settled = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._told = asyncio.Event()  # to stop, or to run another program
        self._since, self._restarts = time.time(), 0
        self._has_responded = False
        self._ends = 0  # in a row
        self._failing_since = 0.0  # on the monotonic clock

    def entry(self) -> Entry:
        """Return its line of the run file."""
        return Entry(
            name=self.program.name,
            pid=self._process.pid if self._process else 0,
            started=self._process.started if self._process else 0.0,
            since=self._since,
            state=self.state,
            health=self.health,
            restarts=self._restarts,
            address=self.program.address,
            ports=dict(self.program.ports),
            log=str(self._shared.lines.file(self.program.name)),
            password_file=self.program.password_file,
        )

    async def keep(self, after: Iterable[Keeper]) -> None:
        """Run the program again and again, until `stop` or giving up.

        after: the keepers whose programs start first.
        """
        pace = self._shared.pace
        for other in after:
            await _first(other.settled, self._told)
        while not self._shared.stop.is_set():
            self._told.clear()
            process = Process(self.program, self._shared)
            why = await self._run(process)
            if self._shared.stop.is_set():
                break
            if self._told.is_set():
                continue
            self._count_end(process.live_at)
            if self._is_hopeless():
                self._give_up(why, process.last_line)
                return
            wait = min(pace.longest_wait_seconds, pace.first_wait_seconds * 2 ** (self._ends - 1))
            self._shared.say(f"{self.program.name} {why}; it restarts in {wait:.2g} s")
            self._set("restarting", "")
            self._restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), wait)
        self._set("stopped", "")

    async def replace(self, program: Program, seconds: float) -> None:
        """End the process and run another program from now on; see `Supervisor.replace`."""
        self.program = program
        self.settled.clear()
        await self._tell()
        await asyncio.wait_for(self.settled.wait(), seconds)

    async def stop(self) -> None:
        """End the process and wait for the end of `keep`."""
        if self._process:
            self._set("stopping")
        await self._tell()
        if self.task:
            await self.task

    async def _tell(self) -> None:
        self._told.set()
        if self._process:
            await self._process.terminate()

    async def _run(self, process: Process) -> str:
        """Run a process until its session has ended; describe its exit."""
        if not await process.start():
            return process.why
        self._process = process
        self._set("starting", "")
        watch = asyncio.create_task(self._watch(process))
        if self._shared.stop.is_set() or self._told.is_set():
            await process.terminate()
        code = await process.wait()
        watch.cancel()
        await process.end_session()
        self._process = None
        return process.why or describe_exit(code)

    async def _watch(self, process: Process) -> None:
        """Check the process again and again; end it if it never responds."""
        program, pace = self.program, self._shared.pace
        began, silent = time.monotonic(), 0
        while not (await process.responds(program.live) and await process.holds_its_ports()):
            if time.monotonic() - began > program.start_seconds:
                process.fail(f"did not respond within {program.start_seconds:g} s")
                return
            await asyncio.sleep(pace.starting_look_seconds)
        process.live_at, self._has_responded = time.monotonic(), True
        self.settled.set()
        while True:
            live = await process.responds(program.live)
            ready = live and await process.responds(program.ready)
            health: Health = "ok" if ready else "not ready" if live else "no answer"
            if health != self.health:
                after = f" is ready, {time.monotonic() - began:.1f} s after its start"
                self._shared.say(program.name + (after if ready else f": {health}"))
            if self.state in {"starting", "running"}:
                self._set("running", health)
            silent = 0 if live else silent + 1
            if silent >= pace.most_silent:
                process.fail(f"did not respond {silent} times")
                return
            await asyncio.sleep(pace.look_seconds if ready else pace.unready_look_seconds)

    def _count_end(self, live_at: float | None) -> None:
        now = time.monotonic()
        if self._ends == 0 or (live_at is not None and now - live_at >= self._shared.pace.steady_seconds):
            self._ends, self._failing_since = 0, now
        self._ends += 1

    def _is_hopeless(self) -> bool:
        pace = self._shared.pace
        if self._has_responded:
            return time.monotonic() - self._failing_since >= pace.failing_seconds
        return self._ends >= pace.most_ends

    def _give_up(self, why: str, last_line: str) -> None:
        said = f": {last_line}" if last_line else ""
        self._shared.say(
            f"{self.program.name} is given up: {why}, {self._ends} times in a row{said}; its whole output is in "
            f"{self._shared.lines.file(self.program.name)}; fix the cause, then `gleaner down` and `gleaner up`"
        )
        self._set("given up", "")
        self.settled.set()

    def _set(self, state: State, health: Health | None = None) -> None:
        """Set the state and write the run file."""
        health = self.health if health is None else health
        if (state, health) == (self.state, self.health):
            return
        if state != self.state and state != "running":
            self._since = time.time()
        self.state, self.health = state, health
        self._shared.write()


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of some events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
