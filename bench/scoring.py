"""Benchmark of `gleaner score`: time and memory on one core.

`make bench-score` runs it on whole tables.

A tree of depth 3 and a forest of 200 trees of depth 10, trained on the bundled sample, score a made table of three
features. Rounds run every case in turn, each in a process on the first core. CPU seconds stand next to wall-clock
seconds, because other work on the machine lengthens CPU seconds less. The forest scores a tenth of the rows; the last
line extrapolates to the whole table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
from rig import NAMES, SERVER_CORE, make_table, prepare, spread, versions, write_results

# The command, then its time and memory. VmHWM, unlike ru_maxrss, does not start at the parent's peak.
PROGRAM = r"""
import atexit, json, re, resource, sys, time
from pathlib import Path
began = time.perf_counter()

def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    took = {"seconds": time.perf_counter() - began, "cpu": used.ru_utime + used.ru_stime, "megabytes": peak}
    print(json.dumps(took), file=sys.stderr)

atexit.register(report)
from gleaner.cli.main import main
main()
"""


@dataclass(frozen=True)
class Took:
    seconds: float
    cpu: float
    megabytes: float


def write_table(path: Path, rows: int, *, bad: int = 0) -> None:
    """Write a table of distinct rows.

    One row in `bad` has a word instead of a number.
    """
    X = make_table(rows).X
    with path.open("w") as file:
        file.write(",".join(NAMES) + "\n")
        for start in range(0, rows, 100_000):
            lines = [f"{a:.0f},{b:.0f},{c:.0f}\n" for a, b, c in X[start : start + 100_000].tolist()]
            if bad:
                lines[::bad] = ["soon,50,200000\n"] * len(lines[::bad])
            file.writelines(lines)


def score(folder: Path, environment: Mapping[str, str], source: str, out: str, *options: str) -> Took:
    command = [
        "taskset",
        "-c",
        str(SERVER_CORE),
        sys.executable,
        "-c",
        PROGRAM,
        "score",
        source,
        out,
        "--json",
        *options,
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 3}:
        sys.exit(done.stderr)
    (folder / out).unlink()
    return Took(**json.loads(done.stderr.splitlines()[-1]))


def show(name: str, rows: int, took: list[Took]) -> None:
    cpu = [t.cpu for t in took]
    print(f"{name}, {rows:,} rows: {spread([t.seconds for t in took], '.1f')} s", end="")
    print(f", CPU {spread(cpu, '.1f')} s, {rows / statistics.median(cpu):,.0f} rows/s", end="")
    print(f", peak {max(t.megabytes for t in took):.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    used = versions("onnxruntime", "numpy", "pyarrow")
    print(", ".join(f"{name} {number}" for name, number in used.items()))
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as scratch:
        folder = Path(scratch)
        environment, _ = prepare(folder / "state")
        few = options.rows // 10
        write_table(folder / "many.csv", options.rows)
        write_table(folder / "few.csv", few)
        write_table(folder / "bad.csv", few, bad=1_000)
        write_table(folder / "worst.csv", few, bad=100)
        for name in ("many", "few"):
            pyarrow.parquet.write_table(pyarrow.csv.read_csv(folder / f"{name}.csv"), folder / f"{name}.parquet")
        runs = {
            "tree": ("many.csv", "out.csv"),
            "tree, a tenth": ("few.csv", "out.csv"),
            "tree, a tenth, 1 row in 1,000 refused": ("bad.csv", "out.csv"),
            "tree, a tenth, 1 row in 100 refused": ("worst.csv", "out.csv"),
            "tree, Parquet": ("many.parquet", "out.parquet"),
            "tree, Parquet, a tenth": ("few.parquet", "out.parquet"),
            "forest, a tenth": ("few.csv", "out.csv", "--alias", "challenger"),
        }
        for alias in ("champion", "challenger"):  # the self-tests run once
            score(folder, environment, "few.csv", "out.csv", "--alias", alias)
        took: dict[str, list[Took]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, arguments in runs.items():
                took[name].append(score(folder, environment, *arguments))
        for name, arguments in runs.items():
            show(name, options.rows if arguments[0].startswith("many") else few, took[name])
        whole = 10 * statistics.median([t.cpu for t in took["forest, a tenth"]])
        print(f"forest, {options.rows:,} rows, extrapolated: CPU {whole:.0f} s")
        write_results("scoring", used, {name: [asdict(t) for t in rounds] for name, rounds in took.items()})


if __name__ == "__main__":
    main()
