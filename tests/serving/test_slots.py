"""Slots follow the store, and no fault there ends a version."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import made
import pytest

from gleaner.errors import BadArtifact
from gleaner.model.manifest import MODEL
from gleaner.model.store import Store
from gleaner.serving.slots import Slots

ALIASES = {"v1": "champion", "v2": "challenger"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store of versions 1, 2 and 3.

    Each version predicts its own number.
    """
    return made.fill(tmp_path / "store", *(made.constant(float(version)) for version in (1, 2, 3)))


@pytest.fixture
def slots(store: Store) -> Slots:
    slots = Slots(store, ALIASES)
    slots.refresh()
    return slots


def predictions(slots: Slots) -> dict[str, float | None]:
    return {slot: loaded and loaded.predictor.predict_row(made.ROW) for slot, loaded in slots.current.items()}


def damage(store: Store, version: int) -> None:
    with (store.folder(version) / MODEL).open("r+b") as file:
        file.write(b"\0\0\0\0")


def test_each_slot_has_the_version_of_its_alias(slots):
    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)
    assert ({}, {}) == (slots.faults, slots.failures)


def test_a_moved_alias_is_followed(slots, store):
    store.point({"champion": 3, "challenger": 1})

    slots.refresh()

    assert {"v1": 3.0, "v2": 1.0} == predictions(slots)


def test_a_version_in_two_slots_is_loaded_once(slots, store):
    store.point({"challenger": 1})

    slots.refresh()

    assert slots.current["v1"] is slots.current["v2"]


def test_nothing_is_loaded_again_without_a_move(slots):
    before = dict(slots.current)

    slots.refresh()

    assert all(before[slot] is slots.current[slot] for slot in ALIASES)


def test_an_empty_store_leaves_the_slots_empty_and_names_the_missing_alias(tmp_path):
    slots = Slots(Store(tmp_path / "nowhere"), ALIASES)

    slots.refresh()

    assert {"v1": None, "v2": None} == predictions(slots)
    assert "no version has the alias 'champion'" == slots.faults["v1"]
    assert {} == slots.failures


# Refusals


def test_a_damaged_version_is_refused_once_and_the_old_one_stays(slots, store, caplog):
    damage(store, 3)
    store.point({"champion": 3})

    for _ in range(3):
        slots.refresh()

    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)
    assert {"hash": 1} == slots.failures
    assert "sha256" in slots.faults["v1"]
    assert "v2" not in slots.faults
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ("model not loaded", "v1", "hash") == (line.message, line.slot, line.reason)


def test_a_refused_version_is_tried_again_when_the_alias_comes_back_to_it(slots, store):
    whole = (store.folder(3) / MODEL).read_bytes()
    damage(store, 3)
    store.point({"champion": 3})
    slots.refresh()
    (store.folder(3) / MODEL).write_bytes(whole)

    store.point({"champion": 1})
    slots.refresh()
    assert {} == slots.faults

    store.point({"champion": 3})
    slots.refresh()
    assert {"v1": 3.0, "v2": 2.0} == predictions(slots)
    assert {"hash": 1} == slots.failures


@pytest.mark.parametrize(
    ("model", "reason"),
    [(made.killing, "selftest"), (made.of_two_columns, "load"), (lambda: b"no model", "operator")],
)
def test_a_version_with_correct_hashes_is_still_tested(slots, store, tmp_path, model, reason):
    store.add(4, made.rewrite(made.copy(made.constant(4.0), tmp_path / "four"), model()))
    store.point({"champion": 4})

    slots.refresh()

    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)
    assert {reason: 1} == slots.failures


def test_a_hanging_self_test_is_a_failed_one(store):
    def hang(folder: Path) -> None:
        raise BadArtifact(folder, "selftest", "its self-test took longer than 30 s")

    store.add(4, made.constant(4.0).folder)
    slots = Slots(store, ALIASES, test=hang)
    slots.refresh()
    store.point({"champion": 4})

    slots.refresh()

    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)
    assert {"selftest": 1} == slots.failures


@pytest.mark.parametrize(("transient", "tries"), [(True, 3), (False, 1)])
def test_an_unfinished_self_test_is_repeated_and_a_failed_one_is_not(store, transient, tries):
    tried: list[Path] = []

    def test(folder: Path) -> None:
        tried.append(folder)
        if not transient or len(tried) < 3:
            raise BadArtifact(folder, "selftest", "its self-test took longer than 30 s", transient=transient)

    store.add(4, made.constant(4.0).folder)
    slots = Slots(store, ALIASES, test=test, retry_seconds=0.05)
    store.point({"champion": 4})
    for _ in range(6_000 if transient else 20):
        slots.refresh()
        if transient and not slots.faults:
            break
        time.sleep(0.01)

    assert tries == len(tried)
    assert {"v1": 4.0 if transient else None, "v2": 2.0} == predictions(slots)
    assert {"selftest": 1} == slots.failures  # counted once


def test_a_replaced_store_is_loaded_although_the_numbers_are_the_same(slots, store, tmp_path):
    before = slots.current["v2"]
    store.root.rename(tmp_path / "away")
    slots.refresh()
    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)

    made.fill(store.root, made.constant(11.0), made.constant(12.0))
    slots.refresh()

    assert {"v1": 11.0, "v2": 12.0} == predictions(slots)
    assert {"v1": 1, "v2": 2} == {slot: loaded.version for slot, loaded in slots.current.items()}
    assert before is not slots.current["v2"]
    assert {} == slots.faults


def test_the_same_version_under_two_aliases_is_loaded_once(slots, store):
    store.point({"champion": 3, "challenger": 3})
    slots.refresh()

    assert slots.current["v1"] is slots.current["v2"]


def test_an_alias_of_a_version_that_is_gone_changes_nothing(slots, store):
    (store.root / "aliases.json").write_text('{"champion": 7, "challenger": -1}')

    slots.refresh()

    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)
    assert {"missing": 2} == slots.failures


def test_a_removed_alias_changes_nothing(slots, store):
    store.point({"champion": None})

    slots.refresh()

    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)
    assert ({}, {}) == (slots.faults, slots.failures)


def test_removing_the_alias_of_a_refused_version_removes_the_fault(slots, store):
    damage(store, 3)
    store.point({"champion": 3})
    slots.refresh()
    assert ["v1"] == list(slots.faults)

    store.point({"champion": None})
    slots.refresh()

    assert {} == slots.faults


@pytest.mark.parametrize("content", ["", "{", '{"champion": "1"}', "[" * 100_000], ids=lambda content: content[:9])
def test_a_corrupt_file_of_aliases_changes_nothing_until_it_is_right_again(slots, store, content):
    (store.root / "aliases.json").write_text(content)
    for _ in range(3):
        slots.refresh()

    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)
    assert {"store": 1} == slots.failures
    assert {"v1", "v2"} == set(slots.faults)

    (store.root / "aliases.json").write_text('{"champion": 3, "challenger": 2}')
    slots.refresh()

    assert {"v1": 3.0, "v2": 2.0} == predictions(slots)
    assert {} == slots.faults


# Self-tests


def test_a_passed_self_test_is_not_run_again_at_the_next_start(tmp_path):
    store = made.fill(tmp_path / "store", made.constant(1.0), made.constant(2.0), tested=False)
    ran: list[Path] = []

    for _ in range(2):
        Slots(store, ALIASES, test=ran.append).refresh()

    assert [store.folder(1), store.folder(2)] == ran


def test_a_store_that_cannot_remember_still_serves(tmp_path):
    store = made.fill(tmp_path / "store", made.constant(1.0), made.constant(2.0), tested=False)
    (store.root / "passed").write_text("a file where a folder should be, as on a disk that is full")
    ran: list[Path] = []
    slots = Slots(store, ALIASES, test=ran.append)

    slots.refresh()

    assert {"v1": 1.0, "v2": 2.0} == predictions(slots)
    assert 2 == len(ran)


# While it serves


def test_a_following_thread_takes_up_a_move_and_ends_at_its_event(slots, store):
    stop = threading.Event()
    follower = threading.Thread(target=slots.follow, args=(0.01, stop))
    follower.start()

    store.point({"champion": 3})
    for _ in range(6_000):
        if slots.current["v1"] and slots.current["v1"].version == 3:
            break
        stop.wait(0.01)
    stop.set()
    follower.join(timeout=60)

    assert {"v1": 3.0, "v2": 2.0} == predictions(slots)
    assert not follower.is_alive()


def test_a_following_thread_survives_an_unexpected_error(store, caplog):
    tried = threading.Event()

    def fail(_: Path) -> None:
        if "first" not in seen:
            seen.append("first")
            raise RuntimeError("unexpected")
        tried.set()

    seen: list[str] = []
    store.add(4, made.constant(4.0).folder)
    store.point({"champion": 4})
    slots, stop = Slots(store, ALIASES, test=fail), threading.Event()
    follower = threading.Thread(target=slots.follow, args=(0.01, stop))
    follower.start()
    found = tried.wait(timeout=60)
    stop.set()
    follower.join(timeout=60)

    assert found
    assert "store not readable" in caplog.messages


def test_swaps_under_eight_threads_lose_no_request_and_mix_no_versions(slots, store, eager_threads):
    stop, wrong, asked = threading.Event(), [], [0] * 8

    def ask(thread: int) -> None:
        while not stop.is_set():
            try:
                loaded = slots.current["v1"]
                number = loaded.predictor.predict_row(made.ROW)
                if number != loaded.version:
                    wrong.append((loaded.version, number))
            except Exception as e:
                wrong.append(e)
            asked[thread] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for i in range(30):
        store.point({"champion": 1 + i % 3})
        slots.refresh()
    stop.set()
    for thread in threads:
        thread.join()

    assert [] == wrong
    assert min(asked) > 0
    assert {"v1": 3.0, "v2": 2.0} == predictions(slots)
