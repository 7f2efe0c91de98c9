"""How fast one row is answered, beside the same server answering a constant: `make bench`.

The server has one core, the load generator (wrk, 16 keep-alive connections, 1,024 distinct bodies) the other. The
three are measured in turn, round after round, so that a slow minute of the machine falls on all of them; medians count.
The two artifacts are trained here, on the bundled sample: a tree of depth 3, and a forest of 200 trees of depth 10.
With `--rows 20000` it is a made table: a forest grown on more rows has more nodes than a cache holds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

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
        with (
            serving(constant, environment, urls["constant"]),
            serving(serve, environment, urls["v1"], first) as (process, _),
        ):
            for url in urls.values():
                load(url, script, 1)
            for _ in range(options.rounds):
                for name, url in urls.items():
                    found[name].append(load(url, script, options.seconds))
            memory = sum(one.memory_info().rss for one in members(process.pid))
        starts = []
        for _ in range(options.rounds):
            with serving(serve, environment, urls["v1"], first) as (_, seconds):
                starts.append(seconds)

    names = ("granian", "onnxruntime", "msgspec", "numpy", "flask")
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in names))
    print(f"{options.rounds} rounds of {options.seconds} s, in turn; median (least to most)\n")
    print(f"{'':10}{'requests/s':>26}{'of the constant':>18}{'p99 ms':>10}")
    base = [run.rate for run in found["constant"]]
    for name, runs in found.items():
        rates = [run.rate for run in runs]
        ratio = statistics.median(ratios(rates, base))
        print(f"{name:10}{spread(rates):>26}{ratio:>17.1%}{statistics.median(run.p99 for run in runs):>11.2f}")
    runs = [*found["v1"], *found["v2"]]
    served = sum(run.asked for run in runs)
    print(f"\n{refusals('gleaner', runs)}memory after {served:,.0f} requests: {memory / 1e6:.0f} MB resident")
    print(f"start to first answer, on the one core: {spread(starts, '.2f')} s")


if __name__ == "__main__":
    main()
