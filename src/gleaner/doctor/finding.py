"""The doctor's findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gleaner.errors import GleanerError

Verdict = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor looked at.

    fix: the action that helps; empty for the verdict OK.
    """

    verdict: Verdict
    what: str
    detail: str
    fix: str = ""


class NotIt(GleanerError):
    """A server that does not respond, or another server than expected."""
