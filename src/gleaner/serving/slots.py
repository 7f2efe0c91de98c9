"""The version in each slot, as the store's aliases say.

A failure leaves the version in service as it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gleaner.errors import BadArtifact, BadStore
from gleaner.model.artifact import Artifact
from gleaner.model.loading import Loaded, load_version
from gleaner.model.predictor import Predictor
from gleaner.model.selftest import NEVER, Retry, retry_of, selftest
from gleaner.model.store import Stamp, Store

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refusal:
    """A version that a slot refused, and the next try."""

    version: int | None
    stamp: Stamp | None
    retry: Retry = NEVER


class Slots:
    """The version in each slot.

    A request reads `current[slot]` once and keeps that version.

    aliases: the alias that each slot follows.
    test: the self-test, replaced in tests.
    make: makes the predictor of an artifact; drills pass one with an injected fault.
    retry_seconds: the wait before an unfinished self-test is repeated; doubled each time, up to ten minutes.
    """

    def __init__(
        self,
        store: Store,
        aliases: Mapping[str, str],
        *,
        test: Callable[..., None] = selftest,
        make: Callable[[Artifact], Predictor] = Predictor,
        retry_seconds: float = 30.0,
    ) -> None:
        self._retry_seconds = retry_seconds
        self.store, self.aliases, self._test, self._make = store, dict(aliases), test, make
        self.current: dict[str, Loaded | None] = dict.fromkeys(self.aliases)
        self.since: dict[str, float] = {}
        self.faults: dict[str, str] = {}
        self.failures: dict[str, int] = {}
        self._refused: dict[str, _Refusal] = {}

    def refresh(self) -> None:
        """Read the store's aliases once, and load the versions of moved ones."""
        try:
            wanted = self.store.aliases()
        except BadStore as e:
            self._fail({slot: _Refusal(None, None) for slot in self.aliases}, "store", str(e))
            return
        for slot, alias in self.aliases.items():
            version, loaded = wanted.get(alias), self.current[slot]
            if version is None:
                # A removed alias changes nothing: the version in service stays until there is another.
                self._settle(slot)
                if loaded is None:
                    self.faults[slot] = f"no version has the alias {alias!r}"
                continue
            stamp, refusal = self.store.stamp(version), self._refused.get(slot)
            if loaded and (loaded.version, loaded.stamp) == (version, stamp):
                self._settle(slot)
            elif (
                refusal is None
                or (refusal.version, refusal.stamp) != (version, stamp)
                or refusal.retry.at < time.monotonic()
            ):
                self._load(slot, version, stamp)

    def is_refused(self, slot: str) -> bool:
        """Return whether the version of the slot's alias was refused."""
        return slot in self._refused

    def follow(self, every_seconds: float, stop: threading.Event) -> None:
        """Refresh every so many seconds, until `stop` is set."""
        while not stop.wait(every_seconds):
            try:
                self.refresh()
            except Exception:
                # The thread must survive every error, to follow the store once it is readable again.
                log.exception("store not readable")

    def _load(self, slot: str, version: int, stamp: Stamp | None) -> None:
        there = filter(None, self.current.values())
        already = next((loaded for loaded in there if (loaded.version, loaded.stamp) == (version, stamp)), None)
        try:
            loaded = already or load_version(self.store, version, test=self._test, make=self._make)
        except BadArtifact as e:
            before = self._refused.get(slot)
            same = before.retry if before and (before.version, before.stamp) == (version, stamp) else None
            retry = retry_of(e, same, first_seconds=self._retry_seconds)
            self._fail({slot: _Refusal(version, stamp, retry)}, e.reason, str(e))
            return
        previous = self.current[slot]
        self.current[slot], self.since[slot] = loaded, time.time()
        self._settle(slot)
        facts = {"slot": slot, "version": version, "candidate": loaded.manifest.candidate}
        facts["engine"] = loaded.predictor.row_engine
        log.info("model loaded", extra={**facts, "previous": previous.version if previous else None})
        if self.store.signer and previous and loaded.is_older_than(previous):
            # An old model is signed, too, so somebody else may have put it back.
            moved = {"alias": self.aliases[slot], "from": previous.version, "to": version}
            log.warning("model rolled back", extra={"slot": slot, **moved})

    def _settle(self, slot: str) -> None:
        self._refused.pop(slot, None)
        self.faults.pop(slot, None)

    def _fail(self, refused: Mapping[str, _Refusal], reason: str, detail: str) -> None:
        """Count and log a failure once."""
        news = [slot for slot in refused if self.faults.get(slot) != detail]
        self._refused.update(refused)
        self.faults.update(dict.fromkeys(refused, detail))
        if news:
            self.failures[reason] = self.failures.get(reason, 0) + 1
            log.error("model not loaded", extra={"slot": ",".join(news), "reason": reason, "detail": detail})
