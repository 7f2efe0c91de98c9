"""Backups of real folders, also while trainings write and processes are killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from projects import SETTINGS
from started import gleaner, wait_for

from gleaner.backup import create
from gleaner.backup.create import make_backup
from gleaner.backup.restore import restore_folder
from gleaner.errors import BadStore, Refused
from gleaner.model.store import Store
from gleaner.settings.load import load_settings
from gleaner.settings.secret_files import SECRET_FILES, secret_files
from gleaner.settings.sections import Settings


def settings_of(folder: Path) -> Settings:
    return load_settings(folder / "gleaner.toml")


def names(backup: Path) -> list[str]:
    with tarfile.open(backup) as tar:
        return tar.getnames()


def test_a_backup_has_these_files_and_no_others(trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "folder"))
    for name in ("run/logs/ml-app.log", "run/run.json", "prometheus/wal/1", "grafana/password", "trainer/lock"):
        (folder / ".gleaner" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / ".gleaner" / name).write_text("not in a backup")

    done = gleaner("backup", "b.tar.gz", folder=folder)

    assert 0 == done.returncode, done.stderr
    found = names(folder / "b.tar.gz")
    versions = len(Store(folder / ".gleaner" / "store").versions())
    assert f"b.tar.gz: {len(found) - 1} files, " in done.stdout
    assert ["manifest.json", "settings/gleaner.toml", "data/made.csv", "state/trainer/last.json"] == found[:4]
    assert 2 * versions == len([name for name in found if name.startswith("state/store/versions/")])
    assert {"state/store/aliases.json", "state/mlflow.db"} < set(found)
    assert 2 <= len([name for name in found if name.endswith("plots/residuals.png")])
    tops = {"/".join(name.split("/")[:2]) for name in found if name.startswith("state/")}
    assert {"state/store", "state/trainer", "state/mlflow.db", "state/mlartifacts"} == tops


def test_any_tar_opens_it(folder, tmp_path):
    make_backup(settings_of(folder), tmp_path / "b.tar.gz")

    subprocess.run(["tar", "-xzf", tmp_path / "b.tar.gz", "-C", tmp_path], check=True)

    assert SETTINGS == (tmp_path / "settings" / "gleaner.toml").read_text()
    assert "decision_tree" == Store(tmp_path / "state" / "store").read(1).manifest.candidate


def test_secrets_are_in_it_and_stay_private(folder, tmp_path):
    (folder / "token").write_text("planted")
    (folder / "gleaner.toml").write_text(f'{SETTINGS}\n[alerts]\nwebhook_token_file = "token"\n')
    with contextlib.ExitStack() as stack:
        stack.callback(os.umask, os.umask(0))
        done = gleaner("backup", tmp_path / "b.tar.gz", folder=folder)
        restored = gleaner("restore", tmp_path / "b.tar.gz", tmp_path / "restored", folder=folder)

    assert [0, 0] == [done.returncode, restored.returncode], done.stderr + restored.stderr
    assert 0o600 == stat.S_IMODE((tmp_path / "b.tar.gz").stat().st_mode)
    assert 0o600 == stat.S_IMODE((tmp_path / "restored" / "token").stat().st_mode)
    assert 0o700 == stat.S_IMODE((tmp_path / "restored" / ".gleaner").stat().st_mode)
    assert "planted" == (tmp_path / "restored" / "token").read_text()
    assert "planted" not in done.stdout + done.stderr + restored.stdout + restored.stderr


def test_every_setting_that_names_a_secret_file_is_in_the_table():
    found = {
        f"{section}.{name}"
        for section, about in Settings.model_fields.items()
        for name in getattr(about.annotation, "model_fields", {})
        if name.endswith(("_file", "_key", "_secret", "_password"))
    }

    assert set(SECRET_FILES) == found | {"serving.tls_certificate"}


def test_a_secret_file_is_relative_to_the_settings(folder):
    (folder / "gleaner.toml").write_text(f'{SETTINGS}\n[alerts]\nwebhook_token_file = "keys/token"\n')

    assert {"alerts.webhook_token_file": folder / "keys" / "token"} == secret_files(settings_of(folder))


def test_what_is_missing_is_named_and_the_exit_code_says_so(folder):
    (folder / "made.csv").unlink()
    more = {
        "GLEANER_ALERTS__WEBHOOK_TOKEN_FILE": "/nowhere/token",
        "GLEANER_TRACKING__URI": "http://mlflow:5000",
    }

    done = gleaner("backup", "b.tar.gz", folder=folder, **more)

    assert 3 == done.returncode
    assert "not in the backup: training.data: there is no file made.csv" in done.stderr
    assert "not in the backup: alerts.webhook_token_file: no readable file /nowhere/token" in done.stderr
    assert "MLflow's database and files, which http://mlflow:5000 keeps; --mlflow FOLDER includes them" in done.stderr


def test_a_file_is_replaced_only_when_asked(folder):
    (folder / "b.tar.gz").write_text("precious")
    refused = gleaner("backup", "b.tar.gz", folder=folder)

    assert 1 == refused.returncode
    assert "b.tar.gz exists; name another file, or add --overwrite to replace it" in refused.stderr
    assert "precious" == (folder / "b.tar.gz").read_text()

    assert 0 == gleaner("backup", "--overwrite", "b.tar.gz", folder=folder).returncode
    assert "manifest.json" == names(folder / "b.tar.gz")[0]


def test_two_backups_do_not_write_one_file(folder):
    with (folder / ".b.tar.gz.half").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        with pytest.raises(Refused, match="another process writes"):
            make_backup(settings_of(folder), folder / "b.tar.gz")


def test_without_a_state_there_is_nothing_to_back_up(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)

    done = gleaner("backup", "b.tar.gz", folder=tmp_path)

    assert 1 == done.returncode
    assert "there is no state to back up" in done.stderr
    assert ["gleaner.toml"] == [path.name for path in tmp_path.iterdir()]


def test_a_file_that_changes_during_the_backup_ends_it(folder, monkeypatch):
    write = create.write_archive

    def change(*arguments):
        (folder / "made.csv").write_text("x" * (folder / "made.csv").stat().st_size)
        write(*arguments)

    monkeypatch.setattr(create, "write_archive", change)

    with pytest.raises(Refused, match=r"made.csv changed during the backup; start it again"):
        make_backup(settings_of(folder), folder / "b.tar.gz")
    assert not list(folder.glob("*b.tar.gz*"))


def test_the_store_is_copied_under_its_lock(folder):
    store, done = Store(folder / ".gleaner" / "store"), threading.Event()
    copying = threading.Thread(target=lambda: (make_backup(settings_of(folder), folder / "b.tar.gz"), done.set()))

    with store.hold():
        copying.start()
        assert not done.wait(1.0)
    copying.join()
    assert done.is_set()


def test_a_damaged_database_is_no_backup(trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "folder"))
    database = folder / ".gleaner" / "mlflow.db"
    content = bytearray(database.read_bytes())
    content[8192:40_000] = b"\xff" * (40_000 - 8192)
    database.write_bytes(content)

    with pytest.raises(BadStore, match=r"mlflow\.db"):
        make_backup(settings_of(folder), folder / "b.tar.gz")
    assert not list(folder.glob("*b.tar.gz*"))


def test_a_locked_database_is_waited_for_but_not_for_ever(trained, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(trained, tmp_path / "folder"))
    opened = sqlite3.connect(folder / ".gleaner" / "mlflow.db", isolation_level=None)
    opened.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(create, "_LOCKED_SECONDS", 1.0)
    try:
        with pytest.raises(BadStore, match="another process has locked it for 1 s"):
            make_backup(settings_of(folder), folder / "b.tar.gz")
    finally:
        opened.close()


# While something happens


def check_whole(restored: Path) -> int:
    """Check that a restored registry has every version; count them."""
    store = Store(restored / ".gleaner" / "store")
    database = sqlite3.connect(restored / ".gleaner" / "mlflow.db")
    assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
    registered = dict(database.execute("SELECT version, storage_location FROM model_versions"))
    database.close()
    assert set(store.versions()) <= set(registered)
    for version in store.versions():
        store.read(version)
    for location in registered.values():
        files = restored / ".gleaner" / "mlartifacts" / location.removeprefix("mlflow-artifacts:/")
        assert {"manifest.json", "model.onnx"} == {path.name for path in (files / "gleaner").iterdir()}
    assert set(store.aliases().values()) <= set(store.versions())
    return len(registered)


@pytest.mark.slow
def test_every_backup_during_a_training_is_whole(trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "folder"))
    command = [sys.executable, "-m", "gleaner", "train", "--metrics-port", "0"]
    settings, made, seen = settings_of(folder), 0, set()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as training:
        ended = False
        while not ended:
            ended = training.poll() is not None
            make_backup(settings, tmp_path / "b.tar.gz", overwrite=True)
            with (tmp_path / "b.tar.gz").open("rb") as file:
                restore_folder(file, "b.tar.gz", tmp_path / "restored")
            seen.add(check_whole(tmp_path / "restored"))
            shutil.rmtree(tmp_path / "restored")
            made += 1
        assert 0 == training.returncode, training.stderr.read()

    assert made > 5
    assert 2 == max(seen) - min(seen)


def register(folder: Path) -> None:
    """Add a version to MLflow, then to the store, as trainings do."""
    store, files = Store(folder / ".gleaner" / "store"), folder / ".gleaner" / "mlartifacts"
    database = sqlite3.connect(folder / ".gleaner" / "mlflow.db")
    database.row_factory = sqlite3.Row
    row = dict(database.execute("SELECT * FROM model_versions WHERE version = 1").fetchone())
    number = database.execute("SELECT max(version) FROM model_versions").fetchone()[0] + 1
    shutil.copytree(files / row["storage_location"].partition("/")[2], files / "models" / f"m-{number}")
    row |= {"version": number, "storage_location": f"mlflow-artifacts:/models/m-{number}"}
    database.execute(f"INSERT INTO model_versions VALUES ({', '.join('?' * len(row))})", list(row.values()))
    database.commit()
    database.close()
    store.add(number, store.folder(1))
    store.point({"champion": number})


@pytest.mark.parametrize("moment", ["before the database", "after the database"])
def test_a_version_that_arrives_between_the_parts_is_whole_or_not_in_the_store(trained, tmp_path, monkeypatch, moment):
    folder, copy = Path(shutil.copytree(trained, tmp_path / "folder")), create._copy_database

    def copy_meanwhile(*arguments):
        if moment == "before the database":
            register(folder)
        copy(*arguments)
        if moment == "after the database":
            register(folder)

    monkeypatch.setattr(create, "_copy_database", copy_meanwhile)
    make_backup(settings_of(folder), tmp_path / "b.tar.gz")
    with (tmp_path / "b.tar.gz").open("rb") as file:
        restore_folder(file, "b.tar.gz", tmp_path / "restored")

    versions = len(Store(folder / ".gleaner" / "store").versions())
    assert versions - (moment == "after the database") == check_whole(tmp_path / "restored")
    assert versions - 1 == len(Store(tmp_path / "restored" / ".gleaner" / "store").versions())


@pytest.fixture
def large(folder) -> Path:
    """Make the folder so large that its backup takes seconds."""
    with (folder / "made.csv").open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(1 << 20))
    return folder


def test_a_killed_backup_leaves_no_file_under_the_name(large):
    half = large / ".b.tar.gz.half"
    with subprocess.Popen([sys.executable, "-m", "gleaner", "backup", "b.tar.gz"], cwd=large) as process:
        assert wait_for(lambda: half.exists() and half.stat().st_size > 1 << 20)
        process.kill()

    assert not (large / "b.tar.gz").exists()
    assert 0o600 == stat.S_IMODE(half.stat().st_mode)
    assert 0 == gleaner("backup", "b.tar.gz", folder=large).returncode
    assert not half.exists()


@pytest.mark.parametrize("there", [False, True], ids=["a new folder", "an empty folder"])
def test_a_killed_restore_leaves_nothing_that_anything_reads(large, tmp_path, there):
    target = tmp_path / "restored"
    make_backup(settings_of(large), tmp_path / "b.tar.gz")
    if there:
        target.mkdir()
    place = target if there else tmp_path
    command = [sys.executable, "-m", "gleaner", "restore", "b.tar.gz", "restored"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        begun = wait_for(lambda: any(p.stat().st_size > 1 << 20 for p in place.glob(".gleaner-restore-*/made.csv")))
        process.kill()
    assert begun
    assert there == target.exists()
    assert [] == [path for path in target.glob("*") if not path.name.startswith(".gleaner-restore-")]

    again = gleaner("restore", "b.tar.gz", "restored", folder=tmp_path)

    assert 0 == again.returncode, again.stderr
    assert [".gleaner", "gleaner.toml", "made.csv"] == sorted(path.name for path in target.iterdir())
    assert [] == list(tmp_path.rglob(".gleaner-restore-*"))


def test_a_pipe_works_for_both(folder, tmp_path):
    both = f"{sys.executable} -m gleaner backup - | {sys.executable} -m gleaner restore - {tmp_path / 'restored'}"

    done = subprocess.run(["sh", "-c", both], cwd=folder, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr
    assert "decision_tree" == Store(tmp_path / "restored" / ".gleaner" / "store").read(1).manifest.candidate
