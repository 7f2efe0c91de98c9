"""The process of `gleaner train --resident`, and its trainings."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import mlflow
import psutil
import pytest
from projects import SETTINGS, write_made_table
from started import gleaner, residing, wait_for

from gleaner.model.store import Store
from gleaner.training.resident import ask, read_last

# A forest with fifty repeats of its folds takes long enough to be interrupted.
LONG = (
    SETTINGS.replace("repeats = 1", "repeats = 50")
    .replace('["linear", "decision_tree"]', '["linear", "random_forest"]')
    .replace('champion = "decision_tree"', 'champion = "random_forest"')
)
LONGEST = 300.0  # seconds: on a busy machine a training takes more than a minute
GAUGES = (
    "training_loss",
    "validation_loss",
    "validation_accuracy",
    "validation_r2",
    "validation_mae",
    "training_duration_seconds",
    "training_last_success_timestamp_seconds",
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    return tmp_path


def runs(trainer, result: str) -> float:
    return trainer.metrics()[f'training_runs_total{{result="{result}"}}']


def statuses(folder) -> list[str]:
    """Return the status of every run in the folder's MLflow."""
    uri = f"sqlite:///{folder / '.gleaner' / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("made")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def test_with_an_empty_store_it_trains_and_a_restart_shows_the_same_values(folder):
    store = Store(folder / ".gleaner" / "store")
    with residing(folder) as trainer:
        before = trainer.metrics()
        assert set() == set(GAUGES) & set(before)
        assert 0 == before['training_runs_total{result="success"}']

        assert wait_for(lambda: runs(trainer, "success") == 1, LONGEST)
        first = {name: trainer.metrics()[name] for name in GAUGES}
        assert 2 == trainer.metrics()["training_epoch_total"]
        assert 0.8 < first["validation_accuracy"] <= 1
        assert abs(first["training_last_success_timestamp_seconds"] - time.time()) < 60
        assert {"champion": 1, "challenger": 2} == store.aliases()
        # The child is gone, and with it the libraries that it loaded.
        assert wait_for(lambda: trainer.children() == [])
        assert psutil.Process(trainer.process.pid).memory_info().rss < 120e6

        trainer.process.send_signal(signal.SIGTERM)
        assert 0 == trainer.process.wait(timeout=60)

    with residing(folder) as trainer:
        assert first == {name: trainer.metrics()[name] for name in GAUGES}
        time.sleep(1)
        assert (0, 0) == (runs(trainer, "success"), runs(trainer, "error"))
    assert [1, 2] == store.versions()


def test_a_resident_that_starts_later_shows_the_training_by_hand(trained, project):
    (project / ".gleaner" / "trainer").mkdir()
    (project / ".gleaner" / "trainer" / "last.json").write_bytes(
        (trained / ".gleaner" / "trainer" / "last.json").read_bytes()
    )
    last = read_last(project / ".gleaner")

    with residing(project) as trainer:
        assert last.scores.mae == trainer.metrics()["validation_mae"]
        assert last.training_loss == trainer.metrics()["training_loss"]


def test_a_training_by_hand_beside_it_takes_no_port_and_is_shown_at_its_end(folder, trained):
    shutil.copytree(trained / ".gleaner" / "store", folder / ".gleaner" / "store")
    shutil.copy(trained / ".gleaner" / "mlflow.db", folder / ".gleaner")
    with residing(folder) as trainer:
        before = trainer.metrics()
        done = gleaner("train", "--linger", folder=folder)
        assert wait_for(lambda: "training by hand finished" in trainer.log.read_text(), LONGEST)
        after = trainer.metrics()

    assert 0 == done.returncode, done.stderr
    assert f"the resident trainer, pid {trainer.process.pid}, exposes the metrics" in done.stderr
    assert "validation_mae" not in before
    assert read_last(folder / ".gleaner").scores.mae == after["validation_mae"]
    assert 0 == after['training_runs_total{result="success"}']


def test_asked_by_another_terminal_it_trains_and_a_failure_changes_nothing(folder):
    store = Store(folder / ".gleaner" / "store")
    with residing(folder) as trainer:
        assert wait_for(lambda: runs(trainer, "success") == 1, LONGEST)
        told = gleaner("train", "--now", folder=folder)
        assert wait_for(lambda: runs(trainer, "success") == 2, LONGEST)
        good = {name: trainer.metrics()[name] for name in GAUGES}
        assert {"champion": 3, "challenger": 4} == store.aliases()

        (folder / "made.csv").rename(folder / "elsewhere.csv")
        gleaner("train", "--now", folder=folder)
        assert wait_for(lambda: runs(trainer, "error") == 1, LONGEST)

        (folder / "gleaner.toml").write_text(SETTINGS + "\n[trainning]\n")
        ask(folder / ".gleaner")
        assert wait_for(lambda: runs(trainer, "error") == 2, LONGEST)

        assert good == {name: trainer.metrics()[name] for name in GAUGES}
        assert {"champion": 3, "challenger": 4} == store.aliases()
        assert 0 == told.returncode, told.stderr
        assert f"asked the trainer, pid {trainer.process.pid}" in told.stdout
        log = trainer.log.read_text()
    assert "ERROR - training failed reason=" in log
    assert "made.csv: cannot be read: No such file or directory again=when asked" in log
    assert "trainning: no such setting; did you mean 'training'?" in log
    assert "Traceback" not in log

    (folder / "gleaner.toml").write_text(SETTINGS)
    refused = gleaner("train", "--now", folder=folder)
    assert 1 == refused.returncode
    assert "no resident trainer runs" in refused.stderr


def test_sigterm_ends_the_training_in_order(folder):
    (folder / "gleaner.toml").write_text(LONG)
    with residing(folder) as trainer:
        assert wait_for(lambda: trainer.metrics()["training_epoch_total"] >= 1, LONGEST)
        children = trainer.children()
        trainer.process.send_signal(signal.SIGTERM)
        code = trainer.process.wait(timeout=60)

    assert 0 == code
    assert children
    assert [] == [child for child in children if child.is_running()]
    assert "RUNNING" not in statuses(folder)
    assert "FAILED" in statuses(folder)
    assert [] == Store(folder / ".gleaner" / "store").versions()
    assert "training stopped" in trainer.log.read_text()
    assert "Traceback" not in trainer.log.read_text()


def test_sigterm_marks_the_runs_of_a_training_by_hand_as_failed(folder):
    (folder / "gleaner.toml").write_text(LONG)
    command = [sys.executable, "-m", "gleaner", "train", "--metrics-port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "training random_forest" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.terminate()
        _, said = process.communicate(timeout=60)

    assert (130, "interrupted") == (process.returncode, said.strip())
    assert "RUNNING" not in statuses(folder)
    assert "FAILED" in statuses(folder)


def test_an_mlflow_server_that_does_not_respond_is_tried_again(folder):
    with residing(folder, GLEANER_TRACKING__URI="http://127.0.0.1:9") as trainer:
        assert wait_for(lambda: runs(trainer, "error") == 1, LONGEST)
        log = trainer.log.read_text()

    assert [] == Store(folder / ".gleaner" / "store").versions()
    assert "reason=MLflow at http://127.0.0.1:9" in log
    assert "again=in 10 s" in log


def test_beyond_loopback_it_listens_only_with_insecure(folder):
    refused = gleaner("train", "--resident", "--metrics-port", 0, folder=folder, GLEANER_SERVING__HOST="0.0.0.0")

    assert 1 == refused.returncode
    assert "--insecure" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--now", "--seed", "0"], "--now goes alone"),
        (["--now", "made.csv"], "--now goes alone"),
        (["--every", "24h"], "--every needs --resident"),
        (["--resident", "--linger"], "no --linger"),
        (["--resident", "--json"], "--json"),
    ],
)
def test_options_that_exclude_each_other_are_wrong_usage(folder, arguments, said):
    done = gleaner("train", *arguments, folder=folder)

    assert 2 == done.returncode
    assert said in done.stderr


def test_flags_of_the_resident_are_flags_of_its_trainings_which_it_reports_as_json(folder):
    (folder / "made.csv").rename(folder / "other.csv")
    flags = ("--champion", "linear", "--challenger", "none", "--candidates", "linear")
    with residing(folder, "other.csv", *flags, GLEANER_SERVING__LOG="json") as trainer:
        assert wait_for(lambda: runs(trainer, "success") == 1, LONGEST)
        events = [json.loads(line) for line in trainer.log.read_text().splitlines()]

    store = Store(folder / ".gleaner" / "store")
    assert {"champion": 1} == store.aliases()
    assert ("linear", "other.csv") == (store.read(1).manifest.candidate, store.read(1).manifest.data.name)
    assert ("training started", "training finished") == (events[0]["event"], events[-1]["event"])
    assert {"candidate started", "candidate validated"} < {event["event"] for event in events}
    assert {"champion": 1, "candidate": "linear", "rows": 600, "rows_refused": 0}.items() <= events[-1].items()
