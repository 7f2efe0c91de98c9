"""Stops of the service and of every other process, on busy cores.

STOPS=300 in the environment stops the service so often; MOMENTS, the others 50 times. `make reliability` sets both.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import httpx
import psutil
import pytest
from clients import FULL
from projects import NUMBER, ROUTE, SETTINGS, write_made_table
from started import INTERRUPTED, Service, command_of, has_ended, serving, wait_for

from gleaner.model.store import Store
from gleaner.training.resident import ask

STOPS = int(os.environ.get("STOPS", "20"))
TOGETHER = 10
ROW = json.dumps(ROUTE).encode()
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
    ROW
)
DRAIN = {"GLEANER_SERVING__DRAIN_SECONDS": "2"}


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Hold every core by twice as many processes, until the block ends."""
    spin = [sys.executable, "-c", "while True: pass"]
    spinners = [subprocess.Popen(spin) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def start_together(project: Path, count: int, stack: contextlib.ExitStack) -> list[Service]:
    """Start services at once, since each takes seconds on busy cores."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: stack.enter_context(serving(project, **DRAIN)), range(count)))


@pytest.mark.timeout(3000)
def test_a_stop_right_after_a_burst_of_half_bodies_is_never_lost(project: Path, figure) -> None:
    lost, slowest = 0, 0.0
    with busy_cores():
        for attempt in range(0, STOPS, TOGETHER):
            with contextlib.ExitStack() as stack:
                services = start_together(project, min(TOGETHER, STOPS - attempt), stack)
                began = {}
                for i, service in enumerate(services):
                    clients = [
                        stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=60))
                        for _ in range(8)
                    ]
                    for client in clients:
                        client.sendall(HEAD + ROW[:10])
                    time.sleep((attempt + i) % 3 / 1000)
                    began[service.port] = time.monotonic()
                    service.process.send_signal(signal.SIGTERM)
                for service in services:
                    try:
                        service.process.wait(timeout=60)
                    except subprocess.TimeoutExpired:
                        lost += 1
                    slowest = max(slowest, time.monotonic() - began[service.port])

    assert 0 == lost
    figure(
        "R4", f"{STOPS} stops after half-sent bodies on busy cores: {lost} lost, slowest {slowest:.1f} s of 2 s drain"
    )


def test_a_request_in_flight_is_answered_and_its_connection_closed(project: Path, figure) -> None:
    with serving(project, GLEANER_SERVING__UNREADY_SECONDS="1") as service:
        clients = [socket.create_connection(("127.0.0.1", service.port), timeout=60) for _ in range(8)]
        for client in clients:
            client.sendall(HEAD + ROW[:10])
        time.sleep(0.5)
        service.process.send_signal(signal.SIGTERM)
        unready = wait_for(lambda: httpx.get(f"{service.url}/readyz").status_code == 503, 0.9)
        for client in clients:
            client.sendall(ROW[10:])
        responses = [client.recv(4096) for client in clients]
        ends = [client.recv(4096) for client in clients]
        for client in clients:
            client.close()
        code = service.process.wait(timeout=60)

    assert unready
    assert [True] * 8 == [str(NUMBER).encode() in response for response in responses]
    assert [True] * 8 == [b"Connection: close" in response for response in responses]
    assert [b""] * 8 == ends
    assert 0 == code
    figure("R4", "8 requests in flight: 8 answered, closed, exit 0")


def test_no_request_that_was_sent_before_the_end_of_listening_is_reset(project: Path, figure) -> None:
    """Each client gets a response, or no connection."""
    sent, resets = 0, []
    with serving(project) as service:
        stop = threading.Event()

        def ask() -> None:
            nonlocal sent
            while not stop.is_set():
                try:
                    client = socket.create_connection(("127.0.0.1", service.port), timeout=60)
                except OSError:
                    return
                with client:
                    try:
                        client.sendall(HEAD + ROW)
                        response = client.recv(4096)
                    except ConnectionError as e:
                        response = repr(e).encode()
                    sent += 1
                    if b" 200 " not in response:
                        resets.append(response)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        code = service.stop()
        stop.set()
        for thread in threads:
            thread.join()

    assert 0 == code
    assert sent > 8
    # A client between its connection and its request, at the very moment, is the kernel's.
    assert len(resets) <= 8
    figure("R4", f"stop amid {sent:,} requests of 8 clients: {len(resets)} without a response")


# Every other process

OTHERS = 50 if FULL else 2
STUBBED, WHOLE = (20, 3) if FULL else (2, 0)
MOST_SECONDS = 60.0


class Started(NamedTuple):
    """A process that is about to be stopped, and its descendants."""

    process: subprocess.Popen[bytes]
    family: list[psutil.Process]


class Stop(NamedTuple):
    """A stop: the exit code, None for none, and its time.

    left: the number of descendants that still run.
    """

    code: int | None
    seconds: float
    left: int


def stop(started: Started, most_seconds: float = MOST_SECONDS) -> Stop:
    """Send SIGTERM, and wait."""
    began = time.monotonic()
    started.process.send_signal(signal.SIGTERM)
    try:
        code = started.process.wait(timeout=most_seconds)
    except subprocess.TimeoutExpired:
        return Stop(None, most_seconds, 0)
    seconds = time.monotonic() - began
    wait_for(lambda: all(has_ended(each.pid) for each in started.family), 3 if FULL else 30)
    return Stop(code, seconds, sum(not has_ended(each.pid) for each in started.family))


def stop_many(count: int, start: Callable[[int, contextlib.ExitStack], Started]) -> list[Stop]:
    """Start and stop processes on busy cores, a few at a time."""
    stops: list[Stop] = []
    with busy_cores():
        for first in range(0, count, TOGETHER):
            numbers = range(first, min(first + TOGETHER, count))
            with contextlib.ExitStack() as stack, ThreadPoolExecutor(TOGETHER) as pool:
                stops += pool.map(lambda i, stack=stack: stop(start(i, stack)), numbers)
    return stops


def spawn(
    stack: contextlib.ExitStack, folder: Path, log: IO[bytes], *arguments: object, patch: str = "", **environment: str
) -> subprocess.Popen[bytes]:
    """Start a command that is killed at the latest with the stack."""
    process = subprocess.Popen(
        command_of(*arguments, patch=patch), cwd=folder, env=os.environ | environment, stdin=subprocess.PIPE,
        stdout=log, stderr=log,
    )  # fmt: skip

    def end() -> None:
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()

    stack.callback(end)
    return process


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def describe(what: str, stops: list[Stop]) -> str:
    lost = sum(each.code is None for each in stops)
    return f"{len(stops)} stops of {what}: {lost} lost, slowest {max(each.seconds for each in stops):.1f} s"


HEADER = b"time_spent,doors_in_route,assessed_value\n"


def start_score(project: Path, patch: str = "") -> Callable[[int, contextlib.ExitStack], Started]:
    def start(i: int, stack: contextlib.ExitStack) -> Started:
        log = stack.enter_context((project / f"score-{i}.log").open("wb"))
        process = spawn(stack, project, log, "score", "-", f"out-{i}.csv", patch=patch)
        assert process.stdin
        if i % 3 == 2:
            time.sleep(random.Random(i).uniform(0, 2))
        else:
            process.stdin.write(HEADER + b"30,500,200000\n" * 1_000)
            process.stdin.flush()
            half = project / f".out-{i}.csv.half"
            assert wait_for(half.exists), (project / f"score-{i}.log").read_text()
            time.sleep(i % 3 / 1000)
        return Started(process, [])

    return start


@pytest.mark.timeout(3000)
def test_a_stop_of_a_scoring_is_never_lost(project, figure):
    stops = stop_many(OTHERS, start_score(project))

    figure("R4", describe("`score`", stops))
    assert {each.code for each in stops} <= {143, -15}  # -15: before Python's own start has ended
    assert [] == [path.name for path in project.iterdir() if "out-" in path.name]


def copy_of(project: Path, i: int) -> Path:
    return Path(shutil.copytree(project, project.with_name(f"copy-{i}")))


@pytest.mark.timeout(3000)
def test_a_stop_of_the_resident_trainer_is_never_lost(project, figure):
    def start(i: int, stack: contextlib.ExitStack) -> Started:
        folder = copy_of(project, i)
        log = stack.enter_context((folder / "log").open("wb"))
        process = spawn(stack, folder, log, "train", "--resident", "--metrics-port", 0)
        assert wait_for(lambda: b"metrics on" in (folder / "log").read_bytes())
        if i % 3:
            ask(folder / ".gleaner")
            time.sleep(random.Random(i).uniform(0, 4))
        return Started(process, family(process))

    stops = stop_many(OTHERS, start)

    figure("R4", describe("the resident trainer", stops))
    assert {(0, 0)} == {(each.code, each.left) for each in stops}


@pytest.mark.timeout(3000)
def test_a_stop_of_a_training_by_hand_is_never_lost(tmp_path, figure):
    def start(i: int, stack: contextlib.ExitStack) -> Started:
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "gleaner.toml").write_text(SETTINGS)
        write_made_table(folder / "made.csv")
        log = stack.enter_context((folder / "log").open("wb"))
        process = spawn(stack, folder, log, "train", "--metrics-port", 0)
        time.sleep(random.Random(i).uniform(0.5, 15 if FULL else 4))
        return Started(process, family(process))

    stops = stop_many(OTHERS, start)

    figure("R4", describe("`train`", stops))
    assert {each.code for each in stops} <= {*INTERRUPTED, -signal.SIGTERM, 0}
    assert {0} == {each.left for each in stops}
    for i in range(OTHERS):
        aliases = Store(tmp_path / str(i) / ".gleaner" / "store").aliases()
        assert set(aliases) in (set(), {"champion", "challenger"})
        assert "Traceback" not in (tmp_path / str(i) / "log").read_text()


# `gleaner up` over three children that only listen
STUBS = """
import sys
from gleaner.running.program import Program
from gleaner.running.stack import Stack
code = "import socket, sys\\nserver = socket.create_server(('127.0.0.1', int(sys.argv[1])))\\n"
code += "while True:\\n  client, _ = server.accept()\\n  client.recv(4096)\\n"
code += "  client.sendall(b'HTTP/1.1 200 OK\\\\r\\\\nContent-Length: 0\\\\r\\\\n\\\\r\\\\n')\\n  client.close()"
def programs(self, folder, **_):
    ports = self.settings.ports
    return [Program(f"stub-{port}", (sys.executable, "-c", code, str(port)), live=f"http://127.0.0.1:{port}/")
            for port in (ports.ml_app, ports.mlflow, ports.train_metrics)]
Stack.programs = programs
"""
PORTS = ("ML_APP", "ML_APP_METRICS", "TRAIN_METRICS", "MLFLOW", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")


def free_ports() -> dict[str, str]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return {f"GLEANER_PORTS__{name}": str(s.getsockname()[1]) for name, s in zip(PORTS, sockets, strict=True)}


def start_up(project: Path, patch: str = "") -> Callable[[int, contextlib.ExitStack], Started]:
    """Start `gleaner up`, and wait until all is ready."""

    def start(i: int, stack: contextlib.ExitStack) -> Started:
        folder = copy_of(project, i)
        log = stack.enter_context((folder / "log").open("wb"))
        process = spawn(stack, folder, log, "up", patch=patch, **free_ports())
        shown = folder / "log"
        assert wait_for(lambda: b"ready in" in shown.read_bytes() or process.poll() is not None, 300)
        assert process.poll() is None, shown.read_text()
        time.sleep(i % 3 / 1000)
        return Started(process, family(process))

    return start


@pytest.mark.timeout(3000)
def test_a_stop_of_the_supervisor_is_never_lost(project, figure):
    stops = stop_many(STUBBED, start_up(project, STUBS))

    figure("R4", describe("the supervisor with stubs", stops))
    assert {(0, 0)} == {(each.code, each.left) for each in stops}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_stop_of_the_whole_stack_is_never_lost(project, figure):
    stops = []
    for i in range(WHOLE):
        with contextlib.ExitStack() as stack:
            started = start_up(project)(i, stack)
            with busy_cores():
                stops.append(stop(started, 120))

    figure("R4", describe("the whole stack", stops))
    assert {(0, 0)} == {(each.code, each.left) for each in stops}


# SIGTERM waits for a thread that never runs
DEAF = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"


def test_a_lost_stop_is_found(project):
    with contextlib.ExitStack() as stack:
        assert stop(start_score(project, DEAF)(0, stack), 2).code is None
