"""One process of a program: start, output, checks and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from gleaner.machine.ports import is_held_by
from gleaner.machine.processes import end_sessions, members, start_of
from gleaner.running.guard import LAUNCH
from gleaner.running.guarding import Guard
from gleaner.running.process_logs import LONGEST_LINE, Lines
from gleaner.running.program import Pace, Program, read_password


@dataclass(frozen=True, slots=True)
class Shared:
    """Objects that all processes of a supervisor share.

    say: prints a line of the supervisor's own.
    write: writes the run file.
    stop, hurry: set when everything is to end in order, and at once.
    """

    pace: Pace
    lines: Lines
    guard: Guard
    http: httpx.AsyncClient
    say: Callable[[str], object]
    write: Callable[[], object]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)


class Process:
    """One process, from its start until its whole session has ended.

    pid, started: its number and its start (see `start_of`); 0 while none runs.
    why: the reason for which the supervisor ends it; empty if it exits by itself.
    last_line: the last line of its output that is not blank.
    live_at: the time of its first response, on the monotonic clock.
    """

    def __init__(self, program: Program, shared: Shared) -> None:
        self.program, self._shared = program, shared
        self.pid, self.started = 0, 0.0
        self.why = self.last_line = ""
        self.live_at: float | None = None
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]

    async def start(self) -> bool:
        """Start it in its own session; return False if the system cannot."""
        read, write = os.pipe()
        pipe = self._shared.guard.pipe
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-SEc", LAUNCH, str(pipe), *self.program.command),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=self.program.environment,
                pass_fds=[pipe],
                start_new_session=True,
            )
        except OSError as e:  # no processes or memory are left
            os.close(read)
            self.why = f"could not be started: {e.strerror}"
            return False
        finally:
            os.close(write)
        self.pid = self._process.pid
        self.started = start_of(self.pid) or 0.0
        self._shared.guard.add(self.pid)
        self._reader = asyncio.create_task(self._read(read))
        return True

    async def wait(self) -> int:
        """Wait for its exit and return the exit code."""
        return await self._process.wait()

    async def end_session(self) -> None:
        """End the processes that it left behind, and read its last output."""
        await asyncio.to_thread(end_sessions, [self.pid])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._reader, 1.0)
        self._shared.guard.remove(self.pid)
        self.pid, self.started = 0, 0.0

    async def terminate(self) -> None:
        """End it with SIGTERM; with SIGKILL after `stop_seconds` or in a hurry."""
        ended = asyncio.create_task(self._process.wait())
        hurry = asyncio.create_task(self._shared.hurry.wait())
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        seconds = self.program.stop_seconds
        await asyncio.wait([ended, hurry], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not ended.done():
            if not self._shared.hurry.is_set():
                self._shared.say(f"{self.program.name} has not exited within {seconds:g} s and is killed")
            self._kill()
        await ended

    def fail(self, why: str) -> None:
        """Kill it for a reason."""
        self.why = why
        self._kill()

    async def responds(self, url: str) -> bool:
        """Return whether a URL returns 200; an empty one always does."""
        if not url:
            return True
        try:
            return (await self._shared.http.get(url, auth=read_password(self.program.password_file))).status_code == 200
        except (httpx.HTTPError, OSError):
            return False

    async def holds_its_ports(self) -> bool:
        """Return whether its own session, and no stranger, listens on its ports."""

        def look() -> bool:
            pids = members([self.pid])
            return all(is_held_by(port, pids) for port in self.program.ports.values())

        return await asyncio.to_thread(look)

    async def _read(self, descriptor: int) -> None:
        """Pass its lines on; a line without an end comes in pieces."""
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
                    self._take(line)
            if rest:
                self._take(rest)
        finally:
            transport.close()

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        if text.strip():
            self.last_line = text.strip()
        self._shared.lines.add(self.program.name, text)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
