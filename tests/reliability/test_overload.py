"""Ten times the load that the service can take, and scrapes meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import made
import pytest
from clients import FULL, Clients, Connection, Scraper, ask, p99, request_of, samples
from projects import ROUTE
from started import Service, serving, wait_for

# A prediction takes 0.1 s of waiting, and 16 are computed at once.
SECONDS = 0.1
SLOW = f"""
import time
from gleaner.model.predictor import Predictor
choose = Predictor._choose
def choose_slowly(self, artifact, model):
    name, predict_row = choose(self, artifact, model)
    def predict_row_slowly(row):
        time.sleep({SECONDS})
        return predict_row(row)
    return name, predict_row_slowly
Predictor._choose = choose_slowly
"""
CAPACITY = 16 / SECONDS
OVERLOAD_SECONDS, CAPACITY_SECONDS = (20.0, 5.0) if FULL else (3.0, 1.0)
PERIOD = 0.5
MOST_REFUSAL_SECONDS, LONGEST_RECOVERY = 0.1, 5.0


class Outcome(NamedTuple):
    """A response under overload."""

    status: int
    seconds: float
    retries_after: bool


async def overload(port: int, count: int, seconds: float) -> list[Outcome]:
    """Send a request every PERIOD from each of many clients."""
    request, outcomes = request_of(), list[Outcome]()
    connections = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(count)))
    end = time.monotonic() + seconds

    async def run(i: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(PERIOD * i / count)
        while (began := time.monotonic()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            took = time.monotonic() - began
            outcomes.append(Outcome(int(head[9:12]), took, b"Retry-After: " in head))
            await asyncio.sleep(max(0.0, PERIOD - took))
        writer.close()

    await asyncio.gather(*(run(i, *connection) for i, connection in enumerate(connections)))
    return outcomes


def overloaded(service: Service) -> tuple[float, list[Outcome], float]:
    """Measure the capacity, then overload.

    Returns (good responses a second before, the outcomes under overload, seconds until a first good response after).
    """
    with Clients(service, 16, pause=0) as clients:
        time.sleep(CAPACITY_SECONDS)
    assert {200} == {answer.status for answer in clients.answers}
    capacity = len(clients.answers) / CAPACITY_SECONDS
    outcomes = asyncio.run(overload(service.port, round(10 * CAPACITY * PERIOD), OVERLOAD_SECONDS))
    began = time.monotonic()
    with Connection(service.port) as connection:
        assert wait_for(lambda: connection.ask(request_of()).status == 200)
    return capacity, outcomes, time.monotonic() - began


def test_overload_costs_little_of_the_capacity_and_the_rest_is_refused_soon(tmp_path, figure):
    made.place(tmp_path)
    with serving(tmp_path, patch=SLOW) as service, Scraper(service) as scraper:
        capacity, outcomes, recovery = overloaded(service)

    good = [each for each in outcomes if each.status == 200]
    refused = [each for each in outcomes if each.status == 503]
    goodput = len(good) / OVERLOAD_SECONDS / capacity
    late = p99([each.seconds for each in refused])
    assert len(outcomes) == len(good) + len(refused)
    assert good
    assert refused
    assert all(each.retries_after for each in refused)
    figure(
        "L5",
        f"{len(outcomes) / OVERLOAD_SECONDS:,.0f} requests/s on a capacity of {capacity:.0f}: {goodput:.0%} of it "
        f"served, {len(refused):,} refused with Retry-After, p99 after {late:.3f} s; recovered in {recovery:.2f} s",
    )
    if FULL:
        assert len(refused) > 4 * len(good), "the clients had not the time to send ten times the capacity"
        assert goodput >= 0.8
        assert late <= MOST_REFUSAL_SECONDS
        assert recovery <= LONGEST_RECOVERY
    figure("O1", f"during L5: {scraper.check()}")


def test_without_a_short_queue_refusals_come_late(tmp_path):
    made.place(tmp_path)
    with serving(tmp_path, patch=SLOW, GLEANER_SERVING__QUEUE_SECONDS="5") as service:
        _, outcomes, _ = overloaded(service)

    assert outcomes
    assert max(each.seconds for each in outcomes) > 10 * MOST_REFUSAL_SECONDS


# Counters

V1, V2, LIVE, UNMATCHED = "/v1/predict", "/v2/predict", "/livez", "unmatched"
ROWS = b"time_spent,doors_in_route,assessed_value\n" + b"30,50,200000\n" * 2
# The method and route that count each request, and the rows that it predicts
ASKED: dict[str, tuple[str, str, int, bytes]] = {
    "a row": ("POST", V1, 1, request_of()),
    "a list": ("POST", V1, 3, request_of(json.dumps([ROUTE] * 3).encode())),
    "the challenger": ("POST", V2, 1, request_of(path=V2)),
    "refused": ("POST", V1, 0, request_of(b'{"time_spent": -1}')),
    "not JSON": ("POST", V1, 0, request_of(b"{")),
    "details": ("POST", V1, 1, request_of(path=f"{V1}?detail=true")),
    "another type": ("POST", V1, 0, request_of(kind="text/html")),
    "too large": ("POST", V1, 0, request_of().replace(b"Length: 66", b"Length: 1000001")),
    "MLflow": (
        "POST",
        "/invocations",
        1,
        request_of(b'{"dataframe_records":[%s]}' % json.dumps(ROUTE).encode(), path="/invocations"),
    ),
    "CSV": ("POST", V1, 2, request_of(ROWS, kind="text/csv")),
    "live": ("GET", LIVE, 0, request_of(b"", path=LIVE, method="GET")),
    "no such route": ("POST", UNMATCHED, 0, request_of(path="/v3/predict")),
    "another method": ("DELETE", UNMATCHED, 0, request_of(b"", path=V1, method="DELETE")),
    "head": ("HEAD", LIVE, 0, request_of(b"", path=LIVE, method="HEAD")),
}


def counted(values: dict[str, float]) -> Counter[str]:
    """Return requests by method, route and status, and rows, from a scrape."""
    found: Counter[str] = Counter()
    for name, value in values.items():
        if match := re.fullmatch(r'http_requests_total{method="(\w+)",route="(.*)",status="(\d+)"}', name):
            found[" ".join(match.groups())] += int(value)
        elif name.startswith("model_prediction_rows_total"):
            found["rows"] += int(value)
    return found


def miscounted(folder: Path, rounds: int, patch: str = "") -> tuple[int, dict[str, tuple[int, int]], Scraper]:
    """Compare the counters with what eight clients count.

    Returns (requests, (the clients' count, the service's) of all that differ, the scraper).
    """
    made.place(folder)
    requests = [request for *_, request in ASKED.values()] * rounds
    with serving(folder, patch=patch) as service:
        before = counted(samples(service))
        with Scraper(service) as scraper, ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: ask(service.port, requests), range(8)))
        theirs = counted(samples(service))
    theirs.subtract(before)
    own: Counter[str] = Counter()
    for answer, (method, route, rows, _) in zip(
        itertools.chain(*answers), itertools.cycle(ASKED.values()), strict=False
    ):
        assert answer
        assert (answer.status == 200) == (rows > 0 or route == LIVE)
        own[f"{method} {route} {answer.status}"] += 1
        own["rows"] += rows
    differing = {name: (own[name], theirs[name]) for name in own | theirs if own[name] != theirs[name]}
    return 8 * len(requests), differing, scraper


def test_counters_equal_what_clients_counted(tmp_path, figure):
    count, differing, scraper = miscounted(tmp_path, 100 if FULL else 10)

    assert {} == differing
    figure("O1", f"{count:,} requests of {len(ASKED)} kinds by 8 clients: every counter equals; {scraper.check()}")


# Loses one prediction in ten, and makes a series for each request
LOSING = """
from gleaner.serving.metrics import Traffic
count, respond = Traffic.count_prediction, Traffic.count_response
made = []
def count_most(self, *arguments):
    made.append(None)
    if len(made) % 10:
        count(self, *arguments)
def count_each(self, method, path, status, seconds):
    respond(self, method, path, status, seconds)
    with self._lock:
        self._requests[method, f"/{len(self._requests)}", status] = 1
Traffic.count_prediction, Traffic.count_response = count_most, count_each
"""


def test_a_lost_count_and_a_series_for_each_request_are_found(tmp_path):
    _, differing, scraper = miscounted(tmp_path, 10, LOSING)

    own, theirs = differing[f"POST {V1} 200"]
    assert own > theirs
    with pytest.raises(AssertionError):
        scraper.check()
