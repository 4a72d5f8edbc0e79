"""The one sink all commands write to: results to stdout, everything else to stderr.

On a terminal tables have colour and lines and long work shows a progress bar; in a pipe there is plain,
aligned text and no bar. rich is imported only when something is really drawn with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Column:
    """One column of a table: heading, and whether its cells are numbers (right-aligned)."""

    heading: str
    numeric: bool = False


@dataclass
class Output:
    """Where a command's words go.

    Parameters
    ----------
    quiet : bool
        Suppress notes and progress; results and errors stay.
    verbose : bool
        Show tracebacks of errors.
    stdout, stderr : TextIO
        Injected by tests.
    """

    quiet: bool = False
    verbose: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)

    def result(self, text: str) -> None:
        """Print one line of result on stdout."""
        print(text, file=self.stdout)

    def json(self, value: Any) -> None:
        """Print a result as JSON on stdout."""
        print(json.dumps(value, indent=2, ensure_ascii=False), file=self.stdout)

    def note(self, text: str) -> None:
        """Say something on stderr, unless quiet."""
        if not self.quiet:
            print(text, file=self.stderr)

    def warn(self, text: str) -> None:
        """Say something on stderr that even ``--quiet`` shows."""
        print(f"warning: {text}", file=self.stderr)

    def table(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        styles: Sequence[str | None] | None = None,
    ) -> None:
        """Print a table: drawn on a terminal, plain aligned text in a pipe.

        Parameters
        ----------
        columns : sequence of Column
        rows : sequence of sequence of str
            One cell per column.
        title : str, optional
            Shown on a terminal only.
        styles : sequence of str or None, optional
            A rich style per row (``"red"``), for the terminal only.
        """
        if self.stdout.isatty():
            self._draw(columns, rows, title, styles)
            return
        widths = [max(len(c.heading), *(len(r[i]) for r in rows), 0) for i, c in enumerate(columns)]
        for cells in [[c.heading for c in columns], *rows]:
            aligned = (
                cell.rjust(width) if column.numeric else cell.ljust(width)
                for cell, width, column in zip(cells, widths, columns, strict=True)
            )
            print("  ".join(aligned).rstrip(), file=self.stdout)

    def _draw(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        title: str | None,
        styles: Sequence[str | None] | None,
    ) -> None:
        if title is None and styles is None and (self.stdout.encoding or "").lower().startswith("utf"):
            from ckptkit.cli.ruled import ruled_table

            lines = ruled_table([c.heading for c in columns], [c.numeric for c in columns], rows)
            if lines is not None:
                print("\n".join(["", *lines, ""]), file=self.stdout)
                return
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        for column in columns:
            table.add_column(column.heading, justify="right" if column.numeric else "left")
        for index, row in enumerate(rows):
            table.add_row(*(escape(cell) for cell in row), style=styles[index] if styles else None)
        Console(file=self.stdout).print(table)

    @contextmanager
    def progress(self, description: str, total: int | None, *, unit: str = "bytes") -> Iterator[Advance]:
        """Show how far a long work is; yields a function to call with each step.

        Parameters
        ----------
        description : str
            What is being done.
        total : int or None
            Bytes (or steps) in all; None when unknown.
        unit : str
            ``bytes`` shows sizes, speed and time left; anything else counts steps.
        """
        if self.quiet or not self.stderr.isatty():
            if not self.quiet:
                print(f"{description} …", file=self.stderr)
            yield lambda _steps: None
            return
        from rich import progress as bars
        from rich.console import Console

        middle: list[bars.ProgressColumn] = (
            [bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn()]
            if unit == "bytes"
            else [bars.MofNCompleteColumn(), bars.TimeRemainingColumn()]
        )
        shown = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            *middle,
            console=Console(file=self.stderr),
        )
        with shown:
            task = shown.add_task(description, total=total)
            yield lambda steps: shown.advance(task, steps)


def human_bytes(count: int | float) -> str:
    """Size for people, in powers of 1000.

    Examples
    --------
    >>> human_bytes(13_539_672)
    '13.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
