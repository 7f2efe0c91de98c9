"""The end of what a supervisor leaves behind, even if it is killed: a process that waits for that, and how to end one.

Every process of a supervisor begins a session, and its number goes into a pipe that only the supervisor keeps open.
When that closes, the guard ends the sessions that are left. Linux's PR_SET_PDEATHSIG would end children only, not
theirs (MLflow's server is one), and other systems lack it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Collection

import psutil

# All of a supervisor's are gone within 3 s of its own end.
GRACE_SECONDS = 1.5
_STUCK_SECONDS = 5.0
_POLL_SECONDS = 0.02

# Run by a small Python that then becomes the command. It tells its number itself: the guard sees no end of the pipe
# before that, so nothing is started that it does not know. Python ignores SIGPIPE, and others should not inherit it.
LAUNCH = """
import os, signal, sys
pipe = int(sys.argv[1])
try:
    os.write(pipe, b"+%d\\n" % os.getpid())
except OSError:
    pass
os.close(pipe)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as e:
    sys.exit(f"error: {sys.argv[2]} cannot be run: {e.strerror}")
"""


def members(sessions: Collection[int]) -> dict[int, int]:
    """The processes of some sessions, each with its session; not those that have ended and are only waited for."""
    found = {}
    for pid in psutil.pids():
        try:
            session = os.getsid(pid)
            if session in sessions and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found[pid] = session
        except (OSError, psutil.Error):
            continue  # it ended between being listed and being asked
    return found


def end_sessions(sessions: Collection[int], *, seconds: float = GRACE_SECONDS) -> None:
    """End what is left of some sessions: told to at once, made to after a while.

    Where a session's leader is there, it alone is told: it knows in which order its own are to end.
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
                return  # in the kernel's hands; nobody can do more
        time.sleep(_POLL_SECONDS)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.kill(pid, number)


def main() -> None:
    """Wait for the end of standard input; `+7` on it is a session to end then, `-7` one that has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sessions: set[int] = set()
    for line in sys.stdin.buffer:
        sign, session = line[:1], int(line[1:])
        sessions.add(session) if sign == b"+" else sessions.discard(session)
    if sessions:
        end_sessions(sessions)


if __name__ == "__main__":
    main()
