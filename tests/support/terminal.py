"""Command lines on a real pseudo-terminal, and what is left on its screen."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptkit import doctor
from tests.support.preloaded import run

_PROGRAM = """
import json, pathlib, subprocess, sys, zlib
from ckptkit import doctor
from ckptkit.cli.app import main

def probe(arguments, seconds, really=doctor.probe):
    kept = pathlib.Path(f"probed{zlib.crc32(repr(arguments).encode())}.json")
    if not kept.exists():
        done = really(arguments, seconds)
        kept.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return subprocess.CompletedProcess(arguments, *json.loads(kept.read_text()))

doctor.probe = probe
for line in sys.argv[2:]:
    try:
        main(line.split("\\x1f"))
    except SystemExit as left:
        sys.stderr.flush()
        print(f"{sys.argv[1]}{left.code or 0}", flush=True)
"""
"""Runs the lines; what `doctor` asks the frameworks it asks once in a folder, see `ask_frameworks`."""
_MARK = "<exit>"
_CODES = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n\t])|([^\x1b\r\n\t]+)")


def screen(written: str) -> list[str]:
    """The lines that a terminal of endless width shows in the end."""
    lines, row, column = [""], 0, 0
    for number, code, control, text in _CODES.findall(written):
        if code == "A":
            row = max(0, row - int(number or 1))
        elif code == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
        elif control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif control or text:
            piece = text or " " * (8 - column % 8)
            before = lines[row].ljust(column)
            lines[row] = before[:column] + piece + before[column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in lines]


def raw_on_terminal(
    command: Sequence[str], columns: int, folder: Path, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program; everything that it writes to its terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    written: list[bytes] = []

    def read() -> None:
        while True:
            try:
                written.append(os.read(ours, 1 << 16))
            except OSError:  # nobody has the other end open
                return

    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**_environment(), **(environment or {})},
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    process.wait(300)
    reader.join(10)
    os.close(ours)
    return b"".join(written).decode()


def on_terminal(
    lines: Sequence[Sequence[str]], columns: int, folder: Path, environment: Mapping[str, str] | None = None
) -> list[tuple[int, list[str]]]:
    """Run command lines one after the other in one process; each one's exit status and screen."""
    command = [sys.executable, "-c", _PROGRAM, _MARK, *("\x1f".join(line) for line in lines)]
    text = raw_on_terminal(command, columns, folder, environment)
    *runs, rest = re.split(rf"{_MARK}(\d+)\r\n", text)
    assert len(runs) == 2 * len(lines), rest
    return [(int(code), screen(shown)) for shown, code in zip(runs[::2], runs[1::2], strict=True)]


def in_pipe(
    lines: Sequence[Sequence[str]], folder: Path, environment: Mapping[str, str], *, errors: bool = True
) -> list[str]:
    """What the same command lines print where no terminal is."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, _MARK, *("\x1f".join(line) for line in lines)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
        cwd=folder,
        env={**_environment(), **environment},
        timeout=300,
        text=True,
        check=True,
    )
    return re.split(rf"{_MARK}\d+\n", done.stdout)[:-1]


def ask_frameworks(folder: Path) -> None:
    """Keep what `doctor` hears of the frameworks, from processes in which they are imported already."""
    for program in (doctor._TORCH, doctor._TENSORFLOW):
        arguments = [sys.executable, "-c", program]
        heard = run(arguments, folder)
        kept = folder / f"probed{zlib.crc32(repr(arguments).encode())}.json"
        kept.write_text(json.dumps([heard.returncode, heard.stdout, heard.stderr]))


def _environment() -> dict[str, str]:
    left_out = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERMINAL_WIDTH", "PYTHONIOENCODING"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
