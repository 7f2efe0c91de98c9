"""Who holds a port, and whether it can be had."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import shlex
import socket
from collections.abc import Iterable

import psutil

from gleaner.errors import PortTaken


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The host of an address at which this machine itself finds what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def check_port(host: str, port: int, setting: str) -> None:
    """Raises PortTaken, naming the holder and the setting, if `port` cannot be listened on; 0 always can.

    Tried without SO_REUSEPORT, under which a second server would share the port in silence.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as e:
            if e.errno != errno.EADDRINUSE:  # then whoever listens there, on another address, is not the reason
                raise PortTaken(host, port, setting, f"nobody, but it cannot be bound ({e.strerror})") from e
            raise PortTaken(host, port, setting, find_holder(port) or "a process that this user cannot see") from e


def find_holder(port: int) -> str | None:
    """`pid 4711 (python src/predict.py)` of the process that listens on a port, if it can be seen."""
    for process in psutil.process_iter(["pid", "cmdline", "name"]):
        if _listens(process, port):
            command = shlex.join(process.info["cmdline"] or [process.info["name"] or "?"])
            return f"pid {process.info['pid']} ({command[:120]})"
    return None


def is_held_by(port: int, pids: Iterable[int]) -> bool:
    """Whether one of some processes listens on a port."""
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if _listens(psutil.Process(pid), port):
                return True
    return False


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections())
    except psutil.Error:
        return False
