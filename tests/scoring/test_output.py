"""Output files, whole or absent, with one writer at a time."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from gleaner.errors import Refused, Unwritable
from gleaner.machine import files
from gleaner.scoring.output import Output


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_writer_of_one_file_is_refused(tmp_path):
    with Output(tmp_path / "out.csv") as first:
        first.open()
        first.write(b"first")
        with pytest.raises(Refused, match=r"out\.csv is being written by another process"):
            Output(tmp_path / "out.csv").open()
        first.finish()
        first.move()

    assert b"first" == (tmp_path / "out.csv").read_bytes()
    assert ["out.csv"] == names(tmp_path)


def test_many_writers_of_one_file_never_change_a_finished_file(tmp_path):
    """A writer that opens the file just before its rename is harmless.

    It must not empty the renamed file.
    """
    path, stop = tmp_path / "out.csv", time.monotonic() + 2
    wrong: list[bytes] = []

    def write(content: bytes) -> None:
        while time.monotonic() < stop:
            try:
                with Output(path) as output:
                    output.open()
                    output.write(content)
                    output.finish()
                    output.move()
            except Refused:
                continue

    threads = [threading.Thread(target=write, args=(bytes([48 + i]) * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        if path.exists():
            content = path.read_bytes()
            wrong += [content] * (len(content) != 1000 or len(set(content)) != 1)
    for thread in threads:
        thread.join()

    assert [] == wrong
    assert ["out.csv"] == names(tmp_path)


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".out.csv.half").symlink_to("precious")

    with pytest.raises(Unwritable, match="symbolic link"):
        Output(tmp_path / "out.csv").open()
    assert "precious" == (tmp_path / "precious").read_text()


@pytest.mark.parametrize("call", ["ftruncate", "fdopen", "fchmod"])
def test_a_signal_while_the_file_is_made_leaves_nothing(tmp_path, monkeypatch, call):
    (tmp_path / "out.csv").write_text("before")
    real, calls = getattr(os, call), []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise SystemExit(143)
        return real(*arguments)

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(SystemExit), Output(tmp_path / "out.csv") as output:
        output.open()

    assert calls
    assert ["out.csv"] == names(tmp_path)
    assert "before" == (tmp_path / "out.csv").read_text()


def test_a_signal_while_another_process_holds_the_file_leaves_its_file(tmp_path, monkeypatch):
    def interrupted(_: int) -> bool:
        raise SystemExit(143)

    with Output(tmp_path / "out.csv") as first:
        first.open()
        with monkeypatch.context() as patch:
            patch.setattr(files, "try_lock", lambda _: patch.undo() or interrupted(0))
            with pytest.raises(SystemExit), Output(tmp_path / "out.csv") as second:
                second.open()
        first.write(b"first")
        first.finish()
        first.move()

    assert b"first" == (tmp_path / "out.csv").read_bytes()
