"""TLS by certificate files, which are read again when they change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from gleaner.errors import BadCertificate
from gleaner.machine.files import mark_of

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS, SHUTDOWN_SECONDS = 10.0, 2.0


class Tls:
    """The certificate of the service, for TLS 1.2 and 1.3.

    Files that become unreadable change nothing, except that the log says so.

    certificate: a PEM file with the certificate, followed by those of its issuers.
    key: a PEM file with the private key, without a passphrase.
    context: for new connections.
    Raises BadCertificate for files that cannot be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._mark = self._look()
        self.context = self._load()

    def refresh(self) -> None:
        """Read the files again if they have changed, for new connections."""
        mark = self._look()
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._load()  # a pair that does not match would spoil the context in use
            self.context.load_cert_chain(*self._files)
        except (BadCertificate, OSError) as e:
            log.error("certificate not read", extra={"reason": str(e)})
        else:
            log.info("certificate read again", extra={"file": str(self._files[0])})

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        for path in self._files:
            try:
                path.open("rb").close()
            except OSError as e:
                raise BadCertificate(f"{path}: cannot be read: {e.strerror}") from e
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(certificate, key, password=_refuse_passphrase)
        except (ssl.SSLError, OSError, ValueError) as e:
            reason = (isinstance(e, ssl.SSLError) and e.reason) or str(e)
            wanted = "wanted PEM files of a certificate and of its own private key, without a passphrase"
            raise BadCertificate(f"{certificate} and {key}: {wanted}, got: {reason}") from e
        return context

    def _look(self) -> list[object]:
        return [mark_of(path) for path in self._files]


def _refuse_passphrase() -> str:
    raise ValueError("a key with a passphrase")
