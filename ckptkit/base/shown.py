"""Results as people see them: lines and tables, for a terminal, as text, and for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ckptkit.base.text import escaped


@dataclass(frozen=True)
class Column:
    """One column of a table: heading, whether its cells are numbers, whether it can be left out."""

    heading: str
    numeric: bool = False  # right-aligned
    spare: bool = False  # left out where there is no room


@dataclass(frozen=True)
class Table:
    """Rows under headings; a row's style (``"red"``) is for terminals."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    styles: Sequence[str | None] | None = None


class Marked(str):
    """A line of which a terminal colours a word."""

    word: str
    colour: str

    @classmethod
    def of(cls, text: str, word: str, colour: str) -> Marked:
        """The line, the word in it, and its colour."""
        line = cls(text)
        line.word, line.colour = word, colour
        return line


class Note(str):
    """A line beside the result."""


class Gap(str):
    """An empty line after a table, which terminals draw with one."""


Piece = str | Table

_MORE = "; --verbose shows all"


def aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]], gap: int = 2) -> Iterator[str]:
    """The headings and the rows as plain text."""
    lines = [[column.heading for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for cells in lines:
        sides = (
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        )
        yield (" " * gap).join(sides).rstrip()


_FIRST_ROWS = 20


def sections(tables: Iterable[tuple[str, Table]], *, everything: bool) -> Iterator[Piece]:
    """Tables under their headings, without empty tables and columns; of long ones the first rows."""
    for heading, table in tables:
        if table.rows:
            shown = table.rows if everything else table.rows[:_FIRST_ROWS]
            filled = [i for i, _ in enumerate(table.columns) if any(row[i] for row in shown)]
            yield ""
            yield f"{heading} ({len(table.rows):,})"
            yield Table([table.columns[i] for i in filled], [[row[i] for i in filled] for row in shown])
            if len(shown) < len(table.rows):
                yield f"… and {len(table.rows) - len(shown):,} more{_MORE}"
            yield Gap()


class Shown:
    """What has `pieces` is shown by them: printed, by ``str``, and in a notebook."""

    def pieces(self) -> Iterator[Piece]:
        """Lines and tables in their order."""
        raise NotImplementedError

    @property
    def headline(self) -> str:
        """The result in one line."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {escaped(self.headline)}>"

    def __str__(self) -> str:
        lines: list[str] = []
        for piece in self.pieces():
            if isinstance(piece, Table):
                lines += aligned(piece.columns, [[escaped(cell) for cell in row] for row in piece.rows])
            else:
                lines.append(_line(piece))
        return "\n".join(lines).strip("\n")

    def _repr_html_(self) -> str:
        parts = []
        for is_table, pieces in groupby(self.pieces(), lambda piece: isinstance(piece, Table)):
            if is_table:
                parts += [_html_table(piece) for piece in pieces if isinstance(piece, Table)]
            else:
                lines = "\n".join(escaped(_line(str(piece)), "html") for piece in pieces).strip("\n")
                parts.append(f"<pre>{lines}</pre>" if lines else "")
        return "\n".join(part for part in parts if part)


def _line(piece: str) -> str:
    """A line without the hint at an option."""
    return escaped(piece.removesuffix(_MORE))


def _html_table(table: Table) -> str:
    sides = [
        ' style="text-align: right"' if c.numeric else ' style="text-align: left"' for c in table.columns
    ]

    def row(cells: Sequence[str], tag: str) -> str:
        inside = (
            f"<{tag}{side}>{escaped(cell, 'html')}</{tag}>" for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(inside)}</tr>"

    head = row([column.heading for column in table.columns], "th")
    return f"<table><thead>{head}</thead><tbody>{''.join(row(r, 'td') for r in table.rows)}</tbody></table>"
