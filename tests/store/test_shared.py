"""Several cache folders read as one: which copy counts, where is written."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptkit.base.locks import hold
from ckptkit.store.cache import Home
from ckptkit.store.fetch import fetch
from ckptkit.store.unpack import MARKER
from ckptkit.store.upkeep import own_holdings, remove
from ckptkit.workspace import Workspace
from tests.store.conftest import Store
from tests.support.entries import anything, entry_of, random_bytes, tar_gz
from tests.support.http_server import FaultServer

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
        fetch(entry_of(url), Home(folder), fits=anything, policy=store.policy)
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
