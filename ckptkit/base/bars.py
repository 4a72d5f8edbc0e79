"""Progress for whoever sees it: bars of rich on a terminal, HTML in a notebook, nothing elsewhere."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TextIO

from ckptkit.base.progress import Advance
from ckptkit.base.text import escaped, human_bytes

_SECONDS_BETWEEN = 0.1


def new_bars(stream: TextIO, unit: str) -> Any:
    """Bars on a terminal, one line each, which go when what they show is done."""
    from rich import progress as bars
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    class Done(bars.MofNCompleteColumn):
        """How many are done, of how many where that is known."""

        def render(self, task: bars.Task) -> Text:
            return super().render(task) if task.total is not None else Text(f"{task.completed:,.0f}")

    whole = partial(Column, no_wrap=True)
    done: list[bars.ProgressColumn] = [Done(table_column=whole())]
    if unit == "bytes":
        done = [bars.DownloadColumn(table_column=whole()), bars.TransferSpeedColumn(table_column=whole())]
    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False, table_column=whole(overflow="ellipsis")),
        bars.BarColumn(None, table_column=whole(ratio=1, min_width=4)),
        bars.TaskProgressColumn(table_column=whole()),
        *done,
        bars.TimeRemainingColumn(table_column=whole()),
        console=Console(file=stream),
        transient=True,
        expand=True,
    )


@contextmanager
def seen_progress(description: str, total: int | None, /, *, unit: str = "bytes") -> Iterator[Advance]:
    """Draw a bar where somebody sees it: in a notebook, or on standard error if that is a terminal."""
    description = escaped(description)
    if _in_notebook():
        yield _HtmlBar(description, total, unit).advance
    elif sys.stderr is not None and sys.stderr.isatty():
        with new_bars(sys.stderr, unit) as bars:
            task = bars.add_task(description, total=total)
            yield lambda steps: bars.advance(task, steps)
    else:
        yield lambda _steps: None


def _in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel; IPython is asked only if it is imported already."""
    python = sys.modules.get("IPython")
    return python is not None and type(python.get_ipython()).__name__ == "ZMQInteractiveShell"


class _HtmlBar:
    """A bar that a notebook shows, redrawn ten times a second at most; the last one stays."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        from IPython.display import display

        self._description, self._total, self._unit = description, total, unit
        self._done, self._drawn = 0, time.monotonic()
        self._display = display(self, display_id=True)

    def advance(self, steps: int) -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._drawn >= _SECONDS_BETWEEN or self._done == self._total:
            self._drawn = now
            self._display.update(self)

    def __repr__(self) -> str:
        amounts = [amount for amount in (self._done, self._total) if amount is not None]
        shown = [human_bytes(one) if self._unit == "bytes" else f"{one:,} {self._unit}" for one in amounts]
        return f"{self._description} {' of '.join(shown)}"

    def _repr_html_(self) -> str:
        value = "" if self._total is None else f' max="{self._total}" value="{self._done}"'
        return f"<progress{value}></progress> {html.escape(repr(self))}"
