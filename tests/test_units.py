"""The unit of systemd in deploy/systemd, and its page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from projects import ROOT
from started import tool

from gleaner.cli.main import gleaner
from gleaner.settings.sections import Serving

UNIT = ROOT / "deploy" / "systemd" / "gleaner.service"
LINES = re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE)
PAGE = (ROOT / "docs" / "systemd.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["ml-app"]


def value(key: str) -> str:
    (found,) = [value for name, value in LINES if name == key]
    return found


def lint(unit: Path) -> subprocess.CompletedProcess[str]:
    tool("systemd-analyze")
    command = [ROOT / "tests" / "lint_units.sh", unit]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_knows_every_line_and_rates_the_exposure_as_low():
    done = lint(UNIT)

    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "instead", "reason"),
    [
        ("TasksMax=512", "TaskMax=512", "Unknown key 'TaskMax'"),
        ("MemoryMax=1G", "MemoryMax=much", "Invalid memory limit 'much'"),
        ("/.venv/bin/gleaner", "/.venv/bin/gleaners", "is not executable"),
        ("NoNewPrivileges=yes", "NoNewPrivileges=no", "NoNewPrivileges="),
        ("SystemCallFilter=~@privileged", "SystemCallFilter=@privileged", "Overall exposure level"),
    ],
)
def test_a_wrong_line_is_found(tmp_path, line, instead, reason):
    copy = tmp_path / UNIT.name
    assert line in UNIT.read_text()
    copy.write_text(UNIT.read_text().replace(line, instead))

    done = lint(copy)

    assert 0 != done.returncode
    assert reason in done.stdout


def test_the_unit_runs_a_known_command():
    program, *words = value("ExecStart").split()

    assert "/opt/gleaner/.venv/bin/gleaner" == program
    assert ["--config", "/etc/gleaner/gleaner.toml", "serve"] == words
    assert "serve" in gleaner.list_commands(None)


def test_a_stop_may_take_as_long_as_the_service_drains():
    serving = Serving()

    assert int(value("TimeoutStopSec")) >= serving.unready_seconds + serving.drain_seconds + 5


def test_the_limits_are_those_of_the_container():
    assert COMPOSE["mem_limit"] == value("MemoryMax").lower()
    assert COMPOSE["pids_limit"] == int(value("TasksMax"))


def test_a_self_test_that_is_killed_for_its_memory_does_not_stop_the_service():
    assert "continue" == value("OOMPolicy")


def test_the_page_has_the_units_user_and_paths():
    user, state = value("User"), f"/var/lib/{value('StateDirectory')}"

    assert f"useradd --system --home-dir {state} --shell /usr/sbin/nologin {user}\n" in PAGE
    assert f'state = "{state}"' in PAGE
    assert f"/opt/gleaner/{UNIT.relative_to(ROOT)} /etc/systemd/system/{UNIT.name}" in PAGE
    for command in re.findall(rf"^sudo -u {user} (.*)", PAGE, re.MULTILINE):
        assert command.startswith(value("ExecStart").removesuffix("serve")), command
    for path in re.findall(r"/opt/gleaner/((?!\.venv)\S+)", PAGE):
        assert (ROOT / path).exists(), path
