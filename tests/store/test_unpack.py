"""Unpacking: whole or not at all, and never outside the folder."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import FormatError, IntegrityError, NotFoundError, StorageError
from ckptkit.formats.members import DEFAULT_LIMITS, Limits, SafeMember
from ckptkit.formats.zip import iter_safe_members
from ckptkit.store import install
from ckptkit.store import unpack as unpacking
from ckptkit.store.unpack import (
    _Growing,
    checkpoint_in,
    is_archive_name,
    is_unpacked,
    unpack,
)
from tests.store.conftest import Store
from tests.support.entries import entry_of, random_bytes, tar_gz
from tests.support.http_server import Answer, FaultServer, Request, cut, goog_hash, slowly, status

BODY = random_bytes(200_000)
GOOD = {"moat/m.index": b"index", "moat/m.data-00000-of-00001": BODY, "moat/checkpoint": b"text"}


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o777
    return info


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_unpack(tmp_path: Path) -> None:
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "unpacked" / "m"
    archive.write_bytes(tar_gz(GOOD))
    assert unpack(archive, folder, sha256="s") == folder
    assert {name: (folder / name).read_bytes() for name in GOOD} == GOOD
    assert is_unpacked(folder, "s") and not is_unpacked(folder, "t")
    assert checkpoint_in(folder) == folder / "moat"
    assert os.listdir(folder.parent) == ["m"]  # noqa: PTH208


def test_modes_follow_the_umask_and_not_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    info = tarfile.TarInfo("evil")
    info.mode = 0o4777
    archive.write_bytes(tar_gz({}, [info]))
    old = os.umask(0o027)
    try:
        unpack(archive, tmp_path / "m")
    finally:
        os.umask(old)
    assert (tmp_path / "m" / "evil").stat().st_mode & 0o7777 == 0o640


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([member("../escaped", tarfile.REGTYPE)], id="dot-dot"),
        pytest.param([member("a/../../escaped", tarfile.REGTYPE)], id="dot-dot-inside"),
        pytest.param([member("/tmp/ckptkit-escaped", tarfile.REGTYPE)], id="absolute"),
        pytest.param([member("link", tarfile.SYMTYPE, "/etc")], id="symlink"),
        pytest.param(
            [member("d", tarfile.SYMTYPE, ".."), member("d/escaped", tarfile.REGTYPE)], id="through-a-symlink"
        ),
        pytest.param([member("hard", tarfile.LNKTYPE, "moat/m.index")], id="hard-link"),
        pytest.param([member("dev", tarfile.CHRTYPE)], id="device"),
        pytest.param([member("pipe", tarfile.FIFOTYPE)], id="fifo"),
        pytest.param([member("moat/m.index", tarfile.REGTYPE)], id="twice"),
        pytest.param([member(".ckptkit-unpacked.json", tarfile.REGTYPE)], id="our-own-marker"),
    ],
)
def test_a_hostile_member_refuses_the_whole_archive(tmp_path: Path, bad: list[tarfile.TarInfo]) -> None:
    inside = tmp_path / "inside"
    archive, folder = inside / "a.tar.gz", inside / "unpacked" / "m"
    inside.mkdir()
    archive.write_bytes(tar_gz(GOOD, bad))
    with pytest.raises(FormatError, match=r"a\.tar\.gz"):
        unpack(archive, folder)
    assert everything(tmp_path) == ["inside", "inside/a.tar.gz", "inside/unpacked"]
    assert not Path("/tmp/ckptkit-escaped").exists()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"\x1f\x8b", tar_gz(GOOD)[:-5000], tar_gz(GOOD)[:100], random_bytes(5000), tar_gz({})],
    ids=["empty", "page", "magic-only", "truncated", "truncated-early", "noise", "no-member"],
)
def test_what_is_no_whole_archive_leaves_nothing(tmp_path: Path, body: bytes) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(body)
    with pytest.raises(FormatError, match=r"a\.tar\.gz"):
        unpack(archive, tmp_path / "u" / "m")
    assert everything(tmp_path / "u") == []


def test_a_refused_archive_leaves_the_earlier_folder(tmp_path: Path) -> None:
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "u" / "m"
    archive.write_bytes(tar_gz(GOOD))
    unpack(archive, folder, sha256="one")
    archive.write_bytes(tar_gz(GOOD)[:-1000])
    with pytest.raises(FormatError):
        unpack(archive, folder, sha256="two")
    assert is_unpacked(folder, "one")
    archive.write_bytes(tar_gz({"only": b"x"}))
    unpack(archive, folder, sha256="three")
    assert is_unpacked(folder, "three") and checkpoint_in(folder) == folder / "only"


def test_orphans_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_gz(GOOD))
    orphan = tmp_path / "u" / ".ckptkit-unpacking-m-0123456789ab"
    (orphan / "moat").mkdir(parents=True)
    (orphan / "moat" / "half").write_bytes(b"x")
    unpack(archive, tmp_path / "u" / "m")
    assert os.listdir(tmp_path / "u") == ["m"]  # noqa: PTH208


def test_a_file_in_the_way(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_gz(GOOD))
    (tmp_path / "u").write_text("")
    with pytest.raises(StorageError):
        unpack(archive, tmp_path / "u" / "m")


@pytest.mark.parametrize("damage", ["missing", "short", "marker", "no-marker"])
def test_a_folder_that_lost_something_is_not_unpacked(tmp_path: Path, damage: str) -> None:
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "m"
    archive.write_bytes(tar_gz(GOOD))
    unpack(archive, folder, sha256="s")
    data, marker = folder / "moat" / "m.data-00000-of-00001", folder / ".ckptkit-unpacked.json"
    {
        "missing": data.unlink,
        "short": lambda: os.truncate(data, 100),
        "marker": lambda: marker.write_text("{"),
        "no-marker": marker.unlink,
    }[damage]()
    assert not is_unpacked(folder, "s")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["m.index", "m.data"], "."),
        (["a/b/m.index", "a/b/m.data", "README"], "a/b"),
        (["a/x.index", "b/y.index"], "."),
        (["weights.pth"], "weights.pth"),
        (["a", "b"], "."),
    ],
)
def test_what_to_convert(tmp_path: Path, files: list[str], expected: str) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_gz(dict.fromkeys(files, b"x")))
    assert checkpoint_in(unpack(archive, tmp_path / "m")) == tmp_path / "m" / expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.tar.gz", True),
        ("a.TGZ", True),
        ("a.tar", True),
        ("a.tar.xz", True),
        ("a.tar.zst", True),
        ("a.tar.bz2", True),
        ("a.ZIP", True),
        ("a.npz", False),
        ("a.pth.tar", False),
        ("a.pth", False),
    ],
)
def test_archive_names(name: str, expected: bool) -> None:
    assert is_archive_name(name) is expected


# -- Zip archives: by the same rules as tar, and never outside the folder ------------------------------------


CONTENT = {
    "moat/m.index": b"index" * 200,
    "moat/m.data-00000-of-00001": random_bytes(700_000),
    "moat/checkpoint": b"",
}


def zipped(
    files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, modes: dict[str, int] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.create_system = 3
            info.external_attr = (modes or {}).get(name, 0) << 16
            archive.writestr(info, body)
    return buffer.getvalue()


def backslashed(files: dict[str, bytes]) -> bytes:
    """Zip with these very names, as Compress-Archive of Windows PowerShell 5 writes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.create_system = 0
            archive.writestr(info, body)
    return buffer.getvalue()


def walk(path: Path, data: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, bytes | None]:
    path.write_bytes(data)
    return {
        member.name: None if stream is None else stream.read()
        for member, stream in iter_safe_members(path, limits=limits)
    }


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_and_folders(tmp_path: Path, method: int) -> None:
    data = zipped({"./": b"", "moat/": b"", **CONTENT}, method, {"moat/": stat.S_IFDIR | 0o777})
    assert walk(tmp_path / "x", data) == {"moat": None, **CONTENT}
    members = [member for member, _ in iter_safe_members(tmp_path / "x")]
    assert members[:2] == [SafeMember("moat", 0, True), SafeMember("moat/m.index", 1000, False)]


def test_an_archive_smaller_than_a_page(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(zipped({"a": b"one", "b": b"two"}, zipfile.ZIP_STORED))
    folder = unpack(tmp_path / "x", tmp_path / "u" / "m")
    assert [(folder / name).read_bytes() for name in "ab"] == [b"one", b"two"]


def test_backslashes_are_folders(tmp_path: Path) -> None:
    files = {"moat\\": b"", **{name.replace("/", "\\"): body for name, body in CONTENT.items()}}
    assert walk(tmp_path / "x", backslashed(files)) == {"moat": None, **CONTENT}
    folder = unpack(tmp_path / "x", tmp_path / "u" / "m")
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


def test_an_archive_written_as_a_stream(tmp_path: Path) -> None:
    """Sizes stand behind the bytes then; the directory has them all the same."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    buffer = Pipe()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in CONTENT.items():
            archive.writestr(name, body)
    assert walk(tmp_path / "x", buffer.getvalue()) == CONTENT


def test_unpack_takes_zip_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "named.tar.gz").write_bytes(zipped(CONTENT, modes={"moat/m.index": stat.S_IFREG | 0o4777}))
    folder = unpack(tmp_path / "named.tar.gz", tmp_path / "u" / "m")
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert checkpoint_in(folder) == folder / "moat"
    assert (folder / "moat" / "m.index").stat().st_mode & 0o7133 == 0


REFUSED: dict[str, tuple[bytes, str]] = {
    "parent": (zipped({"../evil": b"x"}), "'..'"),
    "parent inside": (zipped({"a/../../evil": b"x"}), "'..'"),
    "absolute": (zipped({"/etc/evil": b"x"}), "absolute"),
    "drive": (zipped({"C:/evil": b"x"}), "absolute"),
    "parent by backslashes": (backslashed({"..\\evil": b"x"}), "'..'"),
    "parent inside by backslashes": (backslashed({"a\\..\\..\\evil": b"x"}), "'..'"),
    "absolute by a backslash": (backslashed({"\\evil": b"x"}), "absolute"),
    "share": (backslashed({"\\\\host\\share\\evil": b"x"}), "absolute"),
    "drive and backslash": (backslashed({"C:\\evil": b"x"}), "absolute"),
    "same name by a backslash": (backslashed({"a/b": b"1", "a\\b": b"2"}), "two zip entries have the path"),
    "file as folder by a backslash": (backslashed({"a": b"1", "A\\b": b"2"}), "letter case"),
    "folder with bytes by a backslash": (backslashed({"a\\": b"x"}), "neither a file nor a folder"),
    "escape sequence": (zipped({"a\x1b[31m": b"x"}), "unsafe characters"),
    "letter case": (zipped({"Model": b"1", "model": b"2"}), "letter case"),
    "accents": (zipped({"\u00e9": b"1", "e\u0301": b"2"}), "letter case"),
    "file as folder": (zipped({"a": b"1", "A/b": b"2"}), "letter case"),
    "same name": (zipped({"ab": b"1", "ba": b"2"}).replace(b"ba", b"ab"), "two zip entries"),
    "symbolic link": (zipped({"l": b"/etc/passwd"}, modes={"l": stat.S_IFLNK | 0o777}), "a link"),
    "device": (zipped({"d": b""}, modes={"d": stat.S_IFCHR | 0o666}), "neither a file nor a folder"),
    "folder with bytes": (zipped({"a/": b"x"}), "neither a file nor a folder"),
    "folder without a slash": (zipped({"a": b""}, modes={"a": stat.S_IFDIR}), "neither a file nor a folder"),
    "bzip2": (zipped({"a": b"x"}, zipfile.ZIP_BZIP2), "method 12, which is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_members_are_refused(tmp_path: Path, case: str) -> None:
    data, reason = REFUSED[case]
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(FormatError, match=reason):
        unpack(tmp_path / "a.zip", tmp_path / "u" / "m")
    assert list((tmp_path / "u").iterdir()) == []


def directory_record(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


def patched(at: Callable[[bytes], int], form: str, *values: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(form, changed, at(data), *values)
        return bytes(changed)

    return change


def both(offset: int, local: int, value: int, data: bytes) -> bytes:
    """The first member's record in the directory and its own header say the same thing, which is wrong."""
    changed = patched(lambda d: directory_record(d) + offset, "<I", value)(data)
    return patched(lambda _: local, "<I", value)(changed)


def encrypted(data: bytes) -> bytes:
    return patched(lambda d: directory_record(d) + 8, "<H", 1)(data)


def overlapping(data: bytes) -> bytes:
    """Lead the second record of the directory to the first one's member, as quines and bombs do."""
    second = data.index(b"PK\x01\x02", directory_record(data) + 4)
    changed = bytearray(data)
    struct.pack_into("<I", changed, second + 42, 0)
    changed[second + 46 : second + 47] = b"a"
    return bytes(changed)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "encrypted": (encrypted(zipped({"a": b"x"})), "is encrypted"),
    "overlap": (overlapping(zipped({"a": b"x", "b": b"x"})), "overlap|two zip entries"),
    "crc": (both(16, 14, 7, zipped({"a": b"x"})), "CRC-32"),
    "longer": (
        both(24, 22, 999, zipped({"a": b"x" * 1000})),
        "unpacks to more than 999 bytes",
    ),
    "shorter": (
        both(24, 22, 9999, zipped({"a": b"x" * 1000})),
        "unpacks to fewer than 9999 bytes",
    ),
    "two sizes": (
        patched(lambda d: directory_record(d) + 24, "<I", 999)(zipped({"a": b"x" * 1000})),
        "its own header and the directory disagree",
    ),
    "truncated": (zipped(CONTENT)[:-10], "truncated"),
    "nothing in it": (zipped({}), "holds no file"),
    "noise": (b"PK\x03\x04" + random_bytes(5000), "truncated"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archives_are_refused(tmp_path: Path, case: str) -> None:
    data, reason = DAMAGED[case]
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(FormatError, match=reason):
        unpack(tmp_path / "a.zip", tmp_path / "u" / "m")
    assert list((tmp_path / "u").iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(members=2), "more than 2 members"),
        (Limits(total_bytes=500_000), "more than 500000 bytes"),
        (Limits(ratio=1, ratio_from_bytes=1000), "bomb"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, reason: str) -> None:
    data = zipped({**CONTENT, "zeros": bytes(100_000)})
    with pytest.raises(FormatError, match=reason):
        walk(tmp_path / "x", data, limits)
    assert len(walk(tmp_path / "x", data, Limits(members=4))) == 4


def test_a_bomb_that_lies_about_its_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    bomb = both(24, 22, 1000, zipped({"zeros": bytes(64 << 20)}))
    with pytest.raises(FormatError, match="unpacks to more than 1000 bytes"):
        walk(tmp_path / "x", bomb)


def test_flipped_bytes_never_give_other_contents(tmp_path: Path) -> None:
    source = random.Random(5)
    good = {"a/b": bytes(range(256)) * 8, "a/c": b"text" * 100}
    whole = zipped(good)
    refused = 0
    for position in source.sample(range(len(whole)), 150):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << source.randrange(8)
        try:
            found = walk(tmp_path / "x", bytes(damaged))
        except FormatError:
            refused += 1
            continue
        assert list(found.values()) == list(good.values())
    assert refused > 50


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"x\.zip"):
        next(iter_safe_members(tmp_path / "x.zip"))


def test_the_checksum_used_here_is_that_of_zlib() -> None:
    data = zipped({"a": b"123456789"})
    assert struct.unpack_from("<I", data, directory_record(data) + 16)[0] == zlib.crc32(b"123456789")


# -- Unpacking while the archive arrives: the same result, and nothing of what is refused --------------------


BODY, OTHER = random_bytes(300_000), random_bytes(300_000, seed=2)
FILES = {"moat/m.index": b"index", "moat/m.data-00000-of-00001": BODY}
ARCHIVE = tar_gz(FILES)
OTHERS = tar_gz({"moat/m.index": b"other", "moat/m.data-00000-of-00001": OTHER})
PATH = "/x/m.tar.gz"


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "FROM_BYTES", 1)


@pytest.fixture
def afterwards(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which archives were unpacked after their download."""
    found: list[Path] = []

    class Watched(install.UnpackedFolder):
        def __init__(self, archive: Path, folder: Path, **options: Any) -> None:
            found.append(archive)
            super().__init__(archive, folder, **options)

    monkeypatch.setattr(install, "UnpackedFolder", Watched)
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
    monkeypatch.setattr(unpacking, "FROM_BYTES", len(ARCHIVE) + 1)
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
