"""Gleaner next to its peers, in pairs: `make bench-peers`.

Every peer has one worker and a virtual environment under `.gleaner-bench/`, which the first start makes with the newest
versions. Both servers of a pair share one core; the load has the other. Rounds alternate between both, so that a slow
minute affects both, and the median of the rounds' ratios counts. Before the rounds, every prediction of a service must
equal the estimator's, to the bit.
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
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import joblib
import numpy as np
import psutil
import rig
from services import ARROW_STREAM, JSON, OBJECTS, OURS, PEERS, Format, Place, Service

from gleaner import __version__
from gleaner.table.numbers import Array

ENVIRONMENTS = rig.ROOT / ".gleaner-bench"
SLOTS = ("v1", "v2")
ROWS = 10_000
CHECKED_SINGLY = 32
PACKAGES = ("httptools", "uvloop", "onnxruntime", "msgspec", "numpy", "scikit-learn")
LIMITS = """### Limits of the comparison

- One core, loopback, no TLS, one client program, trees on three numbers, one worker per service, no gRPC.
- The work differs. Gleaner refuses values out of range, and MLflow checks its signature. Gleaner, MLServer and BentoML
  count metrics. MLflow, BentoML and LitServe log a line per request, as they do by default.
- Batches (MLServer for v2, BentoML, LitServe) need many requests at once, and gain less from fewer than 16.
- While one service of a pair is measured, the idle one shares its core, and some take a few per cent of that core.
"""


@dataclass
class Side:
    """The measurements of one service and model; one entry per round."""

    start: float = 0.0
    singly: list[rig.Load] = field(default_factory=list)
    bulk: dict[str, list[float]] = field(default_factory=dict)  # rows per second, by format
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
    """The measurements of Gleaner and of a peer, with one model."""

    key: str
    slot: str
    ours: Side = field(default_factory=Side)
    theirs: Side = field(default_factory=Side)

    def bulk_ratios(self, ours: Format, theirs: Format) -> list[float]:
        """Divide Gleaner's rates by a peer's, round by round.

        Empty if Gleaner has no rate.
        """
        rates = self.ours.bulk.get(ours.name)
        return rig.ratios(rates, self.theirs.bulk[theirs.name]) if rates else []


class Running:
    """A running service, for one slot."""

    def __init__(self, service: Service, slot: str, port: int, process: psutil.Process) -> None:
        self.service, self.port, self.process = service, port, process
        self.path = service.path.format(slot=slot)
        self.url = f"http://127.0.0.1:{port}{self.path}"

    def ask(
        self, format_: Format, body: bytes, *, connection: http.client.HTTPConnection | None = None
    ) -> bytes | None:
        """Return the response's body; None if the format is not taken."""
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", self.path, body, {"Content-Type": format_.type})
        with connection.getresponse() as response:
            content = response.read()
        if response.status == 415:
            return None
        if response.status != 200:
            sys.exit(f"{self.service.name} returned {response.status} for {format_.name}: {content[:500]!r}")
        return content

    def check(self, model: object, rows: Array) -> list[Format]:
        """Return the formats that the service takes.

        Exits if a prediction is not the estimator's.
        """
        wanted, taken = model.predict(rows).tolist(), []
        for format_ in self.service.formats:
            content = self.ask(format_, format_.write(rows))
            if content is None:
                continue
            taken.append(format_)
            if wanted != list(format_.read(content)):
                sys.exit(f"{self.service.name} does not return the estimator's predictions for {format_.name}")
        first = self.service.formats[0]
        for row, number in zip(rows[:CHECKED_SINGLY], wanted, strict=False):
            if [number] != list(first.read(self.ask(first, first.write(row[None])) or b"")):
                sys.exit(f"{self.service.name} does not return the estimator's prediction for one row")
        return taken

    def bulk(self, format_: Format, body: bytes, seconds: float) -> float:
        """Return the rows per second of one client repeating one request."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            length = len(self.ask(format_, body, connection=connection) or b"")
            sent, began = 0, time.perf_counter()
            while not sent or time.perf_counter() - began < seconds:
                if len(self.ask(format_, body, connection=connection) or b"") != length:
                    sys.exit(f"{self.service.name} returned two lengths for the same rows")
                sent += 1
            return sent * ROWS / (time.perf_counter() - began)


class Bench:
    """The models, the rows and the pairs of one comparison."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.environment, self.models = rig.prepare(scratch / "state")
        for slot, model in self.models.items():
            named = copy.copy(model)
            named.feature_names_in_ = np.array(rig.NAMES, dtype=object)
            joblib.dump(model, self._file(slot, "plain"))
            joblib.dump(named, self._file(slot, "named"))
        self.singles, self.rows = rig.make_table().X, rig.make_table(ROWS).X
        # The first start also runs the models' self-tests, and remembers that they passed.
        with self.running("gleaner", OURS, "v1", Side()) as first:
            for format_ in set(OURS.formats) - set(first.check(self.models["v1"], self.rows)):
                print(f"left out: {OURS.name} does not take {format_.name} ({format_.type})", flush=True)

    def _file(self, slot: str, kind: str) -> Path:
        return self.scratch / f"{slot}-{kind}.joblib"

    @contextlib.contextmanager
    def running(self, key: str, service: Service, slot: str, side: Side):
        """Start a service, and stop it when the block ends."""
        folder = Path(tempfile.mkdtemp(prefix=f"{key}-{slot}-", dir=self.scratch))
        place = Place(slot, rig.free_port(), folder, self._file(slot, "plain"), self._file(slot, "named"))
        bin_ = ENVIRONMENTS / key / "bin"
        path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
        environment = {**self.environment, **service.environment(place), "PATH": path}
        url = f"http://127.0.0.1:{place.port}{service.path.format(slot=slot)}"
        body = service.formats[0].write(self.singles[:1])
        command = service.command(bin_, place)
        with rig.serving(command, environment, url, body, folder=folder, log=folder / "log") as (process, seconds):
            side.start = seconds
            yield Running(service, slot, place.port, process)

    def measure(self, key: str, slot: str) -> Pair:
        """Start and check both services, then measure round by round."""
        pair, options = Pair(key, slot), self.options
        with (
            self.running("gleaner", OURS, slot, pair.ours) as ours,
            self.running(key, PEERS[key], slot, pair.theirs) as theirs,
        ):
            sides = ((ours, pair.ours), (theirs, pair.theirs))
            bodies = {
                running: {format_: format_.write(self.rows) for format_ in running.check(self.models[slot], self.rows)}
                for running, _ in sides
            }
            scripts = {}
            for running, _ in sides:
                write = running.service.formats[0].write
                singles = [write(row[None]).decode() for row in self.singles]
                scripts[running] = rig.write_script(self.scratch / f"{running.port}.lua", singles)
                rig.load(running.url, scripts[running], options.seconds)
            for _ in range(options.rounds):
                for running, side in sides:
                    side.singly.append(rig.load(running.url, scripts[running], options.seconds))
            for _ in range(options.rounds):
                for running, side in sides:
                    for format_, body in bodies[running].items():
                        side.bulk.setdefault(format_.name, []).append(running.bulk(format_, body, options.bulk_seconds))
            for running, side in sides:
                side.memory = rig.memory_bytes(running.process)
                side.processes = len(rig.members(running.process.pid))
        return pair


def make_environment(key: str, service: Service, *, renew: bool) -> dict[str, str]:
    """Make a peer's environment if it is missing; return its packages' versions."""
    folder = ENVIRONMENTS / key
    # Only the same version of scikit-learn is sure to read the estimator's file.
    wanted = [*service.packages, f"scikit-learn=={version('scikit-learn')}"]
    made, python = folder / ".made", folder / "bin" / "python"
    if renew or not made.exists() or made.read_text().split() != wanted:
        print(f"making {folder.relative_to(rig.ROOT)}: {' '.join(wanted)}", flush=True)
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
    """Print the measurements as Markdown tables."""
    of = {slot: [pair for pair in pairs if pair.slot == slot] for slot in SLOTS}
    keys = list(dict.fromkeys(pair.key for pair in pairs))
    by = {(pair.key, pair.slot): pair for pair in pairs}

    print("### One row per request, 16 connections\n")
    head, rows = [""], [[OURS.name], *([names[key]] for key in keys)]
    for slot in SLOTS:
        head += [f"{slot}, requests/s", f"{slot}, p99 in ms", f"{slot}, ours is"]
        rates = [rate for pair in of[slot] for rate in pair.ours.rates]
        p99s = [p99 for pair in of[slot] for p99 in pair.ours.p99s]
        rows[0] += [rig.spread(rates), rig.spread(p99s, ".1f"), ""]
        for row, key in zip(rows[1:], keys, strict=True):
            ours, theirs = by[key, slot].ours, by[key, slot].theirs
            row += [
                rig.spread(theirs.rates),
                rig.spread(theirs.p99s, ".0f"),
                rig.spread(rig.ratios(ours.rates, theirs.rates), ".1f"),
            ]
    print_table(head, rows)
    print(rig.refusals(OURS.name, [run for pair in pairs for run in pair.ours.singly]), end="")
    for key in keys:
        print(rig.refusals(names[key], [run for slot in SLOTS for run in by[key, slot].theirs.singly]), end="")

    print(f"### {ROWS:,} rows per request, one client; thousands of rows per second\n")
    lines = [(OURS.name, None, format_) for format_ in OURS.formats]
    lines += [(names[key], key, format_) for key in keys for format_ in PEERS[key].formats]
    head, rows = ["", "format"], [[name, format_.name] for name, _, format_ in lines]
    for slot in SLOTS:
        head += [slot, f"{slot}, our JSON is", f"{slot}, our Arrow is"]
        for row, (_, key, format_) in zip(rows, lines, strict=True):
            sides = [by[key, slot].theirs] if key else [pair.ours for pair in of[slot]]
            row.append(show([rate / 1e3 for side in sides for rate in side.bulk.get(format_.name, [])], ",.0f"))
            row += [
                show(by[key, slot].bulk_ratios(mine, format_), ".2f") if key else "" for mine in (OBJECTS, ARROW_STREAM)
            ]
    print_table(head, rows)

    print("### Start to first prediction on one core, and memory after the load\n")
    rows = []
    for name, sides in [
        (f"{OURS.name}, both models", [[pair.ours for pair in of[slot]] for slot in SLOTS]),
        *((names[key], [[by[key, slot].theirs] for slot in SLOTS]) for key in keys),
    ]:
        starts = rig.spread([side.start for slot in sides for side in slot], ".1f")
        memory = [f"{statistics.median(side.memory for side in slot) / 1e6:.0f}" for slot in sides]
        rows.append([name, starts, *memory, str(sides[0][0].processes)])
    print_table(["", "start, s", "memory after v1, MB", "after v2, MB", "processes"], rows)


def show(values: Sequence[float], form: str) -> str:
    return rig.spread(values, form) if values else "not measured"


def print_bars(pairs: Sequence[Pair]) -> None:
    """Print the ratios to `mlflow models serve`, with the targets.

    MLflow's fastest JSON counts.
    """
    rows = []
    formats = PEERS["mlflow"].formats
    for slot, one_row, json_rows, arrow_rows in [
        ("v1", ">= 40", ">= 4", ">= 20"),
        ("v2", ">= 150", ">= 1.1", ">= 1.1"),
    ]:
        (pair,) = (pair for pair in pairs if (pair.key, pair.slot) == ("mlflow", slot))
        rows.append([f"{slot}, one row", rig.ratios(pair.ours.rates, pair.theirs.rates), one_row])
        best = max(
            (format_ for format_ in formats if format_.type == JSON),
            key=lambda format_: statistics.median(pair.theirs.bulk[format_.name]),
        )
        for theirs, bars in ((best, (json_rows, arrow_rows)), (formats[-1], ("", ""))):
            for mine, bar in zip((OBJECTS, ARROW_STREAM), bars, strict=True):
                name = f"{slot}, {ROWS:,} rows, {mine.name} to its {theirs.name}"
                rows.append([name, pair.bulk_ratios(mine, theirs), bar])
    for slot in SLOTS:
        p99s = [p99 for pair in pairs if pair.slot == slot for p99 in pair.ours.p99s]
        rows.append([f"{slot}, one row, our p99 in ms", p99s, "< 3"])
    print("### Ratios to `mlflow models serve`, and our p99\n")
    print_table(
        ["", "found", "target", ""],
        [[name, show(found, ",.1f"), bar, verdict(found, bar)] for name, found, bar in rows],
    )


def verdict(found: Sequence[float], bar: str) -> str:
    """Return "met" if the median reaches the target, or "missed"."""
    if not bar or not found:
        return ""
    relation, number = bar.split()
    middle = statistics.median(found)
    return "met" if (middle >= float(number) if relation == ">=" else middle < float(number)) else "missed"


def print_head(options: argparse.Namespace, versions: dict[str, dict[str, str]]) -> None:
    arguments = "".join(f" {argument}" for argument in sys.argv[1:])
    print(
        f"\n`.venv/bin/python bench/comparison.py{arguments}`: {options.rounds} rounds in turn, of {options.seconds} s"
    )
    print(f"for one row and {options.bulk_seconds} s for many; medians (least to most).\n")
    print(", ".join(f"{name} {number}" for name, number in rig.versions(*PACKAGES).items()) + ".\n")
    rows = [[OURS.name, __version__, OURS.how]]
    for key, found in versions.items():
        rows.append([PEERS[key].name, ", ".join(f"{name} {number}" for name, number in found.items()), PEERS[key].how])
    print_table(["", "version", "how it runs"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="length of one run of wrk")
    parser.add_argument("--bulk-seconds", type=float, default=0.6, help="length of one run of large requests")
    parser.add_argument("--peers", default=",".join(PEERS), help="a comma-separated selection")
    parser.add_argument("--renew", action="store_true", help="make the environments again, with the newest versions")
    options = parser.parse_args()
    keys = options.peers.split(",")
    if unknown := set(keys) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; choose from {', '.join(PEERS)}")
    rig.need_tools()
    # Exit as after Ctrl-C, so that every server is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    versions = {key: make_environment(key, PEERS[key], renew=options.renew) for key in keys}
    began, pairs = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        os.sched_setaffinity(0, {rig.LOAD_CORE})
        for key in keys:
            # Load the peer's files into memory before a start counts.
            with bench.running(key, PEERS[key], SLOTS[0], Side()):
                pass
            for slot in SLOTS:
                pairs.append(bench.measure(key, slot))
                print(f"{time.perf_counter() - began:4.0f} s: {PEERS[key].name}, {slot}", flush=True)

    print_head(options, versions)
    print_report(pairs, {key: PEERS[key].name for key in keys})
    if "mlflow" in keys:
        print_bars(pairs)
    print(LIMITS)
    results = [asdict(pair) for pair in pairs]
    for side in [pair[name] for pair in results for name in ("ours", "theirs")]:
        side["singly"] = [run._asdict() for run in side["singly"]]
    theirs = {name: number for found in versions.values() for name, number in found.items()}
    rig.write_results("comparison", rig.versions(*PACKAGES) | {"gleaner": __version__} | theirs, results)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
