"""What `gleaner up` runs in a folder: one file, written whole, by which other terminals see it and end it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from gleaner.errors import Refused
from gleaner.guard import end_sessions
from gleaner.settings import FILE

State = Literal["waiting", "starting", "running", "restarting", "given up", "stopping", "stopped"]
Health = Literal["", "ok", "not ready", "no answer"]

# After a supervisor that was killed, its guard is still ending what that has left.
_HELD_SECONDS = 5.0
_POLL_SECONDS = 0.05
# The command, or a script of its old name; not whatever else lies in a folder called gleaner.
_SCRIPT = re.compile(r"(^|/)(gleaner|src/(predict|train)\.py)$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One process as it is now. started: see `start_of`. since: Unix time. pid: 0 where none runs."""

    name: str
    pid: int
    started: float
    since: float
    state: State
    health: Health
    restarts: int
    address: str
    ports: Mapping[str, int]
    log: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `up`. alive: whether it still goes on; False for one that was killed."""

    pid: int
    started: float
    since: float
    entries: tuple[Entry, ...]
    alive: bool = True


def start_of(pid: int) -> float | None:
    """When a process began, in seconds since the machine did; None if it has ended.

    With the process id it names one process for good, and a clock that is set does not change it.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(round(process.create_time() - psutil.boot_time(), 2))
    except psutil.Error:
        return None


def is_same(pid: int, started: float) -> bool:
    """Whether a process is the one that was written down, and not another that got its number later."""
    found = start_of(pid) if pid else None
    return found is not None and abs(found - started) < 0.05


def write_run(folder: Path, entries: tuple[Entry, ...], since: float) -> None:
    """Write down this process as the run of a folder."""
    own = os.getpid()
    run = {"pid": own, "started": start_of(own), "since": since, "entries": [asdict(entry) for entry in entries]}
    half = folder / ".run.json.half"
    half.write_text(json.dumps(run, indent=1))
    half.replace(folder / "run.json")


def read_run(folder: Path) -> Run | None:
    """The run of a folder; None where none goes on and nothing is left of one.

    Entries are those of processes that are verifiably still there, and those that have none.
    """
    try:
        run: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
        entries = tuple(Entry(**entry) for entry in run["entries"])
        pid, started, since = int(run["pid"]), float(run["started"]), float(run["since"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise Refused(f"{folder / 'run.json'} is not what `gleaner up` writes; move it away") from e
    alive = is_same(pid, started)
    left = tuple(entry for entry in entries if is_same(entry.pid, entry.started))
    if not alive and not left:
        return None
    return Run(pid, started, since, entries if alive else left, alive)


def settings_of(pid: int) -> Path | None:
    """The settings file of the Gleaner that a process is, or was started by; None for a stranger."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.parents()):
            command = one.cmdline()
            at = _where_gleaner_begins(command)
            if at is not None:
                return _settings_file(one, Path(command[at]), command[at + 1 :])
    return None


def _where_gleaner_begins(command: Sequence[str]) -> int | None:
    """The place of `gleaner`, or of a script of its old name, in a command that runs it; None in any other.

    An editor that has a folder called gleaner open is another.
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
    """The file that a Gleaner has read, as `find_settings` and the scripts find it."""
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


@contextmanager
def hold(folder: Path) -> Iterator[int]:
    """Be the one run of a folder; gives the descriptor of its lock, which a guard holds on to as well.

    Raises Refused, naming the run that there is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        deadline = time.monotonic() + _HELD_SECONDS
        while not _try(lock.fileno()):
            run = read_run(folder)
            if (run and run.alive) or time.monotonic() > deadline:
                who = f"pid {run.pid}" if run else "pid unknown"
                raise Refused(
                    f"`gleaner up` runs here already, {who}; `gleaner status` shows it, `gleaner down` ends it"
                )
            time.sleep(_POLL_SECONDS)
        write_run(folder, (), time.time())
        try:
            yield lock.fileno()
        finally:
            (folder / "run.json").unlink(missing_ok=True)


def end_run(folder: Path, *, seconds: float) -> list[str]:
    """End the run of a folder, in order, and wait for it; the names of the processes that were running.

    Ends only what is verifiably that run's. Raises Refused where it has not ended in time.
    """
    run = read_run(folder)
    if run is None:
        return []
    names = [entry.name for entry in run.entries if entry.pid]
    if run.alive:
        os.kill(run.pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while is_same(run.pid, run.started):
            if time.monotonic() > deadline:
                raise Refused(
                    f"pid {run.pid} was told to end {seconds:.0f} s ago, and still runs; "
                    f"`kill -9 {run.pid}` ends it, and its guard the rest"
                )
            time.sleep(_POLL_SECONDS)
    else:
        end_sessions([entry.pid for entry in run.entries])
    with (folder / "lock").open("a") as lock:
        deadline = time.monotonic() + _HELD_SECONDS
        while not _try(lock.fileno()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    return names


def _try(lock: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
