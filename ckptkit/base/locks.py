"""Several processes at the same files: a lock file excludes them, and a token in a name tells who writes it.

On Windows the lock is the `filelock` package's. On POSIX it is ``flock`` itself: the package waits for ever
where NFS has no lock service, and cannot lock a file that another user made and this one may only read.

A network file system may refuse ``flock`` (Lustre without ``-o flock``, NFS without its lock service). A file
that merely exists in its stead would have to be broken when its maker was killed, and that cannot be told
from a slow download on another machine. So there the work goes on without a lock, and the worst that happens
is that two processes download the same file: each temporary name carries its writer's token, no two writers
share a file, and one takes over or sweeps away another's only when that writer is gone.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from ckptkit.base.files import kind_of, make_folders, translated, try_lock

Outcome = Literal["held", "taken", "no locks"]
_OUTCOMES: dict[bool | None, Outcome] = {True: "held", False: "taken", None: "no locks"}
_POLL_SECONDS = 0.05
_SAFELY = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""No link is followed, no pipe waited for."""


@contextlib.contextmanager
def hold(path: Path, *, wait: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[Outcome]:
    """Hold a lock file while the block runs.

    The file stays: unlinking one that others wait for would give each of them a lock of its own.
    """
    with translated(path):
        make_folders(path.parent)
    if os.name == "nt":
        with _hold_on_windows(path, wait, waiting) as outcome:
            yield outcome
        return
    with translated(path):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o666)
        except PermissionError:  # somebody else made it: to lock it, reading it is enough
            fd = os.open(path, os.O_RDONLY | _SAFELY)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            raise OSError(errno.EINVAL, f"{kind_of(mode)} where a lock file is needed; remove it")
    try:
        outcome = _try(fd)
        if outcome == "taken" and wait:
            if waiting:
                waiting()
            while outcome == "taken":  # polled, so that Ctrl+C ends it in any thread
                time.sleep(_POLL_SECONDS)
                outcome = _try(fd)
        yield outcome
    finally:
        os.close(fd)  # and with it the lock


def _try(fd: int) -> Outcome:
    return _OUTCOMES[try_lock(fd)]


@contextlib.contextmanager
def _hold_on_windows(path: Path, wait: bool, waiting: Callable[[], None] | None) -> Iterator[Outcome]:
    import filelock

    lock = filelock.FileLock(str(path), thread_local=False)
    with translated(path):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if wait:
                if waiting:
                    waiting()
                lock.acquire()
    try:
        yield "held" if lock.is_locked else "taken"
    finally:
        lock.release()


_TOKEN = re.compile(r"(?<![0-9a-z])([0-9a-f]{8})-([0-9]{1,10})-([0-9]{1,20})-([0-9a-f]{6})(?![0-9a-z])")
_SILENT_SECONDS = 3600.0
"""A writer on another machine that wrote nothing for so long is gone: retries have given up long before."""

_living: set[str] = set()


def new_writer() -> str:
    """Return a token for one temporary file of this process; `release` it when the file is left or renamed.

    >>> token = new_writer()
    >>> is_gone(Path(f".m.pth.{token}.part"))
    False
    >>> release(token)
    >>> is_gone(Path(f".m.pth.{token}.part"))
    True
    """
    token = f"{_machine()}-{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(3)}"
    _living.add(token)
    return token


def release(token: str) -> None:
    """Record that this process no longer writes the file with this token."""
    _living.discard(token)


def has_token(path: Path) -> bool:
    """Whether a file's name tells its writer."""
    return _TOKEN.search(path.name) is not None


def is_gone(path: Path) -> bool:
    """Whether the writer of a temporary file lives no more; a name without a token has none."""
    found = _TOKEN.search(path.name)
    if found is None:
        return True
    machine, pid, started = found[1], int(found[2]), found[3]
    if machine != _machine():
        try:
            return time.time() - path.stat().st_mtime > _SILENT_SECONDS
        except OSError:
            return False
    if pid == os.getpid():
        return found[0] not in _living
    if os.name == "nt":  # signal 0 would end it; an open file can be neither renamed nor removed there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    now = _started(pid)
    return "0" not in (started, now) and started != now


@functools.cache
def _machine() -> str:
    """Eight digits for this machine, or this container: where process numbers mean the same."""
    try:
        numbers = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    except OSError:
        numbers = 0
    return hashlib.sha256(f"{socket.gethostname()}\n{numbers}".encode()).hexdigest()[:8]


def _started(pid: int) -> str:
    """When a process started, in the system's ticks, which tells it from a later one; ``0`` where unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        ticks = text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"
    return ticks if ticks.isdigit() else "0"
