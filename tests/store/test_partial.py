"""What an earlier run left behind: continued if it is sound, thrown away if it is not."""

from __future__ import annotations

import hashlib
from mmap import PAGESIZE
from pathlib import Path

import pytest

from ckptkit.errors import IntegrityError, NetworkError
from ckptkit.registry import Entry
from ckptkit.store.fetch import Fetched, import_file
from ckptkit.store.partial import Partial
from ckptkit.store.transport import Identity
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
    return import_file(entry, file, store.home, notes=store.notes.append, **options)


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
    assert server.ranges(PATH) == ([40_000, None] if damage == "flip" else [None])


def test_a_part_that_was_whole_is_confirmed_by_its_last_byte(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry, part = left_behind(server, store)
    part.write_bytes(BODY)
    store.fetch(entry)
    assert_only(store, BODY)
    assert server.ranges(PATH) == [99_999]


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
    again.pick_up()
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
