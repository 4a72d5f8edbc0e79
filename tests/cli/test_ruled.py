"""The table drawn without rich looks as rich draws it."""

from __future__ import annotations

import io

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from ckptkit.cli.output import Column, Output
from ckptkit.cli.ruled import ruled_table

HEADINGS = ["id", "params", "note"]
NUMERIC = [False, True, False]
ROWS = [["moat0-224", "27.8M", "-"], ["tiny-moat0-256", "3.4M", "a [b] c"], ["x", "482.5M", ""]]


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")


def by_rich() -> list[str]:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, right in zip(HEADINGS, NUMERIC, strict=True):
        table.add_column(heading, justify="right" if right else "left")
    for row in ROWS:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    text = io.StringIO()
    Console(file=text, width=80).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_it_looks_as_rich_draws_it() -> None:
    lines = ruled_table(HEADINGS, NUMERIC, ROWS)
    assert lines is not None
    assert ["", *(line.rstrip() for line in lines), ""] == by_rich()


def test_an_empty_table_is_a_heading_and_a_rule() -> None:
    assert ruled_table(["id", "x"], [False, True], []) == [" id   x", " ──────"]


@pytest.mark.parametrize("cell", ["ü", "表", "a\tb", "\x1b[31m", "a" * 80])
def test_what_needs_more_is_left_to_rich(cell: str) -> None:
    assert ruled_table(["id"], [False], [[cell]]) is None


def test_the_heading_is_bold_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ruled_table(["id"], [False], [])[0] == "\x1b[1m id\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert ruled_table(["id"], [False], [])[0] == " id"


@pytest.mark.parametrize("wide", [False, True])
def test_the_sink_uses_it_and_else_rich(wide: bool) -> None:
    terminal = Terminal()
    cell = "many words " * 20 if wide else "few"
    Output(stdout=terminal).table([Column("id"), Column("note")], [["a", cell]])
    lines = [line for line in terminal.getvalue().splitlines() if line.strip()]
    assert (len(lines) > 3) == wide
    assert terminal.getvalue().split().count("words") == (20 if wide else 0)


def test_a_terminal_without_unicode_gets_signs_it_has() -> None:
    terminal = Terminal()
    terminal.encoding = "ascii"
    Output(stdout=terminal).table([Column("id")], [["a"]])
    terminal.getvalue().encode("ascii")
