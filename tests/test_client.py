"""The client with a service, with faulty servers, and without any."""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import numpy as np
import pytest
from projects import ROOT
from prometheus_client.parser import text_string_to_metric_families
from started import serving

from gleaner import client as module
from gleaner.client import Client, Rejected, check
from gleaner.errors import BadValue, Refused, Unreachable
from gleaner.model.predictor import Predictor
from gleaner.model.store import Store

ROUTE = {"time_spent": 30, "doors_in_route": 50, "assessed_value": 200000}
RESPONSE = {"prediction": [22.068840579710145]}


class Server(HTTPServer):
    """A server with one response for every POST, after `hold`."""

    status, body, hold = 200, json.dumps(RESPONSE).encode(), None

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:  # http.server's name
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked.append((self.path, self.headers["Content-Type"], body))
        if self.server.hold:
            self.server.hold.wait(20)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST  # noqa: N815

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
    """Yield the package's log lines.

    An earlier test may have started its logging.
    """
    package = logging.getLogger("gleaner")
    kept, package.propagate = package.propagate, True
    with caplog.at_level(logging.INFO, "gleaner"):
        yield caplog
    package.propagate = kept


def ask(server: Server, data: object = ROUTE, **options: object) -> object:
    return check(data, host="127.0.0.1", port=server.server_port, **options)


def rejection(server: Server, status: int, body: object) -> str:
    """Return the message about a response."""
    server.status, server.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Rejected) as caught:
        ask(server)
    assert status == caught.value.status
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(server.server_port), "PORT")


def test_an_object_is_sent_as_json_to_the_first_slot_and_the_response_returned(server):
    assert RESPONSE == ask(server)

    ((path, kind, body),) = server.asked
    assert ("/v1/predict", "application/json", ROUTE) == (path, kind, json.loads(body))


def test_a_list_is_sent_unchanged_to_the_given_slot(server):
    ask(server, [ROUTE, {"a": "é\ud800"}], slot="v2")

    ((path, _, body),) = server.asked
    assert ("/v2/predict", [ROUTE, {"a": "é\ud800"}]) == (path, json.loads(body))


def test_the_request_the_status_and_the_response_are_logged_as_the_guide_shows(server, log):
    ask(server)

    assert [
        f"Sending request to http://127.0.0.1:{server.server_port}/v1/predict with data: {ROUTE}",
        "Status code: 200",
        'Response:\n{\n  "prediction": [\n    22.068840579710145\n  ]\n}',
    ] == log.messages
    assert {("gleaner.check", "INFO")} == {(record.name, record.levelname) for record in log.records}


def test_every_fault_of_a_problem_is_named_in_one_line(server, log):
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
        (200, [1, 2], "the response is not a JSON object"),
        (404, None, "the response is not a JSON object"),
        (
            200,
            b"<html>",
            "http://127.0.0.1:PORT/v1/predict sent a response that is not JSON; is Gleaner serving there?",
        ),
        (
            502,
            b"\xff\xfe\xfd",
            "http://127.0.0.1:PORT/v1/predict sent a response that is not JSON; is Gleaner serving there?",
        ),
        (204, b"", "http://127.0.0.1:PORT/v1/predict sent a response that is not JSON; is Gleaner serving there?"),
    ],
)
def test_check_rejects_a_response_without_predictions_with_the_reason(server, status, body, said):
    assert said == rejection(server, status, body)


def test_check_sends_values_outside_json_for_the_server_to_refuse(server):
    ask(server, {"time_spent": float("nan")})

    assert b'{"time_spent": NaN}' == server.asked[0][2]


def test_the_variables_for_proxies_are_ignored(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")

    assert RESPONSE == ask(server)


def test_without_a_server_the_error_names_the_address_and_the_fix():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    with pytest.raises(Unreachable) as caught:
        check(ROUTE, host="127.0.0.1", port=port)
    assert str(caught.value).startswith(f"no response from http://127.0.0.1:{port}/v1/predict: ")
    assert str(caught.value).endswith("; is `gleaner serve` running?")
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_respond_in_time_is_unreachable(server):
    server.hold = threading.Event()
    try:
        with pytest.raises(Unreachable, match="timed out"):
            ask(server, timeout_seconds=0.2)
    finally:
        server.hold.set()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two words", "a\nb", "[::1"])
def test_an_invalid_host_is_unreachable(host):
    with pytest.raises(Unreachable, match="is `gleaner serve` running"):
        check(ROUTE, host=host, port=5001)


def test_an_ipv6_address_is_put_in_brackets():
    with pytest.raises(Unreachable, match=r"^no response from http://\[::1\]:1/v1/predict: "):
        check(ROUTE, host="::1", port=1)


# Client, against the real service


@pytest.fixture(scope="module")
def service(trained):
    with serving(trained) as running:
        yield running


@pytest.fixture
def client(service):
    with Client(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def table(trained):
    """Return (20,001 rows, the artifacts' own predictions).

    The rows cover the whole range of every column.
    """
    X = np.random.default_rng(0).uniform((0, 0, 0), (1440, 10_000, 1e9), (20_001, 3))
    store = Store(trained / ".gleaner" / "store")
    return X, [Predictor(store.read(version)).predict(X) for version in (1, 2)]


def requests_counted(service, slot: str = "v1", status: str = "success") -> float:
    text = httpx.get(f"{service.url}/metrics").text
    labels = {"model_version": slot, "status": status}
    return next(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "model_prediction_requests_total" and sample.labels == labels
    )


def test_a_mapping_and_a_list_of_them_are_predicted(client):
    one, two = client.predict(ROUTE), client.predict([ROUTE, {name: np.int64(n) for name, n in ROUTE.items()}])

    assert (np.dtype(np.float64), (1,), (2,)) == (one.dtype, one.shape, two.shape)
    assert [22.068840579710145] * 3 == [*one.tolist(), *two.tolist()]


@pytest.mark.parametrize("slot", ["v1", "v2"])
def test_an_array_is_predicted_to_the_bit_even_in_parts(client, service, table, slot):
    X, expected = table
    before = requests_counted(service, slot)

    found = client.predict(X, columns=list(ROUTE), slot=slot)

    assert expected[slot == "v2"].tobytes() == found.tobytes()
    # 10,000 rows of these digits have more than a million bytes.
    assert 3 == requests_counted(service, slot) - before


def test_the_columns_of_an_array_stand_in_the_callers_order(client, table):
    X, expected = table

    found = client.predict(X[:100, ::-1], columns=list(ROUTE)[::-1])

    assert expected[0][:100].tolist() == found.tolist()


def test_the_columns_of_an_array_default_to_the_services_order(client, table):
    X = table[0]

    assert client.predict(X, columns=list(ROUTE)).tobytes() == client.predict(X).tobytes()
    assert tuple(ROUTE) == client.columns("v2")


def test_a_service_that_does_not_name_its_columns_is_rejected(server):
    with (
        Client(f"http://127.0.0.1:{server.server_port}") as client,
        pytest.raises(Rejected, match="does not name the columns"),
    ):
        client.predict(np.ones((1, 3)))


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32])
def test_an_array_of_other_numbers_is_predicted(client, kind):
    found = client.predict(np.array([[30, 50, 200]], dtype=kind), columns=list(ROUTE))

    assert (
        client.predict({"time_spent": 30.0, "doors_in_route": 50.0, "assessed_value": 200.0}).tolist() == found.tolist()
    )


def test_no_rows_have_no_predictions(client):
    assert (0,) == client.predict([]).shape == client.predict(np.empty((0, 3)), columns=list(ROUTE)).shape


def test_details_have_a_version_and_an_id_of_its_own_for_each_row(service):
    with Client(service.url, max_rows=2) as client:
        found = client.predict([ROUTE] * 5, slot="v2", detail=True)

    assert (5,) == found.values.shape
    assert [2] * 5 == found.versions.tolist()
    assert 5 == len(set(found.ids))


def test_a_refused_value_is_named_by_its_row_in_the_whole_table_and_not_sent_again(service):
    rows = [ROUTE, ROUTE, ROUTE, ROUTE | {"time_spent": -1.0, "doors_in_rout": 3}]
    before = requests_counted(service, status="invalid")

    with Client(service.url, max_rows=3) as client, pytest.raises(Rejected) as caught:
        client.predict(rows)

    reason = "wanted a number from 0 to 1,440, got -1.0"
    assert 422 == caught.value.status
    assert {(3, "time_spent", reason), (3, "doors_in_rout", "no such column; did you mean 'doors_in_route'?")} == {
        (fault.number, fault.column, fault.reason) for fault in caught.value.faults
    }
    assert str(caught.value).startswith("422: row 3, column ")
    assert 1 == requests_counted(service, status="invalid") - before


def test_an_unknown_slot_is_rejected(client):
    with pytest.raises(Rejected, match="404") as caught:
        client.predict(ROUTE, slot="v9")
    assert ((), 404) == (caught.value.faults, caught.value.status)


def test_a_number_that_is_not_finite_is_refused_before_any_request(client, service):
    before = requests_counted(service), requests_counted(service, status="invalid")
    X = np.ones((12_000, 3))
    X[11_000, 1] = np.nan

    with pytest.raises(BadValue, match="row 11000, column 'doors_in_route': wanted a finite number, got nan"):
        client.predict(X, columns=list(ROUTE))
    for endless in (float("-inf"), np.float32("-inf")):
        with pytest.raises(BadValue, match="row 1, column 'assessed_value': wanted a finite number, got -inf"):
            client.predict([ROUTE, ROUTE | {"assessed_value": endless}])

    assert before == (requests_counted(service), requests_counted(service, status="invalid"))


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (np.ones((2, 4)), None, r"wanted an array of shape \(n, 3\) for time_spent, doors_in_route, assessed_value"),
        (np.ones(3), list(ROUTE), r"wanted an array of shape \(n, 3\)"),
        (np.ones((3, 2)), list(ROUTE), r"got \(3, 2\)"),
        (np.ones((3, 3)), ["a", "a", "b"], "wanted an array of shape"),
        (np.ones((1, 3), dtype=bool), list(ROUTE), "wanted an array of numbers, got one of bool"),
        (np.array([["1", "2", "3"]]), list(ROUTE), "wanted an array of numbers"),
        ([[1, 2, 3]], None, "row 0: wanted a mapping by feature, or all rows as one numpy array, got list"),
        ([ROUTE], list(ROUTE), "leave it out for mappings"),
    ],
)
def test_rows_of_another_kind_are_refused_with_the_right_kind(client, rows, columns, said):
    with pytest.raises(Refused, match=said):
        client.predict(rows, columns=columns)


@pytest.mark.parametrize("url", ["127.0.0.1:5001", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_an_invalid_address_is_refused_at_once(url):
    with pytest.raises(Refused, match="not the address of a service, such as"):
        Client(url)


PAGE = (ROOT / "docs" / "python-client.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("program", range(4))
def test_the_programs_on_the_clients_page_print_the_shown_output(service, capsys, program):
    code, shown = PROGRAMS[program]

    exec(code.replace("http://127.0.0.1:5001", service.url), {})

    assert shown == capsys.readouterr().out.replace("a number from", "a number of doors from")
    assert len(PROGRAMS) == PAGE.count("```python") == 4


def test_many_threads_share_one_client(client, table):
    X, expected = table
    names = list(ROUTE)

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda i: client.predict(X[i : i + 3], columns=names).tolist(), range(300)))

    assert [expected[0][i : i + 3].tolist() for i in range(300)] == found


# Client, against a server with scripted faults


class Unsteady:
    """A server on a real socket that follows a script.

    steps: one step per request, the last one repeated: "reset" before a response, "cut" in the middle of one,
    "silent" for none, or (status, headers) with the right predictions.
    """

    def __init__(self, *steps: object) -> None:
        self.steps, self.asked, self.times = list(steps), list[tuple[str, bytes]](), list[float]()
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.ended = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    @property
    def ids(self) -> list[str]:
        return [id_ for id_, _ in self.asked]

    def accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.respond, args=(connection,), daemon=True).start()

    def respond(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                headers = {}
                while line := stream.readline().strip():
                    name, _, value = line.decode().partition(": ")
                    headers[name.lower()] = value
                body = stream.read(int(headers.get("content-length", 0)))
                self.asked.append((headers["x-request-id"], body))
                self.times.append(time.monotonic())
                step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
                right = json.dumps(predicted(body) if body else OPENAPI).encode()
                if step == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if step == "silent":
                    self.ended.wait(30)
                    return
                if step == "cut":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + right)
                    return
                status, more = step
                content = right if status == 200 else b'{"detail": "not now"}'
                lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *more]
                connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)


OK = (200, [])
OPENAPI = {"components": {"schemas": {"Row_v1": {"required": ["a"]}}}}


def predicted(body: bytes) -> object:
    return {"prediction": [float(row["a"]) for row in json.loads(body)]}


@pytest.mark.parametrize("fault", ["reset", "cut", (503, []), (429, []), (502, []), (504, [])])
def test_a_request_without_a_response_is_sent_again_with_the_same_id(fault):
    with Unsteady(fault, fault, OK) as server, Client(server.url) as client:
        found = client.predict([{"a": 7}, {"a": 0.1}])

        again = client.predict({"a": 8})

    assert [7.0, 0.1, 8.0] == [*found, *again]
    assert 3 == server.ids.count(server.ids[0])
    assert 2 == len(set(server.ids))
    assert re.fullmatch("[A-Za-z0-9._-]{1,64}", server.ids[0])
    assert 1 == len({body for _, body in server.asked[:3]})


@pytest.mark.parametrize("fault", ["reset", "cut", (503, [])])
def test_the_request_for_the_columns_is_sent_again_as_well(fault):
    with Unsteady(fault, fault, OK) as server, Client(server.url) as client:
        assert ("a",) == client.columns()

        assert [7.0] == client.predict(np.array([[7]])).tolist()

    assert 3 == server.ids.count(server.ids[0])


def test_a_response_that_cannot_be_decoded_is_rejected():
    with (
        Unsteady((200, ["Content-Encoding: gzip"])) as server,
        Client(server.url) as client,
        pytest.raises(Rejected, match="sent a response that cannot be decoded"),
    ):
        client.predict({"a": 1})

    assert 1 == len(server.asked)


@pytest.mark.parametrize("value", [object(), "half a \ud83d", 1 + 2j])
def test_a_value_outside_json_is_refused_with_its_row(client, value):
    with pytest.raises(BadValue, match=r"row 1, column 'time_spent': cannot be written as JSON"):
        client.predict([ROUTE, ROUTE | {"time_spent": value}])


def test_each_part_of_a_table_keeps_its_own_id():
    with Unsteady("reset", OK, (503, []), OK) as server, Client(server.url, max_rows=1) as client:
        assert [1.0, 2.0] == client.predict([{"a": 1}, {"a": 2}]).tolist()

    first, second = server.ids[0], server.ids[2]
    assert [first, first, second, second] == server.ids
    assert first != second


def test_parts_stay_within_max_body_bytes():
    with Unsteady(OK) as server, Client(server.url, max_body_bytes=100) as client:
        found = client.predict(np.arange(50.0)[:, None] / 7, columns=["a"])

    assert (np.arange(50.0) / 7).tolist() == found.tolist()
    assert {True} == {50 < len(body) <= 100 for _, body in server.asked[:-1]}


def test_the_client_waits_for_retry_after():
    with Unsteady((503, ["Retry-After: 1"]), OK) as server, Client(server.url) as client:
        assert [1.0] == client.predict({"a": 1}).tolist()

    assert server.times[1] - server.times[0] >= 1


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("120", 120, 120),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
        ("Sun, 06 Nov 1994 08:49:37", 0, 0),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("", 0, 0),
        ("9" * 400, float("inf"), float("inf")),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, least, most):
    assert least <= module._retry_after(httpx.Response(503, headers={"Retry-After": text})) <= most


def test_retry_after_may_be_a_date_in_the_future():
    in_nine_hours = email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(hours=9))

    assert 8 * 3600 < module._retry_after(httpx.Response(503, headers={"Retry-After": in_nine_hours})) <= 9 * 3600


def test_a_wait_beyond_the_time_for_retries_is_not_begun():
    with (
        Unsteady((503, ["Retry-After: 60"])) as server,
        Client(server.url) as client,
        pytest.raises(Rejected, match="503: not now") as caught,
    ):
        client.predict({"a": 1})

    assert [caught.value.request_id] == server.ids


@pytest.mark.parametrize("step", ["reset", (503, []), (503, ["Retry-After: soon"])])
def test_retries_end_when_their_time_is_up(step):
    for seconds in (2, 0):
        with (
            Unsteady(step) as server,
            Client(server.url, retry_seconds=seconds) as client,
            pytest.raises(Unreachable if step == "reset" else Rejected),
        ):
            client.predict({"a": 1})

        assert (len(server.ids) > 1) == (seconds > 0)
        assert 1 == len(set(server.ids))


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 307])
def test_any_other_refusal_is_final(status):
    with (
        Unsteady((status, ["Retry-After: 0", "Location: /"]), OK) as server,
        Client(server.url) as client,
        pytest.raises(Rejected) as caught,
    ):
        client.predict({"a": 1})

    assert status == caught.value.status
    assert 1 == len(server.asked)


def test_a_silent_server_is_given_up_after_the_timeout():
    with (
        Unsteady("silent") as server,
        Client(server.url, timeout_seconds=0.3, retry_seconds=0) as client,
        pytest.raises(Unreachable, match=r"tries: 1\): timed out"),
    ):
        client.predict({"a": 1})


def test_a_slow_response_is_requested_again_with_the_same_id():
    with Unsteady("silent", OK) as server, Client(server.url, timeout_seconds=0.3) as client:
        assert [5.0] == client.predict({"a": 5}).tolist()

    assert [server.ids[0]] * 2 == server.ids


def test_a_connection_is_kept_between_requests():
    with Unsteady(OK) as server, Client(server.url) as client:
        for _ in range(5):
            client.predict({"a": 1})

    assert (1, 5) == (server.connections, len(server.asked))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "is Gleaner serving there"),
        (b'{"prediction": ["1"]}', "is Gleaner serving there"),
        (b'{"prediction": [1.0, 2.0]}', "sent 2 predictions for 1 row"),
        (b'{"prediction": [null]}', "is Gleaner serving there"),
    ],
)
def test_a_response_without_one_prediction_per_row_is_rejected(server, body, said):
    server.body = body
    with Client(f"http://127.0.0.1:{server.server_port}/") as client, pytest.raises(Rejected, match=said):
        client.predict(ROUTE)


def test_without_a_server_the_error_comes_after_several_tries():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

    with Client(url, retry_seconds=0.3) as client, pytest.raises(Unreachable) as caught:
        client.predict(ROUTE)
    assert str(caught.value).startswith(f"no response from {url}/v1/predict (tries: ")
    assert str(caught.value).endswith("; is `gleaner serve` running?")
