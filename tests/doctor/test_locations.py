"""The doctor's look at databases that an older Gleaner made."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import mlflow
import pytest
from notebook import look_into
from projects import NUMBER, SETTINGS, write_made_table
from started import gleaner

from gleaner.backup.locations import find_absolute
from gleaner.doctor.locations import examine_locations, fix_locations
from gleaner.settings.load import load_settings


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Train as before, when an experiment had the folder's full name."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    (folder / ".gleaner").mkdir()
    uri = f"sqlite:///{folder / '.gleaner' / 'mlflow.db'}"
    files = (folder / ".gleaner" / "mlartifacts").as_uri()
    mlflow.MlflowClient(uri, uri).create_experiment("made", artifact_location=files)
    done = gleaner("train", "--metrics-port", 0, folder=folder)
    assert 0 == done.returncode, done.stderr
    return folder


@pytest.fixture
def old(made, tmp_path) -> Path:
    """Copy it, as if it had been trained there."""
    folder = Path(shutil.copytree(made, tmp_path / "old"))
    point_at(folder, str(made), str(folder))
    return folder


def point_at(folder: Path, before: str, after: str) -> None:
    opened = sqlite3.connect(folder / ".gleaner" / "mlflow.db")
    for table, column in (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
    ):
        changed = opened.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, after))
        assert changed.rowcount
    opened.commit()
    opened.close()


def verdict(folder: Path) -> tuple[str, str, str]:
    (finding,) = examine_locations(load_settings(folder / "gleaner.toml"))
    return finding.verdict, finding.detail, finding.fix


@pytest.mark.slow
def test_an_old_database_still_works_and_is_a_warning(old):
    kind, detail, fix = verdict(old)

    assert [NUMBER] == look_into(old)["prediction"]
    assert ("WARN", "gleaner doctor --fix") == (kind, fix)
    assert f"8 locations that name {old / '.gleaner' / 'mlartifacts'}" in detail
    assert 0 == gleaner("train", "--metrics-port", 0, folder=old).returncode


def test_a_moved_old_database_is_found_and_fixed(old, tmp_path):
    folder = old.rename(tmp_path / "new")
    kind, detail, _ = verdict(folder)

    assert "FAIL" == kind
    assert f"points at files in {old / '.gleaner' / 'mlartifacts'}, which is not here" in detail

    done = gleaner("doctor", "--fix", folder=folder)

    assert "fixed mlflow database: 8 locations recorded without a folder\n" == done.stderr
    assert "OK   mlflow database: .gleaner/mlflow.db names no folder" in done.stdout
    seen = look_into(folder)
    assert [NUMBER] == seen["prediction"]
    assert 2 == len(seen["plots"])
    assert 0 == gleaner("train", "--metrics-port", 0, folder=folder).returncode
    assert not old.exists()
    assert "" == fix_locations(load_settings(folder / "gleaner.toml"))


def test_a_training_in_a_moved_old_folder_is_refused_and_writes_nothing_elsewhere(old, tmp_path):
    folder = old.rename(tmp_path / "new")

    done = gleaner("train", "--metrics-port", 0, folder=folder)

    assert 1 == done.returncode
    assert f"MLflow's database names {old}/.gleaner/mlartifacts" in done.stderr
    assert "gleaner doctor --fix" in done.stderr
    assert not old.exists()


def test_files_that_went_to_the_old_folder_come_along(old, tmp_path):
    """Before, a training in a moved folder made the old folder again."""
    folder = Path(shutil.copytree(old, tmp_path / "new"))
    files, elsewhere = folder / ".gleaner" / "mlartifacts", old / ".gleaner" / "mlartifacts"
    (moved, *_) = [path for path in files.iterdir() if (path / "artifacts" / "plots").is_dir()]
    shutil.rmtree(moved)
    for path in elsewhere.iterdir():
        if path.name != moved.name:
            shutil.rmtree(path)
    assert "another folder" in verdict(folder)[1]

    done = fix_locations(load_settings(folder / "gleaner.toml"))

    assert done.endswith("1 of them with files copied here")
    assert "OK" == verdict(folder)[0]
    assert (elsewhere / moved.name).exists()
    shutil.rmtree(old)
    assert {3} == {len(plots) for plots in look_into(folder)["plots"].values()}


def test_a_file_that_is_no_database_is_a_finding(old):
    (old / ".gleaner" / "mlflow.db").write_bytes(b"no database" * 100)

    kind, detail, fix = verdict(old)

    assert "FAIL" == kind
    assert "cannot be read as MLflow's database" in detail
    assert fix


def test_locations_of_other_programs_stay(old):
    opened = sqlite3.connect(old / ".gleaner" / "mlflow.db")
    opened.execute("UPDATE experiments SET artifact_location = 's3://bucket/mlartifacts' WHERE name = 'made'")
    opened.commit()
    opened.close()

    fix_locations(load_settings(old / "gleaner.toml"))

    assert "s3://bucket/mlartifacts" == look_into(old)["location"]
    assert [] == find_absolute(old / ".gleaner" / "mlflow.db")
