"""Which folders ``CKPTKIT_HOME`` names, and which one is written to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.base.files import make_folders, resolved
from ckptkit.base.home import NOWHERE, home_folders, is_writable, listed_paths


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Folders that the system calls read-only: root may write wherever file modes forbid it."""
    folders: set[str] = set()
    ask = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: str(path) not in folders and ask(path, mode))
    return folders


@pytest.mark.parametrize(
    ("listed", "closed", "found"),  # folders by letter, {} for what separates them; those that are read-only
    [
        ("a", "", "a"),
        ("a{}b", "", "ab"),
        ("a{}b{}c", "a", "bac"),
        ("a{}b{}c", "ab", "cab"),
        ("a{}b", "ab", "ab"),
        ("a{}a{}b", "", "ab"),
        ("{} a {}{}b{}", "a", "ba"),
    ],
)
def test_the_first_that_can_be_written_comes_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unwritable: set[str],
    listed: str,
    *,
    closed: str,
    found: str,
) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    unwritable.update(str(tmp_path / name) for name in closed)
    monkeypatch.setenv(
        "CKPTKIT_HOME",
        "".join(str(tmp_path / c) if c in "abc" else c for c in listed.replace("{}", os.pathsep)),
    )
    assert home_folders() == [tmp_path / name for name in found]


def test_the_platforms_folder_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for value in ("", " ", os.pathsep):
        monkeypatch.setenv("CKPTKIT_HOME", value)
        (folder,) = home_folders()
        assert folder.name == "ckptkit"


def test_writable(tmp_path: Path, unwritable: set[str]) -> None:
    (tmp_path / "file").write_text("")
    assert is_writable(tmp_path) and is_writable(tmp_path / "new" / "deeper")
    assert not is_writable(tmp_path / "file") and not is_writable(tmp_path / "file" / "x")
    unwritable.add(str(tmp_path))
    assert not is_writable(tmp_path) and not is_writable(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.skipif(os.pathsep != ":", reason="paths there have colons of their own")
@pytest.mark.parametrize(
    ("listed", "found"),  # {} is a folder with run:1, run:, 2:x:3 in it, and nothing else
    [
        ("{}/run:1", ["{}/run:1"]),
        ("{}/run:1/new", ["{}/run:1/new"]),
        ("{}/run:/1", ["{}/run:/1"]),
        ("{}/2:x:3:{}/run:1:/y", ["{}/2:x:3", "{}/run:1", "/y"]),
        ("{}/2:x:3/a:{}/2:x:3/b", ["{}/2:x:3/a", "{}/2:x:3/b"]),
        ("{}/new:1", ["{}/new:1"]),  # a folder to come: nobody mixes relative and absolute ones
        ("{}/new:/y", ["{}/new", "/y"]),
        ("{}/new:~/y", ["{}/new", "~/y"]),
        ("{}/new:./y", ["{}/new", "y"]),
        ("one:two", ["one", "two"]),
        (":{}/run:1::/y:", ["{}/run:1", "/y"]),
    ],
)
def test_a_colon_in_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, found: list[str]
) -> None:
    for name in ("run:1", "run:", "2:x:3"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("LISTED", listed.replace("{}", str(tmp_path)))
    expected = [Path(path.replace("{}", str(tmp_path))).expanduser() for path in found]
    assert listed_paths("LISTED") == expected


def test_a_path_that_is_too_deep_to_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTKIT_HOME", "/" + "y/" * 2000)
    with pytest.raises(UsageError, match="CKPTKIT_HOME names a path 2,001 folders deep"):
        home_folders()


@pytest.mark.skipif(os.name == "nt", reason="a home folder is always known there")
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "CKPTKIT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert home_folders() == [NOWHERE] and not is_writable(NOWHERE)  # and no folder called "~" here
    for value in ("~/cache", "~nobody-of-this-name/cache"):
        monkeypatch.setenv("CKPTKIT_HOME", value)
        with pytest.raises(UsageError, match="no home folder is known for ~"):
            home_folders()


def test_a_list_of_thousands_of_folders_is_read_at_once(monkeypatch):
    monkeypatch.setenv("MANY", ":".join(f"/nowhere/{n}" for n in range(5000)))
    started = time.process_time()
    assert len(listed_paths("MANY")) == 5000
    assert time.process_time() - started < 4


def test_folders_are_made_one_by_one_and_not_without_end(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 200)
    make_folders(deep)
    make_folders(deep)
    assert deep.is_dir()
    with pytest.raises(OSError, match="more than 250 folders to make"):
        make_folders(tmp_path.joinpath(*["e"] * 300))
    assert not (tmp_path / "e").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_folders(tmp_path / "file" / "x")


def test_links_in_a_circle_lead_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert resolved(tmp_path / "loop") == tmp_path / "loop"
    (tmp_path / "link").symlink_to("file")
    assert resolved(tmp_path / "link") == (tmp_path / "file").resolve()
