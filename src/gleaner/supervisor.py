"""Keep the processes of `up` running: started in their order, watched, started again, and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gleaner.guard import LAUNCH, end_sessions, members
from gleaner.lines import LONGEST_LINE, Lines
from gleaner.ports import is_held_by
from gleaner.running import Entry, Health, State, start_of, write_run

UP = "up"  # the name before the supervisor's own lines


@dataclass(frozen=True, slots=True)
class Program:
    """One process that is to be kept running.

    live: an address that answers 200 as soon as it runs; empty where none can be asked.
    ready: one that does once it can do its work; empty where that is the same.
    after: names of those that start first. environment: all of it; None for this process's own.
    address, about: for people. ports: those that it listens on, by their settings.
    start_seconds, stop_seconds: how long it may take to answer, and to end.
    """

    name: str
    command: Sequence[str]
    live: str = ""
    ready: str = ""
    after: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    address: str = ""
    about: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    start_seconds: float = 60.0
    stop_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How quickly things are done again.

    The first wait before a restart doubles with every end, up to the longest, until a process has answered for
    `steady_seconds`. One that has answered before is given up after failing for `failing_seconds`: what keeps it, such
    as a full disk, may well pass. One that never has is given up after `most_ends`: it is more likely set up wrongly,
    and somebody waits for it. `most_silent` looks without an answer are as good as an end.
    """

    first_wait_seconds: float = 0.02
    longest_wait_seconds: float = 30.0
    failing_seconds: float = 300.0
    most_ends: int = 12
    steady_seconds: float = 10.0
    starting_look_seconds: float = 0.1
    unready_look_seconds: float = 0.5
    look_seconds: float = 3.0
    answer_seconds: float = 3.0
    most_silent: int = 10


@dataclass(slots=True)
class _Kept:
    """A program and how it fares."""

    program: Program
    state: State = "waiting"
    health: Health = ""
    pid: int = 0
    started: float = 0.0
    since: float = field(default_factory=time.time)
    restarts: int = 0
    ends: int = 0  # in a row
    failing_since: float = 0.0  # on the monotonic clock, as the next
    has_answered: bool = False
    live_at: float | None = None
    why: str = ""  # it is to end now, if not by itself
    replaced: bool = False
    last_line: str = ""
    up: asyncio.Event = field(default_factory=asyncio.Event)  # it answers, or is given up
    told: asyncio.Event = field(default_factory=asyncio.Event)  # to end, or to become another
    process: asyncio.subprocess.Process | None = None
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps some programs running, in the folder of their run file.

    lines: where their lines go, and its own. lock: the folder's, which the guard holds on to.
    """

    def __init__(
        self, programs: Iterable[Program], folder: Path, lines: Lines, *, lock: int, pace: Pace | None = None
    ) -> None:
        self.folder, self.lines, self.pace = folder, lines, pace or Pace()
        self._kept = {program.name: _Kept(program) for program in programs}
        self._lock, self._since = lock, time.time()
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._guard_pipe = -1
        self._guard: asyncio.subprocess.Process | None = None

    def stop(self) -> None:
        """End everything in order; a second call ends it at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self, on_settled: Callable[[], object] = lambda: None) -> list[str]:
        """Keep everything running until told to stop, or until all is given up; the names of what was given up.

        on_settled: called once, when everything is ready or given up.
        """
        async with self._guarded(), self._client():
            for kept in self._kept.values():
                kept.keeper = asyncio.create_task(self._keep(kept))
            settled = asyncio.create_task(self._settle(on_settled))
            keepers = [kept.keeper for kept in self._kept.values() if kept.keeper]
            stop, ended = asyncio.ensure_future(self._stop.wait()), asyncio.gather(*keepers)
            either: list[asyncio.Future[Any]] = [stop, ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            settled.cancel()
            stop.cancel()
            # The other way round: what was there first, for callers, is there longest.
            for kept in reversed(self._kept.values()):
                await self._end(kept)
            await ended
        return [name for name, kept in self._kept.items() if kept.state == "given up"]

    async def replace(self, program: Program, *, seconds: float = 60.0) -> None:
        """Run another program under a name from now on, and wait until it answers.

        What it is about ends in order first. Raises TimeoutError.
        """
        kept = self._kept[program.name]
        kept.program, kept.replaced = program, True
        kept.up.clear()
        kept.told.set()
        if kept.process:
            await self._terminate(kept, kept.process)
        await asyncio.wait_for(kept.up.wait(), seconds)

    def entry(self, name: str) -> Entry:
        """A process as it is now."""
        kept = self._kept[name]
        return Entry(
            name=name,
            pid=kept.pid,
            started=kept.started,
            since=kept.since,
            state=kept.state,
            health=kept.health,
            restarts=kept.restarts,
            address=kept.program.address,
            ports=dict(kept.program.ports),
            log=str(self.lines.file(name)),
        )

    def say(self, text: str) -> None:
        self.lines.add(UP, text)

    def _set(self, kept: _Kept, state: State, health: Health | None = None) -> None:
        """A process's state, as it is from now on, for all who look."""
        health = kept.health if health is None else health
        if (state, health) == (kept.state, kept.health):
            return
        if state != kept.state and state != "running":
            kept.since = time.time()
        kept.state, kept.health = state, health
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk is no reason to end
            write_run(self.folder, tuple(map(self.entry, self._kept)), self._since)

    async def _settle(self, on_settled: Callable[[], object]) -> None:
        while any(kept.health != "ok" and kept.state != "given up" for kept in self._kept.values()):
            await asyncio.sleep(self.pace.starting_look_seconds)
        on_settled()

    async def _keep(self, kept: _Kept) -> None:
        """Run a program again and again, until told to end it, or until that is of no use."""
        for name in kept.program.after:
            await _first(self._kept[name].up, kept.told)
        while not self._stop.is_set():
            kept.told.clear()
            kept.replaced = False
            code = await self._run_once(kept)
            if self._stop.is_set():
                break
            if kept.replaced:
                continue
            now = time.monotonic()
            if kept.ends == 0 or (kept.live_at is not None and now - kept.live_at >= self.pace.steady_seconds):
                kept.ends, kept.failing_since = 0, now
            kept.ends += 1
            why = kept.why or _how_it_ended(code)
            if self._is_hopeless(kept, now - kept.failing_since):
                said = f": {kept.last_line}" if kept.last_line else ""
                self.say(
                    f"{kept.program.name} is given up: {why}, {kept.ends} times in a row{said}; "
                    f"all it said is in {self.lines.file(kept.program.name)}; mend it, then `gleaner down` and up again"
                )
                self._set(kept, "given up", "")
                kept.up.set()
                return
            wait = min(self.pace.longest_wait_seconds, self.pace.first_wait_seconds * 2 ** (kept.ends - 1))
            self.say(f"{kept.program.name} {why}; it is started again in {wait:.2g} s")
            self._set(kept, "restarting", "")
            kept.restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(kept.told.wait(), wait)
        self._set(kept, "stopped", "")

    def _is_hopeless(self, kept: _Kept, failing_seconds: float) -> bool:
        if kept.has_answered:
            return failing_seconds >= self.pace.failing_seconds
        return kept.ends >= self.pace.most_ends

    async def _run_once(self, kept: _Kept) -> int:
        """One process from its start to the end of all that it has started; its exit code."""
        read, write = os.pipe()
        kept.why = kept.last_line = ""
        kept.live_at = None
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-SEc", LAUNCH, str(self._guard_pipe), *kept.program.command),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=kept.program.environment,
                pass_fds=[self._guard_pipe],
                start_new_session=True,
            )
        except OSError as e:  # the machine has no more processes, or memory
            os.close(read)
            kept.why = f"could not be started: {e.strerror}"
            return 1
        finally:
            os.close(write)
        kept.process, kept.pid, kept.started = process, process.pid, start_of(process.pid) or 0.0
        reader = asyncio.create_task(self._read(kept, read))
        self._set(kept, "starting", "")
        watch = asyncio.create_task(self._watch(kept, process))
        if self._stop.is_set() or kept.replaced:
            await self._terminate(kept, process)
        code = await process.wait()
        watch.cancel()
        # Whatever it has started in its turn, and no longer looks after.
        await asyncio.to_thread(end_sessions, [process.pid])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader, 1.0)
        self._tell_guard(f"-{process.pid}")
        kept.process, kept.pid, kept.started = None, 0, 0.0
        return code

    async def _read(self, kept: _Kept, descriptor: int) -> None:
        """Pass on a process's lines; one without an end comes in pieces."""
        reader = asyncio.StreamReader()
        pipe = os.fdopen(descriptor, "rb", 0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            rest = b""
            while piece := await reader.read(1 << 16):
                *whole, rest = (rest + piece).split(b"\n")
                if len(rest) > LONGEST_LINE:
                    whole.append(rest)
                    rest = b""
                for line in whole:
                    self._hear(kept, line)
            if rest:
                self._hear(kept, rest)
        finally:
            transport.close()

    def _hear(self, kept: _Kept, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        if text.strip():
            kept.last_line = text.strip()
        self.lines.add(kept.program.name, text)

    async def _watch(self, kept: _Kept, process: asyncio.subprocess.Process) -> None:
        """Look whether a process answers; end one that does not, so that it is started again."""
        began, silent = time.monotonic(), 0
        while not (
            await self._answers(kept.program.live) and await asyncio.to_thread(_is_its_own, kept.program, process)
        ):
            if time.monotonic() - began > kept.program.start_seconds:
                kept.why = f"did not answer within {kept.program.start_seconds:g} s"
                _kill(process)
                return
            await asyncio.sleep(self.pace.starting_look_seconds)
        kept.live_at, kept.has_answered = time.monotonic(), True
        kept.up.set()
        while True:
            live = await self._answers(kept.program.live)
            ready = live and (not kept.program.ready or await self._answers(kept.program.ready))
            health: Health = "ok" if ready else "not ready" if live else "no answer"
            if health != kept.health:
                if health == "ok":
                    self.say(f"{kept.program.name} is ready, {time.monotonic() - began:.1f} s after its start")
                else:
                    self.say(f"{kept.program.name}: {health}")
            if kept.state in {"starting", "running"}:
                self._set(kept, "running", health)
            silent = 0 if live else silent + 1
            if silent >= self.pace.most_silent:
                kept.why = f"did not answer {silent} times"
                _kill(process)
                return
            await asyncio.sleep(self.pace.look_seconds if ready else self.pace.unready_look_seconds)

    async def _answers(self, url: str) -> bool:
        if not url:
            return True
        try:
            return (await self._http.get(url)).status_code == 200
        except httpx.HTTPError:
            return False

    async def _end(self, kept: _Kept) -> None:
        """End one process in order, and its keeper."""
        kept.told.set()
        if kept.process:
            self._set(kept, "stopping")
            await self._terminate(kept, kept.process)
        if kept.keeper:
            await kept.keeper

    async def _terminate(self, kept: _Kept, process: asyncio.subprocess.Process) -> None:
        """Tell a process to end, and make it end where it takes too long."""
        ended = asyncio.create_task(process.wait())
        hurry = asyncio.create_task(self._hurry.wait())
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait([ended, hurry], timeout=kept.program.stop_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not ended.done():
            if not self._hurry.is_set():
                self.say(f"{kept.program.name} has not ended within {kept.program.stop_seconds:g} s, and is killed")
            _kill(process)
        await ended

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[None]:
        # Never by way of a proxy, and nothing here is encrypted.
        async with httpx.AsyncClient(timeout=self.pace.answer_seconds, trust_env=False, verify=False) as self._http:
            yield

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        """Have a guard, another one should it end, until the block ends."""
        await self._start_guard()
        watch = asyncio.create_task(self._keep_guard())
        try:
            yield
        finally:
            watch.cancel()
            os.close(self._guard_pipe)
            if self._guard:
                await self._guard.wait()

    async def _start_guard(self) -> None:
        read, write = os.pipe()
        self._guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gleaner.guard"),
            stdin=read,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._lock],
        )
        os.close(read)
        self._guard_pipe = write

    async def _keep_guard(self) -> None:
        while self._guard:
            code = await self._guard.wait()
            self.say(f"the guard {_how_it_ended(code)}; another one is started")
            await asyncio.sleep(self.pace.first_wait_seconds)
            os.close(self._guard_pipe)
            await self._start_guard()
            for kept in self._kept.values():
                if kept.pid:
                    self._tell_guard(f"+{kept.pid}")

    def _tell_guard(self, what: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # there will be another, who is told all
            os.write(self._guard_pipe, f"{what}\n".encode())


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _is_its_own(program: Program, process: asyncio.subprocess.Process) -> bool:
    """Whether it is a process itself that answers on its port, and not a stranger who was quicker to take it."""
    pids = members([process.pid])
    return all(is_held_by(port, pids) for port in program.ports.values())


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of some events has happened."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _how_it_ended(code: int) -> str:
    return f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
