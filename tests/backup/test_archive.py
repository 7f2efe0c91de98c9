"""Damaged and hostile backups: every one is refused, and changes nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made import artifact, fill
from projects import SETTINGS, write_made_table

from gleaner.backup.create import make_backup
from gleaner.backup.restore import restore_folder
from gleaner.errors import BadBackup, GleanerError, Refused
from gleaner.model.store import Store
from gleaner.settings.load import load_settings


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    """Back up a small folder with a store."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    fill(folder / ".gleaner" / "store", artifact("decision_tree"))
    make_backup(load_settings(folder / "gleaner.toml"), folder / "b.tar.gz")
    return (folder / "b.tar.gz").read_bytes()


@dataclass
class Parts:
    """The parts of a backup, to be changed and packed again."""

    manifest: dict[str, Any]
    members: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, backup: bytes) -> Parts:
        with tarfile.open(fileobj=io.BytesIO(backup)) as tar:
            members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
        return cls(json.loads(members[0][1]), members[1:])

    def pack(self) -> bytes:
        """Return the archive, with the manifest as it is now."""
        return packed([(named("manifest.json"), json.dumps(self.manifest).encode()), *self.members])

    def add(self, name: str, content: bytes = b"evil", **about: Any) -> None:
        """Add a file with a right hash."""
        described = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "mode": 0o600}
        self.manifest["files"][name] = described | about
        self.members.append((named(name), content))


def named(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


def packed(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def refuse(backup: bytes, folder: Path, said: str = "", *, error: type[GleanerError] = BadBackup) -> str:
    """Check that a backup is refused without a trace; return the reason."""
    with pytest.raises(error) as caught:
        restore_folder(io.BytesIO(backup), "b.tar.gz", folder / "restored")
    assert [] == list(folder.iterdir())
    assert said in str(caught.value)
    return str(caught.value)


def test_the_good_backup_is_restored_and_its_parts_are_as_well(good, tmp_path):
    for i, backup in enumerate((good, Parts.of(good).pack())):
        restore_folder(io.BytesIO(backup), "b", tmp_path / str(i))

        assert SETTINGS == (tmp_path / str(i) / "gleaner.toml").read_text()
        assert "decision_tree" == Store(tmp_path / str(i) / ".gleaner" / "store").read(1).manifest.candidate


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_byte_is_found(good, tmp_path, seed):
    at = random.Random(seed).randrange(10, len(good))  # gzip's first ten bytes hold a time and flags
    damaged = bytearray(good)
    damaged[at] ^= 1 << seed % 8

    assert "use another copy" in refuse(bytes(damaged), tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_cut_archive_is_found(good, tmp_path, share):
    refuse(good[: int(len(good) * share)], tmp_path)


def test_a_cut_checksum_at_the_very_end_is_found(good, tmp_path):
    refuse(good[:-1], tmp_path, "cut")


def test_an_archive_that_is_cut_between_two_files_is_found(good, tmp_path):
    parts = Parts.of(good)
    (last, _) = parts.members.pop()

    refuse(parts.pack(), tmp_path, f"it ends before {last.name}")


def test_a_changed_file_is_found_by_its_hash(good, tmp_path):
    parts = Parts.of(good)
    at = next(i for i, (info, _) in enumerate(parts.members) if info.name.endswith("model.onnx"))
    info, content = parts.members[at]
    parts.members[at] = (info, content[:-1] + b"?")

    refuse(parts.pack(), tmp_path, f"{info.name} has another sha256")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/cron.d/evil",
        "../evil",
        "state/../../evil",
        "state/store/../../../evil",
        "state/store/./evil",
        "state/store//evil",
        "state",
        "state/",
        "evil",
        "other/evil",
        "settings/a/b.toml",
        "data/a/b.csv",
        "secrets/../evil",
        "state/run/run.json",
        "state/grafana/password",
        "state/store/a\\b",
        "state/store/a\nb",
        "state/store/" + 300 * "a",
    ],
)
def test_a_hostile_name_is_refused(good, tmp_path, name):
    parts = Parts.of(good)
    parts.add(name)

    refuse(parts.pack(), tmp_path, "is no name of a file in a backup")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_devices_and_folders_are_refused(good, tmp_path, kind):
    parts = Parts.of(good)
    parts.add("state/store/evil", b"")
    parts.members[-1] = (named("state/store/evil", kind), b"")
    parts.members[-1][0].linkname = "/etc/passwd"

    refuse(parts.pack(), tmp_path, "is not a plain file")


def test_a_file_below_another_file_is_refused(good, tmp_path):
    parts = Parts.of(good)
    parts.add("state/store/a")
    parts.add("state/store/a/b")

    refuse(parts.pack(), tmp_path, error=GleanerError)


def test_a_file_that_the_manifest_does_not_name_is_refused(good, tmp_path):
    parts = Parts.of(good)
    parts.members.append((named("state/store/evil"), b"evil"))

    refuse(parts.pack(), tmp_path, "'state/store/evil' is not in its manifest.json")


def test_files_in_another_order_are_refused(good, tmp_path):
    parts = Parts.of(good)
    parts.members.reverse()

    refuse(parts.pack(), tmp_path, "its next member is")


@pytest.mark.parametrize("about", [{"size": 3}, {"size": 5}, {"size": -1}, {"mode": 0o4755}, {"mode": 0o755}])
def test_a_size_that_lies_and_special_permissions_are_refused(good, tmp_path, about):
    parts = Parts.of(good)
    parts.add("state/store/evil", b"evil", **about)

    refuse(parts.pack(), tmp_path)


def test_more_than_the_disk_has_is_refused_before_anything_is_written(good, tmp_path):
    parts = Parts.of(good)
    parts.add("state/store/evil", b"evil", size=1 << 60)

    refuse(parts.pack(), tmp_path, "are free for", error=Refused)


def test_a_newer_format_is_refused_by_its_number(good, tmp_path):
    parts = Parts.of(good)
    parts.manifest = {"format": 2, "everything": "else is new"}

    refuse(parts.pack(), tmp_path, "it was made by a newer Gleaner: its format is 2, and this one reads 1")


@pytest.mark.parametrize("manifest", [b"", b"{", b"[" * 100_000, b'{"format": 1}', b'{"format": "1"}', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, manifest):
    refuse(packed([(named("manifest.json"), manifest)]), tmp_path, "its manifest.json cannot be read")


@pytest.mark.parametrize(
    "content", [b"", b"no archive", gzip.compress(b"no tar", mtime=0), gzip.compress(b"x" * 5_000, mtime=0)]
)
def test_another_file_is_refused(tmp_path, content):
    refuse(content, tmp_path)


def test_another_tar_file_is_refused(tmp_path):
    refuse(packed([(named("notes.txt"), b"hello")]), tmp_path, "so it is not a backup of Gleaner")


def test_the_settings_come_first(good, tmp_path):
    parts = Parts.of(good)
    (name,) = [name for name in parts.manifest["files"] if name.startswith("settings/")]
    del parts.manifest["files"][name], parts.members[0]

    refuse(parts.pack(), tmp_path, "its first file is not the settings file")


# Archives that grow when they are read


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = named(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "the manifest": lambda _: header("manifest.json", 5 << 30),
    "a long name": lambda _: header("x", 5 << 30, tarfile.XHDTYPE),
    "a long name of GNU's": lambda _: header("x", 5 << 30, tarfile.GNUTYPE_LONGNAME),
    "the end": lambda good: gzip.decompress(good),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_archive_that_grows_to_gigabytes_takes_little_memory(good, tmp_path, name):
    zeros = b"\0" * (1 << 24)
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as file:
        file.write(BOMBS[name](good))
        for _ in range(64):  # a gigabyte
            file.write(zeros)
    limit = 700 << 20
    command = [sys.executable, "-m", "gleaner", "restore", "bomb.tar.gz", "restored"]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )

    assert 1 == done.returncode, done.stderr
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert "use another copy" in done.stderr
    assert ["bomb.tar.gz"] == [path.name for path in tmp_path.iterdir()]
