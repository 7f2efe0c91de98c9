"""The service as it is shipped: the process that `gleaner serve` starts, asked over its sockets."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import NUMBER, ROOT, ROUTE, SETTINGS, gleaner, serving, write_made_table
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture(scope="module")
def service(trained):
    with serving(trained) as running:
        yield running


def metric(service, name: str, **labels: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def wait_for(condition, seconds: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_the_number_is_served_to_every_digit(service):
    answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)

    assert NUMBER == 22.068840579710145
    assert {"prediction": [22.068840579710145]} == answer.json()
    assert "1" == answer.headers["X-Model-Version"]


def test_both_slots_answer_side_by_side(service):
    answers = [httpx.post(f"{service.url}/v{n}/predict", json=[ROUTE, ROUTE]) for n in (1, 2)]

    assert ["1", "2"] == [answer.headers["X-Model-Version"] for answer in answers]
    assert [2, 2] == [len(answer.json()["prediction"]) for answer in answers]


def test_requests_from_many_threads_are_each_counted_once(service):
    before = metric(service, "http_requests_total", route="/v1/predict", status="200")
    with httpx.Client() as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: client.post(f"{service.url}/v1/predict", json=ROUTE).json(), range(400)))

    assert [{"prediction": [NUMBER]}] * 400 == answers
    assert 400 == metric(service, "http_requests_total", route="/v1/predict", status="200") - before
    assert 0 == metric(service, "http_requests_in_progress")


def test_bad_input_is_never_a_5xx(service):
    bodies = [b"", b"{", b"[" * 50_000, b"\xff", b'{"time_spent": NaN}', b"null", b'{"a":1,"a":2}', b"[{}]", b"1e999"]
    headers = {"Content-Type": "application/json"}

    statuses = [httpx.post(f"{service.url}/v1/predict", content=body, headers=headers).status_code for body in bodies]

    assert {400, 422} == set(statuses)


def test_a_gigabyte_is_refused_before_it_is_sent(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000000\r\n\r\n"
        )

        assert b"413" in client.recv(4096).split(b"\r\n")[0]


def test_slow_bodies_do_not_keep_others_waiting(service):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n{"
    slow = [socket.create_connection(("127.0.0.1", service.port), timeout=10) for _ in range(100)]
    try:
        for client in slow:
            client.sendall(head)
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE, timeout=5)
    finally:
        for client in slow:
            client.close()

    assert {"prediction": [NUMBER]} == answer.json()


def test_the_metrics_port_tells_what_the_api_answered(service):
    httpx.get(f"{service.url}/nowhere")

    assert 1 <= metric(service, "http_requests_total", route="unmatched", status="404")
    assert 1 == metric(service, "model_info", slot="v1", version="1", candidate="decision_tree")
    assert 0 < metric(service, "app_memory_usage_bytes") < 500e6
    assert 0 < metric(service, "app_disk_usage_bytes")
    assert 0 <= metric(service, "app_cpu_usage_percent") <= 100


def test_check_api_logs_what_the_guide_shows(service):
    command = [sys.executable, str(ROOT / "check_api.py"), "--data", json.dumps(ROUTE), "--port", str(service.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert 0 == done.returncode
    assert done.stderr == (
        f"INFO - Sending request to http://localhost:{service.port}/v1/predict with data: {ROUTE}\n"
        "INFO - Status code: 200\n"
        "INFO - Response:\n"
        '{\n  "prediction": [\n    22.068840579710145\n  ]\n}\n'
    )


def test_check_names_what_was_wrong(service):
    done = gleaner("check", "--data", '{"time_spent": "30"}', "--port", service.port, folder=ROOT)

    assert 1 == done.returncode
    assert "error: /time_spent: wanted a number" in done.stderr.splitlines()[-1]


def test_a_moved_alias_is_served_without_a_lost_request(project):
    with serving(project) as service:
        stop, statuses, versions = threading.Event(), [], []

        def ask() -> None:
            with httpx.Client() as client:
                while not stop.is_set():
                    answer = client.post(f"{service.url}/v1/predict", json=ROUTE)
                    statuses.append(answer.status_code)
                    versions.append((answer.headers["X-Model-Version"], answer.json()["prediction"][0] == NUMBER))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        promoted = point(project, champion=2)
        moved = wait_for(lambda: ("2", False) in versions[-8:])
        stop.set()
        for thread in threads:
            thread.join()

    assert promoted
    assert moved
    assert {200} == set(statuses)
    assert {("1", True), ("2", False)} == set(versions)


def point(folder, **aliases: int) -> bool:
    """Move aliases in a folder's store, as `gleaner models promote` does."""
    from gleaner.store import Store

    Store(folder / ".gleaner" / "store").point(aliases)
    return True


def test_a_damaged_version_is_refused_and_the_one_in_service_stays(project):
    versions = project / ".gleaner" / "store" / "versions"
    shutil.copytree(versions / "2", versions / "3")
    model = versions / "3" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with serving(project) as service:
        point(project, champion=3)

        refused = wait_for(lambda: metric(service, "model_load_failures_total", reason="size") > 0)
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)
        health = httpx.get(f"{service.url}/health_status").json()

    assert refused
    assert {"prediction": [NUMBER]} == answer.json()
    assert "degraded" == health["status"]
    assert "model.onnx has" in health["slots"]["v1"]["fault"]


def test_with_no_model_it_starts_and_picks_one_up_by_itself(tmp_path, project):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "gleaner.toml").write_text(SETTINGS)
    with serving(tmp_path / "empty") as service:
        before = httpx.post(f"{service.url}/v1/predict", json=ROUTE)
        ready = httpx.get(f"{service.url}/readyz")
        (project / ".gleaner" / "store").rename(tmp_path / "empty" / ".gleaner.half")
        (tmp_path / "empty" / ".gleaner").mkdir()
        (tmp_path / "empty" / ".gleaner.half").rename(tmp_path / "empty" / ".gleaner" / "store")

        picked_up = wait_for(lambda: httpx.get(f"{service.url}/readyz").status_code == 200)
        after = httpx.post(f"{service.url}/v1/predict", json=ROUTE)

    assert (503, 503) == (before.status_code, ready.status_code)
    assert "gleaner train" in before.json()["detail"]
    assert before.headers["Retry-After"]
    assert picked_up
    assert {"prediction": [NUMBER]} == after.json()


def test_sigterm_answers_what_is_in_flight_and_exits_0(project):
    body = json.dumps(ROUTE).encode()
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with serving(project, GLEANER_SERVING__UNREADY_SECONDS="0.5") as service:
        clients = [socket.create_connection(("127.0.0.1", service.port), timeout=10) for _ in range(8)]
        for client in clients:
            client.sendall(head + body[:10])
        wait_for(lambda: metric(service, "http_requests_in_progress") == 8)
        service.process.send_signal(signal.SIGTERM)
        unready = wait_for(lambda: httpx.get(f"{service.url}/readyz").status_code == 503, seconds=0.4)
        time.sleep(0.6)
        for client in clients:
            client.sendall(body[10:])
        answers = [client.recv(4096) for client in clients]
        for client in clients:
            client.close()
        code = service.process.wait(timeout=20)

    assert unready
    assert [True] * 8 == [b"22.068840579710145" in answer for answer in answers]
    assert 0 == code


def test_a_body_that_never_ends_does_not_stop_the_end(project):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n{"
    with (
        serving(project, GLEANER_SERVING__DRAIN_SECONDS="1") as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=10) as client,
    ):
        client.sendall(head)
        wait_for(lambda: metric(service, "http_requests_in_progress") == 1)
        began = time.monotonic()
        code = service.stop()

    assert 1 == code
    assert time.monotonic() - began < 8
    assert "drain_seconds" in service.log.read_text()


def test_a_taken_port_is_named_with_its_holder_and_its_setting(project, service):
    done = gleaner("serve", "--port", service.port, "--metrics-port", 0, folder=project)

    assert 1 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert f"port {service.port} on 127.0.0.1 is taken by pid {service.process.pid}" in done.stderr
    assert "set ports.ml_app" in done.stderr


def test_a_bind_beyond_loopback_refuses_to_start(project):
    done = gleaner("serve", "--host", "0.0.0.0", "--port", 0, folder=project)

    assert 1 == done.returncode
    assert "--insecure" in done.stderr


def test_a_variable_of_the_environment_is_no_header_of_a_request(project):
    with serving(project, HTTP_X_REQUEST_ID="from-the-environment", CONTENT_TYPE="text/plain") as service:
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)

    assert 200 == answer.status_code
    assert "from-the-environment" != answer.headers["X-Request-Id"]


def test_log_lines_of_a_hostile_client_stay_one_line_of_json(project):
    with serving(project, "--log", "json") as service:
        httpx.post(
            f"{service.url}/v1/predict", json=ROUTE, headers={"X-Request-Id": "a" * 10_000, "User-Agent": "\x1b[31m"}
        )
        service.stop()
        lines = service.log.read_text().splitlines()

    assert lines
    assert all(len(line) <= 4096 and json.loads(line)["level"] for line in lines)


def test_training_metrics_are_exposed_while_it_lingers(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    command = [sys.executable, "-m", "gleaner", "train", "--metrics-port", "0", "--linger"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        line = process.stderr.readline()
        text = httpx.get(re.search(r"http://\S+/metrics", line)[0]).text
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)

    found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    assert 130 == code
    assert 2 == found["training_epoch_total"]
    assert 0 < found["training_loss"] < 1
    assert 0.8 < found["validation_accuracy"] <= 1
    assert abs(found["training_last_success_timestamp_seconds"] - time.time()) < 60
    assert {"app_cpu_usage_percent", "app_memory_usage_bytes", "app_disk_usage_bytes"} <= set(found)
