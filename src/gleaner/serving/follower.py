"""An MLflow server's aliases and their versions, copied into the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gleaner.errors import BadArtifact, BadStore
from gleaner.model.manifest import REASONS
from gleaner.model.selftest import Retry, retry_of, selftest
from gleaner.model.store import Store
from gleaner.redaction import redact
from gleaner.serving.fetcher import Fetcher
from gleaner.serving.registry import LONGEST_REASON, RESULTS, MlflowServer, Trouble, Version
from gleaner.settings.sections import Settings

log = logging.getLogger(__name__)

REFUSALS = (*REASONS, "location", "model", "columns", "conflict")

# A failed fetch is repeated after 1, 2, 4, 8, 8, ... seconds: within the 10 s in which a moved alias is served.
_LONGEST_PAUSE = 8.0


class Follower:
    """A follower of one registered model's aliases.

    A server's failure leaves the store as it was.

    test: the self-test, replaced in tests.
    retry_seconds: the wait before an unfinished self-test is repeated.
    grace_seconds: the time in which an unreachable server is no warning, because it may be starting too.
    polls: counts by result.
    refusals: counts by reason.
    last_success: the time of the last successful poll, in seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        test: Callable[[Path], None] = selftest,
        retry_seconds: float = 30.0,
        grace_seconds: float = 60.0,
    ) -> None:
        self._retry_seconds = retry_seconds
        self._patient_until = time.monotonic() + grace_seconds
        self.server, self.store = MlflowServer(settings), store
        self._fetcher = Fetcher(self.server, store, settings.schema_, test, settings.tracking.fetch_seconds)
        self.aliases = tuple(dict.fromkeys(settings.serving.slots.values()))
        self._every = settings.tracking.poll_seconds
        self.polls, self.refusals = dict.fromkeys(RESULTS, 0), dict.fromkeys(REFUSALS, 0)
        self.last_success: float | None = None
        self.result, self.detail = "", ""
        self._logged = ""
        self._wanted: dict[str, Version | None] = {}
        self._refused: dict[Version, tuple[str, Retry]] = {}
        self._failed: dict[Version, _Failed] = {}
        # The versions that the store has with the registry's own manifest.
        self._stored: set[Version] = set()

    def follow(self, stop: threading.Event) -> None:
        """Poll until `stop` is set."""
        while True:
            self.poll()
            if stop.wait(self._every):
                return

    def poll(self) -> None:
        """Ask for the aliases and follow them; count and log the result.

        A result is logged only if it differs from the one before.
        """
        bug, refused = None, list(self._refused)
        try:
            self._poll()
            result, detail = "success", ""
        except Trouble as e:
            result, detail = e.result, str(e)
        except (BadStore, OSError) as e:
            result, detail = "store", str(e)
        except Exception as e:  # the thread must survive every error
            result, detail, bug = "internal", repr(e), e
        self.polls[result] += 1
        self.result, self.detail = result, redact(detail)
        facts = {"uri": self.server.name, "model": self.server.model, "result": result}
        if result == "success":
            self.last_success = time.time()
        starts = result == "unreachable" and self.last_success is None and time.monotonic() < self._patient_until
        state = f"{result}, at the start" if starts else result
        if state == self._logged:
            return
        self._logged = state
        if result == "success":
            # Versions refused before the trouble are tried once more.
            for version in filter(self._refused.__contains__, refused):
                why, retry = self._refused[version]
                self._refused[version] = why, retry._replace(at=0.0)
            log.info("registry followed", extra=facts)
        elif starts:
            log.info("registry not followed yet", extra={**facts, "detail": detail})
        else:
            log.warning("registry not followed", extra={**facts, "detail": detail}, exc_info=bug)

    def fault(self, alias: str) -> str | None:
        """Return the reason why an alias's version is refused, or None."""
        version = self._wanted.get(alias)
        refused = None if version is None else self._refused.get(version)
        return refused and refused[0]

    def describe(self) -> dict[str, object]:
        """Describe the latest poll, for /health_status."""
        since = None if self.last_success is None else round(time.time() - self.last_success, 3)
        facts: dict[str, object] = {"uri": self.server.name, "result": self.result or None}
        return {**facts, "detail": self.detail or None, "seconds_since_success": since}

    def _poll(self) -> None:
        # The store is read first: if it differs from the server's response, then the server has moved an alias.
        before = self.store.aliases()
        wanted = {alias: self.server.version(alias) for alias in self.aliases}
        self._wanted = wanted
        self._refused = {version: why for version, why in self._refused.items() if version in wanted.values()}
        self._failed = {version: why for version, why in self._failed.items() if version in wanted.values()}
        trouble: Trouble | None = None
        for alias, version in wanted.items():
            # A missing alias changes nothing, as in `slots`.
            if version and (version not in self._refused or self._refused[version][1].at < time.monotonic()):
                try:
                    self._follow(alias, version, before.get(alias))
                except Trouble as e:  # the other alias must not wait for this one's files
                    trouble = trouble or e
        if trouble:
            raise trouble

    def _follow(self, alias: str, version: Version, before: int | None) -> None:
        try:
            self._take(version)
        except BadArtifact as e:
            self._refuse(version, e)
            return
        self._refused.pop(version, None)
        # A training or `models promote` on this machine may have moved the alias meanwhile: then the next poll decides.
        if version.number != before and self.store.aliases().get(alias) == before:
            self.store.point({alias: version.number})
            log.info("alias followed", extra={"alias": alias, "version": version.number, "previous": before})

    def _refuse(self, version: Version, error: BadArtifact) -> None:
        detail = error.detail[:LONGEST_REASON]
        why, before = f"version {version.number} in the registry: {detail}", self._refused.get(version)
        retry = retry_of(error, before and before[1], first_seconds=self._retry_seconds)
        if error.reason == "signature":  # `gleaner models sign` may add it at any time
            retry = retry._replace(at=time.monotonic() + self._retry_seconds)
        self._refused[version] = why, retry
        if before and before[0] == why:
            return  # already counted and logged
        self.refusals[error.reason] += 1
        facts = {"uri": self.server.name, "model": self.server.model, "version": version.number}
        log.error("version refused", extra={**facts, "reason": error.reason, "detail": detail})

    def _take(self, version: Version) -> None:
        """Fetch a version unless the store has it.

        Raises BadArtifact for a version that must not be served, Trouble for a failure that may pass.
        """
        if version in self._stored:
            return
        failed = self._failed.get(version)
        if failed and time.monotonic() < failed.until:
            raise failed.trouble
        try:
            self._fetcher.fetch(version.number)
        except Trouble as e:
            trouble = e
        except OSError as e:
            trouble = Trouble("store", f"version {version.number} cannot be stored: {e}")
        else:
            self._failed.pop(version, None)
            self._stored.add(version)
            return
        pause = min(2 * failed.pause, _LONGEST_PAUSE) if failed else 1.0
        self._failed[version] = _Failed(trouble, pause, time.monotonic() + pause)
        raise trouble


@dataclass(frozen=True, slots=True)
class _Failed:
    """A failed fetch.

    until: the time before which the fetch is not repeated, as a reading of the monotonic clock.
    """

    trouble: Trouble
    pause: float
    until: float
