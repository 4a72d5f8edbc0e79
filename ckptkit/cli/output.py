"""The one sink all commands write to: results to stdout, everything else to stderr, and the exit status.

A command hands over a result and how people see it; whether that or JSON is printed is decided here, and no
command asks. What is text becomes a line here, whatever it quotes; no command escapes by itself. On a
terminal tables have colour and lines and long work shows a progress bar; in a pipe there is plain, aligned
text and no bar. rich is imported only when something is really drawn with it.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import select
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from ckptkit.base import errors
from ckptkit.base.bars import new_bars
from ckptkit.base.progress import Advance
from ckptkit.base.text import escaped, json_text, printed

Results = Callable[..., None]
"""Takes a result and how people see it, as `Output.result` does."""

_COLUMN_GAP = 3
"""Blanks between the columns of a drawn table."""
READER_GONE = 141
"""Exit status when the reader of our output went away: 128 + SIGPIPE, as of a program ended by the signal."""
_PLAIN_LETTERS = "ckptkit"
"""Name of `_in_plain_letters` as an error handler of codecs."""
_PLAIN = {"…": "...", "×": "x", "–": "-", "—": "-", "−": "-", "─": "-", "·": "-", "→": "->", "←": "<-"}
_PLAIN |= {"↔": "<->", "≤": "<=", "±": "+-"}


@dataclass(frozen=True)
class Column:
    """One column of a table: heading, and whether its cells are numbers (right-aligned)."""

    heading: str
    numeric: bool = False


class ExitCode(IntEnum):
    """What each exit status means (documented in the README)."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NETWORK = 4
    DAMAGED = 5
    MISSING_PACKAGE = 6
    INTERRUPTED = 130


_BY_ERROR: dict[type[errors.CkptkitError], ExitCode] = {
    errors.UsageError: ExitCode.USAGE,
    errors.NotFoundError: ExitCode.NOT_FOUND,
    errors.NetworkError: ExitCode.NETWORK,
    errors.MissingDependencyError: ExitCode.MISSING_PACKAGE,
}


def exit_code(error: errors.CkptkitError) -> ExitCode:
    """Exit status for an error.

    Examples
    --------
    >>> exit_code(errors.NotFoundError("no entry 'moat9'"))
    <ExitCode.NOT_FOUND: 3>
    """
    return next((code for kind, code in _BY_ERROR.items() if isinstance(error, kind)), ExitCode.DAMAGED)


@dataclass
class Output:
    """Where a command's words go: as text for people, or with ``--json`` as one JSON document."""

    quiet: bool = False  # no notes and no progress; results and errors stay
    verbose: bool = False  # tracebacks of errors, and whole lists
    as_json: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    _names: dict[str, str] = field(default_factory=dict, init=False)
    _bars: dict[str, tuple[Any, int]] = field(default_factory=dict, init=False)  # by unit, and how many run
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def result(self, value: Any, *people: str | Callable[[], None], json: bool = False) -> None:
        """Print a result: as JSON with ``--json`` (or ``json``), for people their lines, or by a function."""
        if json or self.as_json:
            self._print_json(_plain(value))
        else:
            self._show(people)

    @contextmanager
    def results(self) -> Iterator[Results]:
        """Collect several results: people see each as it comes, ``--json`` prints one list at the end."""
        values: list[Any] = []

        def add(value: Any, *people: str | Callable[[], None]) -> None:
            if self.as_json:
                values.append(_plain(value))
            else:
                self._show(people)

        yield add
        if self.as_json:
            self._print_json(values)

    def _show(self, people: Sequence[str | Callable[[], None]]) -> None:
        for one in people:
            if callable(one):
                one()
            else:
                self.text(one)

    def _print_json(self, value: Any) -> None:
        """Print JSON, with codes for what cannot be encoded or shown."""
        text = self.called(json_text(value, indent=2))
        if not _can_encode(self.stdout, text):
            text = self.called(json_text(value, indent=2, ascii_only=True))
        print(text, file=self.stdout)

    @property
    def is_seen(self) -> bool:
        """Whether people see the results come, on a terminal."""
        return self.stdout.isatty() and not self.as_json

    def call(self, path: Path, name: str) -> None:
        """Give a temporary file the name that messages use."""
        self._names[str(path)] = name

    def called(self, text: str) -> str:
        """A text with the names of `call`; a command that is to be typed has ``-`` for them."""
        for path, name in self._names.items():
            before, run, line = text.partition("Run: ")
            text = before.replace(path, name) + run + line.replace(path, "-")
        return text

    def line(self, text: str) -> str:
        """A text as it is printed: one line, in which nothing is hidden."""
        return _without_commands(escaped(self.called(text)))

    def text(self, *lines: str, marked: str = "", **style: Any) -> None:
        """Print lines for people; on a terminal the words ``marked`` in a style, as `typer.style` has it."""
        shown = marked
        if marked and self.stdout.isatty() and not os.environ.get("NO_COLOR"):
            import typer

            shown = typer.style(marked, **style)
        for text in map(self.line, () if self.as_json else lines):
            print(text.replace(marked, shown, 1) if marked else text, file=self.stdout)

    def document(self, text: str) -> None:
        """Print a page or a table of values as it is: escaped by whoever wrote it, for what it is."""
        if not self.as_json:
            print(text, file=self.stdout)

    def picture(self, codes: str) -> None:
        """Print what a terminal draws a picture from."""
        if not self.as_json:
            write = self.stdout.write_codes if isinstance(self.stdout, _Guarded) else self.stdout.write
            write(f"{codes}\n")

    def note(self, text: str) -> None:
        """Write a note to stderr unless quiet."""
        if not self.quiet:
            self._remark(self.line(text))

    def warn(self, text: str) -> None:
        """Write a warning to stderr, which even ``--quiet`` shows."""
        self._remark(f"warning: {self.line(text)}")

    def _remark(self, line: str) -> None:
        """Write to stderr, above the bars of what runs."""
        with self._lock:
            bars = next((shown for shown, _ in self._bars.values()), None)
        if bars is None:
            print(line, file=self.stderr)
        else:
            bars.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def table(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        styles: Sequence[str | None] | None = None,
    ) -> None:
        """Print a table for people: drawn on a terminal, plain aligned text in a pipe.

        A title and the rows' styles (``"red"``) are for the terminal only.
        """
        if self.as_json:
            return
        columns = [Column(self.line(column.heading), column.numeric) for column in columns]
        rows = [[self.line(cell) for cell in row] for row in rows]
        if self.stdout.isatty():
            widths = _widths(columns, rows, shutil.get_terminal_size().columns)
            if widths is None:
                self._stack(columns, rows, title)
            else:
                self._draw(columns, rows, widths, title, styles)
            return
        widths = [max(map(len, column)) for column in _cells(columns, rows)]
        for cells in [[c.heading for c in columns], *rows]:
            aligned = (
                cell.rjust(width) if column.numeric else cell.ljust(width)
                for cell, width, column in zip(cells, widths, columns, strict=True)
            )
            print("  ".join(aligned).rstrip(), file=self.stdout)

    def _stack(self, columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str | None) -> None:
        """Print the cells of a row below each other, so that no id, number, hash or URL is cut."""
        width = max(len(column.heading) for column in columns[1:])
        if title is not None:
            print(self.line(title), file=self.stdout)
        for first, *others in rows:
            print(first.rstrip(), file=self.stdout)
            for column, cell in zip(columns[1:], others, strict=True):
                print(f"  {column.heading:<{width}}  {cell}".rstrip(), file=self.stdout)

    def fits(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> bool:
        """Whether a drawn table would show every cell whole; plain text is as wide as it likes."""
        if not self.stdout.isatty():
            return True
        shown = _cells(columns, [[self.line(cell) for cell in row] for row in rows])
        return (
            sum(max(map(len, column)) + _COLUMN_GAP for column in shown) <= shutil.get_terminal_size().columns
        )

    def _draw(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        widths: Sequence[int],
        title: str | None,
        styles: Sequence[str | None] | None,
    ) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        shown = Text(self.line(title), "table.title") if title is not None else None
        table = Table(box=box.SIMPLE_HEAD, title=shown, title_justify="left", pad_edge=False)
        for column, width in zip(columns, widths, strict=True):
            side: Literal["right", "left"] = "right" if column.numeric else "left"
            table.add_column(Text(column.heading), justify=side, overflow="fold", width=width)
        for index, row in enumerate(rows):
            table.add_row(*map(Text, row), style=styles[index] if styles else None)
        plain = os.environ.get("NO_COLOR")  # rich would still print headings bold
        Console(file=drawn(self.stdout), color_system=None if plain else "auto").print(table)

    @contextmanager
    def progress(self, description: str, total: int | None, *, unit: str = "bytes") -> Iterator[Advance]:
        """Show how far a long work is, beside others: sizes and speed, or steps for any unit but bytes."""
        description = self.line(description)
        if self.quiet or not self.stderr.isatty():
            if not self.quiet:
                print(f"{description} …", file=self.stderr)
            yield lambda _steps: None
            return
        with self._lock:
            bars, running = self._bars.get(unit) or (new_bars(drawn(self.stderr), unit), 0)
            self._bars[unit] = bars, running + 1
            bars.start()
        task = bars.add_task(description, total=total)
        try:
            yield lambda steps: bars.advance(task, steps)
        finally:
            with self._lock:
                bars, running = self._bars.pop(unit)
                if running > 1:
                    self._bars[unit] = bars, running - 1
                    bars.remove_task(task)
                else:
                    bars.stop()


def _cells(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """The heading and the cells of each column."""
    return zip((column.heading for column in columns), *rows, strict=True)


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """How wide each column is drawn, with text broken at spaces only; None: no room for that."""
    cells = list(_cells(columns, rows))
    widths = [max(map(len, column)) for column in cells]
    least = [
        width if column.numeric else max(map(_longest_word, texts))
        for column, texts, width in zip(columns, cells, widths, strict=True)
    ]
    excess = sum(widths) + _COLUMN_GAP * len(columns) - room
    for index in sorted(range(len(widths)), key=lambda index: least[index] - widths[index]):
        cut = min(max(excess, 0), widths[index] - least[index])
        widths[index] -= cut
        excess -= cut
    return None if excess > 0 else widths


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _plain(value: Any) -> Any:
    """A result as `json.dumps` takes it: what has no form of its own is written field by field."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


_CI = ("GITHUB_ACTIONS", "TF_BUILD")


def _without_commands(line: str) -> str:
    """A line that a CI service, which obeys what a job prints, takes for no command."""
    if not any(map(os.environ.get, _CI)):
        return line
    return re.sub(r"##(?=(?:vso)?\[)", r"#\\x23", re.sub(r"^(\s*):(?=:)", r"\1\\x3a", line))


def prepare_streams() -> None:
    """Make standard output and error take any text, and fail in one way only; `main` begins with it.

    One that is closed becomes the null device, or a file of ours would get its number. What an encoding lacks
    is written in plain letters, or escaped.
    """
    codecs.register_error(_PLAIN_LETTERS, _in_plain_letters)
    for fd in range(3):
        with contextlib.suppress(OSError):
            _fill(fd)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 (for the whole process)
    sys.stdout = _prepared(sys.stdout, 1, "standard output")
    sys.stderr = _prepared(sys.stderr, 2, "standard error")


def _fill(fd: int) -> None:
    """Open the null device under a number that is closed."""
    try:
        os.fstat(fd)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: those below are filled
        if null == fd:
            os.set_inheritable(fd, True)
        else:
            os.close(null)


def _prepared(stream: TextIO | None, fd: int, name: str) -> TextIO:
    if stream is None:
        return _Guarded(io.BufferedWriter(_Standard(fd, name)), "utf-8", _PLAIN_LETTERS)
    if not isinstance(stream, io.TextIOWrapper):  # a test's, a notebook's
        return stream
    buffer: Any = stream.buffer
    raw = getattr(buffer, "raw", buffer)
    if type(raw) is not io.FileIO or raw.fileno() != fd:  # Windows' console, or ours already
        stream.reconfigure(errors=_PLAIN_LETTERS)
        return stream
    stream.flush()
    return _Guarded(
        _Standard(fd, name) if buffer is raw else io.BufferedWriter(_Standard(fd, name)),
        stream.encoding,
        _PLAIN_LETTERS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Guarded(io.TextIOWrapper):
    """A stream that shows what is hidden, whoever writes: a library's logger, a traceback, a plug-in."""

    def write(self, text: str, /) -> int:
        super().write(printed(text, "terminal" if self.isatty() else "file"))
        return len(text)

    def write_drawn(self, text: str) -> int:
        """Write what rich draws."""
        super().write(printed(text, "drawing"))
        return len(text)

    def write_codes(self, text: str) -> int:
        """Write codes of ours, whatever they do."""
        return super().write(text)


class _Drawn:
    def __init__(self, stream: _Guarded) -> None:
        self._stream = stream
        self.write = stream.write_drawn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def drawn(stream: TextIO) -> TextIO:
    """The same stream for rich."""
    return cast(TextIO, _Drawn(stream)) if isinstance(stream, _Guarded) else stream


class _Standard(io.FileIO):
    """Standard output or error: each write is whole, a fault names the stream, and is raised once.

    A reader that went away ends the process, as SIGPIPE ends other programs (which Python ignores, for the
    sake of sockets). What standard error cannot take is lost: no work should fail for a remark on it.
    """

    def __init__(self, fd: int, title: str) -> None:
        super().__init__(fd, "w", closefd=False)
        self.name = f"<{title}>"
        self._title = title
        self._lost = False

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and not self._lost:
                written = super().write(view[done:])
                if written is None:  # somebody made it non-blocking for all who share it
                    select.select([], [self], [])
                done += written or 0
        except OSError as error:
            self._lost = True
            if isinstance(error, BrokenPipeError):
                raise SystemExit(READER_GONE) from None
            if self.fileno() != 2:
                error.filename = self._title
                raise
        return len(view)


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    """Stand in for what cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    return _PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode(), error.start + 1


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
