"""Names, versions and ids that mean harm."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import made
import pytest
from clients import FULL, ask, request_of
from projects import NUMBER, ROOT, ROUTE
from started import gleaner, serving, wait_for

from gleaner.errors import BadArtifact, BadStore

STEPS = ("..", "../..", "../../outside", "../../../../../../etc/passwd", ".", "~", "/", "//etc/passwd", "versions/1")
ENCODED = ("%2e%2e", "%2e%2e%2foutside", "..%2f..%2foutside", "%252e%252e%252f", "..%5c..", "%c0%ae%c0%ae/", "..;/..")
BYTES = ("%00", "made%00.txt", "%0a", "%0d%0aX-Evil: 1", "%1b[31m", "%ff%fe", "%u002e", "%", "%zz", "#", "made#x")
WORDS = ("*", "$(id)", "`id`", "{{7*7}}", "' OR 1=1 --", "<script>", "con", "-1", "1e9", "9" * 400, "0x1", "\u0661")
LONG = ("a" * 5_000, "../" * 2_000, "%2e%2e%2f" * 1_000, "a/" * 2_000)
LINKS = ("link", "../link", "store/versions/9", "9")


def hostile_names() -> list[str]:
    """Return more than 200 names, each once."""
    plain = [*STEPS, *ENCODED, *BYTES, *WORDS, *LONG, *LINKS]
    twice = [quote(name, safe="") for name in plain]
    ends = [f"{name}/outside/secret" for name in plain[:-8]]
    starts = [f"made/{name}" for name in plain[:-8]] + [f"1/../{name}" for name in plain[:-8]]
    return list(dict.fromkeys([*plain, *twice, *ends, *starts]))


PATHS = (
    ("POST", "/{}/predict"),
    ("GET", "/v2/models/{}"),
    ("POST", "/v2/models/{}/infer"),
    ("POST", "/v2/models/made/versions/{}/infer"),
    ("GET", "/docs/{}"),
    ("GET", "/{}"),
)

# Notes every file that is opened and every folder that is listed
WATCHED = """
import os, sys
noted = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, arguments):
    if event in {"open", "os.listdir", "os.scandir"} and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(arguments[0])
        os.write(noted, (path if "\\0" in path else os.path.realpath(path)).encode(errors="replace") + b"\\n")
sys.addaudithook(note)
"""
# Opens whatever a request names
OPENING = """
from pathlib import Path
from gleaner.serving.app import App
respond = App.respond
def respond_and_look(self, request):
    name = request.environ["PATH_INFO"].removeprefix("/v2/models/").removesuffix("/infer")
    try:
        (self.slots.store.root / name).read_bytes()
    except (OSError, ValueError):
        pass
    return respond(self, request)
App.respond = respond_and_look
"""


def send_hostile_names(folder: Path, names: Sequence[str], patch: str = "") -> tuple[dict[str, int | None], list[str]]:
    """Return the status of each path, and what was opened outside."""
    inside = folder / "inside"
    inside.mkdir()
    (folder / "outside").write_text("secret")
    store = made.place(inside)
    (store.root / "link").symlink_to(folder / "outside")
    opened = folder / "opened"
    body = json.dumps(ROUTE).encode()
    asked = [(method, path.format(name)) for method, path in PATHS for name in names]
    sent = [
        request_of(body if method == "POST" else b"", path=re.sub(r"[ \r\n]", "+", path), method=method)
        for method, path in asked
    ]
    usual = ("/", "/docs/", "/openapi.json", "/livez", "/v2", "/v2/models/made", "/health_status", "/nothing")
    with serving(inside, patch=WATCHED + patch, OPENED=str(opened)) as service:
        ask(service.port, [request_of(b"", path=path, method="GET") for path in usual])
        ask(service.port, [request_of(path=path) for path in ("/v1/predict", "/v2/models/made/infer", "/x/predict")])
        before = len(opened.read_bytes())
        answers = ask(service.port, sent)
    after = opened.read_bytes()[before:].decode(errors="replace").splitlines()
    allowed = tuple(map(str, (inside, ROOT / "src", sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev")))
    outside = [path for path in after if not path.startswith(allowed)]
    found = {f"{m} {path}": answer and answer.status for (m, path), answer in zip(asked, answers, strict=True)}
    return found, outside


def test_hostile_names_open_nothing_outside(tmp_path, figure):
    names = hostile_names() if FULL else hostile_names()[::6]
    assert len(hostile_names()) >= 200
    statuses, outside = send_hostile_names(tmp_path, names)

    assert [] == outside
    bad = {path[:200]: status for path, status in statuses.items() if status not in {400, 404, 405}}
    # A name may also spell a page of /docs, or an existing version.
    assert {} == {path: status for path, status in bad.items() if status not in {200, 302, 308, 422}}
    assert len(bad) < len(statuses) // 20, bad
    figure("S2", f"{len(names)} names in {len(PATHS)} paths: 400 or 404, nothing opened outside")


def test_a_file_that_is_opened_by_its_hostile_name_is_found(tmp_path):
    _, outside = send_hostile_names(tmp_path, ["../../../outside"], OPENING)

    assert str(tmp_path / "outside") in outside


def test_hostile_ids_are_replaced_and_open_nothing(tmp_path):
    made.place(tmp_path)
    names = [name for name in hostile_names() if not re.search(r"[\x00-\x1f\x7f]|[^\x00-\xff]", name)]
    headers = [b"X-Request-Id: " + name.encode("latin-1") + b"\r\n" for name in names]
    with serving(tmp_path) as service:
        answers = ask(service.port, [request_of(headers=header) for header in headers])

    for name, answer in zip(names, answers, strict=True):
        assert 200 == answer.status
        is_kept = answer.headers["x-request-id"] == name
        assert is_kept == bool(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name))


def test_hostile_aliases_and_versions_are_refused(tmp_path):
    store = made.place(tmp_path)
    before = store.aliases()
    for name in hostile_names():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            with pytest.raises(BadStore):
                store.point({name: 1})
    for version in ("1/../../outside", "99999"):
        done = gleaner("models", "promote", "--", version, folder=tmp_path)
        assert done.returncode in {1, 2}
        assert "Traceback" not in done.stderr

    assert before == store.aliases()


@pytest.mark.parametrize("linked", ["the folder", "manifest.json", "model.onnx"])
def test_a_version_that_is_a_link_is_not_served(tmp_path, linked):
    (tmp_path / "inside").mkdir()
    store = made.place(tmp_path / "inside")
    outside = made.copy(made.constant(7.0), tmp_path / "outside")
    if linked == "the folder":
        store.folder(3).symlink_to(outside)
    else:
        folder = made.copy(made.constant(7.0), store.folder(3))
        (folder / linked).unlink()
        (folder / linked).symlink_to(outside / linked)
    with pytest.raises(BadArtifact):
        store.read(3)
    with serving(tmp_path / "inside") as service:
        store.point({"champion": 3})
        assert wait_for(lambda: '"model not loaded"' in service.log.read_text())
        [answer] = ask(service.port, [request_of()])

    assert {"prediction": [NUMBER]} == json.loads(answer.content)
