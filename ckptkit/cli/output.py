"""The one sink all commands write to: results to stdout, everything else to stderr, and the exit status.

A command hands over a result and how people see it; whether that or JSON is printed is decided here, and no
command asks. What is text becomes a line here, whatever it quotes; no command escapes by itself. On a
terminal words wrap at spaces, tables have colour and lines, long work shows a progress bar and any other
silence what is going on; in a pipe there is plain, aligned text and no bar. rich is imported only when
something is really drawn with it.
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
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from ckptkit.base import errors
from ckptkit.base.bars import new_bars
from ckptkit.base.progress import Advance
from ckptkit.base.shown import Column, Gap, Marked, Note, Piece, Table, aligned
from ckptkit.base.text import escaped, json_text, printed

Results = Callable[..., None]
"""Takes a result and how people see it, as `Output.result` does."""

_COLUMN_GAP = 3
"""Blanks between the columns of a drawn table."""
_NARROWEST = 24
"""Columns of a terminal that text gets in a table before another form is taken."""
_FEW = 3
"""Rows of a table too wide for a terminal that are printed with a heading before each cell."""
_SILENCE = 1.0
"""Seconds without a word after which a terminal shows what is going on."""
READER_GONE = 141
"""Exit status when the reader of our output went away: 128 + SIGPIPE, as of a program ended by the signal."""
_PLAIN_LETTERS = "ckptkit"
"""Name of `_in_plain_letters` as an error handler of codecs."""
_PLAIN = {"…": "...", "×": "x", "–": "-", "—": "-", "−": "-", "─": "-", "·": "-", "→": "->", "←": "<-"}
_PLAIN |= {"↔": "<->", "≤": "<=", "±": "+-"}


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
    _status: _Status | None = field(default=None, init=False)
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
        self._print(text)

    def _print(self, text: str) -> None:
        """Print to standard output, where no status line is."""
        if self._status is not None:
            self._status.clear()
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
        if marked and _is_coloured(self.stdout):
            import typer

            shown = typer.style(marked, **style)
        for text in () if self.as_json else lines:
            whole = self._wrapped(text, self.stdout)
            self._print(whole.replace(marked, shown, 1) if marked else whole)

    def _wrapped(self, text: str, stream: TextIO, before: str = "") -> str:
        """A text as it is printed, with lines as long as the terminal is wide."""
        line = before + self.line(text)
        return "\n".join(wrapped(line, width_of(stream))) if stream.isatty() else line

    def show(self, pieces: Iterable[Piece]) -> None:
        """Print a result's lines and tables for people; its notes go to stderr."""
        for piece in pieces:
            if isinstance(piece, Table):
                self.table(piece.columns, piece.rows, styles=piece.styles)
            elif isinstance(piece, Marked):
                self.text(piece, marked=piece.word, fg=piece.colour)
            elif isinstance(piece, Note):
                self.note(piece)
            elif not (isinstance(piece, Gap) and self.stdout.isatty()):
                self.text(piece)

    def document(self, text: str) -> None:
        """Print a page or a table of values as it is: escaped by whoever wrote it, for what it is."""
        if not self.as_json:
            self._print(text)

    def picture(self, codes: str) -> None:
        """Print what a terminal draws a picture from."""
        if not self.as_json:
            if self._status is not None:
                self._status.clear()
            write = self.stdout.write_codes if isinstance(self.stdout, _Guarded) else self.stdout.write
            write(f"{codes}\n")

    def note(self, text: str) -> None:
        """Write a note to stderr unless quiet; what is just being done, a terminal shows until it is done."""
        if self._status is not None and text.endswith(" …"):
            self._status.show(self.line(text).removesuffix(" …"))
        elif not self.quiet:
            self._remark(self._wrapped(text, self.stderr))

    def warn(self, text: str, *details: str) -> None:
        """Write a warning to stderr, which even ``--quiet`` shows, with what is below it."""
        self._remark(self._with_details("warning: ", text, details))

    def error(self, text: str, *details: str) -> None:
        """Write to stderr why the command ends, with what is below it."""
        self._remark(self._with_details("error: ", text, details))

    def _with_details(self, before: str, text: str, details: Sequence[str]) -> str:
        below = (self._wrapped(one, self.stderr, "  ") for one in details)
        return "\n".join([self._wrapped(text, self.stderr, before), *below])

    def _remark(self, text: str) -> None:
        """Write to stderr, above the bars of what runs."""
        with self._lock:
            bars = next((shown for shown, _ in self._bars.values()), None)
        if self._status is not None:
            self._status.clear()
        if bars is None:
            print(text, file=self.stderr)
        else:
            bars.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Show on a terminal, while the block lasts, what is going on when nothing was written for long."""
        if self.quiet or not self.stderr.isatty():
            yield
            return
        self._status = _Status(self.stderr, lambda: bool(self._bars))
        try:
            yield
        finally:
            self._status.stop()
            self._status = None

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
        columns = [replace(column, heading=self.line(column.heading)) for column in columns]
        rows = [[self.line(cell) for cell in row] for row in rows]
        if not self.stdout.isatty():
            colours = [None, *styles] if styles and _is_coloured(self.stdout) else [None] * (len(rows) + 1)
            for line, colour in zip(aligned(columns, rows, 2), colours, strict=True):
                self._print(_styled(line, fg=colour))
            return
        room = width_of(self.stdout)
        kept, left_out = list(range(len(columns))), list[str]()
        for index, column in reversed(list(enumerate(columns))):
            if column.spare and _widths([columns[i] for i in kept], _chosen(rows, kept), room) is None:
                kept.remove(index)
                left_out.insert(0, column.heading)
        shown, cells = [columns[i] for i in kept], _chosen(rows, kept)
        widths = _widths(shown, cells, room)
        if widths is None:
            self._stack(columns, rows, title, room, styles)
            return
        self._draw(shown, cells, widths, title, styles)
        if left_out:
            self.note(f"too wide for this terminal: {', '.join(left_out)}; --json has all columns")

    def _stack(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        title: str | None,
        room: int,
        styles: Sequence[str | None] | None,
    ) -> None:
        """Print each row's first cell and the others below it, so that no id, number, hash or URL is cut."""
        if title is not None:
            self._print(self.line(title))
        head, *below = (f"  {line}" for line in aligned(columns[1:], [row[1:] for row in rows], _COLUMN_GAP))
        widest = max(len(column.heading) for column in columns[1:])
        fits = max(map(len, (head, *below))) <= room
        if len(rows) <= _FEW and not fits:
            blocks = [
                [
                    line.rstrip()
                    for column, cell in zip(columns[1:], row[1:], strict=True)
                    for line in wrapped(f"  {column.heading:<{widest}}  {cell}", room)
                    if cell
                ]
                for row in rows
            ]
        else:
            if not fits:
                head, *below = (
                    "  " + "  ".join(filter(None, cells))
                    for cells in ([c.heading for c in columns[1:]], *(row[1:] for row in rows))
                )
            self._print(columns[0].heading)
            self._print(head)
            self._print("─" * min(room, max(map(len, (head, *below)))))
            blocks = [[line] if len(line) <= room else _filled(line, room, 4) for line in below]
        for index, (row, block) in enumerate(zip(rows, blocks, strict=True)):
            for line in [*wrapped(row[0].rstrip(), room), *block]:
                self._print(_styled(line, fg=styles[index] if styles else None))

    def fits(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> bool:
        """Whether a drawn table would show every cell whole; plain text is as wide as it likes."""
        if not self.stdout.isatty():
            return True
        shown = _cells(columns, [[self.line(cell) for cell in row] for row in rows])
        return sum(max(map(len, column)) + _COLUMN_GAP for column in shown) <= width_of(self.stdout)

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
        if self._status is not None:
            self._status.clear()
        width = width_of(self.stdout)
        Console(file=drawn(self.stdout), color_system=None if plain else "auto", width=width).print(table)

    @contextmanager
    def progress(self, description: str, total: int | None, *, unit: str = "bytes") -> Iterator[Advance]:
        """Show how far a long work is, beside others: sizes and speed, or steps for any unit but bytes."""
        description = self.line(description)
        if self.quiet or not self.stderr.isatty():
            if not self.quiet:
                print(f"{description} …", file=self.stderr)
            yield lambda _steps: None
            return
        if self._status is not None:
            self._status.clear()
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


class _Status:
    """What is going on, on a line of a terminal that goes when anything is written."""

    def __init__(self, stream: TextIO, is_shown_otherwise: Callable[[], bool]) -> None:
        self._stream = stream
        self._is_shown_otherwise = is_shown_otherwise
        self._terminal: int | None = None  # its own: stderr is put aside now and then
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._terminal = os.dup(stream.fileno())
        self._text, self._drawn = "working", False
        self._since = time.monotonic()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="ckptkit-status", daemon=True)
        self._thread.start()

    def show(self, text: str) -> None:
        """Show this at once."""
        self.clear()
        self._text = text
        self._draw(time.monotonic())

    def clear(self) -> None:
        """Take the line away, for something is written."""
        with self._lock:
            self._text, self._since = "working", time.monotonic()
            if self._drawn:
                self._put("\r\x1b[2K")
                self._drawn = False

    def stop(self) -> None:
        """Take the line away for good."""
        self._end.set()
        self._thread.join(1)
        self.clear()
        if self._terminal is not None and not self._thread.is_alive():
            os.close(self._terminal)

    def _run(self) -> None:
        while not self._end.wait(0.1):
            now = time.monotonic()
            if self._is_shown_otherwise():
                self._since = now
            elif self._drawn or now - self._since > _SILENCE:
                self._draw(now)

    def _draw(self, now: float) -> None:
        with self._lock:
            wheel = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if _can_encode(self._stream, "⠋") else "|/-\\"
            seconds = int(now - self._since)
            text = f"{wheel[int(now * 10) % len(wheel)]} {self._text}" + f", {seconds} s" * (seconds > 0)
            self._put(f"\r\x1b[2K{text[: width_of(self._stream) - 1]}\r")
            self._drawn = True

    def _put(self, codes: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # no work fails for it
            if self._terminal is None:
                self._stream.write(codes)
                self._stream.flush()
            else:
                os.write(self._terminal, codes.encode(self._stream.encoding or "utf-8", "replace"))


def width_of(stream: TextIO) -> int:
    """How many columns a terminal has."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        if not os.environ.get("COLUMNS"):
            return os.get_terminal_size(stream.fileno()).columns or 80
    return shutil.get_terminal_size().columns


_LABELS = re.compile(r"\s*(?:\S+(?: \S+)*?\s{2,}(?=\S))*(?:(?<!\S)\d+\. )?")


_TYPED = re.compile("Run: |(?<=; )pip install ")
"""Where in a message the command begins that is to be typed; it ends the message."""


def wrapped(line: str, room: int) -> list[str]:
    r"""Break a line at its spaces; what follows labels and a wide gap begins below its beginning.

    A command that is to be typed can still be pasted.

    >>> wrapped("  status  not known: never fetched", 24)
    ['  status  not known:', '          never fetched']
    >>> wrapped("no file. Run: ckptkit fetch tiny-moat0-256", 32)
    ['no file.', '  Run: ckptkit fetch \\', '    tiny-moat0-256']
    >>> wrapped("cam needs captum and pillow; pip install captum pillow", 28)
    ['cam needs captum and pillow;', '  pip install captum \\', '    pillow']
    """
    if len(line) <= room:
        return [line]
    typed = _TYPED.search(line)
    text, command = (line[: typed.start()], line[typed.start() :]) if typed else (line, "")
    margin = len(line) - len(line.lstrip())
    longest = _longest_word(text)
    hang = len(_LABELS.match(text)[0]) if not typed else 0  # type: ignore[index]
    if hang and longest > room - margin - 2 and " " not in line[hang:]:
        return [line]  # no room for it on a line of its own either
    hang = max(min(hang, room - longest, room // 2), margin or 2)
    lines = _filled(text, room, hang)
    return lines + (pasteable(command, room, " " * hang) if typed else [])


def _filled(text: str, room: int, hang: int) -> list[str]:
    return textwrap.wrap(
        text, room, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False
    )


def pasteable(command: str, room: int, indent: str = "") -> list[str]:
    """Break a command between its words as a shell reads on."""
    lines = [indent]
    for word in re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", command):
        if lines[-1].strip() and len(lines[-1]) + len(word) > room - 2:
            lines[-1] += "\\"
            lines.append(f"{indent}  ")
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]


def _is_coloured(stream: TextIO) -> bool:
    """Whether a stream gets colours: as NO_COLOR and FORCE_COLOR say, else where it is a terminal."""
    return not os.environ.get("NO_COLOR") and (bool(os.environ.get("FORCE_COLOR")) or stream.isatty())


def _styled(line: str, **style: Any) -> str:
    if not any(style.values()) or os.environ.get("NO_COLOR"):
        return line
    import typer

    return typer.style(line, **style)


def _cells(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """The heading and the cells of each column."""
    return zip((column.heading for column in columns), *rows, strict=True)


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """How wide each column is drawn, with text broken at spaces only; None: no room for that."""
    cells = list(_cells(columns, rows))
    widths = [max(map(len, column)) for column in cells]
    least = [
        width if column.numeric else min(width, max(_NARROWEST, *map(_longest_word, texts)))
        for column, texts, width in zip(columns, cells, widths, strict=True)
    ]
    excess = sum(widths) + _COLUMN_GAP * len(columns) - room
    for index in sorted(range(len(widths)), key=lambda index: least[index] - widths[index]):
        cut = min(max(excess, 0), widths[index] - least[index])
        widths[index] -= cut
        excess -= cut
    return None if excess > 0 else widths


def _chosen(rows: Sequence[Sequence[str]], kept: Sequence[int]) -> list[list[str]]:
    return [[row[index] for index in kept] for row in rows]


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
        super().write(printed(text, "terminal" if self.isatty() or _is_coloured(self) else "file"))
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
