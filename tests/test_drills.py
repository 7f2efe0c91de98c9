"""The drills as far as no Prometheus is needed: one for every alert, and none of their faults in what serves."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import made
import numpy as np
import pytest
import yaml
from conftest import ROOT, SETTINGS, gleaner, tool

from gleaner.alerts import make_alerts
from gleaner.drills import DRILLS, PROGRAMS, prepare
from gleaner.errors import BadTraining, NoModel, Refused
from gleaner.faults import Raising, main, noise, shuffled, slow
from gleaner.monitoring import render
from gleaner.predictor import Predictor
from gleaner.settings import load_settings
from gleaner.store import Store
from gleaner.trainer import read_last

SOURCE = ROOT / "src" / "gleaner"


def settings_in(folder: Path, **flags):
    (folder / "gleaner.toml").write_text(SETTINGS)
    return load_settings(folder / "gleaner.toml", flags)


def test_every_alert_has_a_drill_and_every_drill_its_alert():
    assert {alert.name for alert in make_alerts(load_settings(ROOT / "gleaner.toml"))} == set(DRILLS)


def test_no_file_imports_a_fault():
    for path in SOURCE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert "gleaner.faults" not in [module, *names], path.name
            assert not (module == "gleaner" and "faults" in names), path.name


def test_serving_loads_none_and_no_option_or_setting_speaks_of_one():
    code = "import sys, gleaner.cli, gleaner.app, gleaner.server, gleaner.slots, gleaner.doctor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "gleaner.faults" not in loaded
    for text in (gleaner("serve", "--help", folder=ROOT).stdout, gleaner("config", "describe", folder=ROOT).stdout):
        assert "drill" not in text
        assert "spoil" not in text


def test_a_raising_predictor_raises_for_a_row_and_for_many():
    predictor = Raising(made.artifact("decision_tree"))

    with pytest.raises(RuntimeError):
        predictor.predict_row([1.0, 2.0, 3.0])
    with pytest.raises(RuntimeError):
        predictor.predict(np.ones((2, 3)))


def test_a_slow_predictor_answers_rightly():
    artifact = made.artifact("linear")
    row = [30.0, 50.0, 200_000.0]

    late, right = slow(0.001)(artifact), Predictor(artifact)

    assert right.predict_row(row) == late.predict_row(row)
    assert right.predict(np.array([row])).tolist() == late.predict(np.array([row])).tolist()


def test_shuffled_targets_are_the_same_ones_elsewhere(tmp_path):
    table = made.table()
    spoilt = shuffled(table, settings_in(tmp_path))

    assert sorted(table.y.tolist()) == sorted(spoilt.y.tolist())
    assert (table.y != spoilt.y).mean() > 0.3
    assert np.array_equal(table.X, spoilt.X)


def test_noise_keeps_to_the_least_value_and_a_target_without_one_gets_both_signs(tmp_path):
    table, settings = made.table(), settings_in(tmp_path)
    unbounded = settings.model_copy(update={"model": settings.model.model_copy(update={"min": None})})

    assert 0 <= noise(table, settings).y.min()
    assert noise(table, settings).y.max() > 10_000
    assert noise(table, unbounded).y.min() < 0 < noise(table, unbounded).y.max()


def test_a_process_with_a_fault_is_for_this_machine_only(tmp_path, monkeypatch):
    settings_in(tmp_path)
    monkeypatch.setenv("GLEANER_SERVING__HOST", "0.0.0.0")

    for arguments in (["service", "raising"], ["trainer", "shuffled"]):
        with pytest.raises(Refused, match="this machine only"):
            main([*arguments, str(tmp_path / "gleaner.toml"), "0", "0"])


def fill(folder: Path):
    settings = settings_in(folder)
    made.fill(settings.store, made.artifact("decision_tree"), made.artifact("linear"))
    return settings


@pytest.fixture
def tools():
    tool("prometheus")
    tool("prometheus-alertmanager")


def test_nobody_is_told_of_a_stages_alerts(tmp_path, tools):
    fill(tmp_path)
    told = {"webhook": "http://127.0.0.1:9/hook", "webhook_token_file": "/run/token"}

    stage = prepare(settings_in(tmp_path, alerts=told), tmp_path / "stage", None)

    files = "".join(render(stage.settings, "local", stage.run, stage.hurry, PROGRAMS).values())
    assert "127.0.0.1:9/hook" not in files
    assert "/run/token" not in files


def test_a_stage_asks_what_it_runs_and_no_mlflow(tmp_path, tools):
    stage = prepare(fill(tmp_path), tmp_path / "stage", None)

    files = render(stage.settings, "local", stage.run, stage.hurry, PROGRAMS)
    jobs = yaml.safe_load(files["prometheus/prometheus.yml"])["scrape_configs"]
    assert ["ml-api", "train-metrics", "prometheus"] == [job["job_name"] for job in jobs]


def test_a_stage_has_copies_and_ports_of_its_own(tmp_path, tools):
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
    for name in ("ml-app", "train-metrics"):
        environment = programs[name].environment
        assert (str(stage.state), "127.0.0.1", "") == tuple(
            environment[f"GLEANER_{key}"] for key in ("PATHS__STATE", "SERVING__HOST", "TRACKING__URI")
        )


@pytest.mark.parametrize(("window", "scrape", "hurry"), [(300.0, 15.0, 20.0), (60.0, 15.0, 20.0), (8.0, 2.0, 8 / 3)])
def test_windows_are_shortened_no_more_than_leaves_values_in_them(tmp_path, tools, window, scrape, hurry):
    names = ("error", "slow", "restart")
    fill(tmp_path)
    windows = {f"{name}_window_seconds": window for name in names} | {"scrape_seconds": scrape}
    settings = settings_in(tmp_path, alerts={**windows, "restarts": 1})

    stage = prepare(settings, tmp_path / "stage", None)

    assert pytest.approx(hurry) == stage.hurry
    assert window / stage.hurry >= 4 * stage.settings.alerts.scrape_seconds / stage.hurry


def test_without_a_model_or_a_program_or_data_it_says_what_is_wanted(tmp_path, tools, monkeypatch):
    with pytest.raises(NoModel, match="gleaner train"):
        prepare(settings_in(tmp_path), tmp_path / "stage", None)

    stage = prepare(fill(tmp_path), tmp_path / "stage", tmp_path / "nowhere.csv")
    stage.programs = {program.name: program for program in stage.stack.programs(stage.run)}
    with pytest.raises(BadTraining, match=r"nowhere\.csv; --data names a CSV file"):
        stage.faulty_trainer("shuffled")

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="a drill needs alertmanager, prometheus"):
        prepare(settings_in(tmp_path), tmp_path / "other stage", None)


def test_an_unknown_alert_is_answered_with_the_nearest(tmp_path):
    settings_in(tmp_path)

    done = gleaner("drill", "HighErorRate", folder=tmp_path)
    listed = gleaner("drill", folder=tmp_path)

    assert 1 == done.returncode
    assert "did you mean 'HighErrorRate'?" in done.stderr
    assert set(DRILLS) == {line.split()[0] for line in listed.stdout.splitlines()[1:]}
    assert all(dataclasses.is_dataclass(drill) for drill in DRILLS.values())
