"""Connections from trusted proxies, which may start with the PROXY protocol's header."""

from __future__ import annotations

import asyncio

from gleaner.errors import BadBody
from gleaner.serving.connection import Connection, Host
from gleaner.serving.proxies import Proxies, read_proxy_header


class ProxiedConnection(Connection):
    """A connection whose first bytes may tell the client's address.

    proxies: the peers that are believed.
    """

    def __init__(self, server: Host, proxies: Proxies) -> None:
        super().__init__(server)
        self._proxies, self._head = proxies, b""
        self._is_decided = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername") or ("", 0)
        self._is_decided = not self._proxies.trusts(str(peer[0]))
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._is_decided:
            data = self._read_head(data)
        if data:
            super().data_received(data)

    def _read_head(self, data: bytes) -> bytes:
        """Return the bytes after the header; none while it is incomplete."""
        self._head += data
        try:
            found = read_proxy_header(self._head)
        except BadBody as e:
            self._is_decided = True
            self._refuse(e)
            return b""
        if found is None:
            return b""
        self._is_decided = True
        length, self.client = found
        return self._head[length:]
