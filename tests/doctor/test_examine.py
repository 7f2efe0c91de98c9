"""The doctor's findings: real holders of ports, and damaged stores."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor
from started import responding

from gleaner.doctor.examine import examine
from gleaner.doctor.finding import Finding
from gleaner.doctor.ports import examine_compose_port, examine_port
from gleaner.machine.processes import start_of
from gleaner.model.artifact import write_artifact
from gleaner.model.histogram import histogram
from gleaner.model.manifest import FORMATS, Data, Golden, Manifest
from gleaner.model.predictor import ENGINE
from gleaner.model.store import Store
from gleaner.running.run_file import Entry, RunFile, write_run_file
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.training.export import export

TOML = """
[model]
name = "made"
target = "bags"
min = 0.0

[[features]]
name = "time_spent"

[ports]
ml_app = {ports[0]}
ml_app_metrics = {ports[1]}
train_metrics = {ports[2]}
mlflow = {mlflow}
prometheus = {prometheus}
alertmanager = 0
grafana = 0
"""

LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def settings_in(
    folder: Path, *, ports: tuple[int, int, int] = (0, 0, 0), mlflow: int = 0, prometheus: int = 0, more: str = ""
) -> Settings:
    """Make settings with free ports, except those given.

    So other processes on this machine do not matter.
    """
    (folder / "gleaner.toml").write_text(TOML.format(ports=ports, mlflow=mlflow, prometheus=prometheus) + more)
    return load_settings(folder / "gleaner.toml")


def findings(settings: Settings, what: str) -> list[Finding]:
    """Return the findings on one thing; each fault has a fix."""
    found = list(examine(settings))
    assert all(bool(finding.fix) == (finding.verdict != "OK") for finding in found)
    return [finding for finding in found if finding.what == what]


def finding(settings: Settings, what: str) -> Finding:
    (found,) = findings(settings, what)
    return found


@contextlib.contextmanager
def listening(path: Path, *arguments: str, program: str = LISTEN) -> Iterator[tuple[int, int]]:
    """Run a program at a path that listens, until the block ends.

    Yields (port, pid).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(program)
    process = subprocess.Popen(
        [sys.executable, f"{path.parent.name}/{path.name}", *arguments],
        cwd=path.parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.communicate()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """The folder of a real model of one column."""
    X = np.arange(10.0).reshape(-1, 1)
    fitted = DecisionTreeRegressor().fit(X, 2 * X[:, 0])
    settings = settings_in(tmp_path_factory.mktemp("made"))
    manifest = Manifest(
        format=FORMATS[0],
        model="made",
        created="2023-09-23T00:00:00+00:00",
        candidate="decision_tree",
        parameters={},
        features=settings.schema_.features,
        target=settings.schema_.target,
        scores={},
        constant={},
        training_loss=0.1,
        epochs=1,
        seconds=0.1,
        data=Data("made.csv", "0" * 64, 10, 0),
        seed=0,
        run_id="run",
        libraries={},
        histograms={"time_spent": histogram(X[:, 0])},
        golden=Golden(((3.0,),), (6.0,)),
        files={},
    )
    folder = tmp_path_factory.mktemp("artifacts") / "1"
    write_artifact(folder, export(fitted, 1).SerializeToString(), manifest)
    return folder


@pytest.fixture
def stored(tmp_path, artifact) -> Settings:
    """Settings whose store has version 1 as champion, and no challenger."""
    settings = settings_in(tmp_path)
    store = Store(settings.store)
    store.add(1, artifact)
    store.point({"champion": 1})
    return settings


def test_the_versions_and_the_settings_file_are_reported(tmp_path):
    settings = settings_in(tmp_path)

    assert finding(settings, "versions").detail.startswith("gleaner ")
    assert "onnxruntime 1." in finding(settings, "versions").detail
    assert Finding("OK", "settings", str(tmp_path / "gleaner.toml")) == finding(settings, "settings")
    assert "OK" == finding(settings, "training").verdict


def test_a_taken_port_names_its_holder_and_the_setting_that_moves_it(tmp_path):
    with listening(tmp_path / "other" / "program.py") as (port, pid):
        found = finding(settings_in(tmp_path, ports=(0, port, 0)), f"port {port}")

    holder = f"pid {pid} ({sys.executable} other/program.py)"
    assert ("FAIL", f"ports.ml_app_metrics: taken by {holder}") == (found.verdict, found.detail)
    assert f"stop {holder}, or set ports.ml_app_metrics (GLEANER_PORTS__ML_APP_METRICS) to a free port" == found.fix


@pytest.mark.parametrize("name", ["bin/gleaner", "src/predict.py", "src/train.py"])
def test_a_port_that_this_gleaner_holds_is_no_fault(tmp_path, name):
    with listening(tmp_path / name) as (port, pid):
        found = finding(settings_in(tmp_path, ports=(port, 0, 0)), f"port {port}")

    holder = f"pid {pid} ({sys.executable} {name})"
    assert Finding("OK", f"port {port}", f"ports.ml_app: held by Gleaner, {holder}") == found


@pytest.mark.parametrize(
    "arguments", [(), ("--config", "other/gleaner.toml", "serve"), ("--config=other/gleaner.toml",)]
)
def test_another_folders_gleaner_is_named_with_its_folder_and_the_way_to_stop_it(tmp_path, arguments):
    (tmp_path / "here").mkdir()
    folder = tmp_path / "there" / "other" if arguments else tmp_path / "there"
    with listening(tmp_path / "there" / "bin" / "gleaner", *arguments) as (port, pid):
        found = finding(settings_in(tmp_path / "here", ports=(port, 0, 0)), f"port {port}")

    assert "FAIL" == found.verdict
    assert found.detail.startswith(f"ports.ml_app: taken by the Gleaner of {folder}, pid {pid} (")
    assert found.fix.startswith(f"gleaner down in {folder}, or ")
    assert found.fix.endswith("set ports.ml_app (GLEANER_PORTS__ML_APP) to a free port")


def test_a_child_of_another_folders_gleaner_counts_as_that_gleaner(tmp_path):
    (tmp_path / "here").mkdir()
    # Like MLflow under `gleaner up`: a child whose own command does not name Gleaner.
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LISTEN!r}])"
    with listening(tmp_path / "there" / "bin" / "gleaner", program=starts) as (port, _):
        found = finding(settings_in(tmp_path / "here", mlflow=port), f"port {port}")

    assert found.detail.startswith(f"ports.mlflow: taken by the Gleaner of {tmp_path / 'there'}, pid ")


def test_an_editor_with_a_folder_called_gleaner_is_a_stranger(tmp_path):
    with listening(tmp_path / "bin" / "editor", "/home/joe/gleaner") as (port, _):
        found = finding(settings_in(tmp_path, ports=(port, 0, 0)), f"port {port}")

    assert ("FAIL", True) == (found.verdict, "taken by pid" in found.detail)


@pytest.mark.parametrize("name", ["gleaner/serve.py", "src/gleaner_notes.py", "src/my-gleaner", "notes/predict.py"])
def test_a_program_with_a_similar_name_is_a_stranger(tmp_path, name):
    with listening(tmp_path / name) as (port, _):
        found = finding(settings_in(tmp_path, ports=(port, 0, 0)), f"port {port}")

    assert "FAIL" == found.verdict


def test_two_taken_ports_are_reported_with_both_holders_and_both_settings(tmp_path):
    with (
        listening(tmp_path / "other" / "one.py") as (app, first),
        listening(tmp_path / "other" / "two.py") as (watch, second),
    ):
        settings = settings_in(tmp_path, ports=(app, 0, 0), prometheus=watch)
        said = {finding.what: finding for finding in examine(settings)}
        found = [said[f"port {port}"] for port in (app, watch)]

    assert ["FAIL", "FAIL"] == [f.verdict for f in found]
    assert f"ports.ml_app: taken by pid {first} (" in found[0].detail
    assert f"ports.prometheus: taken by pid {second} (" in found[1].detail
    assert "GLEANER_PORTS__ML_APP" in found[0].fix
    assert "GLEANER_PORTS__PROMETHEUS" in found[1].fix


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ControlCenter", "switch off macOS's AirPlay Receiver: System Settings"),
        ("docker-proxy", "`docker-compose down` stops Gleaner's own"),
    ],
)
def test_airplay_and_containers_have_fixes_of_their_own(tmp_path, name, said):
    with listening(tmp_path / "Contents" / name) as (port, _):
        found = finding(settings_in(tmp_path, ports=(port, 0, 0)), f"port {port}")

    assert "FAIL" == found.verdict
    assert said in found.fix
    assert "set ports.ml_app" in found.fix


@pytest.mark.parametrize("name", ["prometheus", "prometheus-alertmanager"])
def test_a_service_that_a_package_started_has_a_fix_of_its_own(tmp_path, monkeypatch, name):
    # As under systemd, the program's path is the first word of its command.
    with subprocess.Popen(
        [f"/usr/bin/{name}", "-c", LISTEN],
        executable=sys.executable,
        env=os.environ | {"PYTHONHOME": sys.base_prefix},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        port = int(process.stdout.readline())
        fixes = []
        for systemd in (tmp_path, tmp_path / "none"):
            monkeypatch.setattr("gleaner.doctor.ports.SYSTEMD", systemd)
            fixes.append(finding(settings_in(tmp_path, prometheus=port), f"port {port}").fix)
        process.communicate()

    assert fixes[0] == f"systemctl disable --now prometheus, if it is that package's service; else {fixes[1]}"
    assert fixes[1].startswith(f"stop pid {process.pid} (")


def test_macos_on_the_port_of_compose_is_reported_and_any_other_holder_may_be_compose(tmp_path):
    with (
        listening(tmp_path / "Contents" / "ControlCenter") as (apple, _),
        listening(tmp_path / "Contents" / "docker") as (other, _),
    ):
        (found,) = examine_compose_port(apple)

        assert "WARN" == found.verdict
        assert "ML_APP_PORT in .env" in found.fix
        assert [] == list(examine_compose_port(other))


def test_one_port_in_two_settings_is_a_fault_of_the_second(tmp_path):
    found = findings(settings_in(tmp_path, ports=(5102, 0, 0), mlflow=5102), "port 5102")

    assert ["OK", "FAIL"] == [f.verdict for f in found]
    assert "ports.mlflow: ports.ml_app is 5102, too" == found[1].detail
    assert "set ports.mlflow (GLEANER_PORTS__MLFLOW)" in found[1].fix


def test_a_stack_that_does_not_run_is_no_fault(tmp_path):
    settings = settings_in(tmp_path)

    assert ["not running here"] * 3 == [finding(settings, what).detail for what in ("up", "mlflow", "prometheus")]


def test_a_stranger_on_the_port_of_a_service_gets_no_request(tmp_path):
    asked = []

    def reply(*request: object) -> tuple[int, bytes]:
        asked.append(request)
        return 200, b"3.17.2"

    with responding(reply) as port:
        for name in ("mlflow", "prometheus"):
            settings = settings_in(tmp_path, **{name: port})

            assert f"ports.{name}: taken by pid {os.getpid()} (" in finding(settings, f"port {port}").detail
            assert Finding("OK", name, "not running here") == finding(settings, name)
    assert [] == asked


def test_a_stranger_on_a_port_of_the_stack_gets_no_request(tmp_path):
    settings, asked = settings_in(tmp_path), []

    def reply(*request: object) -> tuple[int, bytes]:
        asked.append(request)
        return 200, b"3.17.2"

    (settings.stack_folder).mkdir(parents=True)
    with responding(reply) as port, subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            entries = (entry("mlflow", process, ports={"ports.mlflow": port}, address=address),)
            write_run_file(settings.stack_folder, entries, 0.0)

            assert Finding("OK", "mlflow", "not running here") == finding(settings, "mlflow")
        finally:
            process.kill()
    assert [] == asked


def entry(name: str, process: subprocess.Popen[str], **changes: object) -> Entry:
    about = {"state": "running", "health": "ok", "restarts": 0, "address": "", "ports": {}, "log": f"/x/{name}.log"}
    started = start_of(process.pid)
    assert started
    return Entry(name=name, pid=process.pid, started=started, since=0.0, **{**about, **changes})


def test_the_running_and_the_given_up_services_of_the_stack_are_reported(tmp_path):
    settings = settings_in(tmp_path)
    folder = settings.stack_folder
    folder.mkdir(parents=True)
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        port = int(process.stdout.readline())
        given_up = entry("grafana", process, state="given up", health="", restarts=9)
        entries = (
            entry("mlflow", process, ports={"ports.mlflow": port}),
            entry("train-metrics", process, health="no answer"),
            given_up,
        )
        write_run_file(folder, entries, 0.0)
        settings = settings_in(tmp_path, mlflow=port)

        found = {finding.what: finding for finding in examine(settings)}
        assert "given up after 9 restarts" == found["up grafana"].detail
        assert "read the end of /x/grafana.log" in found["up grafana"].fix
        assert "WARN" == found["up train-metrics"].verdict
        assert f"pid {os.getpid()} keeps mlflow" == found["up"].detail
        assert found[f"port {port}"].detail.startswith(f"ports.mlflow: held by Gleaner, pid {process.pid}")
        # That process never responds, so the next settings leave its port out.
        settings = settings_in(tmp_path)
        text = (folder / "run.json").read_text()
        (folder / "run.json").write_text(text.replace(f'"pid": {os.getpid()}', '"pid": 999999999'))
        killed = finding(settings, "up")
        assert ("FAIL", "gleaner down") == (killed.verdict, killed.fix)
        (folder / "run.json").write_text("{")
        assert "was not written by `gleaner up`" in finding(settings, "up").detail
        process.communicate("\n")


def test_a_taken_port_that_the_stack_has_moved_is_a_warning(tmp_path):
    settings = settings_in(tmp_path)
    (settings.stack_folder).mkdir(parents=True)
    with listening(tmp_path / "other" / "program.py") as (port, pid):
        write_run_file(settings.stack_folder, (), 0.0)
        settings = settings_in(tmp_path, ports=(port, 0, 0))
        run = RunFile(1, 1.0, 0.0, (), True)

        found = examine_port(settings, "ml_app", run, {"ports.ml_app": port + 1})

    assert "WARN" == found.verdict
    assert f"taken by pid {pid} (" in found.detail
    assert found.detail.endswith(f"; the running stack has {port + 1} instead")
    assert f"set ports.ml_app (GLEANER_PORTS__ML_APP) to {port + 1}" == found.fix


@pytest.mark.parametrize(
    ("number", "wal", "verdict"),
    [
        ("3.40.1", True, "WARN"),
        ("3.40.1", False, "OK"),
        ("3.44.6", True, "OK"),
        ("3.45.0", True, "WARN"),
        ("3.50.6", True, "WARN"),
        ("3.50.7", True, "OK"),
        ("3.51.2", True, "WARN"),
        ("3.51.3", True, "OK"),
        ("4.0.0", True, "OK"),
    ],
)
def test_sqlites_fault_counts_only_if_it_can_damage_the_database(tmp_path, monkeypatch, number, wal, verdict):
    settings = settings_in(tmp_path)
    settings.state.mkdir()
    with contextlib.closing(sqlite3.connect(settings.state / "mlflow.db")) as database:
        database.execute(f"pragma journal_mode={'wal' if wal else 'delete'}")
        database.execute("create table made (x)")
    monkeypatch.setattr(sqlite3, "sqlite_version", number)

    found = finding(settings, "SQLite")

    assert verdict == found.verdict
    assert number in found.detail


def test_free_ports_are_reported_with_their_settings(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    settings = settings_in(tmp_path, ports=(port, 0, 0))

    assert Finding("OK", f"port {port}", "ports.ml_app: free") == finding(settings, f"port {port}")
    others = ("ml_app_metrics", "train_metrics", "mlflow", "prometheus", "alertmanager", "grafana")
    assert [f"ports.{name}: free" for name in others] == [f.detail for f in findings(settings, "port 0")]


# An MLflow server


class Mlflow(http.server.BaseHTTPRequestHandler):
    """A server with one alias, or one that refuses its host name."""

    status = 200

    def do_GET(self) -> None:
        if self.status == 200 and "alias=champion" in self.path:
            self.send(200, b'{"model_version": {"name": "made", "version": "3"}}')
        elif self.status == 200:
            self.send(400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "alias not found."}')
        else:
            self.send(self.status, b"Invalid Host header - possible DNS rebinding attack detected")

    def send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def mlflow_at(status: int) -> Iterator[str]:
    handler = type("Handler", (Mlflow,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_tracking_server_is_reported_with_its_aliases(tmp_path):
    with mlflow_at(200) as url:
        found = finding(settings_in(tmp_path, more=f'[tracking]\nuri = "{url}"\n'), "registry")

    assert ("OK", f"{url}: champion is version 3, no version has the alias challenger") == (found.verdict, found.detail)


def test_a_tracking_server_that_refuses_its_host_name_has_a_fix(tmp_path):
    with mlflow_at(403) as url:
        found = finding(settings_in(tmp_path, more=f'[tracking]\nuri = "{url}"\n'), "registry")

    assert "WARN" == found.verdict
    assert "with 403: 'Invalid Host header" in found.detail
    assert f"start the server with --allowed-hosts {url[7:]}" in found.fix


def test_a_tracking_server_that_is_down_is_a_warning(tmp_path):
    more = '[tracking]\nuri = "http://joe:s3cret@127.0.0.1:9"\n'
    found = finding(settings_in(tmp_path, more=more), "registry")

    assert "WARN" == found.verdict
    assert found.detail.startswith("MLflow at http://127.0.0.1:9: cannot be reached: ")
    assert "the API goes on with the versions in its store" in found.detail
    assert "start the server, or set tracking.uri to its address" == found.fix


def test_without_a_tracking_server_there_is_no_finding(tmp_path):
    assert [] == findings(settings_in(tmp_path), "registry")


@pytest.mark.parametrize(
    ("runbooks", "verdict"), [("docs/alerts.md", "WARN"), ("https://example.org/docs/alerts.md", "OK")]
)
def test_a_runbook_link_that_is_no_address_is_a_warning(tmp_path, runbooks, verdict):
    alerts = f'[alerts]\nwebhook = "https://example.org/hook"\nrunbooks = "{runbooks}"\n'
    found = finding(settings_in(tmp_path, more=alerts), "alerts")

    assert verdict == found.verdict
    assert runbooks in found.detail


def test_without_a_webhook_runbooks_do_not_matter(tmp_path):
    assert [] == findings(settings_in(tmp_path), "alerts")


def test_without_a_store_the_fix_is_to_train(tmp_path):
    store = tmp_path / ".gleaner" / "store"

    assert Finding("WARN", "store", f"{store} holds no version", "gleaner train DATA.csv") == finding(
        settings_in(tmp_path), "store"
    )
    assert not store.exists()


def test_a_file_in_place_of_the_store_is_a_fault(tmp_path):
    (tmp_path / ".gleaner").mkdir()
    (tmp_path / ".gleaner" / "store").write_text("not a folder")
    found = finding(settings_in(tmp_path), "store")

    assert ("FAIL", f"{tmp_path}/.gleaner/store cannot be read: Not a directory") == (found.verdict, found.detail)
    assert "move it away, or set paths.state (GLEANER_PATHS__STATE)" == found.fix


def test_a_version_in_service_is_reported_with_its_candidate(stored):
    assert Finding("OK", "store", f"{stored.store}: 1 versions, the latest 1") == finding(stored, "store")
    assert Finding(
        "OK", "slot v1", f"champion is version 1, decision_tree; self-test not yet run under {ENGINE}"
    ) == finding(stored, "slot v1")


def test_a_passed_self_test_is_reported(stored):
    store = Store(stored.store)
    store.remember_passed(1, store.read(1).digest, ENGINE)

    assert finding(stored, "slot v1").detail.endswith(f"self-test passed under {ENGINE}")


def test_a_self_test_under_another_engine_does_not_count(stored):
    store = Store(stored.store)
    store.remember_passed(1, store.read(1).digest, "onnxruntime 0.1")

    assert finding(stored, "slot v1").detail.endswith(f"self-test not yet run under {ENGINE}")


def test_a_slot_without_a_version_has_a_fix(stored):
    assert Finding(
        "WARN", "slot v2", "no version has the alias challenger", "gleaner models promote VERSION --alias challenger"
    ) == finding(stored, "slot v2")


@pytest.mark.parametrize("content", ["{", "[1]", '{"champion": "1"}', "", '{"champion": true}'])
def test_a_broken_file_of_aliases_is_a_fault_with_its_path(stored, content):
    path = stored.store / "aliases.json"
    path.write_text(content)
    found = finding(stored, "store")

    assert "FAIL" == found.verdict
    assert found.detail.startswith(f"{path}: ")
    assert f"move {path} away, then run `gleaner models promote`" == found.fix


def test_a_model_that_was_changed_on_disk_is_a_fault(stored):
    model = Store(stored.store).folder(1) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    found = finding(stored, "slot v1")

    assert "FAIL" == found.verdict
    assert "model.onnx does not match the sha256 in the manifest" in found.detail
    assert "gleaner models promote VERSION --alias champion, or train again" == found.fix


def test_an_alias_of_a_version_that_is_gone_is_a_fault(stored):
    (stored.store / "aliases.json").write_text('{"champion": 7}')
    found = finding(stored, "slot v1")

    assert ("FAIL", True) == (found.verdict, "cannot read manifest.json" in found.detail)


def test_a_model_with_other_columns_than_the_settings_is_a_warning(stored, tmp_path):
    found = findings(settings_in(tmp_path, more='[[features]]\nname = "doors"\n'), "slot v1")

    assert ["OK", "WARN"] == [f.verdict for f in found]
    assert "version 1 takes time_spent; gleaner.toml has other columns" == found[1].detail


def test_free_space_is_measured_where_the_state_will_be(tmp_path):
    settings = settings_in(tmp_path, more='[paths]\nstate = "not/yet/there"\n')

    assert finding(settings, "disk").detail.endswith(f" GB free under {tmp_path}")


def test_the_doctor_changes_nothing(stored, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    list(examine(stored))

    assert before == {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}


def test_an_address_of_another_machine_is_a_fault_of_the_address(tmp_path):
    found = finding(settings_in(tmp_path, ports=(5102, 0, 0), more='[serving]\nhost = "192.0.2.1"\n'), "port 5102")

    assert "ports.ml_app: cannot listen on 192.0.2.1:5102: Cannot assign requested address" == found.detail
    assert ("FAIL", "set serving.host to an address of this machine") == (found.verdict, found.fix)
