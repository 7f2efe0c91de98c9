"""Drills without Prometheus, and no injected fault in serving."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import made
import numpy as np
import pytest
import yaml
from projects import ROOT, SETTINGS
from started import gleaner, responding, tool

from gleaner.drills.faulty import Raising, main, noise, shuffled, slow
from gleaner.drills.play import DRILLS, Drill, Played, play, prepare
from gleaner.drills.stage import PROGRAMS, Failed, finish_within
from gleaner.errors import BadTraining, NoModel, Refused
from gleaner.model.predictor import Predictor
from gleaner.model.store import Store
from gleaner.running.program import Program
from gleaner.settings.load import load_settings
from gleaner.training.resident import read_last
from gleaner.watching.alerts import make_alerts
from gleaner.watching.render import render

SOURCE = ROOT / "src" / "gleaner"


def settings_in(folder: Path, **flags):
    (folder / "gleaner.toml").write_text(SETTINGS)
    return load_settings(folder / "gleaner.toml", flags)


def test_every_alert_has_a_drill_and_every_drill_its_alert():
    assert {alert.name for alert in make_alerts(load_settings(ROOT / "gleaner.toml"))} == set(DRILLS)


def test_no_file_imports_the_injected_faults():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert "gleaner.drills.faulty" not in [module, *names], path.name
            assert not (module == "gleaner.drills" and "faulty" in names), path.name


def test_serving_has_no_injected_fault_and_no_option_or_setting_for_one():
    modules = "gleaner.cli.serve, gleaner.cli.train, gleaner.serving.server, gleaner.doctor.examine"
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "gleaner.drills.faulty" not in loaded
    for text in (gleaner("serve", "--help", folder=ROOT).stdout, gleaner("config", "describe", folder=ROOT).stdout):
        assert "drill" not in text
        assert "spoil" not in text


def test_a_raising_predictor_raises_for_one_row_and_for_many():
    predictor = Raising(made.artifact("decision_tree"))

    with pytest.raises(RuntimeError):
        predictor.predict_row([1.0, 2.0, 3.0])
    with pytest.raises(RuntimeError):
        predictor.predict(np.ones((2, 3)))


def test_a_slow_predictor_predicts_the_same():
    artifact = made.artifact("linear")
    row = [30.0, 50.0, 200_000.0]

    late, right = slow(0.001)(artifact), Predictor(artifact)

    assert right.predict_row(row) == late.predict_row(row)
    assert right.predict(np.array([row])).tolist() == late.predict(np.array([row])).tolist()


def test_shuffling_moves_targets_and_keeps_their_values(tmp_path):
    table = made.table()
    spoilt = shuffled(table, settings_in(tmp_path))

    assert sorted(table.y.tolist()) == sorted(spoilt.y.tolist())
    assert (table.y != spoilt.y).mean() > 0.3
    assert np.array_equal(table.X, spoilt.X)


def test_noise_respects_a_minimum_and_has_both_signs_without_one(tmp_path):
    table, settings = made.table(), settings_in(tmp_path)
    unbounded = settings.model_copy(update={"model": settings.model.model_copy(update={"min": None})})

    assert 0 <= noise(table, settings).y.min()
    assert noise(table, settings).y.max() > 10_000
    assert noise(table, unbounded).y.min() < 0 < noise(table, unbounded).y.max()


def test_a_process_with_an_injected_fault_serves_this_machine_only(tmp_path, monkeypatch):
    settings_in(tmp_path)
    monkeypatch.setenv("GLEANER_SERVING__HOST", "0.0.0.0")

    for arguments in (["service", "raising"], ["trainer", "shuffled"]):
        with pytest.raises(Refused, match=r"this machine only: serving\.host is 0\.0\.0\.0"):
            main([*arguments, str(tmp_path / "gleaner.toml"), "0", "0"])


def fill(folder: Path):
    settings = settings_in(folder)
    made.fill(settings.store, made.artifact("decision_tree"), made.artifact("linear"))
    return settings


@pytest.fixture
def tools():
    tool("prometheus")
    tool("prometheus-alertmanager")


def test_a_stage_has_no_webhook(tmp_path, tools):
    fill(tmp_path)
    webhook = {"webhook": "http://127.0.0.1:9/hook", "webhook_token_file": "/run/token"}

    stage = prepare(settings_in(tmp_path, alerts=webhook), tmp_path / "stage", None)

    files = "".join(render(stage.settings, "local", stage.run, stage.hurry, PROGRAMS).values())
    assert "127.0.0.1:9/hook" not in files
    assert "/run/token" not in files


def test_a_stage_scrapes_its_own_processes_and_no_mlflow(tmp_path, tools):
    stage = prepare(fill(tmp_path), tmp_path / "stage", None)

    files = render(stage.settings, "local", stage.run, stage.hurry, PROGRAMS)
    jobs = yaml.safe_load(files["prometheus/prometheus.yml"])["scrape_configs"]
    assert ["ml-api", "train-metrics", "prometheus"] == [job["job_name"] for job in jobs]


def test_a_stage_has_its_own_copies_and_ports(tmp_path, tools):
    (tmp_path / "real").mkdir()
    settings = fill(tmp_path / "real")
    before = sorted(path for path in tmp_path.rglob("*"))

    stage = prepare(settings, tmp_path / "stage", None)

    copied = Store(stage.settings.store)
    assert Store(settings.store).aliases() == copied.aliases()
    assert stage.settings.store.is_relative_to(tmp_path / "stage")
    assert 7 == len(set(stage.settings.ports.model_dump().values()) - set(settings.ports.model_dump().values()))
    assert copied.read(1).manifest.scores["mae"] == read_last(stage.state).scores.mae
    assert before == sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "stage"))
    programs = {program.name: program for program in stage.stack.programs(stage.run)}
    keys = ("PATHS__STATE", "SERVING__HOST", "SERVING__UNREADY_SECONDS", "TRACKING__URI", "TRAINING__EVERY")
    for name in ("ml-app", "train-metrics"):
        environment = programs[name].environment
        assert (str(stage.state), "127.0.0.1", "0.0", "", "") == tuple(environment[f"GLEANER_{key}"] for key in keys)


@pytest.mark.parametrize(("window", "scrape", "hurry"), [(300.0, 15.0, 20.0), (60.0, 15.0, 20.0), (8.0, 2.0, 8 / 3)])
def test_windows_keep_at_least_four_scrapes(tmp_path, tools, window, scrape, hurry):
    names = ("error", "slow", "restart")
    fill(tmp_path)
    windows = {f"{name}_window_seconds": window for name in names} | {"scrape_seconds": scrape}
    settings = settings_in(tmp_path, alerts={**windows, "restarts": 1})

    stage = prepare(settings, tmp_path / "stage", None)

    assert pytest.approx(hurry) == stage.hurry
    assert window / stage.hurry >= 4 * stage.settings.alerts.scrape_seconds / stage.hurry


def test_without_a_model_a_program_or_data_the_error_says_what_to_do(tmp_path, tools, monkeypatch):
    with pytest.raises(NoModel, match=r"no version with the alias champion; run `gleaner train"):
        prepare(settings_in(tmp_path), tmp_path / "stage", None)

    stage = prepare(fill(tmp_path), tmp_path / "stage", tmp_path / "nowhere.csv")
    stage.programs = {program.name: program for program in stage.stack.programs(stage.run)}
    with pytest.raises(BadTraining, match=r"nowhere\.csv does not exist: name one with --data"):
        stage.faulty_trainer("shuffled")

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="a drill needs alertmanager, prometheus"):
        prepare(settings_in(tmp_path), tmp_path / "other stage", None)


def test_an_unknown_alert_is_refused_with_the_nearest_name(tmp_path):
    settings_in(tmp_path)

    done = gleaner("drill", "HighErorRate", folder=tmp_path)
    listed = gleaner("drill", folder=tmp_path)

    assert 1 == done.returncode
    assert "did you mean 'HighErrorRate'?" in done.stderr
    assert set(DRILLS) == {line.split()[0] for line in listed.stdout.splitlines()[1:]}
    assert all(dataclasses.is_dataclass(drill) for drill in DRILLS.values())


def test_a_step_that_takes_too_long_fails_with_its_name_and_time():
    with pytest.raises(Failed, match=r"^NoModel did not fire within 0 s$"):
        asyncio.run(finish_within(0.01, asyncio.sleep(60), "NoModel did not fire"))


# A drill on a stage without processes, with stand-ins for Prometheus and Alertmanager


class Observed:
    """A stage without processes, whose one alert a test controls.

    shows: called with the number of looks since the fault was last injected or removed; returns whether it fires.
    """

    def __init__(self, shows: Callable[[str, int], bool]) -> None:
        self.shows, self.steps, self.looks = shows, ["quiet"], 0
        self.settings, self.hurry = load_settings(ROOT / "gleaner.toml"), 1e6
        self.programs: dict[str, Program] = {}

    @contextlib.asynccontextmanager
    async def playing(self, lines: object, lock: object) -> AsyncIterator[None]:
        yield

    def do(self, step: str) -> Callable[[object], Awaitable[None]]:
        async def act(stage: object) -> None:
            assert self is stage
            self.steps.append(step)
            self.looks = 0

        return act

    def reply(self, method: str, path: str, body: bytes, headers: object) -> tuple[int, bytes]:
        if path == "/api/v1/targets":
            return 200, json.dumps({"data": {"activeTargets": 3 * [{"health": "up"}]}}).encode()
        assert path == "/api/v2/alerts"
        self.looks += 1
        alert = {"labels": {"alertname": "NoModel"}, "annotations": {"summary": "no model"}}
        return 200, json.dumps([alert] if self.shows(self.steps[-1], self.looks) else []).encode()


def play_observed(monkeypatch, shows: Callable[[str, int], bool]) -> tuple[Observed, Played]:
    stage, limit = Observed(shows), 60.0 if shows is fires_and_ends_late else 1.0
    monkeypatch.setitem(DRILLS, "NoModel", Drill("a fault", stage.do("injected"), stage.do("removed")))
    with responding(stage.reply) as port:
        for name in ("prometheus", "alertmanager"):
            stage.programs[name] = Program(name, (), address=f"http://127.0.0.1:{port}")
        return stage, asyncio.run(play("NoModel", stage, None, 0, say=lambda _: None, limit_seconds=limit))


def fires_and_ends_late(step: str, looks: int) -> bool:
    return (step == "injected" and looks > 3) or (step == "removed" and looks <= 5)


def test_a_drill_waits_for_its_alert_and_for_the_alerts_end(monkeypatch):
    stage, played = play_observed(monkeypatch, fires_and_ends_late)

    assert ["quiet", "injected", "removed"] == stage.steps
    assert 6 == stage.looks  # five with the alert, and one without
    assert "no model" == played.summary


def test_a_drill_whose_fault_does_nothing_fails(monkeypatch):
    with pytest.raises(Failed, match="NoModel did not fire within 1 s"):
        play_observed(monkeypatch, lambda step, looks: False)


def test_a_drill_whose_alert_does_not_end_fails(monkeypatch):
    with pytest.raises(Failed, match="NoModel did not resolve within 1 s"):
        play_observed(monkeypatch, lambda step, looks: step != "quiet")


def test_a_drill_whose_alert_fires_without_a_fault_fails(monkeypatch):
    with pytest.raises(Failed, match="NoModel fires already"):
        play_observed(monkeypatch, lambda step, looks: True)
