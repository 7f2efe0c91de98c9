"""What the benches stand on: two models and rows to ask for, servers on one core, and load from the other."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor

from gleaner.events import Fitted
from gleaner.packing import pack
from gleaner.schema import Array
from gleaner.scores import Scores
from gleaner.settings import Settings
from gleaner.store import Store
from gleaner.tables import Table

ROOT = Path(__file__).resolve().parents[1]
SERVER_CORE, LOAD_CORE = 0, 1
BODIES = 1_024
START_SECONDS, STOP_SECONDS = 120.0, 5.0
NAMES = ("time_spent", "doors_in_route", "assessed_value")
LUA = """
local bodies = {%s}
local next = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  next = next %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[next])
end
"""


def need_tools() -> None:
    """End here, saying how to get them, if a tool is missing or there is only one core."""
    missing = [tool for tool in ("wrk", "taskset") if not shutil.which(tool)]
    if missing:
        sys.exit(f"{' and '.join(missing)} not installed; on Debian: apt-get install wrk util-linux")
    if not {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        sys.exit("two cores are wanted: one for the server, one for the load")


def make_table(rows: int = BODIES) -> Table:
    """Routes of realistic spread; the target has noise, so that trees grow to their full depth."""
    random = np.random.default_rng(0)
    time_spent = np.round(random.lognormal(3.6, 0.6, rows).clip(1, 1440))
    doors = np.round(random.lognormal(5.0, 0.6, rows).clip(1, 10_000))
    value = np.round(random.lognormal(13.0, 1.2, rows).clip(1e5, 1e9), -2)
    bags = np.round((8 + 0.19 * time_spent + 0.05 * doors) * random.lognormal(0, 0.4, rows))
    return Table(
        path=Path("made"),
        X=np.column_stack([time_spent, doors, value]),
        y=bags,
        lines=np.arange(rows) + 2,
        days=np.full(rows, np.nan),
        taken={},
        faults=(),
        refused=0,
        sha256="",
        encoding="utf-8",
    )


def fit_models(table: Table) -> dict[str, DecisionTreeRegressor | RandomForestRegressor]:
    """The tree that v1 answers with, and the forest of v2."""
    models = {
        "v1": DecisionTreeRegressor(max_depth=3, random_state=0),
        "v2": RandomForestRegressor(200, max_depth=10, random_state=0),
    }
    return {slot: model.fit(table.X, table.y) for slot, model in models.items()}


def fill_store(settings: Settings, table: Table, models: Mapping[str, object]) -> None:
    """Version 1, the tree, for v1; version 2, the forest, for v2."""
    store, scores = Store(settings.store), Scores(0.0, 0.0, 0.0, 0.0)
    for number, (name, slot) in enumerate({"decision_tree": "v1", "random_forest": "v2"}.items(), start=1):
        fitted = Fitted(name, models[slot], {}, scores, table.y, 0.0, 1, 0.0)
        with tempfile.TemporaryDirectory() as scratch:
            store.add(number, pack(fitted, table, scores, settings, Path(scratch) / "a").folder)
    store.point({"champion": 1, "challenger": 2})


def objects(X: Array) -> list[dict[str, int]]:
    """The rows as JSON has them."""
    return [dict(zip(NAMES, map(int, row), strict=True)) for row in X]


def write_script(path: Path, bodies: Sequence[str]) -> Path:
    """A script for wrk that posts the bodies one after the other."""
    path.write_text(LUA % ",".join(f"'{body}'" for body in bodies))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    environment: Mapping[str, str],
    url: str,
    body: bytes | None = None,
    *,
    folder: Path = ROOT,
    log: Path | None = None,
) -> Iterator[tuple[psutil.Process, float]]:
    """A server on its core, answering; (process, seconds from its start to its first answer to `body`).

    What it leaves behind is ended, too: all of its processes, by their numbers.
    """
    began = time.perf_counter()
    with Path(log or os.devnull).open("w") as out:
        pinned = ["taskset", "-c", str(SERVER_CORE), *command]
        # A session of its own: Ctrl-C reaches the bench alone, and every process can be found again.
        process = subprocess.Popen(
            pinned, env=dict(environment), cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while not _answers(url, body):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                said = f":\n{log.read_text()[-3000:]}" if log else ""
                sys.exit(f"{' '.join(command[:3])} ... did not answer {url}{said}")
            time.sleep(0.005)
        yield psutil.Process(process.pid), time.perf_counter() - began
    finally:
        _end(process)


def _answers(url: str, body: bytes | None) -> bool:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except OSError:
        return False
    return True


def members(leader: int) -> list[psutil.Process]:
    """The living processes of a server: the leader, its session, and the children that left it."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid == leader or os.getsid(process.pid) == leader:
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return [one for one in found.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def _end(process: subprocess.Popen[bytes]) -> None:
    # A second Ctrl-C must not leave them behind.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        known = members(process.pid)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for one in known:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(one)
            _, alive = psutil.wait_procs(known, timeout=STOP_SECONDS)
            known = list({*alive, *members(process.pid)})
        process.wait(timeout=STOP_SECONDS)
    finally:
        signal.signal(signal.SIGINT, before)


def memory_bytes(process: psutil.Process) -> int:
    """What a server holds: PSS, summed over its processes."""
    return sum(one.memory_full_info().pss for one in members(process.pid))


class Load(NamedTuple):
    """One run of wrk. The rate is that of answers with status 200; a refusal is no answer, and is told apart."""

    rate: float
    p99: float  # milliseconds
    asked: int
    refused: int


def load(url: str, script: Path, seconds: int) -> Load:
    """One run of wrk, with 16 connections, on its core."""
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", "-c16", f"-d{seconds}s", "--timeout", "20s"]
    command += ["--latency", "-s", str(script), url]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    return read_wrk(out)


def read_wrk(out: str) -> Load:
    """What wrk printed; ends here if a connection broke, or nothing came back."""
    if "Socket errors" in out:
        sys.exit(f"connections broke:\n{out}")
    asked = int(re.search(r"(\d+) requests in", out)[1])
    refused = int(found[1]) if (found := re.search(r"Non-2xx or 3xx responses: (\d+)", out)) else 0
    if asked == refused:
        sys.exit(f"not one request was answered; if it is only slow, give it more --seconds:\n{out}")
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", out).groups()
    milliseconds = float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]) * (1 - refused / asked)
    return Load(rate, milliseconds, asked, refused)


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median, with the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times theirs ours was, in each round: its two measurements stood next to each other."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def refusals(name: str, runs: Sequence[Load]) -> str:
    """A line that says how many of a service's answers were refusals; nothing if none was."""
    refused, asked = sum(run.refused for run in runs), sum(run.asked for run in runs)
    return f"{name} refused {refused:,} of {asked:,} requests.\n" if refused else ""
