"""The lines of a text file that somebody else wrote, within bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError, NotFoundError, storage_error
from ckptkit.base.files import open_named

MAX_BYTES = 64 << 20
"""The published logs have some 300 epochs and less than a few megabytes."""
MAX_LINE = 1 << 20
"""Bytes; the longest is the first one of mmcv, which may hold a whole configuration."""
MAX_EPOCH = 100_000
MAX_RESUMED = 100
"""How often a run may be resumed before its log is taken for damaged."""


_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Line:
    """One line that is not blank."""

    number: int  # from 1
    text: str  # without its end
    ended: bool  # whether it has an end: a file that was cut off stops in the middle of a line


class LogFile:
    """A log on this disk, read whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.is_dir():
                raise NotFoundError(f"{path}: a folder, not a log", hint="name the .log.json or summary.csv")
            with open_named(path) as stream:
                self._bytes = stream.read(MAX_BYTES + 1)
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: no such file", hint="check the path") from error
        except OSError as error:
            raise storage_error(error, path) from error
        if len(self._bytes) > MAX_BYTES:
            raise FormatError(path, f"larger than {MAX_BYTES:,} bytes, which no training log is")
        self.budget = Budget(len(self._bytes), partial(FormatError, path))
        self._bytes = self._bytes.removeprefix(b"\xef\xbb\xbf")
        if not self._bytes.strip():
            raise FormatError(path, "empty file", hint="fetch it again")

    @property
    def start(self) -> bytes:
        """The first bytes that are not blank, in lower case: they tell what kind of file it is."""
        return self._bytes[:4096].lstrip()[:256].lower()

    def lines(self) -> Iterator[Line]:
        """Yield the lines that are not blank."""
        for number, found in enumerate(_LINE.finditer(self._bytes), 1):
            raw = found[0]
            self.budget.spend(steps=8)
            if len(raw) > MAX_LINE:
                raise self.fault(number, f"longer than {MAX_LINE:,} bytes")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise self.fault(number, "no UTF-8 text") from error
            if text.strip():
                yield Line(number, text.rstrip("\r\n"), raw.endswith((b"\n", b"\r")))

    def fault(self, number: int, reason: str) -> FormatError:
        """Return the error for a damaged line."""
        return FormatError(self.path, f"line {number}: {reason}", hint="fetch it again, or check the file")

    def number(self, value: object, line: int, name: str) -> float:
        """Return a figure as a float."""
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
        raise self.fault(line, f"{name} is {short(value)}, not a number")

    def whole(self, value: object, line: int, name: str, most: int) -> int:
        """Return a count."""
        number = self.number(value, line, name)
        if not 0 <= number <= most or number != int(number):
            raise self.fault(line, f"{name} is {short(value)}, not a whole number from 0 to {most:,}")
        return int(number)

    def resumed(self, epoch: int, line: int, times: int) -> str:
        """Return the remark on a run that goes back to an epoch, for the ``times``-th time."""
        if times > MAX_RESUMED:
            raise self.fault(line, f"the epochs go back more than {MAX_RESUMED} times")
        return f"resumed at epoch {epoch} (line {line}): what was logged from there on before is left out"


def short(value: object) -> str:
    """A value as a fault quotes it."""
    if isinstance(value, int) and abs(value) > 1 << 64:  # Python refuses to print very long numbers
        return "a very long number"
    try:
        text = repr(value[:60] if isinstance(value, str) else value)
    except (RecursionError, ValueError):  # Python refuses deep nesting, and long numbers inside
        return "something nested"
    return text if len(text) <= 60 else text[:59] + "…"
