"""Addresses and ports: checks before listening, and the holders of ports."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import shlex
import socket
from collections.abc import Collection

import psutil

from gleaner.errors import CannotListen, PortTaken, Refused, environment_name
from gleaner.redaction import hide_arguments

_ANOTHER_ADDRESS = "set serving.host to an address of this machine"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """Return the URL host of a local server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def show_address(host: str, port: int) -> str:
    """Write a host and a port as a URL does: [::1]:5001."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str) -> str:
    """Return the IP address of a host name, preferring IPv4.

    Raises CannotListen for a name without an address.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return host
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        reason = (isinstance(e, OSError) and e.strerror) or "not a host name"
        raise CannotListen(host or "''", reason, _ANOTHER_ADDRESS) from e
    return str(min(found)[4][0])  # AF_INET is the smaller number


def check_port(host: str, port: int, setting: str) -> None:
    """Check that this process can listen on a port.

    It is tried without SO_REUSEPORT, which would let a second server share the port silently.

    host: an IP address or a host name.
    port: 0 stands for any free port.
    setting: the port's setting, for the message.
    Raises PortTaken with the process that holds the port, and CannotListen for every other reason.
    """
    address = resolve(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            probe.listen(1)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            hidden = f"a process of another user (`sudo lsof -i :{port}` names it)"
            raise PortTaken(host, port, setting, find_holder(port) or hidden) from e
        other_port = f"set {setting} (or {environment_name(setting)}) to a port from 1024 on"
        fix = other_port if e.errno == errno.EACCES else _ANOTHER_ADDRESS
        raise CannotListen(show_address(host, port), e.strerror or str(e), fix) from e


def find_holder(port: int) -> str | None:
    """Find the process that listens on a port: `pid 4711 (python src/predict.py)`.

    None if there is none, or if it is hidden from this user.
    """
    for process in psutil.process_iter(["pid", "cmdline", "name"]):
        if _listens(process, port):
            command = shlex.join(hide_arguments(process.info["cmdline"]) or [process.info["name"] or "?"])
            return f"pid {process.info['pid']} ({command[:120]})"
    return None


def is_held_by(port: int, pids: Collection[int]) -> bool:
    """Return whether one of these processes listens on a port."""
    return any(process.pid in pids and _listens(process, port) for process in psutil.process_iter())


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections())
    except psutil.Error:
        return False


def check_host(host: str, *, insecure: bool) -> None:
    """Check that only this machine reaches an address, unless `insecure`.

    Raises Refused, and CannotListen for a name without an address.
    """
    if not is_loopback(resolve(host)) and not insecure:
        raise Refused(
            f"other machines can reach {host}, and this service asks callers for no key; run `gleaner keys add NAME` "
            "and set serving.keys_file, or set serving.host to 127.0.0.1, or, behind a proxy that asks for a password, "
            "set serving.insecure (GLEANER_SERVING__INSECURE=true, or `gleaner serve --insecure`)"
        )
