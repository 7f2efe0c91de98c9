"""Keys and signed artifacts, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import made
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gleaner.model.manifest import MANIFEST, SIGNATURE
from gleaner.model.signature import Signer
from gleaner.model.signing import SigningKey

KEY, ANOTHER_KEY = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in (1, 2))


def read_key(path: Path) -> SigningKey:
    private = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(private, Ed25519PrivateKey)
    return SigningKey(private)


def signer_of(key: SigningKey = KEY, model: str = "made") -> Signer:
    return Signer(key.public, model)


def of_another_model(folder: Path) -> Path:
    """Write an artifact whose manifest names another model."""
    about = json.loads((made.copy(made.constant(4.0), folder) / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(about | {"model": "other"}))
    return folder


def sign(folder: Path, key: SigningKey = KEY) -> Path:
    """Sign the manifest in a folder."""
    (folder / SIGNATURE).write_bytes(key.sign((folder / MANIFEST).read_bytes()))
    return folder
