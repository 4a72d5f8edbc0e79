"""The machine and the terminal: processors, memory, colours, letters."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from ckptkit.base.text import human_bytes
from ckptkit.doctor.findings import Finding

_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")
_LEAST_COLUMNS = 80


def examine_machine() -> list[Finding]:
    """Processors this process may use, and memory."""
    return [
        Finding("machine", "processors", "ok", _processors()),
        Finding("machine", "memory", "ok", _memory()),
    ]


def _processors() -> str:
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return f"{usable}" if usable == count else f"{usable} of {count}"


def _memory() -> str:
    """Memory in all and what is free, as far as the system tells."""
    told: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            told[name] = int(value.split()[0]) * 1024
    if "MemTotal" in told:
        parts = [human_bytes(told["MemTotal"]), f"{human_bytes(told.get('MemAvailable', 0))} of it free"]
        return ", ".join([*parts, *_limit(told["MemTotal"])])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return human_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return "not known"


def _limit(total: int) -> list[str]:
    """What a container grants, where that is less than the machine has."""
    with contextlib.suppress(OSError, ValueError):
        granted = int(_CONTROL_GROUP.read_text(encoding="ascii"))
        return [f"{human_bytes(granted)} granted to this container"] if granted < total else []
    return []


def examine_terminal(
    stdout: TextIO | None = None, environment: Mapping[str, str] | None = None
) -> list[Finding]:
    """What the terminal can show.

    Parameters
    ----------
    stdout : TextIO, optional
        The process's own where not given.
    environment : Mapping of str to str, optional
        ``os.environ`` where not given.
    """
    stdout = sys.stdout if stdout is None else stdout
    given = os.environ if environment is None else environment
    encoding = (getattr(stdout, "encoding", None) or "").lower().replace("-", "")
    letters = Finding("terminal", "letters", "ok", "UTF-8")
    if encoding != "utf8":
        name = getattr(stdout, "encoding", None) or "an unknown encoding"
        said = f"{name}: signs such as × and – are written in plain letters or escaped"
        letters = Finding("terminal", "letters", "note", said, "set PYTHONUTF8=1, or a UTF-8 locale")
    if not stdout.isatty():
        return [Finding("terminal", "output", "ok", "no terminal: plain text, no colour"), letters]
    width = shutil.get_terminal_size().columns
    wide = Finding("terminal", "width", "ok", f"{width} columns")
    if width < _LEAST_COLUMNS:
        wide = Finding("terminal", "width", "note", f"{width} columns: tables are cut", "make it wider")
    return [_colour(given), wide, letters]


def _colour(given: Mapping[str, str]) -> Finding:
    if given.get("NO_COLOR"):
        return Finding("terminal", "colour", "ok", "none, for NO_COLOR is set")
    if given.get("TERM", "") in ("", "dumb"):
        return Finding("terminal", "colour", "ok", f"none, for TERM is {given.get('TERM') or 'not set'}")
    many = given.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    return Finding(
        "terminal", "colour", "ok", f"{'all colours' if many else 'colours'}, TERM={given['TERM']}"
    )
