"""Several ranges at once: only where they fit together, and never a wrong byte."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from dataclasses import replace

import pytest

from ckptkit.base.errors import IntegrityError, NetworkError
from ckptkit.base.net import StoppedError
from ckptkit.store.lockfile import LockEntry, LockFile
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import (
    Answer,
    Fault,
    FaultServer,
    Request,
    cut,
    goog_hash,
    header,
    reset,
    slowly,
    status,
)

SEGMENT = 50_000
BODY = random_bytes(1_030_000)
OTHER = random_bytes(1_030_000, seed=2)
PATH = "/x/model.pth"
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
        entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY))), **split(store, connections)
    )
    assert_only(store, BODY)
    assert fetched.record.sha256 == hashlib.sha256(BODY).hexdigest()
    assert fetched.record.server_hashes["md5"] == hashlib.md5(BODY).hexdigest()
    starts = range(0, len(BODY), SEGMENT)
    assert sorted(asked(server)) == [(start, min(start + SEGMENT, len(BODY))) for start in starts]
    assert all(request.headers["if-range"] == '"v1"' for request in server.requests[1:])
    assert store.notes == []


def test_they_really_run_at_once(server: FaultServer, store: Store, assert_only: AssertOnly) -> None:
    together = threading.Barrier(3)  # nobody gets an answer before three have asked

    def wait(_request: Request, answer: Answer) -> Answer:
        together.wait(timeout=5)
        return answer

    url = server.serve(PATH, BODY)
    server.fail(PATH, lambda _request, answer: answer, wait, wait, wait)
    store.fetch(entry_of(url), **split(store, 3))
    assert_only(store, BODY)


@pytest.mark.parametrize(("size", "requests"), [(200_000, 2), (49_999, 1), (50_000, 1), (200_001, 5)])
def test_only_large_files_are_split(server: FaultServer, store: Store, size: int, requests: int) -> None:
    fetched = store.fetch(entry_of(server.serve(PATH, BODY[:size])), **split(store))
    assert fetched.artefact.read_bytes() == BODY[:size]
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
    store.fetch(entry_of(server.serve(PATH, BODY, **served)), **split(store))
    assert_only(store, BODY)
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
    lesser = {"url": server.serve("/lesser.pth", OTHER), "bn_statistics": False}
    better = {"url": server.serve(PATH, BODY), "bn_statistics": True}
    store.fetch(entry_of(better, lesser), **split(store))
    assert_only(store, BODY)
    assert server.requests[-1].start == SEGMENT and server.requests[-1].stop is None
    assert any("going on with one connection" in note for note in store.notes)
    assert store.warnings == [] and server.ranges("/lesser.pth") == []


def test_a_server_that_refuses_the_rest_for_ever_is_given_up(server: FaultServer, store: Store) -> None:
    server.fail(PATH, lambda _request, answer: answer, *[status(403)] * 30)
    lesser = {"url": server.serve("/lesser.pth", OTHER), "bn_statistics": False}
    better = {"url": server.serve(PATH, BODY), "bn_statistics": True}
    with pytest.raises(NetworkError, match=r"403 Forbidden \(4 times\).*lesser\.pth has no BatchNorm"):
        store.fetch(entry_of(better, lesser), **split(store))
    assert server.ranges("/lesser.pth") == [] and store.files == []


def test_a_server_that_refuses_ranges_is_asked_for_the_file(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.fail(PATH, status(403))
    store.fetch(entry_of(server.serve(PATH, BODY)), **split(store))
    assert_only(store, BODY)
    assert asked(server) == [(0, SEGMENT), (None, None)] and store.slept == []


@pytest.mark.parametrize("fault", [cut(0), cut(20_000), reset(30_000), status(503), status(429)])
def test_each_range_has_its_own_retries(
    server: FaultServer, store: Store, assert_only: AssertOnly, fault: Fault
) -> None:
    server.fail(PATH, lambda _request, answer: answer, fault, fault, fault, fault)
    store.fetch(entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY))), **split(store))
    assert_only(store, BODY)
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
        (lambda _request, _answer: Answer(200, (("ETag", '"v1"'),), BODY), "with the whole file"),
        (header("ETag", '"v2"'), "has changed"),
        (header("Content-Range", f"bytes 0-49999/{len(BODY)}"), "another part than asked for"),
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
    store.fetch(entry_of(server.serve(PATH, BODY)), **split(store))
    assert_only(store, BODY)
    assert any(re.search(f"({said}).*going on with one connection", note) for note in store.notes)
    (last,) = [request for request in server.requests if request.stop is None]
    assert last.start is not None and 0 < last.start <= 4 * SEGMENT  # what is sound stays


def test_a_file_that_changes_while_ranges_come_is_never_mixed(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.serve(PATH, BODY)

    def change(_request: Request, answer: Answer) -> Answer:
        server.serve(PATH, OTHER, etag='"v2"')
        return answer

    server.fail(PATH, *[lambda _request, answer: answer] * 5, change)
    store.fetch(entry_of(server.url(PATH)), **split(store))
    assert_only(store, OTHER)
    assert any(stop is None for _, stop in asked(server))


def test_another_files_bytes_under_the_same_etag_are_told_by_the_checksum(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    def other_bytes(request: Request, answer: Answer) -> Answer:
        return replace(answer, body=OTHER[request.start : request.stop]) if request.stop else answer

    server.fail(PATH, *[other_bytes] * 5)
    store.fetch(entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY))), **split(store))
    assert_only(store, BODY)
    assert (None, None) in asked(server)  # the second try is over one connection
    server.fail(PATH, *[lambda _r, a: replace(a, body=OTHER[: len(a.body)])] * 99)
    with pytest.raises(IntegrityError):
        store.fetch(entry_of(server.url(PATH)), force=True, **split(store))
    assert_only(store, BODY)


def test_a_stopped_fetch_keeps_its_front_and_goes_on(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    url = server.serve(PATH, BODY)
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
    assert len(front) >= 3 * SEGMENT and BODY.startswith(front)
    server.requests.clear()
    server.script.clear()
    store.fetch(entry_of(url), **split(store))
    assert_only(store, BODY)
    assert min(request.start or 0 for request in server.requests) == len(front)


def test_a_server_that_gives_up_half_way(server: FaultServer, store: Store) -> None:
    server.fail(PATH, *[lambda _request, answer: answer] * 6, *[status(500)] * 99)
    with pytest.raises(NetworkError, match="500"):
        store.fetch(entry_of(server.serve(PATH, BODY)), **split(store))
    assert store.files == []
    (part,) = store.home.artefact_folder("test-entry").glob(".*.part")
    assert BODY.startswith(part.read_bytes())
    assert any("going on with one connection" in note for note in store.notes)


class TestNodes:
    """A server whose nodes give the same file marks of their own."""

    @staticmethod
    def another(request: Request, _answer: Answer) -> Answer:
        """Answer as a node that was never asked before, and honours no other's ETag."""
        etag = f'"node-{next(_NODES)}"'
        if request.start is None or request.headers.get("if-range") is not None:
            return Answer(200, (("ETag", etag),), BODY)
        stop = min(request.stop or len(BODY), len(BODY))
        span = ("Content-Range", f"bytes {request.start}-{stop - 1}/{len(BODY)}")
        return Answer(206, (("ETag", etag), span), BODY[request.start : stop])

    def broken(self, request: Request, answer: Answer) -> Answer:
        return replace(self.another(request, answer), cut=30_000)

    @pytest.mark.parametrize("tie", ["pin", "lock file"])
    @pytest.mark.parametrize("connections", [1, 4])
    def test_where_a_checksum_decides_their_parts_are_joined(
        self, server: FaultServer, store: Store, assert_only: AssertOnly, tie: str, connections: int
    ) -> None:
        url, digest = server.serve(PATH, BODY), hashlib.sha256(BODY).hexdigest()
        server.fail(PATH, *[self.broken] * (connections == 1), *[self.another] * 50)
        if tie == "lock file":
            seen = LockEntry(digest, len(BODY), "2026-01-02T03:04:05+00:00", url)
            LockFile.default().remember("test-entry", "model.pth", seen)
        entry = entry_of(url, sha256=digest if tie == "pin" else None)
        store.fetch(entry, **split(store, connections))
        assert_only(store, BODY)
        starts = sorted(request.start or 0 for request in server.requests)
        assert starts == ([0, 30_000] if connections == 1 else [*range(0, len(BODY), SEGMENT)])
        assert not any("if-range" in request.headers for request in server.requests)

    def test_parts_that_do_not_make_the_known_file_are_fetched_whole(
        self, server: FaultServer, store: Store, assert_only: AssertOnly
    ) -> None:
        other = lambda r, a: replace(self.another(r, a), body=OTHER[r.start :])  # noqa: E731
        server.fail(PATH, self.broken, other, self.broken, *[self.another] * 9)
        entry = entry_of(server.serve(PATH, BODY), sha256=hashlib.sha256(BODY).hexdigest())
        store.fetch(entry, **split(store, 1))
        assert_only(store, BODY)
        assert server.ranges(PATH) == [None, 30_000, None, 30_000]  # the last one asked for a mark, in vain

    @pytest.mark.parametrize("connections", [1, 4])
    def test_otherwise_the_file_is_begun_again(
        self, server: FaultServer, store: Store, assert_only: AssertOnly, connections: int
    ) -> None:
        server.fail(PATH, *[self.broken] * (connections == 1), *[self.another] * 50)
        store.fetch(entry_of(server.serve(PATH, BODY)), **split(store, connections))
        assert_only(store, BODY)
        assert any("ETag on the server has changed, so it is sent from the" in note for note in store.notes)

    def test_a_weak_mark_ties_where_a_checksum_decides(
        self, server: FaultServer, store: Store, assert_only: AssertOnly
    ) -> None:
        server.fail(PATH, cut(100_000))
        url = server.serve(PATH, BODY, etag='W/"v1"')
        store.fetch(entry_of(url, sha256=hashlib.sha256(BODY).hexdigest()), **split(store, 1))
        assert_only(store, BODY)
        assert server.ranges(PATH) == [None, 100_000]
