"""The versions, aliases and kept files of a training."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from projects import SETTINGS, write_made_table

from gleaner.errors import BadArtifact
from gleaner.model.predictor import ENGINE
from gleaner.model.store import Store
from gleaner.programs.pipeline import train_and_register
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.csv import read_table


@dataclass
class Project:
    """A folder with settings and data, a store and a registry."""

    folder: Path
    settings: Settings

    @property
    def store(self) -> Store:
        return Store(self.settings.store)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.settings.tracking_uri, self.settings.tracking_uri)

    def train(self) -> dict[str, int]:
        source = self.folder / "made.csv"
        return train_and_register(read_table(source, self.settings.schema_), self.settings, source, [])[0]

    def aliases(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the aliases of the store, and those of the registry."""
        registered = self.client.get_registered_model("made").aliases
        return self.store.aliases(), {alias: int(version) for alias, version in registered.items()}

    def kept(self, name: str) -> str:
        """Return a file that MLflow keeps with the last training."""
        experiment = self.client.get_experiment_by_name("made")
        runs = self.client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'train made.csv'")
        found = mlflow.artifacts.load_text(f"runs:/{runs[0].info.run_id}/{name}")
        assert isinstance(found, str)
        return found


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """Return a project trained once.

    Its data has 600 good rows, a typo in line 602, and after it two bad rows and one without bags.
    """
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    more = [(30, 50, 200_000, 90_000), (-1, 50, 200_000, 22), (30, 50, 200_000, ""), (30, "many", 200_000, 22)]
    with (folder / "made.csv").open("a", newline="") as file:
        csv.writer(file).writerows(more)
    project = Project(folder, load_settings(folder / "gleaner.toml"))
    project.train()
    return project


def test_the_refused_rows_are_kept_with_their_lines_and_reasons(project):
    first, *faults = project.kept("refused_rows.txt").splitlines()

    assert "2 rows refused" == first
    assert [
        "line 603, column 'time_spent': wanted a number from 0 to 1,440, got '-1'",
        "line 605, column 'doors_in_route': wanted a number from 0 to 10,000, got 'many'",
    ] == faults


def test_the_suspect_rows_are_kept_with_their_lines_and_reasons(project):
    typo, *others = [line for line in project.kept("suspect_rows.txt").splitlines() if "90000" in line]

    assert typo.startswith("line 602: 90000, where ")
    assert typo.endswith(" standard deviations off")
    assert [] == others


def test_every_version_has_passed_its_self_test(project):
    assert ({"champion": 1, "challenger": 2}, {"champion": 1, "challenger": 2}) == project.aliases()
    assert [True, True] == [
        project.store.has_passed(version, project.store.read(version).digest, ENGINE) for version in (1, 2)
    ]


def test_a_version_that_fails_its_self_test_gets_no_alias_and_is_not_remembered(project, monkeypatch):
    before = project.aliases()
    monkeypatch.setattr("gleaner.model.selftest.SELFTEST_SECONDS", 0.0)  # a real process, which is never in time

    with pytest.raises(BadArtifact, match="its self-test took longer than 0 s"):
        project.train()

    new = max(project.store.versions())
    assert new > 2
    assert before == project.aliases()
    assert not project.store.has_passed(new, project.store.read(new).digest, ENGINE)
