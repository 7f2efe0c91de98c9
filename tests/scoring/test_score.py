"""Whole tables through `gleaner score`, with and without failures."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import made
import pytest
from projects import NUMBER, ROOT, SETTINGS
from started import gleaner

from gleaner.cli import main as cli
from gleaner.model.loading import load_version
from gleaner.model.store import Store
from gleaner.programs import report

HEADER = "time_spent,doors_in_route,assessed_value"
BODY = f"{HEADER}\n30,50,200000\n250,700,900000\n"
PAIR = b"30,50,200000\n250,700,900000\n"
LONG = f"{HEADER}\n".encode() + PAIR * 500_000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with settings and a store.

    Version 1, a tree, is the champion; version 2, linear, is the challenger.
    """
    home = tmp_path / "home"
    home.mkdir()
    (home / "gleaner.toml").write_text(SETTINGS)
    made.fill(home / ".gleaner" / "store", made.artifact("decision_tree"), made.artifact("linear"))
    return home


@dataclass
class Done:
    code: int
    out: str
    err: str


Score = Callable[..., Done]


@pytest.fixture
def score(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Score]:
    """Run `gleaner score` in this process, which saves a second per run."""
    monkeypatch.chdir(home)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["score", *map(str, arguments)])
        return Done(int(ended.value.code or 0), *capfd.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def start(*arguments: object, home: Path, **options: object) -> subprocess.Popen[str]:
    """Start `gleaner score`."""
    command = [sys.executable, "-m", "gleaner", "score", *map(str, arguments)]
    return subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def without_progress(text: str) -> str:
    """Return the output of a command without lines of progress.

    A slow machine prints more of these lines.
    """
    return re.sub(r"^[\d,]+ rows?, [\d,]+ refused, \d+% read\n", "", text, flags=re.MULTILINE)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a process has written something into a file."""
    for _ in range(6000):
        if path.exists() and path.stat().st_size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def predictions(rows: Sequence[Sequence[float]], version: int = 1) -> list[float]:
    predictor = load_version(Store(Path(".gleaner/store")), version).predictor
    return [predictor.predict_row(row) for row in rows]


# The output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("in.csv", "out.xlsx"), "out.xlsx: cannot write a workbook; name a file in .csv or .parquet"),
        (
            ("in.csv", "out.csv", "--column", " "),
            "--column: wanted a name for the column of predictions, got an empty one",
        ),
        (("book.xlsx", "out.csv"), "book.xlsx: is a workbook or another zip file; save the table as 'CSV UTF-8'"),
    ],
)
def test_a_workbook_is_neither_read_nor_written_and_a_column_has_a_name(score, home, arguments, said):
    (home / "in.csv").write_text("time_spent,doors_in_route,assessed_value\n30,50,200000\n")
    with zipfile.ZipFile(home / "book.xlsx", "w") as book:
        book.writestr("xl/workbook.xml", "<workbook/>")
    before = names(home)

    done = score(*arguments)

    assert 1 == done.code
    assert said in done.err
    assert before == names(home)


def test_a_table_comes_back_with_the_exact_prediction_of_each_row(score, home):
    (home / "in.csv").write_text(BODY)

    done = score("in.csv", "out.csv")

    assert 0 == done.code
    assert done.out.startswith("out.csv: 2 rows predicted by version 1, decision_tree, in ")
    with (home / "out.csv").open() as file:
        rows = list(csv.reader(file))
    assert [*HEADER.split(","), "prediction", "problem"] == rows[0]
    assert ["30", "50", "200000", repr(NUMBER), ""] == rows[1]
    assert predictions([(30, 50, 200000), (250, 700, 900000)]) == [float(row[3]) for row in rows[1:]]
    assert [".gleaner", "gleaner.toml", "in.csv", "out.csv"] == names(home)


def test_the_page_on_scoring_shows_the_real_output(score, home):
    page = (ROOT / "docs" / "scoring.md").read_text()
    table, scored, faults = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)
    (home / "routes.csv").write_text(table)
    done = score("routes.csv", "scored.csv")
    said = re.search(r"\$ gleaner score routes.csv scored.csv\n(.*?)```", page, re.DOTALL)

    assert 3 == done.code
    assert said
    assert [line.split(", in ")[0] for line in said[1].splitlines()] == [
        line.split(", in ")[0] for line in done.out.splitlines()
    ]
    assert scored == (home / "scored.csv").read_text()
    assert faults == (home / "scored.csv.faults.csv").read_text()


def test_another_alias_or_version_can_predict(score, home):
    (home / "in.csv").write_text(BODY)
    score("in.csv", "champion.csv")
    score("in.csv", "challenger.csv", "--alias", "challenger")
    done = score("in.csv", "two.csv", "--version", "2")

    assert "version 2, linear" in done.out
    assert (home / "challenger.csv").read_text() == (home / "two.csv").read_text()
    assert (home / "challenger.csv").read_text() != (home / "champion.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--alias", "nothing"],
            "error: no version has the alias 'nothing'; run `gleaner train DATA.csv`, or `gleaner models promote`",
        ),
        (["--version", "7"], "error: no version 7 in .gleaner/store; there is 1, 2"),
    ],
)
def test_a_missing_alias_or_version_is_reported(score, home, arguments, said):
    (home / "in.csv").write_text(BODY)
    done = score("in.csv", "out.csv", *arguments)

    assert (1, said) == (done.code, done.err.strip().replace(f"{home}/", ""))
    assert not (home / "out.csv").exists()


def test_a_damaged_version_predicts_nothing(score, home):
    (home / "in.csv").write_text(BODY)
    with (home / ".gleaner/store/versions/1/model.onnx").open("r+b") as file:
        file.write(b"\0\0\0\0")

    assert 1 == score("in.csv", "out.csv").code
    assert not (home / "out.csv").exists()


def test_a_version_is_tested_before_its_first_use_only(score, home):
    (home / "in.csv").write_text(BODY)
    shutil.rmtree(home / ".gleaner/store/passed")

    assert 0 == score("in.csv", "out.csv").code
    assert ["1.json"] == names(home / ".gleaner/store/passed")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b"note;time_spent;doors_in_route;assessed_value\r\n\xe4;30;50;200000\r\n",
            b"note;time_spent;doors_in_route;assessed_value;prediction;problem\r\n\xe4;30;50;200000;%s;\r\n",
        ),
        (
            b"\xef\xbb\xbftime_spent\tdoors_in_route\tassessed_value\tnote\n30\t50\t200000\t\xc3\xa4\n",
            b"\xef\xbb\xbftime_spent\tdoors_in_route\tassessed_value\tnote\tprediction\tproblem\n"
            b"30\t50\t200000\t\xc3\xa4\t%s\t\n",
        ),
        (
            b'assessed_value,note,doors_in_route,time_spent\n 2e5 ,"a, ""b""\nc",5.0e1,+30\n\n200000.,,50,30',
            b'assessed_value,note,doors_in_route,time_spent,prediction,problem\n 2e5 ,"a, ""b""\nc",5.0e1,+30,%s,\n'
            b"200000.,,50,30,%s,\n",
        ),
        (  # titles above the header
            b'sep=;\r\nDrive in W\xe4rz;\r\n"two\nlines";=1+1\r\n\r\n'
            b"time_spent;doors_in_route;assessed_value\r\n30;50;200000\r\n",
            b'sep=;\r\nDrive in W\xe4rz;\r\n"two\nlines";\'=1+1\r\n\r\n'
            b"time_spent;doors_in_route;assessed_value;prediction;problem\r\n30;50;200000;%s;\r\n",
        ),
    ],
)
def test_the_table_keeps_its_delimiter_encoding_and_cells(score, home, body, expected, monkeypatch):
    monkeypatch.setenv("GLEANER_TABLE__ENCODING", "cp1252")
    (home / "in.csv").write_bytes(body)

    assert 0 == score("in.csv", "out.csv").code
    number = repr(NUMBER).encode()
    assert expected.replace(b"%s", number) == (home / "out.csv").read_bytes()


def test_a_table_in_utf_16_stays_in_utf_16(score, home):
    (home / "in.csv").write_bytes(f"{HEADER},ä\n30,50,200000,é\n".encode("utf-16"))

    assert 0 == score("in.csv", "out.csv").code
    expected = f"{HEADER},ä,prediction,problem\n30,50,200000,é,{NUMBER!r},\n"
    assert expected.encode("utf-16") == (home / "out.csv").read_bytes()


def test_a_table_in_an_undeclared_encoding_is_refused_with_the_setting(score, home):
    (home / "in.csv").write_bytes(f"{HEADER},n\n30,50,200000,".encode() + b"\xe9\n")
    done = score("in.csv", "out.csv")

    assert "error: in.csv, line 2: byte " in done.err
    assert (
        'is not UTF-8; name the encoding by encoding = "..." under [table] in gleaner.toml, or send UTF-8\n' in done.err
    )


def test_a_prediction_stands_under_its_name_in_short_and_long_rows(score, home):
    (home / "in.csv").write_text(f"{HEADER},note\n30,50,200000\n30,50,200000,x,,\n")

    assert 0 == score("in.csv", "out.csv").code
    assert f"30,50,200000,,{NUMBER!r},\n30,50,200000,x,{NUMBER!r},\n" in (home / "out.csv").read_text()


def test_a_table_without_rows_comes_back_without_rows(score, home):
    (home / "in.csv").write_text(f"{HEADER}\n\n")
    done = score("in.csv", "out.csv")

    assert (0, f"{HEADER},prediction,problem\n") == (done.code, (home / "out.csv").read_text())


def test_an_existing_column_is_not_overwritten(score, home):
    (home / "in.csv").write_text(f"{HEADER}, Prediction\n30,50,200000,1\n")
    done = score("in.csv", "out.csv")

    assert "error: in.csv, line 1: has a column 'prediction' already; give --column another name\n" == done.err
    assert 1 == done.code
    assert 0 == score("in.csv", "out.csv", "--column", "bags").code
    assert f"{HEADER}, Prediction,bags,problem\n30,50,200000,1,{NUMBER!r},\n" == (home / "out.csv").read_text()


def test_a_column_name_outside_the_tables_encoding_is_refused(score, home, monkeypatch):
    (home / "in.csv").write_bytes(f"{HEADER},caf".encode() + b"\xe9\n30,50,200000,\n")
    monkeypatch.setenv("GLEANER_TABLE__ENCODING", "cp1252")
    done = score("in.csv", "out.csv", "--column", "予測")

    assert "error: out.csv: '予測' cannot be written in the table's own encoding, cp1252\n" == done.err


def test_the_outcome_is_available_as_json(score, home):
    (home / "in.csv").write_text(BODY + "x,1,1\n")
    done = score("in.csv", "out.csv", "--json")
    outcome = json.loads(done.out)

    assert 3 == done.code
    assert outcome.pop("seconds") > 0
    expected = {"in": "in.csv", "out": "out.csv", "rows": 2, "refused": 1, "faults": "out.csv.faults.csv"}
    assert [{"column": "time_spent", "kind": "not accepted", "count": 1}] == outcome.pop("faults_by_column")
    assert {**expected, "version": 1, "candidate": "decision_tree"} == outcome


# Rows that are refused


def test_refused_rows_come_back_in_their_place_with_the_problem_and_the_exit_code_is_3(score, home):
    (home / "in.csv").write_text(f'{HEADER},note\n30,50,200000,"a\nb"\nx,,1\n30,50,200000,\n1,200,50,200000,5\n')

    done = score("in.csv", "out.csv")

    assert 3 == done.code
    said = "2 rows refused: column 5 1 not accepted, doors_in_route 1 empty, time_spent 1 not accepted\n"
    assert f"{said}out.csv.faults.csv says why\n" in done.out
    with (home / "out.csv").open(newline="") as file:
        assert [
            [*HEADER.split(","), "note", "prediction", "problem"],
            ["30", "50", "200000", "a\nb", repr(NUMBER), ""],
            [
                *("x", "", "1", "", ""),
                "line 4, column 'time_spent': wanted a number from 0 to 1,440, got 'x'; "
                "line 4, column 'doors_in_route': wanted a number from 0 to 10,000, got an empty cell",
            ],
            ["30", "50", "200000", "", repr(NUMBER), ""],
            [
                *("1", "200", "50", "200000", ""),
                "line 6, column '5': wanted nothing beyond the 4 columns of the header, got '5'",
            ],
        ] == list(csv.reader(file))
    with (home / "out.csv.faults.csv").open() as file:
        rows = list(csv.reader(file))
    assert [
        ["line", "column", "reason"],
        ["4", "time_spent", "wanted a number from 0 to 1,440, got 'x'"],
        ["4", "doors_in_route", "wanted a number from 0 to 10,000, got an empty cell"],
        ["6", "5", "wanted nothing beyond the 4 columns of the header, got '5'"],
    ] == rows


def test_refused_rows_can_be_left_out(score, home):
    (home / "in.csv").write_text(f"{HEADER}\nx,50,200000\n30,50,200000\n")

    assert 3 == score("in.csv", "out.csv", "--drop-refused").code
    assert f"{HEADER},prediction\n30,50,200000,{NUMBER!r}\n" == (home / "out.csv").read_text()
    assert "2,time_spent," in (home / "out.csv.faults.csv").read_text()


def test_a_column_named_problem_is_not_overwritten(score, home):
    (home / "in.csv").write_text(f"{HEADER}, Problem\n30,50,200000,none\n")

    said = "in.csv, line 1: has a column 'problem' already; rename it, or give --drop-refused\n"
    assert f"error: {said}" == score("in.csv", "out.csv").err
    assert 0 == score("in.csv", "out.csv", "--drop-refused").code


def test_every_fault_is_written(score, home):
    (home / "in.csv").write_text(f"{HEADER}\n" + "x,y,z\n30,50,200000\n" * 5_000)

    assert 3 == score("in.csv", "out.csv").code
    with (home / "out.csv.faults.csv").open() as file:
        lines = [int(row[0]) for row in list(csv.reader(file))[1:]]
    assert [line for i in range(5_000) for line in [2 + 2 * i] * 3] == lines
    assert 10_001 == len((home / "out.csv").read_text().splitlines())


def test_a_table_of_refused_rows_comes_back_with_the_reasons(score, home):
    (home / "in.csv").write_text(f"{HEADER}\nx,1,1\n")

    assert 3 == score("in.csv", "out.csv").code
    reason = "line 2, column 'time_spent': wanted a number from 0 to 1,440, got 'x'"
    assert f'{HEADER},prediction,problem\nx,1,1,,"{reason}"\n' == (home / "out.csv").read_text()
    assert (home / "out.csv.faults.csv").exists()


def test_the_faults_of_an_earlier_table_are_removed(score, home):
    (home / "in.csv").write_text(BODY + "x,1,1\n")
    score("in.csv", "out.csv")
    (home / "in.csv").write_text(BODY)

    assert 0 == score("in.csv", "out.csv").code
    assert not (home / "out.csv.faults.csv").exists()


def test_faults_go_into_a_file_that_the_user_names(score, home):
    (home / "in.csv").write_text(BODY + "x,1,1\n")

    assert 3 == score("in.csv", "out.csv", "--faults", "why.csv").code
    assert [".gleaner", "gleaner.toml", "in.csv", "out.csv", "why.csv"] == names(home)
    (home / "in.csv").write_text(BODY)
    assert 0 == score("in.csv", "out.csv", "--faults", "why.csv").code
    assert "line,column,reason\n" == (home / "why.csv").read_text(), (
        "the user named this file, so it is made without faults, too"
    )
    assert "error: nowhere/why.csv: there is no folder" in score("in.csv", "x.csv", "--faults", "nowhere/why.csv").err
    assert not (home / "x.csv").exists()


# Text that a spreadsheet would run

FORMULAS = [
    "=1+1",
    "+1+1",
    "-1-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    " =1",
    "=",
    "-",
    "+A1",
    "-5 apples",
    "\uff1d1",
    "-2+3",
    "+ 5",
]
NUMBERS = ["-5", "+5", "-5.25", "-1e-5", "+.5", "-1,200.50", "-5,3", "-5%", "0", "1e+20", "-0.0"]


def test_text_that_a_spreadsheet_would_run_is_marked_and_numbers_are_not(score, home, figure):
    cells = [*FORMULAS, *NUMBERS, "'=1", "a=b", "2023-09-27", "x\n=1", ""]
    with (home / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*HEADER.split(","), "=note"], *[[30, 50, 200000, cell] for cell in cells]])

    assert 0 == score("in.csv", "out.csv").code
    with (home / "out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert "'=note" == header[3]
    assert [f"'{cell}" if cell in FORMULAS else cell for cell in cells] == [row[3] for row in rows]
    figure("S4", f"{len(FORMULAS)} cells that a spreadsheet would run: all marked; {len(NUMBERS)} numbers unchanged")


# Failures


def test_the_input_is_not_overwritten(score, home):
    (home / "in.csv").write_text(BODY)
    (home / "link.csv").symlink_to("in.csv")
    os.link(home / "in.csv", home / "hard.csv")
    (home / "folder").symlink_to(".")
    for out in ("in.csv", "./in.csv", "link.csv", "hard.csv", "folder/in.csv"):
        done = score("in.csv", out)

        assert f"error: {Path(out)} is the table to read; name another file to write\n" == done.err
        assert 1 == done.code
    assert "is the table to read" in score("in.csv", "out.csv", "--faults", "hard.csv").err
    assert "cannot hold both" in score("in.csv", "out.csv", "--faults", "out.csv").err
    assert BODY == (home / "in.csv").read_text()


def test_the_input_is_not_overwritten_with_faults(score, home):
    (home / "out.csv.faults.csv").write_text(BODY)

    assert "is the table to read" in score("out.csv.faults.csv", "out.csv").err
    assert BODY == (home / "out.csv.faults.csv").read_text()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("nowhere/out.csv", "nowhere/out.csv: there is no folder nowhere; make it first"),
        (".gleaner", ".gleaner: is a folder; name a file"),
        ("gleaner.toml/out.csv", "gleaner.toml/out.csv: there is no folder gleaner.toml; make it first"),
    ],
)
def test_an_unwritable_path_is_reported_before_anything_is_read(score, home, out, said):
    done = score("in.csv", out)

    assert f"error: {said}\n" == done.err.replace(f"{home}/", "")
    assert 1 == done.code


def test_a_missing_table_leaves_nothing(score, home):
    done = score("in.csv", "out.csv")

    assert (1, "error: in.csv: cannot be read: No such file or directory\n") == (done.code, done.err)
    assert [".gleaner", "gleaner.toml"] == names(home)


def test_a_table_that_breaks_off_leaves_the_old_files(score, home):
    (home / "in.csv").write_text(BODY + "x,1,1\n" * 3 + "30,50,200000\n" * 50_000 + '30,"50,200000\n')
    (home / "out.csv").write_text("before")
    (home / "out.csv.faults.csv").write_text("before")
    done = score("in.csv", "out.csv")

    assert (1, "error: in.csv, line 50007: is not CSV: a quote opens a cell and is never closed\n") == (
        done.code,
        without_progress(done.err),
    )
    assert "before" == (home / "out.csv").read_text() == (home / "out.csv.faults.csv").read_text()
    assert [".gleaner", "gleaner.toml", "in.csv", "out.csv", "out.csv.faults.csv"] == names(home)


def test_a_model_without_a_finite_prediction_writes_nothing(score, home):
    made.fill(home / ".gleaner" / "other", made.exploding_artifact(home / "exploding"))
    shutil.rmtree(home / ".gleaner/store")
    (home / ".gleaner/other").rename(home / ".gleaner/store")
    (home / "in.csv").write_text(f"{HEADER}\n1,1,1\n1000,1,1\n")
    done = score("in.csv", "out.csv")

    assert (1, "error: version 1: the model's prediction is not finite, for a row from line 2 to 3\n") == (
        done.code,
        done.err,
    )
    assert not (home / "out.csv").exists()


def without_rights() -> None:
    """Drop CAP_DAC_OVERRIDE (by PR_CAPBSET_DROP), so that root obeys the modes of folders."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_a_read_only_folder_is_reported(home):
    (home / "in.csv").write_text(BODY)
    (home / "shut").mkdir(mode=0o555)
    with start("in.csv", "shut/out.csv", home=home, preexec_fn=without_rights) as process:
        _, err = process.communicate(timeout=60)

    assert (1, "error: shut/out.csv: cannot be written: Permission denied\n") == (process.returncode, err)


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.parametrize("bad", [b"", b"x,1,1\n" * 100_000])
def test_a_full_disk_leaves_the_old_files_and_nothing_half_written(home, bad):
    (home / "in.csv").write_bytes(f"{HEADER}\n".encode() + (bad or PAIR * 100_000))
    (home / "out.csv").write_text("before")
    with start("in.csv", "out.csv", "--drop-refused", home=home, preexec_fn=small_files) as process:
        _, err = process.communicate(timeout=60)
    full = "out.csv.faults.csv" if bad else "out.csv"

    assert (1, f"error: {full}: cannot be written: File too large\n") == (process.returncode, without_progress(err))
    assert "before" == (home / "out.csv").read_text()
    assert [".gleaner", "gleaner.toml", "in.csv", "out.csv"] == names(home)


def test_a_disk_too_small_for_a_pipe_is_reported(home):
    with start("-", "out.csv", home=home, preexec_fn=small_files, stdin=subprocess.PIPE) as process:
        _, err = process.communicate(BODY * 50_000, timeout=60)

    assert 1 == process.returncode
    assert err.startswith("error: standard input: cannot be kept in ")
    assert err.endswith(": File too large\n")
    assert [".gleaner", "gleaner.toml"] == names(home)


def test_a_full_device_is_reported(score, home):
    (home / "in.csv").write_text(BODY)
    done = score("in.csv", "/dev/full", "--faults", "faults.csv")

    assert (1, "error: /dev/full: cannot be written: No space left on device\n") == (done.code, done.err)
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_a_signal_half_way_leaves_nothing(home, number, code):
    (home / "in.csv").write_bytes(LONG)
    with start("in.csv", "out.csv", home=home) as process:
        wait_for(home / ".out.csv.half", process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)

    assert code == process.returncode
    assert "Traceback" not in err
    assert [".gleaner", "gleaner.toml", "in.csv"] == names(home)


def test_a_killed_process_leaves_no_table_and_the_next_one_overwrites_the_rest(home):
    (home / "in.csv").write_bytes(LONG)
    (home / "out.csv").write_text("before")
    with start("in.csv", "out.csv", home=home) as process:
        wait_for(home / ".out.csv.half", process)
        process.kill()
        process.communicate(timeout=60)

    assert "before" == (home / "out.csv").read_text()
    (home / "in.csv").write_text(BODY)
    assert 0 == gleaner("score", "in.csv", "out.csv", folder=home).returncode
    assert 3 == len((home / "out.csv").read_text().splitlines())
    assert [".gleaner", "gleaner.toml", "in.csv", "out.csv"] == names(home)


def test_a_link_to_a_file_stays_a_link(score, home):
    (home / "in.csv").write_text(BODY)
    (home / "real.csv").write_text("before")
    (home / "out.csv").symlink_to("real.csv")

    assert 0 == score("in.csv", "out.csv").code
    assert (home / "out.csv").is_symlink()
    assert 3 == len((home / "real.csv").read_text().splitlines())


def test_a_private_table_keeps_its_mode(score, home):
    (home / "in.csv").write_text(BODY)
    (home / "out.csv").touch(0o600)
    score("in.csv", "out.csv")
    score("in.csv", "new.csv")
    umask = os.umask(0)
    os.umask(umask)

    assert 0o600 == (home / "out.csv").stat().st_mode & 0o777
    assert 0o666 & ~umask == (home / "new.csv").stat().st_mode & 0o777


# Pipes


def test_only_the_table_goes_through_the_pipe(home):
    body = "note,time_spent,doors_in_route,assessed_value\né,30,50,200000\nx,y,1,1\n"
    with start("-", "-", home=home, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(body, timeout=60)

    assert 3 == process.returncode
    kept, refused = f"é,30,50,200000,{NUMBER!r},\n", 'x,y,1,1,,"line 3, '
    assert out.startswith(f"note,time_spent,doors_in_route,assessed_value,prediction,problem\n{kept}{refused}")
    assert err.startswith("-: 1 row predicted by version 1, decision_tree, in ")
    assert err.endswith("1 row refused: time_spent 1 not accepted\n--faults PATH would say why\n")
    assert [".gleaner", "gleaner.toml"] == names(home)


def test_faults_of_a_pipe_go_into_the_named_file(home):
    with start("-", "-", "--faults", "why.csv", "--json", home=home, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(BODY + "x,1,1\n", timeout=60)

    assert 4 == len(out.splitlines())
    assert 1 == json.loads(err)["refused"]
    assert (
        "line,column,reason\n4,time_spent,\"wanted a number from 0 to 1,440, got 'x'\"\n"
        == (home / "why.csv").read_text()
    )


def test_an_error_in_a_pipe_names_standard_input(home):
    with start("-", "out.csv", home=home, stdin=subprocess.PIPE) as process:
        _, err = process.communicate("time_spent,doors,assessed_value\n", timeout=60)

    assert err.startswith("error: standard input, line 1: no column for 'doors_in_route': wanted 'doors_in_route'")


def test_a_reader_that_closes_the_pipe_ends_the_scoring_in_one_line(home):
    (home / "in.csv").write_bytes(LONG)
    with start("in.csv", "-", home=home) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr
        err = process.stderr.read()
        process.wait(timeout=60)

    assert (1, "error: standard output: cannot be written: Broken pipe\n") == (
        process.returncode,
        without_progress(err),
    )


def test_named_pipes_are_read_and_written(home):
    os.mkfifo(home / "in.fifo")
    os.mkfifo(home / "out.fifo")
    with start("in.fifo", "out.fifo", home=home) as process:
        threading.Thread(target=(home / "in.fifo").write_text, args=(BODY,)).start()
        out = (home / "out.fifo").read_text()
        process.communicate(timeout=60)

    assert 0 == process.returncode
    assert 3 == len(out.splitlines())
    assert (home / "out.fifo").is_fifo()


# Size and progress


def test_ten_times_the_rows_take_no_more_memory(home):
    program = """
import atexit, re, sys
from pathlib import Path
from gleaner.cli.main import main
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
main(["score", "in.csv", "out.csv", "--json"])
"""
    peaks = []
    for pairs in (100_000, 1_000_000):
        (home / "in.csv").write_bytes(f"{HEADER}\n".encode() + PAIR * pairs)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=home, capture_output=True, text=True, timeout=120, check=True
        )
        assert 2 * pairs + 1 == (home / "out.csv").read_bytes().count(b"\n")
        peaks.append(int(done.stdout.split()[-1]))

    assert peaks[1] < peaks[0] + 4_000, "kilobytes; the table and its predictions are 80 MB"


def test_a_terminal_shows_a_progress_bar(home, monkeypatch):
    (home / "in.csv").write_bytes(LONG)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gleaner", "score", "in.csv", "out.csv"]
    shown = b""
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
        process.communicate(timeout=60)
    os.close(ours)

    assert 0 == process.returncode
    assert b"%" in shown
    assert b" rows, 0 refused" in shown


def test_without_a_terminal_the_progress_is_a_line_now_and_then(score, home, monkeypatch):
    monkeypatch.setattr(report, "_TELL_SECONDS", 0.0)
    (home / "in.csv").write_bytes(LONG[: 1 << 20].rsplit(b"\n", 1)[0])
    lines = score("in.csv", "out.csv").err.splitlines()

    assert all(" rows, 0 refused, " in line for line in lines)
    assert lines[-1].endswith(" 100% read")
    assert len(lines) > 5
