"""Writers of temporary files: a token in a name tells who writes it, and whether that process lives."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

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
