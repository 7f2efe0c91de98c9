"""`make sbom` and `make audit`, which read the locks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from projects import ROOT
from started import responding, tool

LOCKS = ROOT / "requirements"
PARTS = ("serve", "train", "parquet", "monitoring")


def locked(*names: str) -> set[tuple[str, str]]:
    """Return the names and versions in locks."""
    text = "\n".join((LOCKS / f"{name}.lock").read_text() for name in names)
    return set(re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==([^ ]+)", text, re.MULTILINE))


def script(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, LOCKS / name, *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def sboms(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sbom")
    done = script("make_sbom.py", folder, PYTHONHASHSEED="1")
    assert 0 == done.returncode, done.stderr
    return folder


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def read(sboms: Path, part: str) -> dict:
    return json.loads((sboms / f"{part}.cdx.json").read_text())


# make sbom


def test_every_file_passes_the_schema_of_cyclonedx(sboms, part):
    text = (sboms / f"{part}.cdx.json").read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)

    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"version": "', '"edition": "', 1)) is not None


def test_every_locked_version_is_in_the_file_with_all_its_hashes(sboms, part):
    components = read(sboms, part)["components"]
    hashes = [
        each["content"]
        for component in components
        for reference in component["externalReferences"]
        for each in reference["hashes"]
    ]

    assert locked(part) == {(component["name"], component["version"]) for component in components}
    found = re.findall(r"--hash=sha256:(\w+)", (LOCKS / f"{part}.lock").read_text())
    assert sorted(found) == sorted(hashes)


def test_every_package_is_needed_by_the_project(sboms, part):
    needs = {each["ref"]: each.get("dependsOn", []) for each in read(sboms, part)["dependencies"]}
    reached, waiting = set(), ["gleaner-tabular"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += needs[name]

    assert set(needs) == reached
    assert {f"pkg:pypi/{name}@{version}" for name, version in locked(part)} | {"gleaner-tabular"} == reached


def test_packages_declare_their_licences(sboms, part):
    components = read(sboms, part)["components"]
    licenses = {f"{each['name']} {each['version']}": each.get("licenses", []) for each in components}
    texts = json.dumps(licenses)

    assert [{"license": {"acknowledgement": "declared", "id": "BSD-3-Clause"}}] == next(
        found for name, found in licenses.items() if name.startswith("click ")
    )
    assert len([name for name, found in licenses.items() if found]) >= 0.9 * len(licenses)
    assert "OSI Approved" not in texts
    assert "UNKNOWN" not in texts


def test_the_same_locks_make_the_same_bytes(sboms, tmp_path):
    done = script("make_sbom.py", tmp_path, PYTHONHASHSEED="2", SOURCE_DATE_EPOCH="0")

    assert 0 == done.returncode, done.stderr
    for part in PARTS:
        assert (sboms / f"{part}.cdx.json").read_bytes() == (tmp_path / f"{part}.cdx.json").read_bytes()


def test_there_is_a_file_for_every_image(sboms):
    parts = re.findall(r"^# - (\w+) ", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)

    assert {f"{part}.cdx.json" for part in parts} == {path.name for path in sboms.iterdir()}


def test_a_line_that_no_lock_has_is_refused(tmp_path):
    for name in ("locks.py", "make_sbom.py"):
        shutil.copy(LOCKS / name, tmp_path)
    for part in PARTS:
        (tmp_path / f"{part}.lock").write_text("click==8.5.1 \\\n    --hash=sha256:" + 64 * "0" + "\nflask>=3\n")

    done = subprocess.run(
        [sys.executable, tmp_path / "make_sbom.py", tmp_path / "out"], capture_output=True, text=True, check=False
    )

    assert 0 != done.returncode
    assert "serve.lock, line 3: wanted a package with its hashes, got 'flask>=3'; run `make lock`" in done.stderr


def test_git_ignores_the_folder(tmp_path):
    git = [tool("git"), "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)

    assert 0 == subprocess.run([*git, "check-ignore", "--quiet", "sbom/serve.cdx.json"], check=False).returncode


# make audit

ALL = locked(*(path.stem for path in LOCKS.glob("*.lock")))
ADVISORY = {
    "id": "PYSEC-1",
    "aliases": ["CVE-1"],
    "summary": "made for this test",
    "affected": [
        {
            "package": {"name": "click", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
        }
    ],
}


@contextlib.contextmanager
def advisories(about: str, asked: list[tuple[str, str]]):
    """Run a server that speaks OSV's protocol and knows one advisory."""

    def reply(method, path, body, headers):
        query = json.loads(body)
        name = query["package"]["name"]
        asked.append((name, query["version"]))
        return 200, json.dumps({"vulns": [ADVISORY]} if name == about else {}).encode()

    with responding(reply) as port:
        yield "--vulnerability-service", "osv", "--osv-url", f"http://127.0.0.1:{port}/v1/query"


def test_every_locked_version_is_asked_for_also_those_of_other_systems():
    asked: list[tuple[str, str]] = []
    with advisories("nothing", asked) as arguments:
        done = script("audit.py", *arguments)

    assert 0 == done.returncode, done.stdout
    assert sorted(ALL) == sorted(asked)
    assert f"audit: no known advisory for {len(ALL)} locked versions\n" == done.stdout


def test_an_advisory_is_named_with_its_fix():
    with advisories("click", []) as arguments:
        done = script("audit.py", *arguments)

    assert 1 == done.returncode
    (version,) = [version for name, version in ALL if name == "click"]
    assert f"click {version}: PYSEC-1 CVE-1, fixed in 99.0\nto fix them: make lock, make test\n" == done.stdout


def test_without_a_network_nothing_passes():
    done = script("audit.py", HTTPS_PROXY="http://127.0.0.1:1", https_proxy="http://127.0.0.1:1", NO_PROXY="")

    assert 2 == done.returncode
    assert re.match(r"audit: stopped, because pip-audit failed: .+\nask again with a network; .*osv", done.stdout)


def test_a_version_without_an_answer_does_not_pass(monkeypatch):
    # pip-audit itself says "No known vulnerabilities found" there, as behind a mirror that serves packages alone.
    monkeypatch.syspath_prepend(LOCKS)
    import audit

    answers = [{"name": "click", "version": "8.5.1", "vulns": []}, {"name": "flask", "skip_reason": "not found"}]

    text, code = audit.rate(answers, {("click", "8.5.1"), ("flask", "3.1.3")})

    assert 2 == code
    assert text.startswith("audit: 1 of 2 locked versions had no answer: flask 3.1.3\n")
