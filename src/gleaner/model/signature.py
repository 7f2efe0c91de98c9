"""Public keys, and the check of a signature in a separate process.

The library for signatures is loaded in that process only.
"""

from __future__ import annotations

import binascii
import re
import stat
from base64 import b64decode
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gleaner.errors import BadArtifact, BadSetting, MissingExtra
from gleaner.model.confinement import Limits, Refusing, run_limited
from gleaner.model.manifest import SIGNATURE, SIGNATURE_BYTES, Manifest
from gleaner.settings.sections import Settings

LIMITS = Limits(256 << 20, 30, 300.0)

# RFC 8410: the DER of every Ed25519 public key begins so, and 32 bytes follow.
_DER_PREFIX = bytes.fromhex("302a300506032b6570032100")
_KEY_BYTES = 32
_LARGEST_FILE = 4_096
_PEM = re.compile(rb"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*")


@dataclass(frozen=True, slots=True)
class Signer:
    """The signer of a model's versions, known by a public key.

    key: the public key, 32 bytes.
    model: the name of the model; signed versions of another model are refused.
    """

    key: bytes
    model: str

    @property
    def fingerprint(self) -> str:
        return self.key.hex()

    def check(self, folder: Path, described: bytes) -> None:
        """Check that `manifest.sig` in a folder is this signer's for a manifest.

        described: the manifest's bytes, which are not decoded.
        Raises BadArtifact.
        """
        signature = read_signature(folder)
        run_limited(
            "gleaner.model.verifying",
            [self.key.hex(), signature.hex()],
            LIMITS,
            Refusing(folder, "signature", "the check of its signature"),
            content=described,
        )

    def check_model(self, folder: Path, manifest: Manifest) -> None:
        """Raise BadArtifact for a signed version of another model."""
        if manifest.model != self.model:
            detail = f"it is a signed version of {manifest.model!r}, not of {self.model!r}"
            raise BadArtifact(folder, "signature", detail)


def read_signature(folder: Path) -> bytes:
    """Read the signature beside a manifest. Raises BadArtifact."""
    path = folder / SIGNATURE
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode):
            raise BadArtifact(folder, "signature", f"{SIGNATURE} is not a regular file")
        if about.st_size != SIGNATURE_BYTES:
            detail = f"{SIGNATURE} has {about.st_size:,} bytes; a signature has {SIGNATURE_BYTES}"
            raise BadArtifact(folder, "signature", detail)
        with path.open("rb") as file:
            return file.read(SIGNATURE_BYTES)
    except FileNotFoundError as e:
        raise unsigned(folder) from e
    except OSError as e:
        raise BadArtifact(folder, "signature", f"cannot read {SIGNATURE}: {e.strerror}") from e


def unsigned(folder: Path | str) -> BadArtifact:
    """Return the error for a version without a signature."""
    fix = "where the private key is, `gleaner models sign VERSION` signs it"
    return BadArtifact(folder, "signature", f"it is not signed: {SIGNATURE} is missing; {fix}")


def read_signer(settings: Settings) -> Signer | None:
    """Return the signer of `serving.public_key`; None without that setting.

    Raises BadSetting for a file that is no public key, MissingExtra without the library that checks signatures.
    """
    path = settings.public_key
    if path is None:
        return None
    key = _read_public_key(settings, path)
    if find_spec("cryptography") is None:
        raise MissingExtra("signing", "cryptography")
    return Signer(key, settings.model.name)


def _read_public_key(settings: Settings, path: Path) -> bytes:
    source, name = str(settings.file), "serving.public_key"
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE)
    except OSError as e:
        raise BadSetting(source, name, f"cannot read {path}: {e.strerror}") from e
    if b"PRIVATE KEY" in content:
        fix = f"name {path}.pub, and move the private key away from the service"
        raise BadSetting(source, name, f"{path} is a private key; {fix}")
    found = _PEM.fullmatch(content)
    try:
        der = b64decode(b"".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        der = b""
    if not der.startswith(_DER_PREFIX) or len(der) != len(_DER_PREFIX) + _KEY_BYTES:
        fix = "wanted the file FILE.pub that `gleaner keys signing FILE` writes"
        raise BadSetting(source, name, f"{path} is not an Ed25519 public key; {fix}")
    return der.removeprefix(_DER_PREFIX)
