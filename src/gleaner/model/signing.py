"""Private keys: made, read, and used to sign manifests."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from gleaner.errors import BadSetting, Refused, Unwritable
from gleaner.machine.files import sync
from gleaner.settings.sections import Settings

_LARGEST_FILE = 4_096


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key."""

    private: Ed25519PrivateKey

    @classmethod
    def read(cls, settings: Settings) -> Self | None:
        """Return the key of `training.signing_key`; None without that setting.

        Raises BadSetting for a file that is no such key, or that other users can read.
        """
        path = settings.signing_key
        if path is None:
            return None
        source, name = str(settings.file), "training.signing_key"
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(_LARGEST_FILE)
        except OSError as e:
            raise BadSetting(source, name, f"cannot read {path}: {e.strerror}") from e
        if mode & 0o077:
            raise BadSetting(source, name, f"other users may use {path} (mode {mode:04o}); run: chmod 600 {path}")
        try:
            private = load_pem_private_key(content, password=None)
        except TypeError as e:
            raise BadSetting(source, name, f"{path} is encrypted; wanted a key without a password") from e
        except (ValueError, UnsupportedAlgorithm):
            private = None  # the library's error may quote the file
        if not isinstance(private, Ed25519PrivateKey):
            fix = "wanted a file that `gleaner keys signing FILE` writes"
            raise BadSetting(source, name, f"{path} is not an Ed25519 private key; {fix}")
        return cls(private)

    @property
    def public(self) -> bytes:
        """Return the public key, 32 bytes."""
        return self.private.public_key().public_bytes_raw()

    def sign(self, described: bytes) -> bytes:
        """Return the signature of a manifest's bytes."""
        return self.private.sign(described)


def write_key(path: Path) -> Path:
    """Write a new private key, and its public key beside it.

    Returns the path of the public key, PATH.pub.
    Raises Refused if one of the files exists, Unwritable if one cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    public = path.with_name(f"{path.name}.pub")
    files = {
        path: private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        public: private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }
    written: list[Path] = []
    try:
        for file, content in files.items():
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if file is path else 0o644)
            written.append(file)
            with os.fdopen(handle, "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
        sync(path.parent)
    except BaseException as e:
        for file in written:
            file.unlink(missing_ok=True)
        if isinstance(e, FileExistsError):
            raise Refused(f"{e.filename} exists, and a key is never overwritten; name another file") from e
        if isinstance(e, OSError):
            raise Unwritable(path, f"cannot be written: {e.strerror}") from e
        raise
    return public
