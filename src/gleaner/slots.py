"""Which version answers in each slot: follow the store's aliases, test, swap; on any failure nothing changes."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gleaner.artifact import Artifact, Manifest
from gleaner.errors import BadArtifact, BadStore
from gleaner.predictor import ENGINE, NEVER, Predictor, Retry, retry_of, selftest
from gleaner.store import Stamp, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """One version, ready. Compared by identity: a version is loaded once, however many slots it fills.

    stamp: the store's, of the files that it was loaded from.
    """

    version: int
    stamp: Stamp | None
    manifest: Manifest
    digest: str
    predictor: Predictor


def load_version(
    store: Store,
    version: int,
    *,
    test: Callable[..., None] = selftest,
    make: Callable[[Artifact], Predictor] = Predictor,
) -> Loaded:
    """A version, verified, tested unless that is remembered, and ready. Raises BadArtifact."""
    stamp = store.stamp(version)
    artifact = store.read(version)
    if not store.has_passed(version, artifact.digest, ENGINE):
        test(artifact.folder)
        # A store on a full disk, or one that may only be read, still serves: the next start tests again.
        with contextlib.suppress(OSError):
            store.remember_passed(version, artifact.digest, ENGINE)
    return Loaded(version, stamp, artifact.manifest, artifact.digest, make(artifact))


@dataclass(slots=True)
class _Refusal:
    """What a slot was not given, and when that is worth another try."""

    version: int | None
    stamp: Stamp | None
    retry: Retry = NEVER


class Slots:
    """The version in each slot. Readers take `current[slot]` once per request and keep what they got.

    aliases: the alias that each slot follows. test: the self-test, replaced in tests of a hanging one.
    make: makes the predictor of an artifact, replaced in drills by one that is at fault.
    retry_seconds: when a self-test is run again that did not end, or was ended; doubled each time, up to ten minutes.
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
        """Look at the store once, and load what an alias has newly been pointed at."""
        try:
            wanted = self.store.aliases()
        except BadStore as e:
            self._fail({slot: _Refusal(None, None) for slot in self.aliases}, "store", str(e))
            return
        for slot, alias in self.aliases.items():
            version, loaded = wanted.get(alias), self.current[slot]
            if version is None:
                # A taken-away alias ends nothing: what answers goes on until there is something better.
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
        """Whether what the slot's alias points at was refused, so that something else answers, or nothing."""
        return slot in self._refused

    def follow(self, every_seconds: float, stop: threading.Event) -> None:
        """Refresh until told to stop."""
        while not stop.wait(every_seconds):
            try:
                self.refresh()
            except Exception:
                # The thread that follows the store must outlive anything that it may find there.
                log.exception("store not readable")

    def _load(self, slot: str, version: int, stamp: Stamp | None) -> None:
        try:
            loaded = self._already(version, stamp)
            loaded = loaded or load_version(self.store, version, test=self._test, make=self._make)
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

    def _already(self, version: int, stamp: Stamp | None) -> Loaded | None:
        there = filter(None, self.current.values())
        return next((loaded for loaded in there if (loaded.version, loaded.stamp) == (version, stamp)), None)

    def _settle(self, slot: str) -> None:
        self._refused.pop(slot, None)
        self.faults.pop(slot, None)

    def _fail(self, refused: Mapping[str, _Refusal], reason: str, detail: str) -> None:
        """Count and say a failure once."""
        news = [slot for slot in refused if self.faults.get(slot) != detail]
        self._refused.update(refused)
        self.faults.update(dict.fromkeys(refused, detail))
        if news:
            self.failures[reason] = self.failures.get(reason, 0) + 1
            log.error("model not loaded", extra={"slot": ",".join(news), "reason": reason, "detail": detail})
