"""Removing entries: what goes, what stays and why, and in which order."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ckptkit.base.files import Folder, StagedFile
from ckptkit.base.locks import new_writer, release
from ckptkit.store.cache import Home
from ckptkit.store.upkeep import prune, remove, sweep
from tests.support.caches import put_conversion, put_entry
from tests.support.entries import tar_gz

BODY = b"x" * 1000
ARCHIVE = tar_gz({"m/m.index": b"index", "m/m.data-00000-of-00001": BODY})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def everything(home: Home) -> list[str]:
    """Every file but locks."""
    files = [path.relative_to(home.path).as_posix() for path in home.path.rglob("*") if path.is_file()]
    return sorted(name for name in files if not name.startswith("locks/"))


def test_remove_one_leaves_the_others(home: Home) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    put_conversion(home, "m", "torch-float32.safetensors", "0" * 64)
    home.touch("m")
    put_entry(home, "m2", BODY)
    before = sum((home.path / name).stat().st_size for name in everything(home) if "/m2/" not in name)
    removal = remove(home, "m")
    assert removal.freed == before and removal.kept == ()
    assert [path.parent.name for path in removal.removed] == ["artefacts", "unpacked", "converted"]
    assert everything(home) == ["artefacts/m2/m.pth", "artefacts/m2/m.pth.json"]
    assert remove(home, "m").removed == ()


def test_only_the_conversions(home: Home) -> None:
    put_entry(home, "m", BODY)
    path = put_conversion(home, "m", "torch-float32.safetensors", "0" * 64)
    size = path.stat().st_size
    assert remove(home, "m", converted_only=True).freed == size
    assert home.is_cached("m") and not path.parent.exists()


def test_a_dry_run_removes_nothing_and_says_as_much(home: Home) -> None:
    put_entry(home, "m", ARCHIVE, file="m.tar.gz")
    before = everything(home)
    said = remove(home, "m", dry_run=True)
    assert everything(home) == before and not (home.path / "locks").exists()
    done = remove(home, "m")
    assert (said.freed, said.removed) == (done.freed, done.removed) and done.freed > len(ARCHIVE)


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_somebody_holds_is_left(home: Home, dry_run: bool) -> None:
    put_entry(home, "m", BODY)
    with home.lock("m"):
        removal = remove(home, "m", dry_run=dry_run)
    assert removal.freed == 0 and "another process" in removal.kept[0]
    assert home.is_cached("m")


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_somebody_writes_without_a_lock_is_left(home: Home, dry_run: bool) -> None:
    put_entry(home, "m", BODY)
    put_conversion(home, "m", "torch-float32.safetensors", "0" * 64)
    writer = new_writer()
    (home.artefact_folder("m") / f".m.pth.0123.{writer}.part").write_bytes(b"123")
    with StagedFile(home.converted_folder("m") / "torch-float16.safetensors") as staged:
        removal = remove(home, "m", dry_run=dry_run)
        assert removal.freed == 0 and len(removal.kept) == 2
        assert all("is being written" in reason for reason in removal.kept)
        staged.append(b"123")
        staged.commit()
    assert home.is_cached("m")
    release(writer)
    assert len(remove(home, "m").removed) == 2 and everything(home) == []


def test_a_folder_that_cannot_be_renamed_stays_whole(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a file in it is open elsewhere."""
    put_entry(home, "m", BODY)
    put_conversion(home, "m", "torch-float32.safetensors", "0" * 64)
    rename = Folder.rename

    def refuse(folder: Folder, old: str, new: str) -> None:
        if folder.path.name == "artefacts":
            raise PermissionError(13, "the file is in use", old)
        rename(folder, old, new)

    monkeypatch.setattr(Folder, "rename", refuse)
    removal = remove(home, "m")
    assert "artefacts" in removal.kept[0] and "left as it is" in removal.kept[0]
    assert [path.parent.name for path in removal.removed] == ["converted"] and home.is_cached("m")


def test_what_cannot_be_deleted_is_said_and_swept_later(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    put_entry(home, "m", BODY)
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "remove", lambda *_: None)
        removal = remove(home, "m")
    assert removal.freed == 0 and "could not be removed whole" in removal.kept[0]
    assert not home.artefact_folder("m").exists() and home.fetched_ids() == []
    assert sweep(home) > len(BODY) and everything(home) == []


def test_only_the_folder_that_is_written_to_is_cleared(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    put_entry(other, "m", BODY, days_ago=99)
    shared = Home(home.path, [other.path])
    assert remove(shared, "m").removed == () and list(prune(shared, older_than=1)) == []
    assert other.is_cached("m")


def fill(home: Home) -> None:
    """Five entries of 1000 bytes and a record, used one to five days ago."""
    for days in (3, 1, 5, 2, 4):
        put_entry(home, f"d{days}", BODY, days_ago=days)


def test_by_age(home: Home) -> None:
    fill(home)
    removed = [removal.id for removal in prune(home, older_than=2.5 * 86400)]
    assert removed == ["d5", "d4", "d3"] and home.fetched_ids() == ["d1", "d2"]
    assert list(prune(home, older_than=2.5 * 86400)) == []


def test_by_size_the_least_recently_used_first(home: Home) -> None:
    fill(home)
    home.touch("d5")
    assert [removal.id for removal in prune(home, max_size=3000)] == ["d4", "d3"]
    assert home.fetched_ids() == ["d1", "d2", "d5"]
    assert list(prune(home, max_size=3000)) == []


def test_both(home: Home) -> None:
    fill(home)
    assert [removal.id for removal in prune(home, older_than=4.5 * 86400, max_size=2500)] == [
        "d5",
        "d4",
        "d3",
    ]


def test_a_dry_run_of_prune_says_the_same(home: Home) -> None:
    fill(home)
    before = everything(home)
    said = [removal.id for removal in prune(home, max_size=2500, dry_run=True)]
    assert everything(home) == before
    assert said == [removal.id for removal in prune(home, max_size=2500)] == ["d5", "d4", "d3"]


def test_the_next_one_goes_for_one_that_is_held(home: Home) -> None:
    fill(home)
    with home.lock("d5"):
        removals = list(prune(home, max_size=4000))
    assert [(removal.id, bool(removal.kept)) for removal in removals] == [("d5", True), ("d4", False)]
    assert home.is_cached("d5")


def test_what_was_imported_by_hand_stays(home: Home) -> None:
    put_entry(home, "m", BODY, days_ago=9, note="imported by hand")
    put_entry(home, "n", BODY, days_ago=1)
    kept, gone = prune(home, max_size=1000)
    assert (kept.id, gone.id) == ("m", "n") and "by hand" in kept.kept[0]
    assert [removal.id for removal in prune(home, max_size=0, by_hand=True)] == ["m"]


def test_what_was_used_since_it_was_looked_at_stays(home: Home) -> None:
    put_entry(home, "m", BODY, days_ago=9)
    looked = time.time() - 60
    home.touch("m")
    removal = remove(home, "m", unless_used_after=looked)
    assert "used just now" in removal.kept[0] and home.is_cached("m")
    os.utime(home.path / "used" / "m", (looked - 1,) * 2)
    assert remove(home, "m", unless_used_after=looked).kept == ()


def test_a_training_log_goes_with_its_entry(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.logs_folder("test-entry").mkdir(parents=True)
    (home.logs_folder("test-entry") / "summary.csv").write_text("epoch,train_loss\n0,1\n")
    assert not remove(home, "test-entry").removed  # nothing says that ckptkit fetched it
    (home.logs_folder("test-entry") / "summary.csv.record").write_text("{}")
    removal = remove(home, "test-entry")
    assert (removal.freed, removal.removed) == (23, (home.logs_folder("test-entry"),))
    assert not home.logs_folder("test-entry").exists()
