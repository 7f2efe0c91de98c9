"""The documents say what the code does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest
from projects import NUMBER, ROOT
from prometheus_client import CollectorRegistry
from started import gleaner, serving

from gleaner.cli import main as cli
from gleaner.drills.play import DRILLS
from gleaner.machine.resources import Resources
from gleaner.model.store import Store
from gleaner.serving.follower import Follower
from gleaner.serving.metrics import Following
from gleaner.settings.describe import describe_settings
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.feature import Feature
from gleaner.table.messages import show_cell
from gleaner.table.numbers import read_number
from gleaner.training.metrics import TrainingMetrics
from gleaner.watching.alerts import make_alerts

README = (ROOT / "README.md").read_text()
START = (ROOT / "docs" / "start.md").read_text()
HTTP = (ROOT / "docs" / "http.md").read_text()
ALERTS = (ROOT / "docs" / "alerts.md").read_text()
TABLES = (ROOT / "docs" / "tables.md").read_text()
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", HTTP, re.DOTALL)
PAIRS = re.findall(r"```http\n(POST .*?)```\n\n```http\n(HTTP.*?)```", HTTP, re.DOTALL)


def test_the_page_of_settings_is_fresh():
    assert describe_settings() == (ROOT / "docs" / "settings.md").read_text()


def commands(group: click.Group, prefix: str = "gleaner") -> set[str]:
    found, context = set(), click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = f"{prefix} {name}"
        found |= commands(command, inner) if isinstance(command, click.Group) else {inner}
    return found


def test_every_link_of_the_documents_leads_to_a_page_and_a_heading():
    for page in [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *PAGES]:
        for name, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text()):
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {name}"
            assert not anchor or anchor in headings(target), f"{page.name}: {name}#{anchor}"


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def shell_lines(page: Path) -> list[str]:
    """Return the lines of a page's terminal blocks, in their order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for kind, block in blocks if not kind for line in block.splitlines()]


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("examples/*/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_command_on_a_page_is_one_of_gleaners(page):
    known = {tuple(command.split()[1:]) for command in commands(cli.gleaner)}
    typed = [line for line in shell_lines(page) if line.startswith("gleaner ")]
    for line in [*typed, *re.findall(r"`(gleaner [a-z][^`\n]*)`", page.read_text())]:
        words = tuple(re.match(r"gleaner((?: [a-z]+)+)", line)[1].split())
        assert any(words[: len(command)] == command[: len(words)] for command in known), line


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_where_gleaner_is_typed_something_has_put_it_on_the_path(page):
    text = page.read_text()
    for line in shell_lines(page):
        if re.match(r"(gleaner|python) ", line):
            before = text[: re.search(rf"^(\$ )?{re.escape(line)}", text, re.MULTILINE).start()]
            assert "source .venv/bin/activate" in before, line


def test_the_way_to_a_table_of_ones_own_works_when_it_is_copied(tmp_path):
    (block,) = re.findall(r"```\n(source .venv/bin/activate[^`]*gleaner init.*?)```", START, re.DOTALL)
    lines = block.splitlines()
    assert lines[-1].startswith("gleaner serve ")
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / ".venv").symlink_to(sys.prefix)
    (tmp_path / "houses").mkdir()
    rows = "".join(f"{1 + i % 12},{20 * (1 + i % 12) + 7 * i % 11}\n" for i in range(60))
    (tmp_path / "houses" / "houses.csv").write_text("rooms,price\n" + rows)
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GLEANER_TRAINING__CANDIDATES": '["linear"]'}
    clean |= {"GLEANER_TRAINING__CHALLENGER": "none", "GLEANER_PORTS__TRAIN_METRICS": "0"}
    script = "\n".join([*lines[:-1], "gleaner models list"])

    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=tmp_path / "clone",
        env=clean,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "champion" in done.stdout


def test_the_rules_for_numbers_on_the_page_of_tables_hold():
    page = " ".join(TABLES.split())
    numbers = re.search(r"before the decimals: (.*?), with", page)[1]
    section = re.search(r"decimal = \",\" thousands.*?(?=\*\*Missing values)", page)[0]
    column = Feature(name="a", min=0.0)
    grouped = Feature(name="a", decimal=",", thousands=".", strip="€ $ %")

    assert [2.18, -5.0, 1e6] == [read_number(cell) for cell in re.findall(r"`([^`]+)`", numbers)]
    for cell, number in {"1.234": 1234.0, "1234": 1234.0, "25 %": 25.0}.items():
        assert cell == "1234" or f"`{cell}`" in section
        assert number == grouped.accept_cell(cell)
    for cell in ("2.18", "12.34", "0.123"):
        assert f"`{cell}`" in section
        with pytest.raises(ValueError, match=r"^$"):
            grouped.accept_cell(cell)
    assert f"`wanted {column.wanted}, got {show_cell(column, '2,18')}`" in page


def test_the_scores_on_the_pages_are_those_of_the_sample():
    sample = (ROOT / "examples" / "food-drive" / "README.md").read_text()
    shown = dict(re.findall(r"candidate=(\w+) .*mae=([\d.]+)", START))
    listed = dict(re.findall(r"^ +\d  \w+ +(\w+) +([\d.]+) ", README, re.MULTILINE))

    assert {"linear", "decision_tree", "random_forest", "gradient_boosting", "spline"} == set(shown)
    assert {"gradient_boosting", "spline"} == set(listed)
    for candidate, mae in [*shown.items(), *listed.items()]:
        assert re.search(rf"{candidate}.* {float(mae):.2f}\b", sample), candidate


def test_the_readmes_prediction_looks_as_shown(service):
    command, shown = re.search(
        r"^(python check_api.py .*)\n```\n\n```\n(INFO.*?)```", README, re.DOTALL | re.MULTILINE
    ).groups()
    typed = shlex.split(command.replace("5001", str(service.port)))
    done = subprocess.run(
        [sys.executable, *typed[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    def hide(text):
        return re.sub(r"\d+\.\d+", "NUMBER", re.sub(r"localhost:\d+", "localhost:PORT", text))

    assert hide(shown) == hide(done.stdout + done.stderr)
    assert str(NUMBER) in done.stdout + done.stderr


def test_the_readmes_list_of_versions_looks_as_shown(trained):
    header, *rows = re.search(r"gleaner models list\n```\n\n```\n(.*?)```", README, re.DOTALL)[1].splitlines()
    done = gleaner("models", "list", folder=trained).stdout.splitlines()

    assert header.split() == done[0].split()
    assert [["1", "champion"], ["2", "challenger"]] == [row.split()[:2] for row in rows]
    # A version without an alias has one cell less.
    assert {len(row.split()) for row in rows} <= {len(row.split()) for row in done[1:]}


def test_the_first_pages_python_runs_against_a_service(service):
    (code,) = re.findall(r"```python\n(.*?)```", START, re.DOTALL)
    names: dict = {}

    exec(code.replace("http://127.0.0.1:5001", service.url), names)

    assert [NUMBER] == names["one"].tolist()
    assert NUMBER == names["bags"][0]
    assert (2,) == names["bags"].shape


@pytest.fixture(scope="module")
def service(trained, tmp_path_factory):
    """Serve the made model with the food drive's bounds, as in docs/http.md."""
    with serving(trained) as running:
        yield running


def test_there_are_examples_of_every_format():
    assert len(PAIRS) == 8
    assert len(PROGRAMS) == 2


@pytest.mark.parametrize(("asked", "answered"), PAIRS, ids=[asked.splitlines()[0] for asked, _ in PAIRS])
def test_every_example_of_http_gets_the_response_that_is_shown(service, asked, answered):
    head, body = asked.replace("food-drive", "made").split("\n\n", 1)
    method, path = head.splitlines()[0].split()
    headers = dict(line.split(": ") for line in head.splitlines()[1:])
    shown_head, shown_body = answered.replace("food-drive", "made").split("\n\n", 1)

    answer = httpx.request(method, service.url + path, content=body.strip(), headers=headers)

    assert shown_head.splitlines()[0] == f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"
    for line in shown_head.splitlines()[1:]:
        name, value = line.split(": ")
        assert plain(value) == plain(answer.headers[name])
    if "json" in answer.headers["Content-Type"]:
        assert plain(json.loads(shown_body)) == plain(answer.json())
    else:
        assert plain(shown_body) == plain(answer.text.replace("\r\n", "\n"))


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_every_program_of_http_prints_what_is_shown(service, program, output):
    here = program.replace("127.0.0.1:5001", f"127.0.0.1:{service.port}").replace("food-drive", "made")
    done = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, timeout=60, check=False)

    assert (output, 0) == (done.stdout, done.returncode), done.stderr


def plain(value):
    """Return a value as text, without ids and the food drive's units."""
    text = re.sub(r"[0-9a-f]{10}-[0-9a-f]+", "ID", json.dumps(value))
    return re.sub(r"a number( of \w+)? from", "a number from", text)


def test_every_metric_has_its_row_and_every_row_its_metric(service, trained):
    exported = set(re.findall(r"^# TYPE (\w+)", httpx.get(f"{service.url}/metrics").text, re.MULTILINE))
    registry = CollectorRegistry()
    training = TrainingMetrics(registry)
    Resources([], registry)
    settings = load_settings(trained / "gleaner.toml", {"tracking": {"uri": "http://127.0.0.1:9"}})
    Following(Follower(settings, Store(settings.store)), registry)
    exported |= {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    exported |= set(training.gauges)

    documented = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", METRICS, re.MULTILINE))))

    assert documented == {name for name in exported if not name.startswith(("process_", "python_"))}


def test_every_alert_has_its_section_and_every_section_its_alert():
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", ALERTS, re.MULTILINE | re.DOTALL))
    rules = make_alerts(load_settings(ROOT / "gleaner.toml"))

    assert {rule.name for rule in rules} == set(sections)
    for name, text in sections.items():
        assert ["It means", "Look at", "Do"] == re.findall(r"^\*\*([^*]+)\*\*", text, re.MULTILINE), name
    listed = dict(re.findall(r"^\| \[(\w+)\]\(#(\w+)\)", ALERTS, re.MULTILINE))
    assert {name: name.lower() for name in sections} == listed
    for rule in rules:
        assert re.search(rf"^\| \[{rule.name}\][^|]+\|[^|]*{rule.severity}", ALERTS, re.MULTILINE)


def test_the_page_of_alerts_has_every_drill():
    table = ALERTS.split("| drill | injected fault |")[1].split("\n\n")[0]

    assert set(DRILLS) == set(re.findall(r"^\| (\w+) \| [a-z]", table, re.MULTILINE))


def test_every_setting_and_panel_on_the_page_of_alerts_exists():
    panels = {
        panel["title"]
        for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
    }
    settings = re.findall(r"`((?:alerts|objectives|serving|scores|training|tracking)\.\w+)`", ALERTS)

    assert settings
    for setting in settings:
        section, key = setting.split(".")
        assert key in Settings.model_fields[section].annotation.model_fields, setting
    # A panel is named in quotes, behind the dashboard or another panel.
    named = set(re.findall(r'"([A-Z][^"]+)"', " ".join(ALERTS.split())))
    assert named <= panels, named - panels


def test_every_setting_of_the_committed_file_is_a_known_one():
    done = gleaner("config", "show", "--json", folder=ROOT)

    assert set(json.loads(done.stdout)) == set(Settings.model_fields) - {"file"}


def test_troubleshooting_has_every_name_of_the_old_guide_and_only_settings_that_exist():
    old = "train.py train_regression.py predict_api.py RegressionMonitor ml-api model-training train-metrics"
    ports = "5000 5001 5002 8002 8003 8010 8012 8013 8020 9090 3000"
    for name in [*old.split(), *ports.split(), "docker rmi", "lsof -i", "kill -9"]:
        assert name in TROUBLE, name
    for section, key in re.findall(r"`(ports|serving|paths)\.(\w+)`", TROUBLE):
        assert key in Settings.model_fields[section].annotation.model_fields, key
    compose = (ROOT / "docker-compose.yml").read_text()
    for variable in set(re.findall(r"`(\w+_PORT)\b", TROUBLE)):
        assert f"${{{variable}:-" in compose, variable
    known = {" ".join(command.split()[:2]) for command in commands(cli.gleaner)}
    assert {f"gleaner {name}" for name in re.findall(r"`gleaner (\w+)", TROUBLE)} <= known
    for setting in Settings.model_fields["ports"].annotation.model_fields:
        assert f"ports.{setting}" in TROUBLE or setting == "alertmanager"
