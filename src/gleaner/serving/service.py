"""The predictions behind all endpoints, with limits on concurrent work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from gleaner.errors import NoModel
from gleaner.model.loading import Loaded
from gleaner.serving.formats.json import RowReader, write_predictions
from gleaner.serving.formats.predictions import Predictions
from gleaner.serving.formats.tables import read_rows, write_response
from gleaner.serving.slots import Slots
from gleaner.serving.turns import Turns
from gleaner.serving.words import OtherWords, SlotWords
from gleaner.settings.sections import Serving
from gleaner.table.arrow.format import ARROW
from gleaner.table.numbers import Array
from gleaner.table.rows import Rows
from gleaner.table.schema import Schema

if TYPE_CHECKING:
    from gleaner.serving.follower import Follower

BUSY = "too many requests are in flight"

# Requests with larger bodies have turns of their own, so that a few of them do not delay the small ones.
SMALL_BODY = 4_096

# Tables of many megabytes computed at once, so that memory is bounded.
_TABLES_AT_ONCE = 2


# The server's loop waits this long for a prediction, and not longer.
_QUICK_SECONDS, _IN_A_ROW = 0.002, 8


class Pace:
    """The pace of a version's last predictions of small bodies.

    Eight in a row change it, so that neither one slow moment of the machine nor one lucky one does.
    """

    __slots__ = ("_against", "is_quick")

    def __init__(self) -> None:
        self.is_quick, self._against = False, 0

    def note(self, seconds: float) -> None:
        """Note the time of one prediction."""
        if (seconds <= _QUICK_SECONDS) is self.is_quick:
            self._against = 0
            return
        self._against += 1
        if self._against >= _IN_A_ROW:
            self.is_quick, self._against = not self.is_quick, 0


@dataclass(frozen=True, slots=True)
class SlotVersion:
    """The version in a slot, with its reader and its pace.

    words: the counts of words that no category lists, if there can be some.
    """

    loaded: Loaded
    reader: RowReader
    version: str
    words: SlotWords | None = None
    pace: Pace = field(default_factory=Pace)


class Service:
    """The predictions behind all endpoints.

    schema: the columns to describe while there is no version; each version has its own.
    follower: the follower of an MLflow server's aliases, if there is one.
    encoding: the encoding of CSV bodies in the settings, empty for none.
    draining: set when the process has to stop.
    """

    def __init__(
        self,
        slots: Slots,
        serving: Serving,
        registry: CollectorRegistry,
        schema: Schema | None,
        follower: Follower | None,
        encoding: str = "",
    ) -> None:
        self.slots, self.serving, self.registry = slots, serving, registry
        self.schema, self.follower, self.encoding = schema, follower, encoding
        self.draining = threading.Event()
        self.first_slot = next(iter(slots.aliases))
        self._versions: dict[str, SlotVersion] = {}
        self._words = OtherWords(registry)
        self._small, self._large = (Turns(serving.max_in_flight, serving.queue_seconds, BUSY) for _ in range(2))
        self._tables = Turns(_TABLES_AT_ONCE, serving.queue_seconds, BUSY)

    def is_ready(self) -> bool:
        """Return whether requests should come here.

        The first slot must have a version, and the process must not be stopping.
        """
        return self.slots.current[self.first_slot] is not None and not self.draining.is_set()

    def check_ready(self) -> None:
        """Raise NoModel unless the service is ready."""
        if self.draining.is_set():
            raise NoModel("the service is stopping")
        if not self.is_ready():
            self.version_in(self.first_slot)

    def version_in(self, slot: str) -> SlotVersion:
        """Return the version in a slot, with its reader. Raises NoModel."""
        loaded, known = self.slots.current[slot], self._versions.get(slot)
        if known is not None and known.loaded is loaded:
            return known
        if loaded is None:
            fault = self.slots.faults.get(slot, "no version yet")
            # A refusal's reason has paths of this machine in it; only its operator should read these.
            fix = "GET /health_status says why"
            if "no version" in fault:
                fix = f"{fault}; a trained or promoted version serves within seconds"
            raise NoModel(f"slot {slot} has no model: {fix}")
        serving = self.serving
        reader = RowReader(loaded.manifest.schema, max_rows=serving.max_rows, max_depth=serving.max_depth)
        words = self._words.of(slot, loaded.manifest.schema)
        found = self._versions[slot] = SlotVersion(loaded, reader, str(loaded.version), words)
        return found

    def loaded_versions(self) -> list[int]:
        """Return the numbers of the versions in all slots."""
        return sorted({loaded.version for loaded in self.slots.current.values() if loaded})

    def compute(
        self, version: SlotVersion, body: bytes, read: Callable[[], Rows], *, partial: bool
    ) -> tuple[Rows, Array]:
        """Wait for a turn; return (rows, predictions for the accepted rows).

        read: reads the body.
        partial: whether refused rows are allowed beside accepted ones.
        Raises Overloaded, the errors of `read`, and BadRows for a refused row unless `partial`.
        """
        turns = self._turns_for(body)
        turns.take()
        try:
            rows = read()
            if not (partial and len(rows.X)):
                rows.check()
            predictions = version.loaded.predictor.predict(rows.X)
            if version.words:
                version.words.count(rows.X)
            return rows, predictions
        finally:
            turns.give()

    def predict_at_once(self, slot: str, body: bytes) -> tuple[bytes, str, int] | None:
        """Return (response, version, rows) if it takes only a moment, else None.

        It does for a faultless body and a quick version.
        """
        try:
            version = self.version_in(slot)
            return self._predict(version, body) if version.pace.is_quick else None
        except BaseException:  # one that is no Exception would end the server's loop
            return None  # `predict_json` meets the same error, where it is logged and counted

    def predict_json(self, slot: str, body: bytes) -> tuple[bytes, str, int] | None:
        """Return (response, version, rows) for a faultless body, else None."""
        version, turns = self.version_in(slot), self._turns_for(body)
        turns.take()
        try:
            return self._predict(version, body)
        finally:
            turns.give()

    def _predict(self, version: SlotVersion, body: bytes) -> tuple[bytes, str, int] | None:
        began = time.perf_counter()
        rows = version.reader.accept(body)
        if rows is None:
            return None
        predictor = version.loaded.predictor
        if isinstance(rows, tuple):
            content = write_predictions([predictor.predict_row(rows[0])])
        else:
            content = write_predictions(predictor.predict(rows).tolist())
        if version.words:
            version.words.count(rows)
        if len(body) <= SMALL_BODY:
            version.pace.note(time.perf_counter() - began)
        return content, version.version, len(rows)

    def predict_arrow(self, slot: str, body: bytes, own_id: str) -> tuple[bytes, str, int]:
        """Return (response, version, rows) in a third of Flask's time.

        Raises the errors that the endpoint raises, by the same functions.
        """
        version, max_rows = self.version_in(slot), self.serving.max_table_rows
        rows, numbers = self.compute(
            version, body, lambda: read_rows(ARROW, body, version.reader, max_rows=max_rows), partial=False
        )
        predictions = Predictions(rows, numbers, version.loaded.version, own_id, detail=False, partial=False)
        return write_response(ARROW, predictions), version.version, len(numbers)

    def _turns_for(self, body: bytes) -> Turns:
        if len(body) <= SMALL_BODY:
            return self._small
        return self._large if len(body) <= self.serving.max_body_bytes else self._tables
