"""Trust that outlives the cache, changes that are accepted, and fetches that want a checksum first."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import FormatError, IntegrityError, UsageError
from ckptkit.registry.schema import Entry
from ckptkit.store.cache import Home, Record
from ckptkit.store.fetch import Job, import_file
from ckptkit.store.lockfile import LockEntry, LockFile
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import anything, entry_of, random_bytes
from tests.support.http_server import FaultServer, goog_hash, redirect

BODY = random_bytes(50_000)
OTHER = random_bytes(50_000, seed=2)
THIRD = random_bytes(50_000, seed=3)
PATH = "/x/model.pth"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def lock_file() -> Path:
    return Path(os.environ["CKPTKIT_TRUST"])


def locked(id: str = "test-entry", file: str = "model.pth") -> dict[str, Any]:
    value: dict[str, Any] = json.loads(lock_file().read_text())["entries"][id][file]
    return value


def remember(body: bytes, file: str = "model.pth") -> None:
    """Have the lock file know these bytes, as an earlier fetch on another machine would have left it."""
    seen = LockEntry(sha256(body), len(body), "2026-01-02T03:04:05+00:00", f"https://a.org/{file}")
    LockFile(lock_file()).remember("test-entry", file, seen)


def test_the_first_fetch_is_remembered(server: FaultServer, store: Store) -> None:
    url = server.serve(PATH, BODY, headers=goog_hash(BODY))
    record = store.fetch(entry_of(url)).record
    assert locked() == {
        "sha256": sha256(BODY),
        "size": len(BODY),
        "first_seen": record.fetched_at,
        "url": url,
        "used_url": url,
        "how": "download",
        "server_hashes": {
            "md5": hashlib.md5(BODY).hexdigest(),
            "crc32c": record.server_hashes["crc32c"],
        },
        "history": [],
    }


def test_no_password_gets_into_the_lock_file(server: FaultServer, store: Store) -> None:
    url = server.serve(PATH, BODY)
    store.fetch(entry_of(url.replace("//", "//me:secret@")))
    assert (locked()["url"], locked()["used_url"]) == (url, url)


def test_trust_outlives_the_cache(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    seen = store.fetch(entry).record.fetched_at.partition(".")[0] + "+00:00"
    shutil.rmtree(store.home.path)
    server.serve(PATH, OTHER)
    with pytest.raises(IntegrityError) as caught:
        store.fetch(entry)
    assert str(caught.value) == (
        f"model.pth from 127.0.0.1:{server.port}: sha256 is {sha256(OTHER)}, but the lock file {lock_file()} "
        f"(downloaded {seen} from {entry.sources[0].url}) says {sha256(BODY)}. Either may be the wrong one. "
        "If it is the earlier record, replace it. Run: ckptkit fetch test-entry --force --accept-new"
    )
    assert store.files == [] and store.leftovers() == [] and store.home.record(entry.id) is None
    server.serve(PATH, BODY)
    assert store.fetch(entry).record.sha256 == sha256(BODY)


def test_what_is_accepted_keeps_the_old_record_in_both_places(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    first = store.fetch(entry).record
    for body in (OTHER, THIRD):
        server.serve(PATH, body)
        store.notes.clear()
        latest = store.fetch(entry, force=True, accept_new=True).record
    assert_only(store, THIRD)
    assert any(f"now has sha256 {sha256(THIRD)}; its history keeps {sha256(OTHER)}" in n for n in store.notes)
    assert [old["sha256"] for old in locked()["history"]] == [sha256(BODY), sha256(OTHER)]
    assert locked()["sha256"] == sha256(THIRD)
    facts = {"size": 50_000, "used_url": entry.sources[0].url}
    assert latest.previous[0] == {"sha256": sha256(BODY), "fetched_at": first.fetched_at, **facts}
    assert [old["sha256"] for old in latest.previous] == [sha256(BODY), sha256(OTHER)]
    assert store.home.record(entry.id) == latest
    assert store.fetch(entry, force=True).record.previous == latest.previous  # the same bytes again
    server.serve(PATH, BODY)
    with pytest.raises(IntegrityError, match=f"says {sha256(THIRD)}"):
        store.fetch(entry, force=True)


@pytest.mark.parametrize("previous", ["x", {"a": 1}, [1], None])
def test_a_record_with_an_unsound_past_is_no_record(previous: Any) -> None:
    value = json.loads(Record("m", "u", "f", 1, "a" * 64, "t").to_json())
    assert Record.from_json(json.dumps(value)) is not None
    assert Record.from_json(json.dumps({**value, "previous": previous})) is None


def test_a_cached_file_that_is_not_the_trusted_one_is_fetched_again(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    store.fetch(entry)
    lock_file().unlink()
    remember(OTHER)  # CI: a cache from elsewhere, and the lock file of the repository
    with pytest.raises(IntegrityError, match=f"the lock file .* says {sha256(OTHER)}; run without --offline"):
        store.fetch(entry, offline=True)
    with pytest.raises(IntegrityError, match=f"sha256 is {sha256(BODY)}, but the lock file .*--accept-new"):
        store.fetch(entry)
    server.serve(PATH, OTHER)
    assert not store.fetch(entry).from_cache
    assert_only(store, OTHER)


def test_accepting_what_is_cached_asks_no_server(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    store.fetch(entry)
    lock_file().unlink()
    remember(OTHER)
    assert store.fetch(entry, accept_new=True).from_cache and len(server.requests) == 1
    assert locked()["sha256"] == sha256(BODY)
    assert [old["sha256"] for old in locked()["history"]] == [sha256(OTHER)]


def test_what_was_cached_before_there_was_a_lock_file_is_remembered(
    server: FaultServer, store: Store
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    record = store.fetch(entry).record
    lock_file().unlink()
    assert store.fetch(entry, offline=True).from_cache
    assert (locked()["sha256"], locked()["first_seen"]) == (sha256(BODY), record.fetched_at)


def test_a_file_without_a_record_must_be_the_trusted_one(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    artefact = store.fetch(entry).artefact
    artefact.with_name("model.pth.json").unlink()
    artefact.write_bytes(OTHER)
    assert not store.fetch(entry).from_cache
    assert_only(store, BODY)
    assert any("no sound record, and sha256 is" in note for note in store.notes)


def test_the_pin_replaces_what_was_trusted(server: FaultServer, store: Store) -> None:
    remember(BODY)
    pinned = entry_of(server.serve(PATH, OTHER), sha256=sha256(OTHER))
    store.fetch(pinned)
    assert locked()["sha256"] == sha256(OTHER)
    assert [old["sha256"] for old in locked()["history"]] == [sha256(BODY)]


def test_another_source_may_have_the_trusted_bytes_but_none_that_nobody_knows(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    remember(BODY)
    changed, unknown = server.serve(PATH, OTHER), server.serve("/y/other.pth", THIRD)
    with pytest.raises(IntegrityError, match=f"says {sha256(BODY)}"):
        store.fetch(entry_of(changed, unknown))
    assert [request.path for request in server.requests] == [PATH] and store.files == []
    assert any("/y/other.pth: passed over" in note for note in store.notes)
    store.fetch(entry_of(changed, unknown, server.serve("/z/model.pth", BODY)))
    assert_only(store, BODY)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("options", [{}, {"force": True}, {"accept_new": True}])
def test_a_damaged_lock_file_stops_every_fetch_before_it_begins(
    server: FaultServer, store: Store, cached: bool, options: dict[str, bool]
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    if cached:
        store.fetch(entry)
    asked = len(server.requests)
    lock_file().write_text("{")
    with pytest.raises(
        FormatError, match=r"ckptkit\.lock: not a valid lock file.*move it away to start over"
    ):
        store.fetch(entry, **options)
    assert len(server.requests) == asked and lock_file().read_text() == "{"


def test_a_lock_file_that_cannot_be_written_is_a_warning(
    server: FaultServer,
    store: Store,
    assert_only: AssertOnly,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config").write_text("a file where the folder should be")
    monkeypatch.setenv("CKPTKIT_TRUST", str(tmp_path / "config" / "ckptkit.lock"))
    entry = entry_of(server.serve(PATH, BODY))
    store.fetch(entry)
    assert_only(store, BODY)
    assert len(store.warnings) == 1
    assert "ckptkit.lock" in store.warnings[0] and "remembered in the cache only" in store.warnings[0]
    assert store.fetch(entry).from_cache and len(store.warnings) == 1
    server.serve(PATH, OTHER)
    with pytest.raises(IntegrityError, match=r"its record \(downloaded"):  # the cache's own record
        store.fetch(entry, force=True)


def test_an_import_is_remembered_and_held_to(store: Store, tmp_path: Path) -> None:
    entry, file = entry_of("https://a.org/x/model.pth"), tmp_path / "download (1)"
    file.write_bytes(BODY)
    import_file(Job(entry, store.home, anything), file)
    assert (locked()["sha256"], locked()["how"]) == (sha256(BODY), "import")
    file.write_bytes(OTHER)
    elsewhere = Home(tmp_path / "another cache")
    with pytest.raises(IntegrityError, match="the lock file"):
        import_file(Job(entry, elsewhere, anything), file)
    import_file(Job(entry, elsewhere, anything, accept_new=True), file)
    assert [old["sha256"] for old in locked()["history"]] == [sha256(BODY)]


# --require-checksum.


def linked(server: FaultServer, body: bytes) -> None:
    """ExpectedChecksum the sha256 on the way, as Hugging Face does."""
    server.serve("/real/model.pth", body)
    server.fail(PATH, redirect("/real/model.pth", 302, ("X-Linked-Etag", sha256(body))))


@pytest.mark.parametrize("hashes", ["none", "x-goog-hash", "x-linked-etag"])
def test_no_word_of_a_server_counts(server: FaultServer, store: Store, hashes: str) -> None:
    server.serve(PATH, BODY, headers=goog_hash(BODY) if hashes == "x-goog-hash" else ())
    if hashes == "x-linked-etag":
        linked(server, BODY)
    with pytest.raises(IntegrityError) as caught:
        store.fetch(entry_of(server.url(PATH)), require_checksum=True)
    assert str(caught.value) == (
        "test-entry: no checksum is known before the file is fetched: the registry pins none; the lock "
        f"file {lock_file()} has none; fetch it once without --require-checksum and look at it, then run "
        "'ckptkit registry pin test-entry' or keep the lock file"
    )
    assert server.requests == [] and store.files == [] and not lock_file().exists()


def pinned(url: str) -> Entry:
    return entry_of(url, sha256=sha256(BODY))


@pytest.mark.parametrize("tie", ["pin", "lock file"])
def test_a_pin_or_the_lock_file_is_enough(
    server: FaultServer, store: Store, assert_only: AssertOnly, tie: str
) -> None:
    url = server.serve(PATH, OTHER)
    entry = pinned(url) if tie == "pin" else entry_of(url)
    if tie == "lock file":
        remember(BODY)
    with pytest.raises(IntegrityError, match=f"says {sha256(BODY)}"):
        store.fetch(entry, require_checksum=True)
    assert store.files == []
    server.serve(PATH, BODY)
    store.fetch(entry, require_checksum=True)
    assert_only(store, BODY)
    assert store.fetch(entry, require_checksum=True).from_cache


def test_only_sources_with_a_known_checksum_are_asked(server: FaultServer, store: Store) -> None:
    remember(BODY)
    unknown, known = server.serve("/y/other.pth", BODY), server.serve(PATH, BODY)
    assert store.fetch(entry_of(unknown, known), require_checksum=True).record.file == "model.pth"
    assert [request.path for request in server.requests] == [PATH]


def test_what_is_cached_needs_it_too(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    store.fetch(entry)
    lock_file().unlink()
    with pytest.raises(IntegrityError, match="no checksum is known before the file is fetched"):
        store.fetch(entry, require_checksum=True)
    store.fetch(entry)
    assert store.fetch(entry, require_checksum=True).from_cache


def test_what_is_cached_from_a_source_nobody_knows_gives_way_to_one_that_is_known(
    server: FaultServer, store: Store
) -> None:
    unknown, known = server.serve("/y/other.pth", OTHER), server.serve(PATH, BODY)
    assert store.fetch(entry_of(unknown, known)).record.file == "other.pth"
    lock_file().unlink()
    remember(BODY)
    fetched = store.fetch(entry_of(unknown, known), require_checksum=True)
    assert not fetched.from_cache and fetched.artefact.read_bytes() == BODY


def test_it_contradicts_accepting_whatever_comes(server: FaultServer, store: Store) -> None:
    with pytest.raises(UsageError, match="only one of --accept-new and --require-checksum"):
        store.fetch(pinned(server.serve(PATH, BODY)), require_checksum=True, accept_new=True)
    assert server.requests == []
