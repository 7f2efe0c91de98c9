"""Ports and addresses, with real listening sockets of real processes."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gleaner.errors import CannotListen, PortTaken, Refused
from gleaner.machine.ports import check_host, check_port, find_holder, is_loopback, resolve, show_address

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


def test_a_service_of_the_stack_is_stopped_by_its_own_command():
    holder = "pid 7 (python -m gleaner --config /x/gleaner.toml serve)"

    assert "; stop it (with `gleaner down`, if `gleaner up` runs it), or set ports.ml_app in" in str(
        PortTaken("127.0.0.1", 5001, "ports.ml_app", holder)
    )


def test_the_wildcard_address_is_taken_if_one_address_is(tmp_path):
    with listening(tmp_path) as (port, pid), pytest.raises(PortTaken, match=f"pid {pid} "):
        check_port("0.0.0.0", port, "ports.ml_app")


def test_a_strangers_password_is_not_shown_with_its_command(tmp_path):
    (tmp_path / "x.py").write_text(LISTEN)
    command = [sys.executable, "x.py", "127.0.0.1", "--token", "s3cret", "db://joe:s3cret@h/"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        holder = find_holder(int(process.stdout.readline()))
        process.stdin.close()

    assert holder == f"pid {process.pid} ({sys.executable} x.py 127.0.0.1 --token '***' db://h/)"


def test_a_port_is_free_as_soon_as_its_holder_is_gone(tmp_path):
    with listening(tmp_path) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=10):
        pass

    check_port("127.0.0.1", port, "ports.ml_app")
    assert find_holder(port) is None


def test_a_check_leaves_the_port_free(tmp_path):
    with listening(tmp_path) as (port, _):
        pass
    check_port("127.0.0.1", port, "ports.ml_app")

    with socket.create_server(("127.0.0.1", port)) as server:
        assert port == server.getsockname()[1]


def test_port_0_is_always_free():
    check_port("127.0.0.1", 0, "ports.ml_app")
    assert find_holder(0) is None


def test_a_client_connection_does_not_hold_its_port(tmp_path):
    with listening(tmp_path) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        assert find_holder(connection.getsockname()[1]) is None


def test_an_address_of_another_machine_names_the_setting_of_the_address(tmp_path):
    with listening(tmp_path) as (port, _), pytest.raises(CannotListen) as caught:
        check_port("192.0.2.1", port, "ports.ml_app")

    reason = "Cannot assign requested address; set serving.host to an address of this machine"
    assert f"cannot listen on 192.0.2.1:{port}: {reason}" == str(caught.value)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", ""])
def test_a_name_without_an_address_is_refused(host):
    for check in (lambda: check_port(host, 5001, "ports.ml_app"), lambda: check_host(host, insecure=True)):
        with pytest.raises(CannotListen, match=r"^cannot listen on \S+: .+; set serving\.host to an address of this"):
            check()


def test_a_port_that_only_root_may_use_names_the_setting_of_the_port(monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(CannotListen) as caught:
        check_port("127.0.0.1", 80, "ports.ml_app")

    fix = "set ports.ml_app (or GLEANER_PORTS__ML_APP) to a port from 1024 on"
    assert f"cannot listen on 127.0.0.1:80: Permission denied; {fix}" == str(caught.value)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "0.0.0.0"), ("localhost", "127.0.0.1")],
)
def test_a_name_resolves_to_its_address_and_an_address_to_itself(host, address):
    assert address == resolve(host)


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1:80"), ("localhost", "localhost:80"), ("::1", "[::1]:80")]
)
def test_an_address_of_ipv6_is_shown_in_brackets(host, shown):
    assert shown == show_address(host, 80)


def test_a_name_that_leads_beyond_loopback_is_refused_unless_insecure(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    check_host("localhost", insecure=True)
    with pytest.raises(Refused, match="other machines can reach localhost"):
        check_host("localhost", insecure=False)


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
def test_only_loopback_addresses_and_localhost_are_loopback(host, expected):
    assert expected == is_loopback(host)
