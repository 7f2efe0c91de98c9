"""How fast one row is answered, beside the same server answering a constant: `make bench`.

The server has one core, the load generator (wrk, 16 keep-alive connections, 1,024 distinct bodies) the other. The
three are measured in turn, round after round, so that a slow minute of the machine falls on all of them; medians count.
The two artifacts are trained here, on the bundled sample: a tree of depth 3, and a forest of 200 trees of depth 10.
With `--rows 20000` it is a made table: a forest grown on more rows has more nodes than a cache holds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil
from rig import (
    ROOT,
    Load,
    fill_store,
    fit_models,
    free_port,
    load,
    make_table,
    members,
    need_tools,
    objects,
    ratios,
    refusals,
    serving,
    spread,
    write_script,
)

from gleaner.settings import load_settings
from gleaner.tables import read_table

LARGE = 10_000


def cpu_seconds(server: psutil.Process) -> float:
    times = server.cpu_times()
    return times.user + times.system


def ask_many(server: psutil.Process, port: int, path: str, body: bytes, times: int) -> tuple[float, float]:
    """(milliseconds, CPU milliseconds of the server) of one large request, all on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    before, began = cpu_seconds(server), time.perf_counter()
    for _ in range(times):
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200 or not answer.read():
            sys.exit(f"{path} did not answer {len(body):,} bytes with 200")
    connection.close()
    return (time.perf_counter() - began) * 1e3 / times, (cpu_seconds(server) - before) * 1e3 / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rows", type=int, help="train on a made table of so many rows instead of the sample")
    options = parser.parse_args()
    need_tools()
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        environment = {**os.environ, "GLEANER_PATHS__STATE": str(state), "GLEANER_CONFIG": str(ROOT / "gleaner.toml")}
        settings = load_settings(ROOT / "gleaner.toml", {"paths": {"state": str(state)}})
        assert settings.data
        table = make_table(options.rows) if options.rows else read_table(settings.data, settings.schema_)
        fill_store(settings, table, fit_models(table))
        bodies = [json.dumps(row) for row in objects(make_table().X)]
        script = write_script(Path(scratch) / "post.lua", bodies)
        constant_port, port = free_port(), free_port()
        constant = [sys.executable, str(ROOT / "bench" / "constant.py"), str(constant_port)]
        serve = [sys.executable, "-m", "gleaner", "serve", "--port", str(port), "--metrics-port", "0"]
        urls = {
            "constant": f"http://127.0.0.1:{constant_port}/",
            "v1": f"http://127.0.0.1:{port}/v1/predict",
            "v2": f"http://127.0.0.1:{port}/v2/predict",
        }
        first = bodies[0].encode()
        found: dict[str, list[Load]] = {name: [] for name in urls}
        spent: dict[str, list[float]] = {name: [] for name in urls}
        with (
            serving(constant, environment, urls["constant"]) as (other, _),
            serving(serve, environment, urls["v1"], first) as (process, _),
        ):
            servers = {"constant": other, "v1": process, "v2": process}
            for url in urls.values():
                load(url, script, 1)
            for _ in range(options.rounds):
                for name, url in urls.items():
                    before = cpu_seconds(servers[name])
                    found[name].append(load(url, script, options.seconds))
                    spent[name].append((cpu_seconds(servers[name]) - before) * 1e6 / found[name][-1].asked)
            memory = sum(one.memory_info().rss for one in members(process.pid))
            many = json.dumps(objects(make_table(LARGE).X)).encode()
            large = {
                name: [ask_many(process, port, f"/{name}/predict", many, times) for _ in range(options.rounds)]
                for name, times in (("v1", 30), ("v2", 5))
            }
        starts = []
        for _ in range(options.rounds):
            with serving(serve, environment, urls["v1"], first) as (_, seconds):
                starts.append(seconds)

    names = ("granian", "onnxruntime", "msgspec", "numpy", "flask")
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in names))
    print(f"{options.rounds} rounds of {options.seconds} s, in turn; median (least to most)\n")
    print(f"{'':10}{'requests/s':>26}{'of the constant':>18}{'p99 ms':>10}{'CPU us':>9}{'of the constant':>18}")
    base = [run.rate for run in found["constant"]]
    for name, runs in found.items():
        rates = [run.rate for run in runs]
        ratio = statistics.median(ratios(rates, base))
        p99, cpu = statistics.median(run.p99 for run in runs), statistics.median(spent[name])
        cpu_ratio = statistics.median(ratios(spent["constant"], spent[name]))
        print(f"{name:10}{spread(rates):>26}{ratio:>17.1%}{p99:>11.2f}{cpu:>9.1f}{cpu_ratio:>17.1%}")
    print(f"\n{LARGE:,} rows in one request, a list of objects of {len(many):,} bytes")
    for name, asked in large.items():
        took, cpu = (statistics.median(values) for values in zip(*asked, strict=True))
        print(f"{name:10}{took:.1f} ms, {LARGE / took / 1e3:.2f} million rows/s; {cpu:.1f} ms of CPU")
    runs = [*found["v1"], *found["v2"]]
    served = sum(run.asked for run in runs)
    print(f"\n{refusals('gleaner', runs)}memory after {served:,.0f} requests: {memory / 1e6:.0f} MB resident")
    print(f"start to first answer, on the one core: {spread(starts, '.2f')} s")


if __name__ == "__main__":
    main()
