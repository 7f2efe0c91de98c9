"""Log lines of real loggers on real streams."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.logs import LONGEST_LINE, HumanFormatter, JsonFormatter, request_id, start_logging

properties = profile(max_examples=100, deadline=None, derandomize=True, database=None)
TEXT = st.text(st.characters(), max_size=2000) | st.sampled_from("a\n\U0001f600\ud800\x00").map(lambda c: c * 5000)
VALUES = TEXT | st.floats() | st.integers(-(2**70), 2**70) | st.none() | st.booleans() | st.lists(st.integers())


@pytest.fixture
def package():
    """Yield the package's logger, and restore it afterwards."""
    logger = logging.getLogger("gleaner")
    kept = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = kept


def record(message: str, name: str = "gleaner.app", **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": name, "levelname": "INFO", "levelno": logging.INFO, "msg": message})
    vars(made).update(fields)
    return made


def caught(error: Exception) -> logging.LogRecord:
    """Return the record of an exception with its traceback."""
    try:
        raise error
    except type(error):
        return record("failed", exc_info=sys.exc_info())


def test_a_line_for_a_person_is_level_event_and_facts():
    line = HumanFormatter().format(record("model loaded", version=3, run_id="ab"))

    assert "INFO - model loaded version=3 run_id=ab" == line


def test_a_line_for_a_program_is_one_object_with_the_same_facts():
    event = json.loads(JsonFormatter().format(record("model loaded", version=3, slots=["v1"], ready=True, none=None)))

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert {
        "level": "INFO",
        "event": "model loaded",
        "version": 3,
        "slots": "['v1']",
        "ready": True,
        "none": None,
    } == event


def test_the_time_of_a_line_is_utc():
    line = JsonFormatter().format(record("x", created=0.25, msecs=250.0))

    assert "1970-01-01T00:00:00.250Z" == json.loads(line)["time"]


def test_every_line_logged_during_a_request_has_its_id():
    token = request_id.set("abc-1")
    try:
        during = record("answered")
        lines = HumanFormatter().format(during), JsonFormatter().format(during)
    finally:
        request_id.reset(token)

    assert "INFO - answered request_id=abc-1" == lines[0]
    assert "abc-1" == json.loads(lines[1])["request_id"]
    assert "INFO - answered" == HumanFormatter().format(during)


def test_a_line_break_in_a_fact_cannot_forge_a_second_line():
    line = HumanFormatter().format(record("refused", path="/x\nERROR - all is lost\x1b[2J\u2028"))

    assert r"INFO - refused path=/x\nERROR - all is lost\x1b[2J\u2028" == line


def test_the_response_that_check_logs_keeps_its_lines():
    assert "INFO - Response:\n{}" == HumanFormatter().format(record("Response:\n{}", name="gleaner.check"))


@properties
@given(TEXT, st.dictionaries(st.from_regex("[a-z]{1,9}_x", fullmatch=True), VALUES, max_size=12))
def test_every_event_is_one_printable_line_of_bounded_length_for_a_person(message, fields):
    line = HumanFormatter().format(record(message.replace("%", ""), **fields))

    assert line.isprintable()
    assert len(line) <= LONGEST_LINE


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@properties
@given(TEXT, st.dictionaries(st.from_regex("[a-z]{1,9}_x", fullmatch=True), VALUES, max_size=12))
def test_every_event_is_one_line_of_strict_json_of_bounded_length_for_a_program(message, fields):
    line = JsonFormatter().format(record(message.replace("%", ""), **fields))

    assert line.isprintable()
    assert len(line) <= LONGEST_LINE
    event = json.loads(line, parse_constant=refuse)
    assert message.replace("%", "").startswith(event["event"])


def test_a_number_outside_json_is_written_as_text():
    event = json.loads(JsonFormatter().format(record("fitted", loss=float("nan"), r2=float("-inf"), mae=0.5)))

    assert ("nan", "-inf", 0.5) == (event["loss"], event["r2"], event["mae"])


def test_a_long_traceback_keeps_its_end_for_a_program():
    line = JsonFormatter().format(caught(ValueError("x" * 9000 + " the cause")))

    assert json.loads(line)["exception"].endswith("x the cause")
    assert len(line) <= LONGEST_LINE


def test_a_person_gets_the_whole_traceback_below_the_line():
    lines = HumanFormatter().format(caught(KeyError("lost"))).splitlines()

    assert "INFO - failed" == lines[0]
    assert "Traceback (most recent call last):" == lines[1]
    assert "KeyError: 'lost'" == lines[-1]


def test_logging_can_be_started_twice_without_doubling_lines(package):
    first, second = io.StringIO(), io.StringIO()
    start_logging("human", first)
    start_logging("json", second)

    logging.getLogger("gleaner.app").info("started", extra={"port": 5001})
    logging.getLogger("gleaner.app").debug("a detail")

    assert "" == first.getvalue()
    assert 1 == second.getvalue().count("\n")
    assert 5001 == json.loads(second.getvalue())["port"]


def test_lines_go_to_standard_error_and_other_packages_stay_silent():
    program = (
        "import logging\n"
        "from gleaner.logs import start_logging\n"
        "start_logging()\n"
        "logging.getLogger('gleaner.cli').info('ours')\n"
        "logging.getLogger('other').info('theirs')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert ("", "INFO - ours\n") == (done.stdout, done.stderr)
