"""Several processes at the same files: a lock file excludes them.

On Windows the lock is the `filelock` package's. On POSIX it is ``flock`` itself: the package waits for ever
where NFS has no lock service, and cannot lock a file that another user made and this one may only read.

A network file system may refuse ``flock`` (Lustre without ``-o flock``, NFS without its lock service). A file
that merely exists in its stead would have to be broken when its maker was killed, and that cannot be told
from a slow download on another machine. So there the work goes on without a lock, and the worst that happens
is that two processes download the same file: each temporary name carries its writer's token
(`ckptkit.base.writers`), no two writers share a file, and one takes over or sweeps away another's
only when that writer is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
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
