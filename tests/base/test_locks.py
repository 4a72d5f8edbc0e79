"""The lock file: it excludes, it says what it is worth, it never hangs where there are no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ckptkit.base.errors import StorageError
from ckptkit.base.locks import hold
from ckptkit.base.writers import has_token, is_gone, new_writer, release
from ckptkit.store.cache import Home
from ckptkit.store.openers import Identity
from ckptkit.store.partial import Partial


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


# -- Tokens of writers: whose a temporary file is, and whether that writer still lives -----------------------


OTHER_PROCESS = """
import sys, time
from ckptkit.base.writers import new_writer
print(new_writer(), flush=True)
time.sleep(60)
"""


def named(token: str) -> Path:
    return Path(f".m.pth.0123456789abcdef.{token}.part")


def test_one_process_knows_its_own() -> None:
    first, second = new_writer(), new_writer()
    assert first != second
    release(first)
    assert is_gone(named(first)) and not is_gone(named(second))
    release(second)
    assert is_gone(named(second))


def test_another_process_lives_until_it_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    path = named(process.stdout.readline().strip())
    assert has_token(path) and not is_gone(path)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert is_gone(path)


def test_a_later_process_with_the_same_number_is_another() -> None:
    token = new_writer()
    if token.split("-")[2] == "0":
        pytest.skip("this system does not tell when a process started")
    machine, _, _, chance = token.split("-")
    parent = os.getppid()
    assert is_gone(named(f"{machine}-{parent}-1-{chance}"))  # it did not start at the first tick


@pytest.mark.parametrize("pid", ["999999999", "9999999999"])
def test_nobody_has_that_number(pid: str) -> None:
    machine, _, started, chance = new_writer().split("-")
    assert is_gone(named(f"{machine}-{pid}-{started}-{chance}"))


def test_another_machine_is_gone_when_it_was_silent_for_an_hour(tmp_path: Path) -> None:
    path = tmp_path / named("00000000-1-0-abcdef").name
    path.write_bytes(b"x")
    assert not is_gone(path)
    os.utime(path, (time.time() - 3500,) * 2)
    assert not is_gone(path)
    os.utime(path, (time.time() - 3700,) * 2)
    assert is_gone(path)
    path.unlink()
    assert not is_gone(path)


@pytest.mark.parametrize(
    "name", [".m.pth.0123456789abcdef.part", ".ckptkit-0a1b2c3d4e5f-m.part", "m.pth", ""]
)
def test_no_token_nobody_who_could_live(name: str) -> None:
    assert not has_token(Path(name)) and is_gone(Path(name))


def test_tokens_fit_into_names() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}-\d+-\d+-[0-9a-f]{6}", new_writer())
    assert len(new_writer()) <= 48


def test_a_finished_download_sweeps_what_is_over_and_nothing_else(tmp_path: Path) -> None:
    lives, over = new_writer(), new_writer()
    release(over)
    left = [named(over).name, f"{named(over).name}.json", ".m.pth.0123456789abcdef.part"]
    kept = [named(lives).name, f"{named(lives).name}.json", ".ckptkit-0a1b2c3d4e5f-m.pth.json.part"]
    for name in (*left, *kept):
        (tmp_path / name).write_bytes(b"x")
    partial = Partial(tmp_path, "m.pth", "https://a.org/m.pth")
    partial.begin(Identity(size=3, etag='"e"'), ())
    partial.append(b"abc")
    partial.sync()
    assert partial.rename().read_bytes() == b"abc"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "m.pth"])
    release(lives)
