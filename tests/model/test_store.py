"""Versions and aliases on disk."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from gleaner.errors import BadArtifact, BadStore
from gleaner.model.store import Store


@pytest.fixture
def store(project) -> Store:
    return Store(project / ".gleaner" / "store")


def test_adding_the_same_artifact_again_changes_nothing_and_another_is_refused(store):
    store.add(1, store.folder(1))

    with pytest.raises(BadStore, match="holds another model than the registry's version 1"):
        store.add(1, store.folder(2))
    assert [1, 2] == store.versions()


@pytest.mark.parametrize("alias", ["../x", "", "a/b", "a\0", "x" * 65, "-x"])
def test_a_hostile_alias_is_refused(store, alias):
    with pytest.raises(BadStore):
        store.point({alias: 1})


def test_an_unknown_version_is_refused_and_named(store):
    with pytest.raises(BadStore, match=r"no version 9 .* there is 1, 2"):
        store.point({"champion": 9})


def test_writers_in_several_processes_lose_none_of_each_others_aliases(store):
    code = "import sys; from pathlib import Path; from gleaner.model.store import Store; s = Store(Path(sys.argv[1]))\n"
    code += "for i in range(20): s.point({f'{sys.argv[2]}{i}': 1})"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(store.root), name]) for name in "abc"]

    assert [0, 0, 0] == [writer.wait(timeout=60) for writer in writers]
    assert 62 == len(store.aliases())


def test_an_empty_store_has_no_versions_and_no_aliases(tmp_path):
    assert [] == Store(tmp_path / "none").versions()
    assert {} == Store(tmp_path / "none").aliases()


def test_an_alias_can_be_removed(store):
    store.point({"challenger": None})

    assert {"champion": 1} == store.aliases()


@pytest.mark.parametrize("content", ["{", "[]", '{"champion": "1"}', '{"champion": true}', "\xff"])
def test_aliases_that_something_else_wrote_are_refused(store, content):
    (store.root / "aliases.json").write_bytes(content.encode("latin-1"))

    with pytest.raises(BadStore, match=r"aliases\.json"):
        store.aliases()


def test_a_damaged_source_is_not_added(store):
    model = store.folder(2) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])

    with pytest.raises(BadArtifact):
        store.add(3, store.folder(2))
    assert [1, 2] == store.versions()


def test_a_passed_selftest_is_remembered_for_one_artifact_and_one_engine(store):
    store.remember_passed(1, "digest", "engine 1")

    assert store.has_passed(1, "digest", "engine 1")
    assert not store.has_passed(1, "another", "engine 1")
    assert not store.has_passed(1, "digest", "engine 2")
    assert not store.has_passed(2, "digest", "engine 1")


def test_a_writer_that_is_killed_leaves_no_half_version(store):
    code = "import sys; from pathlib import Path; from gleaner.model.store import Store; s = Store(Path(sys.argv[1]))\n"
    code += "print('ready', flush=True)\nfor i in range(10, 1000): s.add(i, s.folder(1))"
    for seconds in (0.002, 0.01, 0.03, 0.1):
        with subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            writer.stdout.readline()
            time.sleep(seconds)
            writer.send_signal(signal.SIGKILL)

    assert {store.read(1).digest} == {store.read(version).digest for version in store.versions() if version != 2}
