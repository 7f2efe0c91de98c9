"""One folder trains with a real MLflow server; another follows it."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import made
import mlflow
import pytest
from clients import Background
from projects import NUMBER, ROUTE, SETTINGS, write_made_table
from prometheus_client.parser import text_string_to_metric_families
from sklearn.tree import DecisionTreeRegressor
from started import MlflowServer, Service, gleaner, serving, wait_for

from gleaner.model.store import Store

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def trained_there(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the training machine's folder.

    The registry has version 1, a tree, and version 2, linear.
    """
    folder = tmp_path_factory.mktemp("trains")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    done = gleaner("train", "--metrics-port", "0", folder=folder, GLEANER_TRACKING__URI=mlflow_server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def client(mlflow_server: MlflowServer) -> mlflow.MlflowClient:
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return mlflow.MlflowClient(mlflow_server.url, mlflow_server.url)


@pytest.fixture
def machine(tmp_path: Path, mlflow_server: MlflowServer, trained_there: Path, client: mlflow.MlflowClient) -> Path:
    """Make another machine's folder without a store; reset the aliases.

    `champion` is version 1 again, `challenger` version 2.
    """
    for alias, version in (("champion", "1"), ("challenger", "2")):
        client.set_registered_model_alias("made", alias, version)
    return settle(tmp_path / "serves", mlflow_server)


def settle(folder: Path, server: MlflowServer) -> Path:
    folder.mkdir()
    (folder / "gleaner.toml").write_text(f'{SETTINGS}\n[tracking]\nuri = "{server.url}"\n')
    return folder


def publish(client: mlflow.MlflowClient, artifact: Path | None) -> int:
    """Register an artifact's folder as training does; return the version."""
    run = client.create_run("0")
    if artifact:
        client.log_artifacts(run.info.run_id, str(artifact), "model/gleaner")
    return int(client.create_model_version("made", f"{run.info.artifact_uri}/model", run.info.run_id).version)


def metric(service: Service, name: str, **labels: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def health(service: Service) -> dict:
    return httpx.get(f"{service.url}/health_status").json()


def versions(service: Service) -> list[int | None]:
    return [slot["version"] for slot in health(service)["slots"].values()]


def ready(service: Service, *wanted: int) -> None:
    assert wait_for(lambda: versions(service) == list(wanted)), service.log.read_text()


class Load(Background):
    """Four clients on kept connections, each asking for one row repeatedly."""

    def __init__(self, service: Service) -> None:
        self.url = f"{service.url}/v1/predict"
        self.answers: list[tuple[int, str, float]] = []
        self.seconds: list[float] = []
        super().__init__(*[self.ask] * 4)

    def ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stop.wait(0.002):
                began = time.monotonic()
                answer = client.post(self.url, json=ROUTE)
                self.seconds.append(time.monotonic() - began)
                number = answer.json()["prediction"][0] if answer.status_code == 200 else None
                self.answers.append((answer.status_code, answer.headers.get("X-Model-Version"), number))

    def served(self, version: int) -> bool:
        return bool(self.answers) and self.answers[-1][1] == str(version)


def events(service: Service) -> list[str]:
    """Return the registry's events in the log."""
    return re.findall(r"(registry followed|registry not followed|version refused)", service.log.read_text())


def test_an_empty_store_is_filled_by_following_alone(machine, trained_there):
    with serving(machine) as service:
        ready(service, 1, 2)
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)

        assert {"prediction": [NUMBER]} == answer.json()
        assert "ok" == health(service)["status"]
        assert "success" == health(service)["registry"]["result"]
        assert 1 <= metric(service, "registry_polls_total", result="success")
        assert abs(metric(service, "registry_last_success_timestamp_seconds") - time.time()) < 30
    here, there = (Store(folder / ".gleaner" / "store") for folder in (machine, trained_there))
    assert [here.read(n).digest for n in (1, 2)] == [there.read(n).digest for n in (1, 2)]


def test_a_moved_alias_is_served_without_a_lost_request(machine, client, mlflow_server):
    new = publish(client, made.constant(7.0).folder)
    with serving(machine) as service:
        ready(service, 1, 2)
        with Load(service) as load:
            client.set_registered_model_alias("made", "champion", str(new))
            by_api = wait_for(lambda: load.served(new))
            # MLflow's page sends this request when somebody moves the alias there.
            page = httpx.post(
                f"{mlflow_server.url}/ajax-api/2.0/mlflow/registered-models/alias",
                json={"name": "made", "alias": "champion", "version": "1"},
                headers={
                    "Origin": mlflow_server.url,
                    "Referer": f"{mlflow_server.url}/",
                    "Sec-Fetch-Site": "same-origin",
                },
            )
            by_page = wait_for(lambda: load.served(1))

    assert 200 == page.status_code, page.text
    assert (True, True) == (by_api, by_page)
    assert len(load.answers) > 100
    assert {(200, "1", NUMBER), (200, str(new), 7.0)} == set(load.answers)


def test_promote_and_train_move_the_version_in_service_elsewhere(machine, trained_there, mlflow_server):
    with serving(machine) as service:
        ready(service, 1, 2)
        done = gleaner("models", "promote", 2, folder=trained_there, GLEANER_TRACKING__URI=mlflow_server.url)

        assert (0, "champion is version 2, it was 1\n") == (done.returncode, done.stdout), done.stderr
        assert wait_for(lambda: versions(service) == [2, 2])

        command = ("train", "--metrics-port", "0", "--champion", "linear", "--challenger", "decision_tree")
        trained = gleaner(*command, folder=trained_there, GLEANER_TRACKING__URI=mlflow_server.url)
        aliases = Store(trained_there / ".gleaner" / "store").aliases()

        assert 0 == trained.returncode, trained.stderr
        assert wait_for(lambda: versions(service) == [aliases["champion"], aliases["challenger"]])
        assert aliases["champion"] > 2


def test_a_service_beside_the_training_follows_without_fetching(trained_there, client, mlflow_server, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(trained_there, folder)
    (folder / "gleaner.toml").write_text(f'{SETTINGS}\n[tracking]\nuri = "{mlflow_server.url}"\n')
    client.set_registered_model_alias("made", "champion", "2")
    client.set_registered_model_alias("made", "challenger", "1")
    before = mlflow_server.log.read_text().count("model.onnx")
    with serving(folder) as service:
        ready(service, 2, 1)
        assert wait_for(lambda: metric(service, "registry_polls_total", result="success") >= 2)

    assert before == mlflow_server.log.read_text().count("model.onnx")


def test_promote_names_the_server_that_it_cannot_reach(trained_there):
    done = gleaner("models", "promote", 1, folder=trained_there, GLEANER_TRACKING__URI="http://joe:s3cret@127.0.0.1:9")

    assert 1 == done.returncode
    assert done.stderr.startswith("error: MLflow at http://127.0.0.1:9: cannot be reached: ")
    assert "s3cret" not in done.stdout + done.stderr


# Refused versions


def foreign(client: mlflow.MlflowClient, server: MlflowServer, folder: Path) -> int:
    """Register a scikit-learn model under the service's model name."""
    run = client.create_run("0")
    model = DecisionTreeRegressor(max_depth=2).fit(made.table().X, made.table().y)
    mlflow.sklearn.save_model(
        model, folder / "model", pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
    )
    client.log_artifacts(run.info.run_id, str(folder / "model"), "model")
    return int(client.create_model_version("made", f"{run.info.artifact_uri}/model", run.info.run_id).version)


def damaged(client: mlflow.MlflowClient, server: MlflowServer, folder: Path) -> int:
    """Register a version and damage its model on the server."""
    version = publish(client, made.constant(8.0).folder)
    uri = client.get_model_version("made", str(version)).source
    path = server.folder / "artifacts" / uri.removeprefix("mlflow-artifacts:/") / "gleaner" / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return version


def of_another_table(client: mlflow.MlflowClient, server: MlflowServer, folder: Path) -> int:
    return publish(client, made.rewrite(made.copy(made.constant(9.0), folder / "other"), target={"name": "cans"}))


def deadly(client: mlflow.MlflowClient, server: MlflowServer, folder: Path) -> int:
    return publish(client, made.rewrite(made.copy(made.constant(9.0), folder / "deadly"), made.killing()))


@pytest.mark.parametrize(
    ("make", "reason", "detail"),
    [
        (foreign, "missing", "no gleaner/manifest.json among its files"),
        (damaged, "hash", "model.onnx does not match the sha256 in the manifest"),
        (of_another_table, "columns", "target cans; gleaner.toml here has"),
        (deadly, "selftest", "its self-test was ended by signal"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_foreign_or_damaged_version_is_refused_and_the_one_in_service_stays(
    machine, client, mlflow_server, tmp_path, make, reason, detail
):
    version = make(client, mlflow_server, tmp_path)
    with serving(machine) as service:
        ready(service, 1, 2)
        asked = mlflow_server.log.read_text().count("manifest.json")
        with Load(service) as load:
            client.set_registered_model_alias("made", "champion", str(version))
            refused = wait_for(lambda: metric(service, "registry_refusals_total", reason=reason) == 1)
            polls = metric(service, "registry_polls_total", result="success")
            assert wait_for(lambda: metric(service, "registry_polls_total", result="success") >= polls + 3)
        state = health(service)

        assert refused
        assert {(200, "1", NUMBER)} == set(load.answers)
        assert "degraded" == state["status"]
        assert state["slots"]["v1"]["fault"].startswith(f"version {version} in the registry: ")
        assert detail in state["slots"]["v1"]["fault"]
        assert state["slots"]["v2"]["fault"] is None
        assert 1 == metric(service, "registry_refusals_total", reason=reason)
        assert 1 == metric(service, "registry_alias_refused", alias="champion")
        assert 1 == events(service).count("version refused")
        assert 1 == mlflow_server.log.read_text().count("manifest.json") - asked

        client.set_registered_model_alias("made", "champion", "2")
        assert wait_for(lambda: versions(service) == [2, 2])
        assert "ok" == health(service)["status"]
        assert 0 == metric(service, "registry_alias_refused", alias="champion")


def test_the_service_waits_for_a_registered_model_that_does_not_exist_yet(machine, client):
    settings = (machine / "gleaner.toml").read_text().replace('name = "made"', 'name = "later"')
    (machine / "gleaner.toml").write_text(settings)
    with serving(machine) as service:
        polled = wait_for(lambda: metric(service, "registry_polls_total", result="success") >= 2)
        before = httpx.post(f"{service.url}/v1/predict", json=ROUTE).status_code

        client.create_registered_model("later")
        run = client.create_run("0")
        folder = made.rewrite(made.copy(made.constant(5.0), machine / "later"))
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace('"made"', '"later"'))
        client.log_artifacts(run.info.run_id, str(folder), "model/gleaner")
        version = client.create_model_version("later", f"{run.info.artifact_uri}/model", run.info.run_id).version
        client.set_registered_model_alias("later", "champion", version)
        served = wait_for(lambda: versions(service)[0] == int(version))
        answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE).json()

    assert (True, 503, True) == (polled, before, served)
    assert {"prediction": [5.0]} == answer


# A broken server, under load


@contextlib.contextmanager
def frozen(server: MlflowServer) -> Iterator[None]:
    """Stop the server's processes: connections are accepted and get no response."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


def test_start_and_stop_do_not_wait_for_a_hanging_server(project):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with serving(project, GLEANER_TRACKING__URI=uri, GLEANER_TRACKING__TIMEOUT_SECONDS="300") as service:
            answer = httpx.post(f"{service.url}/v1/predict", json=ROUTE)
            ready_seconds = time.monotonic() - began
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                asked = connection.recv(8)
                code = service.stop()

    assert {"prediction": [NUMBER]} == answer.json()
    assert ready_seconds < 200  # a start that waits for the server takes five minutes
    assert (b"GET /api", 0) == (asked, code)


def test_a_server_that_hangs_stops_and_comes_back_changes_nothing_meanwhile(machine, client, mlflow_server):
    with serving(machine, GLEANER_TRACKING__TIMEOUT_SECONDS="2") as service:
        ready(service, 1, 2)
        with Load(service) as load:
            with frozen(mlflow_server):
                hung = wait_for(lambda: metric(service, "registry_polls_total", result="unreachable") >= 1)
            came_to = wait_for(lambda: health(service)["registry"]["result"] == "success")
            mlflow_server.stop()
            gone = wait_for(lambda: health(service)["registry"]["result"] == "unreachable")
            polls = metric(service, "registry_polls_total", result="unreachable")
            more = wait_for(lambda: metric(service, "registry_polls_total", result="unreachable") >= polls + 3)
        state = health(service)

        assert (True, True, True, True) == (hung, came_to, gone, more)
        assert {(200, "1", NUMBER)} == set(load.answers)
        assert statistics.quantiles(load.seconds, n=10)[8] < 2  # no prediction waits for the server
        assert "ok" == state["status"]
        assert "cannot be reached" in state["registry"]["detail"]

        with serving(settle_again(machine), GLEANER_TRACKING__TIMEOUT_SECONDS="2") as second:
            first_answer = httpx.post(f"{second.url}/v1/predict", json=ROUTE)
            assert {"prediction": [NUMBER]} == first_answer.json()

        mlflow_server.start()
        back = wait_for(lambda: health(service)["registry"]["result"] == "success")
        client.set_registered_model_alias("made", "champion", "2")

        assert back
        assert wait_for(lambda: versions(service) == [2, 2])
        followed, lost = "registry followed", "registry not followed"
        assert [followed, lost, followed, lost, followed] == events(service)


def settle_again(machine: Path) -> Path:
    """Copy a machine's folder and its store, as before a restart."""
    return Path(shutil.copytree(machine, machine.with_name("again")))
