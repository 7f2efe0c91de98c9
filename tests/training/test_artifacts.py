"""MLflow's files without a server, and after a move of their folder."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from notebook import look_into
from projects import NUMBER
from started import gleaner

from gleaner.training.artifacts import find_files

PLOTS = ["plots/importances.png", "plots/predicted_against_actual.png", "plots/residuals.png"]


def find_text(database: Path, text: str) -> list[tuple[str, str, str]]:
    """Find every cell of a database with a text in it."""
    found = []
    opened = sqlite3.connect(database)
    for (table,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for _, column, *_ in opened.execute(f"PRAGMA table_info({table})").fetchall():
            cells = opened.execute(f'SELECT "{column}" FROM {table} WHERE "{column}" LIKE ?', (f"%{text}%",))
            found += [(table, column, cell) for (cell,) in cells]
    opened.close()
    return found


@pytest.fixture
def moved(trained, tmp_path) -> Path:
    """Copy a trained folder to another path."""
    return Path(shutil.copytree(trained, tmp_path / "another" / "path"))


def test_the_database_names_no_folder_with_files(trained):
    found = find_text(trained / ".gleaner" / "mlflow.db", str(trained))

    # MLflow itself makes this experiment, which stays empty.
    assert [("experiments", "artifact_location", f"{trained}/mlruns/0")] == found


def test_a_notebook_reads_plots_and_models_of_a_moved_folder(moved):
    seen = look_into(moved)

    assert [NUMBER] == seen["prediction"]
    assert len(seen["plots"]) >= 2
    assert all(plots == PLOTS for plots in seen["plots"].values())


def test_a_training_goes_on_in_a_moved_folder(moved):
    before = set((moved / ".gleaner" / "mlartifacts").iterdir())

    done = gleaner("train", "--metrics-port", 0, folder=moved)

    assert 0 == done.returncode, done.stderr
    assert len(set((moved / ".gleaner" / "mlartifacts").iterdir()) - before) == 3
    assert [NUMBER] == look_into(moved)["prediction"]


@pytest.mark.parametrize(
    ("tracking", "folder"),
    [
        ("sqlite:////srv/a b/.gleaner/mlflow.db", "/srv/a b/.gleaner/mlartifacts"),
        ("sqlite+pysqlite:////srv/mlflow.db?timeout=5", "/srv/mlartifacts"),
    ],
)
def test_files_stand_beside_a_database(tracking, folder):
    files = find_files("mlflow-artifacts:/7/artifacts", tracking)

    assert isinstance(files, LocalArtifactRepository)
    assert f"{folder}/7/artifacts" == files.artifact_dir


@pytest.mark.parametrize(
    ("location", "tracking"),
    [
        ("mlflow-artifacts:/7/artifacts", "http://127.0.0.1:5002"),
        ("mlflow-artifacts://127.0.0.1:5002/7/artifacts", "http://127.0.0.1:5002"),
    ],
)
def test_files_of_a_server_come_from_the_server(location, tracking):
    files = find_files(location, tracking)

    assert isinstance(files, MlflowArtifactsRepository)
    assert "http://127.0.0.1:5002/api/2.0/mlflow-artifacts/artifacts/7/artifacts" == files.artifact_uri
