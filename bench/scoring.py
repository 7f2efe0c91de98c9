"""How long `gleaner score` takes for a whole table on one core, and in how much memory: `make bench-score`.

A made table of three features, scored by a tree of depth 3 and by a forest of 200 trees of depth 10, both trained on
the bundled sample; round after round, each in turn, in a process pinned to the first core. Beside the seconds on the
clock stand those of the processor, which others on the machine cannot lengthen much. The forest gets a tenth of the
rows: its time is per row, and the last line says what the whole table would take.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
from rig import NAMES, ROOT, SERVER_CORE, fill_store, fit_models, make_table, spread

from gleaner.settings import load_settings
from gleaner.tables import read_table

# What the command itself does, and then what it took. VmHWM, unlike ru_maxrss, does not begin with the parent's.
PROGRAM = r"""
import atexit, json, re, resource, sys, time
from pathlib import Path
began = time.perf_counter()

def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    took = {"seconds": time.perf_counter() - began, "cpu": used.ru_utime + used.ru_stime, "megabytes": peak}
    print(json.dumps(took), file=sys.stderr)

atexit.register(tell)
from gleaner.cli import main
main()
"""


@dataclass(frozen=True)
class Took:
    seconds: float
    cpu: float
    megabytes: float


def write_table(path: Path, rows: int, *, bad: int = 0) -> None:
    """A table of distinct rows; of every `bad` rows, one holds a word for a number."""
    X = make_table(rows).X
    with path.open("w") as file:
        file.write(",".join(NAMES) + "\n")
        for start in range(0, rows, 100_000):
            lines = [f"{a:.0f},{b:.0f},{c:.0f}\n" for a, b, c in X[start : start + 100_000].tolist()]
            if bad:
                lines[::bad] = ["soon,50,200000\n"] * len(lines[::bad])
            file.writelines(lines)


def score(folder: Path, source: str, out: str, *options: str) -> Took:
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
    environment = {**os.environ, "GLEANER_PATHS__STATE": str(folder / "state")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 3}:
        sys.exit(done.stderr)
    (folder / out).unlink()
    return Took(**json.loads(done.stderr.splitlines()[-1]))


def show(name: str, rows: int, took: list[Took]) -> None:
    cpu = [t.cpu for t in took]
    print(f"{name}, {rows:,} rows: {spread([t.seconds for t in took], '.1f')} s", end="")
    print(f", processor {spread(cpu, '.1f')} s, {rows / statistics.median(cpu):,.0f} rows/s", end="")
    print(f", peak {max(t.megabytes for t in took):.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    packages = ("onnxruntime", "numpy", "pyarrow")
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in packages))
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as scratch:
        folder = Path(scratch)
        shutil.copy(ROOT / "gleaner.toml", folder)
        settings = load_settings(folder / "gleaner.toml", {"paths": {"state": str(folder / "state")}})
        table = read_table(ROOT / "examples" / "food-drive" / "routes.csv", settings.schema_)
        fill_store(settings, table, fit_models(table))
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
        for alias in ("champion", "challenger"):  # the self-tests, once
            score(folder, "few.csv", "out.csv", "--alias", alias)
        took: dict[str, list[Took]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, arguments in runs.items():
                took[name].append(score(folder, *arguments))
        for name, arguments in runs.items():
            show(name, options.rows if arguments[0].startswith("many") else few, took[name])
        whole = 10 * statistics.median([t.cpu for t in took["forest, a tenth"]])
        print(f"forest, {options.rows:,} rows, extrapolated: processor {whole:.0f} s")


if __name__ == "__main__":
    main()
