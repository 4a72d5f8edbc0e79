"""What lies in a cache, how large it is, when it was used, and what is wrong with it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from ckptkit.base.files import StagedFile
from ckptkit.base.locks import new_writer, release
from ckptkit.store.cache import Home
from ckptkit.store.upkeep import holdings, is_being_written, leftovers, tree_size
from tests.support.caches import put_conversion, put_entry
from tests.support.entries import tar_gz

BODY = b"x" * 1000
ARCHIVE = tar_gz({"m/m.index": b"index", "m/m.data-00000-of-00001": BODY})
SHA256 = hashlib.sha256(BODY).hexdigest()
DAY = 86400


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def states(home: Home, id: str = "m") -> dict[str, str]:
    (holding,) = holdings(home, [id])
    return {item.path.name: item.state for item in holding.items}


def test_nothing(home: Home) -> None:
    assert holdings(home) == [] and leftovers(home) == []
    assert not home.path.exists()


def test_sizes_of_everything(home: Home) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    put_conversion(home, "m", "torch-float32.safetensors", hashlib.sha256(ARCHIVE).hexdigest())
    put_entry(home, "n", BODY)
    (m, n) = holdings(home)
    assert (m.id, n.id) == ("m", "n")
    assert m.size_of("artefact") == len(ARCHIVE)
    marker = (home.unpacked_folder("m") / ".ckptkit-unpacked.json").stat().st_size
    assert m.size_of("unpacked") == len(BODY) + len(b"index") + marker
    converted = home.converted_folder("m") / "torch-float32.safetensors"
    assert m.size_of("converted") == converted.stat().st_size
    assert m.size == sum(item.size for item in m.items) and n.size == 1000
    assert m.is_intact and n.is_intact and not m.by_hand


def test_ids_and_globs(home: Home) -> None:
    for id in ("a-1", "a-2", "b-1"):
        put_entry(home, id, BODY)
    assert [h.id for h in holdings(home, ["a-*"])] == ["a-1", "a-2"]
    assert [h.id for h in holdings(home, ["b-1", "*-2", "nobody"])] == ["a-2", "b-1"]


def test_states_of_the_file(home: Home) -> None:
    path = put_entry(home, "m", BODY)
    assert states(home) == {"m.pth": "intact"}
    os.utime(path, (1, 1))
    assert states(home) == {"m.pth": "touched"} and holdings(home)[0].is_intact
    path.write_bytes(b"x")
    assert states(home) == {"m.pth": "damaged"} and not holdings(home)[0].is_intact
    path.unlink()
    assert states(home) == {"m.pth": "missing"} and holdings(home)[0].size == 0
    path.write_bytes(BODY)
    path.with_name("m.pth.json").write_text("{")
    assert states(home) == {"m.pth": "no record"}


def test_what_was_made_from_other_bytes_is_stale(home: Home) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    put_conversion(home, "m", "torch-float32.safetensors", hashlib.sha256(ARCHIVE).hexdigest())
    put_conversion(home, "m", "torch-float16.safetensors", SHA256)
    (home.converted_folder("m") / "torch-float32.npz").write_bytes(b"no archive at all")
    expected = {
        "m.tar.gz": "intact",
        "m": "intact",
        "torch-float32.safetensors": "intact",
        "torch-float16.safetensors": "stale",
        "torch-float32.npz": "damaged",
    }
    assert states(home) == expected
    newer = tar_gz({"m/m.index": b"newer", "m/m.data-00000-of-00001": BODY})
    old = home.path / "old"
    home.unpacked_folder("m").rename(old)
    put_entry(home, "m", newer, file="m.tar.gz")
    shutil.rmtree(home.unpacked_folder("m"))
    old.rename(home.unpacked_folder("m"))
    assert states(home) == {**expected, "m": "stale", "torch-float32.safetensors": "stale"}


def test_an_unpacked_folder_that_lost_a_file_is_damaged(home: Home) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    (home.unpacked_folder("m") / "m" / "m.index").unlink()
    assert states(home)["m"] == "damaged"
    (home.unpacked_folder("m") / ".ckptkit-unpacked.json").write_text("[")
    assert states(home)["m"] == "damaged"


def test_files_of_one_conversion_are_one(home: Home) -> None:
    folder = home.converted_folder("m")
    folder.mkdir(parents=True)
    names = ["a.ckpt.index", "a.ckpt.data-00000-of-00001", "b-00001-of-00002.safetensors",
             "b-00002-of-00002.safetensors", "b.safetensors.index.json", "c.pth"]  # fmt: skip
    for name in names:
        (folder / name).write_bytes(b"12345")
    (holding,) = holdings(home, examine=False)
    assert {item.path.name: item.size for item in holding.items} == {
        "a.ckpt": 10,
        "b.safetensors.index.json": 15,
        "c.pth": 5,
    }


def test_temporary_files(home: Home) -> None:
    folder = home.artefact_folder("m")
    folder.mkdir(parents=True)
    mine, other = new_writer(), new_writer()
    release(other)
    (folder / f".m.pth.0.{mine}.part").write_bytes(b"12")
    (folder / f".m.pth.0.{other}.part").write_bytes(b"345")
    assert states(home) == {
        f".m.pth.0.{mine}.part": "being written",
        f".m.pth.0.{other}.part": "unfinished",
    }
    assert holdings(home)[0].size == 5
    release(mine)


def test_a_staged_file_is_being_written_while_its_writer_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StagedFile(tmp_path / "m.npz") as staged:
        assert is_being_written(staged.temporary)
    left = tmp_path / ".ckptkit-0a1b2c3d4e5f-m.npz.part"
    left.write_bytes(b"x")
    assert not is_being_written(left)

    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)  # then only its age can tell
    assert is_being_written(left)
    os.utime(left, (time.time() - 700,) * 2)
    assert not is_being_written(left)


def test_last_use_is_the_latest_of_fetch_conversion_and_stamp(home: Home) -> None:
    now = time.time()
    put_entry(home, "m", BODY, days_ago=9)
    assert holdings(home)[0].used == pytest.approx(now - 9 * DAY, abs=60)
    put_conversion(home, "m", "torch-float32.safetensors", SHA256, days_ago=5)
    assert holdings(home)[0].used == pytest.approx(now - 5 * DAY, abs=60)
    home.touch("m")
    assert holdings(home)[0].used == pytest.approx(now, abs=60)
    os.utime(home.path / "used" / "m", (now - 2 * DAY,) * 2)
    assert holdings(home)[0].used == pytest.approx(now - 2 * DAY, abs=60)


def test_a_stamp_of_another_user_is_replaced(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cache that a group shares another user's stamp may be closed, but can be replaced."""
    put_entry(home, "m", BODY, days_ago=9)
    home.touch("m")
    stamp = home.path / "used" / "m"
    os.utime(stamp, (1, 1))

    def refuse(*_: object) -> None:
        raise PermissionError(1, "not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", refuse)
        home.touch("m")
    assert stamp.stat().st_mtime == pytest.approx(time.time(), abs=60)


def test_touching_never_fails(home: Home, tmp_path: Path) -> None:
    home.touch("m")  # no cache folder yet: none is made for that
    assert not home.path.exists()
    (tmp_path / "file").write_text("")
    Home(tmp_path / "file").touch("m")
    home.path.mkdir()
    (home.path / "used").write_text("")
    home.touch("m")


def test_several_folders(home: Home, tmp_path: Path) -> None:
    put_entry(home, "m", BODY)
    other = Home(tmp_path / "other")
    put_entry(other, "n", ARCHIVE, file="n.tar.gz")
    shutil.move(other.path / "unpacked", home.path / "unpacked")  # unpacked here, the archive lies there
    found = holdings(Home(home.path, [other.path]))
    assert [(h.id, h.home) for h in found] == [("m", home.path), ("n", home.path), ("n", other.path)]
    assert all(h.is_intact for h in found)
    assert [item.state for item in holdings(home, ["n"])[0].items] == ["stale"]


def test_what_killed_processes_left(home: Home) -> None:
    writer, lives = new_writer(), new_writer()
    release(writer)
    gone = home.path / "unpacked" / f".ckptkit-unpacking-m-{writer}"
    for folder in (gone, home.path / "artefacts" / f".ckptkit-removing-m-{lives}"):
        folder.mkdir(parents=True)
    assert leftovers(home) == [gone] and holdings(home) == []
    release(lives)


def test_tree_size_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"12345")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert tree_size(tmp_path / "a") == 5 + (tmp_path / "a" / "up").lstat().st_size
    assert tree_size(tmp_path / "nothing") == 0
