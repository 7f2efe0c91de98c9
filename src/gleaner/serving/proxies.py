"""Addresses of clients, as trusted proxies tell them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from gleaner.errors import BadBody

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Source: the PROXY protocol, versions 1 and 2, https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
_V1, _V1_BYTES = b"PROXY ", 107
_V2, _V2_BYTES = b"\r\n\r\n\x00\r\nQUIT\n", 16
_V2_LONGEST = 4_096
_TCP4, _TCP6 = 0x11, 0x21


class Proxies:
    """The proxies that may say for whom they ask.

    networks: their addresses, such as `10.0.0.0/8`.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(network, strict=False) for network in networks]

    def trusts(self, address: str) -> bool:
        """Return whether an address is one of a trusted proxy."""
        if not self._networks:
            return False
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(ip, "ipv4_mapped", None)
        return any((mapped or ip) in network for network in self._networks)

    def find_client(self, peer: str, forwarded_for: str | None) -> str:
        """Return the client's address.

        It is the last one that no trusted proxy has.

        peer: the other end of the connection.
        forwarded_for: the header X-Forwarded-For, to which each proxy adds the address that asked it.
        """
        if forwarded_for is None or not self.trusts(peer):
            return peer
        client = peer
        for text in reversed(forwarded_for.split(",")):
            address = _plain(text)
            if address is None:
                break
            client = address
            if not self.trusts(address):
                break
        return client


def _plain(text: str) -> str | None:
    """Return the address in `203.0.113.7`, `203.0.113.7:4711` or `[2001:db8::1]:4711`."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def read_proxy_header(data: bytes) -> tuple[int, str] | None:
    """Read the PROXY protocol's header at the start of a connection.

    Returns (its length, the client's address); a length of 0 stands for no header, and an empty address for a
    connection of the proxy itself. Returns None while more bytes are needed. Raises BadBody for a damaged header.
    """
    if _V2.startswith(data[: len(_V2)]):
        return _read_v2(data) if len(data) >= _V2_BYTES else None
    if data.startswith(_V1):
        return _read_v1(data)
    return None if len(data) < len(_V1) and _V1.startswith(data) else (0, "")


def _read_v1(data: bytes) -> tuple[int, str] | None:
    end = data.find(b"\r\n", 0, _V1_BYTES)
    if end < 0:
        if len(data) < _V1_BYTES:
            return None
        raise BadBody("the line of the PROXY protocol has no end")
    words = data[:end].decode("latin-1").split(" ")
    if words[1:2] == ["UNKNOWN"]:
        return end + 2, ""
    address = _plain(words[2]) if len(words) == 6 and words[1] in {"TCP4", "TCP6"} else None
    if address is None:
        raise BadBody("the line of the PROXY protocol is damaged")
    return end + 2, address


def _read_v2(data: bytes) -> tuple[int, str] | None:
    command, family, length = data[12], data[13], int.from_bytes(data[14:16], "big")
    if command >> 4 != 2 or command & 0x0F > 1 or length > _V2_LONGEST:
        raise BadBody("the header of the PROXY protocol is damaged")
    if len(data) < _V2_BYTES + length:
        return None
    size = {_TCP4: 4, _TCP6: 16}.get(family, 0)
    if command & 0x0F == 0 or size == 0:
        return _V2_BYTES + length, ""
    if length < 2 * size + 4:
        raise BadBody("the header of the PROXY protocol is too short for its addresses")
    return _V2_BYTES + length, str(ipaddress.ip_address(data[_V2_BYTES : _V2_BYTES + size]))
