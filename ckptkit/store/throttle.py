"""A limit to the bandwidth that all connections take together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ckptkit.base.errors import UsageError

_SMALLEST_PIECE, _LARGEST_PIECE = 1 << 10, 1 << 18


class Throttle:
    """A bucket that fills at the given rate and holds a quarter of a second's bytes; safe for many threads.

    Parameters
    ----------
    rate : float
        Bytes a second, more than 0.
    clock, sleep : callable
        Seconds that never go back, and waiting; injected by tests.

    Examples
    --------
    >>> waited: list[float] = []
    >>> throttle = Throttle(1000, clock=lambda: 0.0, sleep=waited.append)
    >>> throttle.take(250), throttle.take(500)  # what the bucket holds, then half a second's bytes
    (None, None)
    >>> waited
    [0.5]
    """

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not rate > 0:
            raise UsageError(f"a bandwidth of {rate} bytes a second would never end", hint="give more than 0")
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._holds = rate / 4
        self._level = self._holds
        self._filled_at = clock()
        self._lock = threading.Lock()

    @property
    def piece(self) -> int:
        """Bytes to ask for at a time, so that no wait is long."""
        return int(min(max(self.rate / 8, _SMALLEST_PIECE), _LARGEST_PIECE))

    def take(self, count: int) -> None:
        """Account for bytes that came, and wait as long as they are too many."""
        with self._lock:  # the level may fall below zero: who comes later waits behind who came before
            now = self._clock()
            self._level = min(self._holds, self._level + max(now - self._filled_at, 0.0) * self.rate)
            self._filled_at = now
            self._level -= count
            wait = -self._level / self.rate
        if wait > 0:
            self._sleep(wait)
