"""Checkpoints that are published as several files: a TensorFlow index with its data, an index with shards."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from ckptkit.base.errors import CkptkitError, FormatError, IntegrityError, NetworkError, NotFoundError
from ckptkit.formats.detect import open_reader
from ckptkit.registry.schema import Companion, Entry
from ckptkit.store import partial
from ckptkit.store.lockfile import LockFile
from ckptkit.store.sources import parse_mirrors, plan_sources, source_of_file
from ckptkit.store.upkeep import holdings, verify_cache
from ckptkit.workspace import fits
from tests.store.conftest import Store
from tests.support.entries import ANY_MODEL, entry_of, pinned
from tests.support.http_server import FaultServer, cut, goog_hash, status, whole
from tests.support.moat_reference import GOLDEN_FOLDER

VARIABLES = GOLDEN_FOLDER / "wd_tiny" / "variables"
INDEX, DATA = "variables.index", "variables.data-00000-of-00001"
BUNDLE = {name: (VARIABLES / name).read_bytes() for name in (INDEX, DATA)}
SHARDS = {f"model-0000{n}-of-00002.safetensors": save({f"w{n}": np.full(4096, n, "f4")}) for n in (1, 2)}
MAP = {"weight_map": {f"w{n}": name for n, name in enumerate(SHARDS, 1)}, "metadata": {}}
SHARDED = {"model.safetensors.index.json": json.dumps(MAP).encode(), **SHARDS}
MAIN, FIRST, SECOND = SHARDED
PAGE = "https://a.org/checksums"

Files = dict[str, bytes]


def stated(body: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}


def several(
    server: FaultServer, files: Files, *, known: bool = True, folder: str = "/x", **fields: Any
) -> Entry:
    """Serve files, and make the entry that they are; the first is the main one."""
    urls = [server.serve(f"{folder}/{name}", body) for name, body in files.items()]
    (_, main), *others = files.items()
    companions = [{"path": name, **(stated(body) if known else {})} for name, body in others]
    page = {**stated(main), "hash_provenance": None, "checksum_page": PAGE} if known else {}
    kind = "tf" if INDEX in files else "safetensors"
    return entry_of(urls[0], **{**ANY_MODEL, "format": kind, **page, "companions": companions, **fields})


def there(store: Store) -> Files:
    return {path.name: path.read_bytes() for path in store.home.artefact_folder("test-entry").glob("[!.]*")
            if not path.with_suffix("").exists() or path.suffix != ".json"}  # fmt: skip


def tensors(path: Path) -> dict[str, Any]:
    with open_reader(path) as reader:
        return {name: np.array(reader.read(name)) for name in reader.specs}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("files", [BUNDLE, SHARDED])
def test_all_files_are_fetched_and_open_as_one(
    server: FaultServer, store: Store, files: Files, known: bool
) -> None:
    entry = several(server, files, known=known)
    fetched = store.fetch(entry, fits=fits)
    assert fetched.path == fetched.artefact and fetched.path.name == next(iter(files))
    assert there(store) == files and store.leftovers() == []
    assert fetched.size == sum(map(len, files.values()))
    want = (
        tensors(VARIABLES / INDEX) if files is BUNDLE else {f"w{n}": np.full(4096, n, "f4") for n in (1, 2)}
    )
    have = tensors(fetched.path)
    assert have.keys() == want.keys() and all(np.array_equal(have[name], want[name]) for name in want)
    assert store.home.is_cached(entry.id) and store.home.fetched_ids() == [entry.id]
    again = store.fetch(entry, fits=fits, verify=True)
    assert again.from_cache and again.companions == fetched.companions
    assert len(server.requests) == len(files)  # each was asked for once
    assert LockFile.default(store.home.path).files(entry.id).keys() == files.keys()
    assert [item.state for item in holdings(store.home)[0].items] == ["intact"] * len(files)
    assert {one.path.name: one.sha256 for one in verify_cache(store.home) if one.ok} == {
        name: hashlib.sha256(body).hexdigest() for name, body in files.items()
    }
    assert list(store.home.unpacked_folder(entry.id).parent.glob("*")) == []  # where it was looked into


def test_the_main_file_is_the_last_to_have_its_name(server: FaultServer, store: Store) -> None:
    entry = several(server, BUNDLE)
    server.fail(f"/x/{INDEX}", status(404))
    with pytest.raises(NetworkError) as caught:
        store.fetch(entry)
    assert [one.split("/")[-1] for one in caught.value.details] == [f"{INDEX}: 404 Not Found"]
    assert there(store) == {DATA: BUNDLE[DATA]}
    assert not store.home.is_cached(entry.id) and store.home.record(entry.id) is None
    assert [item.state for item in holdings(store.home)[0].items] == ["unfinished"]
    assert not store.fetch(entry).from_cache
    assert server.ranges(f"/x/{DATA}") == [None]  # complete before, and not asked for again


@pytest.mark.parametrize("known", [True, False])
def test_a_companion_that_is_not_there_is_named(server: FaultServer, store: Store, known: bool) -> None:
    entry = several(server, SHARDED, known=known)
    missing = SECOND
    server.fail(f"/x/{missing}", status(404))
    with pytest.raises(NetworkError, match="no source could provide the file") as caught:
        store.fetch(entry, fits=fits)
    assert caught.value.details == (f"{server.url('/x/' + missing)}: 404 Not Found",)
    assert not store.home.is_cached(entry.id) and MAIN not in there(store)
    assert (FIRST in there(store)) == known  # of an unknown checksum it has no name yet
    store.fetch(entry, fits=fits)
    first = server.ranges(f"/x/{FIRST}")
    # The part of a file of unknown checksum is whole: its last byte is asked for again.
    assert first == ([None] if known else [None, len(SHARDED[FIRST]) - 1])


@pytest.mark.parametrize("wrong", [INDEX, DATA])
def test_another_checksum_than_the_publishers(server: FaultServer, store: Store, wrong: str) -> None:
    entry = several(server, BUNDLE)
    bad = BUNDLE[wrong][:-1] + b"?"
    server.fail(f"/x/{wrong}", whole(bad))
    with pytest.raises(
        IntegrityError, match=rf"{wrong} .*sha256 is .* but the publisher says .*nothing was kept"
    ):
        store.fetch(entry)
    assert wrong not in there(store) and not store.home.is_cached(entry.id)
    server.fail(f"/x/{wrong}", whole(BUNDLE[wrong] + b"?"))
    with pytest.raises(IntegrityError, match=rf"{wrong}: .* bytes from .*, but the registry says"):
        store.fetch(entry)
    store.fetch(entry)
    assert there(store) == BUNDLE and store.leftovers() == []


def test_a_broken_line_goes_on_within_the_file(server: FaultServer, store: Store) -> None:
    entry = several(server, BUNDLE)
    server.fail(f"/x/{DATA}", cut(100_000))
    store.fetch(entry)
    assert server.ranges(f"/x/{DATA}") == [None, 100_000] and there(store) == BUNDLE


def test_what_does_not_fit_together_leaves_nothing(server: FaultServer, store: Store) -> None:
    """Nothing is known of the bytes: the whole is opened before any file has its name."""
    other = {**BUNDLE, DATA: bytes(len(BUNDLE[DATA]))}
    entry = several(server, other, known=False)
    with pytest.raises(FormatError, match="no source could provide the file"):
        store.fetch(entry, fits=fits)
    assert there(store) == {} and store.leftovers() == []
    assert LockFile.default(store.home.path).files(entry.id) == {}
    assert list((store.home.path / "unpacked").glob("*")) == []


def test_the_lock_file_has_each_file(server: FaultServer, store: Store) -> None:
    entry = several(server, SHARDED, known=False)
    store.fetch(entry, fits=fits)
    shard = FIRST
    other = save({"w1": np.full(4096, 7, "f4")})
    server.serve(f"/x/{shard}", other)
    with pytest.raises(IntegrityError, match=rf"{shard} .*but the lock file .* says"):
        store.fetch(entry, force=True, fits=fits)
    assert there(store) == SHARDED and store.home.is_cached(entry.id)
    fetched = store.fetch(entry, force=True, accept_new=True, fits=fits)
    assert there(store) == {**SHARDED, shard: other} and not fetched.from_cache
    history = LockFile.default(store.home.path).files(entry.id)[shard].history
    assert [one.sha256 for one in history] == [hashlib.sha256(SHARDED[shard]).hexdigest()]
    again = store.fetch(entry, require_checksum=True, fits=fits)
    assert again.from_cache


def test_what_tells_a_checkpoint_from_another(server: FaultServer, store: Store) -> None:
    """An index of shards is the same whatever is in them; a TensorFlow index has checksums of its data."""
    bundle = store.fetch(several(server, BUNDLE))
    assert bundle.record.identity == bundle.record.sha256
    store.fetch(several(server, SHARDED, known=False, id="sharded"))
    folder = store.home.artefact_folder("sharded")
    listed = subprocess.run(["sha256sum", *SHARDED], cwd=folder, capture_output=True, check=True).stdout
    record = store.home.record("sharded")
    assert record and record.identity == hashlib.sha256(listed).hexdigest()


def test_a_checksum_must_be_known_of_each(server: FaultServer, store: Store) -> None:
    entry = several(server, BUNDLE)
    entry = entry.model_copy(update={"companions": (Companion(path=DATA),)})
    with pytest.raises(IntegrityError, match="no checksum is known before"):
        store.fetch(entry, require_checksum=True)
    assert server.requests == [] and not entry.is_pinned


def damaged(path: Path) -> None:
    path.write_bytes(b"?" + path.read_bytes()[1:])


@pytest.mark.parametrize("name", [INDEX, DATA])
@pytest.mark.parametrize("harm", [Path.unlink, damaged, lambda path: path.write_bytes(b"short")])
def test_only_what_is_damaged_is_fetched_again(
    server: FaultServer, store: Store, name: str, harm: Callable[[Path], Any]
) -> None:
    entry = several(server, BUNDLE)
    folder = store.fetch(entry).path.parent
    harm(folder / name)
    server.requests.clear()
    assert any(not one.ok for one in verify_cache(store.home))
    assert not store.fetch(entry).from_cache
    assert [request.path for request in server.requests] == [f"/x/{name}"]
    assert there(store) == BUNDLE and all(one.ok for one in verify_cache(store.home))
    assert store.fetch(entry).from_cache


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_a_lost_record_is_made_again(server: FaultServer, store: Store, name: str) -> None:
    entry = several(server, BUNDLE)
    folder = store.fetch(entry).path.parent
    (folder / f"{name}.json").unlink()
    store.fetch(entry)
    assert store.fetch(entry).from_cache and there(store) == BUNDLE
    assert server.ranges(f"/x/{DATA}") == ([None] if name == INDEX else [None, None])


def test_a_main_file_goes_before_other_bytes_beside_it(
    server: FaultServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a fetch ends, an old index is never beside new data."""
    entry = several(server, SHARDED, known=False)
    store.fetch(entry, fits=fits)
    new = {name: save({f"w{n}": np.full(4096, 9, "f4")}) for n, name in enumerate(SHARDS, 1)}
    for name, body in new.items():
        server.serve(f"/x/{name}", body)
    rename, renamed = partial.Partial.rename, []

    def killed_after_the_first(self: partial.Partial) -> Path:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(self.name)
        return rename(self)

    monkeypatch.setattr(partial.Partial, "rename", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        store.fetch(entry, force=True, accept_new=True, fits=fits)
    assert renamed == [FIRST]
    assert not (store.home.artefact_folder(entry.id) / MAIN).exists()
    assert not store.home.is_cached(entry.id)
    monkeypatch.undo()
    assert store.fetch(entry, accept_new=True, fits=fits)
    assert there(store) == {**SHARDED, **new}


def test_files_come_from_one_source(server: FaultServer, store: Store) -> None:
    """Two editions of a checkpoint must not be mixed, where no checksum tells them apart."""
    first = several(server, SHARDED, known=False)
    other = {
        name: body.replace(b'"w1', b'"v1').replace(b'"w2', b'"v2') if name.endswith(".json") else body
        for name, body in SHARDED.items()
    }
    other |= {name: save({f"v{n}": np.full(4096, -n, "f4")}) for n, name in enumerate(SHARDS, 1)}
    second = several(server, other, known=False, folder="/y")
    entry = first.model_copy(update={"sources": (*first.sources, *second.sources)})
    server.fail(f"/x/{SECOND}", status(404))
    fetched = store.fetch(entry, fits=fits)
    assert there(store) == other and fetched.record.url.startswith(server.url("/y/"))
    assert tensors(fetched.path).keys() == {"v1", "v2"}


def test_servers_checksums_are_compared_of_each(server: FaultServer, store: Store) -> None:
    entry = several(server, BUNDLE, known=False)
    server.serve(f"/x/{DATA}", BUNDLE[DATA], headers=goog_hash(b"others"))
    with pytest.raises(IntegrityError, match=f"{DATA} .*crc32c|{DATA} .*md5"):
        store.fetch(entry, fits=fits)


def test_one_bar_and_one_question_for_space(
    server: FaultServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = several(server, BUNDLE)
    bars: dict[str, list[int]] = {}

    @contextmanager
    def progress(name: str, total: int | None, /, *, unit: str = "bytes") -> Any:
        bars[f"{name} {total}"] = steps = []
        yield steps.append

    monkeypatch.setattr("shutil.disk_usage", lambda _path: (9**12, 0, 400_000))  # for the data, not for both
    with pytest.raises(CkptkitError, match="needs 442,535 more bytes, but 400,000 are free"):
        store.fetch(entry, progress=progress)
    assert server.requests == []
    monkeypatch.undo()
    store.fetch(entry, progress=progress)
    total = sum(map(len, BUNDLE.values()))
    assert {name: sum(steps) for name, steps in bars.items()} == {f"fetching test-entry {total}": total}


@pytest.mark.parametrize("known", [True, False])
def test_an_import_takes_the_files_beside(
    server: FaultServer, store: Store, tmp_path: Path, known: bool
) -> None:
    entry = several(server, BUNDLE, known=known)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / INDEX).write_bytes(BUNDLE[INDEX])
    with pytest.raises(NotFoundError) as caught:
        store.import_file(entry, folder / INDEX)
    assert DATA in str(caught.value) and "published as 2 files" in str(caught.value.hint)
    (folder / DATA).write_bytes(BUNDLE[DATA])
    fetched = store.import_file(entry, folder)  # the folder will do
    assert there(store) == BUNDLE and fetched.record.note == "imported by hand"
    assert store.import_file(entry, folder / INDEX).from_cache and server.requests == []
    other = bytes(10)
    (folder / DATA).write_bytes(other)
    with pytest.raises(CkptkitError, match="with other bytes"):
        store.import_file(entry, folder)
    if known:  # whatever the user accepts
        with pytest.raises(IntegrityError, match="the registry says 432,931"):
            store.import_file(entry, folder, accept_new=True)
    else:
        store.import_file(entry, folder, accept_new=True)
    assert there(store) == {**BUNDLE, DATA: BUNDLE[DATA] if known else other}


def test_a_lone_file_becomes_one_of_several(server: FaultServer, store: Store) -> None:
    """Only what came into the registry is fetched; the main file is of a known checksum."""
    entry = several(server, {**BUNDLE, "tags.csv": b"name\n"})
    store.fetch(entry.model_copy(update={"companions": ()}))
    fetched = store.fetch(entry, fits=fits)
    assert [len(server.ranges(f"/x/{name}")) for name in there(store)] == [1, 1, 1]
    assert [(one.algorithm, one.origin) for one in fetched.held] == [("sha256", "the publisher")]
    assert store.fetch(entry).from_cache


def test_what_is_said_to_hold_holds_for_all(server: FaultServer, store: Store) -> None:
    entry = several(server, BUNDLE)
    entry = entry.model_copy(update={"companions": (Companion(path=DATA),)})
    assert store.fetch(entry, fits=fits).held == ()
    assert store.fetch(several(server, BUNDLE), force=True).held != ()


def test_addresses() -> None:
    entry = entry_of(
        "hf://org/name@v1/variables/variables.index",
        "https://me:pw@a.org/a%20b/variables.index?download=1&token=x",
        companions=[{"path": DATA}, {"path": "../tags.csv"}],
    )
    hub, web = plan_sources(entry, parse_mirrors(["hf://org/=https://b.org/"], ""))
    assert [one.used_url for one in hub.beside] == [
        f"https://b.org/name@v1/variables/{DATA}",
        "https://b.org/name@v1/tags.csv",
    ]
    assert [one.url for one in web.beside] == [
        f"https://a.org/a%20b/{DATA}?download=1",
        "https://a.org/tags.csv?download=1",
    ]
    assert web.beside[1].used_url == "https://me:pw@a.org/tags.csv?download=1&token=x"
    assert [one.file for one in web.beside] == [DATA, "tags.csv"]


def test_a_companion_of_an_import_may_be_where_it_is_published(tmp_path: Path) -> None:
    entry = entry_of(f"https://a.org/variables/{INDEX}", companions=[{"path": "../tags.csv"}])
    (tmp_path / "variables").mkdir()
    (tmp_path / "tags.csv").touch()
    found = source_of_file(entry, tmp_path / "variables" / INDEX).beside[0]
    assert (found.used_url, found.file) == ((tmp_path / "tags.csv").as_uri(), "tags.csv")


def test_pinned_files_are_not_opened(server: FaultServer, store: Store) -> None:
    files = {"model.safetensors.index.json": b"{", "a.safetensors": b"anything"}
    entry = several(server, files, **pinned(files["model.safetensors.index.json"]), checksum_page=None)
    assert store.fetch(entry, fits=fits).held[0].origin == "the registry"
    assert there(store) == files
