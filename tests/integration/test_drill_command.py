"""Drills as they are shipped, against Debian's Prometheus and Alertmanager: the alert comes, and goes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from conftest import answering, gleaner, tool, wait_for

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def tools():
    tool("prometheus")
    tool("prometheus-alertmanager")


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.name != ".lock"}


def left_of_drills(scratch: Path) -> list[str]:
    """Folders and processes that a drill has left."""
    folders = [str(path) for path in scratch.glob("gleaner-drill-*")]
    # All that a drill starts has its environment.
    processes = psutil.process_iter(["cmdline", "environ", "status"])
    left = [p.info for p in processes if (p.info["environ"] or {}).get("TMPDIR") == str(scratch)]
    return [*folders, *(" ".join(info["cmdline"] or []) for info in left if info["status"] != psutil.STATUS_ZOMBIE)]


@pytest.mark.parametrize(
    ("alert", "summary"),
    [
        ("HighErrorRate", r"[\d.]+% of requests to ml-app fail\."),
        ("LowValidationAccuracy", r"[\d.]+% of out-of-fold predictions are near enough\."),
        ("TargetDown", r"ml-app does not answer Prometheus\."),
    ],
)
def test_the_alert_fires_on_its_fault_and_ends_with_it(trained, tmp_path, alert, summary):
    before, pages = tree(trained), []

    def on_call(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        pages.append(body)
        return 200, b""

    with answering(on_call) as port:
        real = {"GLEANER_ALERTS__WEBHOOK": f"http://127.0.0.1:{port}/hook", "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "gleaner", "drill", alert, "--json"],
            cwd=trained,
            env=os.environ | real,
            capture_output=True,
            text=True,
            timeout=380,
            check=False,
        )

    assert 0 == done.returncode, done.stderr
    played = json.loads(done.stdout)
    assert alert == played["alert"]
    assert re.fullmatch(summary, played["summary"])
    assert 0 < played["fired_seconds"] < 180
    assert 0 < played["resolved_seconds"] < 180
    assert f"{alert} is at Alertmanager after" in done.stderr
    assert before == tree(trained)
    assert [] == pages  # whom the settings name is told of real alerts only
    assert [] == left_of_drills(tmp_path)


def test_a_drill_whose_alert_does_not_come_fails_and_shows_the_logs(trained, tmp_path):
    # Whatever it is that keeps it away: here, too little time.
    done = gleaner("drill", "NoModel", "--limit", "2", folder=trained, TMPDIR=str(tmp_path))

    assert 1 == done.returncode
    assert "error: NoModel did not fire within 2 s" == done.stderr.splitlines()[-1]
    assert "ml-app: " in done.stderr
    assert [] == left_of_drills(tmp_path)


def test_what_fires_already_is_no_drill(trained, tmp_path):
    done = gleaner(
        "drill", "HighMemoryUsage", folder=trained, TMPDIR=str(tmp_path), GLEANER_ALERTS__MEMORY_BYTES="1000"
    )

    assert 1 == done.returncode
    assert "HighMemoryUsage fires already" in done.stderr
    assert [] == left_of_drills(tmp_path)


def test_ctrl_c_puts_everything_back(trained, tmp_path):
    before = tree(trained)
    command = [sys.executable, "-m", "gleaner", "drill", "HighErrorRate"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=trained, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while "now the fault" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        assert len(left_of_drills(tmp_path)) > 5
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)

    assert (130, "interrupted") == (process.returncode, said.strip())
    assert wait_for(lambda: left_of_drills(tmp_path) == [], 5), left_of_drills(tmp_path)
    assert before == tree(trained)
