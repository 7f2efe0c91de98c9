"""Owners of processes and ports: this Gleaner, another one, or a stranger."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import psutil

from gleaner.machine.ports import find_holder
from gleaner.running.run_file import Entry, RunFile
from gleaner.settings.file import FILE

# The command, or a script of its old name; not any other file in a folder called gleaner.
_SCRIPT = re.compile(r"(^|/)(gleaner|src/(predict|train)\.py)$")


def settings_of(pid: int) -> Path | None:
    """Return the settings file of the Gleaner that a process belongs to.

    None for a stranger.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.parents()):
            command = one.cmdline()
            at = _where_gleaner_begins(command)
            if at is not None:
                return _settings_file(one, Path(command[at]), command[at + 1 :])
    return None


def pid_of(holder: str) -> int:
    """Return the process id of a port's holder; 0 if hidden."""
    found = re.match(r"pid (\d+) ", holder)
    return int(found[1]) if found else 0


def is_of(run: RunFile | None, holder: str) -> bool:
    """Return whether a port's holder belongs to a stack."""
    pid = pid_of(holder)
    try:
        return bool(run and pid and os.getsid(pid) in {entry.pid for entry in run.entries})
    except ProcessLookupError:
        return False


def running_entry(run: RunFile | None, name: str) -> Entry | None:
    """Return a service of the running stack that holds all its ports.

    The doctor sends requests to no other process, because a stranger may hold the port.
    """
    for entry in run.entries if run and run.alive else ():
        holders = [find_holder(port) for port in entry.ports.values()] if entry.name == name and entry.pid else []
        if holders and all(holder and is_of(run, holder) for holder in holders):
            return entry
    return None


def _where_gleaner_begins(command: Sequence[str]) -> int | None:
    """Return the place of `gleaner`, or of its script, in a command.

    None for every other command, such as an editor with a folder called gleaner.
    """
    program = Path(command[0]).name if command else ""
    if program == "gleaner":
        return 0
    if program.lower().startswith("python"):
        for i, part in enumerate(command[1:], 1):
            if part == "-m":
                return i + 1 if command[i + 1 : i + 2] == ["gleaner"] else None
            if not part.startswith("-"):
                return i if _SCRIPT.search(part) else None
    return None


def _settings_file(process: psutil.Process, program: Path, arguments: Sequence[str]) -> Path:
    """Find the settings file of a Gleaner as that Gleaner finds it."""
    here = Path(process.cwd())
    for i, part in enumerate(arguments):
        if part == "--config" and arguments[i + 1 :]:
            return here / arguments[i + 1]
        if part.startswith("--config="):
            return here / part.removeprefix("--config=")
    path = here / (process.environ().get("GLEANER_CONFIG") or FILE)
    if program.suffix == ".py" and not path.exists():
        return (here / program).parents[1] / FILE
    return path
