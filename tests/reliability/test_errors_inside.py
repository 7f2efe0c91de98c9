"""Errors inside the service, its responses to them, and its log."""

from __future__ import annotations

import json
import platform
import re
import socket
from pathlib import Path

import made
from clients import FULL, ask, request_of
from projects import ROUTE
from started import Service, serving

SECRET = "/secret/path SELECT password FROM users"
# The value of time_spent chooses an error; its text has the client's headers.
RAISING = f"""
import builtins, asyncio, sqlite3
import msgspec, onnxruntime
from gleaner import errors
from gleaner.model.predictor import Predictor
from gleaner.serving.exchange import current
from gleaner.serving.problems import _STATUS
from gleaner.serving.service import Service
choose, predict, ready = Predictor._choose, Predictor.predict, Service.is_ready
kinds = [kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, BaseException)]
kinds += [sqlite3.OperationalError, asyncio.CancelledError, msgspec.ValidationError]
kinds += [kind for kind in onnxruntime.capi.onnxruntime_pybind11_state.__dict__.values()
          if isinstance(kind, type) and issubclass(kind, BaseException)]
kinds += [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GleanerError)]
made = []
for kind in dict.fromkeys(kinds):
    if kind in _STATUS:
        continue
    for arguments in ((), ({SECRET!r},), ({SECRET!r}, [ValueError()]), ("utf-8", b"x", 0, 1, {SECRET!r}),
                      ({SECRET!r},) * 2, ({SECRET!r},) * 3, ({SECRET!r},) * 4):
        try:
            error = kind(*arguments)
        except TypeError:
            continue
        if {SECRET!r} in str(error) or {SECRET!r} in repr(error):
            made.append(error)
            break
print(len(made), file=open("kinds", "w"))
last = []
def fail(row):
    i = int(row[0])
    if i < 1_000:
        request = current.get()
        if request is None:
            raise LookupError  # the loop's try, before a thread has its own
        last[:] = [made[i % len(made)]]
        raise last[0]
    if i == 1_100:
        request = current.get()
        raise RuntimeError("".join(str(value) for name, value in request.environ.items() if name.startswith("HTTP_")))
    if i == 1_200:
        raise made[int(row[1])]  # also on the loop
    last.clear()
def choose_failing(self, artifact, model):
    name, predict_row = choose(self, artifact, model)
    return name, lambda row: fail(row) or predict_row(row)
def predict_failing(self, X):
    fail(X[0].tolist())
    return predict(self, X)
def is_ready_failing(self):
    if last:
        raise last[0]
    return ready(self)
Predictor._choose, Predictor.predict, Service.is_ready = choose_failing, predict_failing, is_ready_failing
"""
QUIET, HEADERS, ON_LOOP = 1_400, 1_100, 1_200
INSIDE = re.compile(
    rf"secret|SELECT|password|Traceback|\.py|[a-z]Error\b|Exception|onnxruntime|{re.escape(platform.python_version())}"
)


def raising(row: dict[str, float]) -> list[bytes]:
    """Return a request of every format and way, with the same row."""
    body, names = json.dumps(row).encode(), ",".join(row).encode()
    cells = ",".join(str(value) for value in row.values()).encode()
    tensors = {"inputs": [{"name": n, "datatype": "FP64", "shape": [1], "data": [v]} for n, v in row.items()]}
    return [
        request_of(body),
        request_of(b"[%s,%s]" % (body, body)),
        request_of(body, path="/v1/predict?detail=true"),
        request_of(body, path="/v2/predict"),
        request_of(names + b"\n" + cells + b"\n", kind="text/csv"),
        request_of(b'{"dataframe_records":[' + body + b"]}", path="/invocations"),
        request_of(json.dumps(tensors).encode(), path="/v2/models/made/infer"),
        request_of(b"", path="/health_status", method="GET"),
        request_of(b"", path="/readyz", method="GET"),
    ]


def force_errors(folder: Path, most: int, patch: str = "") -> tuple[int, list[str]]:
    """Raise every kind of error in every way.

    Returns (responses, what is wrong with them).
    """
    made.place(folder)
    faults, count = [], 0
    with serving(folder, patch=RAISING + patch) as service:
        kinds = min(most, int((folder / "kinds").read_text()))
        for i in range(kinds):
            requests = raising({**ROUTE, "time_spent": i})
            # Quick versions are predicted on the loop, so the loop meets the error first.
            quick = [request_of(json.dumps({**ROUTE, "time_spent": QUIET}).encode())] * 12
            on_loop = request_of(json.dumps({**ROUTE, "time_spent": ON_LOOP, "doors_in_route": i}).encode())
            answers = ask(service.port, [*requests, *quick, on_loop])
            assert {200} == {answer.status for answer in answers[len(requests) : -1]}
            for at, answer in enumerate([*answers[: len(requests)], answers[-1]]):
                count += 1
                shown = answer and f"{answer.headers} {answer.content.decode()}"
                if answer is None or answer.status != 500:
                    faults.append(f"kind {i}, request {at}: {answer and answer.status}")
                elif found := INSIDE.search(shown):
                    faults.append(f"kind {i}, request {at}: shows {found[0]!r}")
    return count, faults


def test_no_forced_error_shows_its_inside(tmp_path, figure):
    count, faults = force_errors(tmp_path, 1_000 if FULL else 25)

    assert [] == faults
    figure("S3", f"{(tmp_path / 'kinds').read_text().strip()} kinds of errors, {count} responses: 500, nothing shown")


# Shows the error to the client
SHOWING = """
from gleaner.serving import problems
describe = problems.describe_error
def describe_and_show(error, *more):
    status, headers, content = describe(error, *more)
    return status, headers, content + repr(error).encode()
problems.describe_error = describe_and_show
"""


def test_an_error_that_is_shown_is_found(tmp_path):
    _, faults = force_errors(tmp_path, 1, SHOWING)

    assert any("shows" in fault for fault in faults)


FORGED = '{"level": "INFO", "event": "all is lost"}'
VALUES = (
    *(
        "a\r\nX-Evil: 1",
        "a\nX-Evil: 1",
        "a\rX-Evil: 1",
        "a\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        "a\r\n folded",
    ),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x00", "\x7f", "\x08\x08\x08", "\x0b\x0c", "\x9b31m", "\x85", "\xa0"),
    *(FORGED, f"x\n{FORGED}", f"\u2028{FORGED}".encode().decode("latin-1"), "%0d%0a", "\\r\\n", "\\u000a", "${jndi:x}"),
    *("x" * 10_000, '"' * 10_000, "\\" * 10_000, "\xff" * 10_000, "\xe2\x80\xa8" * 3_000, "a" * 100_000),
)


def send_raw(port: int, request: bytes) -> bytes:
    """Send bytes, and return all that comes until the connection ends."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(1 << 16):
                received += piece
        except ConnectionError:
            pass
    return received


def bad_lines(text: str) -> list[str]:
    """Return the log lines that are long, or no event in JSON."""
    found = []
    for line in text.split("\n")[:-1]:
        try:
            is_event = {"time", "level", "event"} <= set(json.loads(line))
        except (ValueError, TypeError):
            is_event = False
        if not is_event or len(line.encode()) > 4_096 or not line.isprintable():
            found.append(line[:200])
    return found


def log_hostile_headers(folder: Path, patch: str = "") -> tuple[list[list[int]], str]:
    """Return the statuses for each request, and the log.

    Every request whose headers are read fails inside, with its headers in the error's text.
    """
    made.place(folder)
    body = json.dumps({**ROUTE, "time_spent": HEADERS}).encode()
    statuses = []
    with serving(folder, patch=RAISING + patch) as service:
        for name in ("X-Request-Id", "User-Agent", "X-Other"):
            for value in VALUES:
                header = f"{name}: {value}\r\nConnection: close\r\n".encode("latin-1")
                received = send_raw(service.port, request_of(body, headers=header))
                statuses.append([int(each) for each in re.findall(rb"HTTP/1.1 (\d+) ", received)])
        return statuses, events_of(service)


def events_of(service: Service) -> str:
    """Return the log since the start's own lines."""
    service.stop()
    lines = service.log.read_text().splitlines(keepends=True)
    others = ("model loaded", '"event": "request"', "requests not logged")
    return "".join(line for line in lines if not any(other in line for other in others))


def test_a_hostile_header_is_one_request_and_one_line_of_json(tmp_path, figure):
    statuses, log = log_hostile_headers(tmp_path)

    lines = log.split("\n")[:-1]
    assert [] == [each for each in statuses if len(each) > 2 or each[:1] not in ([500], [400], [431])]
    # Two complete requests were sent where the value has one; it is not part of the first.
    assert 3 >= sum(len(each) == 2 for each in statuses)
    assert [] == bad_lines(log)
    assert sum(each[0] == 500 for each in statuses) == len(lines)
    assert len(lines) > len(statuses) // 2
    events = [json.loads(line) for line in lines]
    assert {"request failed"} == {event["event"] for event in events}
    longest = max(len(line.encode()) for line in lines)
    figure("S5", f"{len(statuses)} hostile headers: one response and at most one line each, longest {longest:,} bytes")


# Writes what it is given
PLAIN = """
from gleaner import logs
logs.JsonFormatter.format = lambda self, record: f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
"""


def test_a_log_that_writes_what_a_client_sent_is_found(tmp_path):
    _, log = log_hostile_headers(tmp_path, PLAIN)

    assert len(bad_lines(log)) > len(VALUES)
