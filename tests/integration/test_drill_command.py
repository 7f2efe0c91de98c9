"""Drills with a real Prometheus and Alertmanager: the alert fires, then resolves."""

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
from started import gleaner, responding, tool, wait_for

from gleaner.drills.play import DRILLS

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(autouse=True)
def tools():
    tool("prometheus")
    tool("prometheus-alertmanager")


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.name != ".lock"}


def left_of_drills(scratch: Path) -> list[str]:
    """Folders and processes that drills left behind."""
    folders = [str(path) for path in scratch.glob("gleaner-drill-*")]
    # Every process that a drill starts inherits its environment.
    processes = psutil.process_iter(["cmdline", "environ", "status"])
    left = [p.info for p in processes if (p.info["environ"] or {}).get("TMPDIR") == str(scratch)]
    return [*folders, *(" ".join(info["cmdline"] or []) for info in left if info["status"] != psutil.STATUS_ZOMBIE)]


# The summary of each alert, as its injected fault makes it.
SUMMARIES = {
    "HighErrorRate": r"[\d.]+% of requests to ml-app fail\.",
    "ErrorBudgetBurn": r"ml-app uses up its error budget [\d.]+ times too fast\.",
    "SlowPredictions": r"Predictions of slot v1 take up to [\d.]+ s\.",
    "NoModel": r"ml-app is up but has no model in slot v1\.",
    "ModelLoadFailing": r"ml-app refuses the version that the alias champion points at\.",
    "RegistryNotFollowed": r"ml-app has not read the registry for \d+ s\.",
    "TargetDown": r"ml-app does not respond to Prometheus\.",
    "RestartLoop": r"ml-app restarted \d+ times in 45s\.",
    "HighMemoryUsage": r"ml-app uses [\d.]+[MG]B of memory\.",
    "HighCPUUsage": r"ml-app uses [\d.]+% of its CPUs\.",
    "HighTrainingLoss": r"The training loss is [\d.]+\.",
    "LowValidationAccuracy": r"[\d.]+% of out-of-fold predictions are close enough\.",
    "TrainingStale": r"The last successful training was [\d.]+ days ago\.",
}

# Thirteen drills take over five minutes on idle cores, so `make test` plays two: of the service and of processes.
# `make reliability` plays them all.
QUICK = {"HighErrorRate", "TargetDown"}
PLAYED = [alert if alert in QUICK else pytest.param(alert, marks=pytest.mark.slow) for alert in SUMMARIES]


def test_every_drill_has_its_summary():
    assert set(DRILLS) == set(SUMMARIES)


@pytest.mark.parametrize("alert", PLAYED)
def test_the_alert_fires_and_resolves_with_its_injected_fault(trained, tmp_path, alert):
    before, pages = tree(trained), []

    def on_call(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        pages.append(body)
        return 200, b""

    with responding(on_call) as port:
        real = {"GLEANER_ALERTS__WEBHOOK": f"http://127.0.0.1:{port}/hook", "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "gleaner", "drill", alert, "--limit", "360", "--json"],
            cwd=trained,
            env=os.environ | real,
            capture_output=True,
            text=True,
            timeout=880,
            check=False,
        )

    assert 0 == done.returncode, done.stderr
    played = json.loads(done.stdout)
    assert alert == played["alert"]
    assert re.fullmatch(SUMMARIES[alert], played["summary"])
    assert 0 < played["fired_seconds"] < 360
    assert 0 < played["resolved_seconds"] < 360
    assert f"{alert} reached Alertmanager after" in done.stderr
    assert before == tree(trained)
    assert [] == pages  # the settings' webhook is for real alerts only
    assert [] == left_of_drills(tmp_path)


def test_a_drill_without_its_alert_fails_and_shows_the_logs(trained, tmp_path):
    # The limit is too short for this alert.
    done = gleaner("drill", "NoModel", "--limit", "2", folder=trained, TMPDIR=str(tmp_path))

    assert 1 == done.returncode
    assert "error: NoModel did not fire within 2 s" == done.stderr.splitlines()[-1]
    assert "ml-app: " in done.stderr
    assert [] == left_of_drills(tmp_path)


def test_an_alert_that_fires_already_is_no_drill(trained, tmp_path):
    done = gleaner(
        "drill", "HighMemoryUsage", folder=trained, TMPDIR=str(tmp_path), GLEANER_ALERTS__MEMORY_BYTES="1000"
    )

    assert 1 == done.returncode
    assert "HighMemoryUsage fires already, without an injected fault: see docs/alerts.md#highmemoryusage" in done.stderr
    assert [] == left_of_drills(tmp_path)


def test_ctrl_c_leaves_nothing_behind(trained, tmp_path):
    before = tree(trained)
    command = [sys.executable, "-m", "gleaner", "drill", "HighErrorRate"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=trained, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while "injecting the fault" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        assert len(left_of_drills(tmp_path)) > 5
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=300)

    assert (130, "interrupted") == (process.returncode, error.strip())
    assert wait_for(lambda: left_of_drills(tmp_path) == []), left_of_drills(tmp_path)
    assert before == tree(trained)
