"""The supervisor's side of the guard: its process and its pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gleaner.machine.processes import describe_exit


class Guard:
    """The running guard; another one is started if it exits.

    lock: the descriptor of the folder's lock, which the guard holds too.
    say: prints a line.
    pause_seconds: the wait before another guard starts.
    """

    def __init__(self, lock: int, say: Callable[[str], object], pause_seconds: float) -> None:
        self.pipe = -1
        self._lock, self._say, self._pause_seconds = lock, say, pause_seconds
        self._sessions: set[int] = set()
        self._process: asyncio.subprocess.Process | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep a guard running until the block ends."""
        await self._start()
        watch = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            watch.cancel()
            os.close(self.pipe)
            if self._process:
                await self._process.wait()

    def add(self, session: int) -> None:
        """Remember a session for the next guard; this one knows it already."""
        self._sessions.add(session)

    def remove(self, session: int) -> None:
        """Tell the guard that a session has ended."""
        self._sessions.discard(session)
        self._tell(f"-{session}")

    async def _start(self) -> None:
        read, self.pipe = os.pipe()
        for session in self._sessions:  # before it starts, so that every guard knows every session
            self._tell(f"+{session}")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gleaner.running.guard"),
            stdin=read,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._lock],
        )
        os.close(read)

    async def _keep(self) -> None:
        while self._process:
            code = await self._process.wait()
            self._say(f"the guard {describe_exit(code)}; another one starts")
            await asyncio.sleep(self._pause_seconds)
            os.close(self.pipe)
            await self._start()

    def _tell(self, what: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # this guard has exited; the next one gets every session
            os.write(self.pipe, f"{what}\n".encode())
