"""The state folder is found without the settings, and is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import SETTINGS

from gleaner.settings.file import find_state
from gleaner.settings.load import load_settings


@pytest.mark.parametrize("paths", ["", '[paths]\nstate = "kept"', '[paths]\nstate = "/var/lib/gleaner"', "[paths]"])
@pytest.mark.parametrize("variable", [None, "elsewhere", "/srv/gleaner", ""])
def test_the_state_folder_is_that_of_the_settings(tmp_path, monkeypatch, paths, variable):
    (tmp_path / "gleaner.toml").write_text(f"{SETTINGS}\n{paths}\n", encoding="utf-8-sig")
    if variable is not None:
        monkeypatch.setenv("GLEANER_PATHS__STATE", variable)

    assert load_settings(tmp_path / "gleaner.toml").state == find_state(tmp_path / "gleaner.toml")


def test_the_file_is_the_one_that_the_settings_read(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(SETTINGS)
    monkeypatch.setenv("GLEANER_CONFIG", str(tmp_path / "mine.toml"))

    assert load_settings().state == find_state() == tmp_path / ".gleaner"


@pytest.mark.parametrize("text", ["not toml", "[paths]\nstate = 1", '[paths]\nstat = "x"', "paths = 1", None])
def test_a_fault_is_left_to_the_settings_to_name(tmp_path, text):
    if text is not None:
        (tmp_path / "gleaner.toml").write_text(text)

    assert find_state(tmp_path / "gleaner.toml") is None


@pytest.mark.parametrize("name", ["GLEANER_PATHS", "gleaner_paths__state", "GLEANER_PATHS__STAT"])
def test_another_spelling_of_the_variable_is_left_to_the_settings(tmp_path, monkeypatch, name):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    monkeypatch.setenv(name, "x")

    assert find_state(Path(tmp_path / "gleaner.toml")) is None
