"""The stack: its services, ports, and messages about both."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from projects import SETTINGS

from gleaner.errors import CannotListen, Refused
from gleaner.running.stack import Stack
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings

ALL = ["ml-app", "train-metrics", "mlflow", "prometheus", "alertmanager", "grafana"]


def settings_in(folder: Path, **ports: int) -> Settings:
    """Settings whose ports are any free ones, except those given."""
    (folder / "gleaner.toml").write_text(SETTINGS)
    names = ("ml_app", "ml_app_metrics", "train_metrics", "mlflow", "prometheus", "alertmanager", "grafana")
    return load_settings(folder / "gleaner.toml", {"ports": {**dict.fromkeys(names, 0), **ports}})


def everything(name: str) -> str | None:
    return f"/opt/{name}"


def nothing(name: str) -> str | None:
    return None


@pytest.fixture
def held():
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_without_other_programs_the_stack_is_the_api_the_trainer_and_mlflow(tmp_path):
    stack = Stack(settings_in(tmp_path), find=nothing)

    assert ["ml-app", "train-metrics", "mlflow"] == stack.names


@pytest.mark.parametrize(
    ("there", "missing", "hint"),
    [
        (
            ("apt-get",),
            "prometheus, alertmanager, grafana (predictions work without them)",
            "apt-get install --no-install-recommends prometheus prometheus-alertmanager, "
            "https://grafana.com/grafana/download",
        ),
        (
            ("brew", "prometheus"),
            "alertmanager, grafana (predictions work without them)",
            "brew install alertmanager grafana",
        ),
        (
            ("alertmanager", "grafana"),
            "prometheus (predictions work without it)",
            "https://prometheus.io/download",
        ),
    ],
)
def test_missing_programs_are_named_in_one_line_with_the_way_to_install_them_here(
    tmp_path, monkeypatch, there, missing, hint
):
    monkeypatch.setattr("gleaner.running.stack.SYSTEMD", tmp_path / "none")
    stack = Stack(settings_in(tmp_path), find=lambda name: f"/opt/{name}" if name in there else None)

    assert f"not installed: {missing}. To install: {hint}" == stack.explain_missing()


def test_nothing_is_missing_under_debians_names(tmp_path):
    there = ("prometheus", "prometheus-alertmanager", "grafana-server")
    stack = Stack(settings_in(tmp_path), find=lambda name: f"/opt/{name}" if name in there else None)

    assert "" == stack.explain_missing()


def test_where_packages_start_services_the_hint_disables_those(tmp_path, monkeypatch):
    stack = Stack(settings_in(tmp_path), find=lambda name: f"/opt/{name}" if name == "apt-get" else None)
    packages = "prometheus prometheus-alertmanager"
    monkeypatch.setattr("gleaner.running.stack.SYSTEMD", tmp_path)

    assert f"apt-get install --no-install-recommends {packages} && systemctl disable --now {packages}, https" in (
        stack.explain_missing()
    )
    monkeypatch.setattr("gleaner.running.stack.SYSTEMD", tmp_path / "none")
    assert "systemctl" not in stack.explain_missing()


def test_with_all_programs_the_stack_is_complete(tmp_path):
    stack = Stack(settings_in(tmp_path), find=everything)

    assert ALL == stack.names
    assert "" == stack.explain_missing()


def test_with_a_tracking_server_elsewhere_no_mlflow_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEANER_TRACKING__URI", "http://mlflow.example:5000")
    stack = Stack(settings_in(tmp_path), find=nothing)
    stack.place(move=False)
    programs = {program.name: program for program in stack.programs(tmp_path, trained=False)}

    assert ["ml-app", "train-metrics"] == list(programs)
    assert "http://mlflow.example:5000" == programs["train-metrics"].environment["GLEANER_TRACKING__URI"]
    assert ("ml-app",) == programs["train-metrics"].after


def test_every_port_can_be_any_free_one(tmp_path):
    stack = Stack(settings_in(tmp_path), find=everything)

    assert [] == stack.place(move=False)
    ports = stack.settings.ports.model_dump().values()
    assert 7 == len(set(ports) - {0})


def test_a_taken_port_is_refused_with_its_setting_and_its_holder(tmp_path, held):
    stack = Stack(settings_in(tmp_path, mlflow=held), find=nothing)

    with pytest.raises(Refused) as refused:
        stack.place(move=False)

    assert f"port {held} on 127.0.0.1 is taken by pid {os.getpid()} (" in str(refused.value)
    assert "set ports.mlflow in gleaner.toml (or GLEANER_PORTS__MLFLOW)" in str(refused.value)
    assert "gleaner up --auto-ports" in str(refused.value)
    assert 1 == len(str(refused.value).splitlines())


def test_two_taken_ports_are_refused_together(tmp_path, held):
    with socket.create_server(("127.0.0.1", 0)) as other:
        also = other.getsockname()[1]
        with pytest.raises(Refused) as refused:
            Stack(settings_in(tmp_path, ml_app=held, prometheus=also), find=everything).place(move=False)

    first, second = str(refused.value).splitlines()
    assert f"port {held}" in first
    assert "ports.ml_app" in first
    assert second.startswith(f"error: port {also}")
    assert "ports.prometheus" in second


def test_the_port_of_a_service_that_does_not_start_may_be_taken(tmp_path, held):
    assert [] == Stack(settings_in(tmp_path, prometheus=held), find=nothing).place(move=False)


def test_one_port_in_two_settings_is_refused_naming_both(tmp_path):
    stack = Stack(settings_in(tmp_path, ml_app=5102, mlflow=5102), find=nothing)

    with pytest.raises(Refused, match=r"ports\.ml_app and ports\.mlflow are both 5102; set ports\.mlflow in"):
        stack.place(move=False)


def test_taken_ports_move_to_the_next_free_ones_if_asked(tmp_path, held):
    stack = Stack(settings_in(tmp_path, ml_app=held, train_metrics=held), find=nothing)

    (first, second) = stack.place(move=True)

    ports = stack.settings.ports
    assert held not in {ports.ml_app, ports.train_metrics}
    assert ports.ml_app != ports.train_metrics
    assert f"ports.ml_app is {ports.ml_app} this time, because {held} is taken by pid {os.getpid()} (" in first
    assert second.startswith(f"ports.train_metrics is {ports.train_metrics} this time, because {held} is taken by ")


def test_every_process_gets_the_moved_ports_that_it_needs(tmp_path):
    stack = Stack(settings_in(tmp_path), find=everything)
    stack.place(move=False)
    programs = {program.name: program for program in stack.programs(tmp_path / "run", trained=False)}
    ports = stack.settings.ports
    url = f"http://127.0.0.1:{ports.mlflow}"

    assert ["ml-app", "mlflow", "train-metrics", "alertmanager", "prometheus", "grafana"] == list(programs)
    assert {url} == {programs[name].environment["GLEANER_TRACKING__URI"] for name in ("ml-app", "train-metrics")}
    assert f"--port {ports.ml_app} --metrics-port {ports.ml_app_metrics}" in " ".join(programs["ml-app"].command)
    assert f"--port={ports.mlflow}" in programs["mlflow"].command
    assert f"--web.listen-address=127.0.0.1:{ports.prometheus}" in programs["prometheus"].command
    assert ("mlflow",) == programs["train-metrics"].after


def test_prometheus_and_alertmanager_have_different_urls_for_live_and_ready(tmp_path):
    stack = Stack(settings_in(tmp_path), find=everything)
    stack.place(move=False)

    for program in stack.programs(tmp_path / "run"):
        if program.name in {"prometheus", "alertmanager"}:
            assert (f"{program.address}/-/healthy", f"{program.address}/-/ready") == (program.live, program.ready)


def test_the_trainer_waits_for_mlflow_only_if_it_trains_at_once(tmp_path):
    stack = Stack(settings_in(tmp_path), find=nothing)
    stack.place(move=False)

    after = [program.after for program in stack.programs(tmp_path, trained=True) if program.name == "train-metrics"]

    assert [("ml-app",)] == after


def test_services_without_a_password_listen_on_loopback_only(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEANER_SERVING__HOST", "0.0.0.0")
    monkeypatch.setenv("GLEANER_SERVING__INSECURE", "true")
    stack = Stack(settings_in(tmp_path), find=everything)
    stack.place(move=False)

    for program in stack.programs(tmp_path):
        assert not any("0.0.0.0" in part for part in program.command)
        assert program.address.startswith("http://127.0.0.1:")


def test_grafanas_password_is_random_and_readable_by_its_owner_only(tmp_path):
    passwords = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        stack = Stack(settings_in(tmp_path / name), find=everything)
        stack.place(move=False)
        for _ in range(2):  # the second start keeps it
            (grafana,) = [program for program in stack.programs(tmp_path / name) if program.name == "grafana"]
            file = tmp_path / name / ".gleaner" / "grafana" / "password"
            passwords.append(file.read_text())
        assert 0o600 == stat.S_IMODE(file.stat().st_mode)
        ini = (tmp_path / name / "grafana.ini").read_text()
        assert f"admin_password = $__file{{{file}}}" in ini
        assert passwords[-1] not in ini + " ".join(grafana.command)
        assert f"http_addr = 127.0.0.1\nhttp_port = {stack.settings.ports.grafana}\n" in ini

    assert passwords[0] == passwords[1] != passwords[2] == passwords[3]
    assert min(map(len, passwords)) >= 32


@pytest.mark.parametrize("port", [0, 5001])
def test_an_address_of_another_machine_is_refused_whatever_the_port(tmp_path, monkeypatch, port):
    monkeypatch.setenv("GLEANER_SERVING__HOST", "192.0.2.1")

    with pytest.raises(CannotListen, match=rf"cannot listen on 192\.0\.2\.1:{port}: .*; set serving\.host"):
        Stack(settings_in(tmp_path, ml_app=port), find=nothing).place(move=True)
