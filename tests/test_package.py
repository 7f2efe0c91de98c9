"""The public names: those of `gleaner` and `gleaner.client`."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from projects import ROOT, SETTINGS, write_made_table

import gleaner
import gleaner.client

SOURCE = ROOT / "src" / "gleaner"


def test_these_are_the_public_names():
    assert [
        "Client",
        "GleanerError",
        "Settings",
        "Store",
        "load_settings",
        "load_version",
        "read_table",
        "train",
    ] == gleaner.__all__


def test_these_are_the_public_names_of_the_client():
    names = {
        name
        for name, value in vars(gleaner.client).items()
        if getattr(value, "__module__", None) == "gleaner.client" and not name.startswith("_") and callable(value)
    }

    assert {"Client", "Predictions", "Rejected", "check"} == names


def test_every_public_name_is_there_and_explains_itself():
    for name in gleaner.__all__:
        assert inspect.getdoc(getattr(gleaner, name)), name
        assert name in dir(gleaner)


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="module 'gleaner' has no attribute 'cleint'"):
        gleaner.cleint  # noqa: B018  # it raises


def test_importing_gleaner_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import gleaner; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert {"gleaner"} == set(done.stdout.split())


def test_an_analyst_gets_from_a_table_to_a_prediction(tmp_path):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    write_made_table(tmp_path / "made.csv")

    flags = {"training": {"candidates": ["linear"], "champion": "best", "challenger": "none"}}
    settings = gleaner.load_settings(tmp_path / "gleaner.toml", flags)
    table = gleaner.read_table(tmp_path / "made.csv", settings.schema_)
    names = [type(event).__name__ for event in gleaner.train(table, settings)]

    assert isinstance(settings, gleaner.Settings)
    assert {} == gleaner.Store(settings.store).aliases()
    assert "Fitted" in names
    assert "Chosen" == names[-1]


def test_every_other_package_is_only_a_folder():
    for path in SOURCE.rglob("__init__.py"):
        assert path == SOURCE / "__init__.py" or b"" == path.read_bytes(), path
