"""Trainings that are killed at many moments.

No version is left half written, no alias moves without the other, and the next training succeeds.

MOMENTS=20 in the environment adds twenty moments, 0.2 s apart, to each of the two tests.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from projects import SETTINGS, write_made_table
from started import gleaner, has_ended, residing, wait_for

from gleaner.model.artifact import read_artifact
from gleaner.model.store import Store
from gleaner.training.resident import ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trained once: version 1 is the champion, 2 the challenger."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    assert 0 == gleaner("train", "--metrics-port", 0, folder=folder).returncode
    return folder


def registered(folder: Path) -> int:
    """Return the number of versions in MLflow."""
    with sqlite3.connect(f"file:{folder / '.gleaner' / 'mlflow.db'}?mode=ro", uri=True, timeout=20) as database:
        count: int = database.execute("select count(*) from model_versions").fetchone()[0]
    database.close()
    return count


def stored(folder: Path) -> int:
    return len(Store(folder / ".gleaner" / "store").versions())


def seeing(moment: str, trainer, folder: Path) -> Callable[[], object]:
    """Return a check of whether a training has reached a moment."""
    if moment.endswith(" s"):
        at = time.monotonic() + float(moment.removesuffix(" s"))
        return lambda: time.monotonic() > at
    epochs, known, kept = trainer.metrics()["training_epoch_total"], registered(folder), stored(folder)
    return {
        "a candidate is fitted": lambda: trainer.metrics()["training_epoch_total"] > epochs,
        "a version is registered": lambda: registered(folder) > known,
        "a version is in the store": lambda: stored(folder) > kept,
    }[moment]


LONGEST = 300.0  # seconds: on a busy machine a training takes more than a minute
SECONDS = [f"{0.2 * (i + 1):.1f} s" for i in range(int(os.environ.get("MOMENTS", "0")))]


def check_whole(folder: Path, before: dict[str, int]) -> None:
    """Check that versions are whole, and aliases old or new together."""
    store = Store(folder / ".gleaner" / "store")
    for version in store.versions():
        store.read(version)
    now = store.aliases()
    assert now == before or min(now.values()) > max(before.values())
    assert {"champion", "challenger"} == set(now)
    last = json.loads((folder / ".gleaner" / "trainer" / "last.json").read_text())["versions"]
    assert last in (before, now)


@pytest.mark.parametrize("moment", ["a candidate is fitted", "a version is in the store", *SECONDS])
def test_a_training_ends_with_its_killed_resident(folder, moment):
    before = Store(folder / ".gleaner" / "store").aliases()
    with residing(folder) as trainer:
        seen = seeing(moment, trainer, folder)
        ask(folder / ".gleaner")
        assert wait_for(seen, LONGEST)
        children = trainer.children()
        trainer.process.kill()
        trainer.process.wait()

        assert children
        assert wait_for(lambda: all(has_ended(child.pid) for child in children))
    check_whole(folder, before)


@pytest.mark.parametrize("moment", ["a version is registered", "a version is in the store", *SECONDS])
def test_a_killed_training_is_a_failure_and_leaves_nothing(folder, moment):
    before = Store(folder / ".gleaner" / "store").aliases()
    with residing(folder) as trainer:
        shown = trainer.metrics()["training_last_success_timestamp_seconds"]
        seen = seeing(moment, trainer, folder)
        ask(folder / ".gleaner")
        assert wait_for(seen, LONGEST)
        for child in trainer.children():
            child.send_signal(signal.SIGKILL)

        assert wait_for(lambda: " - training f" in trainer.log.read_text(), LONGEST)
        killed = trainer.metrics()['training_runs_total{result="error"}'] == 1
        assert killed or moment in SECONDS  # it may be done by then
        assert killed == (shown == trainer.metrics()["training_last_success_timestamp_seconds"])
    assert killed == ("reason=was killed by signal 9 (Killed) again=when asked" in trainer.log.read_text())
    check_whole(folder, before)


def test_after_all_kills_a_training_succeeds_and_every_registered_version_is_whole(folder, tmp_path, figure):
    done = gleaner("train", "--metrics-port", 0, "--json", folder=folder)

    assert 0 == done.returncode, done.stderr
    aliases = {alias: about["version"] for alias, about in json.loads(done.stdout).items()}
    assert aliases == Store(folder / ".gleaner" / "store").aliases()
    uri = f"sqlite:///{folder / '.gleaner' / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    versions = [int(version.version) for version in mlflow.MlflowClient().search_model_versions("name = 'made'")]
    assert max(versions) == max(aliases.values())
    for version in versions:
        model = mlflow.artifacts.download_artifacts(f"models:/made/{version}", dst_path=str(tmp_path / str(version)))
        read_artifact(Path(model) / "gleaner")
    figure(
        "C2", f"{2 * (2 + len(SECONDS))} kills: every version whole, no alias moved alone, the next training succeeded"
    )
