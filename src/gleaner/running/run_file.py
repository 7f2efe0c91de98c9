"""The run file: the stack of a folder, for `status` and `down`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gleaner.errors import Refused
from gleaner.machine.files import make_private, replace_file, try_lock
from gleaner.machine.processes import end_sessions, is_same, start_of

State = Literal["waiting", "starting", "running", "restarting", "given up", "stopping", "stopped"]
Health = Literal["", "ok", "not ready", "no answer"]

# A killed supervisor's guard holds the lock until it has ended every process.
_HELD_SECONDS = 5.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Entry:
    """The current state of one process.

    pid: 0 if none runs.
    started: see `start_of`.
    since: Unix time of the last change of state.
    password_file: the file of the password that its pages ask for; empty for none.
    """

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
    password_file: str = ""


@dataclass(frozen=True, slots=True)
class RunFile:
    """The run file of a stack that one `gleaner up` runs.

    alive: whether `up` still runs; False if it was killed.
    """

    pid: int
    started: float
    since: float
    entries: tuple[Entry, ...]
    alive: bool = True


def write_run_file(folder: Path, entries: tuple[Entry, ...], since: float) -> None:
    """Write the run file of a stack that this process keeps."""
    own = os.getpid()
    run = {"pid": own, "started": start_of(own), "since": since, "entries": [asdict(entry) for entry in entries]}
    replace_file(folder / "run.json", json.dumps(run, indent=1).encode(), mode=0o600, durable=False)


def read_run_file(folder: Path) -> RunFile | None:
    """Read the stack of a folder; None if nothing runs.

    If `up` was killed, only entries whose process verifiably still runs are returned.
    """
    try:
        run: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
        entries = tuple(Entry(**entry) for entry in run["entries"])
        pid, started, since = int(run["pid"]), float(run["started"]), float(run["since"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise Refused(f"{folder / 'run.json'} was not written by `gleaner up`; move it away") from e
    alive = is_same(pid, started)
    left = tuple(entry for entry in entries if is_same(entry.pid, entry.started))
    if not alive and not left:
        return None
    return RunFile(pid, started, since, entries if alive else left, alive)


@contextmanager
def hold(folder: Path) -> Iterator[int]:
    """Hold the lock of a folder, for one stack; gives its descriptor.

    Raises Refused, with the pid of the `up` that runs already.
    """
    make_private(folder)
    with contextlib.suppress(PermissionError):  # another user's; then the lock decides
        folder.chmod(0o700)  # an older version made the folder with the umask's permissions
    with (folder / "lock").open("a") as lock:
        deadline = time.monotonic() + _HELD_SECONDS
        while not try_lock(lock):
            run = read_run_file(folder)
            if (run and run.alive) or time.monotonic() > deadline:
                who, fix = f"pid {run.pid if run else 'unknown'}", "`gleaner status` shows it, `gleaner down` stops it"
                raise Refused(f"`gleaner up` runs here already, {who}; {fix}")
            time.sleep(_POLL_SECONDS)
        write_run_file(folder, (), time.time())
        try:
            yield lock.fileno()
        finally:
            (folder / "run.json").unlink(missing_ok=True)


def end_stack(folder: Path, *, seconds: float) -> list[str]:
    """End the stack of a folder in order; return its services.

    Only processes that verifiably belong to it are ended.

    seconds: the longest wait for the end.
    Raises Refused if it takes longer.
    """
    run = read_run_file(folder)
    if run is None:
        return []
    names = [entry.name for entry in run.entries if entry.pid]
    if run.alive:
        os.kill(run.pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while is_same(run.pid, run.started):
            if time.monotonic() > deadline:
                fix = f"`kill -9 {run.pid}` ends it, and its guard ends the rest"
                raise Refused(f"pid {run.pid} got SIGTERM {seconds:.0f} s ago and still runs; {fix}")
            time.sleep(_POLL_SECONDS)
    else:
        end_sessions([entry.pid for entry in run.entries])
    with (folder / "lock").open("a") as lock:
        deadline = time.monotonic() + _HELD_SECONDS
        while not try_lock(lock) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    return names
