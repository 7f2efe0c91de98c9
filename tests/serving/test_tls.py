"""The shipped service with TLS."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from certificates import write_certificate
from projects import NUMBER, ROUTE
from started import Service, gleaner, serving, wait_for

from gleaner.client import Client
from gleaner.errors import BadCertificate
from gleaner.serving.tls import Tls

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tls"
    folder.mkdir()
    write_certificate(folder)
    return folder


@pytest.fixture
def service(project: Path, folder: Path) -> Iterator[Service]:
    files = {"CERTIFICATE": folder / "certificate.pem", "KEY": folder / "key.pem"}
    with serving(project, **{f"GLEANER_SERVING__TLS_{name}": str(path) for name, path in files.items()}) as service:
        yield service


def connect(service: Service, certificate: Path, **more: ssl.TLSVersion) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificate))
    for name, value in more.items():
        setattr(context, name, value)
    raw = socket.create_connection(("127.0.0.1", service.port), 30)
    try:
        return context.wrap_socket(raw, server_hostname="127.0.0.1")
    except BaseException:
        raw.close()
        raise


def listens(service: Service) -> bool:
    try:
        socket.create_connection(("127.0.0.1", service.port), 30).close()
    except ConnectionRefusedError:
        return False
    return True


def test_predictions_come_over_tls_and_plain_requests_get_none(service, folder, monkeypatch):
    url = service.url.replace("http://", "https://")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{service.url}/livez")
    with connect(service, folder / "certificate.pem") as client:
        assert client.version() == "TLSv1.3"

    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "certificate.pem"))
    with Client(url) as client:
        assert NUMBER == client.predict(ROUTE)[0]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_versions_of_tls_before_1_2_are_refused(service, folder):
    with pytest.raises(ssl.SSLError):
        connect(service, folder / "certificate.pem", maximum_version=ssl.TLSVersion.TLSv1_1)


def test_a_client_that_does_not_know_the_certificate_refuses_it(service, tmp_path):
    other, _ = write_certificate(tmp_path)

    with pytest.raises(ssl.SSLCertVerificationError):
        connect(service, other)


def test_gleaner_check_verifies_the_certificate(service, project, folder):
    with (project / "gleaner.toml").open("a") as file:
        file.write(f'[serving]\nport = {service.port}\ntls_certificate = "{folder}/certificate.pem"\n')
        file.write(f'tls_key = "{folder}/key.pem"\n')

    stranger = gleaner("check", "--data", json.dumps(ROUTE), "--host", "127.0.0.1", folder=project)
    known = {"SSL_CERT_FILE": str(folder / "certificate.pem")}
    done = gleaner("check", "--data", json.dumps(ROUTE), "--host", "127.0.0.1", folder=project, **known)

    assert 1 == stranger.returncode
    assert "certificate" in stranger.stderr
    assert 0 == done.returncode, done.stderr
    assert str(NUMBER) in done.stderr + done.stdout


def test_a_new_certificate_serves_new_connections_and_a_damaged_one_changes_nothing(service, folder, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    certificate, _ = write_certificate(new)
    with connect(service, folder / "certificate.pem") as old:
        for name in ("key.pem", "certificate.pem"):
            shutil.copy(new / name, folder / name)

        def renewed() -> bool:
            try:
                connect(service, certificate).close()
            except ssl.SSLError:
                return False
            return True

        assert wait_for(renewed)
        old.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert old.recv(4_096).startswith(b"HTTP/1.1 200")

    (folder / "certificate.pem").write_text("damaged")
    assert wait_for(lambda: "certificate not read" in service.log.read_text())
    connect(service, certificate).close()


def test_a_stop_finishes_a_request_over_tls(service, folder):
    row = json.dumps(ROUTE).encode()
    with connect(service, folder / "certificate.pem") as client:
        client.sendall(HEAD % len(row) + row[:10])
        with connect(service, folder / "certificate.pem") as other:  # by its answer, the first bytes are read
            other.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in other.recv(4_096)
        os.kill(service.process.pid, signal.SIGTERM)
        assert wait_for(lambda: not listens(service))
        client.sendall(row[10:])
        response = client.recv(4_096)

    assert b"200 OK" in response
    assert b"Connection: close" in response
    assert 0 == service.process.wait(30)


def test_a_refused_body_gets_its_response_over_tls(service, folder):
    with connect(service, folder / "certificate.pem") as client:
        client.sendall(HEAD % 50_000_000 + b"x" * 100_000)
        assert b" 413 " in client.recv(4_096)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "key.pem").unlink(), "key.pem: cannot be read: No such file"),
        (lambda folder: (folder / "key.pem").write_text("x"), "wanted PEM files"),
        (lambda folder: write_certificate(folder / "other"), "KEY_VALUES_MISMATCH"),
    ],
)
def test_files_that_cannot_be_used_are_refused_at_the_start(folder, spoil, reason):
    (folder / "other").mkdir()
    spoil(folder)
    other = folder / "other" / "key.pem"

    with pytest.raises(BadCertificate, match=reason):
        Tls(folder / "certificate.pem", other if other.exists() else folder / "key.pem")


def test_one_of_the_two_settings_alone_is_refused(project, folder):
    done = gleaner("serve", folder=project, GLEANER_SERVING__TLS_KEY=str(folder / "key.pem"))

    assert 1 == done.returncode
    assert "tls_certificate and tls_key need each other" in done.stderr
