"""Log lines for people or, as JSON, for programs.

A line is a past event with its facts as fields.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from contextvars import ContextVar
from typing import Literal, TextIO

from gleaner.redaction import redact

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this thread handles; every line that it logs meanwhile has the id."""

LONGEST_LINE = 4096
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {k: v for k, v in vars(record).items() if k not in _PLAIN}
    if request_id.get():
        fields["request_id"] = request_id.get()
    return fields


class HumanFormatter(logging.Formatter):
    """A formatter for people: `INFO - model loaded version=3`.

    Control characters are escaped, so that one event is one line.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage() + "".join(f" {k}={v}" for k, v in _fields(record).items())
        if record.name != "gleaner.check":  # check_api.py shows a response on several lines
            text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        line = redact(f"{record.levelname} - {text}")[:LONGEST_LINE]
        return f"{line}\n{redact(self.formatException(record.exc_info))}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """A formatter for programs: lines of JSON, each at most 4 KB.

    A long traceback loses its beginning and keeps its end.
    """

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "event": redact(record.getMessage())[: LONGEST_LINE // 16],
        }
        longest = LONGEST_LINE // 4  # JSON writes one character beyond U+FFFF as two escapes of six bytes
        if record.exc_info:
            event["exception"] = redact(self.formatException(record.exc_info))[-longest // 2 :]
        for name, value in _fields(record).items():
            # JSON has no infinity and no NaN.
            plain = math.isfinite(value) if isinstance(value, float) else isinstance(value, int | None)
            event[name] = value if plain else redact(str(value))[: longest // 8]
        line = json.dumps(event)
        while len(line) > LONGEST_LINE and len(event) > 3:
            event.popitem()
            line = json.dumps(event)
        return line


def start_logging(form: Literal["human", "json"] = "human", stream: TextIO | None = None) -> None:
    """Send the package's log lines, from INFO up, to `stream`.

    stream: by default standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else HumanFormatter())
    package = logging.getLogger("gleaner")
    package.handlers[:] = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False
