"""Processes that tests start, and waits for what they do."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pty
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx
import psutil
import pytest

# The exit codes of an interrupted command; a shell shows 130 for both. `python -m` ends by SIGINT if the interrupt met
# code that a library compiles, as `namedtuple` does, even if the program exits with 130.
INTERRUPTED = (130, -signal.SIGINT)


def tool(name: str) -> str:
    """Return the path of a program that no Python package brings.

    Without it a test is skipped, but fails under CI.
    """
    path = shutil.which(name)
    if path is None:
        miss(f"{name} is not installed; on Debian: apt install {name}")
    return path


def miss(reason: str) -> NoReturn:
    """Skip a test for a missing part; under CI, fail it."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def command_of(*arguments: object, patch: str = "") -> list[str]:
    """Return the command line of one of Gleaner's commands.

    patch: Python that runs first, such as one that takes a defence out.
    """
    how = ["-c", f"{patch}\nfrom gleaner.__main__ import main\nmain()"] if patch else ["-m", "gleaner"]
    return [sys.executable, *how, *map(str, arguments)]


def gleaner(*arguments: object, folder: Path, patch: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A finished run of the command in a folder."""
    command = command_of(*arguments, patch=patch)
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=400, check=False
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


@contextmanager
def serving(folder: Path, *arguments: object, patch: str = "", **environment: str) -> Iterator[Service]:
    """`gleaner serve` in a folder, on free ports, until the block ends."""
    log = folder / "serve.log"
    command = command_of("serve", "--port", 0, "--metrics-port", 0, *arguments, patch=patch)
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
def residing(folder: Path, *arguments: object, patch: str = "", **environment: str) -> Iterator[Resident]:
    """Run `gleaner train --resident` in a folder until the block ends.

    Its port is a free one.
    """
    log = folder / "trainer.log"
    command = command_of("train", "--resident", "--metrics-port", 0, *arguments, patch=patch)
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
def responding(reply: Callable[[str, str, bytes, Mapping[str, str]], tuple[int, bytes]]) -> Iterator[int]:
    """Run a server until the block ends; yield its port.

    `reply(method, path, body, headers)` makes each response.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = reply(self.command, self.path, body, self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            # A client that closes its connection early is no fault of the server.
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(*_)

    with Server(("127.0.0.1", 0), Handler) as server:
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
    """Return whether a process has ended.

    Zombies count as ended: a container's first process may not reap its adopted children.
    """
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


PORTS = ("ML_APP", "ML_APP_METRICS", "TRAIN_METRICS", "MLFLOW", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")


def free_ports() -> dict[str, str]:
    """The variables that give `up` free ports."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return {f"GLEANER_PORTS__{name}": str(s.getsockname()[1]) for name, s in zip(PORTS, sockets, strict=True)}


@dataclass
class Up:
    """A running `gleaner up` on a terminal of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    terminal: int
    environment: dict[str, str]
    shown: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """The text on the terminal, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.shown.decode()).replace("\r\n", "\n")

    def status(self) -> dict[str, dict[str, Any]]:
        done = gleaner("status", "--json", folder=self.folder)
        return {entry["name"]: entry for entry in json.loads(done.stdout)["entries"]}

    def everyone(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(self.terminal, 1 << 16):
                self.shown += piece


@contextlib.contextmanager
def up(folder: Path, *arguments: str, **environment: str) -> Iterator[Up]:
    """Run `gleaner up` on a terminal until the block ends.

    Ctrl-C can be typed there.
    """
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "gleaner", "up", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | environment, preexec_fn=lambda: os.login_tty(other)
    )
    os.close(other)
    running = Up(folder, process, terminal, environment)
    reader = threading.Thread(target=running.read, daemon=True)
    reader.start()
    try:
        yield running
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        os.close(terminal)


def all_end(processes: list[psutil.Process]) -> bool:
    return wait_for(lambda: all(has_ended(process.pid) for process in processes))


@dataclass
class MlflowServer:
    """A real `mlflow server` whose files are all in one folder.

    It can be ended, and started again there.
    """

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
