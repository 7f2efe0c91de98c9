"""A version of the store, verified, tested and ready to predict."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from gleaner.model.artifact import Artifact
from gleaner.model.manifest import Manifest
from gleaner.model.predictor import ENGINE, Predictor
from gleaner.model.selftest import selftest
from gleaner.model.store import Stamp, Store


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """One version in memory, ready to predict.

    Compared by identity: a version is loaded once, however many slots serve it.
    stamp: the store's stamp of the version's files when they were loaded.
    digest: the manifest's sha256.
    """

    version: int
    stamp: Stamp | None
    manifest: Manifest
    digest: str
    predictor: Predictor

    def is_older_than(self, other: Loaded) -> bool:
        """Return whether a version has a lower number or an earlier manifest.

        The manifest tells old models under new numbers apart.
        """
        try:
            created, before = (dt.datetime.fromisoformat(loaded.manifest.created) for loaded in (self, other))
            return self.version < other.version or created < before
        except (ValueError, TypeError):  # no date, or one without a time zone
            return self.version < other.version


def load_version(
    store: Store,
    version: int,
    *,
    test: Callable[..., None] = selftest,
    make: Callable[[Artifact], Predictor] = Predictor,
) -> Loaded:
    """Load a version, verified and tested.

    A test that the store remembers as passed is not repeated.

    test, make: other self-tests and predictors, for tests and drills.
    Raises BadArtifact.
    """
    stamp = store.stamp(version)
    artifact = store.read(version)
    if not store.has_passed(version, artifact.digest, ENGINE):
        test(artifact.folder)
        # A full or read-only disk must not stop serving; the next start repeats the test.
        with contextlib.suppress(OSError):
            store.remember_passed(version, artifact.digest, ENGINE)
    return Loaded(version, stamp, artifact.manifest, artifact.digest, make(artifact))
