"""What lies in a cache, how large it is, when it was used, and what is wrong with it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from ckptkit.base.checksums import ExpectedChecksum
from ckptkit.base.files import Folder, StagedFile
from ckptkit.base.locks import hold
from ckptkit.base.writers import new_writer, release
from ckptkit.store.cache import Home
from ckptkit.store.upkeep import (
    Verdict,
    holdings,
    is_being_written,
    leftovers,
    prune,
    remove,
    sweep,
    tree_size,
    verify_cache,
)
from tests.support.caches import put_conversion, put_entry, put_shared
from tests.support.entries import random_bytes, tar_gz
from tests.support.moat_files import flip_byte

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
             "b-00002-of-00002.safetensors", "b.safetensors.index.json", "c.pth",
             "d-00001-of-00001.pth", "e-00001-of-00002.pth", "e-00002-of-00002.pth", "e.pth.index.json",
             "f_00000.weights.h5", "f_00001.weights.h5", "f.weights.json"]  # fmt: skip
    for name in names:
        (folder / name).write_bytes(b"12345")
    (holding,) = holdings(home, examine=False)
    assert {item.path.name: item.size for item in holding.items} == {
        "a.ckpt": 10,
        "b.safetensors.index.json": 15,
        "c.pth": 5,
        "d-00001-of-00001.pth": 5,
        "e.pth.index.json": 15,
        "f.weights.json": 15,
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


# -- Removing entries: what goes, what stays and why, and in which order -------------------------------------


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


# -- Graphs and evaluations, which belong to no single entry -------------------------------------------------


def test_graphs_and_evaluations_are_held_and_removed(home: Home) -> None:
    graph, evaluation = put_shared(home, days_ago=3)
    put_entry(home, "m", BODY)
    kept = [holding for holding in holdings(home) if "/" in holding.id]
    assert [holding.id for holding in kept] == [f"eval/{evaluation.name}", f"onnx/{graph.name}"]
    assert [holding.size for holding in kept] == [evaluation.stat().st_size, 500]
    assert [holding.items[0].kind for holding in kept] == ["evaluation", "graph"]
    assert all(time.time() - holding.used > 2 * DAY for holding in kept)
    assert [holding.id for holding in holdings(home, ["onnx/tiny*"])] == [f"onnx/{graph.name}"]
    said = remove(home, f"onnx/{graph.name}", dry_run=True)
    assert graph.exists() and (said.freed, said.removed) == (500, (graph,))
    assert remove(home, f"onnx/{graph.name}") == said and not graph.exists()
    assert remove(home, f"eval/{evaluation.name}").removed == (evaluation,) and not evaluation.exists()
    assert [holding.id for holding in holdings(home)] == ["m"]


def test_graphs_and_evaluations_are_pruned_by_their_last_use(home: Home) -> None:
    put_shared(home, days_ago=3)
    put_entry(home, "old", BODY, days_ago=5)
    put_entry(home, "new", BODY, days_ago=1)
    pruned = [removal.id.partition("/")[0] for removal in prune(home, older_than=2 * DAY)]
    assert pruned in (["old", "eval", "onnx"], ["old", "onnx", "eval"])
    assert [holding.id for holding in holdings(home)] == ["new"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_graph_that_is_being_exported_stays(home: Home, dry_run: bool) -> None:
    graph, _ = put_shared(home)
    part = graph.rename(graph.with_name(f"{graph.name}.part"))
    (holding,) = holdings(home, ["onnx/*"])
    assert holding.items[0].state == "unfinished"
    with hold(part.with_name("lock")):
        (holding,) = holdings(home, ["onnx/*"])
        assert holding.items[0].state == "being written"
        removal = remove(home, holding.id, dry_run=dry_run)
    assert removal.freed == 0 and "another process" in removal.kept[0] and part.exists()
    assert remove(home, holding.id).freed == 500 and not part.exists()


@pytest.mark.parametrize("kind", ["onnx", "eval"])
def test_what_ckptkit_did_not_put_beside_graphs_and_evaluations_stays(
    home: Home, tmp_path: Path, kind: str
) -> None:
    graph, evaluation = put_shared(home)
    folder = home.path / kind
    name = f"x-{'0b' * 16}" if kind == "onnx" else f"x-{'0b' * 8}.json"
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "model.onnx").write_bytes(b"precious")
    (folder / name).symlink_to(victim if kind == "onnx" else evaluation)  # what a link leads to
    (folder / "thesis").mkdir()
    (folder / f"y-{'0c' * 16}").mkdir()
    (folder / f"y-{'0c' * 16}" / "thesis.txt").write_text("precious")
    (folder / f"z-{'0d' * 8}.json").write_text('{"mine": true}')
    os.mkfifo(folder / f"pipe-{'0e' * 8}.json")
    before = sorted(path.name for path in folder.iterdir())
    own = evaluation if kind == "eval" else graph
    assert [holding.id for holding in holdings(home, [f"{kind}/*"])] == [f"{kind}/{own.name}"]
    for other in before:
        if other != own.name:
            assert remove(home, f"{kind}/{other}").removed == ()
    list(prune(home, max_size=0))
    assert sorted(path.name for path in folder.iterdir()) == [one for one in before if one != own.name]
    assert (victim / "model.onnx").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["onnx", "eval"])
def test_a_link_in_place_of_their_folder_is_not_followed(home: Home, tmp_path: Path, kind: str) -> None:
    paths = put_shared(home)
    (own,) = [path for path in paths if path.parent.name == kind]
    own.parent.rename(tmp_path / "elsewhere")
    (home.path / kind).symlink_to(tmp_path / "elsewhere")
    assert holdings(home, [f"{kind}/*"]) == []
    assert remove(home, f"{kind}/{own.name}").removed == () and own.exists()
    list(prune(home, max_size=0))
    assert own.exists()


# -- Reading a cache again: every wrong byte is found, and told apart from a cache that changes meanwhile ----


REHASH_BODY = random_bytes(3_000_000)
REHASH_ARCHIVE = tar_gz({"m/m.index": b"index", "m/m.data-00000-of-00001": REHASH_BODY})


def verdicts(home: Home, **options: object) -> dict[str, Verdict]:
    return {f"{v.id}/{v.path.name}": v for v in verify_cache(home, **options)}  # type: ignore[arg-type]


def test_everything_holds(home: Home) -> None:
    put_entry(home, "m", REHASH_ARCHIVE, file="m.tar.gz")
    put_entry(home, "n", REHASH_BODY)
    counts: list[int] = []
    found = verdicts(home, advance=counts.append)
    assert list(found) == ["m/m.tar.gz", "m/m", "n/m.pth"] and all(v.ok for v in found.values())
    assert found["n/m.pth"].sha256 == hashlib.sha256(REHASH_BODY).hexdigest()
    assert sum(counts) == len(REHASH_ARCHIVE) + len(REHASH_BODY) + 5 + len(REHASH_BODY)
    assert list(verdicts(home, patterns=["n*"])) == ["n/m.pth"]


@pytest.mark.parametrize("offset", [0, 1_500_000, 2_999_999])
def test_one_wrong_byte_in_the_file(home: Home, offset: int) -> None:
    path = put_entry(home, "m", REHASH_BODY)
    times = path.stat()
    flip_byte(path, offset)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time say that all is well
    (verdict,) = verdicts(home).values()
    assert not verdict.ok and hashlib.sha256(REHASH_BODY).hexdigest() in verdict.detail


@pytest.mark.parametrize("name", ["m.index", "m.data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "gone"])
def test_damage_in_an_unpacked_folder(home: Home, name: str, damage: str) -> None:
    put_entry(home, "m", REHASH_ARCHIVE, file="m.tar.gz")
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
    put_entry(home, "m", REHASH_ARCHIVE, file="m.tar.gz")
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
    put_entry(other, "m", REHASH_ARCHIVE, file="m.tar.gz")
    put_entry(home, "m", tar_gz({"m/m.index": b"newer"}), file="m.tar.gz")
    found = list(verify_cache(Home(home.path, [other.path])))
    assert len(found) == 4 and all(v.ok for v in found)


def test_a_file_that_is_gone_or_short_or_without_record(home: Home) -> None:
    put_entry(home, "a", REHASH_BODY).unlink()
    put_entry(home, "b", REHASH_BODY).write_bytes(REHASH_BODY[:10])
    put_entry(home, "c", REHASH_BODY).with_name("m.pth.json").unlink()
    found = verdicts(home)
    assert [v.ok for v in found.values()] == [False] * 3
    assert "not there any more" in found["a/m.pth"].detail
    assert "has 10 bytes, but 3,000,000 were fetched" in found["b/m.pth"].detail
    assert "no sound record" in found["c/m.pth"].detail and "ckptkit fetch c" in found["c/m.pth"].detail


def test_what_others_say_counts(home: Home) -> None:
    put_entry(home, "a", REHASH_BODY)
    put_entry(home, "b", REHASH_BODY)
    put_entry(home, "c", REHASH_BODY).with_name("m.pth.json").unlink()
    right = hashlib.sha256(REHASH_BODY).hexdigest()
    pins = {"a": right, "b": "0" * 64, "c": right}
    found = verdicts(
        home, expected=lambda id, file: [ExpectedChecksum("sha256", pins[id], f"the pin of {file}")]
    )
    assert [v.ok for v in found.values()] == [True, False, True]
    assert f"the pin of m.pth says {'0' * 64}" in found["b/m.pth"].detail
    assert "of the pin of m.pth" in found["a/m.pth"].detail


def test_every_folder_is_read(home: Home, tmp_path: Path) -> None:
    put_entry(home, "m", REHASH_BODY)
    other = Home(tmp_path / "other")
    flip_byte(put_entry(other, "m", REHASH_BODY), 7)
    found = list(verify_cache(Home(home.path, [other.path])))
    assert [(v.path.is_relative_to(home.path), v.ok) for v in found] == [(True, True), (False, False)]


def test_fetched_again_meanwhile_is_no_fault(home: Home) -> None:
    put_entry(home, "m", REHASH_BODY)
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
        put_entry(home, f"m{number}", REHASH_BODY)
    read: list[int] = []
    before = {thread.ident for thread in threading.enumerate()}
    running = verify_cache(home, threads=2, advance=read.append)
    assert next(running).ok
    running.close()
    stopped = sum(read)
    assert {thread.ident for thread in threading.enumerate()} <= before and sum(read) == stopped


def test_several_threads_read_at_once(home: Home) -> None:
    for number in range(4):
        put_entry(home, f"m{number}", REHASH_BODY)
    together = threading.Barrier(2, timeout=10)
    names: set[str] = set()

    def meet(_count: int) -> None:
        name = threading.current_thread().name
        if name not in names and len(names) < 2:
            names.add(name)
            together.wait()  # passes only when another thread reads as well

    assert all(v.ok for v in verify_cache(home, threads=2, advance=meet)) and len(names) == 2
