"""The outermost WSGI callable, called without a socket."""

from __future__ import annotations

import io
import json
import threading

import pytest
from projects import NUMBER, ROUTE
from prometheus_client import CollectorRegistry

from gleaner.model.loading import Loaded
from gleaner.model.store import Store
from gleaner.serving.app import App
from gleaner.serving.slots import Slots
from gleaner.settings.sections import Serving

ALIASES = {"v1": "champion", "v2": "challenger"}


def make_app(folder, **serving: object) -> App:
    slots = Slots(Store(folder / ".gleaner" / "store"), ALIASES)
    slots.refresh()
    return App(slots, Serving(**serving), CollectorRegistry())


@pytest.fixture
def app(trained) -> App:
    return make_app(trained)


class Exchange:
    """One request and its response."""

    def __init__(self, app: App, method: str, path: str, body: bytes = b"", stream=None, **environ: str) -> None:
        path, _, query = path.partition("?")
        asked = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "SERVER_NAME": "x"}
        asked |= {"SERVER_PORT": "80", "wsgi.url_scheme": "http", "CONTENT_TYPE": "application/json"}
        if body and "HTTP_TRANSFER_ENCODING" not in environ:
            asked["CONTENT_LENGTH"] = str(len(body))
        self.content = b"".join(app({**asked, "wsgi.input": stream or io.BytesIO(body), **environ}, self.start))

    def start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status, self.headers = int(status[:3]), dict(headers)

    @property
    def json(self):
        return json.loads(self.content)


def post(app: App, value: object = ROUTE, path: str = "/v1/predict", **environ: str) -> Exchange:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Exchange(app, "POST", path, body, **environ)


def count(app: App, name: str, **labels: str) -> float | None:
    return app.registry.get_sample_value(name, labels)


def test_the_fast_and_the_diagnosing_path_give_the_same_bytes(app):
    fast, diagnosed = post(app), post(app, path="/v1/predict?detail=false")

    assert {"prediction": [NUMBER]} == fast.json
    assert fast.content == diagnosed.content


def test_details_name_each_row(app):
    answer = post(app, [ROUTE, ROUTE], "/v1/predict?detail=true")

    id_ = answer.headers["X-Prediction-Id"]
    assert [f"{id_}-0", f"{id_}-1"] == answer.json["prediction_id"]
    assert [1, 1] == answer.json["version"]


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (400, {"value": b"{"}),
        (400, {"value": b'{"time_spent": NaN}'}),
        (400, {"value": b'{"time_spent": 1, "time_spent": 1}'}),
        (400, {"value": b"\xff"}),
        (400, {"value": b"[" * 40 + b"]" * 40}),
        (400, {"path": "/v1/predict?detial=true"}),
        (400, {"path": "/v1/predict?detail=perhaps"}),
        (400, {"HTTP_TRANSFER_ENCODING": "gzip"}),
        (400, {"CONTENT_LENGTH": "many"}),
        (400, {"CONTENT_LENGTH": "500"}),
        (404, {"path": "/v3/predict"}),
        (413, {"CONTENT_LENGTH": "1000000001"}),
        (413, {"value": [ROUTE] * 10_001}),
        (415, {"CONTENT_TYPE": "text/plain"}),
        (415, {"HTTP_CONTENT_ENCODING": "gzip"}),
        (422, {"value": {}}),
        (422, {"value": {**ROUTE, "time_spent": True}}),
        (422, {"value": {**ROUTE, "time_spent": "30"}}),
        (422, {"value": {**ROUTE, "time_spent": 1e308}}),
        (422, {"value": b'{"time_spent":1e999,"doors_in_route":1,"assessed_value":1}'}),
    ],
)
def test_a_wrong_request_is_a_problem_and_never_a_5xx(app, status, asked):
    answer = post(app, **asked)

    assert status == answer.status == answer.json["status"]
    assert "application/problem+json" == answer.headers["Content-Type"]
    assert answer.json["detail"]
    assert 0 == count(app, "http_requests_in_progress")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["//v1/predict", "///v1/predict?detail=true", "//livez", "//v2/models/x/infer", "//"])
def test_a_route_with_extra_leading_slashes_is_404(app, method, path):
    answer = Exchange(app, method, path, json.dumps(ROUTE).encode())

    assert 404 == answer.status
    assert 1 == count(app, "http_requests_total", method=method, route="unmatched", status="404")


def test_a_wrong_method_is_405_and_lists_the_methods_of_the_route(app):
    answer = Exchange(app, "GET", "/v1/predict")

    assert 405 == answer.status
    assert "POST" in answer.headers["Allow"]


def test_every_fault_has_its_pointer_and_the_nearest_name(app):
    answer = post(app, [ROUTE, {"time_spnt": 1, "doors_in_route": -1, "assessed_value": None}])

    faults = {fault["pointer"]: fault["detail"] for fault in answer.json["errors"]}
    assert {"/1/time_spnt", "/1/time_spent", "/1/doors_in_route", "/1/assessed_value"} == set(faults)
    assert "did you mean 'time_spent'" in faults["/1/time_spnt"]
    assert "got -1" in faults["/1/doors_in_route"]
    assert "got null" in faults["/1/assessed_value"]


def test_a_hundred_faults_are_named_and_the_others_counted(app):
    answer = post(app, [{}] * 50)

    assert 100 == len(answer.json["errors"])
    assert "50 more" in answer.json["detail"]


def test_an_empty_list_and_the_most_rows_are_predicted(app):
    assert {"prediction": []} == post(app, []).json
    assert [NUMBER] * 10_000 == post(app, [ROUTE] * 10_000).json["prediction"]


def test_the_callers_id_is_kept_and_a_hostile_one_replaced(app):
    assert "a-1" == post(app, HTTP_X_REQUEST_ID="a-1").headers["X-Request-Id"]
    for hostile in ("a b", "x\r\nSet-Cookie: y", "ü", "a" * 65, ""):
        assert hostile != post(app, HTTP_X_REQUEST_ID=hostile).headers["X-Request-Id"]


def test_every_response_has_its_own_id(app):
    ids = [post(app).headers["X-Request-Id"] for _ in range(3)] + [Exchange(app, "GET", "/no").headers["X-Request-Id"]]

    assert 4 == len(set(ids))


def test_a_chunked_body_is_read_and_a_too_large_one_cut_off(app):
    class Endless:
        read_bytes = 0

        def read(self, size: int) -> bytes:
            self.read_bytes += size
            return b" " * size

    endless = Endless()

    assert {"prediction": [NUMBER]} == post(app, HTTP_TRANSFER_ENCODING="chunked").json
    assert 413 == Exchange(app, "POST", "/v1/predict", stream=endless, HTTP_TRANSFER_ENCODING="chunked").status
    assert endless.read_bytes < 1_200_000


def test_a_service_without_a_model_says_when_it_will_serve(tmp_path):
    app = make_app(tmp_path)

    answers = [post(app), Exchange(app, "GET", "/readyz")]

    assert [503, 503] == [answer.status for answer in answers]
    assert all(
        "a trained or promoted version serves" in answer.json["detail"] and answer.headers["Retry-After"]
        for answer in answers
    )
    assert 200 == Exchange(app, "GET", "/livez").status
    assert "unavailable" == Exchange(app, "GET", "/health_status").json["status"]


class Broken:
    """A predictor that raises."""

    width = 3

    def predict_row(self, row: object) -> float:
        raise RuntimeError("secret: /etc/passwd")

    predict = predict_row


class Slow:
    """A predictor that waits for an event."""

    width = 3

    def __init__(self) -> None:
        self.entered, self.go = threading.Semaphore(0), threading.Event()

    def predict_row(self, row: object) -> float:
        self.entered.release()
        self.go.wait(60)
        return 1.0


def with_predictor(app: App, predictor: object) -> None:
    loaded = app.slots.current["v1"]
    assert loaded
    app.slots.current["v1"] = Loaded(loaded.version, loaded.stamp, loaded.manifest, loaded.digest, predictor)


def test_an_error_of_the_service_is_a_500_without_details(app):
    with_predictor(app, Broken())

    answer = post(app)

    assert 500 == answer.status
    assert b"secret" not in answer.content
    assert b"Traceback" not in answer.content
    assert 1 == count(app, "model_prediction_requests_total", model_version="v1", status="error")
    assert 1 == count(app, "http_requests_total", method="POST", route="/v1/predict", status="500")


def test_too_many_requests_get_a_503_and_health_still_responds(trained):
    app, slow = make_app(trained, max_in_flight=1, queue_seconds=0.01), Slow()
    with_predictor(app, slow)
    first = threading.Thread(target=post, args=(app,))
    first.start()
    assert slow.entered.acquire(timeout=60)
    try:
        refused, health = post(app), Exchange(app, "GET", "/livez")
    finally:
        slow.go.set()
        first.join()

    assert (503, "1") == (refused.status, refused.headers["Retry-After"])
    assert 200 == health.status
    assert 1 == count(app, "model_prediction_requests_total", model_version="v1", status="overloaded")
    assert 200 == post(app).status


def test_each_request_is_counted_once_by_route_method_and_status(app):
    post(app)
    post(app, {})
    Exchange(app, "GET", "/nowhere")
    Exchange(app, "BREW", "/livez")

    assert 1 == count(app, "http_requests_total", method="POST", route="/v1/predict", status="200")
    assert 1 == count(app, "http_requests_total", method="POST", route="/v1/predict", status="422")
    assert 1 == count(app, "http_requests_total", method="GET", route="unmatched", status="404")
    assert 1 == count(app, "http_requests_total", method="other", route="unmatched", status="405")
    assert 2 == count(app, "flask_http_requests_total", status="422") + count(
        app, "flask_http_requests_total", status="200"
    )
    assert 1 == count(app, "model_prediction_requests_total", model_version="v1", status="success")
    assert 1 == count(app, "model_prediction_requests_total", model_version="v1", status="invalid")
    assert 1 == count(app, "model_prediction_rows_total", model_version="v1")
    assert 2 == count(app, "http_request_duration_seconds_count", method="POST", route="/v1/predict")


def test_rows_are_counted_on_the_diagnosing_path_too(app):
    post(app, [ROUTE] * 3, "/v1/predict?detail=true")

    assert 3 == count(app, "model_prediction_rows_total", model_version="v1")


def test_known_labels_start_at_0(app):
    assert 0 == count(app, "http_requests_total", method="POST", route="/v2/predict", status="500")
    assert 0 == count(app, "model_prediction_requests_total", model_version="v2", status="overloaded")
    assert 0 == count(app, "model_load_failures_total", reason="selftest")
