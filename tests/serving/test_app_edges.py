"""The outermost callable: malformed bodies, overload, swaps, exact counts."""

from __future__ import annotations

import collections
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import made
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client, EnvironBuilder
from werkzeug.wrappers import Response

from gleaner.errors import Overloaded
from gleaner.model.loading import Loaded
from gleaner.model.store import Store
from gleaner.serving.app import App
from gleaner.serving.metrics import METHODS
from gleaner.serving.slots import Slots
from gleaner.serving.turns import Turns
from gleaner.settings.sections import Serving

ROUTE = json.dumps(made.ROUTE).encode()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Version 1, the champion, is a tree; 2, the challenger, is linear."""
    return made.fill(tmp_path_factory.mktemp("app") / "store", made.artifact("decision_tree"), made.artifact("linear"))


def app_of(store: Store, **serving: Any) -> App:
    settings = Serving(**serving)
    slots = Slots(store, settings.slots)
    slots.refresh()
    return App(slots, settings, CollectorRegistry())


@pytest.fixture
def app(store: Store) -> App:
    return app_of(store)


def post(app: App, body: object = ROUTE, path: str = "/v1/predict", **options: Any) -> Any:
    """POST a body; anything but bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Client(app).post(path, data=data, **{"content_type": "application/json", **options})


def get(app: App, path: str, **options: Any) -> Any:
    return Client(app).get(path, **options)


def send(app: App, body: Any, **variables: str) -> Response:
    """POST a body that only the given variables describe."""
    environ = EnvironBuilder("/v1/predict", method="POST").get_environ()
    environ.pop("CONTENT_LENGTH", None)
    environ |= {"CONTENT_TYPE": "application/json", "wsgi.input": body, **variables}
    answered: list[Any] = []
    content = app(environ, lambda status, headers: answered.append((status, headers)))
    [(status, headers)] = answered
    return Response(b"".join(content), status, headers)


def problem_of(answer: Response, status: int) -> dict[str, Any]:
    """Return the problem document of a response, after checking its common members."""
    document: dict[str, Any] = json.loads(answer.data)
    assert status == answer.status_code, document
    assert "application/problem+json" == answer.content_type
    assert (status, f"{status} {document['title']}") == (document["status"], answer.status)
    assert f"urn:request:{answer.headers['X-Request-Id']}" == document["instance"]
    assert document["detail"]
    return document


def count(app: App, status: str, slot: str = "v1") -> float | None:
    """Return a count of `model_prediction_requests_total`."""
    return app.registry.get_sample_value("model_prediction_requests_total", {"model_version": slot, "status": status})


def requests(app: App, method: str, route: str, status: int) -> float | None:
    """Return a count of `http_requests_total`."""
    labels = {"method": method, "route": route, "status": str(status)}
    return app.registry.get_sample_value("http_requests_total", labels)


def total(app: App, name: str) -> float:
    return sum(s.value for family in app.registry.collect() for s in family.samples if s.name == name)


# Responses


@pytest.mark.parametrize("candidate", made.CANDIDATES)
def test_the_fast_and_the_diagnosing_path_respond_with_the_same_bytes(tmp_path, candidate):
    app = app_of(made.fill(tmp_path / "store", made.artifact(candidate)))

    for row in made.questions(20).tolist():
        body = dict(zip(made.ROUTE, row, strict=True))
        fast = post(app, body)
        for slow in (
            post(app, body, query_string="detail=false"),
            post(app, body, content_type="application/json; charset=ascii"),
        ):
            assert (fast.status_code, fast.data, fast.content_type) == (slow.status_code, slow.data, slow.content_type)
            assert dict(fast.headers).keys() == dict(slow.headers).keys() - {"Content-Length"}


def test_a_list_is_predicted_in_its_order(app):
    rows = [dict(zip(made.ROUTE, row, strict=True)) for row in made.questions(50).tolist()]

    together = post(app, rows).json["prediction"]

    assert [post(app, row).json["prediction"][0] for row in rows] == together
    assert len(set(together)) > 1


@pytest.mark.parametrize(
    "type_", ["application/json;charset=utf-8", "application/json; charset=UTF-8", "Application/JSON"]
)
def test_a_media_type_may_be_spelled_in_any_way(app, type_):
    assert [made.NUMBER] == post(app, content_type=type_).json["prediction"]


@pytest.mark.parametrize("type_", ["application/xml", "application/x-www-form-urlencoded", "", "x" * 9_000])
def test_another_media_type_is_415(app, type_):
    document = problem_of(post(app, content_type=type_), 415)

    assert document["detail"].startswith(
        "wanted Content-Type: application/json, text/csv or application/vnd.apache.arrow.stream, got "
    )


def test_another_media_type_is_415_and_counted_at_mlflows_endpoint_too(app):
    document = problem_of(post(app, path="/invocations", content_type="image/png"), 415)

    assert "wanted Content-Type: application/json or text/csv, got 'image/png'" == document["detail"]
    assert 1 == count(app, "invalid")


@pytest.mark.parametrize("path", ["/v1/predict/", "//v1/predict", "/v1//predict", "/v1/predict%00", "/../etc", "/%ff"])
def test_a_path_near_a_route_is_404(app, path):
    said = problem_of(post(app, path=path), 404)["detail"]

    assert "no such route; predictions are at POST /v1/predict, /v2/predict, and /docs shows every route" == said


@pytest.mark.parametrize("query", ["details=true", "detail=yes", "detail=", "x", "detail=true&x=1", "%00=%ff"])
def test_an_unknown_query_is_400(app, query):
    problem_of(post(app, query_string=query), 400)


@pytest.mark.parametrize("slot", ["v1", "v2"])
@pytest.mark.parametrize("value", [b"9" * 5_000, b"1e999", b'"\\ud800"', b"[" * 30 + b"]" * 30, b"-1", b"null"])
def test_an_extreme_json_value_is_422_on_both_slots(app, slot, value):
    document = problem_of(post(app, ROUTE.replace(b"30", value), path=f"/{slot}/predict"), 422)

    assert ["/time_spent"] == [error["pointer"] for error in document["errors"]]
    assert (1, 0, 0) == tuple(count(app, status, slot) for status in ("invalid", "success", "error"))


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf" + ROUTE, ROUTE.decode().encode("utf-16"), b"[" * 100_000, b""])
def test_a_body_of_another_encoding_or_depth_is_400(app, body):
    problem_of(post(app, body), 400)


def test_no_content_of_a_body_is_logged(app, caplog):
    post(app, b'{"secret": "value"}')
    post(app, b'"secret')

    assert "secret" not in caplog.text


def test_the_index_links_to_every_page(app):
    index = get(app, "/").json

    assert {"v1": "/v1/predict", "v2": "/v2/predict"} == index["predict"]
    for path in index["links"].values():
        assert 200 == get(app, path).status_code


def test_the_response_to_head_has_no_body(app):
    answer = Client(app).head("/livez")

    assert (200, b"") == (answer.status_code, answer.data)


# Bodies


class Body(io.RawIOBase):
    """A body that counts the bytes read from it.

    go_on: an event that every read waits for.
    """

    def __init__(self, length: int, go_on: threading.Event | None = None) -> None:
        self.left, self.taken, self.go_on = length, 0, go_on
        self.is_asked = threading.Event()

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "a body is never read without a bound"
        self.is_asked.set()
        if self.go_on:
            self.go_on.wait(60)
        given = min(size, self.left)
        self.left, self.taken = self.left - given, self.taken + given
        return b" " * given


class Dripping(io.BytesIO):
    """A body that gives at most three bytes a read."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(3, size or 0))


def test_a_body_of_more_than_the_limit_is_413_and_not_read(store):
    app, body = app_of(store, max_body_bytes=1_000), Body(1_001)

    document = problem_of(send(app, body, CONTENT_LENGTH="1001"), 413)

    assert "1,001 bytes; one request takes 1,000" == document["detail"]
    assert 0 == body.taken
    problem_of(send(app, Body(1_000), CONTENT_LENGTH="1000"), 400)


@pytest.mark.parametrize("length", ["1000001", "1000000000", "9" * 20, "9" * 5_000, "0" * 20 + "1000001"])
def test_any_greater_length_is_413(app, length):
    problem_of(send(app, Body(0), CONTENT_LENGTH=length), 413)


def test_a_chunked_body_is_cut_off_soon_after_the_limit(app):
    body = Body(10**9)

    problem_of(send(app, body, HTTP_TRANSFER_ENCODING="chunked"), 413)

    assert 1_000_000 < body.taken < 1_100_000


@pytest.mark.parametrize("length", [100, 70_000, 200_000])
def test_a_body_shorter_than_its_declared_length_is_400(app, length):
    document = problem_of(send(app, Body(length - 1), CONTENT_LENGTH=str(length)), 400)

    assert f"the body ended after {length - 1:,} of {length:,} bytes" == document["detail"]


@pytest.mark.parametrize("length", [1, 65_536, 65_537, 200_000, 1_000_000])
def test_no_byte_beyond_the_declared_length_is_read(app, length):
    body = Body(10**9)

    send(app, body, CONTENT_LENGTH=str(length))

    assert length == body.taken


@pytest.mark.parametrize("zeros", [1, 20, 5_000])
def test_a_length_may_have_leading_zeros(app, zeros):
    length = "0" * zeros + str(len(ROUTE))

    assert [made.NUMBER] == json.loads(send(app, io.BytesIO(ROUTE), CONTENT_LENGTH=length).data)["prediction"]


@pytest.mark.parametrize("length", ["-1", "1.5", "0x10", "abc", "\u0663", "+5", " 5", "1_0"])
def test_a_length_that_is_no_number_is_400(app, length):
    problem_of(send(app, Body(5), CONTENT_LENGTH=length), 400)


@pytest.mark.parametrize("encoding", ["gzip", "identity", "gzip, chunked", "chunked, chunked", "", "chunkedd"])
def test_a_transfer_encoding_other_than_chunked_is_400(app, encoding):
    problem_of(send(app, Body(5), HTTP_TRANSFER_ENCODING=encoding), 400)


def test_a_length_beside_a_transfer_encoding_is_400(app):
    problem_of(send(app, Body(5), HTTP_TRANSFER_ENCODING="chunked", CONTENT_LENGTH="5"), 400)


def test_limits_hold_for_every_route(app):
    problem_of(post(app, b" " * 1_000_001, path="/nothing"), 413)
    problem_of(get(app, "/livez", data=b" " * 1_000_001), 413)
    problem_of(get(app, "/livez", data=b" ", headers={"Content-Encoding": "gzip"}), 415)


# Ids


@pytest.mark.parametrize("path", ["/v1/predict", "/livez", "/nothing"])
def test_a_callers_id_is_kept_on_every_kind_of_response(app, path):
    id_ = "A-z_0.9" + "x" * 57

    assert id_ == get(app, path, headers={"X-Request-Id": id_}).headers["X-Request-Id"]
    assert id_ == post(app, path=path, headers={"X-Request-Id": id_}).headers["X-Request-Id"]


def test_predictions_have_their_own_ids_if_requests_share_one(app):
    answers = [post(app, headers={"X-Request-Id": "same"}) for _ in range(2)]

    assert ["same", "same"] == [answer.headers["X-Request-Id"] for answer in answers]
    assert 2 == len({answer.headers["X-Prediction-Id"] for answer in answers})


@pytest.mark.parametrize("id_", ["", "x" * 65, "a\nSet-Cookie: x", "<script>", "a\n", "\x1b[31m", "a/b", "\u0663"])
def test_a_hostile_id_is_replaced(app, id_):
    answer = send(app, io.BytesIO(ROUTE), CONTENT_LENGTH=str(len(ROUTE)), HTTP_X_REQUEST_ID=id_)

    assert 200 == answer.status_code
    assert answer.headers["X-Request-Id"] == answer.headers["X-Prediction-Id"] != id_


# Health


def test_a_model_that_appears_ends_the_503(tmp_path):
    store = Store(tmp_path / "store")
    app = app_of(store)
    for answer in (post(app), get(app, "/readyz"), post(app, query_string="detail=true")):
        assert "a trained or promoted version serves within seconds" in problem_of(answer, 503)["detail"]
        assert "10" == answer.headers["Retry-After"]

    made.fill(store.root, made.artifact("decision_tree"))
    app.slots.refresh()

    assert [made.NUMBER] == post(app).json["prediction"]
    assert 200 == get(app, "/readyz").status_code
    assert (200, "degraded") == (get(app, "/health_status").status_code, get(app, "/health_status").json["status"])
    assert "slot v2 has no model" in problem_of(post(app, path="/v2/predict"), 503)["detail"]
    assert (2, 1) == (count(app, "error"), count(app, "success"))


def test_a_caller_sees_no_paths_of_this_machine_in_a_refusal(tmp_path):
    store = made.fill(tmp_path / "store", made.constant(1.0))
    (store.folder(1) / "model.onnx").write_bytes(b"")
    app = app_of(store)

    answer = post(app)

    assert "slot v1 has no model: GET /health_status says why" == problem_of(answer, 503)["detail"]
    assert "model.onnx has 0 bytes" in get(app, "/health_status").json["slots"]["v1"]["fault"]


def test_health_shows_the_version_in_each_slot(app):
    answer = get(app, "/health_status")

    assert (200, "ok") == (answer.status_code, answer.json["status"])
    assert {
        "v1": {"alias": "champion", "version": 1, "candidate": "decision_tree", "run_id": "r", "fault": None},
        "v2": {"alias": "challenger", "version": 2, "candidate": "linear", "run_id": "r", "fault": None},
    } == answer.json["slots"]


def test_a_stopping_service_is_alive_predicts_and_is_not_ready(app):
    app.draining.set()

    assert "the service is stopping" == problem_of(get(app, "/readyz"), 503)["detail"]
    assert "unavailable" == get(app, "/health_status").json["status"]
    assert 200 == get(app, "/livez").status_code
    assert [made.NUMBER] == post(app).json["prediction"]


# Errors of the service


def replace_predictor(app: App, predictor: Any) -> None:
    loaded = app.slots.current["v1"]
    assert loaded
    app.slots.current["v1"] = Loaded(loaded.version, loaded.stamp, loaded.manifest, loaded.digest, predictor)


class Broken:
    """A predictor with a bug in it."""

    width = 3

    def predict_row(self, row: object) -> float:
        raise ZeroDivisionError("/secret/path SELECT password")

    predict = predict_row


@pytest.mark.parametrize("query", ["", "detail=true"])
def test_an_error_of_the_service_is_logged_with_its_id_and_not_shown(app, caplog, query):
    replace_predictor(app, Broken())

    answer = post(app, headers={"X-Request-Id": "mine"}, query_string=query)

    assert "an error of the service; its log has the error under mine" == problem_of(answer, 500)["detail"]
    for inside in ("secret", "SELECT", "ZeroDivision", "Traceback", ".py"):
        assert inside not in answer.text + str(answer.headers)
    [line] = caplog.records
    assert ("request failed", "mine", ZeroDivisionError) == (line.message, line.request_id, line.exc_info[0])
    assert (1, 0, 0) == (count(app, "error"), count(app, "success"), app.traffic.in_progress)


def test_an_infinite_prediction_is_an_error(tmp_path):
    app = app_of(made.fill(tmp_path / "store", made.exploding_artifact(tmp_path / "new")))
    long = {**made.ROUTE, "time_spent": 1440}

    for answer in (post(app, long), post(app, [made.ROUTE, long]), post(app, long, query_string="detail=true")):
        problem_of(answer, 500)

    assert (3, 0) == (count(app, "error"), count(app, "invalid"))
    assert 200 == post(app, {**made.ROUTE, "time_spent": 1}).status_code


# Overload


class Slow:
    """A predictor that waits for an event."""

    width = 3

    def __init__(self) -> None:
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def predict_row(self, row: object) -> float:
        self.is_asked.set()
        assert self.may_answer.wait(60)
        return 1.0


@contextmanager
def threads(*asking: Callable[[], Any]) -> Iterator[list[Any]]:
    """Make each call in its own thread; yield their results.

    The list has them after the block.
    """
    got: list[Any] = []
    running = [threading.Thread(target=lambda ask=ask: got.append(ask()), daemon=True) for ask in asking]
    for thread in running:
        thread.start()
    yield got
    for thread in running:
        thread.join(60)
    assert not any(thread.is_alive() for thread in running)


def test_a_request_that_waits_too_long_for_its_turn_is_refused(store):
    app, slow = app_of(store, max_in_flight=1, queue_seconds=0.1), Slow()
    replace_predictor(app, slow)
    with threads(lambda: post(app)) as first:
        assert slow.is_asked.wait(60)
        assert 1 == app.registry.get_sample_value("http_requests_in_progress")
        for query in ("", "detail=true"):
            began = time.monotonic()
            answer = post(app, query_string=query)
            seconds = time.monotonic() - began

            assert "too many requests are in flight" == problem_of(answer, 503)["detail"]
            assert "1" == answer.headers["Retry-After"]
            assert 0.1 <= seconds
        slow.may_answer.set()

    assert {"prediction": [1.0]} == first[0].json
    assert (2, 1, 0) == (count(app, "overloaded"), count(app, "success"), count(app, "error"))
    assert 0 == app.traffic.in_progress


def test_a_waiting_request_gets_the_next_free_turn(store):
    app, slow = app_of(store, max_in_flight=1, queue_seconds=5), Slow()
    replace_predictor(app, slow)
    with threads(lambda: post(app)) as first:
        assert slow.is_asked.wait(60)
        with threads(lambda: post(app)) as second:
            slow.may_answer.set()

    assert [200, 200] == [first[0].status_code, second[0].status_code]


def test_a_turn_is_given_back_after_every_kind_of_end(store):
    app = app_of(store, max_in_flight=1, queue_seconds=0)
    loaded = app.slots.current["v1"]

    for body in (ROUTE, b"{", b"{}", b"[" * 100, b"[" + b"1," * 10_001 + b"1]", [made.ROUTE] * 2_000):
        post(app, body)
        post(app, body, query_string="detail=true")
    replace_predictor(app, Broken())
    post(app)
    app.slots.current["v1"] = loaded

    assert [made.NUMBER] == post(app).json["prediction"]
    assert 0 == count(app, "overloaded")


@pytest.mark.parametrize(
    ("length", "content"),
    [("19000", Body(19_000)), ("19000", Body(18_000)), ("", Body(21_000)), ("19000", Body(0))],
    ids=["refused", "ends early", "too long", "never comes"],
)
def test_the_bytes_of_a_large_body_are_given_back_after_every_kind_of_end(store, length, content):
    app = app_of(store, max_body_bytes=1_000, max_table_bytes=20_000)
    sent = {"CONTENT_LENGTH": length} if length else {"HTTP_TRANSFER_ENCODING": "chunked"}

    answer = send(app, content, CONTENT_TYPE="text/csv", **sent)

    assert answer.status_code in {400, 413, 422}
    app.bodies.budget.take(4 * 20_000)
    with pytest.raises(Overloaded):
        app.bodies.budget.take(1)


def test_turns_are_given_in_the_order_of_asking():
    turns, order = Turns(1, 60, "busy"), []

    def ask(name: int) -> None:
        turns.take()
        order.append(name)
        turns.give()

    turns.take()
    running = []
    for name in range(5):
        running.append(threading.Thread(target=ask, args=(name,), daemon=True))
        running[-1].start()
        while len(turns._waiting) <= name:
            time.sleep(0.001)
    turns.give()
    ask(5)
    for thread in running:
        thread.join(60)

    assert list(range(6)) == order


def test_a_turn_given_back_just_before_a_thread_waits_is_taken():
    class GivenBackMeanwhile(collections.deque[None]):
        """A deque that is empty when asked, and full right after."""

        def pop(self) -> None:
            turns._free = collections.deque()
            turns.give()
            raise IndexError

    turns = Turns(1, 0, "busy")
    turns.take()
    turns._free = GivenBackMeanwhile()

    turns.take()

    assert (0, 0) == (len(turns._free), len(turns._waiting))


def test_no_turn_is_lost_or_given_twice_under_twenty_threads():
    turns, lock = Turns(3, 0.002, "busy"), threading.Lock()
    at_once, most, ends = 0, 0, {"done": 0, "refused": 0}

    def ask() -> None:
        nonlocal at_once, most
        for i in range(300):
            try:
                turns.take()
            except Overloaded:
                with lock:
                    ends["refused"] += 1
                continue
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.0005 * (i % 3))
            with lock:
                at_once -= 1
                ends["done"] += 1
            turns.give()

    with threads(*[ask] * 20):
        pass

    assert (3, 0) == (most, at_once)
    assert 20 * 300 == sum(ends.values())
    assert all(ends.values())
    for _ in range(3):
        turns.take()
    with pytest.raises(Overloaded, match="busy"):
        turns.take()


# Counts


@pytest.mark.parametrize("query", ["", "detail=true"])
def test_rows_and_requests_are_counted_alike_on_both_paths(app, query):
    post(app, [made.ROUTE] * 3, query_string=query)

    assert 3 == app.registry.get_sample_value("model_prediction_rows_total", {"model_version": "v1"})
    assert (1, 1) == (count(app, "success"), requests(app, "POST", "/v1/predict", 200))
    for name in (
        "http_requests_total",
        "http_request_duration_seconds_count",
        "model_prediction_duration_seconds_count",
    ):
        assert 1 == total(app, name)


def test_every_method_on_every_route_makes_few_time_series(app):
    for rule in app.flask.url_map.iter_rules():
        path = str(rule).replace("<name>", "made").replace("<version>", "1").replace("<path:path>", "index.css")
        for method in (*METHODS, "BREW"):
            for body in (b"", b"{}", ROUTE):
                Client(app).open(path, method=method, data=body, content_type="application/json")

    # With those of the process and the machine it stays below 500.
    assert 450 > sum(len(family.samples) for family in app.registry.collect())


def test_every_response_is_counted_once_under_its_route_and_method(app):
    asked = [
        ("POST", "/v1/predict", "/v1/predict", 200, ROUTE),
        ("POST", "/v1/predict", "/v1/predict", 422, b"[{}]"),
        ("POST", "/v2/predict", "/v2/predict", 400, b"{"),
        ("GET", "/v1/predict", "unmatched", 405, b""),
        ("GET", "/livez", "/livez", 200, b""),
        ("HEAD", "/livez", "/livez", 200, b""),
        ("OPTIONS", "/livez", "/livez", 200, b""),
        ("BREW", "/livez", "unmatched", 405, b""),
        ("GET", "/etc/passwd", "unmatched", 404, b""),
        ("DELETE", "/v3/predict", "unmatched", 404, b""),
    ]
    for method, path, _, _, body in asked:
        Client(app).open(path, method=method, data=body, content_type="application/json")

    for method, _, route, status, _ in asked:
        assert 1 == requests(app, "other" if method == "BREW" else method, route, status), (method, route)
    assert len(asked) == total(app, "http_requests_total") == total(app, "flask_http_requests_total")
    assert 0 == app.traffic.in_progress
    assert (1, 1, 1) == (count(app, "success"), count(app, "invalid"), count(app, "invalid", "v2"))


def test_the_metrics_page_has_every_known_label_at_0_and_at_most_500_series(app):
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(get(app, "/metrics").text)
        for sample in family.samples
    }

    for status in ("success", "invalid", "error", "overloaded"):
        assert 0 == samples["model_prediction_requests_total", ("model_version", "v1"), ("status", status)]
    assert 0 == samples["flask_http_requests_total", ("status", "503")]
    assert 1 == samples[("http_requests_in_progress",)]
    assert len(samples) <= 500


def test_counts_of_many_threads_are_exact(store):
    app = app_of(store, queue_seconds=5)

    def ask() -> None:
        for i in range(50):
            post(app, ROUTE if i % 2 else b"{}")

    with threads(*[ask] * 8):
        pass

    assert (200, 200) == (count(app, "success"), count(app, "invalid"))
    assert 400 == total(app, "http_requests_total")
    assert 0 == app.traffic.in_progress


# Swaps


def test_swaps_under_eight_threads_lose_no_request_and_mix_no_versions(tmp_path, eager_threads):
    store = made.fill(tmp_path / "store", *(made.constant(float(version)) for version in (1, 2, 3)))
    app, stop, seen = app_of(store, queue_seconds=5), threading.Event(), set()

    def ask(thread: int) -> None:
        body, query = [made.ROUTE] * (1 + thread % 2), "detail=true" if thread % 3 == 0 else ""
        while not stop.is_set():
            answer = post(app, body, query_string=query)
            told = answer.json.get("prediction", [answer.text])
            seen.add((answer.status_code, answer.headers.get("X-Model-Version"), *told))

    after = []
    with threads(*(lambda i=i: ask(i) for i in range(8))):
        for i in range(20):
            store.point({"champion": 1 + i % 3})
            app.slots.refresh()
            answer = post(app)
            after.append((answer.headers.get("X-Model-Version"), answer.json.get("prediction")))
        stop.set()

    assert [(str(1 + i % 3), [1.0 + i % 3]) for i in range(20)] == after
    assert {(200, str(n), *[float(n)] * rows) for n in (1, 2, 3) for rows in (1, 2)} >= seen
    assert len(seen) > 1


def test_a_new_version_brings_its_own_columns(tmp_path):
    features = json.loads((made.constant(2.0).folder / "manifest.json").read_bytes())["features"]
    features[0]["max"] = 10.0
    narrow = made.rewrite(made.copy(made.constant(2.0), tmp_path / "narrow"), features=features)
    store = made.fill(tmp_path / "store", made.constant(1.0), narrow)
    app = app_of(store)
    assert 200 == post(app).status_code

    store.point({"champion": 2})
    app.slots.refresh()

    assert "wanted a number from 0 to 10, got 30" == problem_of(post(app), 422)["errors"][0]["detail"]
    assert [2.0] == post(app, {**made.ROUTE, "time_spent": 10}).json["prediction"]


HEADER = b"time_spent,doors_in_route,assessed_value,caf\xe9\n"


@pytest.mark.parametrize(
    ("declared", "kind", "status"),
    [
        ("", "text/csv", 400),
        ("cp1252", "text/csv", 200),
        ("", "text/csv; charset=windows-1252", 200),
        ("cp1252", "text/csv; charset=utf-8", 400),
        ("", "text/csv; charset=nonsense", 415),
    ],
)
def test_a_body_is_read_in_the_encoding_of_the_request_or_of_the_settings(store, declared, kind, status):
    slots = Slots(store, Serving().slots)
    slots.refresh()
    app = App(slots, Serving(), CollectorRegistry(), encoding=declared)
    answer = post(app, HEADER + b"30,50,200000,\n", content_type=kind)

    assert status == answer.status_code
    if status == 400:
        assert "is not UTF-8; name the encoding by the charset of Content-Type, or encoding = " in answer.json["detail"]
    if status == 415:
        assert "wanted a known charset in Content-Type, such as utf-8 or windows-1252" in answer.json["detail"]
