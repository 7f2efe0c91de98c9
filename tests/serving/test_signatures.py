"""Signed versions in the slots and from a registry; unsigned ones refused."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hostile
import made
import pytest
from projects import SETTINGS
from prometheus_client import CollectorRegistry
from registries import Registry
from signed import ANOTHER_KEY, KEY, of_another_model, sign, signer_of

from gleaner.model.manifest import MANIFEST, MODEL, SIGNATURE
from gleaner.model.selftest import selftest
from gleaner.model.store import Store
from gleaner.serving.follower import Follower
from gleaner.serving.metrics import Following
from gleaner.serving.slots import Slots
from gleaner.settings.load import load_settings

ALIASES = {"v1": "champion", "v2": "challenger"}


def trusting(store: Store) -> Store:
    return Store(store.root, signer_of())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store of versions 1, 2 and 3, all signed."""
    days = {version: made.copy(made.constant(float(version)), tmp_path / f"made-{version}") for version in (1, 2, 3)}
    for day, artifact in days.items():
        made.rewrite(artifact, created=f"2026-01-0{day}T12:00:00+00:00")
    filled = made.fill(tmp_path / "store", *days.values())
    for version in filled.versions():
        sign(filled.folder(version))
    return trusting(filled)


def versions(slots: Slots) -> list[int | None]:
    return [loaded and loaded.version for loaded in slots.current.values()]


def rollbacks(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, int, int]]:
    lines = [vars(record) for record in caplog.records if record.message == "model rolled back"]
    return [(line["slot"], line["alias"], line["from"], line["to"]) for line in lines]


# Slots


def test_old_unsigned_versions_are_refused_once_a_key_is_set_and_served_once_signed(store, caplog):
    for version in (1, 2):
        (store.folder(version) / SIGNATURE).unlink()
    slots = Slots(store, ALIASES)
    for _ in range(3):
        slots.refresh()

    assert [None, None] == versions(slots)
    assert {"signature": 2} == slots.failures
    assert "it is not signed: manifest.sig is missing" in slots.faults["v1"]
    assert ["signature", "signature"] == [line.reason for line in caplog.records if line.levelno == logging.ERROR]

    sign(store.folder(1))
    slots.refresh()

    assert [1, None] == versions(slots)
    assert ["v2"] == [*slots.faults]


def test_an_unsigned_version_leaves_the_old_one_in_service(store):
    slots = Slots(store, ALIASES)
    slots.refresh()
    sign(store.folder(3), ANOTHER_KEY)
    store.point({"champion": 3})

    slots.refresh()

    assert ([1, 2], {"signature": 1}) == (versions(slots), slots.failures)


def test_a_signed_version_with_a_hostile_model_leaves_the_old_one_in_service(store, tmp_path):
    slots = Slots(store, ALIASES)
    slots.refresh()
    store.add(4, sign(hostile.pack(tmp_path / "new", hostile.not_finite_elsewhere)))
    store.point({"champion": 4})

    slots.refresh()

    assert ([1, 2], {"selftest": 1}) == (versions(slots), slots.failures)


def test_a_signed_version_of_another_model_leaves_the_old_one_in_service(store, tmp_path):
    slots = Slots(store, ALIASES)
    slots.refresh()
    Store(store.root).add(4, sign(of_another_model(tmp_path / "new")))
    store.point({"champion": 4})

    slots.refresh()

    assert ([1, 2], {"signature": 1}) == (versions(slots), slots.failures)
    assert "a signed version of 'other'" in slots.faults["v1"]


def test_versions_that_get_another_key_stay_in_service_until_the_restart_with_it(store):
    slots = Slots(store, ALIASES)
    slots.refresh()
    for version in (1, 2):
        sign(store.folder(version), ANOTHER_KEY)
    slots.refresh()

    assert ([1, 2], {}) == (versions(slots), slots.failures)
    again = Slots(Store(store.root, signer_of(ANOTHER_KEY)), ALIASES)
    again.refresh()
    assert ([1, 2], {}) == (versions(again), again.failures)


def test_an_alias_that_moves_to_an_older_version_is_logged_as_a_rollback(store, caplog):
    slots = Slots(store, ALIASES)
    slots.refresh()
    for version in (3, 1):
        store.point({"champion": version})
        slots.refresh()

    assert [1, 2] == versions(slots)
    assert [("v1", "champion", 3, 1)] == rollbacks(caplog)


def test_an_old_model_under_a_new_number_is_logged_as_a_rollback(store, tmp_path, caplog):
    """Somebody without the key can only put a signed version back."""
    old = made.rewrite(made.copy(made.constant(4.0), tmp_path / "old"), created="2020-02-29T12:00:00+00:00")
    store.add(4, sign(old))
    slots = Slots(store, ALIASES)
    slots.refresh()
    store.point({"champion": 4})

    slots.refresh()

    assert [("v1", "champion", 1, 4)] == rollbacks(caplog)


def test_without_a_public_key_nothing_is_called_a_rollback(store, caplog):
    unchecked = Store(store.root)
    slots = Slots(unchecked, ALIASES)
    for version in (3, 1):
        unchecked.point({"champion": version})
        slots.refresh()

    assert [] == rollbacks(caplog)


# A registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry of signed versions, with version 1 as the champion."""
    with Registry() as server:
        server.folders = {n: sign(made.copy(made.constant(float(n)), tmp_path / str(n))) for n in (1, 2, 3)}
        server.aliases = {"champion": 1, "challenger": 2}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


def follow(registry: Registry, folder: Path, **options: object) -> Follower:
    """Return a follower with a public key, after its first poll."""
    (folder / "gleaner.toml").write_text(SETTINGS)
    settings = load_settings(folder / "gleaner.toml", {"tracking": {"uri": registry.url, "timeout_seconds": 30}})
    follower = Follower(settings, Store(folder / "store", signer_of()), **{"test": lambda _: None, **options})
    follower.poll()
    return follower


def test_signed_versions_are_fetched_with_their_signatures(registry, tmp_path):
    store = follow(registry, tmp_path).store

    assert {"champion": 1, "challenger": 2} == store.aliases()
    for version in (1, 2):
        assert (registry.folders[version] / SIGNATURE).read_bytes() == (store.folder(version) / SIGNATURE).read_bytes()


def test_a_start_with_the_versions_in_the_store_fetches_no_signature(registry, tmp_path):
    follow(registry, tmp_path)
    registry.asked.clear()

    follow(registry, tmp_path)

    assert [2, 0, 0] == [registry.fetched(name) for name in (MANIFEST, SIGNATURE, MODEL)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a byte of the manifest": (lambda folder: flip(folder / MANIFEST), "signature"),
    "a byte of the signature": (lambda folder: flip(folder / SIGNATURE), "signature"),
    "a byte of the model": (lambda folder: flip(folder / MODEL), "hash"),
    "no signature": (lambda folder: (folder / SIGNATURE).unlink(), "signature"),
    "another key": (lambda folder: sign(folder, ANOTHER_KEY), "signature"),
    "another version's": (lambda folder: shutil.copy(folder.parent / "2" / SIGNATURE, folder), "signature"),
    "a huge file": (lambda folder: (folder / SIGNATURE).write_bytes(bytes(8 << 20)), "signature"),
    "an empty file": (lambda folder: (folder / SIGNATURE).write_bytes(b""), "signature"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_is_not_fetched(registry, tmp_path, damage, caplog):
    follower = follow(registry, tmp_path)
    spoil, reason = DAMAGES[damage]
    spoil(registry.folders[3])
    registry.aliases["champion"] = 3

    follower.poll()

    assert ({"champion": 1, "challenger": 2}, [1, 2]) == (follower.store.aliases(), follower.store.versions())
    assert {reason: 1} == {name: count for name, count in follower.refusals.items() if count}
    [line] = [record for record in caplog.records if record.message == "version refused"]
    assert (3, reason) == (line.version, line.reason)
    if reason == "signature":
        assert 2 == registry.fetched(MODEL)  # those of versions 1 and 2
    metrics = CollectorRegistry()
    Following(follower, metrics)
    assert 1 == metrics.get_sample_value("registry_refusals_total", {"reason": reason})


def test_a_signed_version_of_another_model_is_not_fetched(registry, tmp_path):
    registry.folders[3] = sign(of_another_model(tmp_path / "other"))
    registry.aliases["champion"] = 3

    follower = follow(registry, tmp_path)

    assert {"model": 1} == {name: count for name, count in follower.refusals.items() if count}
    assert [2] == follower.store.versions()


def test_a_signed_version_with_a_hostile_model_is_not_fetched(registry, tmp_path):
    registry.folders[3] = sign(hostile.pack(tmp_path / "hostile", hostile.not_finite_elsewhere))
    registry.aliases["champion"] = 3

    follower = follow(registry, tmp_path, test=selftest)

    assert {"selftest": 1} == {name: count for name, count in follower.refusals.items() if count}
    assert [2] == follower.store.versions()


@pytest.mark.parametrize(("retry_seconds", "champion"), [(0.0, 3), (60.0, None)])
def test_an_unsigned_version_is_tried_again_after_a_while(registry, tmp_path, retry_seconds, champion):
    (registry.folders[3] / SIGNATURE).unlink()
    registry.aliases["champion"] = 3
    follower = follow(registry, tmp_path, retry_seconds=retry_seconds)
    assert "manifest.sig is missing" in follower.fault("champion")
    for _ in range(7):
        follower.poll()

    sign(registry.folders[3])
    time.sleep(0.01)
    follower.poll()

    assert champion == follower.store.aliases().get("champion")
    assert 1 == follower.refusals["signature"]


@pytest.mark.parametrize("where", ["store", "server"])
def test_a_version_of_an_old_store_may_be_signed_here_or_at_the_server(registry, tmp_path, where):
    signature = (registry.folders[1] / SIGNATURE).read_bytes()
    old = made.fill(tmp_path / "store", made.constant(1.0), made.constant(2.0))
    if where == "store":
        (registry.folders[1] / SIGNATURE).unlink()
        old.sign(1, KEY.sign((old.folder(1) / MANIFEST).read_bytes()))

    follower = follow(registry, tmp_path)

    assert not any(follower.refusals.values())
    assert signature == (old.folder(1) / SIGNATURE).read_bytes()
    assert 1 == follower.store.read(1).manifest.golden.answers[0]


def test_another_version_under_a_number_of_the_store_is_refused(registry, tmp_path):
    follow(registry, tmp_path)
    registry.folders[1] = registry.folders[3]

    follower = follow(registry, tmp_path)

    assert {"conflict": 1} == {name: count for name, count in follower.refusals.items() if count}
