"""The client against a real, tiny server, and against nothing."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gleaner.client import Rejected, check
from gleaner.errors import Unreachable

ROUTE = {"time_spent": 30, "doors_in_route": 50, "assessed_value": 200000}
ANSWER = {"prediction": [22.068840579710145]}


class Server(HTTPServer):
    """Answers every POST with `status` and `body`, and keeps what was asked; waits for `hold` first."""

    status, body, hold = 200, json.dumps(ANSWER).encode(), None

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:  # http.server's name
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Content-Type"], body))
        if self.server.hold:
            self.server.hold.wait(20)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def log(caplog):
    """What the package logs, also where an earlier test has started its logging."""
    package = logging.getLogger("gleaner")
    kept, package.propagate = package.propagate, True
    with caplog.at_level(logging.INFO, "gleaner"):
        yield caplog
    package.propagate = kept


def ask(server: Server, data: object = ROUTE, **options: object) -> object:
    return check(data, host="127.0.0.1", port=server.server_port, **options)


def rejection(server: Server, status: int, body: object) -> str:
    """What is said of an answer."""
    server.status, server.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Rejected) as caught:
        ask(server)
    assert status == caught.value.status
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(server.server_port), "PORT")


def test_an_object_is_sent_as_json_to_the_first_slot_and_its_answer_given(server):
    assert ANSWER == ask(server)

    ((path, kind, body),) = server.asked
    assert ("/v1/predict", "application/json", ROUTE) == (path, kind, json.loads(body))


def test_a_list_is_sent_as_it_is_to_the_slot_that_was_asked_for(server):
    ask(server, [ROUTE, {"a": "é\ud800"}], slot="v2")

    ((path, _, body),) = server.asked
    assert ("/v2/predict", [ROUTE, {"a": "é\ud800"}]) == (path, json.loads(body))


def test_the_request_the_status_and_the_answer_are_logged_as_the_guide_shows(server, log):
    ask(server)

    assert [
        f"Sending request to http://127.0.0.1:{server.server_port}/v1/predict with data: {ROUTE}",
        "Status code: 200",
        'Response:\n{\n  "prediction": [\n    22.068840579710145\n  ]\n}',
    ] == log.messages
    assert {("gleaner.check", "INFO")} == {(record.name, record.levelname) for record in log.records}


def test_every_fault_of_a_problem_is_told_in_one_line(server, log):
    problem = {
        "title": "Unprocessable Content",
        "detail": "2 faults",
        "errors": [
            {"pointer": "/time_spent", "detail": "is missing"},
            {"pointer": "/doors", "detail": "no such column"},
        ],
    }

    assert "/time_spent: is missing; /doors: no such column" == rejection(server, 422, problem)
    assert "Status code: 422" in log.messages


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (503, {"title": "No model", "detail": "nothing to answer with yet"}, "nothing to answer with yet"),
        (503, {"title": "No model"}, "No model"),
        (400, {"errors": "many", "detail": "not JSON"}, "not JSON"),
        (400, {"errors": [], "detail": "not JSON"}, "not JSON"),
        (500, {}, "refused"),
        (200, [1, 2], "the answer is not an object"),
        (404, None, "the answer is not an object"),
        (
            200,
            b"<html>",
            "http://127.0.0.1:PORT/v1/predict answered something that is not JSON; is it Gleaner's?",
        ),
        (
            502,
            b"\xff\xfe\xfd",
            "http://127.0.0.1:PORT/v1/predict answered something that is not JSON; is it Gleaner's?",
        ),
        (204, b"", "http://127.0.0.1:PORT/v1/predict answered something that is not JSON; is it Gleaner's?"),
    ],
)
def test_an_answer_that_is_no_prediction_is_rejected_with_the_reason(server, status, body, said):
    assert said == rejection(server, status, body)


def test_what_json_has_no_word_for_is_left_to_the_server_to_refuse(server):
    ask(server, {"time_spent": float("nan")})

    assert b'{"time_spent": NaN}' == server.asked[0][2]


def test_a_variable_for_proxies_is_not_followed(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")

    assert ANSWER == ask(server)


def test_where_nothing_listens_the_address_and_the_fix_are_told():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    with pytest.raises(Unreachable) as caught:
        check(ROUTE, host="127.0.0.1", port=port)
    assert str(caught.value).startswith(f"nothing answers at http://127.0.0.1:{port}/v1/predict: ")
    assert str(caught.value).endswith("; is `gleaner serve` running?")
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_in_time_is_unreachable(server):
    server.hold = threading.Event()
    try:
        with pytest.raises(Unreachable, match="timed out"):
            ask(server, timeout_seconds=0.2)
    finally:
        server.hold.set()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two words", "a\nb", "[::1"])
def test_a_host_that_is_none_is_unreachable(host):
    with pytest.raises(Unreachable, match="is `gleaner serve` running"):
        check(ROUTE, host=host, port=5001)


def test_an_address_of_ipv6_stands_in_brackets():
    with pytest.raises(Unreachable, match=r"^nothing answers at http://\[::1\]:1/v1/predict: "):
        check(ROUTE, host="::1", port=1)
