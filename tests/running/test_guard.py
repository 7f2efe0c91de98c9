"""The guard ends the sessions that are left, and no others."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from gleaner.running.guarding import Guard

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def sessions() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield two processes, each with a session of its own."""
    with ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(SLEEP, start_new_session=True)) for _ in range(2)]
        for process in started:
            stack.callback(process.kill)
        yield started


def guards() -> set[psutil.Process]:
    """Return the running guards of this process."""
    children = psutil.Process().children()
    running = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return {child for child in running if "gleaner.running.guard" in child.cmdline()}


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def test_a_session_that_has_ended_is_forgotten(sessions):
    # The system may have given the number of an ended session to a stranger. This one plays the stranger.
    stranger, left = sessions
    guard = subprocess.Popen([sys.executable, "-m", "gleaner.running.guard"], stdin=subprocess.PIPE)
    lines = f"+{stranger.pid}\n+{left.pid}\n-{stranger.pid}\n"
    guard.communicate(lines.encode(), timeout=60)

    assert 0 == guard.returncode
    assert -signal.SIGTERM == left.wait(60)
    assert stranger.poll() is None


@pytest.mark.parametrize("is_killed", [False, True], ids=["the first guard", "a second guard"])
def test_a_supervisors_guard_forgets_a_session_that_has_ended(sessions, tmp_path, is_killed):
    stranger, left = sessions
    said: list[str] = []

    async def play() -> None:
        with (tmp_path / "lock").open("a") as lock:
            guard = Guard(lock.fileno(), said.append, pause_seconds=0.01)
            async with guard.running():
                for process in (stranger, left):
                    os.write(guard.pipe, b"+%d\n" % process.pid)  # as a launched process does
                    guard.add(process.pid)
                guard.remove(stranger.pid)
                if is_killed:
                    (first,) = guards()
                    first.kill()
                    await asyncio.wait_for(until(lambda: said and guards() - {first}), 60)

    asyncio.run(play())

    assert [is_killed] == [bool(said)]
    assert -signal.SIGTERM == left.wait(60)
    assert stranger.poll() is None
