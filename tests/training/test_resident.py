"""The resident with small scripts as children, over real pipes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import made
import pytest
from projects import SETTINGS
from prometheus_client import CollectorRegistry
from started import has_ended, wait_for

from gleaner.errors import Refused
from gleaner.model.scores import Scores
from gleaner.settings.load import load_settings
from gleaner.training.events import Chosen, Epoch, Failed, Finished, Started, Step, Validated
from gleaner.training.metrics import TrainingMetrics
from gleaner.training.resident import Trainer, ask, find_resident, read_last, report_finished, send_event, write_last

SCORES = Scores(loss=0.25, accuracy=0.9, r2=0.5, mae=12.5)
LAST = Finished({"champion": 3, "challenger": 4}, "linear", SCORES, 0.125, 600, 2, 7.5, 1_700_000_000.0)

# The start of every child: `say` sends an event, `runs` counts the trainings so far, with this one.
PREAMBLE = """
import os, pathlib, signal, sys, time
from gleaner.training.events import *
from gleaner.model.scores import Scores
from gleaner.training.resident import follow_trainer, send_event
fd = int(sys.argv[sys.argv.index("--events-fd") + 1])
say = lambda event: send_event(fd, event)
scores = Scores(loss=0.5, accuracy=0.75, r2=0.25, mae=3.5)
finished = lambda: say(Finished({"champion": 1}, "linear", scores, 0.375, 10, 0, 1.5, time.time()))
with open("runs", "a") as file:
    file.write("x")
runs = len(open("runs").read())
"""


@contextmanager
def residing(folder: Path, code: str = "finished()", *, every: str = "", champion: bool = False):
    """A running resident whose trainings are `code`, and its registry."""
    (folder / "gleaner.toml").write_text(SETTINGS)
    if champion and not (folder / ".gleaner" / "store").exists():
        made.fill(folder / ".gleaner" / "store", made.constant(1.0))
    settings, registry = load_settings(folder / "gleaner.toml", {"training": {"every": every}}), CollectorRegistry()
    script = folder / "child.py"
    script.write_text(f"import os\nos.chdir({str(folder)!r})\n{PREAMBLE}\n{code}\n")
    trainer = Trainer([sys.executable, str(script)], settings, TrainingMetrics(registry), first_wait_seconds=0.05)
    ready = threading.Event()
    thread = threading.Thread(target=trainer.run, args=(ready.set,))
    thread.start()
    try:
        assert ready.wait(60)
        yield trainer, registry
    finally:
        trainer.stop()
        trainer.stop()
        thread.join(60)
        assert not thread.is_alive()


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text()) if (folder / "runs").exists() else 0


def shown(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def results(registry: CollectorRegistry) -> tuple[float | None, ...]:
    return tuple(shown(registry, "training_runs_total", result=result) for result in ("success", "error"))


@pytest.fixture
def log(caplog):
    package = logging.getLogger("gleaner")
    kept, package.propagate = package.propagate, True
    with caplog.at_level(logging.INFO, "gleaner"):
        yield caplog
    package.propagate = kept


def facts(log, message: str) -> list[dict[str, object]]:
    return [vars(record) for record in log.records if record.message == message]


def test_with_no_champion_it_trains_at_once_and_with_one_it_does_not(tmp_path, log):
    with residing(tmp_path) as (_, registry):
        assert wait_for(lambda: results(registry) == (1, 0))
    assert ["no champion"] == [fact["why"] for fact in facts(log, "training started")]

    (tmp_path / "b").mkdir()
    with residing(tmp_path / "b", champion=True) as (_, registry):
        time.sleep(0.5)
        assert (0, 0) == results(registry)
    assert 0 == runs(tmp_path / "b")


def test_before_any_training_there_are_no_gauges_and_the_counters_are_0(tmp_path):
    with residing(tmp_path, champion=True) as (_, registry):
        names = {sample.name for family in registry.collect() for sample in family.samples}

        assert {"training_epoch_total", "training_runs_total"} == {n for n in names if not n.endswith("_created")}
        assert (0, 0) == results(registry)


def test_the_childs_events_are_exposed_while_it_runs(tmp_path):
    code = """
say(Started("linear"))
say(Epoch("linear", 1, 0.4))
say(Validated("linear", 1, Scores(0.3, 0.7, 0.1, 9.0)))
while not pathlib.Path("go").exists():
    time.sleep(0.01)
finished()
"""
    with residing(tmp_path, code) as (_, registry):
        assert wait_for(lambda: shown(registry, "validation_mae") == 9.0)
        assert (0.4, 1) == (shown(registry, "training_loss"), shown(registry, "training_epoch_total"))
        assert shown(registry, "training_last_success_timestamp_seconds") is None

        (tmp_path / "go").touch()

        assert wait_for(lambda: results(registry) == (1, 0))
        assert (0.375, 3.5, 0.75) == tuple(
            shown(registry, name) for name in ("training_loss", "validation_mae", "validation_accuracy")
        )
        assert 1.5 == shown(registry, "training_duration_seconds")
        assert abs(shown(registry, "training_last_success_timestamp_seconds") - time.time()) < 60


def test_the_log_has_the_progress_and_the_first_suspects(tmp_path, log):
    code = """
say(Started("linear"))
say(Validated("linear", 1, Scores(0.123456, 0.7, 0.1, 9.0)))
for line in range(2, 10):
    say(Suspect(line, "555 bags"))
finished()
"""
    with residing(tmp_path, code) as (_, registry):
        assert wait_for(lambda: results(registry) == (1, 0))

    assert ["linear"] == [fact["candidate"] for fact in facts(log, "candidate started")]
    assert [(0.1235, 9.0)] == [(fact["loss"], fact["mae"]) for fact in facts(log, "candidate validated")]
    assert [2, 3, 4, 5, 6] == [fact["line"] for fact in facts(log, "row to look at; it was used")]
    assert [3] == [fact["more"] for fact in facts(log, "more rows to look at")]


def test_a_restart_shows_what_the_last_finished_training_left(tmp_path):
    write_last(tmp_path / ".gleaner", LAST)

    with residing(tmp_path, champion=True) as (_, registry):
        assert {"training_loss": 0.125, "training_duration_seconds": 7.5, **SCORES.named("validation_")} == {
            name: shown(registry, name)
            for name in ("training_loss", "training_duration_seconds", *SCORES.named("validation_"))
        }
        assert LAST.at == shown(registry, "training_last_success_timestamp_seconds")
        assert (0, 0) == results(registry)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"versions": {}}', b"[1]"])
def test_a_damaged_last_json_is_logged_and_shows_nothing(tmp_path, log, content):
    write_last(tmp_path / ".gleaner", LAST)
    (tmp_path / ".gleaner" / "trainer" / "last.json").write_bytes(content)

    with residing(tmp_path, champion=True) as (_, registry):
        assert shown(registry, "training_loss") is None
    assert 1 == len(facts(log, "last training unknown"))


FAILURES = {
    "fixable": ('say(Failed("BadTable", "made.csv: is empty")); sys.exit(1)', "made.csv: is empty"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9 (Killed)"),
    "crashed": ("sys.exit(70)", "exited with code 70"),
    "cut off": ("""os.write(fd, b'["Epo'); sys.exit(3)""", "exited with code 3"),
    "silent": ("pass", "exited with code 0"),
}


@pytest.mark.parametrize(("code", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_logged_with_its_reason_counted_and_leaves_the_last_values(tmp_path, log, code, reason):
    write_last(tmp_path / ".gleaner", LAST)
    code = f'say(Started("spline")); say(Epoch("spline", 1, 99.0)); {code}'

    with residing(tmp_path, code) as (_, registry):
        assert wait_for(lambda: results(registry) == (0, 1))
        assert 0.125 == shown(registry, "training_loss")
        assert 12.5 == shown(registry, "validation_mae")
        assert LAST.at == shown(registry, "training_last_success_timestamp_seconds")
        time.sleep(0.5)

    assert [(reason, "when asked, by `gleaner train --now`")] == [
        (fact["reason"], fact["again"]) for fact in facts(log, "training failed")
    ]
    assert 1 == runs(tmp_path)  # another try would fail in the same way


def test_a_first_failure_leaves_no_gauge_behind(tmp_path):
    with residing(tmp_path, 'say(Started("spline")); say(Epoch("spline", 1, 99.0)); sys.exit(1)') as (_, registry):
        assert wait_for(lambda: results(registry) == (0, 1))
        assert shown(registry, "training_loss") is None


def test_an_unreachable_mlflow_is_tried_again_with_growing_waits(tmp_path, log):
    code = 'finished() if runs == 4 else say(Failed("Unreachable", "MLflow at http://x: refused"))'

    with residing(tmp_path, code) as (_, registry):
        assert wait_for(lambda: results(registry) == (1, 3))

    began = facts(log, "training started")
    failed = facts(log, "training failed")
    waits = [after["created"] - fault["created"] for after, fault in zip(began[1:], failed, strict=True)]
    assert ["no champion", *["tried again"] * 3] == [fact["why"] for fact in began]
    assert all(wait >= least - 0.005 for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True))


def test_it_trains_by_the_clock(tmp_path, log):
    with residing(tmp_path, every="1s", champion=True) as (_, registry):
        assert wait_for(lambda: results(registry)[0] >= 2)

    began = facts(log, "training started")
    assert {"every 1s"} == {fact["why"] for fact in began}
    assert began[1]["created"] - began[0]["created"] > 0.9


@pytest.mark.parametrize(
    ("ago", "due"), [(600, 3_000), (7_200, 0), (-7_200, 3_600)], ids=["under way", "overdue", "the clock was set back"]
)
def test_a_restart_does_not_delay_the_next_training(tmp_path, ago, due):
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    settings = load_settings(tmp_path / "gleaner.toml", {"training": {"every": "1h"}})
    trainer = Trainer([], settings, TrainingMetrics(CollectorRegistry()))

    trainer._plan(time.time() - ago)

    assert due == pytest.approx(trainer._due[0] - time.monotonic(), abs=5)


def test_it_trains_when_asked(tmp_path, log):
    with residing(tmp_path, champion=True) as (_, registry):
        assert os.getpid() == ask(tmp_path / ".gleaner")

        assert wait_for(lambda: results(registry) == (1, 0))
    assert ["asked"] == [fact["why"] for fact in facts(log, "training started")]


def test_asked_several_times_during_a_training_it_trains_once_more(tmp_path):
    code = """
while not pathlib.Path("go").exists():
    time.sleep(0.01)
finished()
"""
    with residing(tmp_path, code) as (_, registry):
        assert wait_for(lambda: runs(tmp_path) == 1)
        for _ in range(3):
            ask(tmp_path / ".gleaner")
            time.sleep(0.05)
        (tmp_path / "go").touch()

        assert wait_for(lambda: results(registry) == (2, 0))
        time.sleep(0.5)
    assert 2 == runs(tmp_path)


def test_it_shows_a_training_by_hand_that_finished(tmp_path, log):
    with residing(tmp_path, champion=True) as (_, registry):
        write_last(tmp_path / ".gleaner", LAST)
        report_finished(tmp_path / ".gleaner")

        assert wait_for(lambda: shown(registry, "validation_mae") == 12.5)
        assert LAST.at == shown(registry, "training_last_success_timestamp_seconds")
    assert (0, 0) == results(registry)  # it counts its own trainings only
    assert 0 == runs(tmp_path)
    assert 1 == len(facts(log, "training by hand finished"))


def test_a_training_by_hand_during_its_own_is_shown_after_its_own(tmp_path):
    code = """
say(Started("decision_tree"))
while not pathlib.Path("go").exists():
    time.sleep(0.01)
sys.exit(1) if runs == 1 else finished()
"""
    with residing(tmp_path, code) as (_, registry):
        assert wait_for(lambda: shown(registry, "training_candidate", candidate="decision_tree") == 1)
        write_last(tmp_path / ".gleaner", LAST)
        report_finished(tmp_path / ".gleaner")
        time.sleep(0.2)
        assert shown(registry, "validation_mae") is None
        (tmp_path / "go").touch()
        assert wait_for(lambda: shown(registry, "validation_mae") == 12.5)
        assert (0, 1) == results(registry)

        (tmp_path / "go").unlink()
        ask(tmp_path / ".gleaner")
        assert wait_for(lambda: runs(tmp_path) == 2)
        report_finished(tmp_path / ".gleaner")
        (tmp_path / "go").touch()
        assert wait_for(lambda: results(registry) == (1, 1))
        assert 3.5 == shown(registry, "validation_mae")  # the training that finished last


def test_a_training_by_hand_finds_the_resident_or_none(tmp_path):
    assert find_resident(tmp_path / ".gleaner") is None
    report_finished(tmp_path / ".gleaner")

    with residing(tmp_path, champion=True):
        assert os.getpid() == find_resident(tmp_path / ".gleaner")
    assert find_resident(tmp_path / ".gleaner") is None
    assert 0 == runs(tmp_path)


def test_asking_without_a_resident_names_the_command_that_starts_one(tmp_path):
    with pytest.raises(Refused, match="gleaner train --resident"):
        ask(tmp_path / ".gleaner")

    with residing(tmp_path, champion=True):
        pass
    with pytest.raises(Refused, match="no resident trainer runs"):
        ask(tmp_path / ".gleaner")

    os.mkfifo(tmp_path / ".gleaner" / "trainer" / "ask")  # as a killed resident leaves it
    with pytest.raises(Refused, match="no resident trainer runs"):
        ask(tmp_path / ".gleaner")


def test_the_files_of_a_killed_resident_do_not_stop_the_next(tmp_path):
    folder = tmp_path / ".gleaner" / "trainer"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "ask")
    (folder / "lock").write_text("1")

    with residing(tmp_path, champion=True) as (_, registry):
        ask(tmp_path / ".gleaner")
        assert wait_for(lambda: results(registry) == (1, 0))


def test_a_second_resident_of_the_same_state_is_refused(tmp_path):
    with residing(tmp_path, champion=True) as (trainer, _):
        second = Trainer([], trainer.settings, TrainingMetrics(CollectorRegistry()))

        with pytest.raises(Refused, match=f"a resident trainer already runs: pid {os.getpid()}.*gleaner train --now"):
            second.run()


def test_stopped_it_ends_the_child_in_order(tmp_path, log):
    code = """
def end(*_):
    pathlib.Path("ended").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path("ready").touch()
time.sleep(60)
"""
    with residing(tmp_path, code) as (trainer, registry):
        assert wait_for((tmp_path / "ready").exists)
        trainer.stop()
        assert wait_for((tmp_path / "ended").exists)

    assert (0, 0) == results(registry)
    assert [] == facts(log, "training failed")


def test_stopped_twice_it_kills_a_child_that_ignores_signals(tmp_path):
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("ready").write_text(str(os.getpid()))
time.sleep(60)
"""
    with residing(tmp_path, code):
        assert wait_for(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text())
    # At its end the block stops the resident twice, and checks that it ends in time.

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "ready").read_text()), 0)


RESIDENT = """
import pathlib, sys
from prometheus_client import CollectorRegistry
from gleaner.training.metrics import TrainingMetrics
from gleaner.settings.load import load_settings
from gleaner.training.resident import Trainer
settings = load_settings(pathlib.Path("gleaner.toml"))
Trainer([sys.executable, "child.py"], settings, TrainingMetrics(CollectorRegistry())).run()
"""


@pytest.mark.parametrize("handler", ["default_int_handler", "SIG_IGN"], ids=["in order", "by force"])
def test_a_child_and_its_processes_end_with_a_killed_resident(tmp_path, handler):
    code = f"""
import subprocess
follow_trainer(fd)
signal.signal(signal.SIGTERM, signal.{handler})
grandchild = subprocess.Popen(["sleep", "60"])
pathlib.Path("pids").write_text(f"{{os.getpid()}} {{grandchild.pid}}")
try:
    time.sleep(60)
except KeyboardInterrupt:
    grandchild.kill()
    pathlib.Path("in order").touch()
"""
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    (tmp_path / "child.py").write_text(PREAMBLE + code)
    with subprocess.Popen([sys.executable, "-c", RESIDENT], cwd=tmp_path) as resident:
        pids = tmp_path / "pids"
        assert wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        resident.kill()

    assert wait_for(lambda: all(map(has_ended, map(int, pids.read_text().split()))), 20)
    assert (handler == "default_int_handler") == (tmp_path / "in order").exists()


def test_only_small_events_are_sent_each_in_one_piece(tmp_path):
    read, write = os.pipe()
    for event in (
        Started("linear"),
        Step("linear", "fold"),
        Validated("linear", 1, SCORES),
        Epoch("linear", 1, 0.1 + 0.2),
        Chosen(made.fitted("linear"), None),
        Failed("BadTable", "é" * 5_000),
        LAST,
    ):
        send_event(write, event)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        lines = stream.read().splitlines()

    assert ["Started", "Validated", "Epoch", "Failed", "Finished"] == [line.split(b'"')[1].decode() for line in lines]
    assert b"0.30000000000000004" in lines[2]
    assert max(map(len, lines)) < 4096


def test_a_child_whose_resident_is_gone_is_interrupted():
    read, write = os.pipe()
    os.close(read)

    with pytest.raises(KeyboardInterrupt):
        send_event(write, Started("linear"))
    os.close(write)


def test_the_last_finished_training_reads_back_the_same(tmp_path):
    assert read_last(tmp_path) is None

    write_last(tmp_path, LAST)

    assert LAST == read_last(tmp_path)
