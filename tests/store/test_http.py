"""HTTP(S) by a real server: redirects, certificates, ranges, patience."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckptkit.errors import IntegrityError, NetworkError
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import (
    Answer,
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
