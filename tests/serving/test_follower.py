"""Faults of an MLflow server, injected by a small real one.

The store stays as it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import made
import pytest
from certificates import write_certificate
from projects import SETTINGS
from prometheus_client import CollectorRegistry
from registries import HEAD, PAGE, Handler, Registry, only, registering, reset, responds, says

from gleaner.errors import BadArtifact
from gleaner.model.manifest import MANIFEST, MODEL
from gleaner.model.predictor import ENGINE
from gleaner.model.store import Store
from gleaner.redaction import remember
from gleaner.serving.follower import REFUSALS, Follower
from gleaner.serving.metrics import Following
from gleaner.serving.registry import RESULTS, MlflowServer, Trouble
from gleaner.serving.slots import Slots
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry with version 1, the champion, and version 2, the challenger."""
    folders = {n: made.constant(float(n)).folder for n in (1, 2, 3)}
    with registering(folders, {"champion": 1, "challenger": 2}) as server:
        yield server


def settings_for(folder: Path, uri: str, **tracking: object) -> Settings:
    (folder / "gleaner.toml").write_text(SETTINGS)
    return load_settings(folder / "gleaner.toml", {"tracking": {"uri": uri, "timeout_seconds": 30, **tracking}})


def follower_of(registry: Registry, folder: Path, store: Store | None = None, **tracking: object) -> Follower:
    store = store or Store(folder / "store")
    return Follower(settings_for(folder, registry.url, **tracking), store, test=lambda _: None)


@pytest.fixture
def follower(registry: Registry, tmp_path: Path) -> Follower:
    """Make a follower after its first poll; its timeout is 1.5 s."""
    follower = follower_of(registry, tmp_path, timeout_seconds=1.5, fetch_seconds=1.5)
    follower.poll()
    return follower


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Without a fault


def test_an_empty_store_is_filled_and_pointed(follower):
    assert {"champion": 1, "challenger": 2} == follower.store.aliases()
    assert [1, 2] == follower.store.versions()
    assert follower.store.has_passed(1, follower.store.read(1).digest, ENGINE)
    assert ("success", 1) == (follower.result, follower.polls["success"])
    assert time.time() - follower.last_success < 60
    assert [] == list(follower.store.root.glob(".scratch-*"))


def test_a_version_that_the_store_holds_already_is_compared_and_not_fetched(registry, tmp_path):
    store = made.fill(tmp_path / "store", made.constant(1.0), made.constant(2.0))
    store.point({"champion": 2})

    follower_of(registry, tmp_path, store).poll()

    assert {"champion": 1, "challenger": 2} == store.aliases()
    assert (2, 0) == (registry.fetched(MANIFEST), registry.fetched(MODEL))


def test_a_poll_without_a_move_makes_two_requests(registry, follower):
    registry.asked.clear()

    follower.poll()

    assert [True, True] == ["registered-models/alias" in path for path in registry.asked]


def test_a_version_in_both_aliases_is_fetched_once(registry, follower):
    registry.asked.clear()
    registry.aliases = {"champion": 3, "challenger": 3}

    follower.poll()

    assert {"champion": 3, "challenger": 3} == follower.store.aliases()
    assert 1 == registry.fetched(MODEL)


def test_a_missing_alias_changes_nothing(registry, follower, caplog):
    registry.aliases = {"challenger": 2}

    follower.poll()

    assert {"champion": 1, "challenger": 2} == follower.store.aliases()
    assert ("success", []) == (follower.result, lines(caplog))


def test_an_alias_moved_on_this_machine_meanwhile_is_not_moved_back(registry, follower):
    def promote(handler: Handler) -> bool:
        if MANIFEST in handler.path:
            follower.store.point({"champion": 2})
        return False

    registry.aliases["champion"], registry.fault = 3, promote
    follower.poll()

    assert 2 == follower.store.aliases()["champion"]

    registry.aliases["champion"], registry.fault = 1, lambda handler: False
    follower.poll()

    assert 1 == follower.store.aliases()["champion"]


def test_every_result_and_reason_is_counted_from_0(follower):
    metrics = CollectorRegistry()
    Following(follower, metrics)

    assert 1 == metrics.get_sample_value("registry_polls_total", {"result": "success"})
    assert {0} == {metrics.get_sample_value("registry_polls_total", {"result": r}) for r in RESULTS[1:]}
    assert {0} == {metrics.get_sample_value("registry_refusals_total", {"reason": r}) for r in REFUSALS}
    assert follower.last_success == metrics.get_sample_value("registry_last_success_timestamp_seconds")


# A broken server


FAULTS = {
    "resets": (reset, "unreachable"),
    "hangs": (says(b"", pause=60), "unreachable"),
    "drips its head": (says(HEAD, *[b"X"] * 10_000, pause=0.05), "unreachable"),
    "drips its body": (says(HEAD + b"Content-Length: 10000\r\n\r\n", *[b" "] * 10_000, pause=0.05), "unreachable"),
    "goes on with 100": (says(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 10_000, pause=0.05), "unreachable"),
    "hangs up": (says(b""), "unreachable"),
    "hangs up half way": (says(HEAD + b"Content-Length: 10000\r\n\r\n{"), "unreachable"),
    "hangs up between chunks": (says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"), "unreachable"),
    "says another greeting": (says(b"220 mail.example.com ESMTP\r\n", pause=0.1), "unreachable"),
    "does not speak HTTP": (says(b"\x16\x03\x01\r\n\r\n" * 100), "invalid"),
    "sends a head without an end": (says(HEAD, b"X: " + b"x" * 200_000), "invalid"),
    "sends a page": (responds(200, PAGE), "invalid"),
    "sends nothing": (responds(200, b""), "invalid"),
    "sends no object": (responds(200, b"[1]"), "invalid"),
    "sends other types": (responds(200, b'{"model_version": {"name": "made", "version": 1}}'), "invalid"),
    "sends no number": (responds(200, b'{"model_version": {"name": "made", "version": "../1"}}'), "invalid"),
    "sends a number without end": (
        responds(200, b'{"model_version": {"name": "made", "version": "' + b"9" * 500_000 + b'"}}'),
        "invalid",
    ),
    "sends another model": (
        only("/alias?", responds(200, b'{"model_version": {"name": "other", "version": "3"}}')),
        "invalid",
    ),
    "sends deep nesting": (responds(200, b'{"a":' * 100_000), "invalid"),
    "sends broken UTF-8": (responds(200, b'{"model_version": {"name": "\xff", "version": "1"}}'), "invalid"),
    "sends 2 MB": (responds(200, b" " * 2_000_000), "invalid"),
    "announces 10 GB": (says(HEAD + b"Content-Length: 10000000000\r\n\r\n", *[b" " * 65_536] * 1_000), "invalid"),
    "sends chunks without end": (
        says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"10000\r\n" + b" " * 65_536 + b"\r\n"] * 1_000),
        "invalid",
    ),
    "fails": (responds(500, b'{"error_code": "INTERNAL_ERROR", "message": "database is locked"}'), "error"),
    "is behind a proxy that cannot reach it": (responds(502, PAGE), "error"),
    "wants a password": (responds(401, b"You are not authenticated."), "error"),
    "does not know the host": (responds(403, b"Invalid Host header - possible DNS rebinding attack detected"), "error"),
    "is no MLflow": (responds(404, PAGE), "error"),
    "is no MLflow, in JSON": (responds(404, b'{"detail": "Not Found"}'), "error"),
    "has no content": (says(b"HTTP/1.1 204 No Content\r\n\r\n"), "error"),
}


@pytest.mark.parametrize(("fault", "result"), FAULTS.values(), ids=FAULTS)
def test_a_broken_server_changes_only_a_metric_and_a_log_line(registry, follower, caplog, fault, result):
    slots = Slots(follower.store, {"v1": "champion", "v2": "challenger"}, test=lambda _: None)
    slots.refresh()
    before, loaded = everything(follower.store.root), dict(slots.current)
    registry.aliases["champion"], registry.fault = 3, fault
    caplog.set_level(logging.INFO)
    caplog.clear()

    began = time.monotonic()
    for _ in range(3):
        follower.poll()
    seconds = time.monotonic() - began
    slots.refresh()

    assert (result, 3) == (follower.result, follower.polls[result])
    assert ["registry not followed"] == caplog.messages
    assert before == everything(follower.store.root)
    assert loaded == slots.current
    assert {} == slots.faults
    assert follower.describe()["detail"].startswith(f"MLflow at {registry.url}: ")
    assert seconds < 60  # the fault itself lasts for minutes

    registry.fault = lambda handler: False
    follower.poll()

    assert ["registry not followed", "alias followed", "registry followed"] == caplog.messages
    assert 3 == follower.store.aliases()["champion"]


@pytest.mark.parametrize("name", ["sends 2 MB", "announces 10 GB", "sends chunks without end"])
def test_at_most_a_megabyte_of_a_response_is_read(registry, follower, name):
    registry.fault = FAULTS[name][0]

    follower.poll()

    assert follower.detail.endswith("sent more than 1,048,576 bytes")


def test_a_file_that_changed_on_its_way_is_fetched_again(registry, tmp_path):
    store = Store(tmp_path / "store")
    follower = Follower(settings_for(tmp_path, registry.url), store, test=lambda _: None, retry_seconds=0.05)
    registry.fault = only(MODEL, lambda handler: responds(200, b"x" * len(handler.content()[1]))(handler))
    follower.poll()
    assert ({}, 2) == (store.aliases(), registry.fetched(MODEL))
    assert "does not match the sha256" in follower.fault("champion")

    registry.fault = lambda handler: False
    time.sleep(0.1)
    follower.poll()

    assert {"champion": 1, "challenger": 2} == store.aliases()


def in_pieces(content: bytes, *, stops: bool) -> Callable[[Handler], bool]:
    """Send a file in ten pieces over a second.

    stops: send only the first half, and then nothing.
    """
    step = -(-len(content) // 10)
    pieces = [content[i : i + step] for i in range(0, len(content), step)]
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content)
    if stops:
        return only(MODEL, says(head + b"".join(pieces[:5]), pause=60))
    return only(MODEL, says(head, *pieces, pause=0.1))


@pytest.mark.parametrize("stops", [True, False])
def test_a_silence_in_a_file_ends_the_fetch_and_a_slow_file_does_not(registry, tmp_path, stops):
    follower = follower_of(registry, tmp_path, timeout_seconds=0.5, fetch_seconds=60)
    follower.poll()
    model = (registry.folders[3] / MODEL).read_bytes()
    registry.aliases["champion"], registry.fault = 3, in_pieces(model, stops=stops)

    began = time.monotonic()
    follower.poll()

    assert time.monotonic() - began < 30  # without the limit of a silence, a minute
    assert ("unreachable" if stops else "success") == follower.result
    assert follower.detail.endswith("sent nothing for 0.5 s" if stops else "")
    assert (1 if stops else 3) == follower.store.aliases()["champion"]


def test_a_slow_server_is_followed(registry, follower):
    registry.aliases["champion"], registry.fault = 3, lambda handler: registry.ended.wait(0.2)

    follower.poll()

    assert ("success", 3) == (follower.result, follower.store.aliases()["champion"])


def test_a_stopped_server_changes_nothing(registry, follower, caplog):
    registry.ended.set()
    registry.shutdown()
    registry.server_close()

    for _ in range(3):
        follower.poll()

    assert ("unreachable", ["registry not followed"]) == (follower.result, lines(caplog))
    assert {"champion": 1, "challenger": 2} == follower.store.aliases()


def test_an_unknown_host_name_is_an_unreachable_server(tmp_path):
    for uri in ("http://registry.invalid:5000", f"http://{'a' * 70}.example:5000"):
        follower = Follower(settings_for(tmp_path, uri), Store(tmp_path / "store"))
        follower.poll()

        assert "unreachable" == follower.result


def test_a_redirect_is_not_followed(registry, follower):
    with Registry() as elsewhere:
        thread = threading.Thread(target=elsewhere.serve_forever, args=(0.01,))
        thread.start()
        registry.fault = responds(302, b"", Location=f"{elsewhere.url}/api")
        follower.poll()
        elsewhere.shutdown()
        thread.join()

    assert [] == elsewhere.asked
    assert "error" == follower.result
    assert "a redirect; set tracking.uri to the address that it leads to" in follower.detail


def test_each_new_result_is_one_log_line(registry, follower, caplog):
    caplog.set_level(logging.INFO)
    for fault in (
        reset,
        reset,
        responds(500, b""),
        responds(500, b""),
        responds(502, b""),
        lambda handler: False,
        reset,
    ):
        registry.fault = fault
        follower.poll()

    assert ["unreachable", "error", "success", "unreachable"] == [
        r.result for r in caplog.records if "result" in vars(r)
    ]


def test_a_refused_request_names_its_fix(registry, follower):
    registry.fault = responds(403, b"Invalid Host header - possible DNS rebinding attack detected")
    follower.poll()

    assert f"start the server with --allowed-hosts {registry.url[7:]}" in follower.detail

    registry.fault = responds(401, b"")
    follower.poll()

    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in follower.detail


def test_a_bug_of_the_follower_is_logged_once_with_its_traceback(registry, follower, caplog, monkeypatch):
    monkeypatch.setattr(follower.server, "version", lambda alias: 1 / 0)

    follower.poll()
    follower.poll()

    assert ("internal", 2) == (follower.result, follower.polls["internal"])
    [line] = caplog.records
    assert line.exc_info


def test_a_bug_whose_words_hold_a_secret_is_described_without_it(registry, follower, monkeypatch):
    def fail(alias: str) -> None:
        raise ValueError("s3cret-of-a-bug")

    remember("s3cret-of-a-bug")
    monkeypatch.setattr(follower.server, "version", fail)

    follower.poll()

    assert "ValueError('***')" == follower.describe()["detail"]


def test_an_unwritable_store_is_logged_once(registry, tmp_path, caplog):
    (tmp_path / "store").write_text("a file where a folder should be")
    follower = follower_of(registry, tmp_path)

    follower.poll()
    follower.poll()

    assert ("store", 2) == (follower.result, follower.polls["store"])
    assert ["registry not followed"] == lines(caplog)


# Interrupted fetches


def end_pauses(follower: Follower, at: float = 0.0) -> None:
    """Move the end of failed fetches' pauses.

    So no test depends on its own speed.
    """
    follower._failed = {version: dataclasses.replace(failed, until=at) for version, failed in follower._failed.items()}


@pytest.mark.parametrize("name", ["resets", "drips its body", "hangs up half way", "fails", "hangs"])
@pytest.mark.parametrize("file", [MANIFEST, MODEL])
def test_an_interrupted_fetch_is_repeated_after_a_pause(registry, follower, caplog, file, name):
    fault, result = FAULTS[name]
    before = everything(follower.store.root)
    registry.asked.clear()
    registry.aliases, registry.fault = {"champion": 3, "challenger": 1}, only(f"/3/artifacts/gleaner/{file}", fault)

    follower.poll()
    [failed] = follower._failed.values()
    assert 1.0 == failed.pause
    assert failed.until <= time.monotonic() + failed.pause
    end_pauses(follower, at=math.inf)
    for _ in range(2):
        follower.poll()

    assert (result, 3) == (follower.result, follower.polls[result])
    assert 0 == sum(follower.refusals.values())
    assert ["registry not followed"] == lines(caplog)
    assert before == everything(follower.store.root)
    assert 1 == registry.fetched(file)
    # The other alias does not wait for it.
    assert {"champion": 1, "challenger": 1} == follower.store.aliases()

    registry.fault = lambda handler: False
    end_pauses(follower)
    follower.poll()

    assert {"champion": 3, "challenger": 1} == follower.store.aliases()
    assert "success" == follower.result


# Refused versions


def changed(folder: Path, **members: object) -> Path:
    """Make an artifact like version 3, with other members in its manifest."""
    made.copy(made.constant(3.0), folder)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(manifest | members))
    return folder


def other_columns(folder: Path) -> Path:
    features = json.loads((made.constant(3.0).folder / MANIFEST).read_bytes())["features"]
    return changed(folder, features=[features[1], features[0], features[2]])


def other_content(folder: Path) -> Path:
    made.copy(made.constant(3.0), folder)
    model = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    return folder


def other_size(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    made.copy(made.constant(3.0), folder)
    (folder / MODEL).write_bytes(change((folder / MODEL).read_bytes()))
    return folder


def declaring(folder: Path, *names: str, size: int = 3) -> Path:
    files = json.loads((made.constant(3.0).folder / MANIFEST).read_bytes())["files"]
    return changed(folder, files={**files, **{name: {"sha256": "0" * 64, "size": size} for name in names}})


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def page(folder: Path) -> Path:
    folder.mkdir()
    (folder / MANIFEST).write_bytes(PAGE)
    return folder


def without_model(folder: Path) -> Path:
    made.copy(made.constant(3.0), folder)
    (folder / MODEL).unlink()
    return folder


REFUSED = {
    "no manifest": (empty, "missing", "no gleaner/manifest.json"),
    "a page for a manifest": (page, "manifest", "is not a valid manifest"),
    "a manifest of another kind": (lambda f: changed(f, format="1"), "manifest", "is not a valid manifest"),
    "a manifest of a later format": (lambda f: changed(f, format=99), "manifest", "its format is 99"),
    "a manifest of 17 MB": (lambda f: changed(f, created=" " * 17_000_000), "size", "more than 16,777,216 bytes"),
    "another model's version": (lambda f: changed(f, model="other"), "model", "is of 'other', not of 'made'"),
    "another order of columns": (other_columns, "columns", "it has doors_in_route (float), time_spent (float)"),
    "another target": (lambda f: changed(f, target={"name": "cans"}), "columns", "target cans"),
    "a file above": (lambda f: declaring(f, "../../aliases.json"), "manifest", "leads out of the folder"),
    "a file elsewhere": (lambda f: declaring(f, "/tmp/x"), "manifest", "leads out of the folder"),
    "a file with a NUL": (lambda f: declaring(f, "a\0b"), "manifest", "leads out of the folder"),
    "a long name": (lambda f: declaring(f, "a" * 300), "manifest", "leads out of the folder"),
    "a manifest in itself": (lambda f: declaring(f, MANIFEST), "manifest", "leads out of the folder"),
    "many files": (lambda f: declaring(f, *map(str, range(1000))), "files", "declares 1001 files"),
    "only another file": (lambda f: changed(f, files={"a": {"sha256": "", "size": 1}}), "files", "wanted model.onnx"),
    "2 GB": (lambda f: declaring(f, "more", size=2 << 30), "size", "declares 2,147,4"),
    "a size below nothing": (lambda f: declaring(f, "more", size=-1), "size", "at most"),
    "no model": (without_model, "missing", "no gleaner/model.onnx"),
    "a model cut short": (lambda f: other_size(f, lambda model: model[:-1]), "size", "model.onnx has"),
    "a model too long": (lambda f: other_size(f, lambda model: model * 2), "size", "model.onnx has more than"),
    "a model of other bytes": (other_content, "hash", "sha256"),
}


@pytest.mark.parametrize(("make", "reason", "detail"), REFUSED.values(), ids=REFUSED)
def test_a_foreign_or_damaged_version_is_refused_once(registry, follower, caplog, tmp_path, make, reason, detail):
    before = everything(follower.store.root)
    registry.folders[4] = make(tmp_path / "four")
    registry.aliases["champion"] = 4
    registry.asked.clear()

    Following(follower, metrics := CollectorRegistry())
    refused = []
    for _ in range(3):
        follower.poll()
        refused.append([metrics.get_sample_value("registry_alias_refused", {"alias": a}) for a in follower.aliases])

    assert [[1, 0]] * 3 == refused
    assert {"champion": 1, "challenger": 2} == follower.store.aliases()
    assert before == everything(follower.store.root)
    assert {reason: 1} == {name: count for name, count in follower.refusals.items() if count}
    [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ("version refused", 4, reason) == (line.message, line.version, line.reason)
    assert follower.fault("champion").startswith("version 4 in the registry: ")
    assert detail in follower.fault("champion")
    assert follower.fault("challenger") is None
    assert "success" == follower.result
    assert 1 == registry.fetched(MANIFEST)

    registry.aliases["champion"] = 3
    follower.poll()

    assert 3 == follower.store.aliases()["champion"]
    assert follower.fault("champion") is None


URIS = [
    "",
    "mlflow-artifacts:",
    "mlflow-artifacts:/",
    "mlflow-artifacts:/../../etc",
    "mlflow-artifacts:/1/./models",
    "mlflow-artifacts:/1//models",
    "mlflow-artifacts:/1/%2e%2e/models",
    "mlflow-artifacts:/1\\..\\models",
    "mlflow-artifacts:/1/models?path=x",
    "mlflow-artifacts:/1/models#x",
    "mlflow-artifacts:/1/models\nX: y",
    "mlflow-artifacts:/" + "a/" * 2_000,
    "mlflow-artifacts://elsewhere:5000/1/models",
    "file:///etc",
    "/etc",
    "s3://joe:s3cret@bucket/1/models",
    "http://127.0.0.1:1/api/2.0/mlflow-artifacts/artifacts/1/models",
]


@pytest.mark.parametrize("uri", URIS, ids=lambda uri: repr(uri[:40]))
def test_only_the_servers_own_files_are_fetched(registry, follower, caplog, uri):
    registry.uris[3], registry.aliases["champion"] = uri, 3
    registry.asked.clear()

    follower.poll()
    follower.poll()

    assert 0 == registry.fetched(MANIFEST)
    assert 1 == follower.refusals["location"]
    assert 1 == follower.store.aliases()["champion"]
    assert "s3cret" not in caplog.text + follower.fault("champion")


def test_the_servers_own_address_may_stand_in_the_uri(registry, follower):
    host = registry.url.removeprefix("http://")
    registry.uris[3], registry.aliases["champion"] = f"mlflow-artifacts://{host}/1/models/3/artifacts", 3

    follower.poll()

    assert 3 == follower.store.aliases()["champion"]


def test_files_of_a_training_without_a_server_are_fetched_from_the_server_of_up(registry, follower, tmp_path):
    kept = (tmp_path / ".gleaner" / "mlartifacts").as_uri()
    registry.uris[3], registry.aliases["champion"] = f"{kept}/1/models/3/artifacts", 3

    follower.poll()

    assert 3 == follower.store.aliases()["champion"]


@pytest.mark.parametrize("path", ["../mlartifacts2/3", "%2e%2e/x", "", "1//models"])
def test_no_other_file_of_this_machine_is_fetched(registry, follower, tmp_path, path):
    kept = (tmp_path / ".gleaner" / "mlartifacts").as_uri()
    registry.uris[3], registry.aliases["champion"] = f"{kept}/{path}", 3
    registry.asked.clear()

    follower.poll()

    assert 0 == registry.fetched(MANIFEST)
    assert 1 == follower.refusals["location"]


def test_a_version_that_fails_its_self_test_is_not_stored(registry, tmp_path, caplog):
    registry.folders[4] = made.rewrite(made.copy(made.constant(4.0), tmp_path / "four"), made.killing())
    follower = Follower(settings_for(tmp_path, registry.url), Store(tmp_path / "store"))
    follower.poll()
    registry.aliases["champion"] = 4

    follower.poll()
    follower.poll()

    assert {"champion": 1, "challenger": 2} == follower.store.aliases()
    assert [1, 2] == follower.store.versions()
    assert 1 == follower.refusals["selftest"]
    assert "ended by signal" in follower.fault("champion")
    # A start without the server finds the version that was in service before.
    slots = Slots(follower.store, {"v1": "champion"})
    slots.refresh()
    assert 1 == slots.current["v1"].version


def test_a_refusal_outlasts_a_broken_server_and_is_counted_once(registry, tmp_path):
    registry.folders[4] = made.rewrite(made.copy(made.constant(4.0), tmp_path / "four"), made.killing())
    follower = Follower(settings_for(tmp_path, registry.url), Store(tmp_path / "store"))
    registry.aliases["champion"] = 4
    seen = []
    for fault in (None, reset, None, None):
        registry.fault = only("", fault) if fault else lambda handler: False
        follower.poll()
        seen.append((follower.result, follower.fault("champion") is not None))

    assert [("success", True), ("unreachable", True), ("success", True), ("success", True)] == seen
    assert 1 == follower.refusals["selftest"]


def test_an_untested_version_in_the_store_is_tested_before_its_alias_moves(registry, tmp_path):
    def fail(folder: Path) -> None:
        raise BadArtifact(folder, "selftest", "no")

    store = made.fill(tmp_path / "store", made.constant(1.0), made.constant(2.0))
    store.add(3, made.constant(3.0).folder)
    registry.aliases["champion"] = 3
    follower = Follower(settings_for(tmp_path, registry.url), store, test=fail)

    follower.poll()

    assert {"champion": 1, "challenger": 2} == store.aliases()
    assert 1 == follower.refusals["selftest"]


def test_an_unreachable_server_is_no_warning_at_the_start(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    settings, store = settings_for(tmp_path, "http://127.0.0.1:9"), Store(tmp_path / "store")
    patient, at_once = Follower(settings, store), Follower(settings, store, grace_seconds=0)
    for follower in (patient, patient, at_once, at_once):
        follower.poll()
    assert ["registry not followed yet", "registry not followed"] == caplog.messages

    patient._patient_until = 0.0
    patient.poll()

    assert "registry not followed" == caplog.messages[-1]
    assert ["registry not followed"] * 2 == lines(caplog)


def test_an_unfinished_self_test_is_repeated(registry, tmp_path, caplog):
    tried: list[Path] = []

    def test(folder: Path) -> None:
        tried.append(folder)
        if len(tried) < 3:
            raise BadArtifact(folder, "selftest", "its self-test took longer than 30 s", transient=True)

    settings, store = settings_for(tmp_path, registry.url), Store(tmp_path / "store")
    follower = Follower(settings, store, test=test, retry_seconds=0.05)
    registry.aliases = {"champion": 3, "challenger": 3}
    follower.poll()
    assert "its self-test took longer than 30 s" in follower.fault("champion")

    for _ in range(6_000):
        follower.poll()
        if not follower.fault("champion"):
            break
        time.sleep(0.01)

    assert 3 == len(tried)
    assert {"champion": 3, "challenger": 3} == store.aliases()
    assert 1 == follower.refusals["selftest"]
    assert 1 == lines(caplog).count("version refused")


def test_a_replaced_registry_is_refused_at_the_start_and_later(registry, follower, tmp_path):
    registry.folders[1] = made.constant(10.0).folder
    follower.poll()

    assert 1 == follower.refusals["conflict"]
    assert "so the registry was replaced" in follower.fault("champion")

    later = follower_of(registry, tmp_path, follower.store)
    later.poll()

    assert 1 == later.refusals["conflict"]
    assert {"champion": 1, "challenger": 2} == follower.store.aliases()


def test_a_damaged_copy_in_the_store_is_refused_and_named(registry, follower, tmp_path):
    damaged = follower.store.folder(1) / MODEL
    damaged.write_bytes(damaged.read_bytes()[:-1])
    follower.store.point({"champion": 2})

    later = follower_of(registry, tmp_path, follower.store)
    later.poll()

    assert 2 == follower.store.aliases()["champion"]
    assert 1 == later.refusals["size"]
    assert f"the copy in the store is damaged: {MODEL} has" in later.fault("champion")
    assert f"move {follower.store.folder(1)} away" in later.fault("champion")


def test_a_reason_is_never_long(registry, follower, tmp_path):
    registry.folders[4] = changed(tmp_path / "four", model="x" * 1_000_000)
    registry.aliases["champion"] = 4

    follower.poll()

    assert len(follower.fault("champion")) < 600


def test_a_refused_version_is_tried_again_after_the_server_was_away(registry, follower, caplog):
    registry.aliases["champion"], registry.fault = 3, only(MANIFEST, responds(200, PAGE))
    follower.poll()
    assert 1 == follower.refusals["manifest"]

    registry.fault = reset
    follower.poll()
    registry.fault = lambda handler: False
    follower.poll()
    follower.poll()

    assert 3 == follower.store.aliases()["champion"]
    assert follower.fault("champion") is None


def test_a_version_refused_as_the_server_comes_back_is_refused_once(registry, follower):
    registry.fault = reset
    follower.poll()
    registry.aliases["champion"], registry.fault = 3, only(MANIFEST, responds(200, PAGE))
    for _ in range(3):
        follower.poll()

    assert 1 == follower.refusals["manifest"]


# Keys


@pytest.mark.parametrize(
    ("userinfo", "environment", "wanted"),
    [
        ("", {}, None),
        ("joe:s3%40cret@", {}, "Basic am9lOnMzQGNyZXQ="),
        ("", {"MLFLOW_TRACKING_USERNAME": "joe", "MLFLOW_TRACKING_PASSWORD": "s3@cret"}, "Basic am9lOnMzQGNyZXQ="),
        ("", {"MLFLOW_TRACKING_TOKEN": "s3@cret"}, "Bearer s3@cret"),
        ("joe:s3%40cret@", {"MLFLOW_TRACKING_TOKEN": "other"}, "Basic am9lOnMzQGNyZXQ="),
    ],
)
def test_only_the_server_sees_the_key(registry, tmp_path, caplog, monkeypatch, userinfo, environment, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = settings_for(tmp_path, registry.url.replace("//", f"//{userinfo}"))
    follower = Follower(settings, Store(tmp_path / "store"), test=lambda _: None)
    caplog.set_level(logging.DEBUG, "gleaner")

    follower.poll()
    registry.fault = responds(500, b"")
    follower.poll()
    registry.fault = reset
    follower.poll()

    assert {wanted} == registry.authorizations
    said = [str(vars(record)) for record in caplog.records if record.name.startswith("gleaner")]
    shown = "".join([*said, str(follower.describe()), str(settings.model_dump()), settings.tracking_uri])
    assert said
    assert not re.search("s3@cret|s3%40cret|am9lOnMzQGNyZXQ", shown)


# TLS


@pytest.fixture
def encrypted(registry: Registry, tmp_path: Path) -> Path:
    """Put the registry behind TLS; return the path of its certificate."""
    path, secret = write_certificate(tmp_path, "registry")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, secret)
    registry.socket = context.wrap_socket(registry.socket, server_side=True, do_handshake_on_connect=False)
    return path


def test_a_server_behind_tls_is_followed_if_its_certificate_is_known(registry, encrypted, tmp_path, monkeypatch):
    uri = registry.url.replace("http://", "https://")
    stranger = Follower(settings_for(tmp_path, uri), Store(tmp_path / "store"), test=lambda _: None)
    stranger.poll()

    assert "unreachable" == stranger.result
    assert "certificate" in stranger.detail

    monkeypatch.setenv("SSL_CERT_FILE", str(encrypted))
    follower = Follower(
        settings_for(tmp_path, uri, timeout_seconds=1.5), Store(tmp_path / "store"), test=lambda _: None
    )
    follower.poll()

    assert {"champion": 1, "challenger": 2} == follower.store.aliases()

    registry.fault = FAULTS["drips its head"][0]
    follower.poll()

    assert "no complete response within tracking.timeout_seconds" in follower.detail


# Moving an alias


def test_an_alias_is_moved_by_one_request(registry, tmp_path, monkeypatch):
    told: list[object] = []

    def do_post(handler: Handler) -> None:
        told.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        handler.respond(*reply)

    monkeypatch.setattr(Handler, "do_POST", do_post, raising=False)
    server = MlflowServer(settings_for(tmp_path, registry.url))
    reply: tuple[int, bytes] = (200, b"{}")
    server.move("champion", 3)

    assert [{"name": "made", "alias": "champion", "version": "3"}] == told

    reply = (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Model Version not found"}')
    with pytest.raises(Trouble, match="knows no version 9 of 'made'"):
        server.move("champion", 9)
