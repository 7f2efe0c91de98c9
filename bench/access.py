"""Benchmark of keys and of the log of requests: `make bench-access`.

Each is a `gleaner serve` of its own on one core, and wrk on the other asks v1. Each round asks all of them in turn. The
ratio of the server's CPU in each round counts, and the interval is that of Student's t over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

import rig
from scipy import stats

from gleaner.serving.keys import add_key


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of ratios."""
    mean, error = statistics.mean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5
    low, high = stats.t.interval(0.95, len(ratios) - 1, mean, error)
    return float(low), float(high)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, dict[str, list[float]]]:
    """Return the rate and the CPU of each service, by round.

    rate: requests per second. cpu: microseconds per request.
    """
    environment, _ = rig.prepare(scratch / "state")
    bodies = [json.dumps(row) for row in rig.objects(rig.make_table().X)]
    _, key = add_key(scratch / "keys.json", "bench", ["predict"])
    variants = {
        "plain": ({}, {}),
        "plain again": ({}, {}),
        "keys": ({"GLEANER_API_KEYS_FILE": str(scratch / "keys.json")}, {"X-Api-Key": key}),
        "access_log": ({"GLEANER_SERVING__ACCESS_LOG": "true", "GLEANER_SERVING__LOG": "json"}, {}),
    }
    found: dict[str, dict[str, list[float]]] = {name: {"rate": [], "cpu": []} for name in variants}
    with contextlib.ExitStack() as stack:
        asked = []
        for name, (variables, headers) in variants.items():
            port = rig.free_port()
            url = f"http://127.0.0.1:{port}/v1/predict"
            serve = [sys.executable, "-m", "gleaner", "serve", "--port", str(port), "--metrics-port", "0"]
            probe, log = f"http://127.0.0.1:{port}/livez", scratch / f"{name}.log"
            server, _ = stack.enter_context(rig.serving(serve, {**environment, **variables}, probe, log=log))
            script = rig.write_script(scratch / f"{name}.lua", bodies, headers)
            rig.load(url, script, 1)
            asked.append((name, url, script, server))
        for _ in range(options.rounds):
            for name, url, script, server in asked:
                before = rig.cpu_seconds(server)
                load = rig.load(url, script, options.seconds)
                found[name]["cpu"].append((rig.cpu_seconds(server) - before) * 1e6 / load.asked)
                found[name]["rate"].append(load.rate)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=4, help="length of one run of wrk")
    options = parser.parse_args()
    rig.need_tools()
    used = rig.versions("httptools", "uvloop", "msgspec")
    print(", ".join(f"{name} {number}" for name, number in used.items()))
    print(f"{options.rounds} rounds of {options.seconds} s, in turn; median (minimum to maximum)\n")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, Path(scratch))
    print(f"{'':12}{'requests/s':>26}{'CPU us':>22}{'CPU of plain, 95 % interval':>36}")
    for name, part in found.items():
        ratios = rig.ratios(part["cpu"], found["plain"]["cpu"])
        low, high = interval(ratios) if name != "plain" else (1.0, 1.0)
        print(f"{name:12}{rig.spread(part['rate']):>26}{rig.spread(part['cpu'], '.1f'):>22}", end="")
        print(f"{statistics.mean(ratios):>14.1%} ({low:.1%} to {high:.1%})")
    rig.write_results("access", used, found)


if __name__ == "__main__":
    main()
