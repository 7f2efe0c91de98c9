"""The rendered files: fresh, valid, and about metrics that exist.

Rules, cases, dashboards and configurations.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import made
import pytest
import yaml
from projects import ROOT, SETTINGS
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from started import gleaner, tool

from gleaner.errors import BadSetting, explain_install
from gleaner.machine.resources import Resources
from gleaner.serving.app import App
from gleaner.serving.follower import Follower
from gleaner.serving.metrics import Following
from gleaner.serving.slots import Slots
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Serving, Settings
from gleaner.training.events import Chosen, Finished, Started
from gleaner.training.metrics import TrainingMetrics
from gleaner.watching.alerts import PROBES, Group, make_alerts, span
from gleaner.watching.cases import make_cases
from gleaner.watching.render import render, write_tree
from gleaner.watching.series import grow, hold, missing, write_pieces

DEPLOY = ROOT / "deploy"
MLFLOW = "https://mlflow.example.org"
TARGET_LABELS = {"job", "instance", "service"}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(ROOT / "gleaner.toml")


@pytest.fixture(scope="module")
def files(settings) -> dict[str, str]:
    return render(settings, "compose", DEPLOY)


def rules(files: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for name, text in files.items():
        if name.startswith("prometheus/rules/"):
            found += [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    return found


def queries(files: Mapping[str, str]) -> dict[str, str]:
    """Every PromQL expression, by its place."""
    found = {rule.get("alert", rule.get("record")) + f" {i}": rule["expr"] for i, rule in enumerate(rules(files))}
    for name, text in files.items():
        if name.endswith(".json"):
            dashboard = json.loads(text)
            for panel in dashboard["panels"]:
                for target in panel.get("targets", []):
                    found[f"{name}: {panel['title']} {target['refId']}"] = target["expr"]
            for annotation in dashboard.get("annotations", {}).get("list", []):
                found[f"{name}: {annotation['name']}"] = annotation["expr"]
            for variable in dashboard.get("templating", {}).get("list", []):
                found[f"{name}: ${variable['name']}"] = re.sub(
                    r"label_values\((.+), (\w+)\)", r"count by (\2) (\1)", variable["query"]["query"]
                )
    return found


# Fresh


def test_the_committed_files_match_the_settings(files):
    committed = {
        str(path.relative_to(DEPLOY)): path.read_bytes()
        for part in ("prometheus", "alertmanager", "grafana")
        for path in (DEPLOY / part).rglob("*")
        if path.is_file()
    }

    assert committed == {name: text.encode() for name, text in files.items()}, (
        "stale; run: gleaner config render --for compose"
    )


def test_rendering_twice_gives_the_same_bytes(tmp_path):
    for seed in ("1", "2"):
        done = gleaner(
            "config", "render", "--for", "compose", "--out", tmp_path / seed, folder=ROOT, PYTHONHASHSEED=seed
        )
        assert 0 == done.returncode, done.stderr
        assert "wrote 15 files" in done.stdout

    first, second = (
        {path.relative_to(tmp_path / seed): path.read_bytes() for path in (tmp_path / seed).rglob("*.*")}
        for seed in ("1", "2")
    )
    assert first == second


def test_changing_a_threshold_changes_its_rule_cases_and_dashboard(files):
    moved = render(load_settings(ROOT / "gleaner.toml", {"alerts": {"cpu_percent": 61.5}}), "compose", DEPLOY)

    changed = {name for name in files if files[name] != moved[name]}
    assert {
        "prometheus/rules/processes.yml",
        "prometheus/tests/processes.yml",
        "grafana/dashboards/service.json",
    } == changed
    assert "app_cpu_usage_percent > 61.5" in moved["prometheus/rules/processes.yml"]


def test_changing_a_port_changes_its_target_except_inside_compose(tmp_path):
    names = ("ml_app_metrics", "train_metrics", "mlflow", "prometheus", "alertmanager", "grafana")
    flags = {"ports": dict(zip(names, (18010, 18003, 15002, 19090, 19093, 13000), strict=True))}
    settings = load_settings(ROOT / "gleaner.toml", flags)
    local, compose = render(settings, "local", tmp_path), render(settings, "compose", tmp_path)

    assert ["127.0.0.1:18010", "127.0.0.1:18003", "127.0.0.1:15002", "127.0.0.1:19090"] == targets(local)
    assert ["ml-app:8010", "train-metrics:8003", "mlflow:5000", "prometheus:9090"] == targets(compose)
    assert "127.0.0.1:19093" in local["prometheus/prometheus.yml"]
    assert "url: http://127.0.0.1:19090" in local["grafana/provisioning/datasources/prometheus.yml"]
    assert f"path: {tmp_path}/grafana/dashboards" in local["grafana/provisioning/dashboards/gleaner.yml"]
    assert "http://localhost:13000/d/gleaner-service" in compose["prometheus/rules/service.yml"]
    assert "http://localhost:15002" in compose["grafana/dashboards/training.json"]


def targets(files: Mapping[str, str]) -> list[str]:
    jobs = yaml.safe_load(files["prometheus/prometheus.yml"])["scrape_configs"]
    return [target for job in jobs for part in job["static_configs"] for target in part["targets"]]


@pytest.mark.parametrize(
    ("host", "scraped"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.7", "10.0.0.7")]
)
def test_prometheus_scrapes_the_address_that_the_service_listens_on(host, scraped, tmp_path):
    settings = load_settings(ROOT / "gleaner.toml", {"serving": {"host": host}})

    assert [f"{scraped}:8010", f"{scraped}:8003"] == targets(render(settings, "local", tmp_path))[:2]


def test_an_mlflow_server_elsewhere_is_not_scraped(tmp_path):
    settings = load_settings(ROOT / "gleaner.toml", {"tracking": {"uri": MLFLOW}})

    assert 3 == len(targets(render(settings, "local", tmp_path)))
    assert MLFLOW in render(settings, "local", tmp_path)["grafana/dashboards/training.json"]


def test_a_port_of_0_cannot_be_rendered(tmp_path):
    settings = load_settings(ROOT / "gleaner.toml", {"ports": {"train_metrics": 0}})

    with pytest.raises(BadSetting, match=r"ports\.train_metrics: wanted a fixed port .*; got 0"):
        render(settings, "local", tmp_path)


def test_jobs_have_the_service_labels_that_the_rules_use(files):
    jobs = yaml.safe_load(files["prometheus/prometheus.yml"])["scrape_configs"]

    assert {"ml-api": "ml-app", "train-metrics": "train-metrics", "mlflow": "mlflow", "prometheus": "prometheus"} == {
        job["job_name"]: job["static_configs"][0]["labels"]["service"] for job in jobs
    }


# Written


def test_a_foreign_file_stays_and_is_named(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    own = tmp_path / "deploy" / "prometheus" / "rules" / "own.yml"
    own.parent.mkdir(parents=True)
    own.write_text("groups: []\n")

    done = gleaner("config", "render", "--for", "compose", folder=tmp_path)

    assert 0 == done.returncode
    assert "own.yml was not written by this command" in done.stderr
    assert "groups: []\n" == own.read_text()
    assert (tmp_path / "deploy" / "prometheus" / "prometheus.yml").exists()


def test_local_files_go_into_the_state_folder_readable_by_all(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)

    done = gleaner("config", "render", "--for", "local", folder=tmp_path)

    written = [path for path in (tmp_path / ".gleaner" / "monitoring").rglob("*") if path.is_file()]
    assert 0 == done.returncode
    assert 15 == len(written)
    assert {0o644} == {path.stat().st_mode & 0o777 for path in written}


def test_a_local_file_with_the_webhooks_address_is_for_its_user_alone(tmp_path):
    (tmp_path / "gleaner.toml").write_text(f'{SETTINGS}\n[alerts]\nwebhook = "https://example.org/alerts"\n')

    for where in ("local", "compose"):
        assert 0 == gleaner("config", "render", "--for", where, "--out", where, folder=tmp_path).returncode

    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*/*.yml")}
    assert 0o600 == modes.pop(tmp_path / "local/alertmanager/alertmanager.yml")
    assert {0o644} == set(modes.values())


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    write_tree(
        tmp_path, {"prometheus/rules/a.yml": "old", "prometheus/tests/a.yml": "", "grafana/dashboards/a.json": ""}
    )

    with pytest.raises(UnicodeEncodeError):
        write_tree(tmp_path, {"prometheus/rules/a.yml": "new \ud800"})

    assert "old" == (tmp_path / "prometheus" / "rules" / "a.yml").read_text()
    assert ["a.yml"] == [path.name for path in (tmp_path / "prometheus" / "rules").iterdir()]


@pytest.mark.parametrize("module", ["grafana_foundation_sdk", "yaml"])
def test_without_the_extra_the_error_names_it(module, tmp_path):
    code = (
        f"import sys; sys.modules[{module!r}] = None; from gleaner.cli.main import main; "
        "main(['config', 'render', '--for', 'compose', '--out', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert 1 == done.returncode
    command = re.escape(explain_install("monitoring"))
    assert re.fullmatch(
        rf"error: {module}[.\w]* is not installed; to install the extra 'monitoring': {command}\n", done.stderr
    )
    assert not (tmp_path / "out").exists()


# Notifications


def test_receivers_have_the_webhook_and_only_the_path_of_its_token(tmp_path):
    token = tmp_path / "token"
    token.write_text("a-secret")
    alerts = {"webhook": "https://example.org/alerts", "webhook_token_file": str(token)}
    files = render(load_settings(ROOT / "gleaner.toml", {"alerts": alerts}), "compose", DEPLOY)
    config = yaml.safe_load(files["alertmanager/alertmanager.yml"])

    for receiver in config["receivers"]:
        hook = receiver["webhook_configs"][0]
        assert "https://example.org/alerts" == hook["url"]
        assert str(token) == hook["http_config"]["authorization"]["credentials_file"]
    assert not any("a-secret" in text for text in files.values())
    check(["amtool", "check-config"], {"alertmanager.yml": files["alertmanager/alertmanager.yml"]}, tmp_path)


def test_a_relative_token_file_is_beside_the_settings_and_refused_for_compose(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    alerts = {"webhook": "https://example.org/alerts", "webhook_token_file": "secret/token"}
    settings = load_settings(tmp_path / "gleaner.toml", {"alerts": alerts})

    local = render(settings, "local", tmp_path / "run")["alertmanager/alertmanager.yml"]
    assert f"credentials_file: {tmp_path}/secret/token\n" in local
    with pytest.raises(
        BadSetting, match=r"webhook_token_file: wanted a path in Alertmanager's container, such as /secr"
    ):
        render(settings, "compose", tmp_path)


@pytest.mark.parametrize("webhook", ["https://me:word@example.org/", "example.org", "file:///etc/passwd", "http://a b"])
def test_a_webhook_with_a_password_or_without_http_is_refused(webhook):
    with pytest.raises(
        BadSetting, match=r"alerts.webhook: wanted an address such as https://example.org/alerts, without .* in it$"
    ):
        load_settings(ROOT / "gleaner.toml", {"alerts": {"webhook": webhook}})


@pytest.mark.parametrize(
    ("alerts", "reason"),
    [
        ({"error_window_seconds": 30}, "error_window_seconds: wanted 60 or more, 4 times scrape_seconds, got 30"),
        (
            {"scrape_seconds": 60, "slow_window_seconds": 200},
            "slow_window_seconds: wanted 240 or more, 4 times scrape_seconds, got 200",
        ),
        ({"restarts": 59}, "restarts: wanted 58 or fewer in 900 s, got 59"),
    ],
)
def test_a_window_with_too_few_scrapes_is_refused(alerts, reason):
    with pytest.raises(BadSetting, match=reason):
        load_settings(ROOT / "gleaner.toml", {"alerts": alerts})


def test_a_registry_age_shorter_than_a_fetch_is_refused():
    with pytest.raises(BadSetting, match=r"registry_age_seconds: wanted more than tracking\.fetch_seconds, 600"):
        load_settings(ROOT / "gleaner.toml", {"tracking": {"fetch_seconds": 600}})


# Cases


MOVED: dict[str, tuple[float, dict[str, dict[str, float]]]] = {
    "as shipped": (1, {}),
    "hurried": (20, {}),
    "hurried by an odd factor": (7, {}),
    "moved": (
        1,
        {
            "alerts": {
                "scrape_seconds": 5,
                "memory_bytes": 123_456_789,
                "memory_for_seconds": 7,
                "cpu_percent": 33.3,
                "error_ratio": 0.5,
                "error_window_seconds": 77,
                "training_loss": 0.123,
                "training_loss_for_seconds": 1,
                "validation_accuracy": 0.91,
                "training_age_days": 0.5,
                "restarts": 7,
                "restart_window_seconds": 60,
                "few_failures": 123,
            },
            "objectives": {"availability": 0.9995, "latency_seconds": 0.03, "latency_quantile": 0.9},
        },
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_every_alert_passes_its_cases(name, tmp_path):
    promtool = tool("promtool")
    hurry, flags = MOVED[name]
    write_tree(tmp_path, render(load_settings(ROOT / "gleaner.toml", flags), "local", tmp_path, hurry))

    for command in (
        ["check", "config", tmp_path / "prometheus" / "prometheus.yml"],
        ["test", "rules", *(tmp_path / "prometheus" / "tests").iterdir()],
    ):
        done = subprocess.run([promtool, *map(str, command)], capture_output=True, text=True, timeout=600, check=False)
        assert 0 == done.returncode, done.stdout + done.stderr


def test_every_rule_has_a_firing_case_and_every_alert_a_quiet_one_and_one_without_data(settings):
    cases = make_cases(settings)
    rules = make_alerts(settings)

    assert set(rules) == {fires.alert for case in cases for fires in case.firing}
    for name in {rule.name for rule in rules}:
        quiet = [case.title for case in cases if case.alert.name == name and not case.firing]
        assert "no data" in quiet
        assert len(quiet) >= 2


@pytest.mark.parametrize(
    ("group", "broken"),
    [
        pytest.param(group, broken, marks=[pytest.mark.slow] if (group, broken) == ("budget", "backwards") else [])
        for group in get_args(Group)
        for broken in ("never", "always", "at once", "backwards")
    ],
)
def test_a_broken_rule_fails_its_cases(group, broken, files, tmp_path):
    """Check that a rule's own cases fail when it is broken.

    Each rule of a file is broken in turn.
    """
    promtool = tool("promtool")
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    parsed = yaml.safe_load(files[f"prometheus/rules/{group}.yml"])
    tests = yaml.safe_load(files[f"prometheus/tests/{group}.yml"])
    rules = parsed["groups"][0]["rules"]
    records = [rule for rule in rules if "record" in rule]
    tried = 0
    for good in (rule for rule in rules if "alert" in rule):
        expr = good["expr"]
        own = [test for test in tests["tests"] if test["name"].startswith(f"{good['alert']}: ")]
        (tmp_path / "tests" / "t.yml").write_text(json.dumps({**tests, "tests": own}))
        if broken == "never":
            bad = [{**good, "expr": f"({expr}\n) and vector(0) > 1"}]
        elif broken == "always":
            bad = [{**good, "expr": "vector(1)"}]
        elif broken == "at once":
            bad = [{k: v for k, v in good.items() if k != "for"}] if "for" in good else []
        else:  # each comparison by itself
            turned = [(m.start(1), "<" if m[1] == ">" else ">") for m in re.finditer(r" ([<>]) ", expr)]
            bad = [{**good, "expr": expr[:i] + other + expr[i + 1 :]} for i, other in turned]
        for worse in bad:
            # Only this alert, since promtool evaluates every rule of the file at every step.
            parsed["groups"][0]["rules"] = [*records, worse]
            (tmp_path / "rules" / f"{group}.yml").write_text(yaml.safe_dump(parsed))
            done = subprocess.run(
                [promtool, "test", "rules", str(tmp_path / "tests" / "t.yml")],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert 1 == done.returncode, f"{good['alert']} {broken}: {worse['expr']}"
            assert "FAILED" in done.stdout + done.stderr
            tried += 1

    assert tried or (broken == "at once" and group == "budget")


BURNING = "ErrorBudgetBurn"


# Parts of rules, each with something else in its place.
PARTS = [
    *((group, "", r"> 10  #", "> -1  #") for group in ("service", "budget")),  # too few failures
    *((group, "", r"> 10  #", "> 30  #") for group in ("service", "budget")),  # few requests that all fail
    ("budget", BURNING, r"\[(1h|6h|1d)\]", "[5m]"),
    ("service", "", r'(, )?route!~"[^"]*"', ""),  # health checks
    ("service", "", r'status=~"5\.\."', 'status="500"'),  # 503
    ("service", "", r'status=~"5\.\.", ', ""),  # 422
    ("service", "HighErrorRate", r"sum by \(service\)", "sum by (instance, service)"),  # two instances
    ("service", "HighErrorRate", r"\[5m\]", "[1m]"),
    ("service", "HighErrorRate", r"\[5m\]", "[15m]"),
    ("service", "SlowPredictions", r"\[5m\]", "[1m]"),
    ("service", "SlowPredictions", r"\[5m\]", "[1h]"),
    ("service", "SlowPredictions", r"model_version, le", "le"),  # the fast slot beside the slow one
    ("service", "NoModel", r"on \(job, instance\)", "on (job)"),  # another instance's model
    ("service", "NoModel", r'model_info\{slot="v1"\}', "model_info"),  # another slot's model
    ("service", "ModelLoadFailing", r"registry_alias_refused", "model_alias_refused"),
    ("service", "ModelLoadFailing", r"model_alias_refused", "registry_alias_refused"),
    ("service", "ModelLoadFailing", r"max by", "min by"),  # one instance of two
    ("service", "RegistryNotFollowed", r"on \(job, instance\)", "on (job)"),
    ("service", "RegistryNotFollowed", r" == 0", ""),
    ("service", "RegistryNotFollowed", r"\nor(.|\n)*", ""),  # no success since the start
    (
        "budget",
        BURNING,
        r"and (service:\S+) / [\d.]+ > [\d.]+  #",
        r"and \1 > -1  #",
    ),  # the short window
    ("budget", BURNING, r"(rate)1h( / [\d.]+ > 14\.4)\b", r"\g<1>5m\2"),  # the window that ignores a blip
    ("budget", BURNING, r"(rate)6h( / [\d.]+ > 6)\b", r"\g<1>30m\2"),
    ("budget", BURNING, r"(rate)1d( / [\d.]+ > 3)\b", r"\g<1>2h\2"),
    *(("budget", "service:", rf"\[{window}\]", "[5m]") for window in ("30m", "1h", "2h", "6h", "1d")),
    ("budget", "service:", r"\[\w+\]", "[5m]"),
    ("budget", "service:", r"\[5m\]", "[1h]"),
    ("processes", "RestartLoop", r"\[15m\]", "[5m]"),
    ("processes", "RestartLoop", r"\[15m\]", "[1h]"),
    ("processes", "", r"service!=", "service="),
]


def without_the_slowest(parts: Sequence[tuple[str, ...]]) -> list[Any]:
    """Leave windows of days, which take promtool seconds, to `make reliability`."""
    return [pytest.param(*part, marks=pytest.mark.slow) if part[0] == "budget" else part for part in parts]


@pytest.mark.parametrize(("group", "rule", "part", "instead"), without_the_slowest(PARTS))
def test_a_rule_without_one_of_its_parts_fails_its_cases(group, rule, part, instead, files, tmp_path):
    """rule: the start of the names of the rules to break."""
    parsed = yaml.safe_load(files[f"prometheus/rules/{group}.yml"])
    tests = yaml.safe_load(files[f"prometheus/tests/{group}.yml"])
    rules, found = parsed["groups"][0]["rules"], set()
    for one in rules:
        name = one.get("alert", one.get("record"))
        if name.startswith(rule):
            one["expr"], times = re.subn(part, instead, one["expr"])
            found |= {name} if times else set()
    if not any(":" in name for name in found):  # no recording rule
        # Only these alerts and their cases, since promtool evaluates every rule of the file at every step.
        parsed["groups"][0]["rules"] = [one for one in rules if "record" in one or one["alert"] in found]
        tests["tests"] = [test for test in tests["tests"] if test["name"].split(": ")[0] in found]
    for kind, content in (("rules", parsed), ("tests", tests)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{group}.yml").write_text(yaml.safe_dump(content))
    command = [tool("promtool"), "test", "rules", str(tmp_path / "tests" / f"{group}.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    assert found
    assert 1 == done.returncode
    assert "FAILED" in done.stdout + done.stderr
    assert "parse error" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("alert", "failing", "well", "hours", "severities"),
    [
        ("HighErrorRate", 5.4, 0, 24, ["page"]),  # a total outage
        ("ErrorBudgetBurn", 5.4, 0, 24, ["page", "page", "ticket"]),
        ("ErrorBudgetBurn", 0.3, 14.7, 8, ["ticket"]),  # burn rate 4
        ("HighErrorRate", 1, 0, 24, []),  # too few failures in 5 minutes,
        ("ErrorBudgetBurn", 1, 0, 24, ["page", "page", "ticket"]),  # but enough in the longer windows
        ("ErrorBudgetBurn", 0, 5.4, 24, []),
    ],
)
def test_a_service_with_few_requests_is_watched(alert, failing, well, hours, severities, settings, tmp_path):
    """failing, well: requests per minute."""
    write_tree(tmp_path, render(settings, "local", tmp_path))
    labels = 'job="ml-api",instance="ml-app:8010",service="ml-app",method="POST",route="/v1/predict"'
    series = {
        f'http_requests_total{{{labels},status="{status}"}}': n for status, n in (("500", failing), ("200", well))
    }
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": f"0+{n}x{60 * hours}"} for name, n in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count by (severity) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
                "eval_time": f"{hours}h",
                "exp_samples": [
                    {"labels": f'{{severity="{severity}"}}', "value": severities.count(severity)}
                    for severity in sorted({*severities})
                ],
            }
        ],
    }
    files = [str(path) for path in (tmp_path / "prometheus" / "rules").iterdir()]
    test = {"rule_files": files, "evaluation_interval": "5m", "tests": [case]}
    check(["promtool", "test", "rules"], {"t.yml": yaml.safe_dump(test)}, tmp_path)


def check(command: list[str], files: Mapping[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    done = subprocess.run(
        [tool(command[0]), *command[1:], *(str(folder / name) for name in files)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr


def test_amtool_accepts_the_configuration(files, tmp_path):
    check(["amtool", "check-config"], {"alertmanager.yml": files["alertmanager/alertmanager.yml"]}, tmp_path)


@pytest.mark.parametrize(
    ("pieces", "values"),
    [
        ([hold(1, for_=20)], "1x2"),
        ([hold(1, for_=20), hold(0, for_=10)], "1x1 0x1"),
        ([grow(2, for_=20), grow(0, for_=10)], "0+20x1 40+0x1"),
        ([missing(for_=20), hold(1, for_=10)], "_x2 1x1"),
        ([hold(1, for_=5), hold(0, for_=1), hold(2, for_=4)], "1x0 2x0"),  # no step lies in the second part
    ],
)
def test_a_series_has_a_value_every_step_and_one_at_its_end(pieces, values):
    assert values == write_pieces(pieces, 10)


@pytest.mark.parametrize(("severity", "receiver"), [("page", "page"), ("ticket", "ticket")])
def test_an_alert_goes_to_the_receiver_of_its_severity(severity, receiver, files, tmp_path):
    (tmp_path / "alertmanager.yml").write_text(files["alertmanager/alertmanager.yml"])
    command = ["config", "routes", "test", f"--config.file={tmp_path}/alertmanager.yml", f"severity={severity}"]
    done = subprocess.run([tool("amtool"), *command], capture_output=True, text=True, timeout=600, check=True)

    assert receiver == done.stdout.strip()


# Rules, cases and panels use only metrics, labels and values that the code exports


Exported = dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    """{series: {label: values}} of the service and of a training."""
    root = tmp_path_factory.mktemp("store")
    slots = Slots(made.fill(root, made.artifact("decision_tree"), made.artifact("linear")), Serving().slots)
    slots.refresh()
    service, training = CollectorRegistry(), CollectorRegistry()
    for registry in (service, training):
        ProcessCollector(registry=registry)
        Resources([], registry)
    App(slots, Serving(), service)
    Following(
        Follower(load_settings(ROOT / "gleaner.toml", {"tracking": {"uri": MLFLOW}}), slots.store), service
    ).follower.last_success = 1.0
    metrics = TrainingMetrics(training)
    metrics.record(Started("linear"))
    champion = made.fitted("decision_tree")
    metrics.record(Chosen(champion, None))
    versions, table = {"champion": 1}, made.table()
    metrics.record(
        Finished(versions, champion.candidate, champion.scores, champion.training_loss, len(table.y), 0, 1.0, 1.0)
    )
    # Series that Prometheus itself adds.
    found: Exported = {"up": {}, "ALERTS": {"alertstate": {"firing", "pending"}}}
    for registry in (service, training):
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    return found


_SELECTOR = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*")|(?P<name>[a-zA-Z_:][\w:]*)\s*(?P<labels>\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?(?P<call>\s*\()?"""
)
_WORDS = {"and", "or", "unless", "bool", "offset"}


def selectors(expr: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """(metric, {label: (operator, value)}) of every selector in a PromQL expression."""
    bare = re.sub(r"#[^\n]*", "", expr)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    for found in _SELECTOR.finditer(bare):
        if found["name"] and not found["call"] and found["name"] not in _WORDS:
            pairs = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"', found["labels"] or "")
            yield found["name"], {label: (operator, value) for label, operator, value in pairs}


def grouped(expr: str) -> set[str]:
    """The labels by which an expression groups and joins."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expr)
    return {label.strip() for part in lists for label in part.split(",")} - {""}


def not_exported(expr: str, exported: Exported, records: set[str]) -> list[str]:
    """Return metrics, labels and values that the code does not export."""
    found = []
    known = {"slot", *TARGET_LABELS, *(label for labels in exported.values() for label in labels)}
    found += [f"no label {label}" for label in grouped(expr) - known]
    for name, labels in selectors(expr):
        if name in records:
            continue
        if name not in exported:
            found.append(f"no metric {name}")
            continue
        for label, (operator, value) in labels.items():
            if label in TARGET_LABELS:
                if operator in {"=", "!="} and value not in {
                    "ml-api",
                    "ml-app",
                    "train-metrics",
                    "mlflow",
                    "prometheus",
                }:
                    found.append(f"no {label} {value}")
            elif label not in exported[name]:
                found.append(f"no label {label} of {name}")
            elif not value.startswith("$") and operator in {"=", "=~"}:
                pattern = re.escape(value) if operator == "=" else value
                if not any(re.fullmatch(pattern, known) for known in exported[name][label]):
                    found.append(f"no {label}={value} of {name}")
    return found


def test_every_rule_and_panel_uses_exported_series(files, exported):
    records = {rule["record"] for rule in rules(files) if "record" in rule}
    used = queries(files)

    assert {} == {where: found for where, expr in used.items() if (found := not_exported(expr, exported, records))}
    assert len(used) > 50


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ("rate(http_request_total[5m]) > 1", "no metric http_request_total"),
        ('sum by (status) (flask_http_requests_total{code="500"})', "no label code of flask_http_requests_total"),
        ('model_info{slot="v7"}', "no slot=v7 of model_info"),
        ('http_requests_total{status=~"6.."}', "no status=6.. of http_requests_total"),
        ("sum by (path) (up)", "no label path"),
        ('up{job="api"}', "no job api"),
        (
            "histogram_quantile(0.9, sum by (le) (rate(http_request_duration_seconds[5m])))",
            "no metric http_request_dur",
        ),
    ],
)
def test_an_expression_about_a_series_that_is_not_exported_is_found(expr, found, exported):
    assert any(missing.startswith(found) for missing in not_exported(expr, exported, set()))


def test_the_cases_use_the_labels_that_are_exported(settings, exported):
    for case in make_cases(settings):
        for series in case.series:
            ((name, labels),) = selectors(series)
            expected = TARGET_LABELS | set(exported[name])

            assert expected == set(labels), f"{case.alert.name}: {series}"


def test_probes_are_exactly_the_routes_of_health_checks_and_scrapes(exported):
    routes = exported["http_requests_total"]["route"]

    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    asked = {"/v1/predict", "/v2/predict", "/invocations", f"{model}/infer", f"{version}/infer", model, version, "/v2"}
    pages = {"/", "/docs", "/docs/", "/docs/{path}", "/openapi.json", "/version"}

    assert asked | pages == {r for r in routes if not re.fullmatch(PROBES, r)}
    assert re.fullmatch(PROBES, "unmatched")


def test_panels_have_titles_separate_places_and_one_data_source(files):
    for name, text in files.items():
        if not name.endswith(".json"):
            continue
        dashboard = json.loads(text)
        places = [tuple(panel["gridPos"].get(key, 0) for key in "xywh") for panel in dashboard["panels"]]
        cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]

        assert len(cells) == len(set(cells)), f"{name}: panels overlap"
        assert max(x for x, _ in cells) < 24
        assert f"gleaner-{Path(name).stem}" == dashboard["uid"]
        for panel in dashboard["panels"]:
            assert panel["title"]
            assert {"gleaner-prometheus"} == {t["datasource"]["uid"] for t in panel.get("targets", [])} | {
                "gleaner-prometheus"
            }


def test_every_alert_has_its_annotations_severity_and_dashboard(files, settings):
    dashboards = {json.loads(text)["uid"] for name, text in files.items() if name.endswith(".json")}
    for rule in rules(files):
        if "alert" in rule:
            about = rule["annotations"]

            assert {"summary", "description", "runbook_url", "dashboard_url"} == set(about)
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert about["dashboard_url"].rsplit("/", 1)[1] in dashboards


def test_annotations_link_to_the_addresses_of_the_settings(tmp_path):
    alerts = {"runbooks": "https://example.org/runbooks", "dashboards": "https://grafana.example.org/"}
    text = render(load_settings(ROOT / "gleaner.toml", {"alerts": alerts}), "local", tmp_path)

    assert "https://example.org/runbooks#nomodel" in text["prometheus/rules/service.yml"]
    assert "https://grafana.example.org/d/gleaner-model" in text["prometheus/rules/service.yml"]


@pytest.mark.parametrize(
    ("seconds", "word"), [(300, "5m"), (90, "90s"), (86_400, "1d"), (3_600, "1h"), (2.5, "2500ms"), (0.0001, "1ms")]
)
def test_a_time_is_written_as_prometheus_writes_it(seconds, word):
    assert word == span(seconds)


def test_make_lint_names_missing_tools_and_fails_only_under_ci(tmp_path):
    script = ROOT / "tests" / "lint_rules.sh"
    for name in ("bash", "sh", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    for ci, code in (("", 0), ("true", 1)):
        done = subprocess.run(
            [str(tmp_path / "bash"), str(script)],
            env={"PATH": str(tmp_path), "CI": ci},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

        assert code == done.returncode
        assert 1 == len((done.stdout + done.stderr).splitlines())
        assert "apt-get install --no-install-recommends prometheus prometheus-alertmanager" in done.stdout + done.stderr
