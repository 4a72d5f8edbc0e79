"""Every fault a server or a line can have: in each case no wrong byte stands under a final name."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
import re
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckptkit.base.errors import CkptkitError, IntegrityError, NetworkError, StorageError
from ckptkit.base.net import PIECE, SourceError, StoppedError
from ckptkit.store.lockfile import LockEntry, LockFile
from ckptkit.store.openers import Identity, Response
from ckptkit.store.partial import Partial
from ckptkit.store.transfer import Transfer
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes, tar_gz
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
    slowly,
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
    with pytest.raises(NetworkError, match="no source could provide the file"):
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


# -- Several ranges at once: only where they fit together, and never a wrong byte ----------------------------


SEGMENT = 50_000
RANGES_BODY = random_bytes(1_030_000)
RANGES_OTHER = random_bytes(1_030_000, seed=2)
_NODES = itertools.count()


def split(store: Store, connections: int = 4, **changes: object) -> dict[str, object]:
    """Options of a fetch in ranges of 50,000 bytes."""
    changes = {"connections": connections, "split_from": 200_000, "segment": SEGMENT, **changes}
    return {"policy": replace(store.policy, **changes)}


def asked(server: FaultServer) -> list[tuple[int | None, int | None]]:
    return [(request.start, request.stop) for request in server.requests]


@pytest.mark.parametrize("connections", [2, 4, 8])
def test_ranges_make_the_file(
    server: FaultServer, store: Store, assert_only: AssertOnly, connections: int
) -> None:
    fetched = store.fetch(
        entry_of(server.serve(PATH, RANGES_BODY, headers=goog_hash(RANGES_BODY))), **split(store, connections)
    )
    assert_only(store, RANGES_BODY)
    assert fetched.record.sha256 == hashlib.sha256(RANGES_BODY).hexdigest()
    assert fetched.record.server_hashes["md5"] == hashlib.md5(RANGES_BODY).hexdigest()
    starts = range(0, len(RANGES_BODY), SEGMENT)
    assert sorted(asked(server)) == [(start, min(start + SEGMENT, len(RANGES_BODY))) for start in starts]
    assert all(request.headers["if-range"] == '"v1"' for request in server.requests[1:])
    assert store.notes == []


def test_they_really_run_at_once(server: FaultServer, store: Store, assert_only: AssertOnly) -> None:
    together = threading.Barrier(3)  # nobody gets an answer before three have asked

    def wait(_request: Request, answer: Answer) -> Answer:
        together.wait(timeout=5)
        return answer

    url = server.serve(PATH, RANGES_BODY)
    server.fail(PATH, lambda _request, answer: answer, wait, wait, wait)
    store.fetch(entry_of(url), **split(store, 3))
    assert_only(store, RANGES_BODY)


@pytest.mark.parametrize(("size", "requests"), [(200_000, 2), (49_999, 1), (50_000, 1), (200_001, 5)])
def test_only_large_files_are_split(server: FaultServer, store: Store, size: int, requests: int) -> None:
    fetched = store.fetch(entry_of(server.serve(PATH, RANGES_BODY[:size])), **split(store))
    assert fetched.artefact.read_bytes() == RANGES_BODY[:size]
    assert len(server.requests) == requests


@pytest.mark.parametrize(
    ("served", "asked_for"),
    [
        pytest.param({"ranges": False}, [(0, SEGMENT)], id="no ranges: the first answer is the file"),
        pytest.param({"etag": 'W/"v1"'}, [(0, SEGMENT), (None, None)], id="weak"),
        pytest.param({"etag": None}, [(0, SEGMENT), (None, None)], id="nothing"),
        pytest.param(
            {"etag": None, "headers": (("Last-Modified", "Tue, 14 Nov 2023 22:13:50 GMT"),)},
            [(0, SEGMENT), (None, None)],
            id="a date only",
        ),
    ],
)
def test_without_proof_there_is_one_connection(
    server: FaultServer, store: Store, assert_only: AssertOnly, served: dict, asked_for: list
) -> None:
    store.fetch(entry_of(server.serve(PATH, RANGES_BODY, **served)), **split(store))
    assert_only(store, RANGES_BODY)
    assert asked(server) == asked_for


@pytest.mark.parametrize("code", [401, 403, 400, 451])
@pytest.mark.parametrize("still", [0, 2])
def test_a_server_that_bears_one_connection_gets_one(
    server: FaultServer, store: Store, assert_only: AssertOnly, code: int, still: int
) -> None:
    """It refuses a second connection, and for a moment a first one too: it counts those that just ended."""
    counted = [still if code in (401, 403) else 0]

    def crowded(_request: Request, answer: Answer) -> Answer:
        single = _request.stop is None or _request.start == 0
        if single and (_request.start == 0 or not counted[0]):
            return answer
        counted[0] -= single
        return Answer(code, body=b"too many connections")

    server.fail(PATH, *[crowded] * 20)
    lesser = {"url": server.serve("/lesser.pth", RANGES_OTHER), "bn_statistics": False}
    better = {"url": server.serve(PATH, RANGES_BODY), "bn_statistics": True}
    store.fetch(entry_of(better, lesser), **split(store))
    assert_only(store, RANGES_BODY)
    assert server.requests[-1].start == SEGMENT and server.requests[-1].stop is None
    assert any("going on with one connection" in note for note in store.notes)
    assert store.warnings == [] and server.ranges("/lesser.pth") == []


def test_a_server_that_refuses_the_rest_for_ever_is_given_up(server: FaultServer, store: Store) -> None:
    server.fail(PATH, lambda _request, answer: answer, *[status(403)] * 30)
    lesser = {"url": server.serve("/lesser.pth", RANGES_OTHER), "bn_statistics": False}
    better = {"url": server.serve(PATH, RANGES_BODY), "bn_statistics": True}
    with pytest.raises(NetworkError, match=r"403 Forbidden \(4 times\).*lesser\.pth has no BatchNorm"):
        store.fetch(entry_of(better, lesser), **split(store))
    assert server.ranges("/lesser.pth") == [] and store.files == []


def test_a_server_that_refuses_ranges_is_asked_for_the_file(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.fail(PATH, status(403))
    store.fetch(entry_of(server.serve(PATH, RANGES_BODY)), **split(store))
    assert_only(store, RANGES_BODY)
    assert asked(server) == [(0, SEGMENT), (None, None)] and store.slept == []


@pytest.mark.parametrize("fault", [cut(0), cut(20_000), reset(30_000), status(503), status(429)])
def test_each_range_has_its_own_retries(
    server: FaultServer, store: Store, assert_only: AssertOnly, fault: Fault
) -> None:
    server.fail(PATH, lambda _request, answer: answer, fault, fault, fault, fault)
    store.fetch(entry_of(server.serve(PATH, RANGES_BODY, headers=goog_hash(RANGES_BODY))), **split(store))
    assert_only(store, RANGES_BODY)
    assert not any(request.start is None for request in server.requests)
    starts = [request.start for request in server.requests]
    assert starts.count(SEGMENT + 20_000) == (
        1 if fault(server.requests[0], Answer(200)).cut == 20_000 else 0
    )


def wrong_total(_request: Request, answer: Answer) -> Answer:
    value = dict(answer.headers)["Content-Range"]
    return answer.with_header("Content-Range", value.rpartition("/")[0] + "/9999999")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda _request, _answer: Answer(200, (("ETag", '"v1"'),), RANGES_BODY), "with the whole file"),
        (header("ETag", '"v2"'), "has changed"),
        (header("Content-Range", f"bytes 0-49999/{len(RANGES_BODY)}"), "another part than asked for"),
        (wrong_total, "another part|has changed"),
        (lambda _request, answer: answer.without("Content-Range"), "without saying which"),
        (status(416), "not there"),
    ],
    ids=["200", "etag", "start", "total", "no-range", "416"],
)
def test_a_part_that_does_not_fit_ends_it(
    server: FaultServer, store: Store, assert_only: AssertOnly, fault: Fault, said: str
) -> None:
    def once_in_the_middle(request: Request, answer: Answer) -> Answer:
        return fault(request, answer) if request.start == 4 * SEGMENT and request.stop else answer

    server.fail(PATH, *[once_in_the_middle] * 8)
    store.fetch(entry_of(server.serve(PATH, RANGES_BODY)), **split(store))
    assert_only(store, RANGES_BODY)
    assert any(re.search(f"({said}).*going on with one connection", note) for note in store.notes)
    (last,) = [request for request in server.requests if request.stop is None]
    assert last.start is not None and 0 < last.start <= 4 * SEGMENT  # what is sound stays


def test_a_file_that_changes_while_ranges_come_is_never_mixed(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.serve(PATH, RANGES_BODY)

    def change(_request: Request, answer: Answer) -> Answer:
        server.serve(PATH, RANGES_OTHER, etag='"v2"')
        return answer

    server.fail(PATH, *[lambda _request, answer: answer] * 5, change)
    store.fetch(entry_of(server.url(PATH)), **split(store))
    assert_only(store, RANGES_OTHER)
    assert any(stop is None for _, stop in asked(server))


def test_another_files_bytes_under_the_same_etag_are_told_by_the_checksum(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    def other_bytes(request: Request, answer: Answer) -> Answer:
        return replace(answer, body=RANGES_OTHER[request.start : request.stop]) if request.stop else answer

    server.fail(PATH, *[other_bytes] * 5)
    store.fetch(entry_of(server.serve(PATH, RANGES_BODY, headers=goog_hash(RANGES_BODY))), **split(store))
    assert_only(store, RANGES_BODY)
    assert (None, None) in asked(server)  # the second try is over one connection
    server.fail(PATH, *[lambda _r, a: replace(a, body=RANGES_OTHER[: len(a.body)])] * 99)
    with pytest.raises(IntegrityError):
        store.fetch(entry_of(server.url(PATH)), force=True, **split(store))
    assert_only(store, RANGES_BODY)


def test_a_stopped_fetch_keeps_its_front_and_goes_on(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    url = server.serve(PATH, RANGES_BODY)
    server.fail(PATH, *[slowly(0.02, 10_000)] * 30)
    stop = threading.Event()
    kept: list[int] = []

    def stopped() -> bool:
        kept[:] = [path.stat().st_size for path in store.home.artefact_folder("test-entry").glob(".*.part")]
        if kept and kept[0] >= 3 * SEGMENT:
            stop.set()
        return stop.is_set()

    with pytest.raises(StoppedError):
        store.fetch(entry_of(url), **split(store, stopped=stopped))
    assert store.files == []
    (part,) = store.home.artefact_folder("test-entry").glob(".*.part")
    front = part.read_bytes()
    assert len(front) >= 3 * SEGMENT and RANGES_BODY.startswith(front)
    server.requests.clear()
    server.script.clear()
    store.fetch(entry_of(url), **split(store))
    assert_only(store, RANGES_BODY)
    assert min(request.start or 0 for request in server.requests) == len(front)


def test_a_server_that_gives_up_half_way(server: FaultServer, store: Store) -> None:
    server.fail(PATH, *[lambda _request, answer: answer] * 6, *[status(500)] * 99)
    with pytest.raises(NetworkError, match="500"):
        store.fetch(entry_of(server.serve(PATH, RANGES_BODY)), **split(store))
    assert store.files == []
    (part,) = store.home.artefact_folder("test-entry").glob(".*.part")
    assert RANGES_BODY.startswith(part.read_bytes())
    assert any("going on with one connection" in note for note in store.notes)


class TestNodes:
    """A server whose nodes give the same file marks of their own."""

    @staticmethod
    def another(request: Request, _answer: Answer) -> Answer:
        """Answer as a node that was never asked before, and honours no other's ETag."""
        etag = f'"node-{next(_NODES)}"'
        if request.start is None or request.headers.get("if-range") is not None:
            return Answer(200, (("ETag", etag),), RANGES_BODY)
        stop = min(request.stop or len(RANGES_BODY), len(RANGES_BODY))
        span = ("Content-Range", f"bytes {request.start}-{stop - 1}/{len(RANGES_BODY)}")
        return Answer(206, (("ETag", etag), span), RANGES_BODY[request.start : stop])

    def broken(self, request: Request, answer: Answer) -> Answer:
        return replace(self.another(request, answer), cut=30_000)

    @pytest.mark.parametrize("tie", ["pin", "lock file"])
    @pytest.mark.parametrize("connections", [1, 4])
    def test_where_a_checksum_decides_their_parts_are_joined(
        self, server: FaultServer, store: Store, assert_only: AssertOnly, tie: str, connections: int
    ) -> None:
        url, digest = server.serve(PATH, RANGES_BODY), hashlib.sha256(RANGES_BODY).hexdigest()
        server.fail(PATH, *[self.broken] * (connections == 1), *[self.another] * 50)
        if tie == "lock file":
            seen = LockEntry(digest, len(RANGES_BODY), "2026-01-02T03:04:05+00:00", url)
            LockFile.default().remember("test-entry", "model.pth", seen)
        entry = entry_of(url, sha256=digest if tie == "pin" else None)
        store.fetch(entry, **split(store, connections))
        assert_only(store, RANGES_BODY)
        starts = sorted(request.start or 0 for request in server.requests)
        assert starts == ([0, 30_000] if connections == 1 else [*range(0, len(RANGES_BODY), SEGMENT)])
        assert not any("if-range" in request.headers for request in server.requests)

    def test_parts_that_do_not_make_the_known_file_are_fetched_whole(
        self, server: FaultServer, store: Store, assert_only: AssertOnly
    ) -> None:
        other = lambda r, a: replace(self.another(r, a), body=RANGES_OTHER[r.start :])  # noqa: E731
        server.fail(PATH, self.broken, other, self.broken, *[self.another] * 9)
        entry = entry_of(server.serve(PATH, RANGES_BODY), sha256=hashlib.sha256(RANGES_BODY).hexdigest())
        store.fetch(entry, **split(store, 1))
        assert_only(store, RANGES_BODY)
        assert server.ranges(PATH) == [None, 30_000, None, 30_000]  # the last one asked for a mark, in vain

    @pytest.mark.parametrize("connections", [1, 4])
    def test_otherwise_the_file_is_begun_again(
        self, server: FaultServer, store: Store, assert_only: AssertOnly, connections: int
    ) -> None:
        server.fail(PATH, *[self.broken] * (connections == 1), *[self.another] * 50)
        store.fetch(entry_of(server.serve(PATH, RANGES_BODY)), **split(store, connections))
        assert_only(store, RANGES_BODY)
        assert any("ETag on the server has changed, so it is sent from the" in note for note in store.notes)

    def test_a_weak_mark_ties_where_a_checksum_decides(
        self, server: FaultServer, store: Store, assert_only: AssertOnly
    ) -> None:
        server.fail(PATH, cut(100_000))
        url = server.serve(PATH, RANGES_BODY, etag='W/"v1"')
        store.fetch(entry_of(url, sha256=hashlib.sha256(RANGES_BODY).hexdigest()), **split(store, 1))
        assert_only(store, RANGES_BODY)
        assert server.ranges(PATH) == [None, 100_000]


# -- A gzip coding on top of a file: taken off, or left where it is the file itself --------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/m.pth", b"weights " * 50_000),
        ("/m.pth", BODY),
        ("/m.tar.gz", tar_gz({"a/m.index": b"1", "a/m": BODY})),
    ],
)
def test_a_coding_laid_on_top_is_taken_off(server: FaultServer, store: Store, path: str, body: bytes) -> None:
    server.fail(path, gzipped)
    fetched = store.fetch(entry_of(server.serve(path, body)))
    assert fetched.artefact.read_bytes() == body


def test_an_archive_labelled_as_coded_is_left_as_it_is(server: FaultServer, store: Store) -> None:
    body = tar_gz({"a/m.index": b"1", "a/m.data": BODY})
    server.fail("/m.tar.gz", header("Content-Encoding", "x-gzip"))
    fetched = store.fetch(entry_of(server.serve("/m.tar.gz", body, headers=goog_hash(body))))
    assert fetched.artefact.read_bytes() == body


def test_a_damaged_or_unknown_coding(server: FaultServer, store: Store, assert_only: AssertOnly) -> None:
    def torn(request: Request, answer: Answer) -> Answer:
        answer = gzipped(request, answer)
        return replace(answer, body=answer.body[:-30])

    def flipped(request: Request, answer: Answer) -> Answer:
        answer = gzipped(request, answer)
        return replace(answer, body=answer.body[:200_000] + b"\0\0\0\0" + answer.body[200_004:])

    url = server.serve(PATH, BODY)
    server.fail(PATH, torn, flipped)
    store.fetch(entry_of(url))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, None, None]
    server.fail(PATH, header("Content-Encoding", "br"))
    with pytest.raises(NetworkError, match="compresses the file with 'br'"):
        store.fetch(entry_of(url), force=True)
    assert_only(store, BODY)


@pytest.mark.parametrize(
    "value",
    [
        "aws-chunked",
        "aws-chunked,",
        "utf-8",
        "UTF-8",
        "binary",
        "none",
        "identity",
        "identity, identity",
        "8bit",
    ],
)
def test_a_value_that_packs_nothing_changes_nothing(
    server: FaultServer, store: Store, assert_only: AssertOnly, value: str
) -> None:
    server.fail(PATH, lambda r, a: replace(a.with_header("Content-Encoding", value), cut=100_000))
    server.fail(PATH, header("Content-Encoding", value))
    store.fetch(entry_of(server.serve(PATH, BODY)))
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None, 100_000]


def test_what_a_store_adds_to_gzip_is_no_coding(server: FaultServer, store: Store) -> None:
    server.fail(PATH, lambda r, a: gzipped(r, a).with_header("Content-Encoding", "aws-chunked,gzip"))
    assert store.fetch(entry_of(server.serve(PATH, BODY))).artefact.read_bytes() == BODY


@pytest.mark.parametrize("value", ["gzip, gzip", "deflate", "aws-chunked, zstd", "br, gzip", "compress"])
def test_codings_that_are_not_taken_off_are_refused(server: FaultServer, store: Store, value: str) -> None:
    server.fail(PATH, header("Content-Encoding", value))
    packed = value.removeprefix("aws-chunked, ")
    with pytest.raises(NetworkError, match=f"compresses the file with '{packed}', although asked not to"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.files == []


def test_a_coded_body_is_compared_with_its_own_checksum(server: FaultServer, store: Store) -> None:
    def fault(request: Request, answer: Answer) -> Answer:
        return gzipped(request, answer).with_header("x-goog-hash", f"md5={md5_of(b'something else')}")

    server.fail(PATH, fault)
    with pytest.raises(IntegrityError, match="x-goog-hash"):
        store.fetch(entry_of(server.serve(PATH, BODY)))
    assert store.files == [] and store.leftovers() == []


# -- Sources on this disk ------------------------------------------------------------------------------------


def test_file_urls(store: Store, tmp_path: Path, assert_only: AssertOnly) -> None:
    source = tmp_path / "with blank" / "model.pth"
    source.parent.mkdir()
    source.write_bytes(BODY)
    store.fetch(entry_of(source.as_uri()), offline=True)
    assert_only(store, BODY)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"<html>"), "web page"),
    ],
)
def test_file_urls_of_other_things(
    store: Store, tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path / "thing.pth")
    with pytest.raises(NetworkError, match=said):
        store.fetch(entry_of((tmp_path / "thing.pth").as_uri()))
    assert store.files == []
