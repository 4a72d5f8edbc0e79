"""Reading a cache again: every wrong byte is found, and told apart from a cache that changes meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from ckptkit.store.cache import Home
from ckptkit.store.expected import ExpectedChecksum
from ckptkit.store.upkeep import Verdict, verify_cache
from tests.support.caches import put_entry
from tests.support.entries import random_bytes, tar_gz
from tests.support.moat_files import flip_byte

BODY = random_bytes(3_000_000)
ARCHIVE = tar_gz({"m/m.index": b"index", "m/m.data-00000-of-00001": BODY})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def verdicts(home: Home, **options: object) -> dict[str, Verdict]:
    return {f"{v.id}/{v.path.name}": v for v in verify_cache(home, **options)}  # type: ignore[arg-type]


def test_everything_holds(home: Home) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    put_entry(home, "n", BODY)
    counts: list[int] = []
    found = verdicts(home, advance=counts.append)
    assert list(found) == ["m/m.tar.gz", "m/m", "n/m.pth"] and all(v.ok for v in found.values())
    assert found["n/m.pth"].sha256 == hashlib.sha256(BODY).hexdigest()
    assert sum(counts) == len(ARCHIVE) + len(BODY) + 5 + len(BODY)
    assert list(verdicts(home, patterns=["n*"])) == ["n/m.pth"]


@pytest.mark.parametrize("offset", [0, 1_500_000, 2_999_999])
def test_one_wrong_byte_in_the_file(home: Home, offset: int) -> None:
    path = put_entry(home, "m", BODY)
    times = path.stat()
    flip_byte(path, offset)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time say that all is well
    (verdict,) = verdicts(home).values()
    assert not verdict.ok and hashlib.sha256(BODY).hexdigest() in verdict.detail


@pytest.mark.parametrize("name", ["m.index", "m.data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "gone"])
def test_damage_in_an_unpacked_folder(home: Home, name: str, damage: str) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    path = home.unpacked_folder("m") / "m" / name
    if damage == "flip":
        flip_byte(path, 3)
    elif damage == "gone":
        path.unlink()
    else:
        body = path.read_bytes()
        path.write_bytes(body[:-1] if damage == "cut" else body + b"x")
    found = verdicts(home)
    assert found["m/m.tar.gz"].ok and not found["m/m"].ok
    assert name in found["m/m"].detail and "ckptkit fetch m" in found["m/m"].detail


def test_an_unpacked_folder_that_nothing_uses_is_no_fault(home: Home) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    newer = tar_gz({"m/m.index": b"newer"})
    old = home.path / "old"
    home.unpacked_folder("m").rename(old)
    put_entry(home, "m", newer, file="m.tar.gz")
    shutil.rmtree(home.unpacked_folder("m"))
    old.rename(home.unpacked_folder("m"))
    found = verdicts(home)
    assert all(v.ok for v in found.values()) and found["m/m"].detail.startswith("stale")
    (home.unpacked_folder("m") / ".ckptkit-unpacked.json").unlink()
    assert not verdicts(home)["m/m"].ok


def test_an_unpacked_folder_is_compared_with_its_own_archive_wherever_that_lies(
    home: Home, tmp_path: Path
) -> None:
    other = Home(tmp_path / "other")
    put_entry(other, "m", ARCHIVE, file="m.tar.gz")
    put_entry(home, "m", tar_gz({"m/m.index": b"newer"}), file="m.tar.gz")
    found = list(verify_cache(Home(home.path, [other.path])))
    assert len(found) == 4 and all(v.ok for v in found)


def test_a_file_that_is_gone_or_short_or_without_record(home: Home) -> None:
    put_entry(home, "a", BODY).unlink()
    put_entry(home, "b", BODY).write_bytes(BODY[:10])
    put_entry(home, "c", BODY).with_name("m.pth.json").unlink()
    found = verdicts(home)
    assert [v.ok for v in found.values()] == [False] * 3
    assert "not there any more" in found["a/m.pth"].detail
    assert "has 10 bytes, but 3,000,000 were fetched" in found["b/m.pth"].detail
    assert "no sound record" in found["c/m.pth"].detail and "ckptkit fetch c" in found["c/m.pth"].detail


def test_what_others_say_counts(home: Home) -> None:
    put_entry(home, "a", BODY)
    put_entry(home, "b", BODY)
    put_entry(home, "c", BODY).with_name("m.pth.json").unlink()
    right = hashlib.sha256(BODY).hexdigest()
    pins = {"a": right, "b": "0" * 64, "c": right}
    found = verdicts(
        home, expected=lambda id, file: [ExpectedChecksum("sha256", pins[id], f"the pin of {file}")]
    )
    assert [v.ok for v in found.values()] == [True, False, True]
    assert f"the pin of m.pth says {'0' * 64}" in found["b/m.pth"].detail
    assert "of the pin of m.pth" in found["a/m.pth"].detail


def test_every_folder_is_read(home: Home, tmp_path: Path) -> None:
    put_entry(home, "m", BODY)
    other = Home(tmp_path / "other")
    flip_byte(put_entry(other, "m", BODY), 7)
    found = list(verify_cache(Home(home.path, [other.path])))
    assert [(v.path.is_relative_to(home.path), v.ok) for v in found] == [(True, True), (False, False)]


def test_fetched_again_meanwhile_is_no_fault(home: Home) -> None:
    put_entry(home, "m", BODY)
    other = random_bytes(3_000_000, seed=2)
    replaced = threading.Event()

    def replace(_count: int) -> None:
        if not replaced.is_set():
            replaced.set()
            put_entry(home, "m", other)

    (verdict,) = verify_cache(home, advance=replace)
    assert verdict.ok and verdict.sha256 == hashlib.sha256(other).hexdigest()


def test_giving_up_stops_the_threads(home: Home) -> None:
    for number in range(6):
        put_entry(home, f"m{number}", BODY)
    read: list[int] = []
    running = verify_cache(home, threads=2, advance=read.append)
    assert next(running).ok
    running.close()
    stopped = sum(read)
    assert threading.active_count() < 10 and sum(read) == stopped


def test_several_threads_read_at_once(home: Home) -> None:
    for number in range(4):
        put_entry(home, f"m{number}", BODY)
    together = threading.Barrier(2, timeout=10)
    names: set[str] = set()

    def meet(_count: int) -> None:
        name = threading.current_thread().name
        if name not in names and len(names) < 2:
            names.add(name)
            together.wait()  # passes only when another thread reads as well

    assert all(v.ok for v in verify_cache(home, threads=2, advance=meet)) and len(names) == 2
