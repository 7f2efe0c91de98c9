"""The process that checks a signature; it loads little else than cryptography."""

from __future__ import annotations

import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gleaner.model.confinement import limit_process, refuse


def main(memory_bytes: str, cpu_seconds: str, key: str, signature: str) -> None:
    """Check a signature of the standard input, under limits.

    key, signature: in hexadecimal.
    """
    limit_process(int(memory_bytes), int(cpu_seconds))
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), sys.stdin.buffer.read())
    except InvalidSignature:
        refuse("signature", "manifest.sig is not the signature of this manifest by the key of serving.public_key")


if __name__ == "__main__":
    main(*sys.argv[1:])
