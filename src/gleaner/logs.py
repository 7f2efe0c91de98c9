"""Log lines: past events with their facts as fields, for a person or, as JSON, for a machine."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from contextvars import ContextVar
from typing import Literal, TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this thread is answering; it stands in every line logged meanwhile."""

LONGEST_LINE = 4096
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {k: v for k, v in vars(record).items() if k not in _PLAIN}
    if request_id.get():
        fields["request_id"] = request_id.get()
    return fields


class HumanFormatter(logging.Formatter):
    """`INFO - model loaded version=3`; control characters are shown escaped, so one event is one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage() + "".join(f" {k}={v}" for k, v in _fields(record).items())
        if record.name != "gleaner.check":  # the answer of check_api.py is meant to be read over several lines
            text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        line = f"{record.levelname} - {text}"[:LONGEST_LINE]
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line, of at most 4 KB; an exception's text is cut, not its ending."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "event": record.getMessage()[: LONGEST_LINE // 16],
        }
        room = LONGEST_LINE // 4  # JSON writes a character of the plane above as two escapes of six bytes
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)[-room // 2 :]
        for name, value in _fields(record).items():
            # JSON has no word for infinity and the like.
            plain = math.isfinite(value) if isinstance(value, float) else isinstance(value, int | None)
            event[name] = value if plain else str(value)[: room // 8]
        line = json.dumps(event)
        while len(line) > LONGEST_LINE and len(event) > 3:
            event.popitem()
            line = json.dumps(event)
        return line


def start_logging(form: Literal["human", "json"] = "human", stream: TextIO | None = None) -> None:
    """Send what the package logs, from INFO up, to `stream` (standard error by default)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else HumanFormatter())
    package = logging.getLogger("gleaner")
    package.handlers[:] = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False
