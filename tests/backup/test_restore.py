"""Restored folders predict the same number, and replace nothing."""

from __future__ import annotations

import io
import shutil
import sqlite3
import stat
from pathlib import Path

import httpx
import pytest
from notebook import look_into
from projects import NUMBER, ROUTE, SETTINGS
from signed import read_key, sign
from started import gleaner, serving

from gleaner.backup import restore
from gleaner.backup.create import make_backup
from gleaner.backup.restore import restore_folder
from gleaner.errors import Refused, Unwritable
from gleaner.model.store import Store
from gleaner.settings.load import load_settings


def backup_of(folder: Path, more: str = "") -> bytes:
    (folder / "gleaner.toml").write_text(SETTINGS + more)
    out = io.BytesIO()
    make_backup(load_settings(folder / "gleaner.toml"), out)
    return out.getvalue()


def name_the_folder(state: Path) -> None:
    """Record locations as an older Gleaner did: with the folder's full name."""
    database = sqlite3.connect(state / "mlflow.db")
    for table, column in (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
    ):
        after = ("mlflow-artifacts:", (state / "mlartifacts").as_uri())
        assert database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", after).rowcount
    database.commit()
    database.close()


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_restored_copy_answers_the_same_number_in_another_folder(trained, tmp_path):
    """The original is gone: nothing may still point at it."""
    original = Path(shutil.copytree(trained, tmp_path / "original"))
    made = gleaner("backup", tmp_path / "b.tar.gz", folder=original)
    assert 0 == made.returncode, made.stderr
    shutil.rmtree(original)

    done = gleaner("restore", "b.tar.gz", "a path/restored", folder=tmp_path)

    folder = tmp_path / "a path" / "restored"
    assert 0 == done.returncode, done.stderr
    assert "restored made, " in done.stdout
    assert "champion is " in done.stdout
    assert "next: cd 'a path/restored' && gleaner doctor, then gleaner serve or gleaner up" in done.stdout
    with serving(folder) as service:
        assert {"prediction": [NUMBER]} == httpx.post(f"{service.url}/v1/predict", json=ROUTE).json()
    seen = look_into(folder)
    assert [NUMBER] == seen["prediction"]
    assert {3} == {len(plots) for plots in seen["plots"].values()}

    trained_again = gleaner("train", "--metrics-port", 0, folder=folder)

    assert 0 == trained_again.returncode, trained_again.stderr
    assert len(look_into(folder)["plots"]) == len(seen["plots"]) + 2
    assert not original.exists()
    assert "OK   mlflow database" in gleaner("doctor", folder=folder).stdout


def test_a_restored_copy_asks_for_the_same_keys_and_signatures(folder, tmp_path):
    """Keys, certificates and signatures come back, and the service uses them."""
    (folder / "keys").mkdir()
    assert 0 == gleaner("keys", "signing", "keys/signing", folder=folder).returncode
    key = gleaner("keys", "add", "drive", folder=folder).stdout.strip()
    with (folder / "gleaner.toml").open("a") as file:
        file.write('\n[serving]\nkeys_file = "api-keys.json"\npublic_key = "keys/signing.pub"\n')
    (folder / ".gleaner" / "keys-used.json").write_text('{"0a": "2026-01-01T00:00:00+00:00"}')
    pair = read_key(folder / "keys" / "signing")
    sign(folder / ".gleaner" / "store" / "versions" / "1", pair)
    made = gleaner("backup", tmp_path / "b.tar.gz", folder=folder)
    assert 0 == made.returncode, made.stderr
    shutil.rmtree(folder)

    done = gleaner("restore", tmp_path / "b.tar.gz", tmp_path / "restored", folder=tmp_path)

    assert 0 == done.returncode, done.stderr
    with serving(tmp_path / "restored") as service:
        url = f"{service.url}/v1/predict"
        assert 401 == httpx.post(url, json=ROUTE).status_code
        assert {"prediction": [NUMBER]} == httpx.post(url, json=ROUTE, headers={"X-Api-Key": key}).json()
    assert "0a" in (tmp_path / "restored" / ".gleaner" / "keys-used.json").read_text()


def test_the_backup_of_an_old_database_is_restored_without_the_folders_name(trained, tmp_path):
    original = Path(shutil.copytree(trained, tmp_path / "original"))
    name_the_folder(original / ".gleaner")
    make_backup(load_settings(original / "gleaner.toml"), tmp_path / "b.tar.gz")
    shutil.rmtree(original)
    with (tmp_path / "b.tar.gz").open("rb") as file:
        restore_folder(file, "b.tar.gz", tmp_path / "restored")

    assert [NUMBER] == look_into(tmp_path / "restored")["prediction"]


def test_it_restores_into_the_current_folder_beside_other_files(folder, tmp_path):
    backup = tmp_path / "b.tar.gz"
    backup.write_bytes(backup_of(folder))
    (tmp_path / "here" / ".gleaner").mkdir(parents=True)  # an empty state is no state
    (tmp_path / "here" / "README").write_text("mine")

    done = gleaner("restore", backup, folder=tmp_path / "here")

    assert 0 == done.returncode, done.stderr
    assert [".gleaner", "README", "gleaner.toml", "made.csv"] == sorted(p.name for p in (tmp_path / "here").iterdir())
    assert "next: gleaner doctor" in done.stdout


@pytest.mark.parametrize("taken", ["gleaner.toml", ".gleaner/store/aliases.json", ".gleaner/anything", "made.csv"])
def test_it_replaces_nothing(folder, tmp_path, taken):
    backup, target = backup_of(folder), tmp_path / "target"
    (target / taken).parent.mkdir(parents=True)
    (target / taken).write_text("precious")
    before = tree(target)

    with pytest.raises(Refused, match="a backup replaces nothing"):
        restore_folder(io.BytesIO(backup), "b.tar.gz", target)

    assert before == tree(target)
    assert "precious" == (target / taken).read_text()


def test_a_folder_with_settings_is_kept_and_the_state_can_come_alone(folder, tmp_path):
    (folder / "gleaner.toml").rename(folder / "other.toml")
    make_backup(load_settings(folder / "other.toml"), folder / "b.tar.gz")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "gleaner.toml").write_text(SETTINGS)

    done = gleaner("restore", folder / "b.tar.gz", "target", folder=tmp_path)

    assert 1 == done.returncode
    assert "target/gleaner.toml exists, and a backup replaces nothing" in done.stderr
    assert "only the state, with --state-only" in done.stderr
    assert ["gleaner.toml"] == tree(tmp_path / "target")


def test_it_never_writes_through_a_link(folder, tmp_path):
    (folder / "link").mkdir()
    (folder / ".gleaner").rename(folder / "link" / "state")
    backup, target = backup_of(folder, '\n[paths]\nstate = "link/state"\n'), tmp_path / "target"
    (tmp_path / "elsewhere").mkdir()
    target.mkdir()
    (target / "link").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Unwritable, match="it exists already, or is a link"):
        restore_folder(io.BytesIO(backup), "b.tar.gz", target)

    assert [] == list((tmp_path / "elsewhere").iterdir())
    assert ["link"] == tree(target)


def test_files_outside_the_folder_are_restored_inside_it(folder, tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "token").write_text("planted")
    shutil.move(folder / "made.csv", tmp_path / "far.csv")
    text = SETTINGS.replace('"made.csv"', '"../far.csv"')
    (folder / "gleaner.toml").write_text(f'{text}\n[alerts]\nwebhook_token_file = "{tmp_path}/keys/token"\n')
    make_backup(load_settings(folder / "gleaner.toml"), tmp_path / "b.tar.gz")
    for path in (tmp_path / "far.csv", tmp_path / "keys" / "token"):
        path.unlink()

    done = gleaner("restore", "b.tar.gz", "restored", folder=tmp_path)

    assert 0 == done.returncode, done.stderr
    assert "training.data names a place outside the folder; the file is restored/outside/far.csv" in done.stdout
    token = tmp_path / "restored" / "outside" / "alerts.webhook_token_file"
    assert ("planted", 0o600) == (token.read_text(), stat.S_IMODE(token.stat().st_mode))
    assert [] == list((tmp_path / "keys").iterdir())
    assert not (tmp_path / "far.csv").exists()


def test_a_data_file_does_not_pose_as_a_file_of_the_state(folder, tmp_path):
    (folder / ".gleaner" / "run").mkdir()
    (folder / "made.csv").rename(folder / ".gleaner" / "run" / "run.json")
    (folder / "gleaner.toml").write_text(SETTINGS.replace('"made.csv"', '".gleaner/run/run.json"'))
    make_backup(load_settings(folder / "gleaner.toml"), tmp_path / "b.tar.gz")

    assert 0 == gleaner("restore", "b.tar.gz", "restored", folder=tmp_path).returncode
    assert not (tmp_path / "restored" / ".gleaner" / "run").exists()
    assert (tmp_path / "restored" / "outside" / "run.json").exists()


def test_a_state_outside_the_folder_is_restored_only_where_the_environment_says(folder, tmp_path):
    shutil.move(folder / ".gleaner", tmp_path / "state")
    (tmp_path / "b.tar.gz").write_bytes(backup_of(folder, f'\n[paths]\nstate = "{tmp_path}/state"\n'))
    shutil.rmtree(tmp_path / "state")

    refused = gleaner("restore", "b.tar.gz", "restored", folder=tmp_path)

    assert 1 == refused.returncode
    assert f"paths.state in the backup is '{tmp_path}/state', outside restored" in refused.stderr
    assert ["b.tar.gz", "folder"] == sorted(path.name for path in tmp_path.iterdir())

    variable = {"GLEANER_PATHS__STATE": str(tmp_path / "other")}
    done = gleaner("restore", "b.tar.gz", "restored", folder=tmp_path, **variable)

    assert 0 == done.returncode, done.stderr
    assert [1, 2] == Store(tmp_path / "other" / "store").versions()
    assert ["gleaner.toml", "made.csv"] == tree(tmp_path / "restored")


def test_a_step_that_fails_at_the_end_is_undone(folder, tmp_path, monkeypatch):
    backup, target = backup_of(folder), tmp_path / "target"
    target.mkdir()
    (target / "README").write_text("mine")
    move = restore._move

    def fail(source, into, moved):
        if source.name == "gleaner.toml":
            raise OSError(28, "No space left on device", str(into))
        move(source, into, moved)

    monkeypatch.setattr(restore, "_move", fail)

    with pytest.raises(Unwritable, match="No space left on device"):
        restore_folder(io.BytesIO(backup), "b.tar.gz", target)
    assert ["README"] == tree(target)


def test_only_the_state_comes_back_for_settings_that_are_here(folder, tmp_path):
    (tmp_path / "b.tar.gz").write_bytes(backup_of(folder))
    shutil.rmtree(folder / ".gleaner")
    (folder / "gleaner.toml").write_text(SETTINGS.replace("repeats = 1", "repeats = 2"))

    done = gleaner("restore", "--state-only", tmp_path / "b.tar.gz", folder=folder)

    assert 0 == done.returncode, done.stderr
    assert [1, 2] == Store(folder / ".gleaner" / "store").versions()
    assert "repeats = 2" in (folder / "gleaner.toml").read_text()


def test_the_state_of_another_model_is_refused(folder, tmp_path):
    (tmp_path / "b.tar.gz").write_bytes(backup_of(folder))
    shutil.rmtree(folder / ".gleaner")
    (folder / "gleaner.toml").write_text(SETTINGS.replace('name = "made"', 'name = "other"'))

    done = gleaner("restore", "--state-only", tmp_path / "b.tar.gz", folder=folder)

    assert 1 == done.returncode
    assert "it is of the model 'made', but model.name in gleaner.toml is 'other'" in done.stderr
    assert not (folder / ".gleaner").exists()


def test_a_missing_backup_is_an_error_of_one_line(tmp_path):
    done = gleaner("restore", "b.tar.gz", folder=tmp_path)

    assert 1 == done.returncode
    assert "error: b.tar.gz cannot be read: No such file or directory" in done.stderr


# An MLflow server's volume, as in docker-compose.yml


def test_the_volumes_of_compose_are_backed_up_and_restored(trained, tmp_path):
    """Each service has its volume there, and settings come with the image."""
    app, state, mlflow = (tmp_path / name for name in ("app", "training", "mlflow"))
    shutil.copytree(trained, app)
    (app / ".gleaner" / "mlflow.db").rename(app / "mlflow.db")
    mlflow.mkdir()
    (app / "mlflow.db").rename(mlflow / "mlflow.db")
    (app / ".gleaner" / "mlartifacts").rename(mlflow / "artifacts")
    (app / ".gleaner").rename(state)
    container = {"GLEANER_PATHS__STATE": str(state), "GLEANER_TRACKING__URI": "http://mlflow:5000"}
    made = gleaner("backup", "--mlflow", mlflow, tmp_path / "b.tar.gz", folder=app, **container)
    assert 0 == made.returncode, made.stderr
    before = tree(mlflow)
    for volume in (state, mlflow):  # new volumes are empty, and cannot be replaced themselves
        shutil.rmtree(volume)
        volume.mkdir()

    back = gleaner("restore", "--state-only", "--mlflow", mlflow, tmp_path / "b.tar.gz", folder=app, **container)

    assert 0 == back.returncode, back.stderr
    assert before == tree(mlflow)
    assert {1, 2} <= set(Store(state / "store").versions())
    again = gleaner("restore", "--state-only", "--mlflow", mlflow, tmp_path / "b.tar.gz", folder=app, **container)
    assert 1 == again.returncode
    assert "holds store, trainer already" in again.stderr

    # The same backup in a folder, without compose.
    assert 0 == gleaner("restore", "b.tar.gz", "folder", folder=tmp_path).returncode
    assert [NUMBER] == look_into(tmp_path / "folder")["prediction"]


def test_a_folder_without_mlflows_database_is_refused(folder, tmp_path):
    done = gleaner("backup", "--mlflow", tmp_path, "b.tar.gz", folder=folder)

    assert 1 == done.returncode
    assert f"{tmp_path}: there is no mlflow.db" in done.stderr
