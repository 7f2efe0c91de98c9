"""Programs to keep running, and the pace at which the supervisor acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gleaner.settings.file import USER


@dataclass(frozen=True, slots=True)
class Program:
    """One program to keep running.

    live: a URL that returns 200 while the process runs; empty if the process has none.
    ready: a URL that returns 200 while the process can do its work; empty if `live` says that too.
    after: names of the programs that start first.
    environment: the whole environment; None for this process's own.
    password_file: the file of the password that its URLs ask for, with the user `gleaner`; empty for none.
    address, about: the URL and the line shown to people.
    ports: the ports that it listens on, by setting.
    start_seconds, stop_seconds: the time it may take to respond, and to exit.
    """

    name: str
    command: Sequence[str]
    live: str = ""
    ready: str = ""
    after: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    address: str = ""
    about: str = ""
    password_file: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    start_seconds: float = 60.0
    stop_seconds: float = 15.0


def read_password(file: str) -> tuple[str, str] | None:
    """Return (user, password) from a file; None without a file."""
    return (USER, Path(file).read_text()) if file else None


@dataclass(frozen=True, slots=True)
class Pace:
    """Waits and limits of a supervisor.

    first_wait_seconds, longest_wait_seconds: the wait before a restart, which doubles with every exit in a row.
    steady_seconds: after so long of responding, the next exit counts as the first again.
    failing_seconds: a process that has responded before is given up after failing for so long. Its cause, such as a
        full disk, may pass.
    most_ends: a process that never responded is given up after so many exits (the default takes about 45 s). It is
        more likely set up wrongly, and somebody is waiting at the terminal.
    look_seconds: the time between two checks; starting_look_seconds and unready_look_seconds before it is ready.
    response_seconds: the time that a check may take.
    most_silent: so many failed checks in a row count as an exit.
    """

    first_wait_seconds: float = 0.02
    longest_wait_seconds: float = 30.0
    failing_seconds: float = 300.0
    most_ends: int = 12
    steady_seconds: float = 10.0
    starting_look_seconds: float = 0.1
    unready_look_seconds: float = 0.5
    look_seconds: float = 3.0
    response_seconds: float = 3.0
    most_silent: int = 10
