"""Object stores as sources and as targets: fsspec's memory file system always, a local S3 server if there."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import IntegrityError, MissingDependencyError, NetworkError, UsageError
from ckptkit.base.net import (
    PassingError,
    RangeError,
    SourceError,
    SourceGoneError,
)
from ckptkit.store import remote
from ckptkit.store.lockfile import LockFile
from ckptkit.store.openers import Identity
from ckptkit.store.remote import Store as Reached
from ckptkit.store.remote import exists, is_remote, open_remote, upload
from ckptkit.store.sources import parse_mirrors
from tests.store.conftest import AssertOnly, Store
from tests.support.commands import pip_install
from tests.support.entries import entry_of, random_bytes, tar_gz
from tests.support.http_server import FaultServer
from tests.support.s3_server import BUCKET, s3_server

fsspec = pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")

BODY = random_bytes(300_000)
OTHER = random_bytes(300_000, seed=2)
URL = "gs://bucket/x/model.pth"


class Faulty(memory.MemoryFileSystem):
    """The memory file system with faults, and with what Google's store says of an object."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    faults: list[Callable[[], None]] = []  # noqa: RUF012
    breaks_after: list[int] = []  # noqa: RUF012
    said: dict[str, Any] = {}  # noqa: RUF012
    opened: list[int] = []  # noqa: RUF012

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if self.faults:
            self.faults.pop(0)()
        return {**super().info(path, **options), **self.said}

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        stream = super().open(path, mode, **options)
        if mode != "rb" or not self.breaks_after:
            return stream
        return Broken(stream.getvalue(), self.breaks_after.pop(0))


class Broken(memory.MemoryFile):
    """Breaks after so many bytes of all that is read."""

    def __init__(self, data: bytes, after: int) -> None:
        super().__init__(data=data)
        self._left = after
        self.seek(0)

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            raise OSError("connection reset")
        piece = super().read(min(size, self._left))
        self._left -= len(piece)
        return piece


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Stand in for Google's store."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setitem(remote.STORES, "gs", Reached("faulty", "gcsfs"))
    files = fsspec.filesystem("faulty")
    Faulty.store.clear()
    Faulty.faults, Faulty.breaks_after, Faulty.said = [], [], {}
    yield files
    Faulty.store.clear()


def raising(error: Exception) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


def google(body: bytes) -> dict[str, str]:
    return {"md5Hash": base64.b64encode(hashlib.md5(body).digest()).decode(), "generation": "7"}


def test_an_object_is_fetched_and_checked(objects: Faulty, store: Store, assert_only: AssertOnly) -> None:
    objects.pipe("/bucket/x/model.pth", BODY)
    Faulty.said = google(BODY)
    record = store.fetch(entry_of(URL)).record
    assert_only(store, BODY)
    assert (record.url, record.used_url, record.file, record.generation) == (URL, URL, "model.pth", "7")
    assert record.server_hashes == {"md5": hashlib.md5(BODY).hexdigest()}


def test_bytes_that_break_the_stores_promise_are_refused(objects: Faulty, store: Store) -> None:
    objects.pipe("/bucket/x/model.pth", OTHER)
    Faulty.said = google(BODY)
    with pytest.raises(IntegrityError, match=r"md5 is .* the store says"):
        store.fetch(entry_of(URL))
    assert store.files == [] and store.leftovers() == []


def test_a_broken_read_goes_on_where_it_broke(objects: Faulty, store: Store, assert_only: AssertOnly) -> None:
    objects.pipe("/bucket/x/model.pth", BODY)
    Faulty.breaks_after = [100_000, 50_000]
    store.fetch(entry_of(URL))
    assert_only(store, BODY)
    assert "100,000 bytes kept" in store.notes[0] and "150,000 bytes kept" in store.notes[1]


def test_an_object_that_changes_half_way_is_never_mixed(
    objects: Faulty, store: Store, assert_only: AssertOnly
) -> None:
    objects.pipe("/bucket/x/model.pth", BODY)
    Faulty.breaks_after = [100_000]
    Faulty.faults = [lambda: None, lambda: objects.pipe("/bucket/x/model.pth", OTHER)]
    store.fetch(entry_of(URL))
    assert_only(store, OTHER)
    assert any("has changed; beginning again" in note for note in store.notes)


def test_an_object_that_changes_while_it_is_read(
    objects: Faulty, store: Store, assert_only: AssertOnly
) -> None:
    objects.pipe("/bucket/x/model.pth", BODY)
    # asked before the first byte, and after the last
    Faulty.faults = [lambda: None, lambda: objects.pipe("/bucket/x/model.pth", OTHER)]
    store.fetch(entry_of(URL))
    assert_only(store, OTHER)
    assert any("changed while it was read" in note for note in store.notes)


def test_a_branch_of_the_hub_is_recorded_as_the_commit_that_it_was(
    objects: Faulty, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = "a" * 40, "b" * 40
    monkeypatch.setitem(remote.STORES, "hf", Reached("faulty", "huggingface_hub"))
    objects.pipe(f"/org/name@{first}/model.pth", BODY)
    objects.pipe(f"/org/name@{second}/model.pth", OTHER)
    objects.pipe("/org/name/model.pth", OTHER)  # the branch, which is not read
    entry = entry_of("hf://org/name/model.pth")
    with FaultServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.base)
        said = '{"sha": "%s", "siblings": []}'
        server.serve("/api/models/org/name/revision/main", (said % first).encode())
        record = store.fetch(entry).record
        assert record.url == record.used_url == f"hf://org/name@{first}/model.pth"
        (seen,) = LockFile.default(store.home.path).files(entry.id).values()
        assert (seen.url, seen.how, seen.sha256) == (record.url, "download", hashlib.sha256(BODY).hexdigest())
        server.serve("/api/models/org/name/revision/main", (said % second).encode())
        with pytest.raises(IntegrityError, match=first):  # where the known bytes came from
            store.fetch(entry, force=True)
        assert len(server.requests) == 2
        pinned = entry_of(f"hf://org/name@{first}/model.pth", id="pinned")
        assert store.fetch(pinned).record.url == f"hf://org/name@{first}/model.pth"
        assert len(server.requests) == 2, "a commit need not be asked for"
    unknown = entry_of("hf://org/name/model.pth", id="unknown")  # the hub does not answer now
    assert store.fetch(unknown).record.url == "hf://org/name/model.pth"


def test_all_files_of_an_entry_are_of_one_commit(
    objects: Faulty, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    monkeypatch.setitem(remote.STORES, "hf", Reached("faulty", "huggingface_hub"))
    objects.pipe(f"/org/name@{commit}/variables/i", BODY)
    objects.pipe(f"/org/name@{commit}/tags.csv", OTHER)
    entry = entry_of("hf://org/name/variables/i", companions=[{"path": "../tags.csv"}])
    with FaultServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.base)
        said = f'{{"sha": "{commit}", "siblings": []}}'
        server.serve("/api/models/org/name/revision/main", said.encode())
        fetched = store.fetch(entry)
        assert len(server.requests) == 1  # the hub is asked once, for all of them
    assert [one.url for one in fetched.companions] == [f"hf://org/name@{commit}/tags.csv"]
    assert sorted(path.read_bytes() == OTHER for path in store.files) == [False, True]


class NoCredentialsError(Exception):
    """As botocore calls it."""


class FileExpired(OSError):
    """As fsspec calls it."""


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (FileNotFoundError("x"), SourceGoneError, "no such object"),
        (PermissionError("Access Denied"), SourceGoneError, "not permitted: Access Denied"),
        (NoCredentialsError("Unable to locate credentials"), SourceError, "credentials: Unable to locate"),
        (FileExpired("x"), RangeError, "changed while it was read"),
        (OSError("reset"), PassingError, "the store failed: reset"),
        (RuntimeError(""), PassingError, "the store failed: RuntimeError"),
    ],
)
def test_errors_are_translated(objects: Faulty, error: Exception, kind: type[Exception], said: str) -> None:
    Faulty.faults = [raising(error)]
    with pytest.raises(kind, match=said) as caught, open_remote(URL):
        pass
    assert type(caught.value) is kind


def test_the_next_source_is_taken(objects: Faulty, store: Store, assert_only: AssertOnly) -> None:
    objects.pipe("/bucket/second/model.pth", BODY)
    store.fetch(entry_of(URL, "gs://bucket/second/model.pth"))
    assert_only(store, BODY)
    assert store.slept == [] and "no such object" in store.notes[0]


def test_a_folder_is_no_object(objects: Faulty, store: Store) -> None:
    objects.pipe("/bucket/x/model.pth/deeper", BODY)
    with pytest.raises(NetworkError, match="a folder"):
        store.fetch(entry_of(URL))


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (10, 20), (299_999, 300_000), (5, None)])
def test_ranges(objects: Faulty, start: int, stop: int | None) -> None:
    objects.pipe("/bucket/x/model.pth", BODY)
    with open_remote(URL) as whole:
        known = whole.identity
        assert b"".join(whole.body) == BODY and not whole.partial
    with open_remote(URL, start, known, stop) as part:
        assert b"".join(part.body) == BODY[start:stop]
        assert (part.offset, part.length, part.partial) == (start, (stop or 300_000) - start, True)
    for wrong in ((start, Identity(size=300_000), stop), (300_000, known, None), (0, known, 300_001)):
        with pytest.raises(RangeError), open_remote(URL, *wrong):
            pass


def test_a_mirror_may_be_a_store(objects: Faulty, store: Store, assert_only: AssertOnly) -> None:
    objects.pipe("/bucket/x/model.pth", BODY)
    mirrors = parse_mirrors(["https://a.org/files=gs://bucket/x"], "")
    record = store.fetch(entry_of("https://a.org/files/model.pth"), mirrors=mirrors).record
    assert_only(store, BODY)
    assert record.used_url == URL


def test_offline_asks_no_store(objects: Faulty, store: Store) -> None:
    objects.pipe("/bucket/x/model.pth", BODY)
    with pytest.raises(NetworkError, match="--offline forbids"):
        store.fetch(entry_of(URL), offline=True)


@pytest.mark.parametrize(
    ("scheme", "line"),
    [
        ("s3", pip_install("s3fs")),
        ("gs", "pip install gcsfs"),
        ("az", "pip install adlfs"),
        ("hf", pip_install("huggingface_hub")),
    ],
)
def test_a_missing_package_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, scheme: str, line: str
) -> None:
    def missing(_protocol: str) -> None:
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(MissingDependencyError) as caught:
        store.fetch(entry_of(f"{scheme}://bucket/m.pth"))
    assert str(caught.value).endswith(f"; {line}")


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://me:secret@bucket/x"])
def test_addresses_that_name_no_object(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        exists(url)
    assert "secret" not in str(caught.value)
    assert is_remote(url)


# Writing.


def test_upload(objects: Faulty, tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.write_bytes(BODY)
    assert not exists(URL)
    upload(file, URL)
    assert exists(URL) and objects.cat("/bucket/x/model.pth") == BODY
    file.write_bytes(OTHER)
    with pytest.raises(UsageError, match=r"exists already.*--force"):
        upload(file, URL)
    assert objects.cat("/bucket/x/model.pth") == BODY
    upload(file, URL, force=True)
    assert objects.cat("/bucket/x/model.pth") == OTHER


@pytest.mark.parametrize(
    ("said", "message"), [({"size": 5}, "5 bytes were stored, not 300000"), (google(OTHER), "the store says")]
)
def test_what_the_store_has_afterwards_is_compared(
    objects: Faulty, tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    (tmp_path / "m").write_bytes(BODY)
    Faulty.said = said
    with pytest.raises(IntegrityError, match=message):
        upload(tmp_path / "m", URL, force=True)


@pytest.mark.parametrize("error", [PermissionError("no"), OSError("no"), NoCredentialsError("no")])
def test_a_store_that_refuses(objects: Faulty, tmp_path: Path, error: Exception) -> None:
    (tmp_path / "m").write_bytes(BODY)
    Faulty.faults = [raising(error)]
    with pytest.raises(NetworkError, match=r"gs://bucket/x/model\.pth: .*check the address"):
        upload(tmp_path / "m", URL)
    assert not exists(URL)


# S3, as moto serves it.


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with s3_server() as files:
        yield files


S3_URL = f"s3://{BUCKET}/x/m.tar.gz"
ARCHIVE = tar_gz({"moat/m.index": b"index", "moat/m.data-00000-of-00001": BODY})


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int, does: Callable[[], None]) -> list[int]:
    """Do something before the range from ``at`` on is read for the first time; returns every start asked."""
    import s3fs.core

    fetch_range, starts = s3fs.core._fetch_range, []

    def watched(*arguments: Any, **options: Any) -> bytes:
        starts.append(arguments[4])
        if starts.count(at) == 1 and arguments[4] == at:
            does()
        return bytes(fetch_range(*arguments, **options))

    monkeypatch.setattr(s3fs.core, "_fetch_range", watched)
    monkeypatch.setattr(remote, "_PIECE", 65_536)
    return starts


def test_s3_resumes(s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.pipe(S3_URL, ARCHIVE)
    starts = interrupting(monkeypatch, 131_072, raising(ConnectionResetError("reset")))
    fetched = store.fetch(entry_of(S3_URL))
    assert fetched.artefact.read_bytes() == ARCHIVE
    assert (fetched.path / "m.data-00000-of-00001").read_bytes() == BODY
    assert starts[:4] == [0, 65_536, 131_072, 131_072]
    assert fetched.record.etag == f'"{hashlib.md5(ARCHIVE).hexdigest()}"' and not fetched.record.server_hashes
    assert store.fetch(entry_of(S3_URL)).from_cache


def test_s3_object_that_changes_is_begun_again(
    s3: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/x/model.pth"
    s3.pipe(url, BODY)
    starts = interrupting(monkeypatch, 131_072, lambda: s3.pipe(url, OTHER))
    assert store.fetch(entry_of(url)).artefact.read_bytes() == OTHER
    assert starts[:4] == [0, 65_536, 131_072, 0]
    assert any("changed while it was read; beginning again" in note for note in store.notes)


@pytest.mark.parametrize("url", [f"s3://{BUCKET}/none", "s3://no-such-bucket/none"])
def test_s3_object_that_is_not_there(s3: Any, store: Store, url: str) -> None:
    with pytest.raises(NetworkError, match=f"{url}: no such object"):
        store.fetch(entry_of(url))
    assert store.slept == [] and not exists(url)


def test_s3_upload_replaces_nothing_unasked(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, url = tmp_path / "m", f"s3://{BUCKET}/out/m.safetensors"
    file.write_bytes(BODY)
    upload(file, url)
    assert s3.cat(url) == BODY
    file.write_bytes(OTHER)
    with pytest.raises(UsageError, match="exists already"):
        upload(file, url)
    # somebody else's object appears between the question and the upload: the store itself refuses
    monkeypatch.setattr(remote, "exists", lambda _url: False)
    with pytest.raises(UsageError, match="was just written by another process"):
        upload(file, url)
    assert s3.cat(url) == BODY
    upload(file, url, force=True)
    assert s3.cat(url) == OTHER
