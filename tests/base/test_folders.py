"""A folder stands whole under its name or not at all, and replaces nothing it did not write."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptkit.base.errors import StorageError, UsageError
from ckptkit.base.folders import StagedFolder, refuse_replacement

OWNED = frozenset({"a.txt", "b.txt"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    final = tmp_path / "deep" / "out"
    with StagedFolder(final, owned=OWNED) as folder:
        folder.write_text("a.txt", "eins\n")
        assert not final.exists()
        assert folder.commit() == final
    assert names(final) == ["a.txt"]
    assert (final / "a.txt").read_bytes() == b"eins\n"
    assert names(final.parent) == ["out"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), StagedFolder(tmp_path / "out", owned=OWNED) as folder:
        folder.write_text("a.txt", "eins")
        raise RuntimeError
    assert names(tmp_path) == []


def test_an_earlier_one_stays_unless_forced_and_then_goes_wholly(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    (final / "b.txt").write_text("old")
    with pytest.raises(UsageError, match="out exists already; give --force"):
        StagedFolder(final, owned=OWNED)
    with StagedFolder(final, force=True, owned=OWNED) as folder:
        folder.write_text("a.txt", "new")
        assert (final / "b.txt").read_text() == "old"
        folder.commit()
    assert names(final) == ["a.txt"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_no_earlier_one(tmp_path):
    (tmp_path / "out").mkdir()
    with StagedFolder(tmp_path / "out", owned=OWNED) as folder:
        folder.write_text("a.txt", "x")
        folder.commit()
    assert names(tmp_path / "out") == ["a.txt"]


@pytest.mark.parametrize("stranger", ["thesis.docx", ".git"])
def test_a_folder_with_anything_else_is_never_replaced(tmp_path, stranger):
    final = tmp_path / "out"
    final.mkdir()
    (final / "a.txt").write_text("ours")
    (final / stranger).write_text("theirs")
    with pytest.raises(UsageError, match=f"out exists and holds {stranger}, which ckptkit did not write"):
        StagedFolder(final, force=True, owned=OWNED)
    assert names(final) == sorted(["a.txt", stranger])


def test_a_file_or_a_link_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="is not a folder"):
            refuse_replacement(tmp_path / name, force=True, owned=OWNED)


def test_a_new_folder_that_cannot_be_renamed_brings_the_old_one_back(tmp_path, monkeypatch):
    final = tmp_path / "out"
    final.mkdir()
    (final / "a.txt").write_text("old")
    with StagedFolder(final, force=True, owned=OWNED) as folder:
        rename, fresh = Path.rename, folder.path

        def refusing(self, target):
            if self == fresh:
                raise OSError(28, "No space left on device")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", refusing)
        with pytest.raises(StorageError, match="no space left"):
            folder.commit()
    assert (final / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


KILLED = """
import os, sys
from pathlib import Path
from ckptkit.base.folders import StagedFolder
folder = StagedFolder(Path(sys.argv[1]), force=True, owned={"a.txt"})
folder.write_text("a.txt", "new")
rename = Path.rename
def dying(self, target):
    if self == folder.path:
        os.kill(os.getpid(), 9)
    return rename(self, target)
Path.rename = dying
if sys.argv[2] == "before":
    os.kill(os.getpid(), 9)
folder.commit()
"""


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.skipif(os.name == "nt", reason="no such kill")
def test_the_next_writer_clears_up_after_a_killed_one(tmp_path, when):
    final = tmp_path / "out"
    final.mkdir()
    (final / "a.txt").write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(final), when], check=False).returncode == -9
    assert final.exists() == (when == "before")
    assert len(names(tmp_path)) == 2
    with pytest.raises(UsageError, match="exists already"):  # the old one is back before anything is asked
        StagedFolder(final, owned=OWNED)
    assert (final / "a.txt").read_text() == "old"
    with StagedFolder(final, force=True, owned=OWNED) as folder:
        folder.write_text("a.txt", "newer")
        folder.commit()
    assert names(tmp_path) == ["out"]
    assert (final / "a.txt").read_text() == "newer"


def test_a_living_writer_of_the_same_folder_is_left_alone(tmp_path):
    with StagedFolder(tmp_path / "out", owned=OWNED) as first:
        first.write_text("a.txt", "first")
        with StagedFolder(tmp_path / "out", owned=OWNED) as second:
            second.write_text("a.txt", "second")
            second.commit()
        assert (first.path / "a.txt").read_text() == "first"
    assert (tmp_path / "out" / "a.txt").read_text() == "second"


def test_writers_at_once_leave_one_whole_folder(tmp_path):
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                for _ in range(10):
                    with StagedFolder(tmp_path / "f", force=True, owned={"a", "b"}) as folder:
                        folder.write_text("a", str(number))
                        folder.write_text("b", str(number))
                        folder.commit()
                os._exit(0)
            os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "a").read_text() == (tmp_path / "f" / "b").read_text()


@pytest.mark.parametrize("name", ["f" * 255, "ü" * 127, "a\nb"])
def test_a_folder_of_any_name_replaces_an_older_one(tmp_path, name):
    for text in ("old", "new"):
        with StagedFolder(tmp_path / name, force=True, owned={"a"}) as folder:
            folder.write_text("a", text)
            folder.commit()
        with pytest.raises(UsageError, match="exists already"):
            StagedFolder(tmp_path / name, owned={"a"})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "a").read_text() == "new"
