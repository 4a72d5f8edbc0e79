"""HTTP(S) by a real server: redirects, certificates, ranges, patience."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import certifi
import pytest
import requests

from ckptkit.base.errors import CkptkitError, IntegrityError, MissingDependencyError, NetworkError, UsageError
from ckptkit.base.net import (
    CA_VARIABLES,
    TOKEN_HOSTS,
    Credentials,
    Policy,
    SourceError,
    Throttle,
    checked_redirect,
    is_loopback,
)
from ckptkit.models.images.gathering import download_picture
from ckptkit.store import transfer
from ckptkit.store.expected import GitHub, NoDigestError
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, final_files, random_bytes
from tests.support.http_server import (
    Answer,
    Fault,
    FaultServer,
    Request,
    chunked,
    cut,
    goog_hash,
    header,
    redirect,
    status,
)

BODY = random_bytes(300_000)
OTHER = random_bytes(300_000, seed=2)
PATH = "/x/model.pth"


def test_plain_download_sends_who_asks_and_wants_no_coding(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    fetched = store.fetch(entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY))))
    assert fetched.path == fetched.artefact == store.home.path / "artefacts" / "test-entry" / "model.pth"
    assert not fetched.from_cache
    assert_only(store, BODY)
    request = server.requests[0]
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"].startswith("ckptkit/")
    assert fetched.record.sha256 == hashlib.sha256(BODY).hexdigest()
    assert fetched.record.server_hashes["md5"] == hashlib.md5(BODY).hexdigest()
    assert (fetched.record.size, fetched.record.generation) == (300_000, "1665000000000001")
    assert store.slept == []


@pytest.mark.parametrize(
    ("said", "waited"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),  # the test's clock stands at 22:13:20
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("soon", 1.0),
    ],
)
def test_retry_after_is_obeyed(
    server: FaultServer, store: Store, assert_only: AssertOnly, said: str, waited: float
) -> None:
    server.fail(PATH, status(429, ("Retry-After", said)))
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert sum(store.slept) == waited


def test_a_server_that_wants_hours_of_patience_is_given_up(server: FaultServer, store: Store) -> None:
    server.fail(PATH, status(429, ("Retry-After", "7200")))
    with pytest.raises(NetworkError, match="come back in 7200 s"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.slept == [] and store.files == []


def test_nobody_listens(store: Store) -> None:
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1:9/m\.pth: connection failed"):
        store.fetch(entry_of("http://127.0.0.1:9/m.pth"))
    assert store.files == []


def test_redirects_are_followed_and_say_where_they_lead(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.serve("/real", BODY)
    digest = hashlib.sha256(BODY).hexdigest()
    server.fail(PATH, redirect("/hop", 301))
    server.fail("/hop", redirect(server.url("/real"), 307, ("X-Linked-Etag", f'"{digest}"')))
    fetched = store.fetch(entry_of(server.url(PATH)))
    assert_only(store, BODY)
    assert fetched.artefact.name == "model.pth"
    assert fetched.record.server_hashes == {"sha256": digest}


def test_a_redirects_promise_is_kept_to(server: FaultServer, store: Store) -> None:
    server.serve("/real", OTHER)
    server.fail(PATH, redirect("/real", 302, ("X-Linked-Etag", f'"{hashlib.sha256(BODY).hexdigest()}"')))
    with pytest.raises(IntegrityError, match="x-linked-etag"):
        store.fetch(entry_of(server.url(PATH)))
    assert store.files == [] and store.leftovers() == []


@pytest.mark.parametrize(
    ("location", "said"),
    [
        (PATH, "redirect loop"),
        ("file:///etc/passwd", "not followed"),
        ("ftp://a.org/x", "not followed"),
        ("http://user:secret@127.0.0.1/x", "not followed"),
        ("http://[::1", "not a URL"),
        ("", "without a location to redirect to"),
    ],
)
def test_bad_redirects_are_not_followed(server: FaultServer, store: Store, location: str, said: str) -> None:
    server.fail(PATH, *[redirect(location)] * 40)
    with pytest.raises(NetworkError, match=said) as caught:
        store.fetch(entry_of(server.url(PATH)))
    assert "secret" not in str(caught.value)
    assert len(server.requests) <= 11
    assert store.files == []


@pytest.fixture
def https_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """A server with a certificate made for this test; CKPTKIT trusts it only where a test says so."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    pem = tmp_path / "server.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext"
    made = subprocess.run(
        [
            *command.split(),
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            str(pem),
            "-out",
            str(tmp_path / "c.pem"),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("this openssl makes no such certificate")
    with pem.open("ab") as stream:
        stream.write((tmp_path / "c.pem").read_bytes())
    with FaultServer(certificate=pem) as running:
        yield running


def test_an_untrusted_certificate_is_refused_at_once(https_server: FaultServer, store: Store) -> None:
    with pytest.raises(NetworkError, match="not trusted"):
        store.fetch(entry_of(https_server.serve(PATH, BODY)))
    assert https_server.requests == [] and store.slept == [] and store.files == []


@pytest.fixture
def trusted_server(https_server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """Give back the server, its certificate trusted as a user would."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "c.pem"))
    return https_server


def test_https_never_leads_to_http(
    trusted_server: FaultServer, server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    trusted_server.fail(PATH, redirect(server.serve("/plain", BODY)))
    with pytest.raises(NetworkError, match="from https to http"):
        store.fetch(entry_of(trusted_server.serve(PATH, BODY)))
    assert server.requests == [] and store.files == []
    store.fetch(entry_of(trusted_server.url(PATH)))  # without the redirect it works
    assert_only(store, BODY)


def test_credentials_of_one_host_do_not_go_to_another(
    server: FaultServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer() as elsewhere:
        elsewhere.serve("/m.pth", BODY)
        server.fail(PATH, redirect(f"http://localhost:{elsewhere.port}/m.pth"))
        fetched = store.fetch(entry_of(server.url(PATH).replace("//", "//me:secret@")))
        sent = elsewhere.requests[0].headers
    assert "authorization" in server.requests[0].headers
    assert "authorization" not in sent and "cookie" not in sent
    assert "secret" not in fetched.record.used_url


def test_the_body_of_a_redirect_is_not_read(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    def huge(_request: Request, _answer: Answer) -> Answer:
        return Answer(302, (("Location", "/real"), ("Content-Length", str(10**15))), b"x" * 100, stall=True)

    server.serve("/real", BODY)
    server.fail(PATH, huge)
    store.fetch(entry_of(server.url(PATH)))
    assert_only(store, BODY)
    assert store.slept == []


def test_chunked_bodies(server: FaultServer, store: Store, assert_only: AssertOnly) -> None:
    server.fail(PATH, chunked(ends=False), chunked(ends=True))
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-299999/300000",
        "bytes 100001-299999/300000",
        "bytes 50000-249999/300000",
        "bytes 100000-299999/299999",
        "bytes 100000-",
        "x",
    ],
)
def test_a_part_that_is_not_the_one_asked_for_means_beginning_again(
    server: FaultServer, store: Store, assert_only: AssertOnly, content_range: str
) -> None:
    server.fail(PATH, cut(100_000), header("Content-Range", content_range))
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, 100_000, None]


def test_a_server_that_always_sends_another_part_is_given_up(server: FaultServer, store: Store) -> None:
    def wrong(_request: Request, answer: Answer) -> Answer:
        return replace(answer, status=206).with_header("Content-Range", "bytes 5-9/10")

    server.fail(PATH, *[wrong] * 50)
    with pytest.raises(NetworkError, match=r"beginning again \(4 times\)"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert len(server.requests) == 4 and store.files == []


@pytest.mark.parametrize("code", [400, 401, 403])
def test_a_signed_address_that_expires_half_way_is_asked_for_anew(
    server: FaultServer, store: Store, assert_only: AssertOnly, code: int
) -> None:
    server.serve("/signed", BODY)
    server.fail(PATH, *[redirect(f"/signed?signature={number}") for number in range(4)])
    server.fail("/signed", cut(100_000), status(code), cut(50_000))
    store.fetch(entry_of(server.url(PATH)))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, 100_000, 100_000, 150_000]
    assert [request.target for request in server.requests if request.path == "/signed"] == [
        f"/signed?signature={number}" for number in range(4)
    ]
    assert any(f"expired ({code} " in note and "100,000 bytes kept" in note for note in store.notes)
    assert "signature" not in str(store.notes)


def test_addresses_that_expire_for_ever_are_given_up(server: FaultServer, store: Store) -> None:
    server.serve("/signed", BODY)
    server.fail(PATH, *[redirect("/signed")] * 50)
    server.fail("/signed", cut(100_000), *[status(403)] * 50)
    with pytest.raises(NetworkError, match="expired"):
        store.fetch(entry_of(server.url(PATH)))
    assert len(server.requests) <= 2 * (1 + 4) and store.files == []


def test_a_refusal_that_is_no_expiry_is_final(server: FaultServer, store: Store) -> None:
    server.fail(PATH, cut(100_000), status(403))  # from the published URL itself
    with pytest.raises(NetworkError, match="403 Forbidden"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert len(server.requests) == 2
    server.fail("/b", redirect("/signed"))
    server.fail("/signed", status(403))  # from the first byte on: never valid
    with pytest.raises(NetworkError, match="403 Forbidden"):
        store.fetch(entry_of(server.url("/b")))
    assert len(server.requests) == 4 and store.files == []


@pytest.mark.parametrize("rest", [b"", b"x", b"two lines\n"])
def test_a_proxy_of_the_environment_is_used_for_other_hosts_only(
    server: FaultServer, store: Store, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    proxy = server  # asked for a whole URL, as proxies are
    proxy.serve("http://published.example/m.pth", BODY + rest)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy.base)
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    fetched = store.fetch(entry_of("http://published.example/m.pth"))
    assert fetched.artefact.read_bytes() == BODY + rest
    assert [request.target for request in proxy.requests] == ["http://published.example/m.pth"]


PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]


@pytest.fixture
def proxy_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that sets one variable of a proxy, and no other."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize("value", ["http://127.0.0.1:1", "http://[::1", ":::", "socks5://127.0.0.1:1"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "http_proxy"])
def test_no_proxy_is_asked_for_this_machine(
    store: Store, server: FaultServer, proxy_of: Callable[[str, str], None], variable: str, value: str
) -> None:
    proxy_of(variable, value)
    assert store.fetch(entry_of(server.serve(PATH, BODY))).artefact.read_bytes() == BODY


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "socks4a"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "https_proxy"])
def test_a_socks_proxy_needs_a_package(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    proxy_of: Callable[[str, str], None],
    scheme: str,
    variable: str,
) -> None:
    def without_pysocks(*_: object, **__: object) -> None:  # what requests has in its place without PySocks
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", without_pysocks)
    proxy_of(variable, f"{scheme}://me:secret@127.0.0.1:9")
    with pytest.raises(MissingDependencyError) as caught:
        store.fetch(entry_of("https://192.0.2.1/m.pth"))
    said = f"the proxy {scheme}://127.0.0.1:9 of {variable} needs pysocks; pip install pysocks"
    assert str(caught.value) == said
    assert store.slept == []


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("foo://127.0.0.1:9", "the proxy foo://127.0.0.1:9 of HTTPS_PROXY cannot be used: .*foo"),
        ("http://me:secret@127.0.0.1:9", "connection failed through the proxy http://127.0.0.1:9 of HTTPS_P"),
    ],
)
def test_a_proxys_fault_is_not_the_addresss(
    store: Store, proxy_of: Callable[[str, str], None], proxy: str, said: str
) -> None:
    proxy_of("HTTPS_PROXY", proxy)
    with pytest.raises(NetworkError, match=said) as caught:
        store.fetch(entry_of("https://192.0.2.1/m.pth"))
    assert "secret" not in str(caught.value)


class TestCertificates:
    @pytest.fixture(autouse=True)
    def _none_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CA_VARIABLES:
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize("variable", CA_VARIABLES)
    def test_each_variable_is_honoured(
        self,
        https_server: FaultServer,
        store: Store,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
    ) -> None:
        known = tmp_path / "c.pem"
        if variable == "SSL_CERT_DIR":  # OpenSSL finds a certificate there by a digest of whom it is for
            command = ["openssl", "x509", "-noout", "-hash", "-in", str(known)]
            digest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            folder = tmp_path / "certificates"
            folder.mkdir()
            shutil.copy(known, folder / f"{digest}.0")
            known = Path(f"{tmp_path / 'not there'}{os.pathsep}{folder}")
        monkeypatch.setenv(variable, str(known))
        store.fetch(entry_of(https_server.serve(PATH, BODY)))
        assert [path.read_bytes() for path in store.files] == [BODY]

    def test_the_first_counts(
        self, https_server: FaultServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in CA_VARIABLES[1:]:
            monkeypatch.setenv(name, str(tmp_path / "not there"))
        monkeypatch.setenv(CA_VARIABLES[0], str(tmp_path / "c.pem"))
        store.fetch(entry_of(https_server.serve(PATH, BODY)))
        monkeypatch.setenv(CA_VARIABLES[0], certifi.where())
        monkeypatch.setenv(CA_VARIABLES[1], str(tmp_path / "c.pem"))
        with pytest.raises(NetworkError, match="not trusted by the certificates of REQUESTS_CA_BUNDLE"):
            store.fetch(entry_of(https_server.url(PATH)), force=True)

    @pytest.mark.parametrize("variable", CA_VARIABLES)
    def test_one_that_is_missing_is_named(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
        with pytest.raises(UsageError, match=f"^{variable} names {tmp_path}/ca.pem, which does not exist"):
            store.fetch(entry_of("https://127.0.0.1:9/m.pth"))

    def test_one_that_is_no_certificate_is_named(
        self, https_server: FaultServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "ca.pem").write_text("no certificate")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with pytest.raises(NetworkError, match=r"the certificates of SSL_CERT_FILE: .*certificate"):
            store.fetch(entry_of(https_server.serve(PATH, BODY)))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/modèles/m.pth".encode(), "/mod%C3%A8les/m.pth"),
        (
            "/Åre\u2028/m.pth".encode(),
            "/%C3%85re%E2%80%A8/m.pth",
        ),  # line ends to some parsers
        ("/mod%C3%A8les/m.pth?q=é#f".encode(), "/mod%C3%A8les/m.pth?q=%C3%A9"),
        ("/modèles/m.pth".encode("latin-1"), "/mod%E8les/m.pth"),
        (b"/two words/100%/m.pth", "/two%20words/100%25/m.pth"),
        ("modèle.pth".encode(), "/x/mod%C3%A8le.pth"),
    ],
)
def test_a_location_is_followed_as_the_server_meant_it(
    server: FaultServer, store: Store, assert_only: AssertOnly, location: bytes, target: str
) -> None:
    server.fail(PATH, redirect(location.decode("latin-1")))
    server.serve(target.partition("?")[0], BODY)
    store.fetch(entry_of(server.url(PATH)))
    assert_only(store, BODY)
    assert server.requests[-1].target == target


class TestCookies:
    @staticmethod
    def wanting(wanted: str, *cookies: str) -> Fault:
        """Send a visitor without a cookie here again, with it."""

        def fault(request: Request, answer: Answer) -> Answer:
            if wanted in request.headers.get("cookie", ""):
                return answer
            return Answer(
                302, (("Location", request.target), *(("Set-Cookie", cookie) for cookie in cookies))
            )

        return fault

    def test_one_that_a_redirect_sets_is_sent_on_the_way_and_kept_nowhere(
        self, server: FaultServer, store: Store, assert_only: AssertOnly
    ) -> None:
        entry = entry_of(server.serve(PATH, BODY))
        for force in (False, True):
            server.fail(
                PATH, *[self.wanting("seen=yes", "other=1; Path=/other", "seen=yes; Path=/; HttpOnly")] * 2
            )
            store.fetch(entry, force=force)
            assert_only(store, BODY)
        assert [request.headers.get("cookie") for request in server.requests] == [None, "seen=yes"] * 2

    @pytest.mark.parametrize("attributes", ["", "; Domain=localhost", "; Path=/; Domain=.0.0.1"])
    def test_none_goes_to_another_host(self, server: FaultServer, store: Store, attributes: str) -> None:
        with FaultServer() as elsewhere:
            elsewhere.serve("/m.pth", BODY)
            there = f"http://localhost:{elsewhere.port}/m.pth"
            server.fail(PATH, redirect(there, 302, ("Set-Cookie", f"secret=1{attributes}")))
            store.fetch(entry_of(server.url(PATH)))
            assert "cookie" not in elsewhere.requests[0].headers


@pytest.mark.parametrize("value", ["gzip, chunked", "xchunked", "chunked;q=1", "chunked, chunked"])
def test_a_framing_that_is_not_understood_is_refused(server: FaultServer, store: Store, value: str) -> None:
    server.fail(
        PATH, lambda _r, answer: replace(answer, headers=(*answer.headers, ("Transfer-Encoding", value)))
    )
    with pytest.raises(NetworkError, match=f"framed as '{value}'"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.files == []


# -- Servers that never end, that stand still, or that frame what they send in ways of their own -------------


WIRE_BODY = random_bytes(50_000)
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

Sender = Callable[[socket.socket], None]


class Server:
    """Answers each connection by one function that sends whatever it likes."""

    def __init__(self, send: Sender, *, silent: bool = False) -> None:
        self._send = send
        self._silent = silent
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.asked = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.asked += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            try:
                if not self._silent:
                    connection.recv(65536)
                self._send(connection)
            except OSError:
                pass

    def url(self, path: str = "/model.pth") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Sender], Server]]:
    made: list[Server] = []

    def start(send: Sender, **options: bool) -> Server:
        made.append(Server(send, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


def policy(store: Store, **options: object) -> Policy:
    bounds = {"head_seconds": 0.6, "slow_seconds": 0.6, "slowest": 2000, "retries": 2, **options}
    return replace(store.policy, **bounds)


def once(answer: bytes) -> Sender:
    return lambda connection: connection.sendall(answer)


def for_ever(first: bytes, again: bytes, *, every: float = 0.0) -> Sender:
    """Send something, and then something else without end."""

    def send(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in itertools.count():
            connection.sendall(again)
            if every:
                time.sleep(every)

    return send


def dripping(text: bytes, *, first: bytes = b"") -> Sender:
    """One byte every twentieth of a second."""

    def send(connection: socket.socket) -> None:
        connection.sendall(first)
        for byte in itertools.chain(text, itertools.repeat(120)):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return send


def wait(_connection: socket.socket) -> None:
    time.sleep(15)


@dataclass(frozen=True)
class Case:
    name: str
    send: Sender
    says: str
    asked: int = 1
    """How many requests are made at most."""


ENDLESS = [
    Case("100 Continue", for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "interim answers"),
    Case("102 Processing", for_ever(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100), "interim answers"),
    Case("103 with headers", for_ever(b"", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"), "interim answers"),
    Case("headers of an interim answer", for_ever(b"HTTP/1.1 100 C\r\n", b"X: y\r\n" * 100), "headers", 3),
    Case("headers", for_ever(OK, b"X: y\r\n" * 100), "headers", 3),
    Case("headers of 60 kB", for_ever(OK, b"X: " + b"y" * 60_000 + b"\r\n"), "bytes of headers"),
    Case("one header", for_ever(OK + b"X: ", b"y" * 1000), "header|line", 3),
    Case("a status line", for_ever(b"HTTP/1.1 200 ", b"O" * 1000), "status|line", 3),
    Case("trailers", for_ever(CHUNKED + b"5\r\nHELLO\r\n0\r\n", b"X: y\r\n" * 100), "bytes of trailers"),
    Case("one trailer", for_ever(CHUNKED + b"0\r\nX: ", b"y" * 1000), "bytes of trailers"),
    Case("a chunk's extension", for_ever(CHUNKED + b"5;x=", b"y" * 1000), "not framed", 3),
    Case("extensions", for_ever(CHUNKED, (b"1;" + b"y" * 4000 + b"\r\nx\r\n") * 10), "a few bytes each"),
    Case("chunks of a byte", for_ever(CHUNKED, b"1\r\nx\r\n" * 1000), "a few bytes each"),
    Case("leading zeros of a chunk's size", for_ever(CHUNKED, b"0" * 1000), "not framed", 3),
    Case("zeros in chunks", for_ever(CHUNKED, b"10000\r\n" + bytes(65536) + b"\r\n"), "not the file"),
    Case("a zip in chunks", for_ever(CHUNKED + b"4\r\nPK\x03\x04\r\n", b"10000\r\n" + bytes(65536) + b"\r\n"),
         "without announcing how many"),
]  # fmt: skip

SLOW = [
    Case("says nothing", wait, "no complete answer within 0.6 s", 2),
    Case("the status line", dripping(b"HTTP/1.1 200 OK"), "no complete answer within 0.6 s", 2),
    Case("a header", dripping(b"X: ", first=OK), "no complete answer within 0.6 s", 2),
    Case("interim answers", dripping(b"HTTP/1.1 100 C\r\n\r\n" * 9), "no complete answer within 0.6 s", 2),
    Case("the body", dripping(b"", first=OK + b"Content-Length: 99\r\n\r\n"), "less than 2,000 a second", 2),
    Case("the size of a chunk", dripping(b"0" * 100, first=CHUNKED), "less than 2,000 a second", 2),
    Case("chunks", dripping(b"1\r\nx\r\n" * 100, first=CHUNKED), "less than 2,000 a second", 2),
    Case("trailers", dripping(b"X: y\r\n" * 100, first=CHUNKED + b"0\r\n"), "less than 2,000 a second", 2),
    Case("a redirect to itself", lambda c: (time.sleep(0.4), c.sendall(  # type: ignore[func-returns-value]
        b"HTTP/1.1 302 F\r\nLocation: /model.pth\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))[0],
        "redirects", 12),
]  # fmt: skip

FRAMED = [
    Case(name, once(OK + head + b"\r\n\r\n5\r\nHELLO\r\n0\r\n\r\n"), says, asked)
    for name, head, says, asked in [
        ("identity, chunked", b"Transfer-Encoding: identity, chunked", "framed as", 1),
        ("two lines", b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", "framed as", 1),
        ("chunked twice", b"Transfer-Encoding: chunked, chunked", "framed as", 1),
        ("chunked in two lines", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "framed as", 1),
        ("a parameter", b"Transfer-Encoding: chunked;q=1", "framed as", 1),
        ("a longer word", b"Transfer-Encoding: xchunked", "framed as", 1),
        ("in quotes", b'Transfer-Encoding: "chunked"', "framed as", 1),
        ("gzip", b"Transfer-Encoding: gzip", "framed as", 1),
        ("a comma", b"Transfer-Encoding: chunked,", "framed as", 1),
        ("folded", b"Transfer-Encoding:\r\n chunked", "several lines", 1),
        ("folded to two", b"Transfer-Encoding: identity,\r\n\tchunked", "several lines", 1),
        ("a blank before a colon", b"Content-Length: 10\r\nTransfer-Encoding : chunked", "cannot be", 1),
        ("a vertical tab", b"Transfer-Encoding: \x0bchunked", "framed as", 1),
        ("with a length", b"Content-Length: 15\r\nTransfer-Encoding: gzip, chunked", "framed as", 1),
        ("empty", b"Content-Length: 15\r\nTransfer-Encoding: ,", "framed as", 1),
    ]
] + [
    Case("HTTP/1.0", once(CHUNKED.replace(b"1.1", b"1.0") + b"5\r\nHELLO\r\n0\r\n\r\n"), "1.0"),
    Case("a size below zero", once(CHUNKED + b"-5\r\nHELLO\r\n0\r\n\r\n"), "not framed", 3),
    Case("a size with a sign", once(CHUNKED + b"+5\r\nHELLO\r\n0\r\n\r\n"), "not framed", 3),
    Case("a size with 0x", once(CHUNKED + b"0x5\r\nHELLO\r\n0\r\n\r\n"), "not framed", 3),
    Case("a size with an underscore", once(CHUNKED + b"0_5\r\nHELLO\r\n0\r\n\r\n"), "not framed", 3),
    Case("a size of 17 digits", once(CHUNKED + b"00000000000000005\r\nHELLO\r\n0\r\n\r\n"), "not framed", 3),
    Case("a chunk longer than its size", once(CHUNKED + b"5\r\nHELLOX\r\n0\r\n\r\n"), "not framed", 3),
    Case("no end", once(CHUNKED + b"5\r\nHELLO\r\n"), "ended early", 3),
    Case("no end of the last chunk", once(CHUNKED + b"5\r\nHELLO\r\n0\r\n"), "ended early", 3),
    Case("a body of 204", once(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nHELLO"), "204"),
    Case("a body of 304", once(b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\nHELLO"), "304"),
    Case("a part nobody asked for",
         once(b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nHELLO"),
         "a part", 3),
    Case("packed as br", once(OK + b"Content-Length: 5\r\nContent-Encoding: br\r\n\r\nHELLO"), "compresses"),
    Case("101", once(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nHELLO"), "101"),
    Case("HTTP/0.9", once(b"HELLO"), "connection failed|broke", 3),
]  # fmt: skip


@pytest.mark.parametrize("case", ENDLESS + SLOW + FRAMED, ids=lambda case: case.name)
def test_a_server_that_does_not_serve(
    case: Case,
    serve: Callable[[Sender], Server],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends soon, in one line, with nothing under a final name."""
    monkeypatch.setattr(transfer, "_LOOK_EVERY", 1 << 20)
    server = serve(case.send)
    began = time.monotonic()
    with pytest.raises(NetworkError, match=case.says) as caught:
        store.fetch(entry_of(server.url()), policy=policy(store, most_unknown=3 << 20))
    assert time.monotonic() - began < 8 and server.asked <= case.asked
    assert ("try again later" in str(caught.value)) == (case in SLOW or case.says == "ended early")
    assert str(caught.value).isprintable() and final_files(store.home.path) == []


UNDERSTOOD = {
    "chunked": CHUNKED + b"c350\r\n" + WIRE_BODY + b"\r\n0\r\n\r\n",
    "in capitals, with extensions and a trailer": OK
    + b"Transfer-Encoding: CHUNKED\r\n\r\nC350;name=value\r\n" + WIRE_BODY + b"\r\n000\r\nX: y\r\n\r\n",
    "tabs and blanks": OK + b"transfer-encoding:\t chunked \t\r\n\r\n"
    + b"".join(
        b"%x  \r\n%s\r\n" % (len(one), one)
        for one in (WIRE_BODY[:7], WIRE_BODY[7:30_000], WIRE_BODY[30_000:])
    )
    + b"0\r\n\r\n",
    "with a length, which does not count": OK
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nc350\n" + WIRE_BODY + b"\n0\n\n",
    "behind interim answers": b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 C\r\n\r\n"
    + OK + b"Content-Length: 50000\r\n\r\n" + WIRE_BODY,
    "longer than promised": b"HTTP/1.0 200 OK\r\nContent-Length: 50000\r\n\r\n" + WIRE_BODY + b"more",
    "identity": OK + b"Transfer-Encoding: identity\r\nContent-Length: 50000\r\n\r\n" + WIRE_BODY,
}  # fmt: skip


@pytest.mark.parametrize("answer", UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_framings_that_are_understood(answer: bytes, serve: Callable[[Sender], Server], store: Store) -> None:
    fetched = store.fetch(entry_of(serve(once(answer)).url()))
    assert fetched.artefact.read_bytes() == WIRE_BODY


def test_chunks_that_break_off_are_resumed_where_they_broke(
    serve: Callable[[Sender], Server], store: Store
) -> None:
    """Nothing that came before the fault is lost."""
    head = b'ETag: "v1"\r\nX-Goog-Hash: md5=x\r\n'
    seen: list[bytes] = []

    def send(connection: socket.socket) -> None:
        seen.append(b"")
        if len(seen) == 1:
            connection.sendall(OK + head + b"Content-Length: 50000\r\n\r\n" + WIRE_BODY[:20_000])
        else:
            connection.sendall(
                b"HTTP/1.1 206 P\r\nContent-Range: bytes 20000-49999/50000\r\n" + head
                + b"Transfer-Encoding: chunked\r\n\r\n7530\r\n" + WIRE_BODY[20_000:] + b"\r\n0\r\n\r\n"
            )  # fmt: skip

    fetched = store.fetch(entry_of(serve(send).url()))
    assert fetched.artefact.read_bytes() == WIRE_BODY and len(seen) == 2


def test_a_slow_but_honest_link_is_waited_for(serve: Callable[[Sender], Server], store: Store) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 50000\r\n\r\n")
        for start in range(0, len(WIRE_BODY), 2500):
            connection.sendall(WIRE_BODY[start : start + 2500])
            time.sleep(0.1)

    server = serve(send)
    fetched = store.fetch(entry_of(server.url()), policy=policy(store))
    assert fetched.artefact.read_bytes() == WIRE_BODY and server.asked == 1


def test_what_came_slowly_is_kept_for_a_later_run(serve: Callable[[Sender], Server], store: Store) -> None:
    head = OK + b'ETag: "v1"\r\nContent-Length: 50000\r\n\r\n'
    server = serve(dripping(b"", first=head + WIRE_BODY[:4096]))
    with pytest.raises(NetworkError):
        store.fetch(entry_of(server.url()), policy=policy(store, slowest=1 << 20))
    assert [path.stat().st_size > 4000 for path in store.home.path.rglob("*.part")] == [True]


@pytest.mark.parametrize(("seconds", "asked"), [(299, 2), (1, 3), (10**8, 1)])
def test_waits_that_a_server_asks_for_are_bounded_in_all(
    seconds: int, asked: int, serve: Callable[[Sender], Server], store: Store
) -> None:
    answer = b"HTTP/1.1 503 Busy\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n" % seconds
    server = serve(once(answer))
    with pytest.raises(NetworkError, match="503"):
        store.fetch(entry_of(server.url()), policy=policy(store))
    assert sum(store.slept) <= 300 and server.asked == asked


def test_waits_between_single_bytes_are_bounded_in_all(
    serve: Callable[[Sender], Server], store: Store
) -> None:
    """Progress does not begin the count of the waits anew."""
    at = itertools.count()

    def send(connection: socket.socket) -> None:
        number = next(at)
        if number % 2:
            connection.sendall(b"HTTP/1.1 429 No\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n")
            return
        first = number // 2
        status = OK if not first else b"HTTP/1.1 206 P\r\nContent-Range: bytes %d-49999/50000\r\n" % first
        length = 50_000 - first
        connection.sendall(status + b'ETag: "v1"\r\nContent-Length: %d\r\n\r\nx' % length)

    with pytest.raises(NetworkError, match="asks to wait"):
        store.fetch(entry_of(serve(send).url()), policy=policy(store))
    assert 240 <= sum(store.slept) <= 320


@pytest.mark.parametrize("send", [wait, dripping(b"\x16\x03\x03")], ids=["nothing", "a byte at a time"])
def test_a_tls_handshake_that_never_ends(send: Sender, serve: Callable[..., Server], store: Store) -> None:
    server = serve(send, silent=True)
    url = server.url().replace("http://", "https://")
    began = time.monotonic()
    with pytest.raises(NetworkError):
        store.fetch(entry_of(url), policy=policy(store, connect_timeout=0.3, read_timeout=0.3, retries=1))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "send",
    [
        wait,
        dripping(b"HTTP/1.1 200 OK"),
        for_ever(OK, b"X: y\r\n" * 1000),
        for_ever(b"", b"HTTP/1.1 100 C\r\n\r\n" * 100),
    ],
    ids=["nothing", "a byte at a time", "headers", "interim answers"],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_never_ends(
    send: Sender,
    scheme: str,
    serve: Callable[[Sender], Server],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(send)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{scheme}_proxy", f"http://me:SECRET@127.0.0.1:{server.port}")
    began = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        store.fetch(entry_of(f"{scheme}://example.invalid/model.pth"), policy=policy(store, retries=1))
    assert time.monotonic() - began < 8 and "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "case", [ENDLESS[0], ENDLESS[8], ENDLESS[12], SLOW[0], SLOW[4]], ids=lambda case: case.name
)
def test_the_same_bounds_for_pictures_and_digests(
    case: Case, serve: Callable[[Sender], Server], store: Store
) -> None:
    server, bounds = serve(case.send), policy(store)
    began = time.monotonic()
    with pytest.raises(CkptkitError):
        download_picture(server.url("/cat.jpg"), name="cat.jpg", policy=bounds)
    github = GitHub(server.url(""), server.url("/api"))
    asset = github.asset(server.url("/o/r/releases/download/v1/m.pth"))
    assert asset is not None
    with pytest.raises(NoDigestError):
        github.expected(asset, bounds)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": "quota exceeded"}',
        b'\xef\xbb\xbf{"error": 1}',
        b"[1, 2]",
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        b"\xef\xbb\xbf<!DOCTYPE html><html></html>",
        b"\xff\xfe" + "<html></html>".encode("utf-16-le"),
        b"<Error>",
        b"  \n <html>",
        b"Not Found",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        b"\n" * 1000,
        b"\0" * 1000,
        b"\x1f\x8b" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_body_that_is_no_container_gets_no_name(
    body: bytes, mirrored: bool, serve: Callable[[Sender], Server], store: Store, tmp_path: Path
) -> None:
    from ckptkit.store.sources import parse_mirrors
    from ckptkit.workspace import fits

    url = serve(once(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)).url()
    published = "https://a.org/model.pth" if mirrored else url
    mirrors = parse_mirrors([f"https://a.org/model.pth={url}"], "") if mirrored else ()
    with pytest.raises(CkptkitError) as caught:
        store.fetch(entry_of(published), fits=fits, mirrors=mirrors)
    assert final_files(store.home.path) == [] and str(caught.value).isprintable()


# -- Who gets which credentials: their own host alone, over https or this machine, and nobody by a redirect --


CREDENTIALS_BODY = random_bytes(30_000)
TABLE = {"127.0.0.1": "FIRST_TOKEN", "localhost": "SECOND_TOKEN"}
SECRETS = {"FIRST_TOKEN": "first-secret", "SECOND_TOKEN": "second-secret"}


def basic(login: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()


@pytest.fixture
def login_file(tmp_path: Path) -> Path:
    path = tmp_path / "logins"
    path.write_text(
        "machine a.org login me password a-secret\n"
        "machine 127.0.0.1 login you password 1-secret\n"
        "machine github.com login us password g-secret\n"
        "default login anyone password d-secret\n"
    )
    return path


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://a.org/x", basic("me", "a-secret")),
        ("https://A.org:8443/x", basic("me", "a-secret")),
        ("http://a.org/x", None),
        ("https://b.a.org/x", None),
        ("https://a.org.evil.net/x", None),
        ("https://nobody.net/x", None),  # the default of .netrc is for every host, so for none
        ("http://127.0.0.1:8000/x", basic("you", "1-secret")),
        ("https://github.com/o/r/releases/download/v1/m", "Bearer gh"),  # the token before .netrc
        ("https://api.github.com/repos/o/r", "Bearer gh"),
        ("https://objects.githubusercontent.com/m", None),
        ("https://gist.github.com/m", None),
        ("http://github.com/o", None),
        ("https://huggingface.co/a/b/resolve/main/m", "Bearer hf"),
        ("http://huggingface.co/a", None),
        ("https://cdn-lfs.huggingface.co/a", None),
        ("https://huggingface.co.evil.net/a", None),
        ("https://huggingface.co@evil.net/a", basic("huggingface.co", "")),  # the host is evil.net
        ("https://u:p%40ss@a.org/x", basic("u", "p@ss")),
    ],
)
def test_who_gets_what(login_file: Path, url: str, sent: str | None) -> None:
    environment = {"GITHUB_TOKEN": "gh", "HF_TOKEN": "hf\n", "NETRC": str(login_file)}
    assert Credentials(environment).authorization(url) == sent


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "ä", "x" * 5000])
def test_a_token_that_is_none_is_not_sent(token: str) -> None:
    assert (
        Credentials({"HF_TOKEN": token, "NETRC": "/dev/null"}).authorization("https://huggingface.co/")
        is None
    )


@pytest.mark.parametrize("name", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_token_of_hf_auth_login(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places that huggingface_hub documents, each before those behind it; and no other host gets it."""
    places = {
        "HF_TOKEN_PATH": (tmp_path / "mine", tmp_path / "mine"),
        "HF_HOME": (tmp_path / "hf", tmp_path / "hf/token"),
        "XDG_CACHE_HOME": (tmp_path / "cache", tmp_path / "cache/huggingface/token"),
        "HOME": (tmp_path / "home", tmp_path / "home/.cache/huggingface/token"),
    }
    names = list(places)
    given = {one: str(places[one][0]) for one in names[names.index(name) :]}
    for one, (_, file) in places.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"hf_{one}\n")
    monkeypatch.setenv("HOME", given["HOME"])
    monkeypatch.setenv("USERPROFILE", given["HOME"])
    credentials = Credentials({**given, "NETRC": "/dev/null"})
    url = "https://huggingface.co/a/b/resolve/main/m"
    assert credentials.found(url) == (f"Bearer hf_{name}", f"the token in {credentials._hub_token_file}")
    for other in ("http://huggingface.co/a", "https://cdn-lfs.hf.co/a", "https://github.com/a"):
        assert credentials.authorization(other) is None
    assert Credentials({**given, "HF_TOKEN": "hf_own"}).authorization(url) == "Bearer hf_own"
    silent = {**given, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN": "hf_own", "NETRC": "/dev/null"}
    assert Credentials(silent).authorization(url) is None
    places[name][1].write_bytes(b"two words\xff")
    assert Credentials({**given, "NETRC": "/dev/null"}).authorization(url) is None


@pytest.mark.parametrize("text", [None, "machine", "machine a.org login", "nonsense here", "\x00\xff"])
def test_a_netrc_that_cannot_be_read_says_nothing(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "logins"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    assert Credentials({"NETRC": str(path)}).authorization("https://a.org/") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_netrc_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"machine a.org login me password x\n" * 100_000)
    for path in (tmp_path / "pipe", tmp_path / "large", Path("/dev/zero"), Path("/dev/full"), tmp_path):
        began = time.process_time()
        assert Credentials({"NETRC": str(path)}).authorization("https://a.org/") is None
        assert time.process_time() - began < 1
    reader, writer = os.pipe()  # as of a shell's <(pass show netrc)
    os.write(writer, b"machine a.org login me password x\n")
    os.close(writer)
    assert Credentials({"NETRC": f"/dev/fd/{reader}"}).authorization("https://a.org/") == basic("me", "x")
    os.close(reader)


def test_the_file_in_the_home_folder(login_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = login_file.parent / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine a.org login me password h-secret")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    assert Credentials().authorization("https://a.org/") == basic("me", "h-secret")


def test_the_representation_keeps_secrets() -> None:
    assert "secret" not in repr(Credentials({"HF_TOKEN": "secret"}))
    assert set(TOKEN_HOSTS) == {"github.com", "api.github.com", "huggingface.co"}


def sent_to(server: FaultServer) -> list[str | None]:
    return [request.headers.get("authorization") for request in server.requests]


@pytest.fixture
def fetch(store: Store) -> Callable[..., None]:
    def run(url: str, **environment: str) -> None:
        credentials = Credentials({**SECRETS, "NETRC": "/dev/null", **environment}, TABLE)
        fetched = store.fetch(entry_of(url), policy=replace(store.policy, credentials=credentials))
        text = json.dumps([fetched.record.to_json(), store.notes, store.warnings, repr(fetched)])
        assert "secret" not in text

    return run


def test_each_hop_of_a_redirect_gets_its_own(
    server: FaultServer, store: Store, assert_only: AssertOnly, fetch: Callable[..., None]
) -> None:
    with FaultServer() as second:
        second.serve("/m.pth", CREDENTIALS_BODY)
        server.fail(PATH, redirect("/again"))
        server.fail("/again", redirect(f"http://localhost:{second.port}/m.pth"))
        fetch(server.url(PATH))
        assert sent_to(server) == ["Bearer first-secret"] * 2
        assert sent_to(second) == ["Bearer second-secret"]
    assert_only(store, CREDENTIALS_BODY)


def test_a_host_without_any_gets_none_by_a_redirect(
    server: FaultServer, store: Store, assert_only: AssertOnly, fetch: Callable[..., None]
) -> None:
    try:
        stranger = FaultServer(host="127.0.0.2")
    except OSError:
        pytest.skip("this system has one loopback address only")
    with stranger:
        server.fail(PATH, redirect(stranger.serve("/m.pth", CREDENTIALS_BODY)))
        fetch(server.url(PATH))
        assert (sent_to(server), sent_to(stranger)) == (["Bearer first-secret"], [None])
    assert_only(store, CREDENTIALS_BODY)


def test_netrc_on_the_wire(
    server: FaultServer, store: Store, assert_only: AssertOnly, login_file: Path, fetch: Callable[..., None]
) -> None:
    with FaultServer() as second:
        second.serve("/m.pth", CREDENTIALS_BODY)
        server.fail(PATH, redirect(f"http://localhost:{second.port}/m.pth"))
        fetch(server.url(PATH), FIRST_TOKEN="", SECOND_TOKEN="", NETRC=str(login_file))
        assert (sent_to(server), sent_to(second)) == ([basic("you", "1-secret")], [None])
    assert_only(store, CREDENTIALS_BODY)


def test_requests_own_netrc_is_not_asked(
    server: FaultServer,
    store: Store,
    assert_only: AssertOnly,
    login_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login_file.write_text("default login anyone password d-secret\n")
    monkeypatch.setenv("NETRC", str(login_file))
    store.fetch(entry_of(server.serve(PATH, CREDENTIALS_BODY)))
    assert_only(store, CREDENTIALS_BODY)
    assert sent_to(server) == [None]


def public(code: int) -> Fault:
    """A public file, on a server that looks at whatever credentials it is sent."""
    return lambda request, answer: Answer(code) if "authorization" in request.headers else answer


def stale_credentials(kind: str, server: FaultServer, login_file: Path) -> tuple[str, dict[str, str], str]:
    """URL, environment, and what the message calls them."""
    url = server.serve(PATH, CREDENTIALS_BODY)
    if kind == "token":
        return url, {"FIRST_TOKEN": "first-secret"}, "the token in FIRST_TOKEN"
    if kind == "netrc":
        return url, {"FIRST_TOKEN": "", "NETRC": str(login_file)}, f"the login in {login_file}"
    return url.replace("//", "//me:url-secret@"), {}, "the login in the URL"


@pytest.mark.parametrize(("code", "connections"), [(401, 1), (403, 1), (401, 4)])
@pytest.mark.parametrize("kind", ["token", "netrc", "url"])
def test_refused_credentials_are_dropped_once_and_named(
    server: FaultServer, store: Store, login_file: Path, *, kind: str, code: int, connections: int
) -> None:
    url, environment, named = stale_credentials(kind, server, login_file)
    server.fail(PATH, *[public(code)] * 99)
    credentials = Credentials({**SECRETS, "NETRC": "/dev/null", **environment}, TABLE)
    policy = replace(
        store.policy,
        credentials=credentials,
        connections=connections,
        split_from=1000,
        segment=len(CREDENTIALS_BODY) // 3,
    )
    lesser = {"url": server.serve("/lesser.pth", b"lesser"), "bn_statistics": False}
    fetched = store.fetch(entry_of({"url": url, "bn_statistics": True}, lesser), policy=policy)
    assert fetched.artefact.read_bytes() == CREDENTIALS_BODY
    said = [note for note in store.notes if named in note]
    phrase = {401: "401 Unauthorized", 403: "403 Forbidden"}[code]
    assert said == [f"{phrase} from 127.0.0.1:{server.port}: {named} was refused; trying without it"]
    assert "secret" not in str(store.notes)
    sent = sent_to(server)
    assert sent[0] is not None and sent[1:] == [None] * len(sent[1:])


@pytest.mark.parametrize("kind", ["token", "netrc", "url"])
def test_credentials_that_do_not_help_are_named_in_the_error(
    server: FaultServer, store: Store, login_file: Path, kind: str
) -> None:
    url, environment, named = stale_credentials(kind, server, login_file)
    server.fail(PATH, *[status(401)] * 9)
    policy = replace(
        store.policy, credentials=Credentials({**SECRETS, "NETRC": "/dev/null", **environment}, TABLE)
    )
    lesser = {"url": server.serve("/lesser.pth", CREDENTIALS_BODY), "bn_statistics": False}
    with pytest.raises(NetworkError) as caught:
        store.fetch(entry_of({"url": url, "bn_statistics": True}, lesser), policy=policy)
    assert f"401 Unauthorized: {named} was refused, and so was the request without it" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [request.path for request in server.requests] == [PATH] * 2 and store.slept == []


def test_credentials_refused_behind_a_redirect_are_dropped_for_that_host_alone(
    server: FaultServer, store: Store, assert_only: AssertOnly, fetch: Callable[..., None]
) -> None:
    with FaultServer() as second:
        second.serve("/m.pth", CREDENTIALS_BODY)
        second.fail("/m.pth", public(401))
        server.fail(PATH, redirect(f"http://localhost:{second.port}/m.pth"))
        fetch(server.url(PATH))
        assert sent_to(server) == ["Bearer first-secret"]
        assert sent_to(second) == ["Bearer second-secret", None]
    assert_only(store, CREDENTIALS_BODY)
    (note,) = store.notes
    assert note.startswith(f"401 Unauthorized from localhost:{second.port}: the token in SECOND_TOKEN")


@pytest.mark.parametrize("fault", [status(403), status(500), redirect("ftp://a.org/x"), redirect("http://[")])
def test_no_error_tells_a_secret(
    server: FaultServer, store: Store, fault, fetch: Callable[..., None]
) -> None:
    server.fail(PATH, *[fault] * 20)
    with pytest.raises(NetworkError) as caught:
        fetch(server.url(PATH).replace("//", "//me:url-secret@"))
    assert "secret" not in str(caught.value) + str(store.notes) + str(store.warnings)
    assert sent_to(server)[0] == basic("me", "url-secret")


@pytest.mark.parametrize(
    ("origin", "location", "target"),
    [
        ("https://a.org/x", "https://b.org/y", "https://b.org/y"),
        ("http://a.org/x", "https://b.org/y", "https://b.org/y"),
        ("http://127.0.0.1:80/x", "/y", "http://127.0.0.1:80/y"),
        ("http://localhost/x", "http://127.0.0.2/y", "http://127.0.0.2/y"),
        ("http://localhost/x", "http://[::1]:8/y", "http://[::1]:8/y"),
        ("https://a.org/x", "http://b.org/y", None),
        ("https://a.org/x", "http://127.0.0.1/y", None),
        ("http://a.org/x", "http://b.org/y", None),
        ("http://a.org/x", "/y", None),
        ("http://a.org/x", "http://127.0.0.1:8080/y", None),  # no stranger's server reaches into this machine
        ("http://localhost/x", "http://b.org/y", None),
        ("https://a.org/x", "file:///etc/passwd", None),
        ("https://a.org/x", "https://u@b.org/y", None),
    ],
)
def test_where_redirects_may_lead(origin: str, location: str, target: str | None) -> None:
    if target is not None:
        assert checked_redirect(origin, location) == target
    else:
        with pytest.raises(SourceError, match="not followed"):
            checked_redirect(origin, location)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://LOCALHOST/", True),
        ("http://[::1]/", True),
        ("http://127.9.9.9/", True),
        ("http://10.0.0.1/", False),
    ],
)
def test_is_loopback(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


# -- The bandwidth limit, by a clock that the test moves -----------------------------------------------------


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_rate_is_kept_in_the_long_run() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock=lambda: clock.now, sleep=clock.sleep)
    for _ in range(100):
        throttle.take(125)
    assert clock.now - 100.0 == pytest.approx((12_500 - 250) / 1000)  # the bucket was full at first


def test_what_was_not_used_is_not_saved_up() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock=lambda: clock.now, sleep=clock.sleep)
    clock.now += 3600
    throttle.take(1250)
    assert clock.now == pytest.approx(3701.0)


def test_a_clock_that_goes_back_does_no_harm() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock=lambda: clock.now, sleep=clock.sleep)
    clock.now -= 50
    throttle.take(1250)
    assert clock.now == pytest.approx(51.0)


def test_threads_wait_behind_each_other() -> None:
    waits: list[float] = []
    throttle = Throttle(1000, clock=lambda: 0.0, sleep=waits.append)
    threads = [threading.Thread(target=throttle.take, args=(250,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("rate", "piece"), [(10, 1024), (80_000, 10_000), (1e9, 1 << 18)])
def test_pieces_are_small_where_the_rate_is(rate: float, piece: int) -> None:
    assert Throttle(rate).piece == piece


@pytest.mark.parametrize("connections", [1, 3])
def test_a_download_takes_as_long_as_the_rate_says(
    server: FaultServer, store: Store, assert_only: AssertOnly, connections: int
) -> None:
    from dataclasses import replace

    clock, lock = Clock(), threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            slept.append(seconds)

    slept: list[float] = []
    # Time stands still, so that the last waits for all bytes but those of the first quarter second.
    throttle = Throttle(100_000, clock=lambda: clock.now, sleep=sleep)
    changes = {"throttle": throttle, "connections": connections, "split_from": 100_000, "segment": 50_000}
    store.fetch(entry_of(server.serve("/m.pth", BODY)), policy=replace(store.policy, **changes))
    assert_only(store, BODY)
    assert max(slept) == pytest.approx((300_000 - 25_000) / 100_000)
