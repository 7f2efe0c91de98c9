"""The guard: a process that ends everything if `gleaner up` is killed.

Every process of a supervisor begins a session and writes its number into a pipe that only the supervisor keeps open.
When the pipe closes, the guard ends the sessions that are left. Linux's PR_SET_PDEATHSIG would end children but not
grandchildren, such as the workers of MLflow's server, and other systems lack it.
"""

from __future__ import annotations

import signal
import sys

from gleaner.machine.processes import end_sessions

# A small Python runs this and then becomes the command. It writes its number itself: the pipe cannot close before
# that, so the guard knows every process that was started. Python ignores SIGPIPE; the command must not inherit that.
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


def main() -> None:
    """Wait until standard input closes, then end the sessions that are left.

    The line `+7` adds session 7, and `-7` removes it.
    """
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
