"""HTTP(S) by a real server: redirects, certificates, ranges, patience."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import certifi
import pytest
import requests

from ckptkit.base.errors import IntegrityError, MissingDependencyError, NetworkError, UsageError
from ckptkit.base.net import CA_VARIABLES
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes
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
        (PATH, "in a circle"),
        ("file:///etc/passwd", "not followed"),
        ("ftp://a.org/x", "not followed"),
        ("http://user:secret@127.0.0.1/x", "not followed"),
        ("http://[::1", "no URL"),
        ("", "without saying where"),
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
    with pytest.raises(NetworkError, match="not to be trusted"):
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
        with pytest.raises(NetworkError, match="not to be trusted by the certificates of REQUESTS_CA_BUNDLE"):
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
