"""The cache folder: where things lie, what a record is worth, and that no id leads out of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckptkit.base.errors import NetworkError, StorageError, UsageError
from ckptkit.base.locks import hold
from ckptkit.store.cache import Home, Record, is_safe_file_name, safe_id, write_json
from ckptkit.store.fetch import Job, fetch
from ckptkit.store.unpack import MARKER
from ckptkit.store.upkeep import own_holdings, remove
from ckptkit.workspace import Workspace
from tests.store.conftest import Store
from tests.support.entries import anything, entry_of, random_bytes, tar_gz
from tests.support.http_server import FaultServer, cut, goog_hash

RECORD = Record("m", "https://a.org/m.pth", "m.pth", 3, "0" * 64, "2026-01-01T00:00:00+00:00")


def put(home: Home, record: Record, body: bytes | None = b"abc") -> Path:
    path = home.artefact_folder(record.id) / record.file
    write_json(path.with_name(f"{path.name}.json"), record.to_json())
    if body is not None:
        path.write_bytes(body)
    return path


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "h"))
    assert Home.default().path == tmp_path / "h"
    monkeypatch.setenv("CKPTKIT_HOME", "~/models")
    assert Home.default().path == Path.home() / "models"
    monkeypatch.setenv("CKPTKIT_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Home.default().path.name == "ckptkit"


def test_asking_creates_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    assert home.record("m") is None and not home.is_cached("m") and home.fetched_ids() == []
    assert not home.path.exists()


@pytest.mark.parametrize("id", ["moat0-224", "a", "A.b_c+d-1", "x" * 128])
def test_ids_that_can_name_a_folder(id: str) -> None:
    assert safe_id(id) == id


@pytest.mark.parametrize(
    "id",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "C:x", "a\0b", ".hidden", "-x", "a.", "a b", "x" * 129,
     "ä", "a\n"],
)  # fmt: skip
def test_ids_that_could_lead_out_are_refused(tmp_path: Path, id: str) -> None:
    home = Home(tmp_path)
    for ask in (
        home.artefact_folder,
        home.unpacked_folder,
        home.converted_folder,
        home.is_cached,
        home.record,
    ):
        with pytest.raises(UsageError, match="cannot be an entry id"):
            ask(id)
    with pytest.raises(UsageError), home.lock(id):
        pass


@pytest.mark.parametrize(
    ("name", "fine"),
    [("m.pth", True), ("a b.tar.gz", True), ("", False), (".x", False), ("a/b", False), ("a\\b", False),
     ("a:b", False), ("a\x01", False), ("a.", False), ("x" * 201, False), ("é" * 101, False), ("..", False)],
)  # fmt: skip
def test_file_names(name: str, fine: bool) -> None:
    assert is_safe_file_name(name) is fine


def test_converted_path(tmp_path: Path) -> None:
    path = Home(tmp_path).converted_path("m", "torch", "float16", "safetensors")
    assert path == tmp_path / "converted" / "m" / "torch-float16.safetensors"
    assert Home(tmp_path).converted_path("m", "deeplab2", "float32", "").name == "deeplab2-float32"
    with pytest.raises(UsageError):
        Home(tmp_path).converted_path("m", "../x", "float16", "safetensors")


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    home = Home(tmp_path)
    record = replace(
        RECORD, etag='"e"', server_hashes={"md5": "00"}, note="imported by hand", bn_statistics=False
    )
    put(home, record)
    assert home.record("m") == record


def test_the_newest_record_counts(tmp_path: Path) -> None:
    home = Home(tmp_path)
    newer = replace(RECORD, file="n.pth", fetched_at="2026-02-01T00:00:00+00:00")
    put(home, newer)
    put(home, RECORD)
    assert home.record("m") == newer and len(home.records("m")) == 2


def test_cached_means_the_file_is_there_with_its_size(tmp_path: Path) -> None:
    home = Home(tmp_path)
    path = put(home, RECORD)
    put(home, replace(RECORD, id="absent"), body=None)
    put(home, replace(RECORD, id="short"), body=b"ab")
    assert [id for id in ("m", "absent", "short", "unknown") if home.is_cached(id)] == ["m"]
    assert home.fetched_ids() == ["m"]
    path.unlink()
    assert home.fetched_ids() == []


SOUND = json.loads(RECORD.to_json())


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "3", '"x"', "{}", "[" * 100_000, "\xff",
        json.dumps({**SOUND, "sha256": "0" * 63}),
        json.dumps({**SOUND, "sha256": None}),
        json.dumps({**SOUND, "size": "3"}),
        json.dumps({**SOUND, "size": -1}),
        json.dumps({**SOUND, "file": "../m.pth"}),
        json.dumps({**SOUND, "file": 3}),
        json.dumps({**SOUND, "id": "other"}),
        json.dumps({**SOUND, "fetched_at": 5}),
        json.dumps({**SOUND, "server_hashes": []}),
        json.dumps({k: v for k, v in SOUND.items() if k != "url"}),
    ],
)  # fmt: skip
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    path = put(home, RECORD)
    path.with_name("m.pth.json").write_text(text, encoding="latin-1")
    assert home.record("m") is None and not home.is_cached("m") and home.fetched_ids() == []


def test_a_record_of_a_later_version_with_more_fields_is_read(tmp_path: Path) -> None:
    home = Home(tmp_path)
    path = put(home, RECORD)
    path.with_name("m.pth.json").write_text(json.dumps({**SOUND, "mood": "good"}))
    assert home.record("m") == RECORD


def test_lock_excludes_and_says_that_it_waits(tmp_path: Path) -> None:
    home, events = Home(tmp_path), []
    entered, may_leave = threading.Event(), threading.Event()

    def hold() -> None:
        with home.lock("m"):
            entered.set()
            may_leave.wait(10)
            events.append("left")

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(10)
    with home.lock("other"):
        events.append("another id is free")

    def waiting() -> None:
        events.append("waiting")
        may_leave.set()

    with home.lock("m", waiting=waiting):
        events.append("entered")
    holder.join()
    assert events == ["another id is free", "waiting", "left", "entered"]


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("")
    with pytest.raises(StorageError), Home(tmp_path / "h").lock("m"):
        pass


def test_asking_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ckptkit.store.cache import Home; Home.default().is_cached('moat0-224');"
        "heavy = ('requests', 'numpy', 'pydantic', 'filelock', 'yaml', 'rich');"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_fetch_is_a_use(tmp_path: Path, store: Store, server: FaultServer) -> None:
    entry = entry_of(server.serve("/m.pth", b"x" * 1000))
    store.fetch(entry)
    stamp = store.home.path / "used" / entry.id
    assert stamp.stat().st_size == 0
    os.utime(stamp, (1, 1))
    store.home.record(entry.id)
    assert stamp.stat().st_mtime == 1  # asking is none
    store.fetch(entry)
    assert stamp.stat().st_mtime == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("length", [140, 141, 200])
def test_long_names_leave_room_for_temporary_ones(store: Store, server: FaultServer, length: int) -> None:
    name = "m" * (length - 4) + ".pth"
    body = random_bytes(100_000)
    entry = entry_of(server.serve(f"/{name}", body, headers=goog_hash(body)))
    server.fail(f"/{name}", cut(30_000), *[cut(0)] * 3)
    with pytest.raises(NetworkError):
        store.fetch(entry)
    assert store.fetch(entry).path.read_bytes() == body
    assert server.ranges(f"/{name}") == [None, 30_000, 30_000, 30_000, 30_000]
    assert store.leftovers() == []


# -- Several cache folders read as one: which copy counts, where is written ----------------------------------


BODY = random_bytes(50_000)
OTHER = random_bytes(50_000, seed=2)
ARCHIVE = tar_gz({"m/m.index": b"index", "m/m.data-00000-of-00001": BODY})
ID = "test-entry"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine"


@pytest.fixture
def theirs(tmp_path: Path, server: FaultServer, store: Store) -> Callable[[str, bytes], Path]:
    """Return a function that fetches a file into a folder that is only read afterwards."""

    def fill(name: str, body: bytes) -> Path:
        url = server.serve(f"/{name}", body, etag=f'"{hashlib.md5(body).hexdigest()}"')
        folder = tmp_path / "theirs"
        fetch(Job(entry_of(url), Home(folder), anything, policy=store.policy))
        for path in (folder / "locks", folder / "used"):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        server.requests.clear()
        return folder

    return fill


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file under a folder with its time and its bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def test_the_environment_makes_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKPTKIT_HOME", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    home = Home.default()
    assert isinstance(home, Home)
    assert [single.path for single in home.homes] == [tmp_path / "a", tmp_path / "b"]
    assert home.converted_path("m", "torch", "float32", "npz").is_relative_to(tmp_path / "a")
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "a"))
    assert type(Home.default()) is Home and len(Home.default().homes) == 1


def test_what_is_there_is_taken_and_nothing_is_written_there(
    server: FaultServer, store: Store, mine: Path, theirs: Callable[[str, bytes], Path]
) -> None:
    folder = theirs("m.pth", BODY)
    before = contents(folder)
    store.home = Home(mine, [folder])
    found = store.fetch(entry_of(server.url("/m.pth")))
    assert found.from_cache and found.path == folder / "artefacts" / ID / "m.pth"
    assert server.requests == [] and contents(folder) == before
    assert store.home.is_cached(ID) and store.home.fetched_ids() == [ID]
    assert not mine.exists()


def test_a_touched_file_is_hashed_and_its_record_left(
    server: FaultServer, store: Store, mine: Path, theirs: Callable[[str, bytes], Path]
) -> None:
    folder = theirs("m.pth", BODY)
    os.utime(folder / "artefacts" / ID / "m.pth", (1, 1))
    before = contents(folder)
    store.home = Home(mine, [folder])
    assert store.fetch(entry_of(server.url("/m.pth"))).from_cache
    assert server.requests == [] and contents(folder) == before


def test_an_archive_that_is_not_unpacked_there_is_unpacked_here(
    server: FaultServer, store: Store, mine: Path, theirs: Callable[[str, bytes], Path]
) -> None:
    folder = theirs("m.tar.gz", ARCHIVE)
    (folder / "unpacked" / ID / MARKER).unlink()
    before = contents(folder)
    store.home = Home(mine, [folder])
    for _ in range(2):
        found = store.fetch(entry_of(server.url("/m.tar.gz")))
        assert found.path == mine / "unpacked" / ID / "m"
        assert found.artefact.is_relative_to(folder)
    assert server.requests == [] and contents(folder) == before


def test_an_unpacked_archive_is_used_where_it_lies(
    server: FaultServer, store: Store, mine: Path, theirs: Callable[[str, bytes], Path]
) -> None:
    folder = theirs("m.tar.gz", ARCHIVE)
    store.home = Home(mine, [folder])
    assert store.fetch(entry_of(server.url("/m.tar.gz"))).path == folder / "unpacked" / ID / "m"


def test_damage_there_is_fetched_anew_here_and_that_counts(
    server: FaultServer, store: Store, mine: Path, theirs: Callable[[str, bytes], Path]
) -> None:
    folder = theirs("m.pth", BODY)
    (folder / "artefacts" / ID / "m.pth").write_bytes(OTHER)  # the same size
    store.home = Home(mine, [folder])
    for from_cache in (False, True):
        found = store.fetch(entry_of(server.url("/m.pth")))
        assert (found.path, found.from_cache) == (mine / "artefacts" / ID / "m.pth", from_cache)
    assert found.path.read_bytes() == BODY and len(server.requests) == 1


def test_what_was_asked_for_anew_counts(
    server: FaultServer, store: Store, mine: Path, theirs: Callable[[str, bytes], Path]
) -> None:
    folder = theirs("m.pth", BODY)
    server.serve("/m.pth", OTHER, etag='"v2"')
    store.home = Home(mine, [folder])
    entry = entry_of(server.url("/m.pth"))
    store.fetch(entry, force=True, accept_new=True)
    again = store.fetch(entry)
    assert again.from_cache and again.path.read_bytes() == OTHER
    assert (folder / "artefacts" / ID / "m.pth").read_bytes() == BODY


def test_a_damaged_copy_here_gives_way_to_an_untouched_one_there(
    server: FaultServer, store: Store, mine: Path, theirs: Callable[[str, bytes], Path]
) -> None:
    folder = theirs("m.pth", BODY)
    store.home = Home(mine)
    store.fetch(entry_of(server.url("/m.pth")))
    (mine / "artefacts" / ID / "m.pth").write_bytes(b"short")
    store.home = Home(mine, [folder])
    assert store.fetch(entry_of(server.url("/m.pth"))).path.is_relative_to(folder)


@pytest.fixture
def modes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders without the owner's write bit are closed to root, too."""
    ask = os.access

    def access(path: str | Path, mode: int, **more: bool) -> bool:
        closed = mode & os.W_OK and not Path(path).stat().st_mode & 0o200
        return ask(path, mode, **more) and not closed

    monkeypatch.setattr(os, "access", access)


@pytest.mark.usefixtures("modes_count")
@pytest.mark.parametrize("closed", ["artefacts", f"artefacts/{ID}", "unpacked", f"converted/{ID}", "locks"])
def test_what_somebody_else_made_in_the_folder_that_is_written_to(
    server: FaultServer, store: Store, mine: Path, theirs: Callable[[str, bytes], Path], closed: str
) -> None:
    folder = theirs("m.tar.gz", ARCHIVE)
    (folder / closed).mkdir(parents=True, exist_ok=True)
    (folder / closed).chmod(0o555)
    before = contents(folder)
    store.home = Home(folder, [mine])
    entry = entry_of(server.url("/m.tar.gz"))
    assert store.fetch(entry).artefact == folder / "artefacts" / ID / "m.tar.gz"
    server.serve("/m.tar.gz", tar_gz({"m/m.index": b"other", "m/m.data-00000-of-00001": BODY}), etag='"v2"')
    for options in ({"force": True, "accept_new": True}, {}):
        found = store.fetch(entry, **options)
        assert found.artefact == mine / "artefacts" / ID / "m.tar.gz"
        assert found.path == mine / "unpacked" / ID / "m"
    assert store.home.converted_folder(ID) == mine / "converted" / ID
    assert [path.name for path in (mine / "locks").iterdir()] == [f"{ID}.lock"]
    other = store.home.artefact_folder("another")
    assert other.is_relative_to(mine if closed in ("artefacts", "unpacked", "locks") else folder)
    assert [holding.home for holding in own_holdings(store.home)] == [mine]
    assert remove(store.home, ID).removed == (mine / "artefacts" / ID, mine / "unpacked" / ID)
    (folder / closed).chmod(0o755)
    assert contents(folder) == before


def test_somebody_elses_lock_is_held_by_reading_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.home.lock_path(ID)
    with hold(path):
        pass
    path.chmod(0o444)
    opened = os.open

    def refused(name: str | Path, flags: int, *mode: int, **more: int) -> int:
        if Path(name) == path and flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "denied", str(name))
        return opened(name, flags, *mode, **more)

    monkeypatch.setattr(os, "open", refused)
    with hold(path) as first, hold(path, wait=False) as second:
        assert (first, second) == ("held", "taken")


def test_a_path_in_any_folder_belongs_to_its_entry(
    store: Store, mine: Path, theirs: Callable[[str, bytes], Path]
) -> None:
    folder = theirs("m.pth", BODY)
    for kind in ("artefacts",):
        (folder / kind / ID).rename(folder / kind / "moat0-224")
    record = folder / "artefacts" / "moat0-224" / "m.pth.json"
    record.write_text(record.read_text().replace(ID, "moat0-224"))
    workspace = Workspace(home=Home(mine, [folder]))
    located = workspace.locate(folder / "artefacts" / "moat0-224" / "m.pth", fetch=False)
    assert located.entry is not None and located.entry.id == "moat0-224"
    assert located.sha256 == hashlib.sha256(BODY).hexdigest()
    assert [found.path for found in workspace.fetched()] == [located.path]
