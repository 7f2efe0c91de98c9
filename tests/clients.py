"""Clients that send requests all the while, and a scraper."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import httpx
import psutil
from projects import ROUTE
from started import Service

FULL = "MOMENTS" in os.environ
"""Whether sizes are those of `make reliability`, which alone asserts times."""

MOST_SCRAPE_SECONDS, MOST_SERIES = 0.2, 500
NOISE_SECONDS = 0.005


def request_of(
    body: bytes = json.dumps(ROUTE).encode(),
    *,
    path: str = "/v1/predict",
    method: str = "POST",
    kind: str = "application/json",
    headers: bytes = b"",
) -> bytes:
    """Return the bytes of a request.

    headers: more lines, each with its end.
    """
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n"
    if body or method == "POST":
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + headers + b"\r\n" + body


_HEALTH = request_of(b"", path="/health_status", method="GET")


class Answer(NamedTuple):
    """A response, when its request began, and how long it took."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    began: float
    seconds: float

    @property
    def version(self) -> str:
        return self.headers.get("x-model-version", "")


class Connection:
    """One kept connection, which sends raw requests."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> Answer:
        """Send a request and return its response. Raises OSError."""
        began = time.monotonic()
        self._socket.sendall(request)
        while b"\r\n\r\n" not in self._rest:
            self._receive()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if request.startswith(b"HEAD ") else int(headers["content-length"])
        while len(self._rest) < length:
            self._receive()
        content, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(first.split(" ")[1]), headers, content, began, time.monotonic() - began)

    def _receive(self) -> None:
        piece = self._socket.recv(1 << 16)
        if not piece:
            raise ConnectionResetError("the service closed the connection")
        self._rest += piece


def ask(port: int, requests: Sequence[bytes]) -> list[Answer | None]:
    """Send requests in turn, on one connection while it is kept.

    None stands for a request without a response.
    """
    answers: list[Answer | None] = []
    connection = Connection(port)
    for request in requests:
        try:
            answers.append(connection.ask(request))
        except OSError:
            answers.append(None)
        if answers[-1] is None or answers[-1].headers.get("connection") == "close":
            connection.__exit__()
            connection = Connection(port)
    connection.__exit__()
    return answers


class Background:
    """Threads that run functions until the block ends; each looks at `_stop`."""

    def __init__(self, *loops: Callable[[], object]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=loop) for loop in loops]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Clients(Background):
    """Clients on kept connections, each of which asks again and again.

    requests: the requests that each sends in turn.
    pause: the seconds between two requests of one client.
    note: gets each response; by default they are all kept.
    answers, failures: what came back, or why nothing did.
    """

    def __init__(
        self,
        service: Service,
        count: int = 16,
        *,
        pause: float = 0.02,
        requests: Iterable[bytes] = (request_of(),),
        note: Callable[[Answer], object] | None = None,
    ) -> None:
        self._port, self._pause, self._requests = service.port, pause, list(requests)
        self.answers: list[Answer] = []
        self._note = note or self.answers.append
        self.failures: list[str] = []
        super().__init__(*[self._run] * count)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with Connection(self._port) as connection:
                    for request in self._turns():
                        self._note(connection.ask(request))
            except OSError as e:
                self.failures.append(repr(e))

    def _turns(self) -> Iterator[bytes]:
        while True:
            for request in self._requests:
                yield request
                if self._stop.wait(self._pause):
                    return

    def between(self, *spans: tuple[float, float]) -> list[float]:
        """Return the durations of all requests that began within the spans."""
        answers = list(self.answers)
        return [each.seconds for begin, end in spans for each in answers if begin <= each.began < end]


def p99(durations: Iterable[float]) -> float:
    """Return the duration that 99 of 100 keep; NaN without any."""
    ordered = sorted(durations)
    return ordered[int(0.99 * (len(ordered) - 1))] if ordered else math.nan


def is_within(loaded: Iterable[float], alone: Iterable[float], factor: float) -> bool:
    """Return whether the p99 under load is within a factor.

    A few milliseconds more are the machine's own noise.
    """
    baseline = p99(alone)
    return p99(loaded) <= max(factor * baseline, baseline + NOISE_SECONDS)


def wrong(answers: Iterable[Answer]) -> list[str]:
    """Return the responses that are not the prediction of their version.

    Each version must always predict its own number, as `made.constant` does.
    """
    return [
        f"{each.status} {each.version} {each.content[:100]!r}"
        for each in answers
        if each.status != 200 or json.loads(each.content) != {"prediction": [float(each.version)]}
    ]


class Scraper(Background):
    """A scraper of the metrics.

    It scrapes four times a second and once at the end.

    faults: the responses that were not 200 or had too many series.
    """

    def __init__(self, service: Service) -> None:
        self._url = f"http://127.0.0.1:{service.metrics_port}/metrics"
        self.seconds: list[float] = []
        self.faults: list[str] = []
        self.series = 0
        super().__init__(self._run)

    def _run(self) -> None:
        with httpx.Client(timeout=60) as client:
            last = False
            while not last:
                last = self._stop.wait(0.25 if self.seconds else 0)
                began = time.monotonic()
                response = client.get(self._url)
                self.seconds.append(time.monotonic() - began)
                count = len(samples_of(response.text))
                self.series = max(self.series, count)
                if response.status_code != 200 or count > MOST_SERIES:
                    self.faults.append(f"{response.status_code}, {count} series")

    def check(self) -> str:
        """Check every scrape, and return the figure."""
        assert [] == self.faults
        assert self.seconds
        assert not FULL or max(self.seconds) <= MOST_SCRAPE_SECONDS
        return f"{len(self.seconds)} scrapes, worst {max(self.seconds):.3f} s, {self.series} series"


def samples_of(text: str) -> dict[str, float]:
    """Return the value of each series, by name and labels."""
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
    return {name: float(value) for name, value in pairs}


def samples(service: Service) -> dict[str, float]:
    """Scrape the metrics once."""
    return samples_of(httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=60).text)


def memory(service: Service) -> int:
    """Return the resident bytes of a service."""
    return int(psutil.Process(service.process.pid).memory_info().rss)


def health(service: Service) -> dict[str, Any]:
    """Return /health_status, for little work: durations are measured beside it."""
    with Connection(service.port) as connection:
        found: dict[str, Any] = json.loads(connection.ask(_HEALTH).content)
        return found


def slot(service: Service, name: str = "v1") -> dict[str, Any]:
    """Return a slot as /health_status describes it."""
    found: dict[str, Any] = health(service)["slots"][name]
    return found
