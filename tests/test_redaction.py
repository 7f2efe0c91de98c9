"""Secrets, hidden in addresses, commands, log lines and tracebacks."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import time
from urllib.parse import quote

import pytest

from gleaner import redaction
from gleaner.logs import HumanFormatter, JsonFormatter
from gleaner.redaction import (
    find_secrets,
    hide_arguments,
    hide_login,
    hide_name,
    hide_path,
    hide_userinfo,
    looks_secret,
    redact,
    remember,
)

SECRET = 'pa55 "w"/é\\+'


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(redaction, "_known", set())
    monkeypatch.setattr(redaction, "_pattern", None)


def test_a_remembered_secret_is_hidden_in_every_usual_spelling():
    forms = [SECRET, quote(SECRET), quote(SECRET, safe=""), json.dumps(SECRET)[1:-1], repr(SECRET)[1:-1]]
    forms.append(base64.b64encode(SECRET.encode()).decode())
    assert "a pa55 b" == redact("a pa55 b")

    remember(SECRET)

    for form in forms:
        assert "<***>" == redact(f"<{form}>")


def test_a_longer_secret_goes_before_a_shorter_one_in_it():
    remember("abcdef", "abcdefghi")

    assert "*** ***" == redact("abcdef abcdefghi")


def test_a_secret_shorter_than_six_characters_is_not_searched_for():
    remember("made", "")

    assert "made" == redact("made")


@pytest.mark.parametrize(
    ("address", "secrets"),
    [
        ("http://joe:s3cret%40@h:5000/", {"s3cret%40"}),
        ("postgresql://joe:s3/cre?t@h/db?password=t0ken&x=1", {"s3/cre?t", "t0ken"}),
        ("postgresql://joe:p@ssw:word@h/db", {"p@ssw:word", "word", "ssw"}),
        ("http://h:s3cret/", {"s3cret"}),
        ("http://[::1]:5000", set()),
        ("postgresql://h/db?sslmode=require", set()),
        ("https://h/", set()),
    ],
)
def test_the_password_and_the_query_of_an_address_are_its_secrets(address, secrets):
    found = set(find_secrets(address)) - {""}

    assert secrets <= found
    assert bool(secrets) == bool(found)


def test_the_whole_address_of_a_webhook_is_a_secret():
    found = find_secrets("https://hooks.example.org/T0/abcdefghij0123456789", whole=True)

    assert {"hooks.example.org/T0/abcdefghij0123456789", "abcdefghij0123456789"} <= set(found)
    assert not any(find_secrets("https://hooks.example.org/", whole=True))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot reach http://joe:s3@cret@h:1/a, http://h", "cannot reach http://h:1/a, http://h"),
        ("me@example.org at http://h", "me@example.org at http://h"),
        ("no address", "no address"),
    ],
)
def test_users_and_passwords_are_hidden_in_a_text(text, shown):
    assert shown == hide_userinfo(text)


def test_hiding_takes_linear_time():
    began = time.process_time()
    hide_userinfo("@" + "//" * 500_000)

    assert time.process_time() - began < 5  # a quadratic search takes hours


@pytest.mark.parametrize(
    ("address", "login", "path"),
    [
        ("https://hooks.example.org:8443/T0/B0?x=1", "https://hooks.example.org:8443/T0/B0?***", "https://hooks.example.org:8443/***"),
        ("https://example.org/", "https://example.org/", "https://example.org/"),
        ("postgresql://joe:a b@h/db", "postgresql://h/db", "***"),
        ("sqlite:///x/mlflow.db", "sqlite:///x/mlflow.db", "sqlite:///***"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_login_or_without_its_path(address, login, path):
    assert (login, path) == (hide_login(address), hide_path(address))


def test_a_token_in_the_place_of_a_path_is_recognised():
    for token in ("xoxb-2048000000-abcdefgh", "ghp_0123456789abcdefghij", "gleaner_0123abcd_" + "x" * 43):
        assert looks_secret(token)
        assert "***" == hide_name(token)
    for path in (
        "api-keys.json",
        "/secrets/0123456789abcdefghij0123",
        "webhook-token-of-production",
        "a0123456789012345678.txt",
    ):
        assert not looks_secret(path)
    assert "keys/a" == hide_name("keys/a")


def test_a_strangers_command_is_shown_without_its_secrets():
    command = [
        "server",
        "--db=postgresql://joe:s3cret@h/db?password=s3cret",
        "--api-key",
        "s3cret",
        "--password=s3cret",
    ]

    shown = hide_arguments([*command, "--token-file", "/x", "--secret", "--port", "1"])

    hidden = ["server", "--db=postgresql://h/db?***", "--api-key", "***", "--password=***"]
    assert [*hidden, "--token-file", "/x", "--secret", "--port", "1"] == shown


@pytest.mark.parametrize("form", [HumanFormatter, JsonFormatter])
def test_log_lines_and_their_tracebacks_are_redacted_before_they_are_cut(form):
    remember("s3cret-word")
    try:
        raise RuntimeError("with s3cret-word")
    except RuntimeError:
        error = sys.exc_info()
    record = logging.LogRecord("gleaner.x", logging.ERROR, "", 1, "said s3cret-word", None, error)
    record.reason, record.long = "s3cret-word", "x" * 123 + "s3cret-word"

    line = form().format(record)

    assert "s3c" not in line
    assert "said ***" in line


def test_tracebacks_and_other_libraries_log_lines_are_redacted_in_a_process():
    code = """
import logging, threading
from gleaner.redaction import guard_output, remember
remember("s3cret-word"); guard_output()
def fail(): raise ValueError("s3cret-word")
logging.getLogger("other").warning("a %s", "s3cret-word")
try: fail()
except ValueError: logging.getLogger("other").exception("b")
thread = threading.Thread(target=fail); thread.start(); thread.join()
try: fail()
except ValueError as e: raise RuntimeError("c s3cret-word") from e
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert 1 == done.returncode
    shown = done.stdout + done.stderr.replace('"s3cret-word"', "")  # lines of the source itself
    assert "s3cret" not in shown
    for said in ("a ***", "b\n", "ValueError: ***", "RuntimeError: c ***"):
        assert said in shown
    assert 4 == shown.count("ValueError: ***") + shown.count("RuntimeError: c ***")
