"""Clients' addresses behind proxies."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from gleaner.errors import BadBody
from gleaner.serving.proxies import Proxies, read_proxy_header

MARK = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, addresses: bytes) -> bytes:
    return MARK + bytes([0x20 | command, family]) + struct.pack(">H", len(addresses)) + addresses


def addresses(source: str, target: str) -> bytes:
    packed = [ipaddress.ip_address(address).packed for address in (source, target)]
    return b"".join(packed) + struct.pack(">HH", 4711, 443)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "203.0.113.7:4711", "203.0.113.7"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the client wrote the first one itself
        ("10.0.0.1", "203.0.113.7, 10.2.3.4", "203.0.113.7"),  # two proxies in a row
        ("10.0.0.1", "10.2.3.4", "10.2.3.4"),
        ("10.0.0.1", "203.0.113.7, unknown", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("192.0.2.1", "203.0.113.7", "192.0.2.1"),  # anybody can write the header
        ("", "203.0.113.7", ""),
    ],
)
def test_a_client_is_the_last_address_that_no_trusted_proxy_has(peer, forwarded, client):
    assert client == Proxies(["10.0.0.0/8"]).find_client(peer, forwarded)


def test_without_trusted_proxies_the_header_counts_for_nothing():
    assert "10.0.0.1" == Proxies([]).find_client("10.0.0.1", "203.0.113.7")


@pytest.mark.parametrize(
    ("head", "client"),
    [
        (b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n", "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n", ""),
        (v2(1, 0x11, addresses("203.0.113.7", "192.0.2.1")), "203.0.113.7"),
        (v2(1, 0x21, addresses("2001:db8::1", "2001:db8::2")), "2001:db8::1"),
        (v2(1, 0x11, addresses("203.0.113.7", "192.0.2.1") + b"\x04\x00\x01x"), "203.0.113.7"),
        (v2(0, 0x11, addresses("203.0.113.7", "192.0.2.1")), ""),  # the proxy's own check
        (v2(1, 0x00, b""), ""),
    ],
)
def test_a_header_is_read_however_it_is_cut(head, client):
    for end in range(1, len(head)):
        assert read_proxy_header(head[:end]) is None
    assert (len(head), client) == read_proxy_header(head + b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"POST", b"PUT /", b"PROXX", b"\r\nGET / HTTP/1.1\r\n\r\n", b"x"]
)
def test_other_bytes_are_no_header(data):
    assert (0, "") == read_proxy_header(data)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n",
        b"PROXY TCP4 203.0.113.x 192.0.2.1 4711 443\r\n",
        b"PROXY UDP4 203.0.113.7 192.0.2.1 4711 443\r\n",
        b"PROXY " + b"x" * 200,
        MARK + b"\x11\x11\x00\x0c" + b"\x00" * 12,  # version 1 in a header of version 2
        MARK + b"\x22\x11\x00\x0c" + b"\x00" * 12,  # no such command
        MARK + b"\x21\x11\xff\xff",
        v2(1, 0x11, b"\x00" * 4),
    ],
)
def test_a_damaged_header_is_refused(data):
    with pytest.raises(BadBody, match="PROXY protocol"):
        read_proxy_header(data)
