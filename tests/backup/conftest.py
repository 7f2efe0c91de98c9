"""Fixtures of backups."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import artifact, fill
from projects import SETTINGS, write_made_table


@pytest.fixture
def folder(tmp_path) -> Path:
    """Make a folder with settings, data and a store."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    fill(folder / ".gleaner" / "store", artifact("decision_tree"), artifact("linear"))
    return folder
