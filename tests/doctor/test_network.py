"""Hosts that answer, refuse, hang, have a bad certificate, or lie behind a proxy: with real sockets."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptkit.base.net import Policy
from ckptkit.doctor.network import GITHUB_API, Host, ask, examine_hosts, hosts_of
from ckptkit.registry import load_registry
from ckptkit.store.sources import parse_mirrors
from tests.support.entries import entry_of
from tests.support.http_server import FaultServer, header, raw, redirect, stall, status

QUICK = Policy(connect_timeout=5.0, read_timeout=5.0)
IMPATIENT = Policy(connect_timeout=5.0, read_timeout=0.4)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def silent_host() -> Iterator[str]:
    """A host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_hosts_of_the_registry():
    hosts = {host.origin: host for host in hosts_of(load_registry())}
    assert {"https://storage.googleapis.com", "https://github.com", GITHUB_API} <= set(hosts)
    files = sum(host.uses.get("file", 0) for host in hosts.values())
    assert files == sum(not s.manual for e in load_registry().values() for s in e.sources)
    assert "file by hand" in hosts["https://pan.baidu.com"].uses
    assert "digests of files" in hosts[GITHUB_API].purpose


def test_mirrors_change_who_is_asked():
    entry = entry_of(
        "https://me:pw@github.com/o/r/releases/download/v1/m.pth", log_url="https://github.com/x.csv"
    )
    rules = parse_mirrors(
        ["https://github.com=file:///srv", "https://me:pw@github.com=http://127.0.0.1:8000"], ""
    )
    assert [(host.origin, host.uses) for host in hosts_of({"a": entry}, rules)] == [
        ("http://127.0.0.1:8000", {"file": 1}),
        ("file://", {"log": 1}),
    ]
    plain = {host.origin for host in hosts_of({"a": entry})}
    assert plain == {"https://github.com", GITHUB_API}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (None, "reachable"),  # 404, for the server has no front page
        (status(403), "reachable"),
        (status(503), "reachable, answers 503 Service Unavailable"),
        (status(500), "reachable, answers 500 Internal Server Error"),
        (redirect("http://example.org/"), "reachable (redirects from http to http"),
        (header("Content-Encoding", "br"), "reachable"),
    ],
)
def test_any_answer_will_do(server: FaultServer, fault, said: str):
    if fault:
        server.fail("/", fault)
    answer = ask(server.base, QUICK)
    assert answer.reached and answer.said.startswith(said)


def test_no_secret_is_sent(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    assert ask(server.base).reached
    assert "authorization" not in server.requests[0].headers


def test_nobody_there():
    answer = ask(f"http://127.0.0.1:{closed_port()}", QUICK)
    assert (answer.reached, answer.said) == (False, "refused: nothing listens there")


def test_a_host_that_says_nothing():
    with silent_host() as origin:
        answer = ask(origin, IMPATIENT)
    assert (answer.reached, answer.said) == (False, "timeout: no answer")


def test_a_host_that_hangs_up(server: FaultServer):
    server.fail("/", raw(b""))
    answer = ask(server.base, QUICK)
    assert not answer.reached and answer.said.startswith("connection failed: ")


def test_a_host_that_speaks_another_language(server: FaultServer):
    server.fail("/", raw(b"220 mail.example.org ESMTP\r\n"))
    answer = ask(server.base, QUICK)
    assert not answer.reached and answer.said.startswith("connection failed: ")


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch):
    answer = ask("http://host.invalid", QUICK)
    assert (answer.reached, answer.said) == (False, "its name is not known here")


@pytest.fixture
def https_server(tmp_path: Path) -> Iterator[FaultServer]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    pem, certificate = tmp_path / "server.pem", tmp_path / "c.pem"
    made = subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=127.0.0.1",
            ],
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(pem), "-out", str(certificate)),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("this openssl makes no such certificate")
    pem.write_bytes(pem.read_bytes() + certificate.read_bytes())
    with FaultServer(certificate=pem) as running:
        yield running


def test_certificates(https_server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answer = ask(https_server.base, QUICK)
    assert not answer.reached
    assert answer.said.startswith("TLS failure: ") and "certificate verify failed" in answer.said
    assert "REQUESTS_CA_BUNDLE" in answer.advice
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "c.pem"))
    assert ask(https_server.base, QUICK).said == "reachable"


def test_certificates_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    answer = ask("https://127.0.0.1:9")
    assert not answer.reached
    assert answer.said == f"SSL_CERT_FILE names {tmp_path / 'ca.pem'}, which does not exist"


def test_https_asked_of_one_that_has_only_http():
    with proxy(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (address, _):
        answer = ask(f"https://{address}", QUICK)
    assert not answer.reached and answer.said.startswith("TLS failure: ")


@contextlib.contextmanager
def proxy(reply: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that answers every question so."""
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(4096))
                    connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("code", ["407 Proxy Authentication Required", "403 Forbidden"])
def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch, scheme: str, code: str):
    reply = f"HTTP/1.1 {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    with proxy(reply) as (address, asked):
        monkeypatch.setenv(f"{scheme}_proxy", f"http://me:hunter2@{address}")
        answer = ask(f"{scheme}://files.example.org", QUICK)
    assert len(asked) == 1 and b"files.example.org" in asked[0]
    assert "hunter2" not in answer.said
    if (scheme, code[:3]) == ("http", "403"):  # nothing tells it from an answer of the host itself
        assert answer.reached
    else:
        assert not answer.reached
        assert answer.said.startswith("blocked by the proxy: ") and code[:3] in answer.said


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")
    answer = ask("https://files.example.org", QUICK)
    assert not answer.reached and answer.said.startswith("blocked by the proxy: ")
    assert "HTTPS_PROXY" in answer.advice


def test_all_hosts_at_once_and_one_that_trickles(server: FaultServer):
    server.fail("/", raw(b"HTTP/1.1 200 OK\r\nX: ", stall=True))
    slow = Policy(connect_timeout=30, read_timeout=30)
    with silent_host() as silent, FaultServer() as other:
        hosts = [Host(origin, {"file": 1}) for origin in (silent, server.base, other.base)]
        steps: list[int] = []
        began = time.monotonic()
        found = examine_hosts(hosts, policy=slow, seconds=2.0, advance=steps.append)
        assert time.monotonic() - began < 15
    assert [one.verdict for one in found] == ["note", "note", "ok"]
    assert found[0].said == "timeout: no answer within 2 s (1 file)"
    assert steps == [1]


def test_problems_only_where_no_files_can_be_had(server: FaultServer):
    away = [Host(f"http://127.0.0.1:{closed_port()}", {"file": 3}), Host("http://host.invalid", {"log": 2})]
    assert [one.verdict for one in examine_hosts(away, policy=QUICK)] == ["problem", "note"]
    there = Host(server.base, {"file": 1, "log": 2})
    found = examine_hosts([*away, there], policy=QUICK)
    assert [one.verdict for one in found] == ["note", "note", "ok"]
    assert found[2].said == "reachable (1 file, 2 logs)"


def test_a_host_without_an_answer_in_the_body(server: FaultServer):
    server.serve("/", b"x" * 1000)
    server.fail("/", stall(10))
    assert ask(server.base, QUICK).said == "reachable"


def test_what_is_not_asked():
    found = examine_hosts([Host("file://", {"file": 2}), Host("s3://bucket", {"file": 1})])
    assert [(one.verdict, one.said) for one in found] == [
        ("ok", "on this machine (2 files)"),
        ("ok", "an object store, not asked here (1 file)"),
    ]
