"""Work done behind the thread that receives: hashing, and bringing bytes to the disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

OUTSTANDING = 8
"""Calls that may wait or run: what is handed over must stay as it is for so long (see `transport.KEPT`)."""


class Worker:
    """One thread that makes calls in the order they were given; the giver waits when too many wait.

    Parameters
    ----------
    name : str
        Of the thread.
    outstanding : int
        How many calls may be waiting or running.

    Examples
    --------
    >>> seen: list[int] = []
    >>> worker = Worker("example")
    >>> for number in range(3):
    ...     worker.do(seen.append, number)
    >>> worker.wait()
    >>> worker.close()
    >>> seen
    [0, 1, 2]
    """

    def __init__(self, name: str, outstanding: int = OUTSTANDING) -> None:
        self._name = name
        self._outstanding = outstanding
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(outstanding):
            self._free.put(None)
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def do(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a call made; waits while too many are under way."""
        self._free.get()
        self._hand_over(function, arguments)

    def do_if_idle(self, function: Callable[..., Any], *arguments: Any) -> bool:
        """Have a call made unless too many are under way; returns whether it will be made."""
        try:
            self._free.get_nowait()
        except queue.Empty:
            return False
        self._hand_over(function, arguments)
        return True

    def _hand_over(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"ckptkit-{self._name}", daemon=True)
            self._thread.start()
        self._calls.put((function, arguments))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, arguments = call
            try:
                if self._error is None:
                    function(*arguments)
            except BaseException as error:  # raised again by `wait`, in the thread that asked
                self._error = error
            finally:
                del call, arguments
                self._free.put(None)

    def wait(self) -> None:
        """Wait until every call was made; raises the error of the first that failed, every time."""
        for _ in range(self._outstanding):
            self._free.get()
        for _ in range(self._outstanding):
            self._free.put(None)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread after the calls under way; errors are not told."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None
