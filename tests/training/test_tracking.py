"""The record of a training in the MLflow database that it made."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from projects import NUMBER, ROUTE, SETTINGS, write_made_table
from started import INTERRUPTED, gleaner

from gleaner.model.store import Store
from gleaner.training.tracking import Recorder


@pytest.fixture(scope="module")
def client(trained):
    uri = f"sqlite:///{trained / '.gleaner' / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(uri, uri)


@pytest.fixture(scope="module")
def runs(client):
    experiment = client.get_experiment_by_name("made")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_a_training_is_a_run_with_a_run_for_each_candidate(runs):
    parent = runs["train made.csv"]

    assert {"train made.csv", "linear", "decision_tree"} == set(runs)
    assert {parent.info.run_id} == {runs[name].data.tags["mlflow.parentRunId"] for name in ("linear", "decision_tree")}
    assert {"FINISHED"} == {run.info.status for run in runs.values()}


def test_the_run_has_the_data_that_it_was_trained_on(runs, trained):
    parameters = runs["train made.csv"].data.params

    assert "600" == parameters["rows"]
    assert "0" == parameters["rows_refused"]
    assert 64 == len(parameters["data_sha256"])
    assert "time_spent" == parameters["column.time_spent"]


def test_scores_stand_beside_those_of_the_median(runs):
    metrics = runs["train made.csv"].data.metrics

    assert metrics["validation_mae"] < metrics["constant_mae"]
    assert {"validation_loss", "validation_accuracy", "validation_r2", "training_loss"} <= set(metrics)


def test_every_epoch_is_a_point(client, runs):
    points = client.get_metric_history(runs["decision_tree"].info.run_id, "training_loss")

    assert 1 in {point.step for point in points}


def test_the_settings_and_the_plots_are_kept(client, runs):
    assert "settings.json" in {file.path for file in client.list_artifacts(runs["train made.csv"].info.run_id)}
    plots = {Path(file.path).name for file in client.list_artifacts(runs["linear"].info.run_id, "plots")}
    assert {"predicted_against_actual.png", "residuals.png", "importances.png"} == plots


def test_aliases_point_at_the_two_versions(client):
    assert 1 == int(client.get_model_version_by_alias("made", "champion").version)
    assert 2 == int(client.get_model_version_by_alias("made", "challenger").version)


def test_mlflows_own_loader_gives_the_same_prediction(client):
    row = pd.DataFrame([ROUTE]).astype(float)

    predictions = mlflow.pyfunc.load_model("models:/made@champion").predict(row)

    assert [NUMBER] == predictions["prediction"].tolist()


def test_the_registered_model_has_a_signature_and_an_example(client):
    info = mlflow.models.get_model_info("models:/made@champion")

    assert ["time_spent", "doors_in_route", "assessed_value"] == info.signature.inputs.input_names()
    assert info.saved_input_example_info is not None


def test_the_artifact_is_the_same_in_the_registry_and_in_the_store(client, trained, tmp_path):
    folder = Path(mlflow.artifacts.download_artifacts("models:/made@champion", dst_path=str(tmp_path)))

    stored = Store(trained / ".gleaner" / "store").folder(1)
    assert {p.name: p.read_bytes() for p in stored.iterdir()} == {
        p.name: p.read_bytes() for p in (folder / "gleaner").iterdir()
    }


def test_the_report_has_the_rows_read_and_the_candidates_chosen(trained):
    report = (trained / "train.out").read_text()

    assert "made.csv: 600 rows used, 0 refused" in report
    assert "time_spent from 'time_spent'" in report
    assert "champion: version 1, decision_tree" in report
    assert "(the median)" in report


def test_an_interrupted_training_is_marked_failed_and_leaves_no_version(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS.replace("repeats = 1", "repeats = 50"))
    write_made_table(tmp_path / "made.csv")
    command = [sys.executable, "-m", "gleaner", "train", "--metrics-port", "0", "--candidates", "random_forest,linear"]
    command += ["--champion", "linear", "--challenger", "random_forest"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while "training random_forest" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)

    uri = f"sqlite:///{tmp_path / '.gleaner' / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    runs = client.search_runs([client.get_experiment_by_name("made").experiment_id])
    assert process.returncode in INTERRUPTED
    assert "interrupted" in said
    assert "Traceback" not in said
    assert {"FAILED"} == {run.info.status for run in runs}
    assert [] == list(client.search_registered_models())
    assert [] == Store(tmp_path / ".gleaner" / "store").versions()


class Gone:
    """A client of an MLflow server that is gone."""

    def set_terminated(self, run_id: str, status: str) -> None:
        raise mlflow.MlflowException("cannot be reached at http://joe:s3cret@127.0.0.1:9")


def test_a_run_that_cannot_be_marked_as_finished_is_a_warning(caplog):
    recorder = Recorder.__new__(Recorder)
    recorder.client, recorder.run_id, recorder.children = Gone(), "r", {}

    recorder.__exit__(None)
    recorder.__exit__(ValueError)

    [line] = caplog.records
    assert ("run not marked as finished", "r") == (line.message, line.run_id)
    assert "s3cret" not in line.detail


def test_a_second_training_makes_new_versions_and_moves_the_aliases(project, trained, tmp_path):
    first = gleaner("train", "--metrics-port", "0", folder=project)

    # This project's registry is empty while its store is not, so one number would mean two models.
    assert 1 == first.returncode
    assert "holds another model than the registry's version 1" in first.stderr
    assert {"champion": 1, "challenger": 2} == Store(project / ".gleaner" / "store").aliases()

    whole = shutil.copytree(trained, tmp_path / "whole")
    again = gleaner("train", "--metrics-port", "0", "--json", folder=whole)

    assert 0 == again.returncode, again.stderr
    assert {"champion": 3, "challenger": 4} == Store(whole / ".gleaner" / "store").aliases()
    moved = (
        gleaner("models", "promote", 1, folder=whole),
        gleaner("models", "promote", 2, "--alias", "challenger", folder=whole),
    )
    assert [0, 0] == [done.returncode for done in moved]
    assert {"champion": 1, "challenger": 2} == Store(whole / ".gleaner" / "store").aliases()
    uri = f"sqlite:///{whole / '.gleaner' / 'mlflow.db'}"
    assert 1 == int(mlflow.MlflowClient(uri, uri).get_model_version_by_alias("made", "champion").version)


def test_an_experiment_that_began_at_a_server_continues_without_it(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")
    state = tmp_path / ".gleaner"
    state.mkdir()
    uri = f"sqlite:///{state / 'mlflow.db'}"
    # A server with --artifacts-destination does this for a new experiment.
    mlflow.MlflowClient(uri, uri).create_experiment("made", artifact_location="mlflow-artifacts:/1")

    done = gleaner("train", "--metrics-port", 0, folder=tmp_path)

    assert 0 == done.returncode, done.stderr
    kept = state / "mlartifacts" / "1"
    assert [1, 2] == Store(state / "store").versions()
    assert 2 == len(list(kept.glob("models/*/artifacts/gleaner/model.onnx")))
    assert 1 == len(list(kept.glob("*/artifacts/settings.json")))
