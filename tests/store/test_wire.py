"""Servers that never end, that stand still, or that frame what they send in ways of their own."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ckptkit.base.errors import CkptkitError, NetworkError
from ckptkit.base.net import Policy
from ckptkit.models.images.gathering import download_picture
from ckptkit.store import transfer
from ckptkit.store.expected import GitHub, NoDigestError
from tests.store.conftest import Store
from tests.support.entries import entry_of, final_files, random_bytes

BODY = random_bytes(50_000)
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
         "without having said how many"),
]  # fmt: skip

SLOW = [
    Case("says nothing", wait, "no whole answer within 0.6 s", 2),
    Case("the status line", dripping(b"HTTP/1.1 200 OK"), "no whole answer within 0.6 s", 2),
    Case("a header", dripping(b"X: ", first=OK), "no whole answer within 0.6 s", 2),
    Case("interim answers", dripping(b"HTTP/1.1 100 C\r\n\r\n" * 9), "no whole answer within 0.6 s", 2),
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
    Case("packed as br", once(OK + b"Content-Length: 5\r\nContent-Encoding: br\r\n\r\nHELLO"), "packs"),
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
    "chunked": CHUNKED + b"c350\r\n" + BODY + b"\r\n0\r\n\r\n",
    "in capitals, with extensions and a trailer": OK
    + b"Transfer-Encoding: CHUNKED\r\n\r\nC350;name=value\r\n" + BODY + b"\r\n000\r\nX: y\r\n\r\n",
    "tabs and blanks": OK + b"transfer-encoding:\t chunked \t\r\n\r\n"
    + b"".join(b"%x  \r\n%s\r\n" % (len(one), one) for one in (BODY[:7], BODY[7:30_000], BODY[30_000:]))
    + b"0\r\n\r\n",
    "with a length, which does not count": OK
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nc350\n" + BODY + b"\n0\n\n",
    "behind interim answers": b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 C\r\n\r\n"
    + OK + b"Content-Length: 50000\r\n\r\n" + BODY,
    "longer than promised": b"HTTP/1.0 200 OK\r\nContent-Length: 50000\r\n\r\n" + BODY + b"more",
    "identity": OK + b"Transfer-Encoding: identity\r\nContent-Length: 50000\r\n\r\n" + BODY,
}  # fmt: skip


@pytest.mark.parametrize("answer", UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_framings_that_are_understood(answer: bytes, serve: Callable[[Sender], Server], store: Store) -> None:
    fetched = store.fetch(entry_of(serve(once(answer)).url()))
    assert fetched.artefact.read_bytes() == BODY


def test_chunks_that_break_off_are_resumed_where_they_broke(
    serve: Callable[[Sender], Server], store: Store
) -> None:
    """Nothing that came before the fault is lost."""
    head = b'ETag: "v1"\r\nX-Goog-Hash: md5=x\r\n'
    seen: list[bytes] = []

    def send(connection: socket.socket) -> None:
        seen.append(b"")
        if len(seen) == 1:
            connection.sendall(OK + head + b"Content-Length: 50000\r\n\r\n" + BODY[:20_000])
        else:
            connection.sendall(
                b"HTTP/1.1 206 P\r\nContent-Range: bytes 20000-49999/50000\r\n" + head
                + b"Transfer-Encoding: chunked\r\n\r\n7530\r\n" + BODY[20_000:] + b"\r\n0\r\n\r\n"
            )  # fmt: skip

    fetched = store.fetch(entry_of(serve(send).url()))
    assert fetched.artefact.read_bytes() == BODY and len(seen) == 2


def test_a_slow_but_honest_link_is_waited_for(serve: Callable[[Sender], Server], store: Store) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 50000\r\n\r\n")
        for start in range(0, len(BODY), 2500):
            connection.sendall(BODY[start : start + 2500])
            time.sleep(0.1)

    server = serve(send)
    fetched = store.fetch(entry_of(server.url()), policy=policy(store))
    assert fetched.artefact.read_bytes() == BODY and server.asked == 1


def test_what_came_slowly_is_kept_for_a_later_run(serve: Callable[[Sender], Server], store: Store) -> None:
    head = OK + b'ETag: "v1"\r\nContent-Length: 50000\r\n\r\n'
    server = serve(dripping(b"", first=head + BODY[:4096]))
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
