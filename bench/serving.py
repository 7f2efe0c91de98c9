"""Benchmark of predictions, beside a constant response: `make bench`.

The server has one core; wrk, with 16 keep-alive connections and 1,024 distinct bodies, has the other. Rounds measure
the constant, v1 and v2 in turn, so that a slow minute of the machine affects all three; the medians count. v1 is a tree
of depth 3 and v2 a forest of 200 trees of depth 10, both trained on the bundled sample. `--rows 20000` trains on a made
table: a forest grown on more rows has more nodes than a CPU cache holds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import psutil
import rig

LARGE = 10_000


def ask_many(server: psutil.Process, port: int, path: str, body: bytes, times: int) -> tuple[float, float]:
    """Return (milliseconds, the server's CPU milliseconds) per large request, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    before, began = rig.cpu_seconds(server), perf_counter()
    for _ in range(times):
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200 or not response.read():
            sys.exit(f"{path} did not return 200 for {len(body):,} bytes")
    connection.close()
    return (perf_counter() - began) * 1e3 / times, (rig.cpu_seconds(server) - before) * 1e3 / times


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Measure everything: lists of one value per round."""
    environment, _ = rig.prepare(scratch / "state", options.rows)
    bodies = [json.dumps(row) for row in rig.objects(rig.make_table().X)]
    script = rig.write_script(scratch / "post.lua", bodies)
    constant_port, port = rig.free_port(), rig.free_port()
    constant = [sys.executable, str(rig.ROOT / "bench" / "constant.py"), str(constant_port)]
    serve = [sys.executable, "-m", "gleaner", "serve", "--port", str(port), "--metrics-port", "0"]
    urls = {
        "constant": f"http://127.0.0.1:{constant_port}/",
        "v1": f"http://127.0.0.1:{port}/v1/predict",
        "v2": f"http://127.0.0.1:{port}/v2/predict",
    }
    first = bodies[0].encode()
    runs: dict[str, list[rig.Load]] = {name: [] for name in urls}
    cpu: dict[str, list[float]] = {name: [] for name in urls}
    with (
        rig.serving(constant, environment, urls["constant"]) as (other, _),
        rig.serving(serve, environment, urls["v1"], first) as (process, _),
    ):
        servers = {"constant": other, "v1": process, "v2": process}
        for url in urls.values():
            rig.load(url, script, 1)
        for _ in range(options.rounds):
            for name, url in urls.items():
                before = rig.cpu_seconds(servers[name])
                runs[name].append(rig.load(url, script, options.seconds))
                cpu[name].append((rig.cpu_seconds(servers[name]) - before) * 1e6 / runs[name][-1].asked)
        memory = sum(one.memory_info().rss for one in rig.members(process.pid))
        many = json.dumps(rig.objects(rig.make_table(LARGE).X)).encode()
        large = {
            name: [ask_many(process, port, f"/{name}/predict", many, times) for _ in range(options.rounds)]
            for name, times in (("v1", 30), ("v2", 5))
        }
    starts = []
    for _ in range(options.rounds):
        with rig.serving(serve, environment, urls["v1"], first) as (_, seconds):
            starts.append(seconds)
    return {
        "one row": {
            name: {"requests": [run._asdict() for run in found], "cpu_microseconds": cpu[name]}
            for name, found in runs.items()
        },
        "many rows": {
            name: [{"milliseconds": took, "cpu_milliseconds": used} for took, used in found]
            for name, found in large.items()
        },
        "many_rows_bytes": len(many),
        "memory_bytes": memory,
        "start_seconds": starts,
    }


def report(found: dict) -> None:
    """Print the medians."""
    one = found["one row"]
    runs = {name: [rig.Load(**run) for run in part["requests"]] for name, part in one.items()}
    cpu = {name: part["cpu_microseconds"] for name, part in one.items()}
    print(f"{'':10}{'requests/s':>26}{'of constant':>18}{'p99 ms':>10}{'CPU us':>9}{'of constant':>18}")
    base = [run.rate for run in runs["constant"]]
    for name in one:
        rates = [run.rate for run in runs[name]]
        ratio = statistics.median(rig.ratios(rates, base))
        p99, used = statistics.median(run.p99 for run in runs[name]), statistics.median(cpu[name])
        cpu_ratio = statistics.median(rig.ratios(cpu["constant"], cpu[name]))
        print(f"{name:10}{rig.spread(rates):>26}{ratio:>17.1%}{p99:>11.2f}{used:>9.1f}{cpu_ratio:>17.1%}")
    print(f"\n{LARGE:,} rows per request, a list of objects of {found['many_rows_bytes']:,} bytes")
    for name, rounds in found["many rows"].items():
        took = statistics.median(one["milliseconds"] for one in rounds)
        used = statistics.median(one["cpu_milliseconds"] for one in rounds)
        print(f"{name:10}{took:.1f} ms, {LARGE / took / 1e3:.2f} million rows/s; {used:.1f} ms of CPU")
    served = [*runs["v1"], *runs["v2"]]
    requests = sum(run.asked for run in served)
    print(f"\n{rig.refusals('gleaner', served)}resident memory after {requests:,.0f} requests:", end=" ")
    print(f"{found['memory_bytes'] / 1e6:.0f} MB")
    print(f"start to first prediction, on one core: {rig.spread(found['start_seconds'], '.2f')} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of one run of wrk")
    parser.add_argument("--rows", type=int, default=0, help="train on a made table of this many rows, not the sample")
    options = parser.parse_args()
    rig.need_tools()
    used = rig.versions("httptools", "uvloop", "onnxruntime", "msgspec", "numpy", "flask")
    print(", ".join(f"{name} {number}" for name, number in used.items()))
    print(f"{options.rounds} rounds of {options.seconds} s, in turn; median (minimum to maximum)\n")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, Path(scratch))
    report(found)
    rig.write_results("serving", used, found)


if __name__ == "__main__":
    main()
