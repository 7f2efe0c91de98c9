"""The log of requests: those that failed or were slow, or all.

A line never has a row's content. A thread writes, so that no request waits for the log.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from gleaner.serving.access import OPEN
from gleaner.serving.endpoints.responses import Tally
from gleaner.serving.exchange import Request, Response
from gleaner.settings.sections import Serving

log = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.1
_MOST_WAITING = 20_000
# Without `serving.access_log`, a flood of refused requests must not push other lines out of the log.
_FEW_A_FLUSH = 5


class _Noted(NamedTuple):
    request: Request
    tally: Tally
    response: Response
    seconds: float
    error: str


class AccessLog:
    """The log of requests.

    find_client: returns a request's client from its environment.
    """

    def __init__(self, serving: Serving, find_client: Callable[[dict[str, Any]], str]) -> None:
        self.takes_all, self.slow_seconds = serving.access_log, serving.slow_seconds
        self._find_client = find_client
        self._waiting: deque[_Noted] = deque()
        self._left_out = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, request: Request, tally: Tally, response: Response, seconds: float, error: str = "") -> None:
        """Note a request, if it belongs into the log.

        A service without a model answers 503 to every probe, so probes are in the log only with all requests.
        seconds: the time since its first byte.
        error: the name of the error, such as BadRows.
        """
        is_quiet = tally.route in OPEN or (response.status < 400 and seconds < self.slow_seconds)
        if is_quiet and not self.takes_all:
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._left_out += 1
            return
        self._waiting.append(_Noted(request, tally, response, seconds, error))

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread = threading.Thread(target=self._write_always, name="access-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def write(self) -> None:
        """Write the lines that wait."""
        few = len(self._waiting) if self.takes_all else _FEW_A_FLUSH
        for count in range(len(self._waiting)):
            noted = self._waiting.popleft()
            if count < few:
                self._write_line(noted)
            else:
                self._left_out += 1
        if self._left_out:
            log.warning("requests not logged", extra={"count": self._left_out})
            self._left_out = 0

    def _write_always(self) -> None:
        while not self._stop.wait(_FLUSH_SECONDS):
            self.write()
        self.write()

    def _write_line(self, noted: _Noted) -> None:
        environ, tally, response = noted.request.environ, noted.tally, noted.response
        headers = dict(response.headers)
        fields = {
            "request_id": tally.request_id,
            "method": environ.get("REQUEST_METHOD", ""),
            "route": tally.route,
            "status": response.status,
            "seconds": round(noted.seconds, 6),
            "client": self._find_client(environ),
        }
        if "X-Model-Version" in headers:
            predicted = {"prediction_id": tally.id, "version": headers["X-Model-Version"], "rows": tally.rows}
            fields |= {"slot": tally.slot, **predicted}
        if noted.error:
            fields["error"] = noted.error
        level = logging.INFO if response.status < 400 else logging.WARNING
        log.log(level, "request", extra=fields)
