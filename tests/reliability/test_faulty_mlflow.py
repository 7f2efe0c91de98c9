"""An MLflow server that fails, beside a service and under trainings."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import made
import mlflow
import pytest
from clients import FULL, Clients, health, is_within, p99, slot, wrong
from projects import SETTINGS, write_made_table
from registries import HEAD, Handler, Registry, only, registering, reset, says
from started import MlflowServer, Service, gleaner, serving, wait_for

from gleaner.model.manifest import MODEL
from gleaner.model.store import Store

HOLD_SECONDS, SLICE_SECONDS = (30.0, 10.0) if FULL else (1.0, 0.5)
LATE_SECONDS, MOST_ERROR_SECONDS = 5.0, 10.0
# The shipped limits in `make reliability`; short ones in `make test`.
LIMITS = {} if FULL else {"GLEANER_TRACKING__TIMEOUT_SECONDS": "1"}


def late(handler: Handler) -> bool:
    handler.server.ended.wait(LATE_SECONDS)
    return False


def half_then(end: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    """Send the first half of model.onnx, then fail."""

    def fault(handler: Handler) -> bool:
        _, content = handler.content()
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        return end(handler)

    return only(MODEL, fault)


GARBAGE = b"\x16\x03\x01\r\n\x00\xff" * 5_000
FAULTS: dict[str, Callable[[Handler], bool]] = {
    "closing": says(b""),
    "hanging": says(b"", pause=600),
    "5 s late": late,
    "resetting": reset,
    "garbage": says(GARBAGE),
    "garbage as JSON": says(HEAD + b"Content-Length: 5\r\n\r\n[1,2]"),
    "closed within the model": half_then(says(b"")),
    "hanging within the model": half_then(says(b"", pause=600)),
    "5 s late with the model": only(MODEL, late),
    "reset within the model": half_then(reset),
    "garbage within the model": half_then(says(GARBAGE)),
}
QUICK = list(FAULTS) if FULL else ["resetting", "garbage", "hanging within the model"]


class Stage(NamedTuple):
    """A service that follows a faulty registry; version n predicts n."""

    service: Service
    registry: Registry

    def result(self) -> object:
        return health(self.service)["registry"]["result"]

    def serves(self, version: int) -> bool:
        return slot(self.service)["version"] == version

    def look(self, seconds: float) -> tuple[float, float]:
        """Ask for the health, as during a fault; return the span."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            self.result()
            self.serves(0)
            time.sleep(0.1)
        return began, time.monotonic()


@contextlib.contextmanager
def following(folder: Path, patch: str = "") -> Iterator[Stage]:
    folders = {n: made.constant(float(n)).folder for n in range(1, len(FAULTS) + 3)}
    with registering(folders, {"champion": 1, "challenger": 2}) as registry:
        made.place(folder, folders[1], folders[2])
        limits = {"GLEANER_TRACKING__URI": registry.url, "GLEANER_TRACKING__POLL_SECONDS": "0.2", **LIMITS}
        with serving(folder, patch=patch, **limits) as service:
            stage = Stage(service, registry)
            assert wait_for(lambda: stage.result() == "success")
            yield stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with following(tmp_path_factory.mktemp("faulty")) as stage:
        yield stage


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", QUICK)
def test_a_faulty_mlflow_costs_no_prediction_and_is_reported(stage, name, figure):
    registry, served = stage.registry, slot(stage.service)["version"]
    assert isinstance(served, int)
    new = 3 + list(FAULTS).index(name)
    shown, quiet, faulty = float("inf"), [], []
    with Clients(stage.service, 4) as clients:
        assert wait_for(lambda: clients.answers)
        quiet.append(stage.look(SLICE_SECONDS))
        began = time.monotonic()
        registry.aliases["champion"], registry.fault = new, FAULTS[name]
        while (now := time.monotonic()) < began + HOLD_SECONDS or (shown == float("inf") and now < began + 60):
            if stage.result() not in {"success", None} or slot(stage.service)["fault"]:
                shown = min(shown, time.monotonic() - began)
            if stage.serves(new):
                break  # a late server is followed
            time.sleep(0.1)
        faulty.append((began, time.monotonic()))
        registry.fault = lambda handler: False
        recovered = wait_for(lambda: clients.answers[-1].version == str(new))
        quiet.append(stage.look(SLICE_SECONDS))
    before, during = clients.between(*quiet), clients.between(*faulty)
    is_late = "late" in name

    figure(
        "D1",
        f"{name}: {len(clients.answers):,} predictions, {len(clients.failures) + len(wrong(clients.answers))} failed, "
        + ("followed" if is_late else f"reported after {shown:.1f} s")
        + f", p99 {p99(during):.4f} s, {p99(during) / p99(before):.1f} times",
    )
    assert [] == [*clients.failures, *wrong(clients.answers)]
    assert {str(served), str(new)} == {answer.version for answer in clients.answers}
    assert is_late or shown < 60
    assert recovered
    if FULL:
        assert is_late or shown <= MOST_ERROR_SECONDS
        assert is_within(during, before, 1.2)


def test_an_mlflow_that_refuses_connections_costs_no_prediction(tmp_path, figure):
    """Close its port, and open it again."""
    folders = {n: made.constant(float(n)).folder for n in (1, 2, 3)}
    made.place(tmp_path, folders[1], folders[2])
    with registering(folders, {"champion": 1, "challenger": 2}) as registry:
        port = registry.server_address[1]
    with (
        serving(tmp_path, GLEANER_TRACKING__URI=registry.url, GLEANER_TRACKING__POLL_SECONDS="0.2") as service,
        Clients(service, 4) as clients,
    ):
        stage, began = Stage(service, registry), time.monotonic()
        assert wait_for(lambda: stage.result() == "unreachable")
        shown = time.monotonic() - began
        time.sleep(HOLD_SECONDS)
        with registering(folders, {"champion": 3, "challenger": 2}, port):
            assert wait_for(lambda: stage.serves(3))

    assert [] == [*clients.failures, *wrong(clients.answers)]
    assert not FULL or shown <= MOST_ERROR_SECONDS
    figure("D1", f"refusing: {len(clients.answers):,} predictions, 0 failed, reported after {shown:.1f} s")


# A service that empties its slots when the registry fails
STRICT = """
from gleaner.serving.follower import Follower
from gleaner.serving.slots import Slots
poll, init = Follower.poll, Slots.__init__
slots = []
def init_known(self, *arguments, **options):
    init(self, *arguments, **options)
    slots.append(self)
def poll_strictly(self):
    poll(self)
    if self.result != "success":
        slots[0].current.update(dict.fromkeys(slots[0].aliases))
Follower.poll, Slots.__init__ = poll_strictly, init_known
"""


def test_a_service_that_needs_its_registry_is_found(tmp_path):
    with following(tmp_path, STRICT) as stage, Clients(stage.service, 2) as clients:
        stage.registry.fault = reset
        assert wait_for(lambda: wrong(clients.answers[-2:]))

    assert any(text.startswith("503") for text in wrong(clients.answers))


# Trainings without MLflow


class Proxy(socketserver.ThreadingTCPServer):
    """A way to a server, which closes at a given request.

    marks: bytes to see in their order; the request with the last of them does not get through.
    """

    daemon_threads = True

    def __init__(self, port: int, marks: Sequence[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.target, self.marks, self.is_closed = port, list(marks), threading.Event()
        self.open: list[socket.socket] = []


class ProxyHandler(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        if self.server.is_closed.is_set():
            return
        with socket.create_connection(("127.0.0.1", self.server.target)) as target:
            threading.Thread(target=self.back, args=(target,), daemon=True).start()
            self.server.open += [target, self.request]
            with contextlib.suppress(OSError):
                while piece := self.request.recv(1 << 16):
                    if self.server.marks[0] in piece and len(self.server.marks) > 1:
                        self.server.marks.pop(0)
                    elif self.server.marks[0] in piece:
                        self.server.is_closed.set()
                        self.server.socket.close()
                        for each in self.server.open:
                            with contextlib.suppress(OSError):
                                each.shutdown(socket.SHUT_RDWR)
                        return
                    target.sendall(piece)

    def back(self, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := target.recv(1 << 16):
                self.request.sendall(piece)


@contextlib.contextmanager
def cutting(port: int, marks: Sequence[bytes]) -> Iterator[str]:
    """Yield the address of a way to a local server."""
    with Proxy(port, marks) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        if proxy.is_closed.is_set():
            proxy.socket = socket.socket()  # `serve_forever` has ended with the first one
        proxy.shutdown()
        thread.join()


MOMENTS = {
    "in the middle": (b"/mlflow/runs/log-batch",),
    "at the registration": (b"/mlflow/model-versions/create",),
    "at the aliases": (b"/mlflow/registered-models/alias",),
    "at the end": (b"/mlflow/registered-models/alias", b"/mlflow/runs/update"),
}
REFUSED = "http://127.0.0.1:9"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    return tmp_path


class Claim(NamedTuple):
    """A training's result, and the aliases in the store and in MLflow."""

    code: int
    shown: str
    stored: dict[str, int]
    registered: dict[str, int]

    @property
    def is_false(self) -> bool:
        """Whether the training or the store claims an unknown registration."""
        claims = self.code == 0 or "version" in self.shown or bool(self.stored)
        return claims and self.stored != self.registered


def train(folder: Path, server: MlflowServer, moment: str, patch: str = "") -> Claim:
    """Train with a server that goes away at a moment."""
    client = mlflow.MlflowClient(server.url, server.url)
    with contextlib.suppress(mlflow.MlflowException):
        client.delete_registered_model("made")
    with cutting(server.port, MOMENTS[moment]) as uri:
        done = gleaner("train", "--metrics-port", 0, folder=folder, patch=patch, GLEANER_TRACKING__URI=uri)
    assert "Traceback" not in done.stderr, done.stderr
    aliases = {}
    with contextlib.suppress(mlflow.MlflowException):
        aliases = client.get_registered_model("made").aliases
    stored = Store(folder / ".gleaner" / "store").aliases()
    return Claim(done.returncode, done.stdout, stored, {alias: int(version) for alias, version in aliases.items()})


def test_a_training_without_mlflow_at_its_start_registers_nothing(folder, figure):
    done = gleaner("train", "--metrics-port", "0", folder=folder, GLEANER_TRACKING__URI=REFUSED)

    assert 1 == done.returncode
    assert 1 == len(done.stderr.strip().splitlines())
    assert f"MLflow at {REFUSED}" in done.stderr
    assert not (folder / ".gleaner").exists()
    figure("D2", "at the start: exit 1, nothing written")


full = pytest.mark.slow


@full
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_that_loses_mlflow_claims_nothing_that_is_not_so(folder, mlflow_server, moment, figure):
    claim = train(folder, mlflow_server, moment)

    assert not claim.is_false, claim
    assert (claim.code == 0) == (moment == "at the end")
    assert bool(claim.stored) == (moment == "at the end")
    figure("D2", f"{moment}: exit {claim.code}, {'registered and served' if claim.stored else 'no alias moved'}")


# A training that ignores a lost registry
CARELESS = """
from gleaner.training import tracking
from gleaner.errors import Unreachable
point = tracking.Recorder.point
def point_or_not(self, aliases):
    try:
        point(self, aliases)
    except Unreachable:
        pass
tracking.Recorder.point = point_or_not
"""


@full
def test_a_training_that_ignores_a_lost_registry_is_found(folder, mlflow_server):
    assert train(folder, mlflow_server, "at the aliases", CARELESS).is_false
