"""What stays true over time: trust on first use, the cache, mirrors, imports, archives."""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import FormatError, IntegrityError, NetworkError, NotFoundError, UsageError
from ckptkit.registry.schema import Entry
from ckptkit.store.fetch import Fetched, Job, fetch
from ckptkit.store.sources import file_name_of, parse_mirrors
from tests.store.conftest import AssertOnly, Store
from tests.support.entries import anything, entry_of, random_bytes, tar_gz
from tests.support.http_server import (
    Answer,
    Fault,
    FaultServer,
    Request,
    cut,
    goog_hash,
    redirect,
    stall,
    status,
)

BODY = random_bytes(100_000)
OTHER = random_bytes(100_000, seed=2)
PATH = "/x/model.pth"
ARCHIVE = tar_gz({"moat/m.index": b"index", "moat/m.data-00000-of-00001": BODY})


def page(_request: Request, answer: Answer) -> Answer:
    return replace(answer, body=b"<!DOCTYPE html><title>Log in</title>")


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def import_into(store: Store, entry: Entry, file: Path, **options: bool) -> Fetched:
    return store.import_file(entry, file, **options)


# Trust on first use.


def test_a_file_that_changed_is_refused_unless_the_user_accepts(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    first = store.fetch(entry)
    server.serve(PATH, OTHER)
    with pytest.raises(IntegrityError, match=f"{sha256(BODY)}.*--accept-new"):
        store.fetch(entry, force=True)
    assert_only(store, BODY)
    assert store.home.record(entry.id) == first.record
    second = store.fetch(entry, force=True, accept_new=True)
    assert_only(store, OTHER)
    assert second.record.sha256 == sha256(OTHER)
    server.serve(PATH, BODY)
    with pytest.raises(IntegrityError):  # the accepted one is what is trusted now
        store.fetch(entry, force=True)


def test_trust_outlives_the_file(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    store.fetch(entry).artefact.unlink()
    server.serve(PATH, OTHER)
    with pytest.raises(IntegrityError, match="--accept-new"):
        store.fetch(entry)
    assert store.files == []


def test_a_pin_is_above_the_first_use(server: FaultServer, store: Store, assert_only: AssertOnly) -> None:
    store.fetch(entry_of(server.serve(PATH, BODY)))
    pinned = entry_of(server.serve(PATH, OTHER), sha256=sha256(OTHER))
    assert not store.fetch(pinned).from_cache
    assert_only(store, OTHER)
    with pytest.raises(IntegrityError):
        store.fetch(entry_of(server.url(PATH), sha256=sha256(BODY)), offline=True)


# What is there already.


def test_what_is_there_is_not_fetched_again(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    first, second, third = store.fetch(entry), store.fetch(entry), store.fetch(entry, verify=True)
    assert [f.from_cache for f in (first, second, third)] == [False, True, True]
    assert first.record == second.record == third.record and first.path == second.path
    assert len(server.requests) == 1
    assert not store.fetch(entry, force=True).from_cache
    assert len(server.requests) == 2


def test_a_touched_file_is_hashed_again_and_kept(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    path = store.fetch(entry).artefact
    os.utime(path, (1, 1))
    again = store.fetch(entry, offline=True)
    assert again.from_cache and again.record.mtime_ns == 1_000_000_000
    assert len(server.requests) == 1


def test_a_damaged_file_is_noticed_and_fetched_again(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    path = store.fetch(entry).artefact
    for damage in (BODY[:-1], BODY[:-1] + b"?"):
        path.write_bytes(damage)
        with pytest.raises(IntegrityError, match=r"model\.pth.*without --offline"):
            store.fetch(entry, offline=True)
        assert not store.fetch(entry).from_cache
        assert_only(store, BODY)


def test_damage_behind_an_unchanged_time_shows_when_asked(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    fetched = store.fetch(entry)
    fetched.artefact.write_bytes(OTHER)
    os.utime(fetched.artefact, ns=(0, fetched.record.mtime_ns))
    with pytest.raises(IntegrityError, match="its record says"):
        store.fetch(entry, verify=True, offline=True)


@pytest.mark.parametrize("damage", ["", "{}", None])
def test_a_lost_record_is_made_again_and_said(
    server: FaultServer, store: Store, assert_only: AssertOnly, damage: str | None
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    path = store.fetch(entry).artefact
    record = path.with_name("model.pth.json")
    record.unlink() if damage is None else record.write_text(damage)
    again = store.fetch(entry, offline=True)
    assert again.from_cache and again.record.sha256 == sha256(BODY)
    assert again.record.note == "found in the cache without a sound record"
    assert any("missing or damaged" in note for note in store.notes)
    assert_only(store, BODY)


def test_a_lost_record_of_a_pinned_file_is_believed_only_if_it_fits(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    entry = entry_of(server.serve(PATH, BODY), sha256=sha256(BODY))
    path = store.fetch(entry).artefact
    path.with_name("model.pth.json").unlink()
    path.write_bytes(OTHER)
    assert not store.fetch(entry).from_cache
    assert_only(store, BODY)


# Offline, mirrors, sources.


def test_offline_never_asks(server: FaultServer, store: Store, tmp_path: Path) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    with pytest.raises(NetworkError, match="--offline forbids"):
        store.fetch(entry, offline=True)
    assert server.requests == []
    store.fetch(entry)
    assert store.fetch(entry, offline=True).from_cache
    with pytest.raises(NetworkError, match="--offline"):
        store.fetch(entry, offline=True, force=True)
    (tmp_path / "model.pth").write_bytes(BODY)
    mirrors = parse_mirrors([f"{server.base}/x={tmp_path.as_uri()}"], "")
    assert not store.fetch(entry, offline=True, force=True, mirrors=mirrors).from_cache


def test_a_mirror_is_asked_instead_and_recorded(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    published = "https://storage.googleapis.com/gresearch/tf-deeplab/model.pth"
    server.serve("/mirror/tf-deeplab/model.pth", BODY)
    rule = f"https://storage.googleapis.com/gresearch={server.base.replace('//', '//me:secret@')}/mirror"
    record = store.fetch(entry_of(published), mirrors=parse_mirrors([rule], "")).record
    assert_only(store, BODY)
    assert record.url == published
    assert record.used_url == server.url("/mirror/tf-deeplab/model.pth")


def test_falling_back_to_a_copy_without_statistics_is_said_loudly(server: FaultServer, store: Store) -> None:
    new, old = server.url("/w.tar.gz"), server.serve("/with.tar.gz", ARCHIVE)
    entry = entry_of({"url": new, "bn_statistics": True}, {"url": old, "bn_statistics": False})
    fetched = store.fetch(entry)
    assert fetched.record.bn_statistics is False
    assert "falling back" in store.warnings[0] and "--allow-missing-bn" in store.warnings[0]
    store.warnings.clear()
    assert store.fetch(entry).from_cache
    assert "no BatchNorm moving statistics" in store.warnings[0]
    server.serve("/w.tar.gz", ARCHIVE)  # the better copy is back: --force takes it
    store.warnings.clear()
    assert store.fetch(entry, force=True).record.file == "w.tar.gz"
    assert store.fetch(entry).record.bn_statistics is True and store.warnings == []


def lesser_and_better(server: FaultServer, better: str, **fields: Any) -> Entry:
    """An entry with a better copy at ``better`` and one without statistics that can be had."""
    lesser = server.serve("/with.tar.gz", ARCHIVE)
    return entry_of({"url": better, "bn_statistics": True}, {"url": lesser, "bn_statistics": False}, **fields)


PASSING: dict[str, list[Fault]] = {
    "503": [status(503)] * 4,
    "429": [status(429)] * 4,
    "429 for an hour": [status(429, ("Retry-After", "3600"))],
    "403 with Retry-After": [status(403, ("Retry-After", "1"))] * 4,
    "400": [status(400)],
    "451": [status(451)],
    "stalls": [stall(0)] * 4,
    "drops": [cut(10)] + [cut(0)] * 4,
    "403 to the rest": [cut(1000), status(403)],
    "a page for a login": [page],
    "401 behind a redirect": [redirect("/signed")],
    "a redirect that is not followed": [redirect("ftp://a.org/x")],
}


@pytest.mark.parametrize("fault", PASSING)
def test_no_lesser_copy_because_of_a_fault_that_may_pass(
    server: FaultServer, store: Store, fault: str
) -> None:
    entry = lesser_and_better(server, server.serve("/w.tar.gz", ARCHIVE))
    server.fail("/w.tar.gz", *PASSING[fault])
    server.fail("/signed", status(401))
    with pytest.raises(NetworkError, match=r"with\.tar\.gz has no BatchNorm.*ckptkit import test-entry FILE"):
        store.fetch(entry, policy=replace(store.policy, read_timeout=0.2))
    assert server.ranges("/with.tar.gz") == [] and store.files == [] and store.warnings == []
    assert store.fetch(entry).record.bn_statistics is True


LOCAL = {
    "no such host": "https://no-such-host.invalid/w.tar.gz",
    "nobody listens": "http://127.0.0.1:9/w.tar.gz",
    "no TLS": "https://127.0.0.1:{port}/w.tar.gz",
    "a disk that is not mounted": "file:///mnt/no-such-disk/w.tar.gz",
}


@pytest.mark.parametrize("fault", LOCAL)
def test_no_lesser_copy_because_of_a_fault_of_this_machine(
    server: FaultServer, store: Store, fault: str
) -> None:
    entry = lesser_and_better(server, LOCAL[fault].format(port=server.port))
    with pytest.raises(NetworkError, match=r"with\.tar\.gz has no BatchNorm"):
        store.fetch(entry, policy=replace(store.policy, connect_timeout=0.2, read_timeout=0.2))
    assert server.ranges("/with.tar.gz") == [] and store.files == []


def test_no_lesser_copy_because_of_offline(server: FaultServer, store: Store, tmp_path: Path) -> None:
    (tmp_path / "with.tar.gz").write_bytes(ARCHIVE)
    entry = entry_of(
        {"url": server.serve("/w.tar.gz", ARCHIVE), "bn_statistics": True},
        {"url": (tmp_path / "with.tar.gz").as_uri(), "bn_statistics": False},
    )
    with pytest.raises(NetworkError, match="--offline forbids"):
        store.fetch(entry, offline=True)
    assert store.files == []


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_the_plain_answer_that_it_is_gone_lets_a_lesser_copy_be_taken(
    server: FaultServer, store: Store, code: int
) -> None:
    entry = lesser_and_better(server, server.url("/w.tar.gz"))
    server.fail("/w.tar.gz", *[status(code)] * 2)
    policy = replace(store.policy, connections=4, split_from=1000, segment=1000)
    assert store.fetch(entry, policy=policy).record.bn_statistics is False
    assert "falling back" in store.warnings[0] and store.slept == []


def test_sources_that_need_a_hand_are_named_and_not_asked(server: FaultServer, store: Store) -> None:
    by_hand = {"url": "https://pan.baidu.com/s/1d5?pwd=z8mf", "manual": True}
    with pytest.raises(
        NetworkError,
        match=r"no source could provide the file.*404.*pan\.baidu.*ckptkit import test-entry FILE",
    ):
        store.fetch(entry_of(server.url("/gone.pth"), by_hand))
    with pytest.raises(NetworkError, match=r"only be downloaded by hand.*ckptkit import test-entry FILE"):
        store.fetch(entry_of(by_hand))
    assert [request.path for request in server.requests] == ["/gone.pth"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.org/x/m.pth", "m.pth"),
        ("https://a.org/m%20n.pth#part", "m n.pth"),
        ("https://a.org/", "e.bin"),
        ("https://a.org/..", "e.bin"),
        ("https://a.org/%2e%2e", "e.bin"),
        ("https://a.org/a%5c..%5cb", "e.bin"),
        ("https://a.org/.hidden", "e.bin"),
        ("https://a.org/x%00y", "e.bin"),
    ],
)
def test_names_of_artefacts_stay_in_their_folder(url: str, expected: str) -> None:
    assert file_name_of(url, "e") == expected


# Archives.


def test_an_archive_is_unpacked_and_its_folder_given(server: FaultServer, store: Store) -> None:
    fetched = store.fetch(entry_of(server.serve("/m.tar.gz", ARCHIVE, headers=goog_hash(ARCHIVE))))
    folder = store.home.path / "unpacked" / "test-entry" / "moat"
    assert fetched.path == folder
    assert (folder / "m.data-00000-of-00001").read_bytes() == BODY
    assert fetched.artefact.read_bytes() == ARCHIVE


@pytest.mark.parametrize("name", ["tiny_moat0_pe", "tiny_moat0_nope_ema", "tiny_moat0_pe_tf2"])
def test_archives_made_by_the_published_code(
    server: FaultServer, store: Store, shared_folder: Path, name: str
) -> None:
    published = shared_folder / "checkpoints" / f"{name}.tar.gz"
    body = published.read_bytes()
    server.fail(f"/{name}.tar.gz", cut(len(body) // 3))
    fetched = store.fetch(entry_of(server.serve(f"/{name}.tar.gz", body, headers=goog_hash(body))))
    with tarfile.open(published) as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}
    folder = store.home.unpacked_folder("test-entry")
    assert {name: (folder / name).read_bytes() for name in members} == members
    assert len(list(fetched.path.glob("*.index"))) == 1


@pytest.mark.parametrize("offline", [True, False])
def test_a_lost_folder_is_unpacked_again(server: FaultServer, store: Store, offline: bool) -> None:
    import shutil

    entry = entry_of(server.serve("/m.tar.gz", ARCHIVE))
    store.fetch(entry)
    shutil.rmtree(store.home.unpacked_folder(entry.id))
    again = store.fetch(entry, offline=offline)
    assert again.from_cache and (again.path / "m.index").read_bytes() == b"index"
    (again.path / "m.index").unlink()
    assert (store.fetch(entry, offline=offline).path / "m.index").exists()
    assert len(server.requests) == 1


def test_a_new_archive_replaces_the_folder(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve("/m.tar.gz", ARCHIVE))
    store.fetch(entry)
    server.serve("/m.tar.gz", tar_gz({"n.index": b"new"}))
    fetched = store.fetch(entry, force=True, accept_new=True)
    assert [path.name for path in fetched.path.iterdir() if path.name[0] != "."] == ["n.index"]


def test_a_plain_file_in_place_of_an_archive_takes_its_folder_away(
    server: FaultServer, store: Store, assert_only: AssertOnly
) -> None:
    store.fetch(entry_of(server.serve("/m.tar.gz", ARCHIVE))).artefact.unlink()
    fetched = store.fetch(entry_of(server.serve(PATH, BODY)), force=True)
    assert fetched.path == fetched.artefact
    assert not store.home.unpacked_folder("test-entry").exists()
    assert_only(store, BODY)


def link() -> tarfile.TarInfo:
    info = tarfile.TarInfo("moat/link")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "body",
    [tar_gz({"../m.index": b"x"}), tar_gz({"m.index": b"x"}, [link()]), ARCHIVE[:-2000], b"\x1f\x8bnonsense"],
    ids=["dot-dot", "link", "truncated", "nonsense"],
)
def test_a_refused_archive_leaves_nothing_at_all(server: FaultServer, store: Store, body: bytes) -> None:
    with pytest.raises(FormatError, match=r"m\.tar\.gz: .*; nothing was kept; run the same command again"):
        store.fetch(entry_of(server.serve("/m.tar.gz", body, headers=goog_hash(body))))
    assert store.files == [] and store.leftovers() == []
    assert store.home.record("test-entry") is None


# By hand.


def test_import_then_fetch(server: FaultServer, store: Store, tmp_path: Path) -> None:
    entry = entry_of(server.serve("/m.tar.gz", ARCHIVE))
    file = tmp_path / "m.tar.gz"
    file.write_bytes(ARCHIVE)
    imported = import_into(store, entry, file)
    assert (imported.path / "m.data-00000-of-00001").read_bytes() == BODY
    assert imported.record.note == "imported by hand"
    assert imported.record.url == server.url("/m.tar.gz") and imported.record.used_url == file.as_uri()
    assert store.fetch(entry).from_cache and server.requests == []
    assert import_into(store, entry, file).from_cache
    assert file.read_bytes() == ARCHIVE


@pytest.mark.parametrize("force", [False, True])
def test_no_force_takes_an_archive_that_cannot_be_unpacked(store: Store, tmp_path: Path, force: bool) -> None:
    entry = entry_of("https://a.org/m.tar.gz")
    for body in (ARCHIVE[:-2000], tar_gz({"../m.index": b"x"}), b"cat"):
        (tmp_path / "m.tar.gz").write_bytes(body)
        with pytest.raises(FormatError, match=r"m\.tar\.gz: .*; give the file as it was published$"):
            import_into(store, entry, tmp_path / "m.tar.gz", force=force)
        assert store.files == [] and store.home.record(entry.id) is None


def test_import_replaces_only_when_told_and_accepted(
    server: FaultServer, store: Store, tmp_path: Path, assert_only: AssertOnly
) -> None:
    entry = entry_of(server.serve(PATH, BODY))
    store.fetch(entry)
    (tmp_path / "other.pth").write_bytes(OTHER)
    run = f"ckptkit import test-entry {tmp_path / 'other.pth'} --accept-new"
    with pytest.raises(UsageError, match=rf"other bytes \(downloaded .* from {server.base}.*{run}$"):
        import_into(store, entry, tmp_path / "other.pth")
    with pytest.raises(IntegrityError, match=rf"the lock file .*\(downloaded .*Either may be.*{run}$"):
        import_into(store, entry, tmp_path / "other.pth", force=True)
    assert_only(store, BODY)
    import_into(store, entry, tmp_path / "other.pth", accept_new=True)
    assert_only(store, OTHER)


def test_import_of_an_entry_that_only_a_person_can_download(store: Store, tmp_path: Path) -> None:
    entry = entry_of({"url": "https://pan.baidu.com/s/1d5?pwd=z8mf", "manual": True})
    (tmp_path / "moga.pth").write_bytes(BODY)
    assert import_into(store, entry, tmp_path / "moga.pth").artefact.name == "moga.pth"
    assert store.fetch(entry).from_cache


def test_import_is_checked_like_a_download(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(BODY)
    with pytest.raises(IntegrityError, match="the registry says"):
        import_into(store, entry_of("https://a.org/model.pth", sha256=sha256(OTHER)), file)
    with pytest.raises(NotFoundError, match="no such file"):
        import_into(store, entry_of("https://a.org/model.pth"), tmp_path / "gone")
    with pytest.raises(NotFoundError, match="a folder"):
        import_into(store, entry_of("https://a.org/model.pth"), tmp_path)
    file.write_bytes(b"<!doctype html><title>Please sign in</title>")
    with pytest.raises(FormatError, match="web page"):
        import_into(store, entry_of("https://a.org/model.pth"), file)
    assert store.files == [] and store.leftovers() == []


def test_which_upload_an_imported_file_is(store: Store, tmp_path: Path) -> None:
    sources = (
        {"url": "https://a.org/w.tar.gz", "bn_statistics": True},
        {"url": "https://a.org/with.tar.gz", "bn_statistics": False},
    )
    for name, file, statistics in [
        ("with.tar.gz", "with.tar.gz", False),
        ("w.tar.gz", "w.tar.gz", True),
        ("download (1)", "w.tar.gz", None),
    ]:
        (tmp_path / name).write_bytes(ARCHIVE)
        record = import_into(store, entry_of(*sources), tmp_path / name, force=True).record
        assert (record.file, record.bn_statistics) == (file, statistics)


def test_an_id_that_leads_out_is_refused(server: FaultServer, store: Store) -> None:
    entry = entry_of(server.serve(PATH, BODY)).model_copy(update={"id": "../../evil"})
    with pytest.raises(UsageError, match="cannot be an entry id"):
        fetch(Job(entry, store.home, anything))
    assert server.requests == []
