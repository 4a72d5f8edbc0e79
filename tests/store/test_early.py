"""Unpacking while the archive arrives: the same result, and nothing of what is refused."""

from __future__ import annotations

import io
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import FormatError, IntegrityError
from ckptkit.store import install, unpack
from ckptkit.store.unpack import _Growing
from tests.store.conftest import Store
from tests.support.entries import entry_of, random_bytes, tar_gz
from tests.support.http_server import Answer, FaultServer, Request, cut, goog_hash, slowly, status

BODY, OTHER = random_bytes(300_000), random_bytes(300_000, seed=2)
FILES = {"moat/m.index": b"index", "moat/m.data-00000-of-00001": BODY}
ARCHIVE = tar_gz(FILES)
OTHERS = tar_gz({"moat/m.index": b"other", "moat/m.data-00000-of-00001": OTHER})
PATH = "/x/m.tar.gz"


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "FROM_BYTES", 1)


@pytest.fixture
def afterwards(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which archives were unpacked after their download."""
    found: list[Path] = []

    class Watched(install.StagedFolder):
        def __init__(self, archive: Path, folder: Path, **options: Any) -> None:
            found.append(archive)
            super().__init__(archive, folder, **options)

    monkeypatch.setattr(install, "StagedFolder", Watched)
    return found


def unpacked(store: Store) -> dict[str, bytes]:
    folder = store.home.unpacked_folder("test-entry")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".ckptkit-unpacked.json"
    }


def nothing_of_it(store: Store) -> bool:
    folder = store.home.unpacked_folder("test-entry").parent
    running = [thread.name for thread in threading.enumerate() if "_unpack" in thread.name]
    return not (folder.is_dir() and list(folder.iterdir())) and store.files == [] and not running


def test_an_archive_is_unpacked_while_it_comes(
    server: FaultServer, store: Store, afterwards: list[Path]
) -> None:
    server.fail(PATH, slowly(0.01, 40_000))
    fetched = store.fetch(entry_of(server.serve(PATH, ARCHIVE, headers=goog_hash(ARCHIVE))))
    assert unpacked(store) == FILES and afterwards == []
    assert fetched.path.name == "moat" and store.leftovers() == []
    assert store.fetch(entry_of(server.url(PATH))).from_cache  # the marker knows the checksum
    assert len(server.requests) == 1


def test_archives_behind_each_other_are_unpacked_whole(
    server: FaultServer, store: Store, afterwards: list[Path]
) -> None:
    joined = b"".join(tar_gz({name: body}) for name, body in FILES.items())
    server.fail(PATH, slowly(0.01, 40_000))
    store.fetch(entry_of(server.serve(PATH, joined)))
    assert unpacked(store) == FILES and afterwards == []


def test_it_goes_on_after_a_cut(server: FaultServer, store: Store, afterwards: list[Path]) -> None:
    server.fail(PATH, cut(100_000), status(503), cut(50_000))
    store.fetch(entry_of(server.serve(PATH, ARCHIVE)))
    assert unpacked(store) == FILES and afterwards == []


def test_it_takes_up_what_an_earlier_run_left(
    server: FaultServer, store: Store, afterwards: list[Path]
) -> None:
    url = server.serve(PATH, ARCHIVE)
    server.fail(PATH, cut(100_000), *[status(503)] * 3)
    with pytest.raises(Exception, match="503"):
        store.fetch(entry_of(url))
    assert nothing_of_it(store) and store.leftovers() != []
    store.fetch(entry_of(url))
    assert server.ranges(PATH)[-1] == 100_000
    assert unpacked(store) == FILES and afterwards == []


def test_another_file_half_way_is_unpacked_from_its_own_beginning(
    server: FaultServer, store: Store, afterwards: list[Path]
) -> None:
    def change(_request: Request, answer: Answer) -> Answer:
        server.serve(PATH, OTHERS, etag='"v2"')
        return replace(answer, cut=200_000)

    server.fail(PATH, change)
    store.fetch(entry_of(server.serve(PATH, ARCHIVE)))
    assert unpacked(store)["moat/m.data-00000-of-00001"] == OTHER
    assert len(afterwards) == 1


@pytest.mark.parametrize(
    ("body", "headers", "kind"),
    [
        (ARCHIVE, goog_hash(OTHERS), IntegrityError),
        (ARCHIVE[:-1000], (), FormatError),
        (ARCHIVE[:1000] + bytes(1000) + ARCHIVE[2000:], (), FormatError),
        (tar_gz({"good": BODY, "../evil": b"x"}), (), FormatError),
        (tar_gz({"good": BODY, "GOOD": b"x"}), (), FormatError),
        (b"\x1f\x8b" + random_bytes(5000), (), FormatError),
    ],
    ids=["wrong checksum", "truncated", "damaged", "dot-dot", "letter case", "noise"],
)
def test_what_is_refused_leaves_nothing(
    server: FaultServer,
    store: Store,
    body: bytes,
    headers: tuple[tuple[str, str], ...],
    kind: type[Exception],
) -> None:
    with pytest.raises(kind, match=r"m\.tar\.gz"):
        store.fetch(entry_of(server.serve(PATH, body, headers=headers)))
    assert nothing_of_it(store) and store.leftovers() == []


def test_zip_waits_for_its_directory_at_the_end(
    server: FaultServer, store: Store, afterwards: list[Path]
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in FILES.items():
            archive.writestr(name, body)
    store.fetch(entry_of(server.serve("/x/m.zip", buffer.getvalue())))
    assert unpacked(store) == FILES and len(afterwards) == 1


def test_small_archives_and_other_files_are_not_watched(
    server: FaultServer, store: Store, afterwards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FROM_BYTES", len(ARCHIVE) + 1)
    store.fetch(entry_of(server.serve(PATH, ARCHIVE)))
    assert unpacked(store) == FILES and len(afterwards) == 1


def test_an_interrupt_leaves_nothing_of_it(server: FaultServer, store: Store) -> None:
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    server.fail(PATH, cut(200_000))
    with pytest.raises(KeyboardInterrupt):
        store.fetch(entry_of(server.serve(PATH, ARCHIVE)), policy=replace(store.policy, sleep=interrupted))
    assert nothing_of_it(store)


def test_a_growing_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.touch()
    growing = _Growing(path)
    found: list[bytes] = []
    buffered: Any = io.BufferedReader(growing, 1000)  # closes the file with itself, so it is kept
    reader = threading.Thread(target=lambda: found.append(buffered.read()))
    reader.start()
    with path.open("ab", buffering=0) as stream:
        for start in range(0, len(BODY), 70_000):
            stream.write(BODY[start : start + 70_000])
    growing.complete()
    reader.join(10)
    assert found == [BODY] and growing.is_still(path)
    path.unlink()
    path.touch()
    assert not growing.is_still(path)
    growing.close()
