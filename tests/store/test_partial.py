"""What an earlier run left behind: continued if it is sound, thrown away if it is not."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from mmap import PAGESIZE
from pathlib import Path

import google_crc32c
import pytest

from ckptkit.base.checksums import BackgroundHasher
from ckptkit.base.errors import IntegrityError, NetworkError, StorageError
from ckptkit.base.files import BackgroundThread
from ckptkit.registry.schema import Entry
from ckptkit.store import partial
from ckptkit.store.fetch import Fetched
from ckptkit.store.openers import Identity
from ckptkit.store.partial import Partial
from ckptkit.store.transfer import Segments, url_opener
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import entry_of, random_bytes, tar_gz
from tests.support.http_server import Answer, FaultServer, Request, cut, goog_hash, md5_of, status

BODY = random_bytes(100_000)
OTHER = random_bytes(100_000, seed=2)
PATH = "/x/model.pth"
ARCHIVE = tar_gz({"moat/m.index": b"index", "moat/m.data-00000-of-00001": BODY})


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def import_into(store: Store, entry: Entry, file: Path, **options: bool) -> Fetched:
    return store.import_file(entry, file, **options)


def test_a_second_run_continues_and_hashes_what_was_there(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry = entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY)))
    server.fail(PATH, cut(40_000), *[status(503)] * 3)
    with pytest.raises(NetworkError):
        store.fetch(entry)
    assert store.files == [] and len(store.leftovers()) == 2
    server.requests.clear()
    assert store.fetch(entry).record.sha256 == sha256(BODY)
    assert_only(store, BODY)
    assert server.ranges(PATH) == [40_000]


def left_behind(server: FaultServer, store: Store) -> tuple[Entry, Path]:
    """An entry of which a part of 40,000 bytes is there."""
    entry = entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY)))
    server.fail(PATH, cut(40_000), *[status(503)] * 3)
    with pytest.raises(NetworkError):
        store.fetch(entry)
    server.requests.clear()
    (part,) = store.home.artefact_folder(entry.id).glob(".*.part")
    return entry, part


@pytest.mark.parametrize("damage", ["flip", "longer", "empty", "no-sidecar", "bad-sidecar", "other-identity"])
def test_a_damaged_part_never_becomes_a_file(
    server: FaultServer, store: Store, assert_only: AssertOnly, damage: str
) -> None:
    entry, part = left_behind(server, store)
    sidecar = part.with_name(f"{part.name}.json")
    if damage == "flip":
        part.write_bytes(bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:])
    elif damage == "longer":
        part.write_bytes(BODY + b"more")
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "no-sidecar":
        sidecar.unlink()
    elif damage == "bad-sidecar":
        sidecar.write_text('{"source": 3, "identity": {"etag": []}, "promises": {}}')
    else:
        sidecar.write_text(sidecar.read_text().replace("v1", "v0"))
    store.fetch(entry)
    assert_only(store, BODY)
    assert server.ranges(PATH) == [None]


def test_a_part_that_was_whole_is_confirmed_by_its_last_byte(
    server: FaultServer, store: Store, assert_only: AssertOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entry_of(server.serve(PATH, BODY, headers=goog_hash(BODY)))
    monkeypatch.setattr(partial, "refuse_planted", lambda path: None)  # as if it came while the bytes did
    in_the_way = store.home.artefact_folder(entry.id) / "model.pth.json"
    in_the_way.mkdir(parents=True)
    with pytest.raises(StorageError):
        store.fetch(entry)
    in_the_way.rmdir()
    server.requests.clear()
    store.fetch(entry)
    assert_only(store, BODY)
    assert server.ranges(PATH) == [99_999]


def zeros(part: Path, begin: int, end: int) -> None:
    with part.open("r+b") as stream:
        stream.seek(begin)
        stream.write(bytes(end - begin))


def cut_marks(part: Path, last: int, torn: bytes = b"") -> None:
    """Keep the marks of up to ``last`` bytes."""
    sidecar = part.with_name(f"{part.name}.json")
    first, *marks = sidecar.read_bytes().splitlines(keepends=True)
    sidecar.write_bytes(first + b"".join(m for m in marks if int(m.split()[0]) <= last) + torn)


CUTS: dict[str, tuple[Callable[[Path], None], int]] = {
    "nothing lost": (lambda part: None, 700_000),
    "zeros at the end": (lambda part: zeros(part, 650_000, 700_000), 650_000),
    "the last byte": (lambda part: zeros(part, 699_999, 700_000), 699_999),
    "zeros in the middle": (lambda part: zeros(part, 204_800, 208_896), 204_800),
    "zeros from the beginning": (lambda part: zeros(part, 0, 4096), 0),
    "nothing but zeros": (lambda part: zeros(part, 0, 700_000), 0),
    "longer than marked": (lambda part: os.truncate(part, 900_000), 700_000),
    "shorter than marked": (lambda part: os.truncate(part, 499_999), 499_999),
    "marks lost": (lambda part: cut_marks(part, 300_000), 300_000),
    "a torn mark": (lambda part: cut_marks(part, 300_000, b"400000 1a2"), 300_000),
    "zeros among the marks": (lambda part: cut_marks(part, 300_000, bytes(60)), 300_000),
    "no mark at all": (lambda part: cut_marks(part, 0), 0),
    "a mark that asks for all": (lambda part: cut_marks(part, 0, b"700000 00000000\n"), 0),
    "marks that go backwards": (lambda part: cut_marks(part, 300_000, b"100000 00000000\n"), 300_000),
}
"""How to damage a part of 700,000 bytes, and how many of them are sound up to there."""


@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize("cut_how", CUTS)
def test_after_a_power_cut_only_what_was_written_is_kept(
    server: FaultServer, store: Store, assert_only: AssertOnly, cut_how: str, promised: bool
) -> None:
    """The file system may have given a file its length and not its bytes, or lost the marks."""
    body = random_bytes(1_000_000)
    entry = entry_of(server.serve(PATH, body, headers=goog_hash(body) if promised else ()))
    server.fail(PATH, *[cut(100_000)] * 7, *[status(503)] * 3)
    with pytest.raises(NetworkError):
        store.fetch(entry)
    (part,) = store.home.artefact_folder(entry.id).glob(".*.part")
    assert part.read_bytes() == body[:700_000]
    damage, sound = CUTS[cut_how]
    damage(part)
    server.requests.clear()
    store.fetch(entry)
    assert_only(store, body)
    (begin,) = server.ranges(PATH)
    assert max(sound - 100_000, 0) <= (begin or 0) <= sound
    assert begin == 700_000 or sound < 700_000


def test_marks_of_what_is_kept_serve_the_next_run_too(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    body = random_bytes(1_000_000)
    entry = entry_of(server.serve(PATH, body))
    for _ in range(3):
        server.fail(PATH, *[cut(150_000)] * 2, *[status(503)] * 3)
        with pytest.raises(NetworkError):
            store.fetch(entry)
    (part,) = store.home.artefact_folder(entry.id).glob(".*.part")
    zeros(part, 800_000, 900_000)
    server.requests.clear()
    store.fetch(entry)
    assert_only(store, body)
    (begin,) = server.ranges(PATH)
    assert 700_000 < begin <= 800_000


def test_a_fetch_that_lacks_space_leaves_nothing(
    server: FaultServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    entry = entry_of(server.serve(PATH, BODY))
    usage = shutil.disk_usage(store.home.path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=99_999))
    with pytest.raises(StorageError, match=r"needs 100,000 more bytes, but 99,999 are free"):
        store.fetch(entry)
    assert list(store.home.artefact_folder(entry.id).iterdir()) == []
    monkeypatch.undo()
    server.fail(PATH, cut(40_000), *[status(503)] * 3)
    with pytest.raises(NetworkError):
        store.fetch(entry)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=59_999))
    with pytest.raises(StorageError, match="needs 60,000 more bytes"):
        store.fetch(entry)
    assert len(store.leftovers()) == 2  # what was there is kept for when there is space


def test_a_fetch_that_gets_no_byte_leaves_nothing(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    server.fail(PATH, *[cut(0)] * 4)
    with pytest.raises(NetworkError):
        store.fetch(entry)
    assert list(store.home.artefact_folder(entry.id).iterdir()) == []


def test_a_part_of_a_file_that_changed_since_is_thrown_away(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry, _ = left_behind(server, store)
    server.serve(PATH, OTHER, etag='"v2"', headers=goog_hash(OTHER))
    store.fetch(entry)
    assert_only(store, OTHER)


@pytest.mark.parametrize(
    "steps", [[1], [4096], [4095, 1, 1], [5000, 3000, 192, 1], [100_000], [300_000, 7, 9000]]
)
def test_whole_pages_are_written_and_flush_writes_the_rest(tmp_path: Path, steps: list[int]) -> None:
    body = random_bytes(sum(steps))
    partial = Partial(tmp_path, "m.pth", "https://a.org/m.pth")
    partial.begin(Identity('"v1"', size=len(body) + 10), ())
    position = 0
    for step in steps:
        partial.append(memoryview(body)[position : position + step])
        position += step
        written = partial.path.read_bytes()
        assert partial.size == position and len(written) == position // PAGESIZE * PAGESIZE
        assert body.startswith(written)
    partial.flush()
    assert partial.path.read_bytes() == body
    partial.append(b"0123456789")  # from the middle of a page
    assert partial.digests().sha256 == sha256(body + b"0123456789")
    partial.sync()
    partial.rename()
    assert (tmp_path / "m.pth").read_bytes() == body + b"0123456789"
    partial.close()


def test_what_waits_in_memory_is_written_when_it_is_closed(tmp_path: Path) -> None:
    body = random_bytes(10_000)
    partial = Partial(tmp_path, "m.pth", "https://a.org/m.pth")
    partial.begin(Identity('"v1"', size=20_000), ())
    partial.append(body)
    partial.close()
    (part,) = tmp_path.glob(".*.part")
    assert part.read_bytes() == body
    again = Partial(tmp_path, "m.pth", "https://a.org/m.pth")
    again.resume()
    assert (again.size, again.digests().sha256) == (10_000, sha256(body))
    again.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_promise_that_comes_late_is_checked_from_the_first_byte(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    server.serve(PATH, BODY)

    def promise(_request: Request, answer: Answer) -> Answer:
        return answer.with_header("Repr-Digest", f"md5=:{md5_of(OTHER)}:")

    server.fail(PATH, cut(40_000), promise, promise)
    with pytest.raises(IntegrityError, match="md5 is"):
        store.fetch(entry_of(server.url(PATH)))
    assert store.files == [] and store.leftovers() == []
    server.fail(PATH, cut(40_000), lambda _r, a: a.with_header("Repr-Digest", f"md5=:{md5_of(BODY)}:"))
    fetched = store.fetch(entry_of(server.url(PATH)))
    assert fetched.record.server_hashes == {"md5": hashlib.md5(BODY).hexdigest()}
    assert_only(store, BODY)


# -- Checksums taken behind the receiving: the same as in one piece, whatever the order of events ------------


HASHING_BODY = random_bytes(3_000_001)


@pytest.mark.parametrize("algorithms", [[], ["md5"], ["crc32c"], ["md5", "crc32c", "sha256"]])
@pytest.mark.parametrize("piece", [70_001, 1 << 20, 4_000_000])
def test_digests(algorithms: list[str], piece: int) -> None:
    hasher = BackgroundHasher(algorithms)
    for start in range(0, len(HASHING_BODY), piece):
        hasher.update(HASHING_BODY[start : start + piece])
    for _ in range(2):
        found = hasher.digests()
        assert (found.size, found.sha256) == (len(HASHING_BODY), hashlib.sha256(HASHING_BODY).hexdigest())
        assert found.md5 == (hashlib.md5(HASHING_BODY).hexdigest() if "md5" in algorithms else "")
        assert found.crc32c == (f"{google_crc32c.value(HASHING_BODY):08x}" if "crc32c" in algorithms else "")
    hasher.update(b"more")
    assert hasher.digests().sha256 == hashlib.sha256(HASHING_BODY + b"more").hexdigest()
    hasher.close()


@pytest.mark.parametrize("connections", [1, 3])
def test_a_piece_never_changes_once_it_is_given(store: Store, server: FaultServer, connections: int) -> None:
    url, policy = (
        server.serve("/m.pth", HASHING_BODY),
        replace(store.policy, segment=300_000, connections=connections),
    )
    with url_opener(policy) as opener, opener(url, 0, None, 1) as first, opener(url, 0, None) as response:
        segments = Segments(url, opener, policy, first.identity, 0)
        pieces = list(response.body if connections == 1 else segments.pieces())
        segments.close()
    assert len(pieces) > 5 and b"".join(pieces) == HASHING_BODY


def test_no_more_calls_wait_than_promised() -> None:
    gate, made = threading.Event(), []
    thread = BackgroundThread("test", 3)
    thread.submit(gate.wait, 10)
    assert thread.submit_if_idle(made.append, 1) and thread.submit_if_idle(made.append, 2)
    assert not thread.submit_if_idle(made.append, 3)
    giver = threading.Thread(target=thread.submit, args=(made.append, 4))
    giver.start()
    time.sleep(0.05)
    assert giver.is_alive() and made == []
    gate.set()
    giver.join(5)
    thread.wait()
    assert made == [1, 2, 4]
    thread.close()


def test_an_error_is_told_every_time_and_nothing_is_done_after_it() -> None:
    made: list[int] = []
    thread = BackgroundThread("test")
    thread.submit(made.append, 1)
    thread.submit(int, "x")
    thread.submit(made.append, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            thread.wait()
    assert made == [1]
    thread.close()
    thread.close()
