"""Tables for a terminal without rich, whose import and layout take as long as ``ckptkit list`` itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

_GAP = "   "


def ruled_table(
    headings: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[str]]
) -> list[str] | None:
    """Lines of a table with a rule under its headings, as rich's SIMPLE_HEAD box looks.

    Parameters
    ----------
    headings : sequence of str
    numeric : sequence of bool
        Per column, whether its cells stand at the right.
    rows : sequence of sequence of str

    Returns
    -------
    list of str or None
        None when it needs more than this: cells to wrap, or signs that are not one letter wide.

    Examples
    --------
    >>> ruled_table(["id", "params"], [False, True], [["moat0-224", "27.8M"]])[1:3]
    [' ──────────────────', ' moat0-224    27.8M']
    """
    cells = [headings, *rows]
    if not all(text.isascii() and text.isprintable() for row in cells for text in row):
        return None
    widths = [max(len(row[index]) for row in cells) for index in range(len(headings))]
    width = sum(widths) + len(_GAP) * (len(widths) - 1)
    if width + 2 > shutil.get_terminal_size().columns:
        return None
    lines = [
        " "
        + _GAP.join(
            text.rjust(size) if right else text.ljust(size)
            for text, size, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    ]
    return [_bold(lines[0]), " " + "─" * width, *(line.rstrip() for line in lines[1:])]


def _bold(text: str) -> str:
    plain = os.environ.get("TERM") in {None, "", "dumb"} or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[1m{text}\x1b[0m"
