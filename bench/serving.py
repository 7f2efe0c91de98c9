"""How fast one row is answered, beside the same server answering a constant: `make bench`.

The server has one core, the load generator (wrk, 16 keep-alive connections, 1,024 distinct bodies) the other. The
three are measured in turn, round after round, so that a slow minute of the machine falls on all of them; medians count.
Beside the rates stands the CPU time that the server took for a request, which a busy machine disturbs less.
Then 10,000 rows are asked in one request, as a list of JSON objects.
The two artifacts are trained here, on the bundled sample: a tree of depth 3, and a forest of 200 trees of depth 10.
With `--rows 20000` it is a made table: a forest grown on more rows has more nodes than a cache holds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor

from gleaner.events import Fitted
from gleaner.packing import pack
from gleaner.schema import Array
from gleaner.scores import Scores
from gleaner.settings import Settings, load_settings
from gleaner.store import Store
from gleaner.tables import Table, read_table

ROOT = Path(__file__).resolve().parents[1]
BODIES, LARGE = 1_024, 10_000
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


def fill_store(settings: Settings, table: Table) -> None:
    """Version 1, the tree, for v1; version 2, the forest, for v2."""
    store, scores = Store(settings.store), Scores(0.0, 0.0, 0.0, 0.0)
    estimators = {
        "decision_tree": DecisionTreeRegressor(max_depth=3, random_state=0),
        "random_forest": RandomForestRegressor(200, max_depth=10, random_state=0),
    }
    for number, (name, estimator) in enumerate(estimators.items(), start=1):
        fitted = Fitted(name, estimator.fit(table.X, table.y), {}, scores, table.y, 0.0, 1, 0.0)
        with tempfile.TemporaryDirectory() as scratch:
            store.add(number, pack(fitted, table, scores, settings, Path(scratch) / "a").folder)
    store.point({"champion": 1, "challenger": 2})


@contextmanager
def server(command: list[str], environment: dict[str, str]):
    """A server pinned to the first core; (process, its first line)."""
    pinned = ["taskset", "-c", "0", sys.executable, *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(pinned, env=environment, text=True, **pipes) as process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.terminate()
            process.wait(timeout=30)


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def load(pid: int, port: int, path: str, script: Path, seconds: int) -> tuple[float, float, float]:
    """(requests a second, p99 in milliseconds, CPU microseconds a request) of one run of wrk on the second core."""
    before = cpu_seconds(pid)
    url = f"http://127.0.0.1:{port}{path}"
    command = ["taskset", "-c", "1", "wrk", "-t1", "-c16", f"-d{seconds}s", "--latency", "-s", str(script), url]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit(f"{path} did not answer every request with 200:\n{out}")
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", out).groups()
    milliseconds = float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    cpu = (cpu_seconds(pid) - before) / int(re.search(r"(\d+) requests in", out)[1])
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), milliseconds, cpu * 1e6


def bulk(pid: int, port: int, path: str, body: bytes, times: int) -> tuple[float, float]:
    """(milliseconds, CPU milliseconds of the server) of one large request, all on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    before, began = cpu_seconds(pid), time.perf_counter()
    for _ in range(times):
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200 or not answer.read():
            sys.exit(f"{path} did not answer {len(body):,} bytes with 200")
    connection.close()
    return (time.perf_counter() - began) * 1e3 / times, (cpu_seconds(pid) - before) * 1e3 / times


def bodies(X: Array) -> list[str]:
    names = ("time_spent", "doors_in_route", "assessed_value")
    return [json.dumps(dict(zip(names, map(int, row), strict=True))) for row in X]


def start_seconds(environment: dict[str, str]) -> float:
    """Time from the start of `gleaner serve` to its first answered prediction."""
    body = b'{"time_spent":30,"doors_in_route":50,"assessed_value":200000}'
    port = 18_473
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "gleaner", "serve", "--port", str(port), "--metrics-port", "0"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/predict", body, {"Content-Type": "application/json"}
            )
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return time.perf_counter() - began
            except OSError:
                if time.perf_counter() - began > 60:
                    sys.exit("the service did not start")
                time.sleep(0.005)
    finally:
        process.terminate()
        process.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rows", type=int, help="train on a made table of so many rows instead of the sample")
    options = parser.parse_args()
    for tool in ("wrk", "taskset"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed; on Debian: apt-get install wrk util-linux")
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        environment = {**os.environ, "GLEANER_PATHS__STATE": str(state), "GLEANER_CONFIG": str(ROOT / "gleaner.toml")}
        settings = load_settings(ROOT / "gleaner.toml", {"paths": {"state": str(state)}})
        assert settings.data
        table = make_table(options.rows) if options.rows else read_table(settings.data, settings.schema_)
        fill_store(settings, table)
        script = Path(scratch) / "post.lua"
        script.write_text(LUA % ",".join(f"'{body}'" for body in bodies(make_table().X)))
        serve = ["-m", "gleaner", "serve", "--port", "0", "--metrics-port", "0"]
        with (
            server([str(ROOT / "bench" / "constant.py"), "0"], environment) as (constant, constant_line),
            server(serve, environment) as (process, line),
        ):
            pid, port = process.pid, int(re.search(r":(\d+),", line)[1])
            places = {
                "constant": (constant.pid, int(constant_line), "/"),
                "v1": (pid, port, "/v1/predict"),
                "v2": (pid, port, "/v2/predict"),
            }
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in places}
            for place in places.values():
                load(*place, script, 1)
            for _ in range(options.rounds):
                for name, place in places.items():
                    found[name].append(load(*place, script, options.seconds))
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            memory = sum(member.memory_info().rss for member in tree)
            many = f"[{','.join(bodies(make_table(LARGE).X))}]".encode()
            bulks = {"v1": (pid, port, "/v1/predict", many, 30), "v2": (pid, port, "/v2/predict", many, 5)}
            large = {name: [bulk(*place) for _ in range(options.rounds)] for name, place in bulks.items()}
        starts = [start_seconds(environment) for _ in range(options.rounds)]

    names = ("granian", "onnxruntime", "msgspec", "numpy", "flask")
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in names))
    print(f"{options.rounds} rounds of {options.seconds} s, in turn; median (least to most)\n")
    print(f"{'':10}{'requests/s':>26}{'of the constant':>18}{'p99 ms':>9}{'CPU us':>9}{'of the constant':>18}")
    base = found["constant"]
    for name, runs in found.items():
        rates = [rate for rate, _, _ in runs]
        ratio = statistics.median(rate / constant for (rate, _, _), (constant, _, _) in zip(runs, base, strict=True))
        cpu_ratio = statistics.median(constant / cpu for (*_, cpu), (*_, constant) in zip(runs, base, strict=True))
        _, p99, cpu = map(statistics.median, zip(*runs, strict=True))
        spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"{name:10}{spread:>26}{ratio:>17.1%}{p99:>10.2f}{cpu:>9.1f}{cpu_ratio:>17.1%}")
    served = sum(rate * options.seconds for name in ("v1", "v2") for rate, *_ in found[name])
    print(f"\n{LARGE:,} rows in one request, a list of objects of {len(many):,} bytes")
    for name, asked in large.items():
        took, cpu = map(statistics.median, zip(*asked, strict=True))
        print(f"{name:10}{took:.1f} ms, {LARGE / took / 1e3:.2f} million rows/s; {cpu:.1f} ms of CPU")
    print(f"\nmemory after {served:,.0f} requests: {memory / 1e6:.0f} MB resident")
    print(f"start to first answer: {statistics.median(starts):.2f} s (least {min(starts):.2f}, most {max(starts):.2f})")


if __name__ == "__main__":
    main()
