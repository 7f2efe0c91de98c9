"""Limits on the bodies of requests, before and while they come."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gleaner.errors import BadBody, TooLarge, WrongType
from gleaner.serving.formats.json import read_length
from gleaner.serving.formats.open_inference import HEADER_LENGTH
from gleaner.serving.formats.tables import TABLES
from gleaner.serving.turns import ByteBudget
from gleaner.settings.sections import Serving

Environ = dict[str, Any]

# Every body may hold this much. What all bodies hold beyond it has one budget.
_FREE_BYTES = 1 << 14

# Bodies of the largest size that fit into the budget at once.
_HELD_AT_ONCE = 4
_HEADER_LENGTH = "HTTP_" + HEADER_LENGTH.upper().replace("-", "_")


class Bodies:
    """The limits on all bodies.

    table_paths: the paths that take tables, besides those that end with /infer.
    budget: the bytes that all bodies may hold together, beyond the first 16 kB of each.
    """

    def __init__(self, serving: Serving, table_paths: Collection[str]) -> None:
        self._serving, self._table_paths = serving, table_paths
        self.budget = ByteBudget(_HELD_AT_ONCE * serving.max_table_bytes)

    def limit(self, environ: Environ) -> int:
        """Return the most bytes that a body may have, from its headers.

        Raises TooLarge, WrongType, BadBody.
        """
        length, encoding = environ.get("CONTENT_LENGTH", ""), environ.get("HTTP_TRANSFER_ENCODING")
        if not length and encoding is None:
            return 0
        if environ.get("HTTP_CONTENT_ENCODING") is not None:
            raise WrongType("a compressed body is not read; send the body uncompressed, without Content-Encoding")
        if encoding is not None and (length or encoding.strip().lower() != "chunked"):
            raise BadBody("wanted either Content-Length or Transfer-Encoding: chunked")
        limit = self._largest(environ)
        if encoding is None:
            expected = read_length(length)
            if expected is None:
                raise BadBody("Content-Length is not a number")
            if expected > limit:
                raise TooLarge(f"{expected:,} bytes; one request takes {limit:,}")
        return limit

    def hold(self, size: int, more: int) -> None:
        """Take the last `more` bytes of a body. Raises Overloaded."""
        if size > _FREE_BYTES:
            self.budget.take(min(more, size - _FREE_BYTES))

    def release(self, size: int) -> None:
        """Give back all that a body of `size` bytes has taken."""
        if size > _FREE_BYTES:
            self.budget.give(size - _FREE_BYTES)

    def _largest(self, environ: Environ) -> int:
        """Return the most bytes of a body of this kind."""
        path = environ["PATH_INFO"]
        kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        is_table = kind in TABLES and path in self._table_paths
        if is_table or (_HEADER_LENGTH in environ and path.endswith("/infer")):
            return self._serving.max_table_bytes
        return self._serving.max_body_bytes
