"""The severity of every alert, its repetition, and the least failures.

The wanted values stand here as literals. Only the rules that promtool evaluates come from the code.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from projects import ROOT
from started import tool

from gleaner.settings.load import load_settings
from gleaner.watching.render import render, write_tree

pytestmark = pytest.mark.timeout(600)

Firing = dict[tuple[str, str, str], int]

# (alert, service, severity): how many of its rules fire when everything is broken.
FIRING: Firing = {
    ("HighErrorRate", "ml-app", "page"): 1,
    ("ErrorBudgetBurn", "ml-app", "page"): 2,
    ("ErrorBudgetBurn", "ml-app", "ticket"): 1,
    ("SlowPredictions", "ml-app", "page"): 1,
    ("NoModel", "ml-app", "page"): 1,
    ("ModelLoadFailing", "ml-app", "ticket"): 1,
    ("RegistryNotFollowed", "ml-app", "ticket"): 1,
    ("TargetDown", "ml-app", "page"): 1,
    ("TargetDown", "train-metrics", "ticket"): 1,
    ("TargetDown", "mlflow", "ticket"): 1,
    ("TargetDown", "prometheus", "ticket"): 1,
    ("RestartLoop", "ml-app", "page"): 1,
    ("RestartLoop", "train-metrics", "ticket"): 1,
    ("RestartLoop", "mlflow", "ticket"): 1,
    ("RestartLoop", "prometheus", "ticket"): 1,
    ("HighMemoryUsage", "ml-app", "ticket"): 1,
    ("HighMemoryUsage", "train-metrics", "ticket"): 1,
    ("HighCPUUsage", "ml-app", "ticket"): 1,
    ("HighCPUUsage", "train-metrics", "ticket"): 1,
    ("HighTrainingLoss", "train-metrics", "ticket"): 1,
    ("LowValidationAccuracy", "train-metrics", "ticket"): 1,
    ("TrainingStale", "train-metrics", "ticket"): 1,
}

# severity: the receiver, the wait before the first notification, and the time between two of them.
NOTIFIED = {"page": ("page", "10s", "1h"), "ticket": ("ticket", "30s", "1d")}

APP = 'job="ml-api",instance="ml-app:8010",service="ml-app"'
SECOND_APP = 'job="ml-api",instance="ml-app:8011",service="ml-app"'
TRAINER = 'job="train-metrics",instance="train-metrics:8003",service="train-metrics"'
MLFLOW = 'job="mlflow",instance="mlflow:5000",service="mlflow"'
PROMETHEUS = 'job="prometheus",instance="prometheus:9090",service="prometheus"'

REQUESTS = f'http_requests_total{{{APP},method="POST",route="/v1/predict",status="500"}}'
DURATIONS = f'model_prediction_duration_seconds_{{part}}{{{{{APP},model_version="v1"{{bound}}}}}}'


def duration(part: str, bound: str = "") -> str:
    return DURATIONS.format(part=part, bound=f',le="{bound}"' if bound else "")


def slow(rate: float | str, steps: int) -> dict[str, str]:
    """Make series of predictions that all take longer than 5 s."""
    bounds = ("0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0")
    quick = {duration("bucket", bound): f"0x{steps}" for bound in bounds}
    late = {duration("bucket", bound): f"0+{rate}x{steps}" for bound in ("10.0", "+Inf")}
    return {**quick, **late, duration("count"): f"0+{rate}x{steps}"}


def everything_broken(minutes: int) -> dict[str, str]:
    """Make series with a value a minute; every rule fires on them."""
    always = {
        f"up{{{APP}}}": "1",
        f"up{{{SECOND_APP}}}": "0",
        f"up{{{TRAINER}}}": "0",
        f"up{{{MLFLOW}}}": "0",
        f"up{{{PROMETHEUS}}}": "0",
        f'model_alias_refused{{{APP},alias="champion"}}': "1",
        f"registry_last_success_timestamp_seconds{{{APP}}}": "-1e6",
        f"training_loss{{{TRAINER}}}": "1e6",
        f"validation_accuracy{{{TRAINER}}}": "0",
        f"training_last_success_timestamp_seconds{{{TRAINER}}}": "-1e9",
        **{f"app_memory_usage_bytes{{{labels}}}": "1e12" for labels in (APP, TRAINER)},
        **{f"app_cpu_usage_percent{{{labels}}}": "100" for labels in (APP, TRAINER)},
    }
    restarts = {f"process_start_time_seconds{{{labels}}}" for labels in (APP, TRAINER, MLFLOW, PROMETHEUS)}
    return {
        **{name: f"{value}x{minutes}" for name, value in always.items()},
        **dict.fromkeys(restarts, f"0+60x{minutes}"),
        REQUESTS: f"0+60x{minutes}",
        **slow(60, minutes),
    }


def check_firing(series: Mapping[str, str], alerts: str, at: str, interval: str, wanted: Firing, folder: Path) -> None:
    """Let promtool compare the firing alerts with the wanted ones.

    alerts: a regular expression for the names of the alerts to look at.
    interval: the time between two values, and between two evaluations.
    """
    write_tree(folder, render(load_settings(ROOT / "gleaner.toml"), "local", folder))
    samples = [
        {"labels": f'{{alertname="{alert}", service="{service}", severity="{severity}"}}', "value": count}
        for (alert, service, severity), count in wanted.items()
    ]
    selected = f'ALERTS{{alertname=~"{alerts}", alertstate="firing"}}'
    case: dict[str, Any] = {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": f"count by (alertname, service, severity) ({selected})", "eval_time": at, "exp_samples": samples}
        ],
    }
    rules = [str(path) for path in sorted((folder / "prometheus" / "rules").iterdir())]
    test = {"rule_files": rules, "evaluation_interval": interval, "tests": [case]}
    (folder / "case.yml").write_text(yaml.safe_dump(test))
    command = [tool("promtool"), "test", "rules", str(folder / "case.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    assert 0 == done.returncode, done.stdout + done.stderr


def test_every_alert_of_every_service_has_its_severity(tmp_path):
    check_firing(everything_broken(2 * 60), ".*", "2h", "1m", FIRING, tmp_path)


def notified(severity: str, settings_folder: Path) -> tuple[str, str, str]:
    """Return a severity's receiver, first wait and repeat interval."""
    text = render(load_settings(ROOT / "gleaner.toml"), "compose", settings_folder)["alertmanager/alertmanager.yml"]
    default = yaml.safe_load(text)["route"]
    matching = [route for route in default["routes"] if route["matchers"] == [f'severity="{severity}"']]
    route = {**default, **(matching[0] if matching else {})}
    return route["receiver"], route["group_wait"], route["repeat_interval"]


@pytest.mark.parametrize("severity", NOTIFIED)
def test_a_page_is_repeated_every_hour_and_a_ticket_every_day(severity, tmp_path):
    assert NOTIFIED[severity] == notified(severity, tmp_path)


# As shipped, ten failures in the window of a rule do not alert; eleven do.
# alert: series with {rate} failures a step, the window, the time of a step, the steps of a window, the alerts.
EDGES: dict[str, tuple[dict[str, str], str, str, int, Firing]] = {
    "HighErrorRate": ({REQUESTS: "0+{rate}x20"}, "5m", "15s", 20, {("HighErrorRate", "ml-app", "page"): 1}),
    "ErrorBudgetBurn": (
        {REQUESTS: "0+{rate}x64"},
        "1h",
        "56250ms",
        64,  # a step of 10 / 64 is exact in binary, and so is the sum
        {("ErrorBudgetBurn", "ml-app", "page"): 2, ("ErrorBudgetBurn", "ml-app", "ticket"): 1},
    ),
    "SlowPredictions": (slow("{rate}", 20), "5m", "15s", 20, {("SlowPredictions", "ml-app", "page"): 1}),
}


@pytest.mark.parametrize("failures", [10, 11])
@pytest.mark.parametrize("alert", EDGES)
def test_ten_failures_are_few_and_eleven_are_not(alert, failures, tmp_path):
    series, window, step, steps, firing = EDGES[alert]
    failing = {name: values.format(rate=failures / steps) for name, values in series.items()}

    check_firing(failing, alert, window, step, firing if failures > 10 else {}, tmp_path)
