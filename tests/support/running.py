"""Running ckptkit in a process of its own, to kill it, interrupt it, or starve it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support import preloaded

REPOSITORY = Path(__file__).resolve().parents[2]


def registry_file(folder: Path, *entries: dict[str, object]) -> Path:
    """Write a registry overlay with these entries (an id and sources each; the rest is filled in)."""
    filled = [
        {
            "family": "moat",
            "variant": "tiny-moat0",
            "display_name": "a test",
            "layout": "deeplab2",
            "format": "tf",
            **entry,
        }
        for entry in entries
    ]
    path = folder / "registry.yaml"
    path.write_text(yaml.safe_dump({"entries": filled}), encoding="utf-8")
    return path


def start(
    arguments: Sequence[str | Path], home: Path, prelude: str = "", *, fork: bool | None = None
) -> subprocess.Popen[str]:
    """Start ``ckptkit``; ``prelude`` is Python to run in the process before it.

    Without one, or if it may run after imports, too, the process is a fork of one that has them.
    """
    code = f"{prelude}\nfrom ckptkit.cli.app import main\nmain()"
    environment = {**os.environ, "CKPTKIT_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    popen = forked if hasattr(os, "fork") and (not prelude if fork is None else fork) else subprocess.Popen
    return popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def forked(command: Sequence[str], **more: Any) -> subprocess.Popen[str]:
    """Start Python as a fork of a process that has imported what commands need."""
    return preloaded.Program(preloaded.of(*preloaded.COMMANDS).address, command, **more)


def finish(process: subprocess.Popen[str], timeout: float = 60) -> tuple[int, str, str]:
    """Wait for a process; returns exit code, stdout, stderr."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_until(holds: Callable[[], bool], timeout: float = 20) -> None:
    """Wait until something holds, which it must in the end."""
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def children_of(pid: int) -> list[int] | None:
    """Processes that one has started; None where the system does not say it."""
    tasks = [*Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for task in tasks for child in task.read_text().split()] if tasks else None


def is_running(pid: int) -> bool:
    """Whether a process is there, and is not waiting to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
