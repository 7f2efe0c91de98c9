"""The file of a backup: a gzipped tar with a manifest.

manifest.json           the first member: the format, and the size and sha256 of every other member, in their order
settings/gleaner.toml   the settings file
state/...               the files of `paths.state`
data/...                the file in `training.data`
secrets/...             files that settings name, each under the setting's name
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from gleaner.backup.locations import DATABASE
from gleaner.errors import BadBackup, Refused
from gleaner.settings.sections import ARTIFACTS

FORMAT = 1
MANIFEST = "manifest.json"
SETTINGS, STATE, DATA, SECRETS = "settings", "state", "data", "secrets"
PIECE = 1 << 20

# What a backup has of the state folder: no logs, no process ids, no data of other programs.
_STATE = frozenset({"store", "trainer", "keys-used.json", DATABASE, ARTIFACTS})
_LARGEST_MANIFEST = 32_000_000
_LARGEST_EXTENSION = 65_536  # of a long name
_MOST_PADDING = 1_000_000  # zeros at the end
_BLOCK = 512
_LEVEL = 1  # models and plots shrink little more at higher levels
_STEP = re.compile(r"(?!\.\.?$)[^/\x00-\x1f\x7f\\]{1,255}")


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a backup.

    mode: its permissions.
    """

    size: int
    sha256: str
    mode: int


class Manifest(msgspec.Struct, frozen=True):
    """The description of a backup.

    created: the time, in UTC.
    model: the model's name.
    files: every other member, by its name.
    """

    format: int
    gleaner: str
    created: str
    model: str
    files: dict[str, Member]


class _Hashing(io.RawIOBase):
    """A file that is read up to a size, with its hash."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left, self._hash = file, size, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        self._hash.update(piece)
        return piece

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def describe_file(path: Path, *, private: bool = False) -> Member:
    """Return a file's size, hash and permissions.

    private: for this user alone, whatever the file's permissions are.
    """
    with path.open("rb") as file:
        about = path.stat()
        hashing = _Hashing(file, about.st_size)
        size = 0
        while piece := hashing.read(PIECE):
            size += len(piece)
    return Member(size, hashing.hexdigest(), 0o600 if private else 0o600 | about.st_mode & 0o644)


def write_archive(out: BinaryIO, manifest: Manifest, sources: dict[str, Path]) -> None:
    """Write a whole archive.

    sources: the file of each member of the manifest.
    Raises Refused if a file has changed since it was described.
    """
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=out, mtime=0) as packed,
        tarfile.TarFile(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        described = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
        tar.addfile(_header(MANIFEST, len(described), 0o600), io.BytesIO(described))
        for name, member in manifest.files.items():
            try:
                with sources[name].open("rb") as file:
                    hashing = _Hashing(file, member.size)
                    tar.addfile(_header(name, member.size, member.mode), hashing)
            except OSError as e:
                raise Refused(f"{sources[name]} changed during the backup ({e.strerror or e}); start it again") from e
            if hashing.hexdigest() != member.sha256:
                raise Refused(f"{sources[name]} changed during the backup; start it again")


def _header(name: str, size: int, mode: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, mode
    return header


class Archive:
    """A backup that is read once, from its start to its end.

    Only what `write_archive` writes is accepted: plain files, named in the manifest, in its order. Memory stays small
    for any archive.
    name: the archive's, for errors, which are BadBackup.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = gzip.GzipFile(fileobj=file, mode="rb"), name
        first, size = self._next_header() or ("", 0)
        if first != MANIFEST or size > _LARGEST_MANIFEST:
            raise self._bad(f"its first member is not a {MANIFEST}, so it is not a backup of Gleaner")
        self.manifest = self._read_manifest(self._read(size))
        self._skip_padding(size)

    def members(self) -> Iterator[tuple[str, Member, Iterator[bytes]]]:
        """Yield each file's name, description and content.

        The content must be read to its end. Raises BadBackup if it does not fit the description.
        """
        for name, member in self.manifest.files.items():
            header = self._next_header()
            if header is None:
                raise self._bad(f"it ends before {name}, so a part of it is missing")
            if header != (name, member.size):
                said = f"{MANIFEST} has {name} with {member.size:,} bytes"
                raise self._bad(f"its next member is {header[0][:200]!r} with {header[1]:,} bytes, but {said}")
            yield name, member, self._content(name, member)
        if header := self._next_header():
            raise self._bad(f"{header[0][:200]!r} is not in its {MANIFEST}")
        self._check_end()

    def _content(self, name: str, member: Member) -> Iterator[bytes]:
        hashed, left = hashlib.sha256(), member.size
        while left:
            piece = self._read(min(PIECE, left))
            left -= len(piece)
            hashed.update(piece)
            yield piece
        if hashed.hexdigest() != member.sha256:
            raise self._bad(f"{name} has another sha256 than in {MANIFEST}, so it is damaged")
        self._skip_padding(member.size)

    def _read_manifest(self, content: bytes) -> Manifest:
        try:
            number = msgspec.json.decode(content, type=_Format).format
            if number > FORMAT:
                reason = f"it was made by a newer Gleaner: its format is {number}, and this one reads {FORMAT}"
                raise BadBackup(self._name, f"{reason}; restore it with that version")
            manifest = msgspec.json.decode(content, type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise self._bad(f"its {MANIFEST} cannot be read: {e}") from e
        for name, member in manifest.files.items():
            if not _is_name(name):
                raise self._bad(f"{name[:200]!r} is no name of a file in a backup")
            if member.size < 0 or member.mode & ~0o644:
                raise self._bad(f"{name[:200]!r} has an impossible size or permissions")
        return manifest

    def _next_header(self) -> tuple[str, int] | None:
        """Return the next file's name and size; None at the end."""
        longer: dict[str, str] = {}
        while True:
            block = self._read(_BLOCK)
            if not block.strip(b"\0"):
                return None
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as e:
                raise self._bad(f"it is no tar file, or damaged: {e}") from e
            if header.type == tarfile.XHDTYPE and header.size <= _LARGEST_EXTENSION and not longer:
                longer = _read_extension(self._read(header.size))
                self._skip_padding(header.size)
            elif header.type == tarfile.REGTYPE and longer.keys() <= {"path", "size"}:
                size = longer.get("size", "")
                is_number = size.isascii() and size.isdecimal() and len(size) < 20
                return longer.get("path", header.name), int(size) if is_number else header.size
            else:
                raise self._bad(f"{header.name[:200]!r} is not a plain file; a backup has no links, devices or folders")

    def _read(self, size: int) -> bytes:
        """Read exactly so many bytes."""
        try:
            content = self._file.read(size)
        except (OSError, EOFError, zlib.error) as e:
            raise self._bad(f"it is cut or damaged: {e}") from e
        if len(content) != size:
            raise self._bad("it is cut: its end is missing")
        return content

    def _skip_padding(self, size: int) -> None:
        self._read(-size % _BLOCK)

    def _check_end(self) -> None:
        """Read to the end, where gzip keeps its own checksum."""
        try:
            rest = self._file.read(_MOST_PADDING)
        except (OSError, EOFError, zlib.error) as e:
            raise self._bad(f"it is cut or damaged: {e}") from e
        if rest.strip(b"\0") or len(rest) == _MOST_PADDING:
            raise self._bad("something follows its last file")

    def _bad(self, reason: str) -> BadBackup:
        return BadBackup(self._name, f"{reason}; use another copy")


def _is_name(name: str) -> bool:
    top, *steps = name.split("/")
    if not steps or not all(map(_STEP.fullmatch, steps)):
        return False
    return steps[0] in _STATE if top == STATE else top in {SETTINGS, DATA, SECRETS} and len(steps) == 1


class _Format(msgspec.Struct):
    format: int


def _read_extension(content: bytes) -> dict[str, str]:
    """Return the records of a header that extends the next one."""
    found = {}
    for line in content.split(b"\n")[:-1]:
        _, _, record = line.partition(b" ")
        key, _, value = record.decode("utf-8", "replace").partition("=")
        found[key] = value
    return found
