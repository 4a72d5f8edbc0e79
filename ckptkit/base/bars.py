"""Progress for whoever sees it: bars of rich on a terminal, HTML in a notebook, nothing elsewhere."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ckptkit.base.progress import Advance
from ckptkit.base.text import escaped, human_bytes

_SECONDS_BETWEEN = 0.1


def new_bars(stream: TextIO, unit: str) -> Any:
    """Bars on a terminal, which go when what they show is done."""
    from rich import progress as bars
    from rich.console import Console

    amount: list[bars.ProgressColumn] = (
        [bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn()]
        if unit == "bytes"
        else [bars.MofNCompleteColumn(), bars.TimeRemainingColumn()]
    )
    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        *amount,
        console=Console(file=stream),
        transient=True,
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
