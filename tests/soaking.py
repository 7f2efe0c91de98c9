"""A service under a light load for a long time, with reloads."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import made
import numpy as np
from clients import FULL, Answer, Clients, Scraper, memory, request_of
from projects import NUMBER, ROUTE, SETTINGS
from started import serving

SECONDS, RELOAD_SECONDS, PAUSE = (900.0, 60.0, 0.2) if FULL else (3.0, 1.0, 0.05)
MB = 1 << 20

REQUESTS = [
    request_of(),
    request_of(path="/v2/predict"),
    request_of(json.dumps([ROUTE] * 200).encode()),
    request_of(b'[{"time_spent": -1}]'),
    request_of(b"time_spent,doors_in_route,assessed_value\n" + b"30,50,200000\n" * 2_000, kind="text/csv"),
]

Point = tuple[float, int]


class Soak:
    """A soak of at least SECONDS, which runs beside other tests.

    points: the seconds since the start, and the service's memory then.
    reloads: the moves of the champion so far.
    statuses: the number of responses with each status.
    wrong: what is neither a known prediction nor a refusal.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "gleaner.toml").write_text(f"{SETTINGS}\n[serving]\npoll_seconds = 0.1\n")
        artifacts = made.artifact("decision_tree"), made.artifact("spline")
        self._store = made.fill(folder / ".gleaner" / "store", *artifacts)
        self._folder, self._stack, self._stop = folder, ExitStack(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.points: list[Point] = []
        self.reloads = 0
        self.statuses: Counter[int] = Counter()
        self.wrong: list[bytes] = []

    def __enter__(self) -> Self:
        self.service = self._stack.enter_context(serving(self._folder))
        self.scraper = self._stack.enter_context(Scraper(self.service))
        clients = Clients(self.service, 4, pause=PAUSE, requests=REQUESTS, note=self._note)
        self.clients = self._stack.enter_context(clients)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def _note(self, answer: Answer) -> None:
        """Count a response; no time is long enough to keep them all."""
        self.statuses[answer.status] += 1
        is_known = answer.status == 422 or answer.version == "2" or str(NUMBER).encode() in answer.content
        if not is_known:
            self.wrong.append(answer.content[:100])

    def _run(self) -> None:
        while not self._stop.wait(RELOAD_SECONDS / 60):
            now = time.monotonic() - self._began
            self.points.append((now, memory(self.service)))
            if now >= (self.reloads + 1) * RELOAD_SECONDS:
                self._store.point({"champion": 1 + (self.reloads + 1) % 2})
                self.reloads += 1

    def wait(self) -> None:
        """Wait until the soak has lasted long enough, and end it."""
        time.sleep(max(0.0, self._began + SECONDS - time.monotonic()))
        self.finish()

    def finish(self) -> None:
        """End the soak at once."""
        self._stop.set()
        self._thread.join()
        self._stack.close()


def slope(points: list[Point], after: float) -> float:
    """Return the growth in MB a minute after some seconds."""
    late = np.array([point for point in points if point[0] >= after])
    return float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 60 / MB
