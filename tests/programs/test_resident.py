"""Errors of the resident's child."""

from __future__ import annotations

import os

import pytest

from gleaner.errors import Unreachable
from gleaner.programs import resident
from gleaner.programs.resident import failing_aloud
from gleaner.redaction import remember


def test_an_error_is_sent_without_secrets_and_then_cut(monkeypatch):
    remember("s3cret-of-the-child")
    monkeypatch.setattr(resident, "follow_trainer", lambda _: None)  # it would end these tests with their terminal
    read, write = os.pipe()
    try:
        with pytest.raises(SystemExit), failing_aloud(write):
            raise Unreachable("x" * 490 + "s3cret-of-the-child")
        event = os.read(read, 4096).decode()
    finally:
        os.close(read)
        os.close(write)

    assert "x***" in event
    assert "s3c" not in event
