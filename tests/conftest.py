"""What tests of whole processes share: a trained project in a folder of its own, and a running service."""

from __future__ import annotations

import contextlib
import csv
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

# A runner in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
ROUTE = {"time_spent": 30, "doors_in_route": 50, "assessed_value": 200000}
NUMBER = 6091 / 276  # 22.068840579710145, every digit

SETTINGS = """
[model]
name = "made"
target = "bags"
min = 0.0

[[features]]
name = "time_spent"
min = 0.0
max = 1440.0
monotone = "up"

[[features]]
name = "doors_in_route"
min = 0.0
max = 10000.0

[[features]]
name = "assessed_value"
min = 0.0
max = 1e9

[training]
data = "made.csv"
candidates = ["linear", "decision_tree"]
champion = "decision_tree"
challenger = "linear"
repeats = 1
"""


MIXED = """
[model]
name = "mixed"
target = "change"

[[features]]
name = "share"
min = -1.0
max = 1.0

[[features]]
name = "balance"

[[features]]
name = "people"
type = "int"
min = 0
max = 50

[[features]]
name = "zone"
type = "category"
values = ["north", "South, west", "été \\"2\\""]

[training]
data = "mixed.csv"
candidates = ["linear", "decision_tree"]
champion = "linear"
challenger = "decision_tree"
folds = 2
repeats = 1

[scores]
loss = "standardised_squared_error"
accuracy = { within = 10.0 }
"""
ZONES = ("north", "South, west", 'été "2"')


def write_mixed_table(path: Path) -> None:
    """200 rows of every type of feature, and a target that can be negative."""
    random = np.random.default_rng(0)
    share, balance = random.uniform(-1, 1, 200), random.normal(0, 1e6, 200)
    people, zone = random.integers(0, 51, 200), random.integers(0, 3, 200)
    change = 40 * share + balance / 1e5 - people + 10 * zone
    rows = zip(
        share.tolist(), balance.tolist(), people.tolist(), [ZONES[i] for i in zone], change.tolist(), strict=True
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["share", "balance", "people", "zone", "change"], *rows])


def write_made_table(path: Path) -> None:
    """600 rows: 276 alike, whose bags sum to 6091, and others that any tree parts from them."""
    random = np.random.default_rng(0)
    alike = [[30, 50, 200000, 23 if i < 19 else 22] for i in range(276)]
    others = [
        [t, d, v, t // 2 + d // 20] for t, d, v in random.integers((100, 60, 100000), (300, 900, 900000), (324, 3))
    ]
    rows = [*alike, *others]
    random.shuffle(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["time_spent", "doors_in_route", "assessed_value", "bags"], *rows])


def tool(name: str) -> str:
    """The path of a program that no Python package brings. Without it a test is skipped, but fails under CI."""
    path = shutil.which(name)
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"{name} is not installed; on Debian: apt install {name}"
        )
    return path


def gleaner(*arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A finished run of the command in a folder."""
    command = [sys.executable, "-m", "gleaner", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


@dataclass
class Service:
    """A running `gleaner serve`."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture
def eager_threads():
    """Threads give way a hundred times as often: more moments in which to mix something up, and less waiting."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


@contextmanager
def serving(folder: Path, *arguments: object, **environment: str) -> Iterator[Service]:
    """`gleaner serve` in a folder, on free ports, until the block ends."""
    log = folder / "serve.log"
    command = [sys.executable, "-m", "gleaner", "serve", "--port", "0", "--metrics-port", "0", *map(str, arguments)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=file, text=True
        )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+), metrics on http://127\.0\.0\.1:(\d+)", line)
        assert found, f"{line}{log.read_text()}"
        yield Service(process, int(found[1]), int(found[2]), log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass
class Resident:
    """A running `gleaner train --resident`."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def metrics(self) -> dict[str, float]:
        """Every sample, by its name and labels as they are exposed."""
        lines = httpx.get(f"http://127.0.0.1:{self.port}/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def residing(folder: Path, *arguments: object, **environment: str) -> Iterator[Resident]:
    """`gleaner train --resident` in a folder, on a free port, until the block ends."""
    log = folder / "trainer.log"
    command = [sys.executable, "-m", "gleaner", "train", "--resident", "--metrics-port", "0", *map(str, arguments)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=file, text=True
        )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)", line)
        assert found, f"{line}{log.read_text()}"
        yield Resident(process, int(found[1]), log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def answering(reply: Callable[[str, str, bytes, Mapping[str, str]], tuple[int, bytes]]) -> Iterator[int]:
    """The port of a server that answers what `reply(method, path, body, headers)` says, until the block ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = reply(self.command, self.path, body, self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def has_ended(pid: int) -> bool:
    """Also where the first process of a container does not ask how its adopted children ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings, data, and a store of two versions: 1 a tree, the champion; 2 linear, the challenger."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    done = gleaner("train", "--metrics-port", "0", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "train.out").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of a model of every type of feature; 1 is linear, the champion, and 2 a tree."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "gleaner.toml").write_text(MIXED, encoding="utf-8")
    write_mixed_table(folder / "mixed.csv")
    done = gleaner("train", "--metrics-port", "0", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained folder's store, to be changed at will; its MLflow database is its own and empty."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("gleaner.toml", "made.csv"):
        shutil.copy(trained / name, folder)
    shutil.copytree(trained / ".gleaner" / "store", folder / ".gleaner" / "store")
    return folder


@dataclass
class MlflowServer:
    """A real `mlflow server` that keeps everything in a folder; it can be ended and begun again there."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
        ]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with self.log.open("ab") as log:
            # A group of its own: the server is a parent and its worker.
            self.process = subprocess.Popen(
                command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(900):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/version", timeout=1):
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def signal(self, number: int) -> None:
        assert self.process
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running MLflow server, empty at first; it takes 20 s to start, so the session has one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), port)
    try:
        server.start()
        yield server
    finally:
        server.stop()
