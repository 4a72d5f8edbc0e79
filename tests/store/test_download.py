"""Every fault a server or a line can have: in each case no wrong byte stands under a final name."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ckptkit.base.errors import CkptkitError, IntegrityError, NetworkError, StorageError
from ckptkit.base.net import PIECE, SourceError
from ckptkit.store.openers import Identity, Response
from ckptkit.store.partial import Partial
from ckptkit.store.transfer import Transfer
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
    gzipped,
    header,
    md5_of,
    redirect,
    reset,
    stall,
    status,
    whole,
    without_length,
)

BODY = random_bytes(300_000)
OTHER = random_bytes(300_000, seed=2)
PATH = "/x/model.pth"


@pytest.mark.parametrize("after", [0, 1, 100, 65_536, 65_537, 299_999])
def test_a_cut_connection_is_resumed_where_it_broke(
    server: FaultServer, store: Store, assert_only: AssertOnly, after: int
) -> None:
    url = server.serve(PATH, BODY, headers=goog_hash(BODY))
    server.fail(PATH, cut(after))
    store.fetch(entry_of(url))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, after or None]
    if after:
        assert server.requests[1].headers["if-range"] == '"v1"'


def test_many_cuts_that_each_bring_something_are_borne(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.fail(PATH, *[cut(20_000)] * 12)
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, *range(20_000, 260_000, 20_000)]


def test_cuts_that_bring_nothing_end(server: FaultServer, store: Store) -> None:
    server.fail(PATH, *[cut(0)] * 50)
    with pytest.raises(NetworkError, match="the connection"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert len(server.requests) == 4  # once, and three retries
    assert store.slept == [1.0, 2.0, 4.0]
    assert store.files == []


@pytest.mark.parametrize(
    ("fault", "second"),
    [
        pytest.param(reset(0), None, id="reset-at-once"),
        pytest.param(reset(70_000), 70_000, id="reset-later"),
        pytest.param(stall(70_000), 70_000, id="stall"),
        pytest.param(status(500), None, id="500"),
        pytest.param(status(503), None, id="503"),
        pytest.param(status(408), None, id="408"),
    ],
)
def test_passing_faults_are_retried(
    server: FaultServer, store: Store, assert_only: AssertOnly, fault: Fault, second: int | None
) -> None:
    server.fail(PATH, fault)
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    first, again = server.ranges(PATH)
    assert first is None and (again is None) is (second is None)
    if again and second:  # an old urllib3 hands over whole pieces only; a current one all that came
        assert second - PIECE < again <= second
    assert store.slept == [1.0]


@pytest.mark.parametrize("code", [404, 410, 403])
def test_next_source_when_the_first_has_nothing(
    server: FaultServer, store: Store, assert_only: AssertOnly, code: int
) -> None:
    server.fail("/gone.pth", status(code))
    fetched = store.fetch(entry_of(server.url("/gone.pth"), server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert fetched.record.url == server.url(PATH)
    assert [request.path for request in server.requests] == ["/gone.pth", PATH]
    assert store.slept == []


def test_next_source_when_retries_are_used_up(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.fail("/ill.pth", *[status(500)] * 9)
    store.fetch(entry_of(server.url("/ill.pth"), server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert [request.path for request in server.requests] == ["/ill.pth"] * 4 + [PATH]


@pytest.mark.parametrize(
    "fault",
    [
        header("x-goog-hash", "crc32c=AAAAAA=="),
        header("x-goog-hash", f"md5={md5_of(OTHER)}"),
        header("x-goog-hash", f"crc32c=AAAAAA==,md5={md5_of(BODY)}"),
        header("Content-MD5", md5_of(OTHER)),
        header("Repr-Digest", f"sha-256=:{base64.b64encode(hashlib.sha256(OTHER).digest()).decode()}:"),
        header("x-ms-blob-content-md5", md5_of(OTHER)),
        pytest.param(lambda _r, answer: replace(answer, body=OTHER), id="another body"),
    ],
)
def test_bytes_that_break_the_servers_promise_are_refused(
    server: FaultServer, store: Store, fault: Fault
) -> None:
    server.fail(PATH, fault, fault)
    with pytest.raises(IntegrityError, match="damaged on the way") as caught:
        store.fetch(entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY))))
    assert "model.pth" in str(caught.value)
    assert store.files == [] and store.leftovers() == []
    assert store.home.record("test-entry") is None


def test_a_pinned_checksum_decides(server: FaultServer, store: Store, assert_only: AssertOnly) -> None:
    pin = hashlib.sha256(BODY).hexdigest()
    wrong, right = server.serve("/wrong.pth", OTHER), server.serve(PATH, BODY)
    with pytest.raises(IntegrityError, match=f"the registry says {pin}"):
        store.fetch(entry_of(wrong, sha256=pin))
    assert store.files == [] and store.leftovers() == []
    store.fetch(entry_of(wrong, right, sha256=pin))  # another source may have the pinned bytes
    assert_only(store, BODY)


@pytest.mark.parametrize("size", [299_999, 300_001])
def test_a_pinned_size_decides_before_the_body_comes(server: FaultServer, store: Store, size: int) -> None:
    with pytest.raises(IntegrityError, match=f"300,000 bytes .* the registry says {size:,}"):
        store.fetch(entry_of(server.serve(PATH, BODY), size=size))
    assert store.files == [] and store.leftovers() == []


def test_more_than_the_pinned_size_is_cut_off_where_no_length_is_given(
    server: FaultServer, store: Store
) -> None:
    server.fail(PATH, without_length)
    with pytest.raises(IntegrityError, match="the registry says 1,000"):
        store.fetch(entry_of(server.serve(PATH, BODY), size=1000))
    assert store.files == [] and store.leftovers() == []


def test_neither_length_nor_checksum(server: FaultServer, store: Store, assert_only: AssertOnly) -> None:
    url = server.serve(PATH, BODY)
    server.fail(PATH, without_length)
    with pytest.raises(NetworkError, match="neither length nor checksum"):
        store.fetch(entry_of(url))
    assert store.files == []
    server.serve(PATH, BODY, headers=goog_hash(BODY))
    server.fail(PATH, without_length)
    store.fetch(entry_of(url))
    assert_only(store, BODY)


def test_a_server_without_ranges_sends_all_again(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.fail(PATH, cut(100_000))
    store.fetch(entry_of(server.serve(PATH, BODY, ranges=False)))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, 100_000]
    assert any("from the beginning" in note for note in store.notes)


def test_a_range_that_is_not_there_means_beginning_again(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.fail(PATH, cut(100_000), status(416))
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, 100_000, None]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changes_half_way_is_never_mixed(
    server: FaultServer, store: Store, assert_only: AssertOnly, heeds_if_range: bool
) -> None:
    server.serve(PATH, BODY)

    def change(_request: Request, answer: Answer) -> Answer:
        server.serve(PATH, OTHER, etag='"v2"')
        return replace(answer, cut=100_000)

    def rest_of_the_other(_request: Request, _answer: Answer) -> Answer:
        headers = (("ETag", '"v2"'), ("Content-Range", "bytes 100000-299999/300000"))
        return Answer(206, headers, OTHER[100_000:])

    server.fail(PATH, change, *([] if heeds_if_range else [rest_of_the_other]))
    store.fetch(entry_of(server.url(PATH)))
    assert_only(store, OTHER)


def test_parts_that_do_not_fit_are_downloaded_whole_once_more(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    # A server that answers with another file's rest under the same ETag: only the checksum can tell.
    server.fail(PATH, cut(100_000), lambda _r, answer: replace(answer, body=OTHER[100_000:]))
    store.fetch(entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY))))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, 100_000, None]


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_strong_identity_nothing_is_resumed(
    server: FaultServer, store: Store, assert_only: AssertOnly, etag: str | None
) -> None:
    server.fail(PATH, cut(100_000))
    store.fetch(entry_of(server.serve(PATH, BODY, etag=etag)))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, None]


@pytest.mark.parametrize(
    ("fault", "ranges"),
    [
        (None, [None, 100_000]),
        (header("x-goog-generation", "2"), [None, 100_000, None]),
        (lambda _request, answer: answer.without("x-goog-generation"), [None, 100_000, None]),
    ],
    ids=["same", "other", "not-said"],
)
def test_a_generation_alone_ties_the_parts(
    server: FaultServer, store: Store, assert_only: AssertOnly, fault: Fault | None, ranges: list[int | None]
) -> None:
    server.fail(PATH, cut(100_000), *([fault] if fault else []))
    store.fetch(entry_of(server.serve(PATH, BODY, etag=None, headers=goog_hash(BODY)[2:])))
    assert_only(store, BODY)
    assert server.ranges(PATH) == ranges
    assert "if-range" not in server.requests[1].headers


def test_a_wrong_length(server: FaultServer, store: Store) -> None:
    server.fail(PATH, header("Content-Length", "299999"))
    with pytest.raises(IntegrityError, match="damaged on the way"):
        store.fetch(entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY))))
    server.fail(PATH, *[header("Content-Length", "300001")] * 9)
    with pytest.raises(NetworkError, match="no source gave the file"):
        store.fetch(entry_of(server.url(PATH)))
    assert store.files == []


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b"\n  <HTML lang=en>quota",
        b"\xef\xbb\xbf<html>",
        b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        b"",
    ],
)
def test_a_page_instead_of_the_file_is_refused(
    server: FaultServer, store: Store, page: bytes, assert_only: AssertOnly
) -> None:
    server.fail(PATH, whole(page, ("Content-Type", "application/octet-stream")))
    with pytest.raises(NetworkError, match=r"web page|LFS|empty"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.files == [] and store.leftovers() == []


def test_a_binary_with_a_wrong_content_type_is_taken(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.fail(PATH, header("Content-Type", "text/html"))
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)


def test_a_short_body_is_noticed_whatever_the_transport(store: Store) -> None:
    asked: list[int] = []

    @contextlib.contextmanager
    def opener(url: str, start: int, _known: Identity | None) -> Iterator[Response]:
        asked.append(start)
        yield Response(url, Identity(size=10), iter([b"1234", b"567"]), length=10)

    partial = Partial(store.home.artefact_folder("m"), "m.pth", "s3://bucket/m.pth")
    download = Transfer("s3://bucket/m.pth", partial, opener, store.policy)
    with pytest.raises(SourceError, match="closed after 7 of 10 bytes"):
        download.run()
    assert asked == [0, 0, 0, 0] and partial.size == 0


def test_too_little_space_is_said_before_the_body_comes(
    server: FaultServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=299_999))
    with pytest.raises(StorageError, match="needs 300,000 more bytes, but 299,999 are free"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.files == []


def test_progress_counts_every_byte_once(server: FaultServer, store: Store) -> None:
    steps: list[int] = []
    totals: list[int | None] = []

    @contextlib.contextmanager
    def progress(_name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        totals.append(total)
        yield steps.append

    server.fail(PATH, cut(100_000), cut(50_000), status(416))
    store.fetch(entry_of(server.serve(PATH, BODY)), progress=progress)
    assert totals == [300_000] and sum(steps) == 300_000
    assert max(-step for step in steps) == 150_000  # thrown away when the range was refused


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_faults_ends_in_the_right_bytes_or_none(
    server: FaultServer, store: Store, seed: int
) -> None:
    import random

    chance = random.Random(seed)
    menu: list[Fault] = [
        cut(0),
        cut(chance.randrange(300_000)),
        reset(chance.randrange(300_000)),
        status(500),
        status(416),
        status(429, ("Retry-After", "1")),
        header("Content-Range", "bytes 3-9/10"),
        header("ETag", '"other"'),
        header("Content-Length", str(chance.randrange(300_000))),
        gzipped,
        chunked(ends=False),
        redirect(PATH),
        whole(OTHER),
        whole(BODY[:1000]),
    ]
    server.fail(PATH, *chance.choices(menu, k=7))
    with_hash = entry_of(server.serve(PATH, BODY), sha256=hashlib.sha256(BODY).hexdigest())
    try:
        store.fetch(with_hash)
    except CkptkitError:
        assert store.files == []
    else:
        assert [path.read_bytes() == BODY for path in store.files] == [True]


def test_checksums_of_the_test_server_are_right() -> None:
    # the check value of CRC-32C; the server is the yardstick of this file, so it is measured too
    assert goog_hash(b"123456789")[0] == (
        "x-goog-hash",
        f"crc32c={base64.b64encode(struct.pack('>I', 0xE3069283)).decode()}",
    )
    assert zlib.crc32(b"123456789") != 0xE3069283
