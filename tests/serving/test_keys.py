"""The file of API keys, and the checks of a key."""

from __future__ import annotations

import hashlib
import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from gleaner.errors import BadKeys
from gleaner.serving.keys import Keys, Refusal, add_key, read_keys, read_last_use, revoke_keys

# As the first version wrote it; every later version reads it.
FIRST_FORMAT = """{
 "format": 1,
 "keys": [
  {
   "id": "c6b8fa51", "name": "drive", "scopes": ["predict"],
   "sha256": "b5a2c96250612366ea272ffac6d9744aaf4b45aacd96aa7cfcb931ee3b558259",
   "created": "2026-11-29T19:11:05Z", "expires": null, "revoked": null
  }
 ]
}"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def used(tmp_path):
    return tmp_path / "used.json"


def test_the_file_has_the_hash_of_a_key_and_is_private(path):
    key, text = add_key(path, "drive", ["predict"])

    assert text.removeprefix(f"gleaner_{key.id}_") not in path.read_text()
    assert text.startswith(f"gleaner_{key.id}_")
    assert len(text.removeprefix(f"gleaner_{key.id}_")) == 43  # 256 bits
    assert (key,) == read_keys(path)
    assert hashlib.sha256(text.encode()).hexdigest() == key.sha256
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_the_first_format_is_read(path):
    path.write_text(FIRST_FORMAT)

    [key] = read_keys(path)

    assert ("c6b8fa51", "drive", ("predict",), None) == (key.id, key.name, key.scopes, key.refusal(key.created))


def test_a_key_is_accepted_for_its_scopes_alone(path, used):
    _, text = add_key(path, "drive", ["predict", "actuals"])
    keys = Keys(path, used)

    for _ in range(2):  # verified, then remembered
        assert keys.check(text, "predict") is None
        assert keys.check(text, "actuals") is None
        assert keys.check(text, None) is None
        assert Refusal.SCOPE is keys.check(text, "admin")


def test_any_other_text_is_refused(path, used):
    key, text = add_key(path, "drive", ["predict"])
    keys = Keys(path, used)
    assert keys.check(text, "predict") is None

    assert Refusal.MISSING is keys.check(None, "predict")
    others = [
        "",
        text[:-1],
        text + "x",
        text.upper(),
        f"gleaner_{key.id}_{'a' * 43}",
        f"{text}, {text}",
        key.sha256,
        "é\udc80",
    ]
    assert [Refusal.UNKNOWN] * len(others) == [keys.check(other, "predict") for other in others]


def test_an_expired_key_is_refused_also_if_it_was_accepted_before(path, used):
    _, text = add_key(path, "drive", ["predict"], timedelta(seconds=2))
    keys = Keys(path, used)
    assert keys.check(text, "predict") is None

    time.sleep(2.1)

    assert Refusal.EXPIRED is keys.check(text, "predict")


def test_revoking_takes_effect_when_the_file_is_read_again(path, used):
    key, text = add_key(path, "drive", ["predict"])
    _, other = add_key(path, "drive", ["predict"])
    keys = Keys(path, used)
    assert keys.check(text, "predict") is None

    assert [key.id] == [k.id for k in revoke_keys(path, key.id)]
    keys.refresh()

    assert Refusal.REVOKED is keys.check(text, "predict")
    assert keys.check(other, "predict") is None


def test_a_name_has_two_live_keys_at_most(path):
    first, _ = add_key(path, "drive", ["predict"])
    add_key(path, "drive", ["predict"])

    with pytest.raises(BadKeys, match=f"revoke one with `gleaner keys revoke {first.id}`"):
        add_key(path, "drive", ["predict"])

    add_key(path, "other", ["predict"])
    revoke_keys(path, first.id)
    add_key(path, "drive", ["predict"])
    assert 4 == len(read_keys(path))


def test_a_name_revokes_all_its_keys_and_an_unknown_one_is_an_error(path):
    for _ in range(2):
        add_key(path, "drive", ["predict"])

    assert 2 == len(revoke_keys(path, "drive"))

    with pytest.raises(BadKeys, match="no key has the id or the name 'drive'; there is none"):
        revoke_keys(path, "drive")


def test_a_folder_that_cannot_be_written_to_is_reported_with_a_remedy(tmp_path):
    (tmp_path / "folder").write_text("a file")

    with pytest.raises(BadKeys, match=r"keys.json: cannot be written: .*; name another file in serving.keys_file, or"):
        add_key(tmp_path / "folder" / "keys.json", "robot", ["predict"])


def test_keys_added_at_once_are_all_in_the_file(path):
    with ThreadPoolExecutor(8) as pool:
        ids = {key.id for key, _ in pool.map(lambda i: add_key(path, f"n{i}", ["predict"]), range(24))}

    assert ids == {key.id for key in read_keys(path)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file; `gleaner keys add NAME` makes the first key"),
        ("{", "is no file of keys"),
        ("[" * 100_000, "is no file of keys"),
        ('{"format": 1, "keys": [{"id": "x"}]}', "is no file of keys"),
        ('{"format": 1, "keys": [], "more": 1}', "is no file of keys"),
        ('{"format": 2, "keys": []}', "wanted format 1, got 2"),
        (" " * 2_000_000, "at most 1,048,576 bytes"),
        ('{"format": 1, "keys": []}', "no key in it is live"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(path, used, content, reason):
    if content is not None:
        path.write_text(content)

    with pytest.raises(BadKeys) as caught:
        Keys(path, used)

    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_damaged_or_deleted_file_changes_nothing_and_the_log_says_so(path, used, caplog):
    _, text = add_key(path, "drive", ["predict"])
    keys = Keys(path, used)

    path.write_text("{")
    keys.refresh()
    keys.refresh()
    assert keys.check(text, "predict") is None
    path.unlink()
    keys.refresh()
    assert keys.check(text, "predict") is None

    assert ["keys not read"] * 2 == [record.message for record in caplog.records]


def test_the_last_use_is_kept_and_a_refused_key_has_none(path, used):
    key, text = add_key(path, "drive", ["predict"])
    other, unused = add_key(path, "other", ["predict"])
    used.write_text(json.dumps({"0ld": "2026-01-01T00:00:00+00:00"}))
    keys = Keys(path, used)
    keys.check(text, "predict")
    keys.check(unused, "admin")

    keys.note_uses()

    times = read_last_use(used)
    assert {"0ld", key.id} == set(times)
    assert times[key.id].startswith("20")
    assert 0o600 == stat.S_IMODE(used.stat().st_mode)

    keys.check(unused, "predict")
    keys.note_uses()  # less than a minute later
    assert other.id not in read_last_use(used)
    keys.note_uses(at_once=True)
    assert other.id in read_last_use(used)


def test_a_damaged_file_of_last_uses_is_replaced(path, used):
    key, text = add_key(path, "drive", ["predict"])
    used.write_text("[1")
    keys = Keys(path, used)
    keys.check(text, "predict")

    keys.note_uses()

    assert [key.id] == list(read_last_use(used))
