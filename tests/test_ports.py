"""Real listening sockets of real processes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gleaner.errors import PortTaken
from gleaner.ports import check_port, find_holder, is_loopback

LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
if "shared" in sys.argv:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind((sys.argv[1], 0))
s.listen()
print(s.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def listening(tmp_path: Path, host: str = "127.0.0.1", *more: str) -> Iterator[tuple[int, int]]:
    """(port, pid) of a process that listens, until the block ends."""
    program = tmp_path / "a program.py"
    program.write_text(LISTEN)
    process = subprocess.Popen(
        [sys.executable, str(program), host, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.communicate()


@pytest.mark.parametrize("more", [(), ("shared",)])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_names_its_holder_and_the_setting_that_moves_it(tmp_path, host, more):
    with listening(tmp_path, host, *more) as (port, pid), pytest.raises(PortTaken) as caught:
        check_port("127.0.0.1", port, "ports.ml_app")

    assert f"port {port} on 127.0.0.1 is taken by pid {pid} (" in str(caught.value)
    assert str(caught.value).endswith(
        "; stop it, or set ports.ml_app in gleaner.toml (or GLEANER_PORTS__ML_APP) to another port"
    )
    assert "\n" not in str(caught.value)
    assert f"'{tmp_path}/a program.py'"[:60] in caught.value.holder
    assert (port, "ports.ml_app") == (caught.value.port, caught.value.setting)


def test_a_wildcard_address_is_taken_by_who_listens_on_one_of_them(tmp_path):
    with listening(tmp_path) as (port, pid), pytest.raises(PortTaken, match=f"pid {pid} "):
        check_port("0.0.0.0", port, "ports.ml_app")


def test_a_port_is_free_as_soon_as_its_holder_is_gone(tmp_path):
    with listening(tmp_path) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=10):
        pass

    check_port("127.0.0.1", port, "ports.ml_app")
    assert find_holder(port) is None


def test_looking_leaves_a_port_free(tmp_path):
    with listening(tmp_path) as (port, _):
        pass
    check_port("127.0.0.1", port, "ports.ml_app")

    with socket.create_server(("127.0.0.1", port)) as server:
        assert port == server.getsockname()[1]


def test_any_free_port_can_always_be_had(tmp_path):
    check_port("127.0.0.1", 0, "ports.ml_app")
    assert find_holder(0) is None


def test_a_connection_to_a_port_is_no_holder_of_its_own_port(tmp_path):
    with listening(tmp_path) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        assert find_holder(connection.getsockname()[1]) is None


def test_an_address_that_is_not_ours_is_nobodys_fault(tmp_path):
    with (
        listening(tmp_path) as (port, _),
        pytest.raises(PortTaken, match="by nobody, but it cannot be bound"),
    ):
        check_port("192.0.2.1", port, "ports.ml_app")


def test_a_name_that_is_no_address_is_said():
    with pytest.raises(PortTaken, match="nobody, but it cannot be bound"):
        check_port("no-such-host.invalid", 5001, "ports.ml_app")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host, expected):
    assert expected == is_loopback(host)
