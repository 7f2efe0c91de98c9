"""What the documents say is what the code does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest
from conftest import NUMBER, ROOT, gleaner, serving
from prometheus_client import CollectorRegistry

from gleaner import cli
from gleaner.alerts import make_alerts
from gleaner.drills import DRILLS
from gleaner.metrics import Following, Resources, TrainingMetrics
from gleaner.registry import Follower
from gleaner.schema import Feature, read_number, show_cell
from gleaner.settings import Settings, describe_settings, load_settings
from gleaner.store import Store

README = (ROOT / "README.md").read_text()
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
    found = set()
    for name, command in group.commands.items():
        inner = f"{prefix} {name}"
        found |= commands(command, inner) if isinstance(command, click.Group) else {inner}
    return found


def test_the_readme_has_every_command_and_no_other():
    table = README.split("| command | what |")[1].split("\n\n")[0]
    named = {" ".join(re.findall(r"[a-z]+", text.split(" --")[0])) for text in re.findall(r"`(gleaner [^`]+)`", table)}

    assert commands(cli.gleaner) == named


def test_every_link_of_the_documents_leads_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's blocks for a terminal, in their order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for kind, block in blocks if not kind for line in block.splitlines()]


PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_where_gleaner_is_typed_something_has_put_it_on_the_path(page):
    text = page.read_text()
    for line in shell_lines(page):
        if re.match(r"(gleaner|python) ", line):
            assert "source .venv/bin/activate" in text[: text.index(line)], line


def test_the_readmes_way_to_a_table_of_ones_own_works_when_it_is_copied(tmp_path):
    (block,) = re.findall(r"```\n(source .venv/bin/activate[^`]*gleaner init.*?)```", README, re.DOTALL)
    lines = block.splitlines()
    assert lines[-1].startswith("gleaner serve ")
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / ".venv").symlink_to(sys.prefix)
    (tmp_path / "houses").mkdir()
    rows = "".join(f"{rooms},{20 * rooms}\n" for rooms in range(60))
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


def test_what_the_page_of_tables_says_of_numbers_is_so():
    numbers, refused = re.search(
        r"before the decimals: (.*?), with .*?what to do \|\n\| ---.*?\n(.*?)\n\n", TABLES, re.DOTALL
    ).groups()
    column = Feature(name="a", min=0.0)

    assert [2.18, -5.0, 1e6] == [read_number(cell) for cell in re.findall(r"`([^`]+)`", numbers)]
    cells = [cell for line in refused.splitlines() for cell in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert 6 == len(cells)
    for cell in cells:
        with pytest.raises(ValueError, match=r"^$"):
            column.accept_cell(cell)
    assert f"`wanted {column.wanted}, got {show_cell(column, '2,18')}`" in TABLES


def test_the_numbers_in_the_readme_are_those_of_the_sample():
    sample = (ROOT / "examples" / "food-drive" / "README.md").read_text()
    told = dict(re.findall(r"candidate=(\w+) .*mae=([\d.]+)", README))

    assert {"linear", "decision_tree", "random_forest", "gradient_boosting", "spline"} == set(told)
    for candidate, mae in told.items():
        assert re.search(rf"{candidate}.* {mae}\b", sample), candidate


def test_the_readmes_python_runs_against_a_service(service):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}

    exec(code.replace("http://127.0.0.1:5001", service.url), names)

    assert [NUMBER] == names["one"].tolist()
    assert NUMBER == names["bags"][0]
    assert (2,) == names["bags"].shape


@pytest.fixture(scope="module")
def service(trained, tmp_path_factory):
    """The made model behind the food drive's own bounds, as docs/http.md shows them."""
    with serving(trained) as running:
        yield running


def test_there_are_examples_of_every_door():
    assert len(PAIRS) == 8
    assert len(PROGRAMS) == 2


@pytest.mark.parametrize(("asked", "answered"), PAIRS, ids=[asked.splitlines()[0] for asked, _ in PAIRS])
def test_every_example_of_http_is_answered_as_shown(service, asked, answered):
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
    """A value without what differs from run to run: ids, and the units that only the food drive has."""
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


def test_every_alert_has_its_section_for_who_is_woken_and_every_section_its_alert():
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
    table = ALERTS.split("| drill | fault |")[1].split("\n\n")[0]

    assert set(DRILLS) == set(re.findall(r"^\| (\w+) \| [a-z]", table, re.MULTILINE))


def test_the_page_of_alerts_speaks_of_settings_and_panels_that_there_are():
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


def test_troubleshooting_has_every_name_of_the_old_guide_and_speaks_of_what_there_is():
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
