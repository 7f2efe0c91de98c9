"""New versions and moved aliases under load, and starts without MLflow.

MOMENTS in the environment asks for the full sizes, and for the times; `make reliability` sets it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import made
import pytest
from clients import FULL, Clients, Connection, Scraper, is_within, memory, p99, request_of, slot, wrong
from projects import SETTINGS
from started import Service, gleaner, responding, serving, wait_for

from gleaner.model.store import Store

NEW = 20 if FULL else 2
AT_ONCE = 50 if FULL else 8
RELOADS = 500 if FULL else 20
MB = 1 << 20


def place(folder: Path, count: int, *, poll_seconds: float = 0.1) -> Store:
    """Write settings and a store; version n always predicts n."""
    return made.place(folder, *(made.constant(float(n)) for n in range(1, count + 1)), poll_seconds=poll_seconds)


def is_served(service: Service, version: int, name: str = "v1") -> bool:
    return slot(service, name)["version"] == version


# New versions


def reload_under_load(folder: Path, patch: str = "") -> tuple[Clients, Scraper, list[float], list[float]]:
    """Serve new versions, untested before, under 16 clients.

    Returns (clients, scraper, durations in quiet times, durations while a version was tested and loaded).
    """
    store, quiet, loading = place(folder, 1), [], []
    sources = {version: made.constant(float(version)).folder for version in range(2, NEW + 2)}
    with serving(folder, patch=patch) as service, Scraper(service) as scraper, Clients(service) as clients:
        assert wait_for(lambda: clients.answers)
        for version, source in sources.items():
            began = time.monotonic()
            time.sleep(1.0 if FULL else 0.2)
            quiet.append((began, time.monotonic()))
            store.add(version, source)
            store.point({"champion": version})
            assert wait_for(lambda wanted=str(version): clients.answers[-1].version == wanted)
            loading.append((quiet[-1][1], time.monotonic()))
    return clients, scraper, clients.between(*quiet), clients.between(*loading)


def test_new_versions_under_load_cost_no_request(tmp_path, figure):
    clients, scraper, quiet, loading = reload_under_load(tmp_path)

    assert [] == clients.failures
    assert [] == wrong(clients.answers)
    assert {str(n) for n in range(1, NEW + 2)} == {each.version for each in clients.answers}
    figure(
        "R1",
        f"{NEW} new versions, 16 clients, {len(clients.answers):,} requests: 0 errors, p99 {p99(loading):.4f} s, "
        f"{p99(loading) / p99(quiet):.1f} times the baseline",
    )
    assert not FULL or is_within(loading, quiet, 2)
    figure("O1", f"during R1: {scraper.check()}")


# A slot without a version while the new one is tested
GAP = """
from gleaner.serving.slots import Slots
load = Slots._load
def load_after_a_gap(self, slot, version, stamp):
    self.current[slot] = None
    load(self, slot, version, stamp)
Slots._load = load_after_a_gap
"""


def test_a_slot_that_is_empty_during_a_load_is_found(tmp_path):
    clients, *_ = reload_under_load(tmp_path, GAP)

    assert any(text.startswith("503") for text in wrong(clients.answers))


def promote(folder: Path, version: int) -> None:
    """Run `gleaner models promote`, with a registry that agrees."""
    with responding(lambda *_: (200, b"{}")) as port:
        done = gleaner("models", "promote", version, folder=folder, GLEANER_TRACKING__URI=f"http://127.0.0.1:{port}")
    assert 0 == done.returncode, done.stderr


def ask(service: Service, count: int) -> set[str]:
    """Send requests on ten connections; return the versions that answered."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(service.port)) for _ in range(10)]
        return {connections[i % 10].ask(request_of()).version for i in range(count)}


def test_after_a_promotion_no_response_is_from_the_old_version(tmp_path, figure):
    """Wait for /health_status, since `promote` does not wait."""
    place(tmp_path, 2)
    with serving(tmp_path) as service:
        versions = set()
        for version in [2, 1] * (5 if FULL else 1):
            promote(tmp_path, version)
            assert wait_for(lambda version=version: is_served(service, version))
            versions = ask(service, 500)

            assert {str(version)} == versions
    figure("R2", f"{10 if FULL else 2} promotions, 500 requests after each: 0 responses from the old version")


def test_responses_from_the_old_version_are_found(tmp_path):
    """Do not wait: a service that polls rarely serves the old one."""
    place(tmp_path, 2, poll_seconds=10)
    with serving(tmp_path) as service:
        promote(tmp_path, 2)

        assert "1" in ask(service, 50)


# A start without MLflow


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """Listen, and never answer; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """Yield an address at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def start_without_mlflow(folder: Path, uri: str, timeout_seconds: float, patch: str = "") -> float:
    """Return the seconds from the start to the first prediction."""
    began = time.monotonic()
    limits = {"GLEANER_TRACKING__TIMEOUT_SECONDS": str(timeout_seconds)}
    with (
        serving(folder, patch=patch, GLEANER_TRACKING__URI=uri, **limits) as service,
        Connection(service.port) as client,
    ):
        assert 200 == client.ask(request_of(b"", path="/readyz", method="GET")).status
        assert [] == wrong([client.ask(request_of())])
        return time.monotonic() - began


@pytest.mark.parametrize("how", [hanging, refusing])
def test_a_start_without_mlflow_serves_from_the_store(tmp_path, how, figure):
    place(tmp_path, 1)
    with how() as uri:
        seconds = start_without_mlflow(tmp_path, uri, 300)

    figure("R5", f"MLflow {how.__name__}: ready after {seconds:.1f} s")
    assert seconds < 200  # a start that waits for MLflow takes five minutes
    assert not FULL or seconds <= 5


# A start that waits for the registry first
EAGER = """
from gleaner.serving.follower import Follower
init = Follower.__init__
def poll_first(self, *arguments, **options):
    init(self, *arguments, **options)
    self.poll()
Follower.__init__ = poll_first
"""


def test_a_start_that_waits_for_mlflow_is_found(tmp_path):
    place(tmp_path, 1)
    with hanging() as uri:
        assert start_without_mlflow(tmp_path, uri, 3, EAGER) >= 3


# Many moves at once

MOVE = """
import sys, time
from pathlib import Path
from gleaner.model.store import Store
store, version = Store(Path(sys.argv[1])), int(sys.argv[2])
print("here", flush=True)
sys.stdin.readline()
"""
TOGETHER = "store.point({'champion': version, 'challenger': version})"
APART = "store.point({'champion': version}); time.sleep(0.05); store.point({'challenger': version})"


def move_at_once(store: Store, how: str) -> list[dict[str, int]]:
    """Move both aliases from many processes at once.

    Returns the aliases, read again and again until the last process has ended.
    """
    command = [sys.executable, "-c", MOVE + how, store.root]
    seen = []
    with contextlib.ExitStack() as stack:
        movers = []
        for version in range(1, AT_ONCE + 1):
            mover = subprocess.Popen([*command, str(version)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            movers.append(stack.enter_context(mover))
        assert {b"here\n"} == {mover.stdout.readline() for mover in movers}
        for mover in movers:
            mover.stdin.write(b"\n")
            mover.stdin.flush()
        while any([mover.poll() is None for mover in movers]):  # noqa: C419  each must be polled
            seen.append(store.aliases())
        assert {0} == {mover.returncode for mover in movers}
    return [*seen, store.aliases()]


def mixed(seen: list[dict[str, int]]) -> list[dict[str, int]]:
    return [aliases for aliases in seen if aliases["champion"] != aliases["challenger"]]


def test_of_many_moves_at_once_one_wins_and_nothing_is_mixed(tmp_path, figure):
    store = place(tmp_path, AT_ONCE)
    store.point({"champion": 1, "challenger": 1})
    both = [request_of(), request_of(path="/v2/predict")]
    with serving(tmp_path) as service, Clients(service, 4, requests=both) as clients:
        seen = move_at_once(store, TOGETHER)
        winner = seen[-1]["champion"]
        settled = wait_for(lambda: is_served(service, winner) and is_served(service, winner, "v2"))
        with Connection(service.port) as client:
            after = [client.ask(request) for request in both * 10]

    assert [] == mixed(seen)
    assert settled
    assert {str(winner)} == {each.version for each in after}
    assert [] == [*clients.failures, *wrong(clients.answers), *wrong(after)]
    served = len({each.version for each in clients.answers})
    figure("R6", f"{AT_ONCE} processes moved both aliases at once: one winner, {served} versions served, 0 mixed")


def test_aliases_that_move_one_by_one_are_found(tmp_path):
    store = place(tmp_path, AT_ONCE)
    store.point({"champion": 1, "challenger": 1})

    assert mixed(move_at_once(store, APART))


# Many reloads

# A load that keeps 4 MB
LEAK = """
from gleaner.serving.slots import Slots
load, kept = Slots._load, []
def load_and_keep(self, slot, version, stamp):
    kept.append(b"x" * (4 << 20))
    load(self, slot, version, stamp)
Slots._load = load_and_keep
"""


def reload(store: Store, service: Service, connection: Connection, version: int) -> None:
    """Move the champion, and wait until its version answers."""
    store.point({"champion": version})
    assert wait_for(lambda: connection.ask(request_of()).version == str(version))


def grow_by_reloads(folder: Path, patch: str = "") -> int:
    """Return the bytes that many reloads in a row have left."""
    (folder / "gleaner.toml").write_text(f"{SETTINGS}\n[serving]\npoll_seconds = 0.02\n")
    store = made.fill(folder / ".gleaner" / "store", made.artifact("random_forest"), made.artifact("spline"))
    with serving(folder, patch=patch) as service, Connection(service.port) as connection:
        for i in range(10):
            reload(store, service, connection, 1 + (i + 1) % 2)
        before = memory(service)
        for i in range(RELOADS):
            reload(store, service, connection, 1 + (i + 1) % 2)
        return memory(service) - before


def test_many_reloads_in_a_row_leave_the_memory_as_it_was(tmp_path, figure):
    grown = grow_by_reloads(tmp_path)

    assert grown <= 20 * MB
    figure("M1", f"{RELOADS} reloads in a row: {grown / MB:+.1f} MB")


def test_a_reload_that_keeps_memory_is_found(tmp_path):
    assert grow_by_reloads(tmp_path, LEAK) > 20 * MB
