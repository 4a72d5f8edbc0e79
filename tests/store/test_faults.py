"""The table of faults: what a server or a line does, and what must come of it.

Every row, whatever it ends in, must leave no wrong byte under a final name, no record of what is not there,
and nothing temporary but a sound part; and a fetch without faults after it must give the right file. What is
done to the process or the disk is in `test_faults_processes`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import CkptkitError, IntegrityError, NetworkError, StorageError
from tests.store.conftest import Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import (
    Answer,
    Fault,
    FaultServer,
    Request,
    chunked,
    cut,
    goog_hash,
    gzipped,
    header,
    md5_of,
    raw,
    redirect,
    reset,
    slowly,
    stall,
    status,
    whole,
    without_length,
)

SIZE = 200_000
BODY = random_bytes(SIZE)
OTHER = random_bytes(SIZE, seed=2)
PATH = "/x/model.pth"
HASHED = goog_hash(BODY)
SHA256 = hashlib.sha256(BODY).hexdigest()
NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


@dataclass(frozen=True)
class Row:
    """One fault.

    ``faults`` hit the first requests for the file, ``also`` those for other paths (which have the same file).
    Then the fetch either gives ``body`` or fails with ``fails``; ``says`` is in the error, or else among the
    notes. ``asked`` is how many requests there were, or the first byte that each asked for.
    """

    name: str
    faults: Sequence[Fault] = ()
    asked: int | Sequence[int | None] = 1
    fails: type[CkptkitError] | None = None
    says: str = ""
    body: bytes = BODY
    slept: Sequence[float] | None = None
    etag: str | None = '"v1"'
    headers: tuple[tuple[str, str], ...] = ()
    ranges: bool = True
    pinned: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[str] = (PATH,)
    also: Mapping[str, Sequence[Fault]] = field(default_factory=dict)
    patience: float = 2.0
    clock: Sequence[float] = (NOW,)


def digest_header(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def flipped(_request: Request, answer: Answer) -> Answer:
    body = bytearray(answer.body)
    body[len(body) // 2] ^= 4
    return replace(answer, body=bytes(body))


def changed(_request: Request, answer: Answer) -> Answer:
    """Answer a range request with the rest of a file that has changed meanwhile."""
    return replace(answer, body=OTHER[SIZE - len(answer.body) :]).with_header("ETag", '"v2"')


def part_unasked(_request: Request, answer: Answer) -> Answer:
    span = ("Content-Range", f"bytes 0-{SIZE - 1}/{SIZE}")
    return replace(answer, status=206, headers=(*answer.headers, span))


def packed(*, keep: int | None = None, flip: int | None = None) -> Fault:
    """Lay gzip on top; then leave out its end, or damage a byte."""

    def fault(request: Request, answer: Answer) -> Answer:
        answer = gzipped(request, answer)
        body = bytearray(answer.body[:keep])
        if flip is not None:
            body[flip] ^= 0xFF
        return replace(answer, body=bytes(body))

    return fault


def rewritten(*headers: tuple[str, str]) -> Fault:
    """Leave out every header of the good answer in favour of these."""
    return lambda _request, answer: replace(answer, headers=headers)


BOMB = whole(gzip.compress(bytes(80 << 20)), ("Content-Encoding", "gzip"))


def refused(name: str, location: str, says: str, asked: int = 1) -> Row:
    return Row(f"redirect {name}", [redirect(location)] * 20, asked, NetworkError, says)


def wrong_range(name: str, value: str | None) -> Row:
    def fault(_request: Request, answer: Answer) -> Answer:
        return (
            answer.without("Content-Range") if value is None else answer.with_header("Content-Range", value)
        )

    return Row(f"206 with {name}", [cut(100_000), fault], [None, 100_000, None], says="beginning again")


def wrong_hash(name: str, fault: Fault, headers: tuple[tuple[str, str], ...] = ()) -> Row:
    return Row(
        f"wrong {name}", [fault], 1, IntegrityError, r"model\.pth from .* says .*damaged", headers=headers
    )


def ill(name: str, answer: bytes) -> Sequence[Row]:
    return (
        Row(f"{name}, once", [raw(answer)], 2, says="trying again", slept=[1.0]),
        Row(f"{name}, for ever", [raw(answer)] * 9, 4, NetworkError, r"\(4 times\)", slept=[1.0, 2.0, 4.0]),
    )


CUTS = (0, 1, 511, 512, 65_535, 65_536, 65_537, SIZE // 2, SIZE - 1)
LINES = [
    *(Row(f"cut after {n:,} bytes", [cut(n)], [None, n or None]) for n in CUTS),
    *(Row(f"cut after {n:,} bytes, no validator", [cut(n)], [None, None], etag=None) for n in CUTS),
    Row("cut, weak validator", [cut(70_000)], [None, None], etag='W/"v1"'),
    Row("cut, server without ranges", [cut(70_000)], [None, 70_000], ranges=False, says="from the beginning"),
    Row("cut, generation alone", [cut(70_000)], [None, 70_000], etag=None, headers=HASHED),
    Row("cut 9 times, something came each time", [cut(20_000)] * 9, [None, *range(20_000, SIZE, 20_000)]),
    Row(
        "cut for ever, nothing comes", [cut(0)] * 9, 4, NetworkError, "the connection", slept=[1.0, 2.0, 4.0]
    ),
    Row("reset at once", [reset(0)], 2),
    Row("reset after some bytes", [reset(70_000)], 2),
    Row("stall after some bytes", [stall(70_000)], [None, 70_000], says="stalled", patience=0.6),
    Row("stall before the answer", [raw(b"", stall=True)], 2, says="timed out", patience=0.6),
    Row("stall within the headers", [raw(b"HTTP/1.1 200 OK\r\nA: b", stall=True)], 2, patience=0.6),
    Row("slow drip, slower in all than the patience", [slowly(0.15, 40_000)], 1, slept=[], patience=0.6),
    *ill("nothing at all", b""),
    *ill("garbage for a status line", b"\x00\xff\x17 no protocol\r\n\r\n"),
    *ill("a header line of 100 kB", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
    *ill("ten thousand headers", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"),
    *ill("a chunk of no size", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc"),
    Row("chunked, whole", [chunked(ends=True)]),
    Row("chunked, broken", [chunked(ends=False)], [None, None]),
]

STATUSES = [
    *(
        Row(f"{code}, then the file", [status(code)], 2, slept=[1.0])
        for code in (408, 429, 500, 502, 503, 504)
    ),
    Row("500 for ever", [status(500)] * 9, 4, NetworkError, r"500 Internal Server Error \(4 times\)"),
    Row(
        "500 for ever, another source",
        also={"/ill.pth": [status(500)] * 9},
        asked=5,
        sources=["/ill.pth", PATH],
    ),
    Row("429, seconds", [status(429, ("Retry-After", "7"))], 2, slept=[7.0]),
    Row("429, date", [status(429, ("Retry-After", "Tue, 14 Nov 2023 22:13:50 GMT"))], 2, slept=[30.0]),
    Row("429, date gone by", [status(429, ("Retry-After", "Tue, 14 Nov 2023 22:00:00 GMT"))], 2, slept=[]),
    Row(
        "429, hours", [status(429, ("Retry-After", "7200"))], 1, NetworkError, "come back in 7200 s", slept=[]
    ),
    Row("429, absurd", [status(429, ("Retry-After", "999999999"))], 1, NetworkError, "come back", slept=[]),
    Row("429, no number", [status(429, ("Retry-After", "-7 soon"))], 2, slept=[1.0]),
    Row(
        "clock goes back an hour before a date",
        [status(503), status(503, ("Retry-After", "Tue, 14 Nov 2023 22:13:50 GMT"))],
        2,
        NetworkError,
        "come back in 3630 s",
        slept=[1.0],
        clock=[NOW, NOW - 3600],
    ),
    Row(
        "clock goes forth an hour before a date",
        [status(503), status(503, ("Retry-After", "Tue, 14 Nov 2023 22:13:50 GMT"))],
        3,
        slept=[1.0],
        clock=[NOW, NOW + 3600],
    ),
    *(
        Row(
            f"{code}, another source",
            also={"/no.pth": [status(code)]},
            asked=2,
            sources=["/no.pth", PATH],
            slept=[],
        )
        for code in (400, 401, 403, 404, 410, 451)
    ),
    *(
        Row(f"{code}, no other source", [status(code)], 1, NetworkError, rf"model\.pth: {code}", slept=[])
        for code in (401, 403, 404, 410, 204, 304, 418)
    ),
    Row("416 to the rest", [cut(100_000), status(416)], [None, 100_000, None]),
]

REDIRECTS = [
    refused("in a circle", PATH, "redirect loop", 11),
    refused("to file:", "file:///etc/passwd", "not followed"),
    refused("to ftp:", "ftp://a.org/x", "not followed"),
    refused("to data:", "data:,x", "not followed"),
    refused("with a user name", "http://me:secret@127.0.0.1/x", "not followed"),
    refused("to no URL", "http://[::1", "not a URL"),
    refused("to nowhere", "", "without a location to redirect to"),
    Row("redirect, then cut", [redirect("/b")] * 2, [None, None, 70_000, 70_000], also={"/b": [cut(70_000)]}),
    Row(
        "a signed address ends half way, the published one leads to another",
        [redirect("/signed/1"), redirect("/signed/2")],
        [None, None, 70_000, 70_000],
        also={"/signed/1": [cut(70_000)], "/signed/2": []},
    ),
    Row(
        "a signed address expires half way, the published one leads to another",
        [redirect("/signed/1"), redirect("/signed/1"), redirect("/signed/2")],
        [None, None, 70_000, 70_000, 70_000, 70_000],
        says="has expired",
        also={"/signed/1": [cut(70_000), status(403)], "/signed/2": []},
    ),
    Row(
        "a signed address expires half way, the published one leads to no other",
        [redirect("/signed/1")] * 20,
        8,
        NetworkError,
        r"has expired \(403 Forbidden\) \(4 times\)",
        also={"/signed/1": [cut(70_000), *[status(403)] * 20]},
    ),
    Row(
        "a signed address is refused from the start",
        [redirect("/signed/1")],
        2,
        NetworkError,
        r"model\.pth: 403",
        also={"/signed/1": [status(403)]},
        slept=[],
    ),
    Row(
        "X-Linked-Etag of another file",
        [redirect("/b", 302, ("X-Linked-Etag", hashlib.sha256(OTHER).hexdigest()))],
        2,
        IntegrityError,
        "x-linked-etag",
        also={"/b": []},
    ),
]

WRONG = [
    wrong_hash("x-goog-hash crc32c", header("x-goog-hash", "crc32c=AAAAAA==")),
    wrong_hash("x-goog-hash md5", header("x-goog-hash", f"md5={md5_of(OTHER)}")),
    wrong_hash("Content-MD5", header("Content-MD5", md5_of(OTHER))),
    wrong_hash("x-ms-blob-content-md5", header("x-ms-blob-content-md5", md5_of(OTHER))),
    wrong_hash("Repr-Digest", header("Repr-Digest", digest_header(OTHER))),
    wrong_hash("body", whole(OTHER, *HASHED)),
    wrong_hash("bit", flipped, HASHED),
    Row("a checksum that cannot be read promises nothing", [header("x-goog-hash", "md5=!")]),
    Row(
        "wrong pinned sha256",
        asked=1,
        fails=IntegrityError,
        says="the registry says",
        body=OTHER,
        pinned={"sha256": hashlib.sha256(OTHER).hexdigest()},
    ),
    Row(
        "wrong pinned size",
        asked=1,
        fails=IntegrityError,
        says="200,000 .*registry says 7",
        pinned={"size": 7},
    ),
    Row(
        "wrong bytes, another source has the pinned ones",
        also={"/b": [whole(OTHER)]},
        asked=2,
        sources=["/b", PATH],
        pinned={"sha256": SHA256},
    ),
    Row(
        "length too large",
        [header("Content-Length", str(SIZE + 1))] * 9,
        8,
        NetworkError,
        r"not there.*\(4 times\)",
    ),
    Row(
        "length too small, checksum",
        [header("Content-Length", str(SIZE - 1))],
        1,
        IntegrityError,
        "damaged",
        headers=HASHED,
    ),
    Row(
        "length too small, pinned size",
        [header("Content-Length", str(SIZE - 1))],
        1,
        IntegrityError,
        "199,999 .*registry says 200,000",
        pinned={"size": SIZE},
    ),
    Row(
        "length no number", [header("Content-Length", "many")], 1, NetworkError, "neither length nor checksum"
    ),
    Row("no length, no checksum", [without_length], 1, NetworkError, "neither length nor checksum"),
    Row("no length, checksum", [without_length], 1, headers=HASHED),
    Row(
        "no length, checksum, cut",
        [lambda r, a: replace(without_length(r, a), cut=70_000)],
        1,
        IntegrityError,
        "damaged",
        headers=HASHED,
    ),
    Row(
        "no length, more than the pinned size",
        [without_length],
        1,
        IntegrityError,
        "registry says 1,000",
        pinned={"size": 1000},
    ),
    wrong_range("another start", f"bytes 99999-{SIZE - 1}/{SIZE}"),
    wrong_range("the start of the file", f"bytes 0-99999/{SIZE}"),
    wrong_range("another total", "bytes 100000-199999/300000"),
    wrong_range("less than the rest", "bytes 100000-149999/200000"),
    wrong_range("no Content-Range", None),
    wrong_range("a Content-Range of nonsense", "bytes x-y/z"),
    Row(
        "206 with another range for ever",
        [cut(100_000), header("Content-Range", "bytes 5-9/10")] * 9,
        8,
        NetworkError,
        r"another part .*\(4 times\)",
    ),
    Row("206 that nobody asked for", [part_unasked], [None, None], says="not asked for"),
    Row("200 to a range request", [cut(100_000), whole(BODY, ("ETag", '"v1"'))], [None, 100_000]),
    Row(
        "200 to a range request, another file",
        [cut(100_000), whole(OTHER, ("ETag", '"v2"'))],
        [None, 100_000],
        body=OTHER,
    ),
    Row("206 of a file that changed", [cut(100_000), changed], [None, 100_000, None], says="has changed"),
    Row(
        "206 of another file under the same name and validator",
        [cut(100_000), lambda _r, a: replace(a, body=OTHER[100_000:])],
        [None, 100_000, None],
        headers=HASHED,
        says="parts do not fit",
    ),
    Row("HTML page", [whole(b"<!DOCTYPE html><html>Sign in</html>")], 1, NetworkError, "web page"),
    Row("HTML page as the rest", [cut(100_000), whole(b"\n<HTML>quota")], 2, NetworkError, "web page"),
    Row("HTML page, another source", also={"/b": [whole(b"<html>")]}, asked=2, sources=["/b", PATH]),
    Row("XML error", [whole(b"<?xml version='1.0'?><Error/>")], 1, NetworkError, "web page"),
    Row("LFS pointer", [whole(b"version https://git-lfs.github.com/spec/v1\noid")], 1, NetworkError, "LFS"),
    Row("empty body", [whole(b"")], 1, NetworkError, "empty"),
    Row("gzip on top", [gzipped], headers=HASHED),
    Row("gzip on top, damaged", [packed(flip=-1)], 2, says="gzip coding is damaged"),
    Row("gzip on top, ends early", [packed(keep=50_000)], 2, says="gzip coding ends early"),
    Row("gzip on top, not gzip", [header("Content-Encoding", "gzip")], 2, says="gzip coding is damaged"),
    Row("gzip on top, a bomb", [BOMB], 1, NetworkError, "expands more than"),
    Row(
        "gzip on top, a bomb, pinned size",
        [BOMB],
        1,
        IntegrityError,
        "registry says 200,000",
        pinned={"size": SIZE},
    ),
    Row(
        "a coding nobody asked for",
        [header("Content-Encoding", "br")],
        1,
        NetworkError,
        "compresses the file with 'br'",
    ),
    Row("no header but the length", [rewritten(("Content-Length", str(SIZE)))]),
]

TABLE = [*LINES, *STATUSES, *REDIRECTS, *WRONG]


def assert_sound(store: Store) -> None:
    """Nothing under a final name, no record, and what is temporary is the beginning of the file."""
    assert store.files == [] and store.home.record("test-entry") is None
    folder = store.home.artefact_folder("test-entry")
    for name in store.leftovers():
        part = (folder / name).with_name(name.removesuffix(".json"))
        assert name.endswith((".part", ".part.json")) and BODY.startswith(part.read_bytes())


def policy_of(row: Row, store: Store) -> Any:
    times = list(row.clock)
    clock = lambda: times.pop(0) if len(times) > 1 else times[0]  # noqa: E731
    return replace(store.policy, read_timeout=row.patience, clock=clock)


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_fault(
    row: Row, server: FaultServer, store: Store, assert_only: Callable[[Store, bytes], None]
) -> None:
    for path in {PATH, *row.also}:
        server.serve(path, BODY, etag=row.etag, headers=row.headers)
        server.files[path].ranges = row.ranges
    server.fail(PATH, *row.faults)
    for path, faults in row.also.items():
        server.fail(path, *faults)
    urls = [server.url(path) for path in row.sources]
    entry = entry_of(*urls, **row.pinned)
    if row.fails:
        with pytest.raises(CkptkitError, match=row.says) as caught:
            store.fetch(entry, policy=policy_of(row, store))
        assert type(caught.value) is row.fails
        assert "secret" not in str(caught.value)
        assert_sound(store)
    else:
        store.fetch(entry, policy=policy_of(row, store))
        assert_only(store, row.body)
        assert row.says in "; ".join(store.notes)
    starts = [request.start for request in server.requests]
    assert len(starts) == row.asked if isinstance(row.asked, int) else starts == list(row.asked)
    assert row.slept is None or store.slept == list(row.slept)
    if row.fails:
        server.script.clear()
        store.fetch(entry_of(*urls))
        assert_only(store, BODY)


def test_the_table_is_long_enough_and_says_each_thing_once() -> None:
    assert len(TABLE) >= 40
    assert len({row.name for row in TABLE}) == len(TABLE)


# What the table cannot hold: two servers, many entries.


def test_a_hundred_entries_at_once(server: FaultServer, store: Store) -> None:
    bodies = {f"e{number}": random_bytes(5_000 + number, seed=number) for number in range(100)}
    entries = [entry_of(server.serve(f"/{id}/m.pth", body), id=id) for id, body in bodies.items()]
    for number, id in enumerate(bodies):
        if number % 3 == 0:
            server.fail(f"/{id}/m.pth", cut(number * 40))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(store.fetch, entries))
    assert [one.artefact.read_bytes() for one in found] == list(bodies.values())
    assert len(server.requests) == 134
    assert len(store.files) == 100


def test_a_file_in_place_of_the_folder(
    server: FaultServer, store: Store, assert_only: Callable[[Store, bytes], None]
) -> None:
    in_the_way: Path = store.home.path / "artefacts"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("")
    entry = entry_of(server.serve(PATH, BODY))
    with pytest.raises(StorageError, match=r"model\.pth"):
        store.fetch(entry)
    in_the_way.unlink()
    store.fetch(entry)
    assert_only(store, BODY)
