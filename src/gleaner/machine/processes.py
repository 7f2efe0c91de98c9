"""Processes of this machine: identity, sessions, and the end of sessions."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

import psutil

# With this grace, all processes of a supervisor have ended within 3 s of its own end.
GRACE_SECONDS = 1.5
_STUCK_SECONDS = 5.0
_POLL_SECONDS = 0.02


def members(sessions: Collection[int]) -> dict[int, int]:
    """Return the processes of some sessions, each with its session.

    Zombies are left out.
    """
    found = {}
    for pid in psutil.pids():
        try:
            session = os.getsid(pid)
            if session in sessions and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found[pid] = session
        except (OSError, psutil.Error):
            continue  # the process ended after it was listed
    return found


def end_sessions(sessions: Collection[int], *, seconds: float = GRACE_SECONDS) -> None:
    """End all processes of some sessions: SIGTERM first, SIGKILL after a grace.

    A session's leader alone gets the SIGTERM while it runs, because it knows the order in which its children end.

    seconds: the grace.
    """
    left = members(sessions)
    for pid, session in left.items():
        if pid == session or session not in left:
            _send(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while left := members(sessions):
        if time.monotonic() > deadline:
            for pid in left:
                _send(pid, signal.SIGKILL)
            if time.monotonic() > deadline + _STUCK_SECONDS:
                return  # stuck in the kernel, where no signal helps
        time.sleep(_POLL_SECONDS)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.kill(pid, number)


def start_of(pid: int) -> float | None:
    """Return the start of a process, in seconds after the machine's start.

    None if it has ended. The process id and this number together name one process for good, even after the clock
    is set.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(round(process.create_time() - psutil.boot_time(), 2))
    except psutil.Error:
        return None


def is_same(pid: int, started: float) -> bool:
    """Return whether a process id still names the same process.

    The system may have given the number to another process since.

    started: see `start_of`.
    """
    found = start_of(pid) if pid else None
    return found is not None and abs(found - started) < 0.05


def describe_exit(code: int) -> str:
    """Describe an exit code; a negative one is a signal's number."""
    return f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exited with code {code}"
