"""All of it as it is shipped: `gleaner up`, seen and ended from other terminals, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import NUMBER, ROUTE, SETTINGS, gleaner, tool, wait_for, write_made_table

from gleaner.store import Store

PORTS = ("ML_APP", "ML_APP_METRICS", "TRAIN_METRICS", "MLFLOW", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")

# What `up` needs of Grafana: it takes the configuration, and answers. Grafana itself is not at hand.
GRAFANA = f"""#!{sys.executable}
import configparser, http.server, pathlib, sys
(config,) = [part.removeprefix("--config=") for part in sys.argv if part.startswith("--config=")]
ini = configparser.ConfigParser(interpolation=None)
ini.read(config)
assert "gleaner.yml" in [p.name for p in pathlib.Path(ini["paths"]["provisioning"], "dashboards").iterdir()]
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer((ini["server"]["http_addr"], int(ini["server"]["http_port"])), Answer).serve_forever()
"""
CRASHING = "#!/bin/sh\necho no such luck >&2\nexit 3\n"


def free_ports() -> dict[str, str]:
    """The variables that give `up` ports that are free."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return {f"GLEANER_PORTS__{name}": str(s.getsockname()[1]) for name, s in zip(PORTS, sockets, strict=True)}


@dataclass
class Up:
    """A running `gleaner up` on a terminal of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    terminal: int
    environment: dict[str, str]
    shown: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """What the terminal shows, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.shown.decode()).replace("\r\n", "\n")

    def status(self) -> dict[str, dict[str, Any]]:
        done = gleaner("status", "--json", folder=self.folder)
        return {entry["name"]: entry for entry in json.loads(done.stdout)["entries"]}

    def everyone(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(self.terminal, 1 << 16):
                self.shown += piece


@contextlib.contextmanager
def up(folder: Path, *arguments: str, **environment: str) -> Iterator[Up]:
    """`gleaner up` until the block ends, as a person has it: on a terminal that Ctrl-C is typed into."""
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "gleaner", "up", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | environment, preexec_fn=lambda: os.login_tty(other)
    )
    os.close(other)
    running = Up(folder, process, terminal, environment)
    reader = threading.Thread(target=running.read, daemon=True)
    reader.start()
    try:
        yield running
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        os.close(terminal)


def has_ended(process: psutil.Process) -> bool:
    """Also where the first process of a container does not ask how its adopted children ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Up]:
    """All of it over a folder in which `gleaner train` was run by hand before."""
    tool("prometheus")
    tool("prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("stack")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    done = gleaner("train", "--metrics-port", 0, folder=folder)
    assert 0 == done.returncode, done.stderr
    with up(folder, GLEANER_ALERTS__SCRAPE_SECONDS="1", **free_ports()) as running:
        assert wait_for(lambda: "ready in" in running.text or running.process.poll() is not None, 150)
        assert running.process.poll() is None, running.text
        yield running


def test_with_a_version_it_trains_none_and_all_is_there(stack):
    entries = stack.status()

    assert "not training: version 1, trained on made.csv, is there" in stack.text
    assert {"ml-app", "mlflow", "train-metrics", "alertmanager", "prometheus"} <= set(entries)
    assert {("running", "ok", 0)} == {(e["state"], e["health"], e["restarts"]) for e in entries.values()}
    # The API waits for nobody.
    assert stack.text.index("ml-app is ready") < stack.text.index("mlflow is ready")
    for entry in entries.values():
        assert re.search(rf"{entry['name']} +{re.escape(entry['address'])} ", stack.text)
        assert {str(port) for port in entry["ports"].values()} <= set(stack.environment.values())


def test_what_checks_it_finds_it_wherever_it_listens(stack):
    done = gleaner("check", "--data", json.dumps(ROUTE), "--host", "127.0.0.1", folder=stack.folder)

    assert 0 == done.returncode, done.stderr
    assert f":{stack.status()['ml-app']['ports']['ports.ml_app']}/v1/predict" in done.stderr
    assert str(NUMBER) in done.stderr


def test_the_number_is_served_to_every_digit(stack):
    url = stack.status()["ml-app"]["address"]

    assert {"prediction": [NUMBER]} == httpx.post(f"{url}/v1/predict", json=ROUTE).json()


def test_each_process_has_a_colour_on_a_terminal_and_a_file_without(stack):
    found = set(re.findall(rb"(\x1b\[\d+m)(ml-app|mlflow|train-metrics) +\| ", stack.shown))

    assert 3 == len(found) == len({colour for colour, _ in found})
    log = (stack.folder / ".gleaner" / "run" / "logs" / "ml-app.log").read_text()
    assert "model loaded slot=v1 version=1" in log
    assert "\x1b" not in log


def test_prometheus_sees_every_process_and_takes_every_rule(stack):
    url = stack.status()["prometheus"]["address"]
    wanted = dict.fromkeys(("ml-app", "mlflow", "train-metrics", "prometheus"), "up")

    def targets() -> dict[str, str]:
        found = httpx.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
        return {target["labels"]["service"]: target["health"] for target in found}

    assert wait_for(lambda: targets() == wanted, 30), targets()
    rules = [rule for group in httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"] for rule in group["rules"]]
    assert len(rules) > 20
    assert {"ok"} == {rule["health"] for rule in rules if rule["health"] != "unknown"}


def test_the_doctor_finds_all_of_it_well(stack):
    assert wait_for(lambda: "Prometheus sees ml-app, train-metrics, prometheus, mlflow" in examined(stack), 30)
    findings = json.loads(gleaner("doctor", "--json", folder=stack.folder, **stack.environment).stdout)

    assert [] == [finding for finding in findings if finding["verdict"] == "FAIL"]
    told = {finding["what"]: finding["detail"] for finding in findings}
    assert f"pid {stack.process.pid} keeps ml-app, mlflow, train-metrics, alertmanager, prometheus" in told["up"]
    assert "answers to localhost:" in told["mlflow hosts"]
    assert "a small file was written, read and deleted" == told["mlflow files"]
    assert "firing: none" in told["rules"]
    assert "queries of panels can be computed" in told["dashboards"]
    assert "held by Gleaner" in told[f"port {stack.environment['GLEANER_PORTS__MLFLOW']}"]
    assert [] == list((stack.folder / ".gleaner" / "mlartifacts").glob("gleaner-doctor-*"))


def examined(stack: Up) -> str:
    return gleaner("doctor", folder=stack.folder, **stack.environment).stdout


def test_a_second_one_in_the_folder_is_refused_and_a_second_trainer_too(stack):
    second = gleaner("up", folder=stack.folder)

    assert (1, 1) == (second.returncode, len(second.stderr.splitlines()))
    assert f"`gleaner up` runs here already, pid {stack.process.pid}" in second.stderr


def test_status_is_a_table_with_every_process(stack):
    done = gleaner("status", folder=stack.folder)

    assert 0 == done.returncode
    head, *rows, last = done.stdout.splitlines()
    assert ["name", "pid", "state", "health", "restarts", "up", "address"] == head.split()
    assert set(stack.status()) == {row.split()[0] for row in rows}
    assert f"kept by pid {stack.process.pid} for " in last


def test_an_experiment_of_before_goes_on_and_an_alias_moved_in_mlflow_is_served(stack):
    entries, store = stack.status(), Store(stack.folder / ".gleaner" / "store")
    told = gleaner("train", "--now", folder=stack.folder)
    assert 0 == told.returncode, told.stderr
    assert wait_for(lambda: store.aliases() == {"champion": 3, "challenger": 4}, 90)
    api = f"{entries['mlflow']['address']}/api/2.0/mlflow/"
    asked = {"name": "made", "alias": "champion"}
    assert wait_for(
        lambda: "3" == httpx.get(f"{api}registered-models/alias", params=asked).json()["model_version"]["version"]
    )

    # A version whose files were kept before there was a server; it hands them out all the same.
    httpx.post(f"{api}registered-models/alias", json={**asked, "version": "2"}).raise_for_status()

    url = entries["ml-app"]["address"]
    served = lambda: httpx.post(f"{url}/v1/predict", json=ROUTE).headers["X-Model-Version"]  # noqa: E731
    assert wait_for(lambda: served() == "2", 10)
    httpx.post(f"{api}registered-models/alias", json={**asked, "version": "1"}).raise_for_status()
    assert wait_for(lambda: served() == "1", 10)


def test_the_api_is_back_each_time_it_is_killed(stack):
    url = stack.status()["ml-app"]["address"]
    for _ in range(5):
        pid = stack.status()["ml-app"]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda pid=pid: stack.status()["ml-app"]["pid"] not in {0, pid}, 20)
        with httpx.Client(transport=httpx.HTTPTransport(retries=0)) as client:

            def is_ready(client: httpx.Client = client) -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get(f"{url}/readyz").status_code == 200
                return False

            assert wait_for(is_ready, 20)

    assert wait_for(lambda: stack.status()["ml-app"]["health"] == "ok", 20)
    assert 5 == stack.status()["ml-app"]["restarts"]
    assert {"prediction": [NUMBER]} == httpx.post(f"{url}/v1/predict", json=ROUTE).json()


def test_a_killed_supervisor_leaves_nobody_behind(stack):
    everyone = stack.everyone()
    names = " ".join(" ".join(process.cmdline()) for process in everyone)
    assert all(name in names for name in ("gleaner.guard", "uvicorn", "serve", "--resident", "prometheus"))
    stack.process.kill()

    assert wait_for(lambda: all(map(has_ended, everyone)), 3)
    assert 1 == gleaner("status", folder=stack.folder).returncode
    assert "nothing runs here" in gleaner("down", folder=stack.folder).stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[Up]:
    """All of it over a folder with settings and data alone, one port of which is taken; some programs are others."""
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
        assert wait_for(lambda: "ready in" in running.text or running.process.poll() is not None, 150)
        assert running.process.poll() is None, running.text
        yield running


def test_from_nothing_it_trains_as_it_was_told_and_says_how_far_it_is(alone):
    entries = alone.status()

    assert {"champion": 1} == Store(alone.folder / ".gleaner" / "store").aliases()
    assert "candidate validated candidate=decision_tree" in alone.text
    answer = httpx.post(f"{entries['ml-app']['address']}/v1/predict", json=ROUTE)
    assert {"prediction": [NUMBER]} == answer.json()


def test_a_taken_port_is_moved_for_the_run_and_every_file_follows(alone):
    taken, moved = alone.environment["GLEANER_PORTS__ML_APP"], str(alone.status()["ml-app"]["ports"]["ports.ml_app"])

    assert moved != taken
    assert f"ports.ml_app is {moved} for this run, since {taken} is taken by pid {os.getpid()} (" in alone.text
    rendered = (alone.folder / ".gleaner/run/monitoring/prometheus/prometheus.yml").read_text()
    assert alone.environment["GLEANER_PORTS__ML_APP_METRICS"] in rendered
    assert alone.environment["GLEANER_PORTS__MLFLOW"] in rendered


def test_what_is_not_here_is_said_in_one_line_with_how_to_get_it(alone):
    (line,) = [line for line in alone.text.splitlines() if "not here" in line]

    assert "predictions do without: alertmanager; to have them: " in line


def test_one_that_always_crashes_is_given_up_and_the_others_stay(alone):
    entries = alone.status()

    assert ("given up", "", 0) == tuple(entries["prometheus"][key] for key in ("state", "health", "pid"))
    assert re.search(r"prometheus is given up: ended with exit code 3, 12 times in a row: no such luck; ", alone.text)
    assert {"ok"} == {entry["health"] for name, entry in entries.items() if name != "prometheus"}
    assert 3 == gleaner("status", folder=alone.folder).returncode
    assert re.search(r"prometheus +\S+ +given up, see above", alone.text)


def test_grafana_is_given_what_was_rendered(alone):
    assert "ok" == alone.status()["grafana"]["health"]


def test_ctrl_c_ends_all_of_it_in_order_and_by_hand_it_goes_on(alone):
    everyone = alone.everyone()
    os.write(alone.terminal, b"\x03")

    assert 3 == alone.process.wait(timeout=60)  # something was given up
    assert wait_for(lambda: all(map(has_ended, everyone)), 3)
    assert wait_for(lambda: "stopped; given up before: prometheus" in alone.text, 5)
    assert "Traceback" not in alone.text
    # What was recorded through the server is gone on with where there is none.
    done = gleaner("train", "other.csv", "--metrics-port", 0, folder=alone.folder)
    assert 0 == done.returncode, done.stderr
    assert {"champion": 2, "challenger": 3} == Store(alone.folder / ".gleaner" / "store").aliases()


def test_a_taken_port_is_told_with_its_holder_before_anything_is_started(project):
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
def test_what_cannot_be_trained_is_said_before_anything_is_started(tmp_path, arguments, said):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)

    done = gleaner("up", *arguments, folder=tmp_path, **free_ports())

    assert 1 == done.returncode
    assert said in done.stderr
    assert 1 == len(done.stderr.splitlines())


def test_where_nothing_runs_status_says_so_and_down_has_nothing_to_do(project):
    status, as_json = gleaner("status", folder=project), gleaner("status", "--json", folder=project)
    down = gleaner("down", folder=project)

    assert (1, 1, 0) == (status.returncode, as_json.returncode, down.returncode)
    assert "`gleaner up` starts it" in status.stderr
    assert json.loads(as_json.stdout) is None
    assert "nothing runs here\n" == down.stdout
