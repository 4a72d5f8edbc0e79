"""Running ckptkit in a process of its own, to kill it, interrupt it, or starve it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

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


def start(arguments: Sequence[str | Path], home: Path, prelude: str = "") -> subprocess.Popen[str]:
    """Start ``ckptkit``; ``prelude`` is Python to run in the process before it."""
    code = f"{prelude}\nfrom ckptkit.cli.app import main\nmain()"
    environment = {**os.environ, "CKPTKIT_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
