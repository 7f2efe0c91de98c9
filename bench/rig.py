"""The parts that benchmarks share.

Models and rows, a server on one core, load from the other, results.
"""

from __future__ import annotations

import contextlib
import datetime
import json
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
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor

from gleaner.model.scores import Scores
from gleaner.model.store import Store
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.csv import read_table
from gleaner.table.numbers import Array
from gleaner.table.tables import Table
from gleaner.training.events import Fitted
from gleaner.training.packing import pack

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SERVER_CORE, LOAD_CORE = 0, 1
BODIES = 1_024
START_SECONDS, STOP_SECONDS = 120.0, 5.0
NAMES = ("time_spent", "doors_in_route", "assessed_value")
LUA = """
local bodies = {%s}
local next = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
%s
request = function()
  next = next %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[next])
end
"""


def need_tools() -> None:
    """Exit if a tool or the second core is missing."""
    missing = [tool for tool in ("wrk", "taskset") if not shutil.which(tool)]
    if missing:
        sys.exit(f"{' and '.join(missing)} not installed; on Debian: apt-get install wrk util-linux")
    if not {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        sys.exit("this benchmark needs CPUs 0 and 1: one for the server, one for the load")


def make_table(rows: int = BODIES) -> Table:
    """Make routes of realistic spread, with noise in the target.

    The noise makes trees grow to full depth.
    """
    random = np.random.default_rng(0)
    time_spent = np.round(random.lognormal(3.6, 0.6, rows).clip(1, 1440))
    doors = np.round(random.lognormal(5.0, 0.6, rows).clip(1, 10_000))
    value = np.round(random.lognormal(13.0, 1.2, rows).clip(1e5, 1e9), -2)
    bags = np.round((8 + 0.19 * time_spent + 0.05 * doors) * random.lognormal(0, 0.4, rows))
    return Table(
        path=Path("made"),
        schema=load_settings(ROOT / "gleaner.toml").schema_,
        X=np.column_stack([time_spent, doors, value]),
        y=bags,
        lines=np.arange(rows) + 2,
        days=np.full(rows, np.nan),
        groups=None,
        taken={},
        faults=(),
        refused=0,
        sha256="",
        encoding="utf-8",
    )


def fit_models(table: Table) -> dict[str, DecisionTreeRegressor | RandomForestRegressor]:
    """Fit the tree of v1 and the forest of v2."""
    models = {
        "v1": DecisionTreeRegressor(max_depth=3, random_state=0),
        "v2": RandomForestRegressor(200, max_depth=10, random_state=0),
    }
    return {slot: model.fit(table.X, table.y) for slot, model in models.items()}


def fill_store(settings: Settings, table: Table, models: Mapping[str, object]) -> None:
    """Add the tree for v1 and the forest for v2.

    The tree is version 1, the forest version 2.
    """
    store, scores = Store(settings.store), Scores(0.0, 0.0, 0.0, 0.0)
    for number, (name, slot) in enumerate({"decision_tree": "v1", "random_forest": "v2"}.items(), start=1):
        fitted = Fitted(name, models[slot], {}, scores, table.y, 0.0, 1, 0.0)
        with tempfile.TemporaryDirectory() as scratch:
            store.add(number, pack(fitted, table, scores, settings, Path(scratch) / "a").folder)
    store.point({"champion": 1, "challenger": 2})


def prepare(
    state: Path, rows: int = 0
) -> tuple[dict[str, str], dict[str, DecisionTreeRegressor | RandomForestRegressor]]:
    """Train both models and fill a store.

    Returns (environment of Gleaner's processes, models by slot).

    rows: the size of a made table to train on; 0 for the bundled sample.
    """
    config = ROOT / "gleaner.toml"
    settings = load_settings(config, {"paths": {"state": str(state)}})
    sample = ROOT / "examples" / "food-drive" / "routes.csv"
    table = make_table(rows) if rows else read_table(sample, settings.schema_)
    models = fit_models(table)
    fill_store(settings, table, models)
    return {**os.environ, "GLEANER_PATHS__STATE": str(state), "GLEANER_CONFIG": str(config)}, models


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of packages."""
    return {"Python": sys.version.split()[0]} | {name: version(name) for name in packages}


def write_results(name: str, used: Mapping[str, object], found: object) -> None:
    """Write a benchmark's results to bench/results/NAME.json.

    used: the versions of what was measured.
    found: the measurements, as JSON takes them.
    """
    content = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "arguments": sys.argv[1:],
        "cpus": os.cpu_count(),
        "versions": used,
        "results": found,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"results: {path}")


def objects(X: Array) -> list[dict[str, int]]:
    """Return the rows as JSON objects."""
    return [dict(zip(NAMES, map(int, row), strict=True)) for row in X]


def write_script(path: Path, bodies: Sequence[str], headers: Mapping[str, str] | None = None) -> Path:
    """Write a script for wrk that posts the bodies in turn."""
    more = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items())
    path.write_text(LUA % (",".join(f"'{body}'" for body in bodies), more))
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
    """Run a server on its core.

    Yields (process, seconds from its start to its first response).

    url, body: the first request.
    log: a file for the server's output.
    At the end, all of the server's processes are ended by process id.
    """
    began = time.perf_counter()
    with Path(log or os.devnull).open("w") as out:
        pinned = ["taskset", "-c", str(SERVER_CORE), *command]
        # In a session of its own, Ctrl-C reaches the benchmark only, and every process can be found.
        process = subprocess.Popen(
            pinned, env=dict(environment), cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while not _responds(url, body):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                said = f":\n{log.read_text()[-3000:]}" if log else ""
                sys.exit(f"{' '.join(command[:3])} ... did not respond at {url}{said}")
            time.sleep(0.005)
        yield psutil.Process(process.pid), time.perf_counter() - began
    finally:
        _end(process)


def _responds(url: str, body: bytes | None) -> bool:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except OSError:
        return False
    return True


def members(leader: int) -> list[psutil.Process]:
    """Return a server's processes.

    The leader, its session, and children in other sessions.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid == leader or os.getsid(process.pid) == leader:
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return [one for one in found.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def _end(process: subprocess.Popen[bytes]) -> None:
    # A second Ctrl-C must not leave processes behind.
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


def cpu_seconds(server: psutil.Process) -> float:
    """Return the CPU time that a server has used."""
    times = server.cpu_times()
    return times.user + times.system


def memory_bytes(process: psutil.Process) -> int:
    """Return a server's memory: PSS, summed over its processes."""
    return sum(one.memory_full_info().pss for one in members(process.pid))


class Load(NamedTuple):
    """One run of wrk.

    rate: responses with status 200 per second
    refused: other responses
    """

    rate: float
    p99: float  # milliseconds
    asked: int
    refused: int


def load(url: str, script: Path, seconds: int) -> Load:
    """Run wrk with 16 connections on the second core."""
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", "-c16", f"-d{seconds}s", "--timeout", "20s"]
    command += ["--latency", "-s", str(script), url]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    return read_wrk(out)


def read_wrk(out: str) -> Load:
    """Read wrk's output; exit if a connection broke, or no request succeeded."""
    if "Socket errors" in out:
        sys.exit(f"connections broke:\n{out}")
    asked = int(re.search(r"(\d+) requests in", out)[1])
    refused = int(found[1]) if (found := re.search(r"Non-2xx or 3xx responses: (\d+)", out)) else 0
    if asked == refused:
        sys.exit(f"no request succeeded; for a slow server, raise --seconds:\n{out}")
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", out).groups()
    milliseconds = float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]) * (1 - refused / asked)
    return Load(rate, milliseconds, asked, refused)


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Write the median with the minimum and the maximum."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Divide ours by theirs, round by round."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def refusals(name: str, runs: Sequence[Load]) -> str:
    """Write the number of refused requests; empty for none."""
    refused, asked = sum(run.refused for run in runs), sum(run.asked for run in runs)
    return f"{name} refused {refused:,} of {asked:,} requests.\n" if refused else ""
