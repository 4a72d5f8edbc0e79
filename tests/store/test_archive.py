"""Unpacking: whole or not at all, and never outside the folder."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from ckptkit.base.errors import FormatError, StorageError
from ckptkit.store.unpack import checkpoint_in, is_archive_name, is_unpacked, unpack
from tests.support.entries import random_bytes, tar_gz

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
