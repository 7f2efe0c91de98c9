"""Output of many processes: named, escaped, bounded, and accepted without waiting."""

from __future__ import annotations

import threading
import time

from gleaner.running.process_logs import LONGEST_LINE, Lines


def test_a_line_is_shown_with_its_name_and_kept_with_its_time(tmp_path):
    shown = []
    lines = Lines(tmp_path / "logs", lambda name, text: shown.append((name, text)))
    lines.add("ml-app", "model loaded")
    lines.add("mlflow", "été")
    lines.close(30)

    assert [("ml-app", "model loaded"), ("mlflow", "été")] == shown
    stamp, text = lines.file("ml-app").read_text().split(" ", 1)
    assert time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")
    assert "model loaded\n" == text
    assert "été\n" == lines.file("mlflow").read_text().split(" ", 1)[1]


def test_control_characters_are_escaped_and_long_lines_are_cut(tmp_path):
    shown = []
    lines = Lines(tmp_path, lambda _, text: shown.append(text))
    lines.add("a", "\x1b]0;owned\x07 \r\u2028tab\there")
    lines.add("a", "x" * 100_000)
    lines.close(30)

    assert r"\x1b]0;owned\x07 \r\u2028tab" + "\there" == shown[0]
    assert LONGEST_LINE == len(shown[1])


def test_files_stay_within_their_bound_and_keep_the_newest(tmp_path):
    lines = Lines(tmp_path, lambda *_: None, file_bytes=10_000)
    for i in range(2_000):
        lines.add("a", f"line {i}")
    lines.close(30)

    files = sorted(tmp_path.iterdir())
    assert ["a.log", "a.log.1"] == [file.name for file in files]
    assert sum(file.stat().st_size for file in files) <= 10_000
    kept = [int(line.split()[-1]) for file in reversed(files) for line in file.read_text().splitlines()]
    assert list(range(kept[0], 2_000)) == kept
    assert len(kept) > 100


def test_a_paused_terminal_delays_no_process_and_the_files_stay_complete(tmp_path):
    resume, shown = threading.Event(), []

    def show(name: str, text: str) -> None:
        resume.wait(90)
        shown.append(f"{name}: {text}")

    lines = Lines(tmp_path, show)
    for i in range(3_000):
        lines.add("a", f"line {i}")
    assert 3_000 == len(lines.file("a").read_text().splitlines())
    assert [] == shown

    resume.set()
    deadline = time.monotonic() + 90
    while not any("were not shown" in text for text in shown) and time.monotonic() < deadline:
        time.sleep(0.01)
    lines.close(30)
    dropped = int(shown[-1].split()[1])
    assert 3_000 == dropped + len(shown) - 1
    assert f"up: {dropped} lines were not shown here; they are in {tmp_path}" == shown[-1]


def test_neither_a_closed_terminal_nor_a_full_disk_stops_the_logging(tmp_path):
    def gone(*_: str) -> None:
        raise BrokenPipeError

    lines = Lines(tmp_path / "logs", gone)
    lines.add("a", "one")
    lines.add("a", "two")
    lines.file("full").symlink_to("/dev/full")
    lines.add("full", "three")
    lines.close(30)

    assert ["one", "two"] == [line.split()[1] for line in lines.file("a").read_text().splitlines()]
