"""How long work reports progress: it is handed a `Progress`, and never knows what draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the bytes or steps that were done since the last call."""
Say = Callable[[str], None]
"""Takes a note or a warning."""


class Progress(Protocol):
    """Opens a display for a description and a total, None where the total is not known."""

    def __call__(
        self, description: str, total: int | None, /, *, unit: str = "bytes"
    ) -> AbstractContextManager[Advance]:
        """Show the display while the block lasts."""
        ...


@contextmanager
def no_progress(_description: str, _total: int | None, /, *, unit: str = "bytes") -> Iterator[Advance]:
    """Show nothing."""
    yield lambda _steps: None


def say_nothing(_text: str) -> None:
    """Take a note or a warning, and print nothing."""
