"""The whole stack: `gleaner up` on free ports, and other terminals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from notebook import look_into
from projects import NUMBER, ROUTE, SETTINGS, write_made_table
from started import Up, all_end, free_ports, gleaner, serving, tool, up, wait_for

from gleaner.model.store import Store

pytestmark = pytest.mark.timeout(600)  # a fixture trains and starts everything

# A stand-in for Grafana, which Debian does not package: it reads the configuration and responds.
GRAFANA = f"""#!{sys.executable}
import configparser, http.server, pathlib, sys
(config,) = [part.removeprefix("--config=") for part in sys.argv if part.startswith("--config=")]
ini = configparser.ConfigParser(interpolation=None)
ini.read(config)
assert "gleaner.yml" in [p.name for p in pathlib.Path(ini["paths"]["provisioning"], "dashboards").iterdir()]
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer((ini["server"]["http_addr"], int(ini["server"]["http_port"])), Health).serve_forever()
"""
CRASHING = "#!/bin/sh\necho no such luck >&2\nexit 3\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Up]:
    """Run the stack in a folder where `gleaner train` ran by hand."""
    tool("prometheus")
    tool("prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("stack")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    done = gleaner("train", "--metrics-port", 0, folder=folder)
    assert 0 == done.returncode, done.stderr
    with up(folder, GLEANER_ALERTS__SCRAPE_SECONDS="1", **free_ports()) as running:
        assert wait_for(lambda: "ready in" in running.text or running.process.poll() is not None, 300)
        assert running.process.poll() is None, running.text
        yield running


def test_with_a_version_it_does_not_train_and_every_service_is_ready(stack):
    entries = stack.status()

    assert "not training: version 1, trained on made.csv, is there" in stack.text
    assert {"ml-app", "mlflow", "train-metrics", "alertmanager", "prometheus"} <= set(entries)
    assert {("running", "ok", 0)} == {(e["state"], e["health"], e["restarts"]) for e in entries.values()}
    # The API waits for no other service.
    assert stack.text.index("ml-app is ready") < stack.text.index("mlflow is ready")
    for entry in entries.values():
        assert re.search(rf"{entry['name']} +{re.escape(entry['address'])} ", stack.text)
        assert {str(port) for port in entry["ports"].values()} <= set(stack.environment.values())


def test_gleaner_check_finds_the_api_on_its_port(stack):
    done = gleaner("check", "--data", json.dumps(ROUTE), "--host", "127.0.0.1", folder=stack.folder)

    assert 0 == done.returncode, done.stderr
    assert f":{stack.status()['ml-app']['ports']['ports.ml_app']}/v1/predict" in done.stderr
    assert str(NUMBER) in done.stderr


def test_the_api_serves_the_guides_number_to_every_digit(stack):
    url = stack.status()["ml-app"]["address"]

    assert {"prediction": [NUMBER]} == httpx.post(f"{url}/v1/predict", json=ROUTE).json()


def test_mlflows_server_hands_out_what_a_training_by_hand_recorded(stack):
    seen = look_into(stack.folder, stack.status()["mlflow"]["address"])

    assert [NUMBER] == seen["prediction"]
    assert [3, 3] == [len(plots) for plots in seen["plots"].values()]


def test_a_backup_of_a_running_stack_is_served_from_another_folder(stack, tmp_path):
    made = gleaner("backup", tmp_path / "b.tar.gz", folder=stack.folder)
    done = gleaner("restore", "b.tar.gz", "restored", folder=tmp_path)

    assert [0, 0] == [made.returncode, done.returncode], made.stderr + done.stderr
    with serving(tmp_path / "restored") as service:
        assert {"prediction": [NUMBER]} == httpx.post(f"{service.url}/v1/predict", json=ROUTE).json()
    assert [NUMBER] == look_into(tmp_path / "restored")["prediction"]
    assert not {"run", "prometheus"} & {path.name for path in (tmp_path / "restored" / ".gleaner").iterdir()}


def test_each_service_has_a_colour_on_the_terminal_and_a_file_without_colours(stack):
    found = set(re.findall(rb"(\x1b\[\d+m)(ml-app|mlflow|train-metrics) +\| ", stack.shown))

    assert 3 == len(found) == len({colour for colour, _ in found})
    log = (stack.folder / ".gleaner" / "run" / "logs" / "ml-app.log").read_text()
    assert "model loaded slot=v1 version=1" in log
    assert "\x1b" not in log


def test_prometheus_scrapes_every_service_and_accepts_every_rule(stack):
    url = stack.status()["prometheus"]["address"]
    wanted = dict.fromkeys(("ml-app", "mlflow", "train-metrics", "prometheus"), "up")

    def targets() -> dict[str, str]:
        found = httpx.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
        return {target["labels"]["service"]: target["health"] for target in found}

    assert wait_for(lambda: targets() == wanted), targets()
    rules = [rule for group in httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"] for rule in group["rules"]]
    assert len(rules) > 20
    assert {"ok"} == {rule["health"] for rule in rules if rule["health"] != "unknown"}


def test_the_doctor_finds_no_fault(stack):
    assert wait_for(lambda: "Prometheus sees ml-app, train-metrics, mlflow, prometheus" in examined(stack))
    findings = json.loads(gleaner("doctor", "--json", folder=stack.folder, **stack.environment).stdout)

    assert [] == [finding for finding in findings if finding["verdict"] == "FAIL"]
    told = {finding["what"]: finding["detail"] for finding in findings}
    assert f"pid {stack.process.pid} keeps ml-app, mlflow, train-metrics, alertmanager, prometheus" in told["up"]
    assert "accepts the host localhost:" in told["mlflow hosts"]
    assert "a small file was written, read and deleted" == told["mlflow files"]
    assert "firing: none" in told["rules"]
    assert "queries of panels can be computed" in told["dashboards"]
    assert "held by Gleaner" in told[f"port {stack.environment['GLEANER_PORTS__MLFLOW']}"]
    assert [] == list((stack.folder / ".gleaner" / "mlartifacts").glob("gleaner-doctor-*"))


def examined(stack: Up) -> str:
    return gleaner("doctor", folder=stack.folder, **stack.environment).stdout


CHANGES = {
    "alertmanager": ["/-/reload", "/api/v2/silences", "/api/v2/alerts", "/api/v1/alerts"],
    "prometheus": ["/-/reload", "/-/quit", "/api/v1/write"],
    "mlflow": ["/api/2.0/mlflow/registered-models/create", "/ajax-api/2.0/mlflow/experiments/create"],
    "ml-app": ["/v1/predict", "/v2/predict", "/invocations", "/v2/models/made/infer", "/actuals", "/"],
}


@pytest.mark.parametrize("service", CHANGES)
@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_the_page_of_a_stranger_changes_nothing_in_any_service(stack, service, headers):
    address = stack.status()[service]["address"]
    sent = {"Content-Type": "text/plain", **headers}  # a form of any page can send this type

    statuses = {
        path: httpx.post(address + path, content=b'{"name": "evil"}', headers=sent).status_code
        for path in CHANGES[service]
    }

    assert set(statuses.values()) <= {401, 403, 404, 421}, statuses


def test_alertmanager_takes_a_silence_with_its_password_which_status_finds(stack):
    entry = stack.status()["alertmanager"]
    password = Path(entry["password_file"])
    matcher = {"name": "alertname", "value": "Nothing", "isRegex": False, "isEqual": True}
    times = {"startsAt": "2040-01-01T00:00:00Z", "endsAt": "2040-01-01T00:01:00Z"}
    silence = {"matchers": [matcher], **times, "createdBy": "test", "comment": "test"}

    def send(**more: Any) -> int:
        return httpx.post(f"{entry['address']}/api/v2/silences", json=silence, **more).status_code

    assert (401, 401, 200) == (
        send(),
        send(auth=("gleaner", "wrong")),
        send(auth=("gleaner", password.read_text())),
    )
    assert 0o600 == password.stat().st_mode & 0o777
    assert str(password) in gleaner("status", folder=stack.folder).stdout
    for process in stack.everyone():
        with contextlib.suppress(psutil.Error):
            assert password.read_text() not in " ".join(process.cmdline())


def test_a_second_up_in_the_folder_is_refused(stack):
    second = gleaner("up", folder=stack.folder)

    assert (1, 1) == (second.returncode, len(second.stderr.splitlines()))
    assert f"`gleaner up` runs here already, pid {stack.process.pid}" in second.stderr


def test_status_is_a_table_of_every_service(stack):
    done = gleaner("status", folder=stack.folder)

    assert 0 == done.returncode
    head, *rows, last = done.stdout.splitlines()
    assert ["name", "pid", "state", "health", "restarts", "up", "address"] == head.split()
    assert set(stack.status()) == {row.split()[0] for row in rows}
    assert f"kept by pid {stack.process.pid} for " in last


def test_an_older_experiment_continues_and_an_alias_moved_in_mlflow_is_served(stack):
    entries, store = stack.status(), Store(stack.folder / ".gleaner" / "store")
    told = gleaner("train", "--now", folder=stack.folder)
    assert 0 == told.returncode, told.stderr
    assert wait_for(lambda: store.aliases() == {"champion": 3, "challenger": 4}, 90)
    api = f"{entries['mlflow']['address']}/api/2.0/mlflow/"
    asked = {"name": "made", "alias": "champion"}
    assert wait_for(
        lambda: "3" == httpx.get(f"{api}registered-models/alias", params=asked).json()["model_version"]["version"]
    )

    # A version from before the server began, which hands out its files all the same.
    httpx.post(f"{api}registered-models/alias", json={**asked, "version": "2"}).raise_for_status()

    url = entries["ml-app"]["address"]
    served = lambda: httpx.post(f"{url}/v1/predict", json=ROUTE).headers["X-Model-Version"]  # noqa: E731
    assert wait_for(lambda: served() == "2")
    httpx.post(f"{api}registered-models/alias", json={**asked, "version": "1"}).raise_for_status()
    assert wait_for(lambda: served() == "1")


def test_the_api_restarts_each_time_it_is_killed(stack):
    url = stack.status()["ml-app"]["address"]
    for _ in range(5):
        pid = stack.status()["ml-app"]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda pid=pid: stack.status()["ml-app"]["pid"] not in {0, pid})
        with httpx.Client(transport=httpx.HTTPTransport(retries=0)) as client:

            def is_ready(client: httpx.Client = client) -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get(f"{url}/readyz").status_code == 200
                return False

            assert wait_for(is_ready)

    assert wait_for(lambda: stack.status()["ml-app"]["health"] == "ok")
    assert 5 == stack.status()["ml-app"]["restarts"]
    assert {"prediction": [NUMBER]} == httpx.post(f"{url}/v1/predict", json=ROUTE).json()


def test_a_killed_up_leaves_no_process_behind(stack):
    everyone = stack.everyone()
    names = " ".join(" ".join(process.cmdline()) for process in everyone)
    assert all(name in names for name in ("gleaner.running.guard", "uvicorn", "serve", "--resident", "prometheus"))
    stack.process.kill()

    assert all_end(everyone)
    assert 1 == gleaner("status", folder=stack.folder).returncode
    assert "nothing runs here" in gleaner("down", folder=stack.folder).stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[Up]:
    """Run the stack in a folder with only settings and data.

    One port is taken, and some programs are stand-ins.
    """
    folder = tmp_path_factory.mktemp("alone")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "other.csv")
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (("grafana-server", GRAFANA), ("prometheus", CRASHING)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}"
    ports = free_ports()
    with (
        socket.create_server(("127.0.0.1", int(ports["GLEANER_PORTS__ML_APP"]))),
        up(folder, "other.csv", "--challenger", "none", "--auto-ports", PATH=path, **ports) as running,
    ):
        assert wait_for(lambda: "ready in" in running.text or running.process.poll() is not None, 300)
        assert running.process.poll() is None, running.text
        yield running


def test_without_a_version_it_trains_with_the_given_options_and_logs_the_progress(alone):
    entries = alone.status()

    assert {"champion": 1} == Store(alone.folder / ".gleaner" / "store").aliases()
    assert "candidate validated candidate=decision_tree" in alone.text
    response = httpx.post(f"{entries['ml-app']['address']}/v1/predict", json=ROUTE)
    assert {"prediction": [NUMBER]} == response.json()


def test_a_taken_port_is_moved_and_every_rendered_file_has_the_new_port(alone):
    taken, moved = alone.environment["GLEANER_PORTS__ML_APP"], str(alone.status()["ml-app"]["ports"]["ports.ml_app"])

    assert moved != taken
    assert f"ports.ml_app is {moved} this time, because {taken} is taken by pid {os.getpid()} (" in alone.text
    rendered = (alone.folder / ".gleaner/run/monitoring/prometheus/prometheus.yml").read_text()
    assert alone.environment["GLEANER_PORTS__ML_APP_METRICS"] in rendered
    assert alone.environment["GLEANER_PORTS__MLFLOW"] in rendered


def test_missing_programs_are_named_in_one_line_with_the_way_to_install_them(alone):
    (line,) = [line for line in alone.text.splitlines() if "not installed" in line]

    assert "not installed: alertmanager (predictions work without it). To install: " in line


def test_a_service_that_always_crashes_is_given_up_and_the_others_stay(alone):
    entries = alone.status()

    assert ("given up", "", 0) == tuple(entries["prometheus"][key] for key in ("state", "health", "pid"))
    assert re.search(r"prometheus is given up: exited with code 3, 12 times in a row: no such luck; ", alone.text)
    assert {"ok"} == {entry["health"] for name, entry in entries.items() if name != "prometheus"}
    assert 3 == gleaner("status", folder=alone.folder).returncode
    assert re.search(r"prometheus +\S+ +given up, see above", alone.text)


def test_grafana_reads_the_rendered_files(alone):
    assert "ok" == alone.status()["grafana"]["health"]


def test_ctrl_c_stops_the_whole_stack_and_a_training_by_hand_continues_its_registry(alone):
    everyone = alone.everyone()
    os.write(alone.terminal, b"\x03")

    assert 3 == alone.process.wait(timeout=60)  # something was given up
    assert all_end(everyone)
    assert wait_for(lambda: "stopped; given up before: prometheus" in alone.text)
    assert "Traceback" not in alone.text
    # A training without a server continues the experiment that the server recorded.
    done = gleaner("train", "other.csv", "--metrics-port", 0, folder=alone.folder)
    assert 0 == done.returncode, done.stderr
    assert {"champion": 2, "challenger": 3} == Store(alone.folder / ".gleaner" / "store").aliases()


def test_a_taken_port_is_refused_with_its_holder_before_anything_starts(project):
    ports = free_ports()
    with socket.create_server(("127.0.0.1", int(ports["GLEANER_PORTS__MLFLOW"]))):
        done = gleaner("up", folder=project, **ports)

    assert 1 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert f"port {ports['GLEANER_PORTS__MLFLOW']} on 127.0.0.1 is taken by pid {os.getpid()}" in done.stderr
    assert "set ports.mlflow" in done.stderr
    assert not (project / ".gleaner" / "run" / "logs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"), [(["nowhere.csv"], "nowhere.csv: no such file"), (["--champion", "tree"], "champion")]
)
def test_a_training_that_cannot_begin_is_refused_before_anything_starts(tmp_path, arguments, said):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)

    done = gleaner("up", *arguments, folder=tmp_path, **free_ports())

    assert 1 == done.returncode
    assert said in done.stderr
    assert 1 == len(done.stderr.splitlines())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"GLEANER_API_KEYS_FILE": "none.json"}, "none.json: no such file; `gleaner keys add NAME`"),
        ({"GLEANER_SERVING__TLS_CERTIFICATE": "a.pem", "GLEANER_SERVING__TLS_KEY": "b.pem"}, "a.pem: cannot be read"),
    ],
)
def test_files_that_the_service_needs_are_looked_at_before_anything_starts(project, variables, said):
    done = gleaner("up", folder=project, **free_ports(), **variables)

    assert 1 == done.returncode
    assert said in done.stderr
    assert 1 == len(done.stderr.splitlines())


def test_without_a_stack_status_exits_1_and_down_exits_0(project):
    status, as_json = gleaner("status", folder=project), gleaner("status", "--json", folder=project)
    down = gleaner("down", folder=project)

    assert (1, 1, 0) == (status.returncode, as_json.returncode, down.returncode)
    assert "`gleaner up` starts the stack" in status.stderr
    assert json.loads(as_json.stdout) is None
    assert "nothing runs here\n" == down.stdout
