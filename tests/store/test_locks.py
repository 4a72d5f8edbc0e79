"""The lock file: it excludes, it says what it is worth, it never hangs where there are no locks."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path

import pytest

from ckptkit.base.errors import StorageError
from ckptkit.base.locks import hold
from ckptkit.store.cache import Home


def test_taken_and_free_again(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "m.lock"
    with hold(path) as outcome, hold(path, wait=False) as second:
        assert (outcome, second) == ("held", "taken")
    with hold(path, wait=False) as outcome:
        assert outcome == "held"


def test_waiting_ends_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "m.lock"
    waits, free = [], threading.Event()

    def holder() -> None:
        with hold(path):
            entered.set()
            free.wait(10)

    entered = threading.Event()
    thread = threading.Thread(target=holder)
    thread.start()
    assert entered.wait(10)

    def waiting() -> None:
        waits.append(1)
        free.set()

    with hold(path, waiting=waiting) as outcome:
        assert outcome == "held"
    thread.join()
    assert waits == [1]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_where_there_are_no_locks_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / "m.lock") as outcome, hold(tmp_path / "m.lock", wait=False) as second:
        assert (outcome, second) == ("no locks", "no locks")


def test_the_umask_decides_who_may_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "m.lock"):
        pass
    (tmp_path / "plain").touch()
    assert (tmp_path / "m.lock").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_lock_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"m\.lock"), hold(tmp_path / "file" / "m.lock"):
        pass
    home = Home(tmp_path / "home")
    home.path.mkdir()
    (home.path / "locks").write_text("")
    with pytest.raises(StorageError), home.lock("m"):
        pass
    monkeypatch.setattr("ckptkit.store.cache.is_writable", lambda _: False)
    with home.lock("m"):  # nobody writes here, so there is nothing to protect
        pass
