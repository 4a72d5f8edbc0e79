"""Which folders ``CKPTKIT_HOME`` names, and which one is written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptkit.places import home_folders, is_writable


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
