"""Gleaner beside its peers, each pair in turn, in one run: `make bench-peers`.

A peer has a virtual environment of its own under `.gleaner-bench/`, made at the first run with the newest versions that
there are, and one worker. Both servers of a pair share one core, the load has the other; rounds go ours, theirs, ours,
theirs, so that a slow minute falls on both, and what counts is the median of the rounds' ratios. Before anything is
timed, every number that a service gives must be the estimator's own, to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import http.client
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import joblib
import numpy as np
import psutil
from rig import (
    LOAD_CORE,
    NAMES,
    ROOT,
    Load,
    fill_store,
    fit_models,
    free_port,
    load,
    make_table,
    members,
    memory_bytes,
    need_tools,
    ratios,
    refusals,
    serving,
    spread,
    write_script,
)
from services import ARROW_STREAM, JSON, OBJECTS, OURS, PEERS, Door, Place, Service

from gleaner import __version__
from gleaner.schema import Array
from gleaner.settings import load_settings
from gleaner.tables import read_table

ENVIRONMENTS = ROOT / ".gleaner-bench"
SLOTS = ("v1", "v2")
ROWS = 10_000
CHECKED_SINGLY = 32
NOT_SHOWN = """### What it does not show

- One core, loopback, no TLS, one client program, trees on three numbers: a larger model keeps everybody waiting alike.
  No gRPC, and no more workers: everybody can have more processes.
- The work is not the same. Ours refuses values out of range, MLflow checks its signature; ours, MLServer and BentoML
  count metrics; MLflow, BentoML and LitServe log a line for each request, as they do unless told otherwise.
- Batching (MLServer for v2, BentoML, LitServe) lives on many requests at once: with fewer than 16 it gains less.
- While ours is measured, the idle peer shares its core, and some take a few per cent of it.
"""


@dataclass
class Side:
    """What was measured of one service with one model; lists have an entry for each round."""

    start: float = 0.0
    singly: list[Load] = field(default_factory=list)
    bulk: dict[str, list[float]] = field(default_factory=dict)  # rows a second, for each door
    memory: int = 0
    processes: int = 0

    @property
    def rates(self) -> list[float]:
        return [run.rate for run in self.singly]

    @property
    def p99s(self) -> list[float]:
        return [run.p99 for run in self.singly]


@dataclass
class Pair:
    """Ours and a peer's, with one model, round by round."""

    key: str
    slot: str
    ours: Side = field(default_factory=Side)
    theirs: Side = field(default_factory=Side)

    def bulk_ratios(self, ours: Door, theirs: Door) -> list[float]:
        """How many times theirs ours was, in each round; none while ours is not there."""
        return ratios(self.ours.bulk[ours.name], self.theirs.bulk[theirs.name]) if ours.name in self.ours.bulk else []


class Running:
    """A service that answers, for one slot."""

    def __init__(self, service: Service, slot: str, port: int, process: psutil.Process) -> None:
        self.service, self.port, self.process = service, port, process
        self.path = service.path.format(slot=slot)
        self.url = f"http://127.0.0.1:{port}{self.path}"

    def ask(self, door: Door, body: bytes, *, connection: http.client.HTTPConnection | None = None) -> bytes | None:
        """The answer; None from a service that has no such door."""
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", self.path, body, {"Content-Type": door.type})
        with connection.getresponse() as response:
            content = response.read()
        if response.status == 415:
            return None
        if response.status != 200:
            sys.exit(f"{self.service.name} answered {response.status} to {door.name}: {content[:500]!r}")
        return content

    def check(self, model: object, rows: Array) -> list[Door]:
        """The doors that it has; ends here if a number is not the estimator's."""
        wanted, open_ = model.predict(rows).tolist(), []
        for door in self.service.doors:
            content = self.ask(door, door.write(rows))
            if content is None:
                continue
            open_.append(door)
            if wanted != list(door.read(content)):
                sys.exit(f"{self.service.name} does not give the estimator's numbers for {door.name}")
        first = self.service.doors[0]
        for row, number in zip(rows[:CHECKED_SINGLY], wanted, strict=False):
            if [number] != list(first.read(self.ask(first, first.write(row[None])) or b"")):
                sys.exit(f"{self.service.name} does not give the estimator's number for one row")
        return open_

    def bulk(self, door: Door, body: bytes, seconds: float) -> float:
        """Rows a second for one client that sends the same rows again and again, at least once."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            length = len(self.ask(door, body, connection=connection) or b"")
            asked, began = 0, time.perf_counter()
            while not asked or time.perf_counter() - began < seconds:
                if len(self.ask(door, body, connection=connection) or b"") != length:
                    sys.exit(f"{self.service.name} answered the same rows with another length")
                asked += 1
            return asked * ROWS / (time.perf_counter() - began)


class Bench:
    """One run: the models, the rows, and what both were asked."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        state = {"GLEANER_PATHS__STATE": str(scratch / "state"), "GLEANER_CONFIG": str(ROOT / "gleaner.toml")}
        self.environment = {**os.environ, **state}
        settings = load_settings(ROOT / "gleaner.toml", {"paths": {"state": str(scratch / "state")}})
        table = read_table(settings.data, settings.schema_)
        self.models = fit_models(table)
        fill_store(settings, table, self.models)
        for slot, model in self.models.items():
            named = copy.copy(model)
            named.feature_names_in_ = np.array(NAMES, dtype=object)
            joblib.dump(model, self._file(slot, "plain"))
            joblib.dump(named, self._file(slot, "named"))
        self.singles, self.rows = make_table().X, make_table(ROWS).X
        # The first start of all also tests the models, and remembers that they passed.
        with self.running("gleaner", OURS, "v1", Side()) as first:
            for door in set(OURS.doors) - set(first.check(self.models["v1"], self.rows)):
                print(f"{OURS.name} does not take {door.name} ({door.type}): left out", flush=True)

    def _file(self, slot: str, kind: str) -> Path:
        return self.scratch / f"{slot}-{kind}.joblib"

    @contextlib.contextmanager
    def running(self, key: str, service: Service, slot: str, side: Side):
        """The service, started anew and checked."""
        folder = Path(tempfile.mkdtemp(prefix=f"{key}-{slot}-", dir=self.scratch))
        place = Place(slot, free_port(), folder, self._file(slot, "plain"), self._file(slot, "named"))
        bin_ = ENVIRONMENTS / key / "bin"
        path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
        environment = {**self.environment, **service.environment(place), "PATH": path}
        url = f"http://127.0.0.1:{place.port}{service.path.format(slot=slot)}"
        body = service.doors[0].write(self.singles[:1])
        command = service.command(bin_, place)
        with serving(command, environment, url, body, folder=folder, log=folder / "log") as (process, seconds):
            side.start = seconds
            yield Running(service, slot, place.port, process)

    def measure(self, key: str, slot: str) -> Pair:
        """Start both, check both, then round after round."""
        pair, options = Pair(key, slot), self.options
        with (
            self.running("gleaner", OURS, slot, pair.ours) as ours,
            self.running(key, PEERS[key], slot, pair.theirs) as theirs,
        ):
            sides = ((ours, pair.ours), (theirs, pair.theirs))
            bodies = {
                running: {door: door.write(self.rows) for door in running.check(self.models[slot], self.rows)}
                for running, _ in sides
            }
            scripts = {}
            for running, _ in sides:
                write = running.service.doors[0].write
                singles = [write(row[None]).decode() for row in self.singles]
                scripts[running] = write_script(self.scratch / f"{running.port}.lua", singles)
                load(running.url, scripts[running], options.seconds)
            for _ in range(options.rounds):
                for running, side in sides:
                    side.singly.append(load(running.url, scripts[running], options.seconds))
            for _ in range(options.rounds):
                for running, side in sides:
                    for door, body in bodies[running].items():
                        side.bulk.setdefault(door.name, []).append(running.bulk(door, body, options.bulk_seconds))
            for running, side in sides:
                side.memory = memory_bytes(running.process)
                side.processes = len(members(running.process.pid))
        return pair


def make_environment(key: str, service: Service, *, renew: bool) -> dict[str, str]:
    """The versions of the peer's packages, in an environment that is made if it is not there."""
    folder = ENVIRONMENTS / key
    # The estimator goes over in a file that only its own version of scikit-learn is sure to read.
    wanted = [*service.packages, f"scikit-learn=={version('scikit-learn')}"]
    made, python = folder / ".made", folder / "bin" / "python"
    if renew or not made.exists() or made.read_text().split() != wanted:
        print(f"making {folder.relative_to(ROOT)}: {' '.join(wanted)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        uv = [
            Path(sys.executable).parent / "uv",
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            "--python",
            python,
            *wanted,
        ]
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        if subprocess.run(uv, check=False, timeout=1800).returncode:
            subprocess.run(pip, check=True, timeout=1800)
        made.write_text(" ".join(wanted))
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *service.packages], check=True, capture_output=True, text=True)
    return dict(zip(service.packages, done.stdout.split(), strict=True))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(cells) + " |")
    print()


def print_report(pairs: Sequence[Pair], names: dict[str, str]) -> None:
    """Markdown for docs/performance.md."""
    of = {slot: [pair for pair in pairs if pair.slot == slot] for slot in SLOTS}
    keys = list(dict.fromkeys(pair.key for pair in pairs))
    by = {(pair.key, pair.slot): pair for pair in pairs}

    print("### One row in a request, 16 connections\n")
    head, rows = [""], [[OURS.name], *([names[key]] for key in keys)]
    for slot in SLOTS:
        head += [f"{slot}, requests/s", f"{slot}, p99 in ms", f"{slot}, ours is"]
        rates = [rate for pair in of[slot] for rate in pair.ours.rates]
        p99s = [p99 for pair in of[slot] for p99 in pair.ours.p99s]
        rows[0] += [spread(rates), spread(p99s, ".1f"), ""]
        for row, key in zip(rows[1:], keys, strict=True):
            ours, theirs = by[key, slot].ours, by[key, slot].theirs
            row += [spread(theirs.rates), spread(theirs.p99s, ".0f"), spread(ratios(ours.rates, theirs.rates), ".1f")]
    print_table(head, rows)
    print(refusals(OURS.name, [run for pair in pairs for run in pair.ours.singly]), end="")
    for key in keys:
        print(refusals(names[key], [run for slot in SLOTS for run in by[key, slot].theirs.singly]), end="")

    print(f"### {ROWS:,} rows in a request, one client; thousands of rows a second\n")
    lines = [(OURS.name, None, door) for door in OURS.doors]
    lines += [(names[key], key, door) for key in keys for door in PEERS[key].doors]
    head, rows = ["", "door"], [[name, door.name] for name, _, door in lines]
    for slot in SLOTS:
        head += [slot, f"{slot}, our JSON is", f"{slot}, our Arrow is"]
        for row, (_, key, door) in zip(rows, lines, strict=True):
            sides = [by[key, slot].theirs] if key else [pair.ours for pair in of[slot]]
            row.append(show([rate / 1e3 for side in sides for rate in side.bulk.get(door.name, [])], ",.0f"))
            row += [
                show(by[key, slot].bulk_ratios(mine, door), ".2f") if key else "" for mine in (OBJECTS, ARROW_STREAM)
            ]
    print_table(head, rows)

    print("### Start to the first answer on one core, and memory after the load\n")
    rows = []
    for name, sides in [
        (f"{OURS.name}, both models", [[pair.ours for pair in of[slot]] for slot in SLOTS]),
        *((names[key], [[by[key, slot].theirs] for slot in SLOTS]) for key in keys),
    ]:
        starts = spread([side.start for slot in sides for side in slot], ".1f")
        memory = [f"{statistics.median(side.memory for side in slot) / 1e6:.0f}" for slot in sides]
        rows.append([name, starts, *memory, str(sides[0][0].processes)])
    print_table(["", "start, s", "memory after v1, MB", "after v2, MB", "processes"], rows)


def show(values: Sequence[float], form: str) -> str:
    return spread(values, form) if values else "not measured"


def print_bars(pairs: Sequence[Pair]) -> None:
    """What was promised beside `mlflow models serve`, and what was found; its best JSON counts, CSV is shown beside."""
    rows = []
    doors = PEERS["mlflow"].doors
    for slot, one_row, json_rows, arrow_rows in [
        ("v1", ">= 40", ">= 4", ">= 20"),
        ("v2", ">= 150", ">= 1.1", ">= 1.1"),
    ]:
        (pair,) = (pair for pair in pairs if (pair.key, pair.slot) == ("mlflow", slot))
        rows.append([f"{slot}, one row", ratios(pair.ours.rates, pair.theirs.rates), one_row])
        best = max(
            (door for door in doors if door.type == JSON),
            key=lambda door: statistics.median(pair.theirs.bulk[door.name]),
        )
        for theirs, bars in ((best, (json_rows, arrow_rows)), (doors[-1], ("", ""))):
            for mine, bar in zip((OBJECTS, ARROW_STREAM), bars, strict=True):
                name = f"{slot}, {ROWS:,} rows, {mine.name} to its {theirs.name}"
                rows.append([name, pair.bulk_ratios(mine, theirs), bar])
    for slot in SLOTS:
        p99s = [p99 for pair in pairs if pair.slot == slot for p99 in pair.ours.p99s]
        rows.append([f"{slot}, one row, our p99 in ms", p99s, "< 3"])
    print("### Beside `mlflow models serve`: how many times as fast, and our p99\n")
    print_table(
        ["", "found", "wanted", ""],
        [[name, show(found, ",.1f"), bar, verdict(found, bar)] for name, found, bar in rows],
    )


def verdict(found: Sequence[float], bar: str) -> str:
    """Whether the median is what was wanted."""
    if not bar or not found:
        return ""
    relation, number = bar.split()
    middle = statistics.median(found)
    return "met" if (middle >= float(number) if relation == ">=" else middle < float(number)) else "missed"


def print_head(options: argparse.Namespace, versions: dict[str, dict[str, str]]) -> None:
    own = ("granian", "onnxruntime", "msgspec", "numpy", "scikit-learn")
    arguments = "".join(f" {argument}" for argument in sys.argv[1:])
    print(
        f"\n`.venv/bin/python bench/comparison.py{arguments}`: {options.rounds} rounds in turn, of {options.seconds} s"
    )
    print(f"for one row and {options.bulk_seconds} s for many; medians (least to most).\n")
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in own) + ".\n")
    rows = [[OURS.name, __version__, OURS.how]]
    for key, found in versions.items():
        rows.append([PEERS[key].name, ", ".join(f"{name} {number}" for name, number in found.items()), PEERS[key].how])
    print_table(["", "version", "how it runs"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of one run of wrk")
    parser.add_argument("--bulk-seconds", type=float, default=0.6, help="of one run of large requests")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of them, with commas between")
    parser.add_argument("--renew", action="store_true", help="make the environments anew, with today's newest versions")
    options = parser.parse_args()
    keys = options.peers.split(",")
    if unknown := set(keys) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there is {', '.join(PEERS)}")
    need_tools()
    # As Ctrl-C does, so that every server is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    versions = {key: make_environment(key, PEERS[key], renew=options.renew) for key in keys}
    began, pairs = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        os.sched_setaffinity(0, {LOAD_CORE})
        for key in keys:
            # A start that counts finds the files in memory, as ours does.
            with bench.running(key, PEERS[key], SLOTS[0], Side()):
                pass
            for slot in SLOTS:
                pairs.append(bench.measure(key, slot))
                print(f"{time.perf_counter() - began:4.0f} s: {PEERS[key].name}, {slot}", flush=True)

    print_head(options, versions)
    print_report(pairs, {key: PEERS[key].name for key in keys})
    if "mlflow" in keys:
        print_bars(pairs)
    print(NOT_SHOWN)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
