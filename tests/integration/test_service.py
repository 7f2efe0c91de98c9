"""The process that `gleaner serve` starts, asked over its sockets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import made
import onnx
import pytest
from projects import NUMBER, ROOT, ROUTE, SETTINGS, write_made_table
from prometheus_client.parser import text_string_to_metric_families
from started import INTERRUPTED, Service, gleaner, serving, wait_for

from gleaner.model.store import Store


@pytest.fixture(scope="module")
def service(trained):
    with serving(trained) as running:
        yield running


def metric(service, name: str, **labels: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def test_the_number_is_served_to_every_digit(service):
    answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)

    assert NUMBER == 22.068840579710145
    assert {"prediction": [22.068840579710145]} == answer.json()
    assert "1" == answer.headers["X-Model-Version"]


def test_both_slots_predict_side_by_side(service):
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
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
        client.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000000\r\n\r\n"
        )

        assert b"413" in client.recv(4096).split(b"\r\n")[0]


def test_slow_bodies_do_not_delay_others(service):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n{"
    slow = [socket.create_connection(("127.0.0.1", service.port), timeout=60) for _ in range(100)]
    try:
        for client in slow:
            client.sendall(head)
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE, timeout=60)
    finally:
        for client in slow:
            client.close()

    assert {"prediction": [NUMBER]} == answer.json()


def test_the_metrics_port_counts_the_responses_of_the_api(service):
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


def test_check_names_the_fault(service):
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
        began = wait_for(lambda: versions)
        promoted = point(project, champion=2)
        moved = wait_for(lambda: ("2", False) in versions[-8:])
        stop.set()
        for thread in threads:
            thread.join()

    assert began
    assert promoted
    assert moved
    assert {200} == set(statuses)
    assert {("1", True), ("2", False)} == set(versions)


def point(folder, **aliases: int) -> bool:
    """Move aliases in a folder's store, as `gleaner models promote` does."""
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


def test_a_service_without_a_model_starts_and_loads_the_first_one(tmp_path, project):
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
    assert "a trained or promoted version serves within seconds" in before.json()["detail"]
    assert before.headers["Retry-After"]
    assert picked_up
    assert {"prediction": [NUMBER]} == after.json()


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize(
    ("uri", "command"),
    [("", "`gleaner train DATA.csv`"), ("http://127.0.0.1:9", "`gleaner train --now` beside the trainer")],
)
def test_a_service_without_a_model_names_the_command_that_helps_there(tmp_path, uri, command):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    with serving(tmp_path, GLEANER_TRACKING__URI=uri) as running:
        assert running.process.stdout
        lines = [running.process.stdout.readline() for _ in range(3)]

    assert f"  no version to serve yet; {command} trains one, which is served within seconds\n" == lines[-1]


def test_sigterm_finishes_the_requests_in_flight_and_exits_0(project):
    body = json.dumps(ROUTE).encode()
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with serving(project, GLEANER_SERVING__UNREADY_SECONDS="5") as service:
        clients = [socket.create_connection(("127.0.0.1", service.port), timeout=60) for _ in range(8)]
        for client in clients:
            client.sendall(head + body[:10])
        assert wait_for(lambda: metric(service, "http_requests_in_progress") == 8)
        service.process.send_signal(signal.SIGTERM)
        unready = wait_for(lambda: httpx.get(f"{service.url}/readyz").status_code == 503)
        assert wait_for(lambda: not is_listening(service.port))
        for client in clients:
            client.sendall(body[10:])
        answers = [client.recv(4096) for client in clients]
        for client in clients:
            client.close()
        code = service.process.wait(timeout=60)

    assert unready
    assert [True] * 8 == [b"22.068840579710145" in answer for answer in answers]
    assert 0 == code


def test_a_body_that_never_ends_does_not_prevent_the_exit(project):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n{"
    with (
        serving(project, GLEANER_SERVING__DRAIN_SECONDS="1") as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=60) as client,
    ):
        client.sendall(head)
        assert wait_for(lambda: metric(service, "http_requests_in_progress") == 1)
        code = service.stop()

    assert 1 == code
    assert "drain_seconds" in service.log.read_text()


def test_a_taken_port_is_named_with_its_holder_and_its_setting(project, service):
    done = gleaner("serve", "--port", service.port, "--metrics-port", 0, folder=project)

    assert 1 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert f"port {service.port} on 127.0.0.1 is taken by pid {service.process.pid}" in done.stderr
    assert "set ports.ml_app" in done.stderr


def test_a_host_beyond_loopback_is_refused(project):
    done = gleaner("serve", "--host", "0.0.0.0", "--port", 0, folder=project)

    assert 1 == done.returncode
    assert "--insecure" in done.stderr


def test_an_environment_variable_is_no_header_of_a_request(project):
    with serving(project, HTTP_X_REQUEST_ID="from-the-environment", CONTENT_TYPE="text/plain") as service:
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)

    assert 200 == answer.status_code
    assert "from-the-environment" != answer.headers["X-Request-Id"]


FORGED = '{"level": "INFO", "event": "all is lost"}'


@contextmanager
def raising(folder: Path, **environment: str) -> Iterator[Service]:
    """Run the service with a predictor that always raises."""
    log = folder / "raising.log"
    command = [sys.executable, "-m", "gleaner.drills.faulty", "service", "raising", "gleaner.toml", "0", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=file, text=True
        )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+), metrics on http://127\.0\.0\.1:(\d+)", line)
        assert found, f"{line}{log.read_text()}"
        yield Service(process, int(found[1]), int(found[2]), log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask_as(service: Service, id_: str) -> int:
    """Request a prediction with headers that no library sends; return the status."""
    body = json.dumps(ROUTE)
    head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nX-Request-Id: {id_}\r\nUser-Agent: {FORGED}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
        client.sendall(f"{head}{body}".encode("latin-1"))
        return int(client.recv(4096).split()[1])


def test_log_lines_of_a_hostile_client_stay_one_line_of_json(project):
    longest = "a.b-c_9" * 9 + "z"  # 64 characters: an id that the service takes over
    hostile = [FORGED, "x" * 65, "a" * 3_000, "a b", f'"{FORGED}', "\xe9", "%0aERROR", "id\\n{}"]
    with raising(project, GLEANER_SERVING__LOG="json") as service:
        statuses = [ask_as(service, id_) for id_ in (longest, *hostile)]
        service.stop()
        text = service.log.read_text()

    lines = [json.loads(line) for line in text.splitlines()]
    failed = [line for line in lines if line["event"] == "request failed"]
    ids = [line["request_id"] for line in failed]
    assert [500] * (1 + len(hostile)) == statuses
    assert len(statuses) == len(failed)
    assert longest == ids[0]  # what a client sent is in its line,
    assert all(re.fullmatch(r"[0-9a-f]{10}-[0-9a-f]+", id_) for id_ in ids[1:])  # unless it could be more than an id
    assert {"ERROR"} == {line["level"] for line in failed}
    assert all(line["exception"].endswith("RuntimeError: this is a drill") for line in failed)
    assert "all is lost" not in text
    assert all(len(line) <= 4096 for line in text.splitlines())


@pytest.mark.parametrize("form", ["json", "human"])
def test_the_log_line_of_a_hostile_model_is_one_line_that_quotes_it(project, form):
    store = Store(project / ".gleaner" / "store")
    model = onnx.load(str(store.folder(1) / "model.onnx"))
    model.graph.node[0].op_type = f"Evil\n{FORGED}\x1b[2J" + "x" * 60
    bad = made.rewrite(shutil.copytree(store.folder(1), project / "bad"), model.SerializeToString())
    store.add(3, bad)
    with serving(project, "--log", form) as service:
        store.point({"champion": 3})
        assert wait_for(lambda: metric(service, "model_load_failures_total", reason="operator") > 0)
        service.stop()
        text = service.log.read_text()

    lines = text.splitlines()
    (refusal,) = [line for line in lines if "model not loaded" in line]
    quoted = json.loads(refusal)["detail"] if form == "json" else refusal
    assert r"Evil\n{" in quoted
    assert not [line for line in lines if line.startswith(FORGED)]
    assert "\x1b" not in text
    assert len(refusal) <= 4096
    assert form == "human" or {"level", "event"} <= set.intersection(*(set(json.loads(line)) for line in lines))


def test_training_metrics_are_exposed_while_train_lingers(tmp_path):
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
        code = process.wait(timeout=60)

    found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    assert code in INTERRUPTED
    assert 2 == found["training_epoch_total"]
    assert 0 < found["training_loss"] < 1
    assert 0.8 < found["validation_accuracy"] <= 1
    assert abs(found["training_last_success_timestamp_seconds"] - time.time()) < 60
    assert {"app_cpu_usage_percent", "app_memory_usage_bytes", "app_disk_usage_bytes"} <= set(found)
